//! A small file system in memory. It shows that the trait is general, and gives tests of the server something to
//! serve that is quick, forgets everything, and counts what was asked of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write,
};
use ashore_wire::abi::{Attr, Kstatfs};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, SetattrValid};
use ashore_wire::reply::Dirent;
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId};
use parking_lot::Mutex;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the largest file: this is a test's memory.
const FILE_MAX: u64 = 64 << 20;

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

struct State {
    inodes: HashMap<u64, Inode>,
    handles: HashMap<u64, u64>,
    next_node: u64,
    next_handle: u64,
}

struct Inode {
    content: Content,
    attr: Attr,
    lookups: u64,
}

enum Content {
    Directory(BTreeMap<Vec<u8>, u64>),
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
}

impl Default for MemoryFs {
    fn default() -> MemoryFs {
        let root = Inode::new(NodeId::ROOT.0, Content::Directory(BTreeMap::new()), DIRECTORY | 0o755, (0, 0));
        let state = State {
            inodes: HashMap::from([(NodeId::ROOT.0, root)]),
            handles: HashMap::new(),
            next_node: NodeId::ROOT.0 + 1,
            next_handle: 1,
        };
        MemoryFs { state: Mutex::new(state), syncs: AtomicUsize::new(0), hook: Box::new(|_| Ok(())) }
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
        if state.directory(parent)?.contains_key(name.as_bytes()) {
            return Err(Errno::EEXIST);
        }
        let node = state.next_node;
        state.next_node += 1;
        state.inodes.insert(node, Inode::new(node, new.0, new.1, (caller.uid, caller.gid)));
        state.directory(parent)?.insert(name.as_bytes().to_vec(), node);
        state.entry(node)
    }
}

impl FileSystem for MemoryFs {
    fn features(&self) -> InitFlags {
        InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO | InitFlags::PARALLEL_DIROPS
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

    fn symlink(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &std::ffi::CStr,
    ) -> Result<Entry> {
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
        _: u32,
    ) -> Result<Entry> {
        match mode & KIND {
            REGULAR | 0 => {
                let content = Content::Regular(Vec::new());
                self.make(caller, parent, name, (content, REGULAR | mode & 0o7777))
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
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
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        let node = *state.directory(parent)?.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
        let replaced = state.directory(new_parent)?.get(new_name.as_bytes()).copied();
        if replaced == Some(node) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            let directory = matches!(state.inode(NodeId(replaced))?.content, Content::Directory(_));
            state.remove(new_parent, new_name, directory)?;
        }
        state.directory(parent)?.remove(name.as_bytes());
        state.directory(new_parent)?.insert(new_name.as_bytes().to_vec(), node);
        Ok(())
    }

    fn link(&self, _: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let mut state = self.state.lock();
        if matches!(state.inode(node)?.content, Content::Directory(_)) {
            return Err(Errno::EPERM);
        }
        if state.directory(parent)?.contains_key(name.as_bytes()) {
            return Err(Errno::EEXIST);
        }
        state.inode(node)?.attr.nlink += 1;
        state.directory(parent)?.insert(name.as_bytes().to_vec(), node.0);
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
        let content = Content::Regular(Vec::new());
        let entry = self.make(caller, parent, name, (content, REGULAR | mode & 0o7777))?;
        Ok(Created { entry, opened: self.state.lock().open(NodeId(entry.node))? })
    }

    fn read(&self, _: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        let mut state = self.state.lock();
        let data = state.data(read.handle)?;
        let start = usize::try_from(read.offset).unwrap_or(usize::MAX).min(data.len());
        let found = &data[start..data.len().min(start.saturating_add(read.size))];
        target.fill(0, found).map_err(|_| Errno::EINVAL)?;
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
        _: u32,
    ) -> Result<()> {
        (self.hook)(Moment::Fallocate)?;
        let end = offset.checked_add(length).filter(|end| *end <= FILE_MAX).ok_or(Errno::EFBIG)?;
        let mut state = self.state.lock();
        let data = state.data(handle)?;
        data.resize(data.len().max(end as usize), 0);
        drop(state);
        (self.hook)(Moment::Allocated)
    }

    fn statfs(&self, _: NodeId) -> Result<Kstatfs> {
        Ok(Kstatfs { bsize: 4096, frsize: 4096, namelen: 255, ..Default::default() })
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

impl State {
    fn inode(&mut self, node: NodeId) -> Result<&mut Inode> {
        self.inodes.get_mut(&node.0).ok_or(Errno::ESTALE)
    }

    fn directory(&mut self, node: NodeId) -> Result<&mut BTreeMap<Vec<u8>, u64>> {
        match &mut self.inode(node)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn data(&mut self, handle: FileHandle) -> Result<&mut Vec<u8>> {
        let node = *self.handles.get(&handle.0).ok_or(Errno::EBADF)?;
        match &mut self.inode(NodeId(node))?.content {
            Content::Regular(data) => Ok(data),
            _ => Err(Errno::EISDIR),
        }
    }

    fn write(&mut self, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        let data = self.data(write.handle)?;
        let end = write.offset.checked_add(write.size as u64).filter(|end| *end <= FILE_MAX);
        let (start, end) = (write.offset as usize, end.ok_or(Errno::EFBIG)? as usize);
        data.resize(data.len().max(end), 0);
        Ok(payload.copy_to(&mut data[start..end]))
    }

    fn entry(&mut self, node: u64) -> Result<Entry> {
        let inode = self.inode(NodeId(node))?;
        inode.lookups += u64::from(node != NodeId::ROOT.0);
        let attr = inode.attr();
        Ok(Entry { node, generation: 0, attr, entry_timeout: TIMEOUT, attr_timeout: TIMEOUT })
    }

    fn open(&mut self, node: NodeId) -> Result<Opened> {
        self.inode(node)?;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, node.0);
        Ok(Opened::new(FileHandle(handle), OpenReplyFlags::empty()))
    }

    fn remove(&mut self, parent: NodeId, name: Name<'_>, directory: bool) -> Result<()> {
        let node = *self.directory(parent)?.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
        let inode = self.inode(NodeId(node))?;
        match &inode.content {
            Content::Directory(_) if !directory => return Err(Errno::EISDIR),
            Content::Directory(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            Content::Directory(_) => inode.attr.nlink = 0,
            _ if directory => return Err(Errno::ENOTDIR),
            _ => inode.attr.nlink -= 1,
        }
        self.directory(parent)?.remove(name.as_bytes());
        self.drop_unused();
        Ok(())
    }

    /// An inode goes when it has neither a name, nor a lookup, nor a handle.
    fn drop_unused(&mut self) {
        let open: std::collections::HashSet<_> = self.handles.values().copied().collect();
        self.inodes.retain(|node, inode| inode.attr.nlink > 0 || inode.lookups > 0 || open.contains(node));
    }
}

impl Inode {
    fn new(node: u64, content: Content, mode: u32, (uid, gid): (u32, u32)) -> Inode {
        let attr = Attr { ino: node, mode, nlink: 1, uid, gid, blksize: 4096, ..Default::default() };
        Inode { content, attr, lookups: 0 }
    }

    fn attr(&self) -> Attr {
        let size = match &self.content {
            Content::Directory(names) => names.len(),
            Content::Regular(bytes) | Content::Symlink(bytes) => bytes.len(),
        };
        Attr { size: size as u64, blocks: (size as u64).div_ceil(512), ..self.attr }
    }

    fn set(&mut self, set: &SetAttributes<'_>) -> Result<()> {
        let values = set.values;
        if set.valid.contains(SetattrValid::SIZE) {
            match &mut self.content {
                Content::Regular(data) if values.size <= FILE_MAX => data.resize(values.size as usize, 0),
                Content::Regular(_) => return Err(Errno::EFBIG),
                _ => return Err(Errno::EINVAL),
            }
        }
        if set.valid.contains(SetattrValid::MODE) {
            self.attr.mode = self.attr.mode & KIND | values.mode & 0o7777;
        }
        if set.valid.contains(SetattrValid::UID) {
            self.attr.uid = values.uid;
        }
        if set.valid.contains(SetattrValid::GID) {
            self.attr.gid = values.gid;
        }
        if set.valid.contains(SetattrValid::MTIME) {
            (self.attr.mtime, self.attr.mtimensec) = (values.mtime, values.mtimensec);
        }
        Ok(())
    }
}
