//! Locks that other clients and processes of the host see: GETLK, SETLK, SETLKW, of fcntl(2) and of flock(2).
//!
//! On the host all of them would belong to this one process and so never stand in each other's way. But there is a
//! kind that belongs to an open file description (`F_OFD_SETLK`), as those of flock(2) do. So each owner in the client
//! gets a description of its own, for each inode it locks:
//!
//! ```text
//!   client's process  --owner-->  Holder { its own open(2) of the file, what it holds }  --OFD lock-->  host
//! ```
//!
//! The host is who decides. What is noted here of the ranges held is for four things: to close a description that
//! holds nothing any more, to say which process of this client stands in the way, to have a bound, and to find deadlocks.
//!
//! The host finds no deadlock among such locks. Among the POSIX locks of one client it is found here, before the owner
//! that would close the circle begins to wait. One that takes several clients, or processes of the host, is not.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ashore_server::{Lock, Result, Wait};
use ashore_wire::abi::LkIn;
use ashore_wire::flags::LK_FLOCK;
use ashore_wire::{Errno, FileHandle, LockOwner, NodeId};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno as HostErrno;

use crate::Passthrough;
use crate::handles::OpenFile;
use crate::host::{HostResult, told};
use crate::options::LockScope;
use crate::sys::{self, RangeLock, ThreadSignal};

/// Owners of one client that hold locks, at most. Each takes a descriptor.
const HOLDERS_MAX: usize = 1024;
/// Ranges locked by one client, at most. The host keeps them all in kernel memory.
const RANGES_MAX: usize = 16 << 10;
/// The last byte a lock can cover; it means "to the end of the file, however far that is".
const LAST_BYTE: u64 = i64::MAX as u64;

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;

/// The locks of one client.
#[derive(Default)]
pub(crate) struct Locks {
    holders: Mutex<HashMap<Key, Arc<Holder>>>,
    /// How many `holders` there are, to look at without the lock: most clients lock nothing.
    count: AtomicUsize,
    /// Ranges held by all of them.
    ranges: Arc<AtomicUsize>,
    /// Ranges that POSIX locks wait for. Taken before `holders`.
    awaited: Mutex<Vec<(Key, RangeLock)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    node: NodeId,
    owner: LockOwner,
    flock: bool,
}

/// One owner's open file description of an inode. Closed, its locks are gone.
struct Holder {
    descriptor: OwnedFd,
    held: Mutex<Held>,
    /// Ranges held by all holders of the client.
    all_ranges: Arc<AtomicUsize>,
}

/// What is locked: ranges in order that do not overlap, both ends included, with their kind.
#[derive(Default)]
struct Held {
    ranges: Vec<(u64, u64, u32)>,
    /// The client's process that locked last.
    pid: u32,
}

/// GETLK.
pub(crate) fn getlk(fs: &Passthrough, node: NodeId, arguments: &LkIn) -> Result<Lock> {
    if fs.options.posix_lock != LockScope::Host {
        return Err(Errno::ENOSYS);
    }
    let file = fs.handles.find(FileHandle(arguments.fh), node)?;
    let wanted = range_of(&arguments.lk)?;
    if wanted.kind == UNLOCK {
        return Err(Errno::EINVAL);
    }
    let key = Key { node, owner: LockOwner(arguments.owner), flock: false };
    let holder = fs.locks.find(key);
    // The handle's own description never holds a lock, so asked by it the host tells of anybody's.
    let asked_by = holder.as_ref().map_or(file.descriptor(), |holder| holder.descriptor.as_fd());
    let Some(found) = sys::range_lock_in_the_way(asked_by, wanted).told()? else {
        return Ok(Lock { kind: UNLOCK, ..arguments.lk });
    };
    let pid = fs.locks.pid_of(key, &found).unwrap_or(0);
    Ok(Lock { start: found.start, end: found.end, kind: found.kind, pid })
}

/// SETLK and SETLKW.
pub(crate) fn setlk(fs: &Passthrough, node: NodeId, arguments: &LkIn, wait: Option<&Wait>) -> Result<()> {
    let flock = arguments.lk_flags & LK_FLOCK != 0;
    let scope = if flock { fs.options.flock } else { fs.options.posix_lock };
    if scope != LockScope::Host {
        return Err(Errno::ENOSYS);
    }
    let file = fs.handles.find(FileHandle(arguments.fh), node)?;
    let mut wanted = range_of(&arguments.lk)?;
    if flock {
        (wanted.start, wanted.end) = (0, LAST_BYTE);
    }
    let key = Key { node, owner: LockOwner(arguments.owner), flock };
    let holder = match fs.locks.find(key) {
        Some(holder) => holder,
        None if wanted.kind == UNLOCK => return Ok(()),
        None => fs.locks.add(key, || open_holder(fs, &file))?,
    };
    let outcome = match wait {
        Some(_) if !flock => fs.locks.begin_to_wait(key, wanted),
        _ => Ok(None),
    }
    .and_then(|_awaited| holder.set(wanted, flock, arguments.lk.pid, wait));
    fs.locks.put_back(key, holder);
    outcome
}

/// A description of its own. For writing where that can be, for a write lock needs it; the client's kernel has checked
/// that the caller has the file open for what he locks.
fn open_holder(fs: &Passthrough, file: &OpenFile) -> Result<OwnedFd> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let for_writing = !fs.options.readonly && file.position.is_none();
    let access = if for_writing { OFlags::RDWR } else { OFlags::RDONLY };
    match fs.places.reopen(file.descriptor(), access | flags) {
        Err(HostErrno::ROFS | HostErrno::ACCESS | HostErrno::PERM | HostErrno::TXTBSY) => {
            fs.places.reopen(file.descriptor(), OFlags::RDONLY | flags).told()
        }
        opened => opened.told(),
    }
}

/// A range as the client gave it, checked.
fn range_of(lock: &Lock) -> Result<RangeLock> {
    let fine = lock.start <= lock.end && lock.end <= LAST_BYTE && [READ, WRITE, UNLOCK].contains(&lock.kind);
    if fine {
        Ok(RangeLock { start: lock.start, end: lock.end, kind: lock.kind })
    } else {
        Err(Errno::EINVAL)
    }
}

impl Locks {
    /// FLUSH: POSIX locks of this owner on this node go.
    pub(crate) fn flushed(&self, node: NodeId, owner: LockOwner) {
        self.drop_all_of(Key { node, owner, flock: false });
    }

    /// RELEASE: the lock of flock(2) goes that the open file had.
    pub(crate) fn released(&self, node: NodeId, owner: LockOwner) {
        self.drop_all_of(Key { node, owner, flock: true });
    }

    /// The client has gone, with all its locks. To be called when none of its requests waits any more.
    pub(crate) fn clear(&self) {
        let holders = std::mem::take(&mut *self.holders.lock());
        self.count.store(0, Ordering::Relaxed);
        drop(holders);
    }

    /// Owners that hold locks.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn drop_all_of(&self, key: Key) {
        if self.len() == 0 {
            return;
        }
        // Another thread of the owner may be waiting by the same description; so it is unlocked, not just closed.
        if let Some(holder) = self.find(key) {
            let all = RangeLock { start: 0, end: LAST_BYTE, kind: UNLOCK };
            if let Err(errno) = holder.set(all, key.flock, 0, None) {
                tracing::warn!("a lock could not be dropped: {errno}");
            }
            self.put_back(key, holder);
        }
    }

    fn find(&self, key: Key) -> Option<Arc<Holder>> {
        self.holders.lock().get(&key).cloned()
    }

    fn add(&self, key: Key, open: impl FnOnce() -> Result<OwnedFd>) -> Result<Arc<Holder>> {
        if self.len() >= HOLDERS_MAX {
            tracing::warn!("{HOLDERS_MAX} owners hold locks; one more was refused (ENOLCK)");
            return Err(Errno::ENOLCK);
        }
        let all_ranges = Arc::clone(&self.ranges);
        let opened = Arc::new(Holder { descriptor: open()?, held: Mutex::default(), all_ranges });
        let mut holders = self.holders.lock();
        // Another thread of the same owner may have been faster; then this description is closed again.
        let holder = Arc::clone(holders.entry(key).or_insert(opened));
        self.count.store(holders.len(), Ordering::Relaxed);
        Ok(holder)
    }

    /// Forgets, and so closes, a holder that holds nothing and that nobody uses.
    fn put_back(&self, key: Key, holder: Arc<Holder>) {
        let mut holders = self.holders.lock();
        // Clones are made under this lock only, so whoever is last sees that it is.
        drop(holder);
        let unused = holders
            .get(&key)
            .is_some_and(|holder| Arc::strong_count(holder) == 1 && holder.held.lock().ranges.is_empty());
        let closed = if unused { holders.remove(&key) } else { None };
        self.count.store(holders.len(), Ordering::Relaxed);
        drop(holders);
        drop(closed);
    }

    /// Notes that an owner waits for a range; EDEADLK if one that stands in its way waits for it in turn, perhaps by way
    /// of others.
    ///
    /// Whoever closes a circle finds it: the others have noted what they wait for, under the same mutex, and before
    /// that what they hold. As with the kernel's own locks, an owner whose threads wait and unlock side by side may be
    /// told of a deadlock that one of them would have ended.
    fn begin_to_wait(&self, key: Key, wanted: RangeLock) -> Result<Option<Awaited<'_>>> {
        let mut awaited = self.awaited.lock();
        let mut seen = HashSet::new();
        let mut open = vec![(key, wanted)];
        while let Some((waiting, range)) = open.pop() {
            for owner in self.in_the_way(waiting, range) {
                if owner == key.owner {
                    return Err(Errno::EDEADLK);
                }
                if seen.insert(owner) {
                    open.extend(awaited.iter().filter(|(other, _)| other.owner == owner));
                }
            }
        }
        awaited.push((key, wanted));
        Ok(Some(Awaited { locks: self, key, range: wanted }))
    }

    /// Owners in this client that hold what a POSIX lock has to wait for.
    fn in_the_way(&self, key: Key, wanted: RangeLock) -> Vec<LockOwner> {
        let holders = self.holders.lock();
        let others = holders
            .iter()
            .filter(|(other, _)| (other.node, other.flock) == (key.node, false) && other.owner != key.owner);
        others
            .filter(|(_, holder)| holder.held.lock().excludes(&wanted))
            .map(|(other, _)| other.owner)
            .collect()
    }

    /// The process of this client whose lock the host found in the way of `key`; none if it was somebody else's.
    fn pid_of(&self, key: Key, found: &RangeLock) -> Option<u32> {
        let holders = self.holders.lock();
        let others =
            holders.iter().filter(|(other, _)| other.node == key.node && !other.flock && **other != key);
        others.map(|(_, holder)| holder.held.lock()).find(|held| held.has(found)).map(|held| held.pid)
    }
}

impl Holder {
    /// Asks the host for it, and notes it.
    fn set(&self, wanted: RangeLock, flock: bool, pid: u32, wait: Option<&Wait>) -> Result<()> {
        if wanted.kind != UNLOCK && self.all_ranges.load(Ordering::Relaxed) >= RANGES_MAX {
            tracing::warn!("{RANGES_MAX} ranges are locked; one more was refused (ENOLCK)");
            return Err(Errno::ENOLCK);
        }
        let mut held = match wait {
            // Two threads of one owner: what is noted comes in the order in which the host was asked.
            None => {
                let held = self.held.lock();
                self.try_now(wanted, flock)?;
                held
            }
            Some(wait) => {
                self.block(wanted, flock, wait)?;
                self.held.lock()
            }
        };
        let before = held.ranges.len();
        held.note(wanted);
        if wanted.kind != UNLOCK {
            held.pid = pid;
        }
        self.all_ranges.fetch_add(held.ranges.len(), Ordering::Relaxed);
        self.all_ranges.fetch_sub(before, Ordering::Relaxed);
        Ok(())
    }

    fn try_now(&self, wanted: RangeLock, flock: bool) -> Result<()> {
        let outcome = match wanted.kind {
            _ if !flock => sys::lock_range(self.descriptor.as_fd(), wanted, false),
            READ => rustix::fs::flock(&self.descriptor, FlockOperation::NonBlockingLockShared),
            WRITE => rustix::fs::flock(&self.descriptor, FlockOperation::NonBlockingLockExclusive),
            _ => rustix::fs::flock(&self.descriptor, FlockOperation::NonBlockingUnlock),
        };
        // POSIX lets a host say either.
        outcome.map_err(|errno| if errno == HostErrno::ACCESS { Errno::EAGAIN } else { told(errno) })
    }

    fn block(&self, wanted: RangeLock, flock: bool, wait: &Wait) -> Result<()> {
        let this_thread = ThreadSignal::for_this_thread();
        wait.block(
            move || this_thread.send(),
            || {
                let outcome = match wanted.kind {
                    _ if !flock => sys::lock_range(self.descriptor.as_fd(), wanted, true),
                    READ => rustix::fs::flock(&self.descriptor, FlockOperation::LockShared),
                    WRITE => rustix::fs::flock(&self.descriptor, FlockOperation::LockExclusive),
                    _ => rustix::fs::flock(&self.descriptor, FlockOperation::Unlock),
                };
                outcome.told()
            },
        )
    }
}

/// An owner waits for this range; dropped, it does no longer.
struct Awaited<'a> {
    locks: &'a Locks,
    key: Key,
    range: RangeLock,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut awaited = self.locks.awaited.lock();
        if let Some(at) = awaited.iter().position(|one| *one == (self.key, self.range)) {
            awaited.swap_remove(at);
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.all_ranges.fetch_sub(self.held.get_mut().ranges.len(), Ordering::Relaxed);
    }
}

impl Held {
    /// Puts a range in the place of whatever was there; as a lock does, it joins neighbours of its kind.
    fn note(&mut self, new: RangeLock) {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 2);
        for &(start, end, kind) in &self.ranges {
            if start < new.start {
                ranges.push((start, end.min(new.start - 1), kind));
            }
            if end > new.end {
                ranges.push((start.max(new.end + 1), end, kind));
            }
        }
        if new.kind != UNLOCK {
            ranges.push((new.start, new.end, new.kind));
        }
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.2 == before.2 && next.0 == before.1 + 1;
            if joins {
                before.1 = next.1;
            }
            joins
        });
        self.ranges = ranges;
    }

    fn has(&self, lock: &RangeLock) -> bool {
        self.overlapping(lock).any(|kind| kind == lock.kind)
    }

    /// Whether another owner has to wait for that lock.
    fn excludes(&self, lock: &RangeLock) -> bool {
        self.overlapping(lock).any(|kind| kind == WRITE || lock.kind == WRITE)
    }

    /// Kinds of what is held of this range.
    fn overlapping(&self, lock: &RangeLock) -> impl Iterator<Item = u32> {
        let RangeLock { start, end, .. } = *lock;
        let ranges = self.ranges.iter().filter(move |range| range.0 <= end && start <= range.1);
        ranges.map(|range| range.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lock(start: u64, end: u64, kind: u32) -> RangeLock {
        RangeLock { start, end, kind }
    }

    #[test]
    fn ranges_split_join_and_go() {
        let mut held = Held::default();
        held.note(lock(10, 19, READ));
        held.note(lock(20, LAST_BYTE, READ));
        assert_eq!(held.ranges, [(10, LAST_BYTE, READ)]);
        held.note(lock(15, 16, WRITE));
        assert_eq!(held.ranges, [(10, 14, READ), (15, 16, WRITE), (17, LAST_BYTE, READ)]);
        held.note(lock(0, 15, UNLOCK));
        assert_eq!(held.ranges, [(16, 16, WRITE), (17, LAST_BYTE, READ)]);
        held.note(lock(0, LAST_BYTE, UNLOCK));
        assert!(held.ranges.is_empty());
    }

    proptest! {
        /// Method: against an array with one entry for each byte.
        #[test]
        fn ranges_say_of_each_byte_what_was_last_done_to_it(
            steps in prop::collection::vec((0u64..24, 0u64..24, 0u32..3), 0..40)
        ) {
            let (mut held, mut bytes) = (Held::default(), [UNLOCK; 24]);
            for (a, b, kind) in steps {
                let (start, end) = (a.min(b), a.max(b));
                held.note(lock(start, end, kind));
                bytes[start as usize..=end as usize].fill(kind);
            }
            for (at, expected) in (0u64..).zip(bytes) {
                let found = held.ranges.iter().find(|(start, end, _)| (*start..=*end).contains(&at));
                prop_assert_eq!(found.map_or(UNLOCK, |range| range.2), expected);
            }
            for pair in held.ranges.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0, "in order, without overlap");
                prop_assert!(pair[0].2 != pair[1].2 || pair[0].1 + 1 < pair[1].0, "neighbours of a kind are one");
            }
        }
    }
}
