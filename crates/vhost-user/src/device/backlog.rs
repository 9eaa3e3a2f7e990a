//! How far the queues have come: what has been made available, and what has been taken.
//!
//! A mark is, for each queue that runs, the index up to which requests were available. Passing it is a matter of
//! the queue's `position`, which its thread moves when it comes back for the next request. To the one who waits
//! nothing may be lost between his look and his sleep:
//!
//! ```text
//!     waiter                              queue's thread
//!     waiting += 1        (SeqCst)        position = new      (SeqCst)
//!     position passed?    (SeqCst)        waiting > 0?        (SeqCst)
//!     no: sleep                           yes: wake
//! ```
//!
//! All four are in one order, so either the waiter sees the new position or the thread sees the waiter; and since
//! the waiter looks and falls asleep under the lock that the thread takes to wake him, the call is not missed.
//!
//! A queue comes past many positions before one that somebody waits for, so the thread wakes nobody until all that one of them waits
//! for has been passed. It looks under the lock: of two queues that are both waited for, the second to take it sees what the first
//! has moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ashore_wire::seam::{Backlog, BacklogMark};
use parking_lot::{Condvar, Mutex};

use super::shared::Shared;

/// The queues of a device that run, for those who wait for them.
#[derive(Debug, Default)]
pub(crate) struct DeviceBacklog {
    running: Mutex<Vec<Arc<Shared>>>,
    waiters: Arc<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    waiting: AtomicUsize,
    for_what: Mutex<Vec<Arc<Targets>>>,
    passed: Condvar,
}

/// The position that each queue has to come to.
type Targets = [(Arc<Shared>, u64)];

fn have_passed(targets: &Targets) -> bool {
    targets.iter().all(|(queue, target)| queue.has_ended() || queue.position() >= *target)
}

impl DeviceBacklog {
    pub(crate) fn add(&self, queue: Arc<Shared>) {
        self.running.lock().push(queue);
    }

    pub(crate) fn remove(&self, queue: &Arc<Shared>) {
        self.running.lock().retain(|other| !Arc::ptr_eq(other, queue));
    }

    /// A position has moved, or a queue has ended.
    pub(crate) fn moved(&self) {
        if self.waiters.waiting.load(Ordering::SeqCst) > 0 {
            let waiting = self.waiters.for_what.lock();
            if waiting.iter().any(|targets| have_passed(targets)) {
                self.waiters.passed.notify_all();
            }
        }
    }
}

impl Backlog for DeviceBacklog {
    fn mark(&self) -> Box<dyn BacklogMark> {
        let running = self.running.lock();
        let targets = running.iter().map(|queue| (queue.clone(), available_end(queue))).collect();
        Box::new(Mark { targets, waiters: self.waiters.clone() })
    }
}

/// The position at which everything available now has been taken.
fn available_end(queue: &Shared) -> u64 {
    loop {
        let before = queue.position();
        let available = queue.ring.available_index();
        let after = queue.position();
        // The index has 16 bits only. It is unambiguous if the thread did not come far while we looked.
        if after - before < u64::from(u16::MAX / 2) {
            let waiting = available.wrapping_sub(before as u16);
            // More than a ring can hold, beside the one being served, is not true, and will break the queue.
            return before + u64::from(waiting.min(queue.ring.size() + 1));
        }
    }
}

struct Mark {
    targets: Arc<Targets>,
    waiters: Arc<Waiters>,
}

impl BacklogMark for Mark {
    fn passed(&self) -> bool {
        have_passed(&self.targets)
    }

    fn wait(&self, timeout: Duration) -> bool {
        if self.passed() {
            return true;
        }
        let deadline = Instant::now().checked_add(timeout);
        self.targets.iter().for_each(|(queue, target)| {
            if queue.position() < *target {
                queue.end_nap();
            }
        });
        self.waiters.waiting.fetch_add(1, Ordering::SeqCst);
        let mut waiting = self.waiters.for_what.lock();
        waiting.push(Arc::clone(&self.targets));
        let passed = loop {
            if self.passed() {
                break true;
            }
            match deadline {
                Some(deadline) if Instant::now() >= deadline => break false,
                Some(deadline) => drop(self.waiters.passed.wait_until(&mut waiting, deadline)),
                None => self.waiters.passed.wait(&mut waiting),
            }
        };
        let ours = waiting.iter().position(|targets| Arc::ptr_eq(targets, &self.targets));
        ours.map(|place| waiting.swap_remove(place));
        drop(waiting);
        self.waiters.waiting.fetch_sub(1, Ordering::SeqCst);
        passed
    }
}
