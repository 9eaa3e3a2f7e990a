//! Guests that send SYNCFS before their data.
//!
//! Since 6.18.21, 6.19.11 and 7.0 (commit 76f9377cd2ab) Linux no longer waits in sync(2) for dirty pages of FUSE to be
//! sent: it wakes its flusher, and sends SYNCFS. Nothing in INIT tells such a kernel from a sound one; it shows by what
//! it does. WRITEs from its page cache, which carry a flag that says so, keep coming while its SYNCFS is open:
//!
//! ```text
//!   sound:   W W W W W W  S                  the SYNCFS comes last
//!   weak:    W W  S  W W W W                 the SYNCFS overtakes what it was sent for
//!                 |---------|....|           held: until no such WRITE has come for a grace period
//!                                ^ then synced
//! ```
//!
//! So a SYNCFS is held back until cached WRITEs have been quiet for a while, and what came is synced along. It wins back
//! most of the promise, not all: a page that is rewritten while its WRITE is under way is not sent by sync(2) of such a
//! kernel at all, and nothing a server does brings it.

use std::time::Duration;

use crate::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::primitives::{Instant, thread};

/// How many grace periods a SYNCFS is held back at most: a guest that writes without end must not hold up its own sync.
const MAX_GRACES: u32 = 50;

/// Watches one session's cached WRITEs and holds its syncs back.
pub(crate) struct EarlySyncs {
    grace: Duration,
    /// Such a SYNCFS is answered with an error.
    refused: bool,
    begun: Instant,
    /// When the last cached WRITE came, in microseconds since `begun`; 0: none has.
    last_cached: AtomicU64,
    /// The client may write back when it likes, so any of its files may be dirty.
    writeback: AtomicBool,
    recognised: AtomicBool,
}

impl EarlySyncs {
    /// With no grace nothing is watched and nothing held back.
    pub(crate) fn new(grace: Duration, refused: bool) -> EarlySyncs {
        EarlySyncs {
            grace,
            refused,
            begun: Instant::now(),
            last_cached: AtomicU64::new(0),
            writeback: AtomicBool::new(false),
            recognised: AtomicBool::new(false),
        }
    }

    /// A client begins.
    pub(crate) fn begin(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
        self.last_cached.store(0, Ordering::Relaxed);
        self.recognised.store(false, Ordering::Relaxed);
    }

    /// A cached WRITE has come.
    pub(crate) fn note_cached_write(&self) {
        if !self.grace.is_zero() {
            // A hint, not a fence: what has been written is made visible by the barrier.
            self.last_cached.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Waits until cached WRITEs have been quiet for the grace period; returns whether any came meanwhile. To be called
    /// on a thread that serves no queue.
    ///
    /// A client that was not granted write-back has dirty pages only where it maps files: it is held up only if it
    /// has ever sent such a WRITE.
    pub(crate) fn await_quiet(&self) -> bool {
        let before = self.last_cached.load(Ordering::Relaxed);
        if self.grace.is_zero() || (before == 0 && !self.writeback.load(Ordering::Relaxed)) {
            return false;
        }
        let start = self.now();
        let bound = start + micros(self.grace * MAX_GRACES);
        loop {
            let quiet_at = self.last_cached.load(Ordering::Relaxed).max(start) + micros(self.grace);
            let now = self.now();
            if now >= quiet_at.min(bound) {
                break;
            }
            thread::sleep(Duration::from_micros(quiet_at.min(bound) - now));
        }
        let came = self.last_cached.load(Ordering::Relaxed) > start;
        if came && !self.recognised.swap(true, Ordering::Relaxed) {
            let done = if self.refused {
                "synced as far as it came and answered with EIO"
            } else {
                "held back for that"
            };
            tracing::warn!(
                "the guest sends data from its cache after the SYNCFS that should follow it, as Linux 6.18.21, 6.19.11, \
                 7.0 and later do; such a sync is {done} ({:?} after the last write). fsync(2) and msync(2) are right in \
                 such a guest, sync(2) is not quite",
                self.grace
            );
        }
        came
    }

    /// Whether this client has been seen to send SYNCFS before its data.
    pub(crate) fn recognised(&self) -> bool {
        self.recognised.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        // Never 0, which says that nothing has come.
        micros(self.begun.elapsed()) + 1
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const GRACE: Duration = Duration::from_millis(20);

    #[test]
    fn a_client_without_dirty_pages_is_not_held_up() {
        let syncs = EarlySyncs::new(GRACE, false);
        syncs.begin(false);
        let begun = Instant::now();
        assert!(!syncs.await_quiet());
        assert!(begun.elapsed() < GRACE);
    }

    #[test]
    fn a_sync_is_held_until_the_writes_that_follow_it_have_been_quiet() {
        let syncs = Arc::new(EarlySyncs::new(GRACE, false));
        syncs.begin(true);
        let writer = Arc::clone(&syncs);
        let begun = Instant::now();
        let writes = thread::spawn(move || {
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(5));
                writer.note_cached_write();
            }
        });
        assert!(syncs.await_quiet());
        assert!(writes.is_finished(), "the sync waited for the last of the writes");
        assert!(begun.elapsed() >= Duration::from_millis(50) + GRACE);
    }

    #[test]
    fn a_writer_without_end_does_not_hold_a_sync_for_ever() {
        let syncs = Arc::new(EarlySyncs::new(Duration::from_millis(2), false));
        syncs.begin(true);
        let (writer, stop) = (Arc::clone(&syncs), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let writes = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                writer.note_cached_write();
                thread::yield_now();
            }
        });
        assert!(syncs.await_quiet());
        stop.store(true, Ordering::Relaxed);
        writes.join().unwrap();
    }
}
