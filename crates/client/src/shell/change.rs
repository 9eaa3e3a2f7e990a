//! Changes of one file other than its data: attributes and size, space, copies, fsync.

use std::sync::Arc;

use ashore_wire::abi::{AttrOut, CopyFileRangeIn, FallocateIn, FsyncIn, GetattrIn, SetattrIn, WriteOut};
use ashore_wire::flags::{FSYNC_FDATASYNC, GETATTR_FH, SetattrValid};
use ashore_wire::{Errno, Opcode};

use super::Mount;
use super::inodes::{Inode, OpenHandle};
use super::message::{Answer, Outgoing};
use super::patience::Patience;
use super::write::FILE_SIZE_MAX;
use crate::core::inode::Serial;
use crate::core::pages::PAGE_SIZE;

/// FALLOCATE: the size stays as it is.
const FALLOC_FL_KEEP_SIZE: u32 = 1;

impl Mount {
    /// Attributes that may be used now: those that are known, or fresh ones.
    pub(crate) fn fresh_attributes(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: Option<&OpenHandle>,
    ) -> Result<ashore_wire::abi::Attr, Errno> {
        let locked = inode.lock();
        if locked.core.attributes_valid(self.now()) {
            return Ok(*locked.core.attr());
        }
        let asked_at = locked.core.version();
        drop(locked);
        let arguments = GetattrIn {
            getattr_flags: if handle.is_some() { GETATTR_FH } else { 0 },
            fh: handle.map_or(0, |handle| handle.handle.0),
            ..Default::default()
        };
        let request = Outgoing::new(Opcode::Getattr, inode.node).with(&arguments).expect::<AttrOut>();
        let out: AttrOut = self.call(request)?.read()?;
        let valid_until = self.valid_until(out.attr_valid, out.attr_valid_nsec);
        let mut locked = inode.lock();
        let stale = locked.core.adopt(&out.attr, asked_at, valid_until);
        let attr = *locked.core.attr();
        drop(locked);
        self.pool.give(stale);
        Ok(attr)
    }

    /// Changes attributes other than the size. What was written before is sent first, as its times are: the
    /// server would otherwise change what is set here when the data comes.
    pub(crate) fn set_attributes(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        mut values: SetattrIn,
    ) -> Result<(), Errno> {
        let _alone = inode.exclusive();
        self.flush_inode(inode, 0..u64::MAX, &Patience::ENDLESS)?;
        self.want_times(inode);
        self.wait_settled(inode, &Patience::ENDLESS)?;
        let _gate = inode.hold_still();
        let valid = SetattrValid::from_bits_retain(values.valid);
        values.padding = 0;
        let request = Outgoing::new(Opcode::Setattr, inode.node).with(&values).expect::<AttrOut>();
        let out: AttrOut = self.change_inode(inode, request)?.read()?;
        let valid_until = self.valid_until(out.attr_valid, out.attr_valid_nsec);
        let with_times = valid.intersects(SetattrValid::MTIME | SetattrValid::MTIME_NOW);
        inode.lock().core.adopt_own(&out.attr, valid_until, with_times);
        Ok(())
    }

    /// Cuts a file off, or makes it longer.
    pub(crate) fn set_size(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: Option<&OpenHandle>,
        size: u64,
    ) -> Result<(), Errno> {
        if size > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let _alone = inode.exclusive();
        // A WRITE that arrived behind the SETATTR would make the file longer again.
        let _gate = inode.hold_still();
        let out = self.send_size(inode, handle, size)?;
        let valid_until = self.valid_until(out.attr_valid, out.attr_valid_nsec);
        let mut locked = inode.lock();
        locked.core.adopt_own(&out.attr, valid_until, false);
        self.cut_cache(inode, &mut locked, size);
        // Reads that were under way may have brought back what was cut off.
        inode.wait_while_busy(&mut locked, size / PAGE_SIZE as u64..u64::MAX);
        self.cut_cache(inode, &mut locked, size);
        locked.core.touched(self.time_of_day());
        self.list_if_unsettled(inode, &mut locked);
        Ok(())
    }

    fn send_size(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: Option<&OpenHandle>,
        size: u64,
    ) -> Result<AttrOut, Errno> {
        let mut valid = SetattrValid::SIZE;
        if handle.is_some() {
            valid |= SetattrValid::FH;
        }
        let fh = handle.map_or(0, |handle| handle.handle.0);
        let values = SetattrIn { valid: valid.bits(), fh, size, ..Default::default() };
        let request = Outgoing::new(Opcode::Setattr, inode.node).with(&values).expect::<AttrOut>();
        self.change_inode(inode, request)?.read()
    }

    fn cut_cache(&self, inode: &Arc<Inode>, locked: &mut super::inodes::Locked, size: u64) {
        let dirty = locked.core.pages.dirty();
        let cut = locked.core.cut_to(size);
        let dropped = dirty - locked.core.pages.dirty();
        self.dirty_pages.fetch_sub(dropped, crate::primitives::atomic::Ordering::Relaxed);
        if let Some((page, from)) = cut.zero_tail {
            self.memory.zero(page, from..PAGE_SIZE);
        }
        self.pool.give(cut.freed);
        self.maybe_off_dirty_list(inode, locked);
    }

    /// Allocates, punches or zeroes space.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &OpenHandle,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<(), Errno> {
        let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
        let _alone = inode.exclusive();
        let indices = offset / PAGE_SIZE as u64..u64::MAX;
        self.flush_inode(inode, indices.clone(), &Patience::ENDLESS)?;
        let _gate = inode.hold_still();
        let arguments = FallocateIn { fh: handle.handle.0, offset, length, mode, ..Default::default() };
        let request = Outgoing::new(Opcode::Fallocate, inode.node).with(&arguments);
        self.change_inode(inode, request)?;
        self.drop_cached(inode, indices);
        let mut locked = inode.lock();
        if mode & FALLOC_FL_KEEP_SIZE == 0 {
            locked.core.wrote_past_cache(end);
        }
        locked.core.touched(self.time_of_day());
        locked.core.forget_attributes();
        self.list_if_unsettled(inode, &mut locked);
        Ok(())
    }

    /// Copies on the server. Returns how many bytes.
    pub(crate) fn copy_range(
        self: &Arc<Self>,
        (from, from_handle, from_offset): (&Arc<Inode>, &OpenHandle, u64),
        (to, to_handle, to_offset): (&Arc<Inode>, &OpenHandle, u64),
        length: u64,
    ) -> Result<u64, Errno> {
        let end = to_offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
        let _alone = to.exclusive();
        self.flush_inode(from, 0..u64::MAX, &Patience::ENDLESS)?;
        self.wait_settled(from, &Patience::ENDLESS)?;
        let indices = to_offset / PAGE_SIZE as u64..end.div_ceil(PAGE_SIZE as u64);
        self.flush_inode(to, indices.clone(), &Patience::ENDLESS)?;
        let _gate = to.hold_still();
        let arguments = CopyFileRangeIn {
            fh_in: from_handle.handle.0,
            off_in: from_offset,
            nodeid_out: to.node.0,
            fh_out: to_handle.handle.0,
            off_out: to_offset,
            len: length.min(u64::from(u32::MAX) & !(PAGE_SIZE as u64 - 1)),
            flags: 0,
        };
        let request = Outgoing::new(Opcode::CopyFileRange, from.node).with(&arguments).expect::<WriteOut>();
        let out: WriteOut = self.change_inode(to, request)?.read()?;
        let copied = u64::from(out.size);
        if copied > length {
            return Err(Errno::EIO);
        }
        self.drop_cached(to, indices);
        let mut locked = to.lock();
        if copied > 0 {
            locked.core.wrote_past_cache(to_offset + copied);
            locked.core.touched(self.time_of_day());
        }
        self.list_if_unsettled(to, &mut locked);
        Ok(copied)
    }

    /// A request that changes this inode: in the barrier and among the inode's changes until it is answered.
    pub(crate) fn change_inode(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        request: Outgoing,
    ) -> Result<Answer, Errno> {
        if self.options.read_only {
            return Err(Errno::EROFS);
        }
        let ticket = self.barrier.enter();
        let serial: Serial = inode.lock().core.begin_change();
        let held = Arc::clone(inode);
        self.call_then(request, Some(ticket), move |answer| {
            held.lock().core.end_change(serial);
            held.changed.notify_all();
            answer
        })
    }

    /// Makes one file stable, in the five steps of a sync: flush, cut, wait, gather errors (the caller's part, who
    /// has the cursor), FSYNC.
    pub(crate) fn fsync(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &OpenHandle,
        data_only: bool,
    ) -> Result<(), Errno> {
        self.flush_inode(inode, 0..u64::MAX, &Patience::ENDLESS)?;
        if !data_only {
            self.want_times(inode);
        }
        self.wait_settled(inode, &Patience::ENDLESS)?;
        let arguments = FsyncIn {
            fh: handle.handle.0,
            fsync_flags: if data_only { FSYNC_FDATASYNC } else { 0 },
            ..Default::default()
        };
        let opcode = if handle.directory { Opcode::Fsyncdir } else { Opcode::Fsync };
        match self.call(Outgoing::new(opcode, inode.node).with(&arguments)) {
            Err(Errno::ENOSYS) => self.unsupported(),
            result => result.map(|_| ()),
        }
    }
}
