//! How far the queues have come, for a sync that must not overtake what another queue's thread has read.
//!
//! The kernel hands out requests in the order in which they were made, whichever descriptor they are read from. So what is
//! earlier than a SYNCFS has been read when the SYNCFS is; it may only be that the thread that read it has not yet counted it.
//! Each queue therefore counts its turns, odd while its thread is about a request, and a mark waits for those that are odd to
//! move on.
//!
//! One gap remains: a thread whose read(2) has taken a request and not yet returned looks idle. What it holds has not been
//! answered, so the program that asked for it is still waiting, or it is write-back, for which the kernel itself waits
//! before it sends SYNCFS. No sync promises anything about either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ashore_wire::seam::{Backlog, BacklogMark};
use parking_lot::{Condvar, Mutex};

/// The turns of all queues of a mount.
pub(crate) struct Turns {
    queues: Box<[AtomicU64]>,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Turns {
    pub(crate) fn new(queues: usize) -> Turns {
        Turns {
            queues: (0..queues).map(|_| AtomicU64::new(0)).collect(),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// The thread of this queue has a request.
    pub(crate) fn begin(&self, queue: usize) {
        self.queues[queue].fetch_add(1, Ordering::SeqCst);
    }

    /// The thread of this queue has come back for the next request, or for ever.
    pub(crate) fn end(&self, queue: usize) {
        // Only the queue's own thread moves this number.
        let turn = self.queues[queue].load(Ordering::Relaxed);
        if turn.is_multiple_of(2) {
            return;
        }
        // One order for all four: the waiter counts itself and then looks at the turn, we move the turn and then look for
        // waiters. Either he sees the turn moved, or we see him.
        self.queues[queue].store(turn + 1, Ordering::SeqCst);
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
        let turns = self.0.queues.iter().map(|turn| turn.load(Ordering::SeqCst)).enumerate();
        let busy = turns.filter(|(_, turn)| !turn.is_multiple_of(2)).collect();
        Box::new(Mark { turns: Arc::clone(&self.0), busy })
    }
}

struct Mark {
    turns: Arc<Turns>,
    /// Queues whose thread was about a request, and the turn it was.
    busy: Vec<(usize, u64)>,
}

impl BacklogMark for Mark {
    fn passed(&self) -> bool {
        self.busy.iter().all(|(queue, turn)| self.turns.queues[*queue].load(Ordering::SeqCst) != *turn)
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
}
