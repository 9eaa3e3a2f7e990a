//! The thin shell around the core: locks, threads, the clock and the link.
//!
//! Locks are taken in this order, and most paths take one only: an inode's state; then one of the small ones (names,
//! dirty list, pool, chores, connection table, error log). None of the small ones is held while another is taken,
//! and nothing is waited for while one is held, except on its own condition.

pub(crate) mod attributes;
pub(crate) mod change;
pub(crate) mod connection;
pub(crate) mod direct;
pub(crate) mod flusher;
pub(crate) mod inodes;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod patience;
pub(crate) mod pool;
pub(crate) mod port;
pub(crate) mod read;
mod session;
mod sync;
pub(crate) mod write;
pub(crate) mod writeback;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ashore_barrier::Barrier;
use ashore_wire::Errno;
#[cfg(not(shuttle))]
use rustix::time::{ClockId, clock_gettime};

use crate::CacheMode;
use crate::Options;
use crate::core::errors::ErrorLog;
use crate::core::inode::{Moment, Timestamp};
use crate::core::names::NameCache;
use crate::core::pages::PAGE_SIZE;
use crate::core::rounds::Rounds;
use crate::primitives::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::primitives::{Condvar, HashMap, Instant, Mutex};
use connection::Connection;
use flusher::Chores;
use inodes::{Inode, Inodes, Locked};
use patience::Patience;
use pool::{Pool, Slots};
use port::Memory;

pub(crate) use session::Session;

/// Who waits for memory or for pages to become clean looks this often whether the connection still stands.
pub(crate) const STALL_LOOK: Duration = Duration::from_millis(100);
/// Pages taken out of one inode in one sweep of the evictor.
const EVICTED_AT_ONCE: usize = 256;

/// What was agreed with the server, in the units used here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    pub(crate) cache: CacheMode,
    /// Pages in one READ or WRITE, at most.
    pub(crate) write_pages: u64,
    /// Pages read ahead, at most.
    pub(crate) readahead_pages: u64,
    pub(crate) setxattr_ext: bool,
}

/// A connection and everything known through it.
pub(crate) struct Mount {
    pub(crate) connection: Connection,
    pub(crate) memory: Memory,
    pub(crate) pool: Pool,
    pub(crate) barrier: Barrier,
    pub(crate) options: Options,
    agreed: OnceLock<Agreed>,
    pub(crate) inodes: Inodes,
    pub(crate) names: Mutex<NameCache<Arc<Inode>>>,
    /// Roots of all superblocks known on this connection, the mount's own first. Never forgotten: there is no
    /// telling that nothing was changed behind one of them.
    pub(crate) superblocks: Mutex<Vec<Arc<Inode>>>,
    /// Errors of writes nobody waited for, and of SYNCFS.
    pub(crate) errors: Mutex<ErrorLog>,
    /// Inodes with anything the server does not have.
    pub(crate) dirty_list: Mutex<HashMap<u64, Arc<Inode>>>,
    /// Inodes with pages, in the order in which the evictor visits them.
    clock: Mutex<VecDeque<Weak<Inode>>>,
    pub(crate) dirty_pages: AtomicUsize,
    pub(crate) writeback_pages: AtomicUsize,
    pub(crate) dirty_limit: usize,
    pub(crate) background_limit: usize,
    pub(crate) pressure: Mutex<()>,
    pub(crate) pressure_eased: Condvar,
    /// Places for WRITEs of the cache.
    pub(crate) slots: Slots,
    pub(crate) chores: Arc<Chores>,
    pub(crate) rounds: Mutex<Rounds>,
    pub(crate) round_ended: Condvar,
    pub(crate) syncfs_missing: AtomicBool,
    pub(crate) unmounted: AtomicBool,
    started: Instant,
}

impl Mount {
    /// What was agreed with the server.
    #[inline]
    pub(crate) fn agreed(&self) -> &Agreed {
        self.agreed.get().expect("nothing but INIT is done before INIT is answered")
    }

    /// Now, for ages and time-outs.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.started.elapsed().as_nanos() as u64)
    }

    /// Now, for time stamps: the coarse clock, as Linux stamps files, because it costs next to nothing.
    #[inline]
    pub(crate) fn time_of_day(&self) -> Timestamp {
        #[cfg(shuttle)]
        return Timestamp { seconds: 1_000_000, nanoseconds: self.started.elapsed().subsec_nanos() };
        #[cfg(not(shuttle))]
        {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            Timestamp { seconds: now.tv_sec as u64, nanoseconds: now.tv_nsec as u32 }
        }
    }

    /// When something that the server said is valid for so long becomes invalid.
    pub(crate) fn valid_until(&self, seconds: u64, nanoseconds: u32) -> Moment {
        let valid = seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(nanoseconds));
        Moment(self.now().0.saturating_add(valid))
    }

    /// A page of this inode has become dirty. The inode's lock is held.
    #[inline]
    pub(crate) fn dirtied(self: &Arc<Self>, inode: &Arc<Inode>, locked: &mut Locked) {
        let dirty = self.dirty_pages.fetch_add(1, Ordering::Relaxed) + 1;
        self.put_on_dirty_list(inode, locked);
        if dirty == self.background_limit {
            self.chores.wake();
        }
    }

    fn put_on_dirty_list(&self, inode: &Arc<Inode>, locked: &mut Locked) {
        if !locked.on_dirty_list {
            locked.on_dirty_list = true;
            let mut list = self.dirty_list.lock();
            let first = list.is_empty();
            list.insert(inode.node.0, Arc::clone(inode));
            drop(list);
            if first {
                // The thread behind the scenes may sleep without an end; from now on it has something to look at.
                self.chores.wake();
            }
        }
    }

    /// Puts the inode on the dirty list if the server lacks anything of it.
    pub(crate) fn list_if_unsettled(&self, inode: &Arc<Inode>, locked: &mut Locked) {
        if !locked.core.is_settled() {
            self.put_on_dirty_list(inode, locked);
        }
    }

    /// Takes the inode off the dirty list if the server has everything.
    pub(crate) fn maybe_off_dirty_list(&self, inode: &Arc<Inode>, locked: &mut Locked) {
        if locked.on_dirty_list && locked.core.is_settled() {
            locked.on_dirty_list = false;
            // The caller holds the inode, so this is not the last reference that goes.
            drop(self.dirty_list.lock().remove(&inode.node.0));
        }
    }

    /// The inodes with anything the server does not have, as of now.
    pub(crate) fn dirty_inodes(&self) -> Vec<Arc<Inode>> {
        self.dirty_list.lock().values().cloned().collect()
    }

    /// The inode has pages: the evictor is to know of it. The inode's lock is held.
    pub(crate) fn put_on_clock(&self, inode: &Arc<Inode>, locked: &mut Locked) {
        if !locked.on_clock {
            locked.on_clock = true;
            self.clock.lock().push_back(Arc::downgrade(inode));
        }
    }

    /// Frees so many pages, if that can be done without waiting; returns how many are free now. No inode's lock is
    /// held by the caller.
    pub(crate) fn evict(&self, wanted: usize) -> usize {
        // Twice round: the first time every page used lately has its second chance.
        let mut visits = 2 * self.clock.lock().len() + 2;
        while self.pool.free() < wanted && visits > 0 {
            visits -= 1;
            let Some(weak) = self.clock.lock().pop_front() else { break };
            let Some(inode) = weak.upgrade() else { continue };
            let mut locked = inode.lock();
            let freed = locked.core.pages.evict(EVICTED_AT_ONCE.max(wanted));
            locked.on_clock = locked.core.pages.len() > 0;
            if locked.on_clock {
                self.clock.lock().push_back(weak);
            }
            drop(locked);
            self.pool.give(freed);
        }
        self.pool.free()
    }

    /// Drops pages that somebody who reads or writes a file from one end to the other has behind him, if they are clean. Of
    /// a file larger than the cache nothing would be left when he comes again. So they make room for what is before him:
    /// the rest of the cache stays as it is, and the data passes through memory that processors have at hand.
    pub(crate) fn drop_behind(&self, locked: &mut Locked, pages: Range<u64>) {
        if self.is_larger_than_cache(locked) {
            self.pool.give(locked.core.pages.remove_range(pages, true));
        }
    }

    /// Whether the cache could not hold all of this file.
    pub(crate) fn is_larger_than_cache(&self, locked: &Locked) -> bool {
        locked.core.size().div_ceil(PAGE_SIZE as u64) > self.pool.total() as u64
    }

    /// Sees to it that so many pages were free at least for a moment, writing back and waiting if need be.
    pub(crate) fn make_room(&self, wanted: usize) -> Result<(), Errno> {
        if wanted > self.pool.total() {
            return Err(Errno::ENOMEM);
        }
        while self.evict(wanted) < wanted {
            self.connection.check()?;
            self.chores.wake();
            match self.pool.wait_for(wanted, &Patience::at_most(STALL_LOOK)) {
                Err(Errno::ETIMEDOUT) => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// Fewer pages are dirty or being written: writers that wait for this go on.
    pub(crate) fn ease_pressure(&self) {
        // The lock is taken so that nobody is between looking and waiting.
        drop(self.pressure.lock());
        self.pressure_eased.notify_all();
    }

    /// The connection has ended: everyone who waits is to notice.
    pub(crate) fn wake_everyone(&self) {
        self.ease_pressure();
        drop(self.rounds.lock());
        self.round_ended.notify_all();
        self.chores.wake();
    }
}
