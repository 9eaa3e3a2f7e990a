//! A small file system in memory. It shows that the trait is general, and gives tests of the server something to
//! serve that is quick, forgets everything, and counts what was asked of it.

mod sparse;
mod state;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write,
};
use ashore_wire::abi::{CopyFileRangeIn, Kstatfs};
use ashore_wire::flags::{InitFlags, OpenRequestFlags};
use ashore_wire::reply::Dirent;
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId};
use parking_lot::Mutex;

use sparse::Sparse;
use state::{Content, DIRECTORY, Inode, KIND, REGULAR, SYMLINK, State};

const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the largest file, and of all files: this is a test's memory.
const FILE_MAX: u64 = 64 << 20;
const TOTAL: u64 = 16 << 30;
const BLOCK: u64 = 4096;

/// The file system.
pub struct MemoryFs {
    state: Mutex<State>,
    /// Calls of `syncfs`, `last_call` included.
    pub syncs: AtomicUsize,
    hook: Box<dyn Fn(Moment) -> Result<()> + Send + Sync>,
}

/// A moment at which a test may look, wait, or make the call fail. No lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// A LOOKUP has come.
    Lookup,
    /// A WRITE has come, to this offset.
    Write(u64),
    /// A WRITE has been done.
    Written(u64),
    /// A FALLOCATE has come.
    Fallocate,
    /// A FALLOCATE has been done.
    Allocated,
    /// A FSYNC has come.
    Fsync,
    /// A sync of this superblock has come.
    Sync(NodeId),
}

impl Default for MemoryFs {
    fn default() -> MemoryFs {
        MemoryFs { state: Mutex::default(), syncs: AtomicUsize::new(0), hook: Box::new(|_| Ok(())) }
    }
}

impl MemoryFs {
    /// A file system that calls `hook` at each [`Moment`], on the thread of the call, and fails if that does.
    pub fn with_hook(hook: impl Fn(Moment) -> Result<()> + Send + Sync + 'static) -> MemoryFs {
        MemoryFs { hook: Box::new(hook), ..Default::default() }
    }

    /// Nodes that the client has looked up and not forgotten, the root left out.
    pub fn looked_up(&self) -> usize {
        self.state.lock().inodes.values().filter(|inode| inode.lookups > 0).count()
    }

    /// Inodes held, whether by name, lookup or handle, the root left out.
    pub fn inodes(&self) -> usize {
        self.state.lock().inodes.len() - 1
    }

    /// Open handles.
    pub fn handles(&self) -> usize {
        self.state.lock().handles.len()
    }

    fn make(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        new: (Content, u32),
    ) -> Result<Entry> {
        let mut state = self.state.lock();
        let node = state.make(parent, name, new, (caller.uid, caller.gid))?;
        state.entry(node)
    }
}

impl FileSystem for MemoryFs {
    fn features(&self) -> InitFlags {
        InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::WRITEBACK_CACHE
    }

    fn destroy(&self) {
        let mut state = self.state.lock();
        state.handles.clear();
        state.inodes.values_mut().for_each(|inode| inode.lookups = 0);
        state.drop_unused();
    }

    fn lookup(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        (self.hook)(Moment::Lookup)?;
        let mut state = self.state.lock();
        let node = *state.directory(parent)?.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
        state.entry(node)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        let mut state = self.state.lock();
        if let Some(inode) = state.inodes.get_mut(&node.0) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
            state.drop_unused();
        }
    }

    fn getattr(&self, _: &Caller<'_>, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        Ok(Attributes { attr: self.state.lock().inode(node)?.attr(), timeout: TIMEOUT })
    }

    fn setattr(&self, _: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
        let mut state = self.state.lock();
        let inode = state.inode(node)?;
        inode.set(set)?;
        Ok(Attributes { attr: inode.attr(), timeout: TIMEOUT })
    }

    fn readlink(&self, _: &Caller<'_>, node: NodeId) -> Result<Vec<u8>> {
        match &self.state.lock().inode(node)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn symlink(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, target: &CStr) -> Result<Entry> {
        let content = Content::Symlink(target.to_bytes().to_vec());
        self.make(caller, parent, name, (content, SYMLINK | 0o777))
    }

    fn mknod(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        _: u32,
        device: u32,
    ) -> Result<Entry> {
        let (content, mode) = match mode & KIND {
            REGULAR | 0 => (Content::Regular(Sparse::default()), REGULAR | mode & 0o7777),
            DIRECTORY | SYMLINK => return Err(Errno::EPERM),
            _ => (Content::Special(device), mode),
        };
        self.make(caller, parent, name, (content, mode))
    }

    fn mkdir(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, mode: u32, _: u32) -> Result<Entry> {
        let content = Content::Directory(BTreeMap::new());
        self.make(caller, parent, name, (content, DIRECTORY | mode & 0o7777))
    }

    fn unlink(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.state.lock().remove(parent, name, false)
    }

    fn rmdir(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.state.lock().remove(parent, name, true)
    }

    fn rename(
        &self,
        _: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        self.state.lock().rename((parent, name), (new_parent, new_name), flags)
    }

    fn link(&self, _: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let mut state = self.state.lock();
        state.link(node, parent, name)?;
        state.entry(node.0)
    }

    fn open(&self, _: &Caller<'_>, node: NodeId, _: u32, _: OpenRequestFlags) -> Result<Opened> {
        self.state.lock().open(node)
    }

    fn create(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        _: u32,
        mode: u32,
        _: u32,
        _: OpenRequestFlags,
    ) -> Result<Created> {
        let content = Content::Regular(Sparse::default());
        let entry = self.make(caller, parent, name, (content, REGULAR | mode & 0o7777))?;
        Ok(Created { entry, opened: self.state.lock().open(NodeId(entry.node))? })
    }

    fn read(&self, _: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        let mut state = self.state.lock();
        let found = state.data(read.handle)?.read(read.offset, read.size);
        target.fill(0, &found).map_err(|_| Errno::EINVAL)?;
        Ok(found.len())
    }

    fn write(&self, _: &Caller<'_>, _: NodeId, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        (self.hook)(Moment::Write(write.offset))?;
        let written = self.state.lock().write(write, payload)?;
        (self.hook)(Moment::Written(write.offset))?;
        Ok(written)
    }

    fn fallocate(
        &self,
        _: &Caller<'_>,
        _: NodeId,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        (self.hook)(Moment::Fallocate)?;
        self.state.lock().allocate(handle, (offset, length), mode)?;
        (self.hook)(Moment::Allocated)
    }

    fn lseek(&self, _: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64> {
        self.state.lock().data(handle)?.seek(offset, whence)
    }

    fn copy_file_range(&self, _: &Caller<'_>, _: NodeId, copy: &CopyFileRangeIn) -> Result<usize> {
        let end = copy.off_out.checked_add(copy.len).filter(|end| *end <= FILE_MAX);
        end.ok_or(Errno::EFBIG)?;
        let mut state = self.state.lock();
        let bytes = state.data(FileHandle(copy.fh_in))?.read(copy.off_in, copy.len as usize);
        state.changed_data(FileHandle(copy.fh_out))?.write(copy.off_out, &bytes);
        Ok(bytes.len())
    }

    fn setxattr(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        _: u32,
    ) -> Result<()> {
        self.state.lock().inode(node)?.set_xattr(name, value, flags)
    }

    fn getxattr(&self, _: &Caller<'_>, node: NodeId, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.state.lock();
        give(state.inode(node)?.xattrs.get(name).ok_or(Errno::ENODATA)?, buffer)
    }

    fn listxattr(&self, _: &Caller<'_>, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.state.lock();
        let names: Vec<_> =
            state.inode(node)?.xattrs.keys().flat_map(|name| name.to_bytes_with_nul()).copied().collect();
        give(&names, buffer)
    }

    fn removexattr(&self, _: &Caller<'_>, node: NodeId, name: &CStr) -> Result<()> {
        self.state.lock().inode(node)?.remove_xattr(name)
    }

    fn statfs(&self, _: NodeId) -> Result<Kstatfs> {
        let used: u64 = self.state.lock().inodes.values().map(Inode::allocated).sum();
        let free = TOTAL.saturating_sub(used) / BLOCK;
        Ok(Kstatfs {
            blocks: TOTAL / BLOCK,
            bfree: free,
            bavail: free,
            bsize: BLOCK as u32,
            frsize: BLOCK as u32,
            namelen: 255,
            ..Default::default()
        })
    }

    fn release(&self, _: NodeId, handle: FileHandle, _: Option<LockOwner>) -> Result<()> {
        let mut state = self.state.lock();
        state.handles.remove(&handle.0).ok_or(Errno::EBADF)?;
        state.drop_unused();
        Ok(())
    }

    fn fsync(&self, _: NodeId, handle: FileHandle, _: bool) -> Result<()> {
        (self.hook)(Moment::Fsync)?;
        self.state.lock().data(handle).map(|_| ())
    }

    fn fsyncdir(&self, node: NodeId, _: FileHandle, _: bool) -> Result<()> {
        self.state.lock().directory(node).map(|_| ())
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        self.state.lock().inode(node)?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        (self.hook)(Moment::Sync(node))
    }

    fn opendir(&self, _: &Caller<'_>, node: NodeId, _: u32) -> Result<Opened> {
        let mut state = self.state.lock();
        state.directory(node)?;
        state.open(node)
    }

    fn readdir(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        _: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        let mut state = self.state.lock();
        for (position, (name, child)) in state.directory(node)?.iter().enumerate().skip(offset as usize) {
            let dirent = Dirent { ino: *child, next_offset: position as u64 + 1, kind: 0, name };
            if !names.push(dirent) {
                break;
            }
        }
        Ok(())
    }

    fn readdirplus(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        _: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let children: Vec<_> =
            state.directory(node)?.iter().map(|(name, child)| (name.clone(), *child)).collect();
        for (position, (name, child)) in children.iter().enumerate().skip(offset as usize) {
            if !names.has_room_for(name.len(), true) {
                break;
            }
            let entry = state.entry(*child)?;
            let dirent = Dirent { ino: *child, next_offset: position as u64 + 1, kind: 0, name };
            names.push_plus(dirent, &entry.to_wire());
        }
        Ok(())
    }

    fn releasedir(&self, node: NodeId, handle: FileHandle) -> Result<()> {
        self.release(node, handle, None)
    }
}

/// A value into a buffer; an empty one asks for the length.
fn give(value: &[u8], buffer: &mut [u8]) -> Result<usize> {
    match buffer.len() {
        0 => {}
        room if room < value.len() => return Err(Errno::ERANGE),
        _ => buffer[..value.len()].copy_from_slice(value),
    }
    Ok(value.len())
}
