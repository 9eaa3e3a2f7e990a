//! What a virtio-fs server shares, as a file system to serve: Ashore's client, turned upwards.
//!
//! [`Remote`] implements [`FileSystem`] on a [`Nodes`] of the client. So a kernel that mounts it has, between itself and the server,
//! the client's page cache, its write-back and its sync: what the kernel's write-back cache would lose at a sync (Linux 6.18.21,
//! 6.19.11, 7.0 and later) is not left to it.
//!
//! # What is remembered where
//!
//! The client knows names, attributes and data for as long as the server allows. Whoever mounts this is told to remember no names
//! and no attributes, and data from open to close; asking here costs no request to the server.
//!
//! # Limits
//!
//! Locks stay with whoever mounts: the server does not hear of them. IOCTL is not carried on, so no `chattr`. Files and directories
//! belong to the caller who made them, by his user and group; his other groups are not sent.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ashore_client::nodes::{self, Directory, Node, Nodes};
use ashore_client::{Client, File};
use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write,
};
use ashore_wire::abi::{CopyFileRangeIn, Kstatfs};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, SetattrValid};
use ashore_wire::init::Agreement;
use ashore_wire::reply::Dirent;
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId};
use parking_lot::{Mutex, RwLock};

/// The share of another server.
#[derive(Debug)]
pub struct Remote {
    nodes: Nodes,
    files: Handles<File>,
    directories: Handles<OpenDirectory>,
}

/// A directory, and its names as they were when it was read from its beginning.
#[derive(Debug)]
struct OpenDirectory {
    directory: Directory,
    names: Mutex<Arc<[nodes::Name]>>,
}

impl Remote {
    /// The share that this client has.
    pub fn new(client: Client) -> Remote {
        Remote { nodes: Nodes::new(client), files: Handles::default(), directories: Handles::default() }
    }

    fn opened(&self, file: File) -> Opened {
        Opened::new(self.files.insert(file), OpenReplyFlags::empty())
    }
}

impl FileSystem for Remote {
    fn features(&self) -> InitFlags {
        InitFlags::PARALLEL_DIROPS | InitFlags::ASYNC_DIO
    }

    fn init(&self, _: &Agreement) {
        self.destroy();
    }

    fn destroy(&self) {
        self.files.clear();
        self.directories.clear();
    }

    fn lookup(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        on_behalf_of(caller, || self.nodes.lookup(parent, name.as_bytes()).map(entry))
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.nodes.forget(node, lookups);
    }

    fn getattr(&self, caller: &Caller<'_>, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        on_behalf_of(caller, || self.nodes.attributes(node).map(attributes))
    }

    fn setattr(&self, caller: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
        let file = set.handle().and_then(|handle| self.files.find(handle).ok());
        let mut values = *set.values;
        values.valid = (set.valid - SetattrValid::FH).bits();
        on_behalf_of(caller, || self.nodes.set_attributes(node, &values, file.as_deref()).map(attributes))
    }

    fn readlink(&self, caller: &Caller<'_>, node: NodeId) -> Result<Vec<u8>> {
        on_behalf_of(caller, || self.nodes.read_link(node))
    }

    fn symlink(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &std::ffi::CStr,
    ) -> Result<Entry> {
        on_behalf_of(caller, || {
            self.nodes.make_symlink(target.to_bytes(), parent, name.as_bytes()).map(entry)
        })
    }

    fn mknod(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        umask: u32,
        device: u32,
    ) -> Result<Entry> {
        on_behalf_of(caller, || {
            self.nodes.make_node(parent, name.as_bytes(), mode & !umask, device).map(entry)
        })
    }

    fn mkdir(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        on_behalf_of(caller, || self.nodes.make_directory(parent, name.as_bytes(), mode & !umask).map(entry))
    }

    fn unlink(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        on_behalf_of(caller, || self.nodes.remove_file(parent, name.as_bytes()))
    }

    fn rmdir(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        on_behalf_of(caller, || self.nodes.remove_directory(parent, name.as_bytes()))
    }

    fn rename(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        on_behalf_of(caller, || {
            self.nodes.rename((parent, name.as_bytes()), (new_parent, new_name.as_bytes()), flags)
        })
    }

    fn link(&self, caller: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        on_behalf_of(caller, || self.nodes.make_link(node, parent, name.as_bytes()).map(entry))
    }

    fn open(&self, caller: &Caller<'_>, node: NodeId, flags: u32, _: OpenRequestFlags) -> Result<Opened> {
        on_behalf_of(caller, || self.nodes.open(node, flags)).map(|file| self.opened(file))
    }

    fn create(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        flags: u32,
        mode: u32,
        umask: u32,
        _: OpenRequestFlags,
    ) -> Result<Created> {
        let (node, file) = on_behalf_of(caller, || {
            self.nodes.create(parent, name.as_bytes(), flags, mode & !umask & 0o7777)
        })?;
        Ok(Created { entry: entry(node), opened: self.opened(file) })
    }

    fn read(&self, _: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        let file = self.files.find(read.handle)?;
        let mut buffer = vec![0; read.size];
        let count = file.read_at(&mut buffer, read.offset)?;
        target.fill(0, &buffer[..count]).map_err(|_| Errno::EINVAL)?;
        Ok(count)
    }

    fn write(&self, _: &Caller<'_>, _: NodeId, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        let file = self.files.find(write.handle)?;
        let mut data = vec![0; write.size];
        payload.copy_to(&mut data);
        Ok(file.write_at(&data, write.offset)?)
    }

    fn statfs(&self, node: NodeId) -> Result<Kstatfs> {
        self.nodes.statfs(node)
    }

    fn release(&self, _: NodeId, handle: FileHandle, _: Option<LockOwner>) -> Result<()> {
        self.files.remove(handle);
        Ok(())
    }

    /// Close means that others who open it then see it, and that whoever closes hears of errors.
    fn flush(&self, _: NodeId, handle: FileHandle, _: LockOwner) -> Result<()> {
        Ok(self.files.find(handle)?.write_back()?)
    }

    fn fsync(&self, _: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        let file = self.files.find(handle)?;
        Ok(if data_only { file.sync_data() } else { file.sync_all() }?)
    }

    fn fsyncdir(&self, _: NodeId, handle: FileHandle, _: bool) -> Result<()> {
        self.nodes.sync_directory(&self.directories.find(handle)?.directory)
    }

    /// All of the mount, whatever the node: the client syncs every superblock of the server's.
    fn syncfs(&self, _: NodeId) -> Result<()> {
        Ok(self.nodes.sync()?)
    }

    fn setxattr(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        name: &std::ffi::CStr,
        value: &[u8],
        flags: u32,
        _: u32,
    ) -> Result<()> {
        on_behalf_of(caller, || self.nodes.set_xattr(node, name.to_bytes(), value, flags))
    }

    fn getxattr(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        name: &std::ffi::CStr,
        buffer: &mut [u8],
    ) -> Result<usize> {
        on_behalf_of(caller, || self.nodes.xattr(node, name.to_bytes()))
            .and_then(|value| answer(&value, buffer))
    }

    fn listxattr(&self, caller: &Caller<'_>, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
        on_behalf_of(caller, || self.nodes.xattrs(node)).and_then(|names| answer(&names, buffer))
    }

    fn removexattr(&self, caller: &Caller<'_>, node: NodeId, name: &std::ffi::CStr) -> Result<()> {
        on_behalf_of(caller, || self.nodes.remove_xattr(node, name.to_bytes()))
    }

    fn opendir(&self, caller: &Caller<'_>, node: NodeId, _: u32) -> Result<Opened> {
        let directory = on_behalf_of(caller, || self.nodes.open_directory(node))?;
        let handle = self.directories.insert(OpenDirectory { directory, names: Mutex::new(Arc::new([])) });
        Ok(Opened::new(handle, OpenReplyFlags::empty()))
    }

    fn readdir(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        let open = self.directories.find(handle)?;
        if offset == 0 {
            let fresh = on_behalf_of(caller, || self.nodes.names(&open.directory))?;
            *open.names.lock() = fresh.into();
        }
        let listed = Arc::clone(&open.names.lock());
        const DIRECTORY: u32 = 4;
        // Where the parent is only whoever mounts knows, and puts it in himself.
        let dots = [&b"."[..], b".."].map(|name| (name, node.0, DIRECTORY));
        let all = dots.into_iter().chain(listed.iter().map(|it| (&it.name[..], it.ino, it.kind)));
        for (next_offset, (name, ino, kind)) in
            (1..).zip(all).skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if !names.push(Dirent { ino, next_offset, kind, name }) {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _: NodeId, handle: FileHandle) -> Result<()> {
        self.directories.remove(handle);
        Ok(())
    }

    fn fallocate(
        &self,
        caller: &Caller<'_>,
        _: NodeId,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let file = self.files.find(handle)?;
        Ok(on_behalf_of(caller, || file.allocate(offset, length, mode))?)
    }

    fn lseek(&self, _: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64> {
        Ok(self.files.find(handle)?.seek_data_or_hole(offset, whence)?)
    }

    fn copy_file_range(&self, caller: &Caller<'_>, _: NodeId, arguments: &CopyFileRangeIn) -> Result<usize> {
        let (from, to) =
            (self.files.find(FileHandle(arguments.fh_in))?, self.files.find(FileHandle(arguments.fh_out))?);
        let copied =
            on_behalf_of(caller, || from.copy_to(arguments.off_in, &to, arguments.off_out, arguments.len))?;
        Ok(copied as usize)
    }
}

fn on_behalf_of<T>(caller: &Caller<'_>, work: impl FnOnce() -> T) -> T {
    nodes::as_caller(caller.uid, caller.gid, work)
}

/// Names and attributes are the client's to remember.
fn entry(node: Node) -> Entry {
    let Node { id, generation, attr } = node;
    Entry { node: id.0, generation, attr, entry_timeout: Duration::ZERO, attr_timeout: Duration::ZERO }
}

fn attributes(attr: ashore_wire::abi::Attr) -> Attributes {
    Attributes { attr, timeout: Duration::ZERO }
}

/// A value into the room for it; without room its size.
fn answer(value: &[u8], buffer: &mut [u8]) -> Result<usize> {
    match buffer.len() {
        0 => {}
        room if room < value.len() => return Err(Errno::ERANGE),
        _ => buffer[..value.len()].copy_from_slice(value),
    }
    Ok(value.len())
}

/// What is open, by numbers that are used once.
#[derive(Debug)]
struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        Handles { open: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    fn insert(&self, opened: T) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, Arc::new(opened));
        FileHandle(handle)
    }

    fn find(&self, handle: FileHandle) -> Result<Arc<T>> {
        self.open.read().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// Closed here, unless a request is still at it.
    fn remove(&self, handle: FileHandle) {
        let removed = self.open.write().remove(&handle.0);
        drop(removed);
    }

    fn clear(&self) {
        let all = std::mem::take(&mut *self.open.write());
        drop(all);
    }
}
