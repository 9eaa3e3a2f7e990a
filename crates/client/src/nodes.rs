//! The same mount by nodes rather than paths, for whoever speaks FUSE upwards: a kernel that mounts it, for one.
//!
//! Nodes have the server's numbers. Each that was told by [`Nodes::lookup`] or made is held until it was forgotten as often.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use ashore_wire::abi::{Attr, Kstatfs, SetattrIn};
use ashore_wire::flags::SetattrValid;
use ashore_wire::{Errno, NodeId, Opcode};

use crate::client::Client;
use crate::file::{File, OpenOptions};
use crate::primitives::{HashMap, Mutex};
use crate::shell::inodes::Inode;
use crate::shell::names::{OpenedFile, open_flags};

type Result<T> = std::result::Result<T, Errno>;

thread_local! {
    /// On whose behalf this thread asks, if not the one the options name. Not for simulated threads, which share one.
    static CALLER: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
}

/// User and group that requests of this thread carry now.
pub(crate) fn caller() -> Option<(u32, u32)> {
    CALLER.get()
}

/// Does something on behalf of a user and a group: what is made then belongs to them.
pub fn as_caller<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> T {
    struct Before(Option<(u32, u32)>);
    impl Drop for Before {
        fn drop(&mut self) {
            CALLER.set(self.0);
        }
    }
    let _before = Before(CALLER.replace(Some((uid, gid))));
    work()
}

/// A file, directory or link, as the server numbers it.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Tells apart nodes that have the same number one after the other.
    pub generation: u64,
    /// What is known of it now, changes that are still in the cache included.
    pub attr: Attr,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// The inode number, as stat(2) has it.
    pub ino: u64,
    /// The kind of file: `DT_REG` and so on.
    pub kind: u32,
}

/// An open directory.
pub struct Directory(OpenedFile);

/// A mount by its nodes. Errors are those of the server, or of this side where they stand in FUSE: `ESTALE` for a node that is not
/// held.
pub struct Nodes {
    client: Client,
    held: Mutex<HashMap<u64, (Arc<Inode>, u64)>>,
}

impl Nodes {
    /// Of the mount of this client, whose handle becomes that of the nodes: it hears of each error once.
    pub fn new(client: Client) -> Nodes {
        Nodes { client, held: Mutex::default() }
    }

    /// The mount handle.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Gives the mount handle back; all nodes are forgotten.
    pub fn into_client(self) -> Client {
        self.client
    }

    fn inode(&self, node: NodeId) -> Result<Arc<Inode>> {
        if node == NodeId::ROOT {
            return Ok(self.client.mount().root());
        }
        self.held.lock().get(&node.0).map(|(inode, _)| Arc::clone(inode)).ok_or(Errno::ESTALE)
    }

    /// Held once more.
    fn tell(&self, inode: Arc<Inode>) -> Result<Node> {
        let attr = self.client.mount().fresh_attributes(&inode, None)?;
        let node = Node { id: inode.node, generation: inode.generation, attr };
        self.held.lock().entry(node.id.0).or_insert_with(|| (inode, 0)).1 += 1;
        Ok(node)
    }

    /// What a name leads to.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Node> {
        self.tell(self.client.mount().lookup(&self.inode(parent)?, name)?)
    }

    /// So many lookups are taken back.
    pub fn forget(&self, node: NodeId, lookups: u64) {
        let mut held = self.held.lock();
        let Some((_, count)) = held.get_mut(&node.0) else { return };
        *count = count.saturating_sub(lookups);
        if *count == 0 {
            let forgotten = held.remove(&node.0);
            drop(held);
            // Without the lock: the last one who holds an inode gives it back to the server.
            drop(forgotten);
        }
    }

    /// What is known of a node now.
    pub fn attributes(&self, node: NodeId) -> Result<Attr> {
        self.client.mount().fresh_attributes(&self.inode(node)?, None)
    }

    /// Changes attributes, the size among them. `file`: it is open, and this is how.
    pub fn set_attributes(&self, node: NodeId, values: &SetattrIn, file: Option<&File>) -> Result<Attr> {
        let (mount, inode) = (self.client.mount(), self.inode(node)?);
        let valid = SetattrValid::from_bits_retain(values.valid);
        if valid.contains(SetattrValid::SIZE) {
            mount.set_size(&inode, file.map(File::handle), values.size)?;
        }
        let rest = valid - (SetattrValid::SIZE | SetattrValid::FH | SetattrValid::LOCKOWNER);
        if !rest.is_empty() {
            mount.set_attributes(&inode, SetattrIn { valid: rest.bits(), fh: 0, ..*values })?;
        }
        mount.fresh_attributes(&inode, None)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.client.mount().read_link(&*self.inode(node)?)
    }

    /// Makes a directory.
    pub fn make_directory(&self, parent: NodeId, name: &[u8], mode: u32) -> Result<Node> {
        self.tell(self.client.mount().make_directory(&self.inode(parent)?, name, mode)?)
    }

    /// Makes a file, a pipe, a socket or a device, as mknod(2).
    pub fn make_node(&self, parent: NodeId, name: &[u8], mode: u32, device: u32) -> Result<Node> {
        self.tell(self.client.mount().make_node(&self.inode(parent)?, name, mode, device)?)
    }

    /// Makes a symbolic link.
    pub fn make_symlink(&self, target: &[u8], parent: NodeId, name: &[u8]) -> Result<Node> {
        self.tell(self.client.mount().make_symlink(target, &self.inode(parent)?, name)?)
    }

    /// Gives a node another name.
    pub fn make_link(&self, existing: NodeId, parent: NodeId, name: &[u8]) -> Result<Node> {
        self.tell(self.client.mount().make_link(&self.inode(existing)?, &self.inode(parent)?, name)?)
    }

    /// Removes the name of anything but a directory.
    pub fn remove_file(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.client.mount().remove(&self.inode(parent)?, name, Opcode::Unlink)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.client.mount().remove(&self.inode(parent)?, name, Opcode::Rmdir)
    }

    /// Renames; flags as in renameat2(2).
    pub fn rename(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), flags: u32) -> Result<()> {
        let (old, new) = (self.inode(from.0)?, self.inode(to.0)?);
        self.client.mount().rename((&old, from.1), (&new, to.1), flags)
    }

    /// Opens a file; flags as in open(2).
    pub fn open(&self, node: NodeId, flags: u32) -> Result<File> {
        let options = options_of(flags);
        self.client.open_inode(&self.inode(node)?, options.flags()?, &options)
    }

    /// Makes a file and opens it.
    pub fn create(&self, parent: NodeId, name: &[u8], flags: u32, mode: u32) -> Result<(Node, File)> {
        let options = options_of(flags);
        let creating =
            options.flags()? | flags & (open_flags::CREATE | open_flags::EXCLUSIVE) | open_flags::CREATE;
        let opened = self.client.mount().create(&self.inode(parent)?, name, creating, mode)?;
        let node = self.tell(Arc::clone(&opened.inode))?;
        Ok((node, self.client.opened(opened, options)))
    }

    /// Opens a directory.
    pub fn open_directory(&self, node: NodeId) -> Result<Directory> {
        self.client.mount().open(&self.inode(node)?, open_flags::DIRECTORY).map(Directory)
    }

    /// The names in a directory, without `.` and `..`.
    pub fn names(&self, directory: &Directory) -> Result<Vec<Name>> {
        let listed = self.client.mount().list(&directory.0.handle)?.into_iter();
        Ok(listed.map(|it| Name { name: it.name, ino: it.ino, kind: it.kind }).collect())
    }

    /// Makes the names in a directory stable.
    pub fn sync_directory(&self, directory: &Directory) -> Result<()> {
        self.client.mount().fsync(&directory.0.inode, &directory.0.handle, false)
    }

    /// Space and limits of the host file system a node is on.
    pub fn statfs(&self, node: NodeId) -> Result<Kstatfs> {
        self.client.mount().statfs(&*self.inode(node)?)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.client.mount().xattr(&*self.inode(node)?, name)
    }

    /// The names of all extended attributes, each with its NUL.
    pub fn xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        self.client.mount().xattrs(&*self.inode(node)?)
    }

    /// Sets an extended attribute; flags as in setxattr(2).
    pub fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.client.mount().set_xattr(&self.inode(node)?, name, value, flags)
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.client.mount().remove_xattr(&self.inode(node)?, name)
    }

    /// Makes everything stable that was changed before, as [`Client::sync`].
    pub fn sync(&self) -> io::Result<()> {
        self.client.sync()
    }
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("held", &self.held.lock().len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Directory").field(&self.0.inode.node).finish()
    }
}

/// What the flags of open(2) mean here. O_DIRECT means nothing: whoever mounts has his own cache above this one, and both know.
fn options_of(flags: u32) -> OpenOptions {
    let access = flags & open_flags::ACCESS_MODE;
    OpenOptions::new()
        .read(access != 1)
        .write(access != open_flags::READ_ONLY)
        .append(flags & open_flags::APPEND != 0)
        .sync(flags & open_flags::SYNC == open_flags::SYNC)
        .data_sync(flags & open_flags::SYNC == open_flags::DATA_SYNC)
}
