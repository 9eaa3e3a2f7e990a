//! What a queue has done, in numbers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one queue, since its device was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueCounters {
    /// Requests taken, malformed ones included.
    pub requests: u64,
    /// Requests that could not be read.
    pub malformed: u64,
    /// Times the guest was notified of completions.
    pub notifications: u64,
    /// Times the thread slept and was woken, by the guest or to stop.
    pub wake_ups: u64,
}

impl fmt::Display for QueueCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QueueCounters { requests, malformed, notifications, wake_ups } = self;
        write!(
            f,
            "{requests} requests, {malformed} malformed, {notifications} notifications, {wake_ups} wake-ups"
        )
    }
}

/// The counters while they count: independent of each other and of everything else, hence relaxed.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) malformed: Counter,
    pub(crate) notifications: Counter,
    pub(crate) wake_ups: Counter,
}

impl Counters {
    pub(crate) fn read(&self) -> QueueCounters {
        QueueCounters {
            requests: self.requests.read(),
            malformed: self.malformed.read(),
            notifications: self.notifications.read(),
            wake_ups: self.wake_ups.read(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
