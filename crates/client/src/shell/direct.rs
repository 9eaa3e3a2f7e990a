//! Reads and writes past the cache: O_DIRECT, mode `None`, and every write in mode `WriteThrough`.
//!
//! The data goes through pages borrowed from the pool, because only the link's memory can be seen by the server.

use std::ops::Range;
use std::sync::Arc;

use ashore_wire::abi::{ReadIn, WriteIn, WriteOut};
use ashore_wire::flags::WriteFlags;
use ashore_wire::{Errno, Opcode};

use super::Mount;
use super::inodes::{Inode, OpenHandle};
use super::message::{Answer, Outgoing, Segment};
use super::patience::Patience;
use super::write::{FILE_SIZE_MAX, Place};
use crate::core::pages::{Lookup, PAGE_SIZE, PageId};

/// What becomes of cached pages where a direct write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CachedPages {
    /// They are dropped: the next reader asks the server.
    Drop,
    /// They get the new content, once the server has it.
    Update,
}

impl Mount {
    /// Writes to the server and returns when it has answered: where the write began and how much was taken.
    pub(crate) fn write_direct(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        data: &[u8],
        place: Place,
        cached: CachedPages,
    ) -> Result<(u64, usize), Errno> {
        let _alone = inode.exclusive();
        let start = match place {
            Place::At(offset) => offset,
            Place::End => inode.lock().core.size(),
        };
        let end =
            start.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
        let indices = start / PAGE_SIZE as u64..end.div_ceil(PAGE_SIZE as u64);
        // Older data from the cache must not arrive behind this write.
        self.flush_inode(inode, indices.clone(), &Patience::ENDLESS)?;
        let _gate = inode.hold_still();
        let mut done = 0;
        while done < data.len() {
            let piece = &data[done..data.len().min(done + self.agreed().write_pages as usize * PAGE_SIZE)];
            match self.write_piece(inode, handle, piece, start + done as u64) {
                Ok(taken) => {
                    self.renew_cache(inode, &piece[..taken], start + done as u64, cached);
                    done += taken;
                    if taken < piece.len() {
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok((start, done))
    }

    /// One WRITE. It is in the barrier, and among the inode's changes, until it is answered.
    fn write_piece(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        data: &[u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let pages = self.borrow_pages(data.len().div_ceil(PAGE_SIZE))?;
        let mut payload = Vec::with_capacity(pages.len());
        for (page, piece) in pages.iter().zip(data.chunks(PAGE_SIZE)) {
            self.memory.write(*page, 0, piece);
            payload.push(Segment { page: *page, length: piece.len() as u32 });
        }
        let write = WriteIn {
            fh: handle.handle.0,
            offset,
            size: data.len() as u32,
            write_flags: WriteFlags::empty().bits(),
            flags: handle.flags,
            ..Default::default()
        };
        let request =
            Outgoing::new(Opcode::Write, inode.node).with(&write).payload(payload).expect::<WriteOut>();
        let ticket = self.barrier.enter();
        let serial = inode.lock().core.begin_change();
        let (mount, held, most) = (Arc::clone(self), Arc::clone(inode), data.len());
        self.call_then(request, Some(ticket), move |answer| {
            let taken =
                answer.and_then(|answer| answer.read::<WriteOut>()).and_then(|out| match out.size as usize {
                    taken if taken > 0 && taken <= most => Ok(taken),
                    _ => Err(Errno::EIO),
                });
            let mut locked = held.lock();
            if let Ok(taken) = taken {
                locked.core.wrote_past_cache(offset + taken as u64);
                locked.core.touched(mount.time_of_day());
            }
            locked.core.end_change(serial);
            mount.list_if_unsettled(&held, &mut locked);
            drop(locked);
            held.changed.notify_all();
            mount.pool.give(pages);
            taken
        })
    }

    /// The server has this data now: makes the cache agree with it.
    fn renew_cache(&self, inode: &Arc<Inode>, data: &[u8], offset: u64, cached: CachedPages) {
        let end = offset + data.len() as u64;
        let indices = offset / PAGE_SIZE as u64..end.div_ceil(PAGE_SIZE as u64);
        let mut locked = inode.lock();
        // A read that was under way may have brought what was there before.
        inode.wait_while_busy(&mut locked, indices.clone());
        if cached == CachedPages::Drop {
            let dropped = locked.core.pages.remove_range(indices, true);
            drop(locked);
            return self.pool.give(dropped);
        }
        for index in indices {
            if let Lookup::Ready(page) = locked.core.pages.lookup(index) {
                let page_start = index * PAGE_SIZE as u64;
                let from = offset.max(page_start);
                let to = end.min(page_start + PAGE_SIZE as u64);
                let piece = &data[(from - offset) as usize..(to - offset) as usize];
                self.memory.write(page, (from - page_start) as usize, piece);
            }
        }
    }

    /// Reads from the server. Fewer bytes than asked for mean the end of the file, or an error after the first.
    pub(crate) fn read_direct(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let end = offset.saturating_add(buffer.len() as u64);
        let indices = offset / PAGE_SIZE as u64..end.div_ceil(PAGE_SIZE as u64);
        self.flush_inode(inode, indices, &Patience::ENDLESS)?;
        self.wait_settled(inode, &Patience::ENDLESS)?;
        let mut done = 0;
        while done < buffer.len() {
            let most = buffer.len().min(done + self.agreed().write_pages as usize * PAGE_SIZE);
            let piece = &mut buffer[done..most];
            match self.read_piece(inode, handle, piece, offset + done as u64) {
                Ok(came) => {
                    let short = came < piece.len();
                    done += came;
                    if short {
                        done += self.hole(inode, &mut buffer[done..], offset + done as u64);
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The server's file ends here. If ours goes on, because what lies further behind is not written back yet, there
    /// is a hole. Returns how much of the buffer is in it.
    fn hole(&self, inode: &Inode, buffer: &mut [u8], offset: u64) -> usize {
        let locked = inode.lock();
        let length = locked.core.own_size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[..length].fill(0);
        length
    }

    fn read_piece(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let pages = self.borrow_pages(buffer.len().div_ceil(PAGE_SIZE))?;
        let read = ReadIn {
            fh: handle.handle.0,
            offset,
            size: buffer.len() as u32,
            flags: handle.flags,
            ..Default::default()
        };
        let lengths = buffer.chunks(PAGE_SIZE).map(|piece| piece.len() as u32);
        let target =
            pages.iter().zip(lengths).map(|(page, length)| Segment { page: *page, length }).collect();
        let request = Outgoing::new(Opcode::Read, inode.node).with(&read).into_pages(target);
        match self.call(request) {
            Ok(Answer { in_place, .. }) => {
                for (page, piece) in pages.iter().zip(buffer[..in_place].chunks_mut(PAGE_SIZE)) {
                    self.memory.read(*page, 0, piece);
                }
                self.pool.give(pages);
                Ok(in_place)
            }
            Err(errno) => {
                self.pool.give(pages);
                Err(errno)
            }
        }
    }

    /// So many pages that belong to no file.
    fn borrow_pages(self: &Arc<Self>, count: usize) -> Result<Vec<PageId>, Errno> {
        loop {
            if let Some(pages) = self.pool.take(count) {
                return Ok(pages);
            }
            self.make_room(count)?;
        }
    }

    /// Drops what is cached of a file and clean; the server's content counts from now on.
    pub(crate) fn drop_clean(&self, inode: &Inode) {
        let dropped = inode.lock().core.pages.remove_range(0..u64::MAX, true);
        self.pool.give(dropped);
    }

    /// Drops what is cached of a range, once the server touches it no more. Nothing of it is dirty.
    pub(crate) fn drop_cached(&self, inode: &Arc<Inode>, indices: Range<u64>) {
        let mut locked = inode.lock();
        inode.wait_while_busy(&mut locked, indices.clone());
        let dropped = locked.core.pages.remove_range(indices, true);
        drop(locked);
        self.pool.give(dropped);
    }
}
