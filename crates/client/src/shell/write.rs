//! Writes into the cache. The server hears of them later; see [`super::writeback`].

use std::sync::Arc;

use ashore_wire::Errno;

use super::Mount;
use super::inodes::{Exclusive, Inode, Locked, OpenHandle};
use super::patience::Patience;
use super::read::PAGES_PER_TURN;
use super::writeback::IfHeldUp;
use crate::core::inode::Missing;
use crate::core::pages::{Lookup, PAGE_SIZE};
use crate::primitives::MutexGuard;
use crate::primitives::atomic::Ordering;

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// To this offset.
    At(u64),
    /// To the end of the file, wherever that is when the write begins.
    End,
}

/// The largest offset a file may have, as for Linux (`MAX_LFS_FILESIZE`).
pub(crate) const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Pages in flight above which a writer of a file larger than the cache waits, if they
/// are not more than an eighth of the cache: 6 MiB, a part of most last-level caches.
const STREAM_PAGES_IN_FLIGHT: usize = 1536;

impl Mount {
    /// Writes into the cache. Returns where the write began and how many bytes were taken: fewer than given only if
    /// an error came after the first of them.
    pub(crate) fn write_cached(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        data: &[u8],
        place: Place,
    ) -> Result<(u64, usize), Errno> {
        // Without a lock held: writers wait here until pages have become clean.
        if self.dirty_pages.load(Ordering::Relaxed) > self.dirty_limit {
            self.throttle()?;
        }
        let mut locked = inode.lock();
        while locked.core.writer || self.is_too_far_ahead(&locked) {
            inode.wait(&mut locked);
        }
        let start = match place {
            Place::At(offset) => offset,
            Place::End => locked.core.size(),
        };
        let end = start.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX);
        end.ok_or(Errno::EFBIG)?;
        let mut writer = CachedWriter { mount: self, inode, handle, alone: None, cached_already: true };
        let (mut locked, done, result) = writer.write(locked, data, start);
        let already = writer.cached_already;
        let mut behind = None;
        if done > 0 {
            locked.core.touched(self.time_of_day());
            behind = locked.stream.wrote(start, start + done as u64, self.agreed().write_pages, already);
        }
        drop(locked);
        if let Some(behind) = behind {
            // Without a server everything sent is clean at once, and a writer would never notice.
            self.connection.check()?;
            // What cannot be sent at once is left for later.
            _ = self.start_runs(inode, behind, IfHeldUp::Skip, &Patience::NONE);
        }
        match result {
            Err(errno) if done == 0 => Err(errno),
            _ => Ok((start, done)),
        }
    }

    /// Whether the pages of this file that are with the server are more than processors have at hand. Whoever writes a file
    /// larger than the cache will have to wait for the server anyway, and does so while both can go on in such memory.
    fn is_too_far_ahead(&self, locked: &Locked) -> bool {
        let bound = STREAM_PAGES_IN_FLIGHT.min(self.pool.total() / 8);
        locked.core.pages.writeback() > bound && self.is_larger_than_cache(locked)
    }

    /// Waits until so much has been written back that there may be dirty pages again.
    fn throttle(&self) -> Result<(), Errno> {
        self.chores.wake();
        let mut pressure = self.pressure.lock();
        while self.dirty_pages.load(Ordering::Relaxed) > self.dirty_limit {
            self.connection.check()?;
            Patience::at_most(super::STALL_LOOK).wait(&self.pressure_eased, &mut pressure)?;
        }
        Ok(())
    }
}

/// One write(2) on its way through the cache.
struct CachedWriter<'a> {
    mount: &'a Arc<Mount>,
    inode: &'a Arc<Inode>,
    handle: &'a Arc<OpenHandle>,
    /// The right to write alone, once the lock had to be given up in the middle: nobody else's bytes may come
    /// between ours.
    alone: Option<Exclusive>,
    /// No page had to be brought in.
    cached_already: bool,
}

impl<'a> CachedWriter<'a> {
    fn write(
        &mut self,
        mut locked: MutexGuard<'a, Locked>,
        data: &[u8],
        start: u64,
    ) -> (MutexGuard<'a, Locked>, usize, Result<(), Errno>) {
        let mut done = 0;
        while done < data.len() {
            let position = start + done as u64;
            let (index, in_page) = (position / PAGE_SIZE as u64, (position % PAGE_SIZE as u64) as usize);
            let left = data.len() - done;
            match locked.core.pages.lookup(index) {
                Lookup::Ready(page) => {
                    let pages = match (in_page + left).div_ceil(PAGE_SIZE) {
                        1 => 1,
                        most => locked.core.pages.ready_run(index, most as u64),
                    };
                    let length = left.min(pages as usize * PAGE_SIZE - in_page);
                    self.mount.memory.write(page, in_page, &data[done..done + length]);
                    done += length;
                    for index in index..index + pages {
                        let end = (index + 1) * PAGE_SIZE as u64;
                        self.wrote(&mut locked, index, end.min(start + done as u64));
                    }
                    if (index + pages).is_multiple_of(PAGES_PER_TURN) && done < data.len() {
                        self.let_others_in(&mut locked);
                    }
                }
                Lookup::Filling => {
                    self.keep_writers_out(&mut locked);
                    self.inode.wait(&mut locked);
                }
                Lookup::Absent => {
                    self.cached_already = false;
                    let (again, result) = self.bring_in(locked, index, in_page, left);
                    locked = again;
                    if result.is_err() {
                        return (locked, done, result);
                    }
                }
            }
        }
        (locked, done, Ok(()))
    }

    fn wrote(&self, locked: &mut Locked, index: u64, end: u64) {
        if locked.core.wrote(index, end, || self.mount.now()) {
            self.mount.dirtied(self.inode, locked);
        }
    }

    fn keep_writers_out(&mut self, locked: &mut Locked) {
        if self.alone.is_none() {
            self.alone = Some(self.inode.exclusive_locked(locked));
        }
    }

    fn let_others_in(&mut self, locked: &mut MutexGuard<'a, Locked>) {
        self.keep_writers_out(locked);
        MutexGuard::bump(locked);
    }

    /// Makes the page at `index` ready for so much to be written to it and those behind it: empty if all of it will be
    /// written or the server has nothing there, read from the server otherwise.
    fn bring_in(
        &mut self,
        mut locked: MutexGuard<'a, Locked>,
        index: u64,
        in_page: usize,
        left: usize,
    ) -> (MutexGuard<'a, Locked>, Result<(), Errno>) {
        let all_of = if in_page == 0 { left / PAGE_SIZE } else { 0 };
        if all_of > 1 && self.bring_in_empty(&mut locked, index, all_of as u64) {
            return (locked, Ok(()));
        }
        let length = left.min(PAGE_SIZE - in_page);
        let whole = in_page == 0
            && (length == PAGE_SIZE || index * PAGE_SIZE as u64 + length as u64 >= locked.core.size());
        if !whole && locked.core.missing(index, 1) != Missing::Zeros {
            self.keep_writers_out(&mut locked);
            return match self.mount.fill(self.inode, self.handle, index, 1, false, locked) {
                Ok(locked) => (locked, Ok(())),
                Err(errno) => (self.inode.lock(), Err(errno)),
            };
        }
        let Some(page) = self.mount.pool.take_one() else {
            self.keep_writers_out(&mut locked);
            drop(locked);
            let result = self.mount.make_room(1);
            return (self.inode.lock(), result);
        };
        self.mount.memory.zero(page, 0..if length == PAGE_SIZE { 0 } else { PAGE_SIZE });
        locked.core.pages.insert(index, page, false);
        self.mount.put_on_clock(self.inode, &mut locked);
        (locked, Ok(()))
    }

    /// Pages all of which will be written before the lock is given up, several at once; `false` if there is no memory for that.
    fn bring_in_empty(&self, locked: &mut Locked, index: u64, most: u64) -> bool {
        let count = locked.core.pages.absent_run(index, most);
        let Some(pages) = self.mount.pool.take(count as usize) else { return false };
        for (index, page) in (index..).zip(pages) {
            locked.core.pages.insert(index, page, false);
        }
        self.mount.put_on_clock(self.inode, locked);
        true
    }
}
