//! The pages of the link's memory that nobody uses.

use ashore_wire::Errno;

use super::patience::Patience;
use crate::core::pages::PageId;
use crate::primitives::atomic::{AtomicUsize, Ordering};
use crate::primitives::{Condvar, Mutex};

/// The free pages. All pages there are is the bound of the cache.
///
/// Pages are taken and come back in such an order that those which follow each other in a file tend to follow each other
/// in memory: a link can then name many of them at once.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Mutex<Vec<PageId>>,
    freed: Condvar,
    total: usize,
}

impl Pool {
    /// All of the link's pages, free.
    pub(crate) fn new(total: usize) -> Pool {
        let pages = (0..total as u32).rev().map(PageId).collect();
        Pool { free: Mutex::new(pages), freed: Condvar::new(), total }
    }

    /// Pages there are, free or not.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Pages that are free.
    pub(crate) fn free(&self) -> usize {
        self.free.lock().len()
    }

    /// One page.
    pub(crate) fn take_one(&self) -> Option<PageId> {
        self.free.lock().pop()
    }

    /// So many pages, or none at all: two who wait for each other's rest would wait for ever.
    pub(crate) fn take(&self, count: usize) -> Option<Vec<PageId>> {
        let mut free = self.free.lock();
        let rest = free.len().checked_sub(count)?;
        let mut taken = free.split_off(rest);
        taken.reverse();
        Some(taken)
    }

    /// Pages come back. Neither server nor cache may touch them any more.
    pub(crate) fn give(&self, pages: Vec<PageId>) {
        if pages.is_empty() {
            return;
        }
        let mut free = self.free.lock();
        free.extend(pages.into_iter().rev());
        debug_assert!(free.len() <= self.total, "no page is given back twice");
        drop(free);
        self.freed.notify_all();
    }

    /// Waits until so many pages are free.
    pub(crate) fn wait_for(&self, count: usize, patience: &Patience) -> Result<(), Errno> {
        let mut free = self.free.lock();
        while free.len() < count {
            patience.wait(&self.freed, &mut free)?;
        }
        Ok(())
    }
}

/// A number that may not go above a limit: WRITEs of the cache in flight.
#[derive(Debug)]
pub(crate) struct Slots {
    used: Mutex<usize>,
    released: Condvar,
    limit: AtomicUsize,
}

impl Slots {
    /// So many at a time.
    pub(crate) fn new(limit: usize) -> Slots {
        Slots { used: Mutex::new(0), released: Condvar::new(), limit: AtomicUsize::new(limit.max(1)) }
    }

    /// The server wants fewer. Said before the first place is taken.
    pub(crate) fn lower_limit(&self, limit: usize) {
        self.limit.fetch_min(limit.max(1), Ordering::Relaxed);
    }

    /// Takes a place, waiting for one. It is given back by [`Slots::release`].
    pub(crate) fn acquire(&self, patience: &Patience) -> Result<(), Errno> {
        let mut used = self.used.lock();
        while *used >= self.limit.load(Ordering::Relaxed) {
            patience.wait(&self.released, &mut used)?;
        }
        *used += 1;
        Ok(())
    }

    /// Gives a place back.
    pub(crate) fn release(&self) {
        let mut used = self.used.lock();
        *used = used.checked_sub(1).expect("a place is given back once");
        drop(used);
        self.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_taken_together_also_the_second_time() {
        let pool = Pool::new(100);
        let first = pool.take(4).unwrap();
        assert_eq!(first, [0, 1, 2, 3].map(PageId));
        assert_eq!(pool.take_one(), Some(PageId(4)));
        pool.give(first.clone());
        assert_eq!(pool.take(4), Some(first));
        assert_eq!(pool.take(96), None, "all or nothing");
    }
}
