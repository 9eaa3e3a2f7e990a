//! Threads for what may wait for the disk, so that no queue does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::getpid;
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::primitives::{Condvar, Mutex, thread};
use crate::wait::LOCK_WAITS_MAX;

/// How long a thread with nothing to do stays around.
const IDLE_THREAD_SECONDS: u64 = 10;
/// Syncs of one session under way at once, at most; those of one superblock share rounds and count as one.
const MAX_SYNC_THREADS: usize = 32;
/// Other requests of one session that wait for the disk at once, at most.
const MAX_DISK_THREADS: usize = 32;
/// Requests of one session that wait for a lock at once: none of them queues behind another.
const MAX_LOCK_THREADS: usize = LOCK_WAITS_MAX;

type Job = Box<dyn FnOnce() + Send>;

/// The pools of one session.
///
/// There are several because of who waits for whom. A sync waits for changes, and changes wait for the disk: were they
/// in one pool, syncs could fill it while the changes they wait for queue behind them. A lock may be held for ever.
pub(crate) struct Pools {
    /// For what waits for earlier changes: SYNCFS, FSYNC, FSYNCDIR, DESTROY.
    pub(crate) syncs: Offload,
    /// For what waits for the disk.
    pub(crate) disk: Offload,
    /// For what waits for a lock that another process holds.
    pub(crate) locks: Offload,
}

impl Default for Pools {
    fn default() -> Pools {
        Pools {
            syncs: Offload::new("ashore-sync", MAX_SYNC_THREADS),
            disk: Offload::new("ashore-disk", MAX_DISK_THREADS),
            locks: Offload::new("ashore-locks", MAX_LOCK_THREADS),
        }
    }
}

/// A pool whose threads come when they are needed, up to a bound, and go when they are not.
///
/// Jobs wait in a queue when all threads are busy. The queue needs no bound of its own: each job is a request the
/// client waits for, and those are bounded by the size of the client's queues.
pub(crate) struct Offload {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    max_threads: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Nobody can submit any more.
    closed: bool,
}

impl Offload {
    /// A pool of at most `max_threads` threads of this name; none is started yet.
    pub(crate) fn new(name: &'static str, max_threads: usize) -> Offload {
        let state = Mutex::new(State::default());
        Offload { shared: Arc::new(Shared { name, max_threads, state, wake: Condvar::new() }) }
    }

    /// Has `job` done by a thread of the pool.
    ///
    /// If the host grants not even one thread the job is done here and now: late for the others on this queue, but
    /// done.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.wake.notify_one();
            return;
        }
        if state.threads == self.shared.max_threads {
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(self.shared.name.into()).spawn(move || shared.work());
        if let Err(error) = spawned {
            state.threads -= 1;
            if state.threads == 0 {
                tracing::warn!(
                    "no thread could be started ({error}); a request that may block holds up its queue"
                );
                let jobs = std::mem::take(&mut state.jobs);
                drop(state);
                jobs.into_iter().for_each(run);
            }
        }
    }
}

/// Jobs that were submitted are still done; then the threads go.
impl Drop for Offload {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        go_where_the_process_may();
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.state.lock();
                continue;
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            let timeout = Duration::from_secs(IDLE_THREAD_SECONDS);
            let timed_out = self.wake.wait_for(&mut state, timeout).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// A thread begins with the processors of the one that started it, and a queue's may be tied to one. What takes long must not hold up
/// that queue, nor wait for it, so the pool's threads have the processors of the process: those of its first thread, which is no queue's.
fn go_where_the_process_may() {
    let moved = sched_getaffinity(Some(getpid())).and_then(|all| sched_setaffinity(None, &all));
    if let Err(error) = moved {
        tracing::debug!("a thread for what takes long stays on its queue's processor: {error}");
    }
}

/// A job that panics must not take the pool's thread, and with it later jobs, along.
fn run(job: Job) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
        tracing::error!("a request made the server panic; it was answered with EIO");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::CpuSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn jobs_run_side_by_side_up_to_the_bound_and_the_rest_follow() {
        let pool = Offload::new("test", 4);
        let (running, done) = (Arc::new(AtomicUsize::new(0)), mpsc::channel());
        let most = Arc::new(AtomicUsize::new(0));
        for _ in 0..32 {
            let (running, most, done) = (running.clone(), most.clone(), done.0.clone());
            pool.submit(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(()).unwrap();
            });
        }
        for _ in 0..32 {
            done.1.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        let most = most.load(Ordering::SeqCst);
        assert!((2..=4).contains(&most), "{most} jobs ran at once");
    }

    /// With one processor alone nothing can be seen of it.
    #[test]
    fn a_queue_that_is_tied_to_a_processor_does_not_tie_those_it_has_work_done_by() {
        let all = sched_getaffinity(Some(getpid())).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|processor| all.is_set(*processor)).unwrap();
        let mut only = CpuSet::new();
        only.set(first);
        assert_ne!(all, only, "two processors are needed");
        let (sender, receiver) = mpsc::channel();
        let queue = thread::spawn(move || {
            sched_setaffinity(None, &only).unwrap();
            Offload::new("test", 1).submit(move || sender.send(sched_getaffinity(None).unwrap()).unwrap());
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(all));
        queue.join().unwrap();
    }

    #[test]
    fn a_job_that_panics_leaves_the_pool_at_work() {
        let pool = Offload::new("test", 1);
        let (sender, receiver) = mpsc::channel();
        pool.submit(|| panic!("on purpose"));
        pool.submit(move || sender.send(7).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
