//! Inodes as the shell holds them: the core's state behind a lock, and the table that finds them by node.

use std::ops::Range;
use std::sync::{Arc, Weak};

use ashore_barrier::Ticket;
use ashore_wire::abi::EntryOut;
use ashore_wire::{Errno, FileHandle, NodeId};

use super::Mount;
use super::flusher::Chore;
use super::read::ReadAhead;
use crate::core::inode::{InodeState, Serial};
use crate::core::pages::PAGE_SIZE;
use crate::primitives::atomic::{AtomicU64, Ordering};
use crate::primitives::{Condvar, HashMap, Mutex, MutexGuard};

/// One inode.
pub(crate) struct Inode {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
    /// Lookups the server counts for us, given back when the inode is dropped.
    lookups: AtomicU64,
    state: Mutex<Locked>,
    /// Something that somebody may wait for has changed: a page filled or written, a gate opened, a writer gone.
    pub(crate) changed: Condvar,
    mount: Weak<Mount>,
}

/// What the inode's lock protects.
pub(crate) struct Locked {
    pub(crate) core: InodeState,
    /// Handles that are open for writing: any of them will do for writing back.
    pub(crate) write_handles: Vec<Arc<OpenHandle>>,
    /// Holds the place of the times in the barrier from the moment they are wanted to that when they are settled.
    pub(crate) times: Option<(Ticket, Serial)>,
    /// What a writer of one page after the other has left behind.
    pub(crate) stream: WriteStream,
    pub(crate) on_dirty_list: bool,
    pub(crate) on_clock: bool,
}

/// Follows writes that come one behind the other.
#[derive(Default)]
pub(crate) struct WriteStream {
    /// Where the next one would begin.
    next: u64,
    /// The first page that was sent for it.
    first: u64,
    /// The first page that was not yet sent for it.
    unsent: u64,
}

impl WriteStream {
    /// Bytes from `start` to `end` were written. Returns whole pages to send now, once there are as many as one WRITE
    /// takes: nobody will soon write to them again, and the server is at them while the writer goes on. Of pages that the
    /// cache had `already`, somebody may well do so: they are sent when they are old or too many.
    pub(crate) fn wrote(&mut self, start: u64, end: u64, run: u64, already: bool) -> Option<Range<u64>> {
        if start != self.next || already {
            let from = if already { end } else { start };
            self.unsent = from.div_ceil(PAGE_SIZE as u64);
            self.first = self.unsent;
        }
        self.next = end;
        let whole = end / PAGE_SIZE as u64;
        let ready = whole.saturating_sub(self.unsent) / run * run;
        let range = self.unsent..self.unsent + ready;
        self.unsent = range.end;
        (ready > 0).then_some(range)
    }

    /// Whether these pages were sent for it.
    pub(crate) fn sent(&self, pages: &Range<u64>) -> bool {
        self.first <= pages.start && pages.end <= self.unsent
    }
}

/// An open file on the server. Whoever has a request with this handle in flight holds it; RELEASE goes out when
/// the last of them lets go.
pub(crate) struct OpenHandle {
    pub(crate) handle: FileHandle,
    pub(crate) node: NodeId,
    pub(crate) flags: u32,
    pub(crate) directory: bool,
    pub(crate) read_ahead: ReadAhead,
    pub(crate) mount: Weak<Mount>,
}

impl Inode {
    /// The state, locked.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Locked> {
        self.state.lock()
    }

    /// Waits for a change, giving the lock up meanwhile.
    pub(crate) fn wait(&self, locked: &mut MutexGuard<'_, Locked>) {
        self.changed.wait(locked);
    }

    /// Takes the right to write alone; waits for whoever has it.
    pub(crate) fn exclusive(self: &Arc<Inode>) -> Exclusive {
        let mut locked = self.lock();
        while locked.core.writer {
            self.wait(&mut locked);
        }
        locked.core.writer = true;
        Exclusive { inode: Arc::clone(self) }
    }

    /// Takes the right to write alone, which the caller has seen to be free, while it holds the lock.
    pub(crate) fn exclusive_locked(self: &Arc<Inode>, locked: &mut Locked) -> Exclusive {
        assert!(!locked.core.writer, "the caller has looked");
        locked.core.writer = true;
        Exclusive { inode: Arc::clone(self) }
    }

    /// Closes the gate and waits until no write of the cache is in flight.
    pub(crate) fn hold_still(self: &Arc<Inode>) -> Gate {
        let mut locked = self.lock();
        locked.core.close_gate();
        while locked.core.writebacks() > 0 {
            self.wait(&mut locked);
        }
        Gate { inode: Arc::clone(self) }
    }

    /// Waits until the server touches no page of this range any more.
    pub(crate) fn wait_while_busy(&self, locked: &mut MutexGuard<'_, Locked>, range: Range<u64>) {
        while locked.core.pages.first_busy(range.clone()).is_some() {
            self.wait(locked);
        }
    }

    /// Whether this is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.lock().core.attr().mode & 0o170_000 == 0o040_000
    }

    /// Whether this is a symbolic link.
    pub(crate) fn is_link(&self) -> bool {
        self.lock().core.attr().mode & 0o170_000 == 0o120_000
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let Some(mount) = self.mount.upgrade() else { return };
        let locked = self.state.get_mut();
        mount.pool.give(locked.core.pages.remove_range(0..u64::MAX, false));
        let lookups = *self.lookups.get_mut();
        mount.inodes.forget_if_dead(self.node);
        if self.node != NodeId::ROOT && lookups > 0 {
            mount.chores.push(Chore::Forget(self.node, lookups));
        }
    }
}

impl Drop for OpenHandle {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.upgrade() {
            mount.chores.push(Chore::Release {
                node: self.node,
                handle: self.handle,
                flags: self.flags,
                directory: self.directory,
            });
        }
    }
}

/// The right to write alone, while this lives.
pub(crate) struct Exclusive {
    inode: Arc<Inode>,
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.inode.lock().core.writer = false;
        self.inode.changed.notify_all();
    }
}

/// No write of the cache starts or is in flight while this lives.
pub(crate) struct Gate {
    inode: Arc<Inode>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.inode.lock().core.open_gate();
        self.inode.changed.notify_all();
    }
}

/// All inodes that anybody holds, by node.
#[derive(Default)]
pub(crate) struct Inodes {
    table: Mutex<HashMap<u64, Weak<Inode>>>,
}

impl Inodes {
    /// The inode of an entry the server has just told; counts its lookup.
    pub(crate) fn of_entry(
        &self,
        mount: &Arc<Mount>,
        entry: &EntryOut,
        asked_at: Asked,
    ) -> Result<Arc<Inode>, Errno> {
        if entry.nodeid == 0 {
            return Err(Errno::ENOENT);
        }
        let valid_until = mount.valid_until(entry.attr_valid, entry.attr_valid_nsec);
        let (inode, known) = self.find_or_insert(mount, entry, valid_until);
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        if known {
            let mut locked = inode.lock();
            let at = if asked_at.is(&inode) { asked_at.version } else { UNKNOWN };
            let stale = locked.core.adopt(&entry.attr, at, valid_until);
            drop(locked);
            mount.pool.give(stale);
        }
        Ok(inode)
    }

    fn find_or_insert(
        &self,
        mount: &Arc<Mount>,
        entry: &EntryOut,
        valid_until: crate::core::inode::Moment,
    ) -> (Arc<Inode>, bool) {
        // Declared before the lock is taken, dropped after it is given up: dropping an inode takes that lock.
        let known;
        let mut table = self.table.lock();
        known = table.get(&entry.nodeid).and_then(Weak::upgrade);
        // The same node with another generation is another file; whoever holds the old one keeps it.
        if let Some(inode) = known.as_ref().filter(|inode| inode.generation == entry.generation) {
            return (Arc::clone(inode), true);
        }
        let owned = mount.agreed().cache == crate::CacheMode::WriteBack;
        let inode = Arc::new(Inode {
            node: NodeId(entry.nodeid),
            generation: entry.generation,
            lookups: AtomicU64::new(0),
            state: Mutex::new(Locked {
                core: InodeState::new(entry.attr, valid_until, owned),
                write_handles: Vec::new(),
                times: None,
                stream: WriteStream::default(),
                on_dirty_list: false,
                on_clock: false,
            }),
            changed: Condvar::new(),
            mount: Arc::downgrade(mount),
        });
        table.insert(entry.nodeid, Arc::downgrade(&inode));
        (inode, false)
    }

    fn forget_if_dead(&self, node: NodeId) {
        let mut table = self.table.lock();
        if table.get(&node.0).is_some_and(|inode| inode.strong_count() == 0) {
            table.remove(&node.0);
        }
    }
}

/// No inode has this version: nobody knows how old the answer is.
const UNKNOWN: u64 = u64::MAX;

/// When attributes were asked for, so that an answer older than a local change is known as one.
#[derive(Clone, Default)]
pub(crate) struct Asked {
    inode: Option<Arc<Inode>>,
    version: u64,
}

impl Asked {
    /// Now, about this inode.
    pub(crate) fn about(inode: Option<Arc<Inode>>) -> Asked {
        let version = inode.as_ref().map_or(0, |inode| inode.lock().core.version());
        Asked { inode, version }
    }

    fn is(&self, inode: &Arc<Inode>) -> bool {
        self.inode.as_ref().is_some_and(|asked| Arc::ptr_eq(asked, inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_writer_leaves_whole_runs_behind_and_a_random_one_leaves_nothing() {
        let mut stream = WriteStream::default();
        let page = PAGE_SIZE as u64;
        assert_eq!(stream.wrote(0, 3 * page + 5, 4, false), None);
        assert_eq!(stream.wrote(3 * page + 5, 9 * page, 4, false), Some(0..8));
        assert_eq!(stream.wrote(9 * page, 12 * page - 1, 4, false), None);
        assert_eq!(
            stream.wrote(100, 6 * page, 4, false),
            Some(1..5),
            "another begins behind the page he shares"
        );
        assert_eq!(stream.wrote(50 * page, 53 * page, 4, false), None);
        assert_eq!(stream.wrote(10 * page, 13 * page, 4, false), None);
    }

    #[test]
    fn what_was_cached_already_is_left_and_was_not_sent_for_the_stream() {
        let mut stream = WriteStream::default();
        let page = PAGE_SIZE as u64;
        assert_eq!(stream.wrote(0, 8 * page, 4, true), None);
        assert_eq!(stream.wrote(8 * page, 16 * page, 4, false), Some(8..16));
        assert!(stream.sent(&(8..12)) && stream.sent(&(12..16)));
        assert!(!stream.sent(&(4..12)) && !stream.sent(&(12..20)));
    }
}
