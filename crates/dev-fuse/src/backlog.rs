//! How far the queues have come, for a sync that must not overtake what another queue's thread has read.
//!
//! The kernel hands out requests in the order in which they were made, whichever descriptor they are read from. So what is
//! earlier than a SYNCFS has been read when the SYNCFS is; it may only be that the thread that read it has not yet counted it.
//! Each queue therefore counts what it took and what it is done with, and a mark waits for those that had taken something to be
//! done with it. A queue of io_uring takes all that has arrived in its ring at once, and is done with one after the other.
//!
//! One gap remains: what the kernel has made and no thread has in its hands yet, because its read(2) has not returned or because
//! it has not looked into its ring, is not seen. It has not been answered, so the program that asked for it is still waiting, or
//! it is write-back, for which the kernel itself waits before it sends SYNCFS, or our own barrier does (`write_back.rs`). No
//! sync promises anything about the former.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ashore_wire::seam::{Backlog, BacklogMark};
use parking_lot::{Condvar, Mutex};

/// The turns of all queues of a mount.
pub(crate) struct Turns {
    queues: Box<[Turn]>,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

/// How far one queue is. Only the queue's own thread moves it.
#[derive(Default)]
struct Turn {
    taken: AtomicU64,
    done: AtomicU64,
}

impl Turn {
    /// What has been taken, if the queue is not done with it.
    fn busy_with(&self) -> Option<u64> {
        // In this order: what is taken in between makes the queue look busy, never idle.
        let done = self.done.load(Ordering::SeqCst);
        let taken = self.taken.load(Ordering::SeqCst);
        (taken != done).then_some(taken)
    }
}

impl Turns {
    pub(crate) fn new(queues: usize) -> Turns {
        Turns {
            queues: (0..queues).map(|_| Turn::default()).collect(),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// The thread of this queue has a request.
    pub(crate) fn begin(&self, queue: usize) {
        self.take(queue, 1);
    }

    /// The thread of this queue has so many requests more.
    pub(crate) fn take(&self, queue: usize, requests: usize) {
        self.queues[queue].taken.fetch_add(requests as u64, Ordering::SeqCst);
    }

    /// The thread of this queue has come back for the next request, or for ever: it is done with all it took.
    pub(crate) fn end(&self, queue: usize) {
        let turn = &self.queues[queue];
        self.move_to(queue, turn.taken.load(Ordering::Relaxed));
    }

    /// It is done with the first of those it took and was not done with.
    pub(crate) fn end_one(&self, queue: usize) {
        self.move_to(queue, self.queues[queue].done.load(Ordering::Relaxed) + 1);
    }

    fn move_to(&self, queue: usize, done: u64) {
        let turn = &self.queues[queue];
        if turn.done.load(Ordering::Relaxed) == done {
            return;
        }
        // One order for all four: the waiter counts itself and then looks at the turn, we move the turn and then look for
        // waiters. Either he sees the turn moved, or we see him.
        turn.done.store(done, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let _lock = self.lock.lock();
            self.moved.notify_all();
        }
    }
}

/// The queues of a mount as the server sees them.
pub(crate) struct FuseBacklog(pub(crate) Arc<Turns>);

impl Backlog for FuseBacklog {
    fn mark(&self) -> Box<dyn BacklogMark> {
        let queues = self.0.queues.iter().enumerate();
        let busy = queues.filter_map(|(queue, turn)| Some((queue, turn.busy_with()?))).collect();
        Box::new(Mark { turns: Arc::clone(&self.0), busy })
    }
}

struct Mark {
    turns: Arc<Turns>,
    /// Queues whose thread had requests, and what it has to be done with.
    busy: Vec<(usize, u64)>,
}

impl BacklogMark for Mark {
    fn passed(&self) -> bool {
        self.busy.iter().all(|(queue, taken)| self.turns.queues[*queue].done.load(Ordering::SeqCst) >= *taken)
    }

    fn wait(&self, timeout: Duration) -> bool {
        if self.passed() {
            return true;
        }
        let deadline = Instant::now() + timeout;
        self.turns.waiting.fetch_add(1, Ordering::SeqCst);
        let mut lock = self.turns.lock.lock();
        let passed = loop {
            if self.passed() {
                break true;
            }
            if self.turns.moved.wait_until(&mut lock, deadline).timed_out() {
                break self.passed();
            }
        };
        drop(lock);
        self.turns.waiting.fetch_sub(1, Ordering::SeqCst);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_waits_for_the_thread_that_is_about_a_request_and_for_no_later_one() {
        let turns = Arc::new(Turns::new(3));
        turns.begin(1);
        let mark = FuseBacklog(Arc::clone(&turns)).mark();
        turns.begin(2);
        assert!(!mark.passed() && !mark.wait(Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || mark.wait(Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(20));
        turns.end(1);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn a_thread_that_took_another_request_has_passed() {
        let turns = Arc::new(Turns::new(1));
        turns.begin(0);
        let mark = FuseBacklog(Arc::clone(&turns)).mark();
        turns.end(0);
        turns.begin(0);
        assert!(mark.passed());
    }

    #[test]
    fn a_mark_waits_for_all_that_a_thread_had_taken_at_once_and_for_nothing_it_took_later() {
        let turns = Arc::new(Turns::new(2));
        turns.take(1, 2);
        let mark = FuseBacklog(Arc::clone(&turns)).mark();
        turns.end_one(1);
        turns.take(1, 1);
        assert!(!mark.passed());
        turns.end_one(1);
        assert!(mark.passed());
        assert!(!FuseBacklog(Arc::clone(&turns)).mark().passed());
    }
}
