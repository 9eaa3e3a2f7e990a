//! What the file system holds: inodes by number, names in directories, and open handles.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::time::{SystemTime, UNIX_EPOCH};

use ashore_server::{Entry, Opened, Result, SetAttributes, Write};
use ashore_wire::abi::Attr;
use ashore_wire::flags::{OpenReplyFlags, SetattrValid};
use ashore_wire::seam::Payload;
use ashore_wire::{Errno, FileHandle, Name, NodeId};

use super::sparse::Sparse;
use super::{BLOCK, FILE_MAX, TIMEOUT};

pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const REGULAR: u32 = 0o100_000;
pub(super) const SYMLINK: u32 = 0o120_000;
pub(super) const KIND: u32 = 0o170_000;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

pub(super) struct State {
    pub(super) inodes: HashMap<u64, Inode>,
    pub(super) handles: HashMap<u64, u64>,
    next_node: u64,
    next_handle: u64,
}

pub(super) struct Inode {
    pub(super) content: Content,
    attr: Attr,
    pub(super) lookups: u64,
    pub(super) xattrs: BTreeMap<CString, Vec<u8>>,
}

pub(super) enum Content {
    Directory(BTreeMap<Vec<u8>, u64>),
    Regular(Sparse),
    Symlink(Vec<u8>),
    /// A pipe, a socket, or a device of this number.
    Special(u32),
}

/// A name in a directory.
type Place<'a> = (NodeId, Name<'a>);

impl Default for State {
    fn default() -> State {
        let root = Inode::new(NodeId::ROOT.0, Content::Directory(BTreeMap::new()), DIRECTORY | 0o755, (0, 0));
        State {
            inodes: HashMap::from([(NodeId::ROOT.0, root)]),
            handles: HashMap::new(),
            next_node: NodeId::ROOT.0 + 1,
            next_handle: 1,
        }
    }
}

impl State {
    pub(super) fn inode(&mut self, node: NodeId) -> Result<&mut Inode> {
        self.inodes.get_mut(&node.0).ok_or(Errno::ESTALE)
    }

    pub(super) fn directory(&mut self, node: NodeId) -> Result<&mut BTreeMap<Vec<u8>, u64>> {
        match &mut self.inode(node)?.content {
            Content::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn data(&mut self, handle: FileHandle) -> Result<&mut Sparse> {
        let node = *self.handles.get(&handle.0).ok_or(Errno::EBADF)?;
        match &mut self.inode(NodeId(node))?.content {
            Content::Regular(data) => Ok(data),
            _ => Err(Errno::EISDIR),
        }
    }

    /// As [`State::data`], for a change.
    pub(super) fn changed_data(&mut self, handle: FileHandle) -> Result<&mut Sparse> {
        if let Some(node) = self.handles.get(&handle.0) {
            self.inode(NodeId(*node))?.is_modified();
        }
        self.data(handle)
    }

    pub(super) fn write(&mut self, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        let end = write.offset.checked_add(write.size as u64).filter(|end| *end <= FILE_MAX);
        end.ok_or(Errno::EFBIG)?;
        let mut bytes = vec![0; write.size];
        let length = payload.copy_to(&mut bytes);
        self.changed_data(write.handle)?.write(write.offset, &bytes[..length]);
        Ok(length)
    }

    pub(super) fn allocate(&mut self, handle: FileHandle, part: (u64, u64), mode: u32) -> Result<()> {
        let (offset, length) = part;
        let end = offset.checked_add(length).filter(|end| *end <= FILE_MAX).ok_or(Errno::EFBIG)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let data = self.changed_data(handle)?;
        match mode {
            0 => {
                data.allocate(offset, length);
                data.set_size(data.size().max(end));
            }
            KEEP_SIZE => data.allocate(offset, length),
            _ if mode == PUNCH_HOLE | KEEP_SIZE => data.punch(offset, length),
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    pub(super) fn entry(&mut self, node: u64) -> Result<Entry> {
        let inode = self.inode(NodeId(node))?;
        inode.lookups += u64::from(node != NodeId::ROOT.0);
        let attr = inode.attr();
        Ok(Entry { node, generation: 0, attr, entry_timeout: TIMEOUT, attr_timeout: TIMEOUT })
    }

    pub(super) fn open(&mut self, node: NodeId) -> Result<Opened> {
        self.inode(node)?;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, node.0);
        Ok(Opened::new(FileHandle(handle), OpenReplyFlags::empty()))
    }

    pub(super) fn make(
        &mut self,
        parent: NodeId,
        name: Name<'_>,
        (content, mode): (Content, u32),
        owner: (u32, u32),
    ) -> Result<u64> {
        if self.directory(parent)?.contains_key(name.as_bytes()) {
            return Err(Errno::EEXIST);
        }
        let node = self.next_node;
        self.next_node += 1;
        self.inodes.insert(node, Inode::new(node, content, mode, owner));
        self.put((parent, name), node)?;
        Ok(node)
    }

    pub(super) fn link(&mut self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<()> {
        if self.inode(node)?.is_directory() {
            return Err(Errno::EPERM);
        }
        if self.directory(parent)?.contains_key(name.as_bytes()) {
            return Err(Errno::EEXIST);
        }
        let inode = self.inode(node)?;
        inode.attr.nlink += 1;
        inode.is_changed();
        self.put((parent, name), node.0)
    }

    pub(super) fn remove(&mut self, parent: NodeId, name: Name<'_>, directory: bool) -> Result<()> {
        let node = *self.directory(parent)?.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
        let inode = self.inode(NodeId(node))?;
        match &inode.content {
            Content::Directory(_) if !directory => return Err(Errno::EISDIR),
            Content::Directory(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            Content::Directory(_) => inode.attr.nlink = 0,
            _ if directory => return Err(Errno::ENOTDIR),
            _ => inode.attr.nlink -= 1,
        }
        inode.is_changed();
        self.take((parent, name))?;
        self.drop_unused();
        Ok(())
    }

    pub(super) fn rename(&mut self, from: Place<'_>, to: Place<'_>, flags: u32) -> Result<()> {
        let node = *self.directory(from.0)?.get(from.1.as_bytes()).ok_or(Errno::ENOENT)?;
        let other = self.directory(to.0)?.get(to.1.as_bytes()).copied();
        if self.is_within(to.0.0, node)? {
            return Err(Errno::EINVAL);
        }
        match (flags, other) {
            (0, None) | (RENAME_NOREPLACE, None) => {}
            (RENAME_NOREPLACE, Some(_)) => return Err(Errno::EEXIST),
            (RENAME_EXCHANGE, None) => return Err(Errno::ENOENT),
            (0 | RENAME_EXCHANGE, Some(other)) if other == node => return Ok(()),
            (0, Some(other)) => {
                let (is, was) =
                    (self.inode(NodeId(node))?.is_directory(), self.inode(NodeId(other))?.is_directory());
                // A directory in the way of a file is that, whatever is in it.
                if was && !is {
                    return Err(Errno::EISDIR);
                }
                self.remove(to.0, to.1, is)?;
            }
            (RENAME_EXCHANGE, Some(other)) => {
                if self.is_within(from.0.0, other)? {
                    return Err(Errno::EINVAL);
                }
                self.put(to, node)?;
                return self.put(from, other);
            }
            _ => return Err(Errno::EINVAL),
        }
        self.take(from)?;
        self.put(to, node)
    }

    /// Whether a directory is another one or lies below it.
    fn is_within(&mut self, directory: u64, outer: u64) -> Result<bool> {
        if directory == outer {
            return Ok(true);
        }
        let Content::Directory(names) = &self.inode(NodeId(outer))?.content else { return Ok(false) };
        let children: Vec<u64> = names.values().copied().collect();
        for child in children {
            if self.is_within(directory, child)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put(&mut self, (parent, name): Place<'_>, node: u64) -> Result<()> {
        self.directory(parent)?.insert(name.as_bytes().to_vec(), node);
        self.inode(parent)?.is_modified();
        Ok(())
    }

    fn take(&mut self, (parent, name): Place<'_>) -> Result<()> {
        self.directory(parent)?.remove(name.as_bytes());
        self.inode(parent)?.is_modified();
        Ok(())
    }

    /// An inode goes when it has neither a name, nor a lookup, nor a handle.
    pub(super) fn drop_unused(&mut self) {
        let open: HashSet<_> = self.handles.values().copied().collect();
        self.inodes.retain(|node, inode| inode.attr.nlink > 0 || inode.lookups > 0 || open.contains(node));
    }
}

impl Inode {
    fn new(node: u64, content: Content, mode: u32, (uid, gid): (u32, u32)) -> Inode {
        let rdev = if let Content::Special(device) = content { device } else { 0 };
        let attr =
            Attr { ino: node, mode, nlink: 1, uid, gid, rdev, blksize: BLOCK as u32, ..Default::default() };
        let mut inode = Inode { content, attr, lookups: 0, xattrs: BTreeMap::new() };
        inode.is_modified();
        (inode.attr.atime, inode.attr.atimensec) = (inode.attr.mtime, inode.attr.mtimensec);
        inode
    }

    pub(super) fn attr(&self) -> Attr {
        let size = match &self.content {
            Content::Directory(names) => names.len() as u64,
            Content::Regular(data) => data.size(),
            Content::Symlink(target) => target.len() as u64,
            Content::Special(_) => 0,
        };
        Attr { size, blocks: self.allocated() / 512, ..self.attr }
    }

    /// Bytes of memory its data takes.
    pub(super) fn allocated(&self) -> u64 {
        if let Content::Regular(data) = &self.content { data.allocated() } else { 0 }
    }

    fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    fn is_modified(&mut self) {
        self.is_changed();
        (self.attr.mtime, self.attr.mtimensec) = (self.attr.ctime, self.attr.ctimensec);
    }

    fn is_changed(&mut self) {
        (self.attr.ctime, self.attr.ctimensec) = now();
    }

    pub(super) fn set(&mut self, set: &SetAttributes<'_>) -> Result<()> {
        let (values, valid) = (set.values, set.valid);
        if valid.contains(SetattrValid::SIZE) {
            match &mut self.content {
                Content::Regular(data) if values.size <= FILE_MAX => data.set_size(values.size),
                Content::Regular(_) => return Err(Errno::EFBIG),
                _ => return Err(Errno::EINVAL),
            }
            self.is_modified();
        }
        self.is_changed();
        if valid.contains(SetattrValid::MODE) {
            self.attr.mode = self.attr.mode & KIND | values.mode & 0o7777;
        }
        if valid.contains(SetattrValid::UID) {
            self.attr.uid = values.uid;
        }
        if valid.contains(SetattrValid::GID) {
            self.attr.gid = values.gid;
        }
        let time = |now_flag, given| if valid.contains(now_flag) { now() } else { given };
        if valid.contains(SetattrValid::ATIME) {
            (self.attr.atime, self.attr.atimensec) =
                time(SetattrValid::ATIME_NOW, (values.atime, values.atimensec));
        }
        if valid.contains(SetattrValid::MTIME) {
            (self.attr.mtime, self.attr.mtimensec) =
                time(SetattrValid::MTIME_NOW, (values.mtime, values.mtimensec));
        }
        Ok(())
    }

    pub(super) fn set_xattr(&mut self, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        match (flags, self.xattrs.contains_key(name)) {
            (XATTR_CREATE, true) => return Err(Errno::EEXIST),
            (XATTR_REPLACE, false) => return Err(Errno::ENODATA),
            _ => self.xattrs.insert(name.to_owned(), value.to_vec()),
        };
        self.is_changed();
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, name: &CStr) -> Result<()> {
        self.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        self.is_changed();
        Ok(())
    }
}

/// Seconds and nanoseconds since 1970.
fn now() -> (u64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}
