//! Which pages of guest memory we have written to, told to a VMM that copies the memory elsewhere meanwhile.
//!
//! ```text
//!     log, one bit a page of 4 KiB     | 0 0 0 1 0 1 1 0 | ...      byte = page / 8, bit = page % 8
//!                                              ^
//!     we:   write to the page, then set its bit        the VMM:  take and clear the bit, then copy the page
//! ```
//!
//! In this order nothing is lost: a VMM that took the bit before we set it finds it again, and one that takes it later copies
//! what we wrote, for setting it is a full barrier. So it does not matter that a page is marked some time after it was written,
//! as long as every mark is made before the queue is reported as stopped: the VMM looks once more after that.
//!
//! Logging begins while queues run. Marks are switched under the lock that a completion is made under, and completions are where
//! marks are set: a request that was taken before logging began and is given back after it is marked like any other, and one
//! that was given back before is in memory when the VMM hears that its message was followed, which is when it begins to copy.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memory::{MemoryError, Region, RegionPlace};

/// Bytes that one bit stands for.
const PAGE: u64 = 4096;

/// The log of a VMM.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    region: Region,
    /// It was complained that the log is too short.
    complained: AtomicBool,
}

impl DirtyLog {
    pub(crate) fn map(bytes: u64, offset: u64, file: File) -> Result<DirtyLog, MemoryError> {
        let place = RegionPlace { guest: 0, len: bytes, user: 0 };
        Ok(DirtyLog { region: Region::map(place, file, offset)?, complained: AtomicBool::new(false) })
    }

    /// Marks what lies at these guest addresses, which has been written by now.
    pub(crate) fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| address.checked_add(more)) else { return };
        let (mut page, last) = (address / PAGE, last / PAGE);
        while page <= last {
            let until = last.min(page | 7);
            let count = until - page + 1;
            let bits = (((1u16 << count) - 1) << (page % 8)) as u8;
            match self.region.byte((page / 8) as usize) {
                // A look whether they are set already would save nothing: it may be older than our writes.
                Some(byte) => _ = byte.fetch_or(bits, Ordering::SeqCst),
                None => return self.complain(page),
            }
            page = until + 1;
        }
    }

    fn complain(&self, page: u64) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the VMM's log of changed memory ends before page {page:#x}, which was changed: a migration loses it"
            );
        }
    }
}

/// What of one queue's writes is marked, and where.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    log: Arc<DirtyLog>,
    data: bool,
    used_ring: Option<u64>,
}

impl Marks {
    /// Marks for what is written to buffers, if `data`, and to the used ring, if the VMM said at which address it is to be
    /// marked. `None`: neither.
    pub(crate) fn new(log: &Arc<DirtyLog>, data: bool, used_ring: Option<u64>) -> Option<Marks> {
        (data || used_ring.is_some()).then(|| Marks { log: Arc::clone(log), data, used_ring })
    }

    /// The log for what is written to buffers.
    pub(crate) fn data(&self) -> Option<&DirtyLog> {
        self.data.then_some(&*self.log)
    }

    /// Marks bytes of the used ring, counted from its beginning.
    pub(crate) fn used_ring(&self, (offset, len): (usize, usize)) {
        if let Some(address) = self.used_ring {
            self.log.mark(address.saturating_add(offset as u64), len as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(bytes: u64) -> DirtyLog {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        DirtyLog::map(bytes, 0, file).unwrap()
    }

    #[test]
    fn the_pages_of_a_range_are_marked_and_no_others() {
        // Method: every short range, against counting.
        for first in 0..20u64 {
            for pages in 1..20u64 {
                for (address, len) in
                    [(first * PAGE, pages * PAGE), (first * PAGE + PAGE - 1, (pages - 1) * PAGE + 1)]
                {
                    let log = log(8);
                    log.mark(address, len);
                    for page in 0..64 {
                        let bit = log.region.byte(page as usize / 8).unwrap().load(Ordering::SeqCst)
                            >> (page % 8)
                            & 1;
                        assert_eq!(
                            bit == 1,
                            (first..first + pages).contains(&page),
                            "{address:#x} {len:#x}: {page}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_outside_of_the_log_is_left_alone() {
        let log = log(1);
        for (address, len) in [(8 * PAGE, 1), (u64::MAX, 1), (u64::MAX, 2), (0, 0), (u64::MAX - PAGE, PAGE)] {
            log.mark(address, len);
        }
        assert_eq!(log.region.byte(0).unwrap().load(Ordering::SeqCst), 0);
        log.mark(7 * PAGE, 3 * PAGE);
        assert_eq!(log.region.byte(0).unwrap().load(Ordering::SeqCst), 0x80);
    }
}
