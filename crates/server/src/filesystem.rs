//! The contract between the server and a file system.

use std::time::Duration;

use ashore_wire::abi::{Attr, CopyFileRangeIn, EntryOut, FileLock, IoctlIn, Kstatfs, LkIn, SetattrIn, Statx};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, SetattrValid, WriteFlags};
use ashore_wire::init::Agreement;
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId};

pub use ashore_wire::request::Caller;

use crate::wait::Wait;

/// What a file system's methods return: a value, or the error number the client is told.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

/// A name that was found or made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// The inode. Node 0 says that there is no such name, and that the client may remember this.
    pub node: u64,
    /// Tells apart two inodes that had the same node id one after the other.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the client may remember that the name leads to this inode.
    pub entry_timeout: Duration,
    /// How long the client may remember the attributes.
    pub attr_timeout: Duration,
}

impl Entry {
    /// Says that there is no such name, which the client may remember for so long.
    pub fn negative(timeout: Duration) -> Entry {
        let (attr, attr_timeout) = (Attr::default(), Duration::ZERO);
        Entry { node: 0, generation: 0, attr, entry_timeout: timeout, attr_timeout }
    }

    /// The entry as it is sent.
    pub fn to_wire(&self) -> EntryOut {
        EntryOut {
            nodeid: self.node,
            generation: self.generation,
            entry_valid: self.entry_timeout.as_secs(),
            entry_valid_nsec: self.entry_timeout.subsec_nanos(),
            attr_valid: self.attr_timeout.as_secs(),
            attr_valid_nsec: self.attr_timeout.subsec_nanos(),
            attr: self.attr,
        }
    }
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// The attributes.
    pub attr: Attr,
    /// How long the client may remember them.
    pub timeout: Duration,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Comes back with every request on it, until RELEASE.
    pub handle: FileHandle,
    /// How the client is to treat it.
    pub flags: OpenReplyFlags,
    /// With [`OpenReplyFlags::PASSTHROUGH`]: by which number the client's kernel knows the host's file, whose data it then reads
    /// and writes itself. 0 otherwise.
    pub backing_id: u32,
}

impl Opened {
    /// An open file whose data comes and goes by requests.
    pub fn new(handle: FileHandle, flags: OpenReplyFlags) -> Opened {
        Opened { handle, flags, backing_id: 0 }
    }
}

/// A file that was made and opened.
#[derive(Clone, Copy, Debug)]
pub struct Created {
    /// Its name and inode; counts as one lookup.
    pub entry: Entry,
    /// The open file.
    pub opened: Opened,
}

/// What a READ asks for.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The open file.
    pub handle: FileHandle,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes at most; never more than the client left room for.
    pub size: usize,
    /// Whether the call may wait for the disk. If not, and it would have to, EAGAIN brings it back, on another
    /// thread, with leave to wait.
    pub may_wait: bool,
}

/// What a WRITE asks for.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// The open file; with [`WriteFlags::CACHE`] any that was open for writing on this inode.
    pub handle: FileHandle,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes; all of them are in the payload.
    pub size: usize,
    /// Where the data comes from and what it does to set-user-id bits.
    pub write_flags: WriteFlags,
    /// Open flags of the file description that wrote, O_SYNC and O_DSYNC of this one call included (Linux sends
    /// them for direct and write-through writes; 0 for write-back).
    pub flags: u32,
}

/// What a SETATTR asks for.
#[derive(Clone, Copy, Debug)]
pub struct SetAttributes<'a> {
    /// Which values count.
    pub valid: SetattrValid,
    /// The values.
    pub values: &'a SetattrIn,
}

impl SetAttributes<'_> {
    /// The open file to act on, if the client named one.
    pub fn handle(&self) -> Option<FileHandle> {
        self.valid.contains(SetattrValid::FH).then_some(FileHandle(self.values.fh))
    }
}

/// A lock asked for or found.
pub type Lock = FileLock;

/// A file system that can be served.
///
/// # Who calls when
///
/// Methods are called from many threads at once, in any order the client's requests come in; nothing is
/// serialised for the file system. [`FileSystem::init`] comes first, and after [`FileSystem::destroy`] nothing
/// but another `init`.
///
/// # Lookup counts
///
/// Each entry returned with a node other than 0, by `lookup`, the methods that make files and for each name
/// given to `readdirplus`, adds one to that inode's lookup count. A node id stays valid until
/// [`FileSystem::forget`] has taken the count back to zero, whether or not the file still has a name: after
/// unlink, getattr, setattr, read, write and fsync may still come for it. The root is valid always. Ids that were
/// never given out, or were forgotten, may come from a hostile client and are answered with ESTALE. When the
/// connection ends, all counts are zero, without a forget.
///
/// # Handles
///
/// A handle is valid from the reply to `open`, `opendir` or `create` until `release` or `releasedir`. `flush`
/// comes once for each close(2) of a descriptor that shares it, so several times or, for a file that was only
/// mapped, later than the last one. A handle that was not given out is answered with EBADF.
///
/// # The caller
///
/// [`Caller`] is who made the call in the client. The client's kernel checks permissions before it asks
/// (`default_permissions`); the caller is needed to make files belong to him. Requests that a client's cache
/// makes on its own (write-back) come from uid 0, pid 0.
///
/// # Changes and syncs
///
/// A method that changes the file system has done so, in the words of the promise, when it returns: the change
/// is *settled*, but not *stable*. [`FileSystem::syncfs`] makes every change stable whose method returned before
/// it was called, on every host file system the superblock of the given node covers, or fails. It is never called
/// on the thread of a queue, and may take as long as the disk does.
///
/// # Errors
///
/// A method that is not implemented says ENOSYS, and the client will mostly not ask again. A client's kernel takes
/// ENOSYS of `syncfs`, `fsync` and `fsyncdir` *for success*; that is why those three have no default here.
#[allow(unused_variables, reason = "the defaults ignore their arguments, whose names are documentation")]
pub trait FileSystem: Send + Sync + 'static {
    /// The features of INIT that this file system implements, beside those the server itself does.
    fn features(&self) -> InitFlags;

    /// Those of [`FileSystem::features`] without which a client is refused.
    fn required(&self) -> InitFlags {
        InitFlags::empty()
    }

    /// A client agreed to talk. Node ids and handles of an earlier one mean nothing any more.
    fn init(&self, agreement: &Agreement) {}

    /// The client has gone: forget its nodes, close its handles. Comes after the last sync.
    fn destroy(&self) {}

    /// Finds `name` in `parent`.
    fn lookup(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Gives `lookups` of a node back. Too many is a client's mistake, and the same as all.
    fn forget(&self, node: NodeId, lookups: u64);

    /// Attributes of a node, by an open handle if the client named one.
    fn getattr(&self, caller: &Caller<'_>, node: NodeId, handle: Option<FileHandle>) -> Result<Attributes>;

    /// Attributes in the layout of statx(2), of those in `mask`.
    fn statx(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: Option<FileHandle>,
        flags: u32,
        mask: u32,
    ) -> Result<(Statx, Duration)> {
        Err(Errno::ENOSYS)
    }

    /// Changes attributes. Several may be valid at once; if one fails, those before it may stay changed.
    fn setattr(&self, caller: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
        Err(Errno::ENOSYS)
    }

    /// The target of a symbolic link.
    fn readlink(&self, caller: &Caller<'_>, node: NodeId) -> Result<Vec<u8>> {
        Err(Errno::ENOSYS)
    }

    /// Makes a symbolic link to `target`, whatever that says.
    fn symlink(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &std::ffi::CStr,
    ) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// Makes a file of the kind in `mode`. `umask` has been applied to `mode`, here and where else a file is made, unless
    /// DONT_MASK was agreed; then it is to be, where no default access control list stands in its place.
    fn mknod(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        umask: u32,
        device: u32,
    ) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// Makes a directory.
    fn mkdir(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// Removes the name of anything but a directory.
    fn unlink(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Removes an empty directory.
    fn rmdir(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Renames; `flags` are those of renameat2(2).
    fn rename(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Makes another name for `node`.
    fn link(&self, caller: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// Opens a file with the flags of open(2), without O_CREAT and O_EXCL; O_TRUNC only if ATOMIC_O_TRUNC was
    /// agreed.
    fn open(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        flags: u32,
        open_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        Err(Errno::ENOSYS)
    }

    /// Makes a file, if it is not there (or fails, with O_EXCL), and opens it.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the protocol's CREATE")]
    fn create(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: OpenRequestFlags,
    ) -> Result<Created> {
        Err(Errno::ENOSYS)
    }

    /// Makes a file without a name in `parent`, and opens it (O_TMPFILE).
    fn tmpfile(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<Created> {
        Err(Errno::ENOSYS)
    }

    /// Reads into the start of `target`; returns how many bytes. Fewer than asked for means the end of the file.
    fn read(&self, node: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// Writes the payload; returns how many bytes were taken.
    fn write(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        write: &Write,
        payload: &mut dyn Payload,
    ) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// Space and limits of the host file system that `node` is on.
    fn statfs(&self, node: NodeId) -> Result<Kstatfs> {
        Err(Errno::ENOSYS)
    }

    /// The last reference to an open file is gone. The client does not wait for this, nor hear of an error. Locks of
    /// flock(2) that `flock_owner` has on it are dropped; others do not belong to the handle.
    fn release(&self, node: NodeId, handle: FileHandle, flock_owner: Option<LockOwner>) -> Result<()> {
        Ok(())
    }

    /// A descriptor of an open file was closed: the last chance to tell that process of an error. POSIX locks that
    /// `lock_owner` has on the node are dropped, whatever else is said.
    fn flush(&self, node: NodeId, handle: FileHandle, lock_owner: LockOwner) -> Result<()> {
        Ok(())
    }

    /// Makes one file stable: its data and size, and unless `data_only` its other attributes.
    fn fsync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()>;

    /// Makes the names in one directory stable.
    fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()>;

    /// Makes every change of the superblock whose root is `node` stable. See "Changes and syncs" above.
    fn syncfs(&self, node: NodeId) -> Result<()>;

    /// Makes every change stable, of all superblocks: the client leaves, or the server is told to end.
    fn last_call(&self) -> Result<()> {
        self.syncfs(NodeId::ROOT)
    }

    /// Sets an extended attribute; `flags` are those of setxattr(2).
    fn setxattr(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        name: &std::ffi::CStr,
        value: &[u8],
        flags: u32,
        setxattr_flags: u32,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The value of an extended attribute into `buffer`, whose length is what the client has room for; returns its
    /// length. With an empty buffer only the length is asked for. ERANGE if it does not fit.
    fn getxattr(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        name: &std::ffi::CStr,
        buffer: &mut [u8],
    ) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// The names of all extended attributes, each with its NUL, into `buffer`; as [`FileSystem::getxattr`].
    fn listxattr(&self, caller: &Caller<'_>, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// Removes an extended attribute.
    fn removexattr(&self, caller: &Caller<'_>, node: NodeId, name: &std::ffi::CStr) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Opens a directory.
    fn opendir(&self, caller: &Caller<'_>, node: NodeId, flags: u32) -> Result<Opened> {
        Err(Errno::ENOSYS)
    }

    /// Adds names to `names`, from the one at `offset` (0, or the `next_offset` of a name given before), until it
    /// is full. None at all means the end.
    fn readdir(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// As `readdir`, with the entry of each name. Each entry that went into `names` counts as a lookup, except
    /// those of `.` and `..`, whose node is 0.
    fn readdirplus(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The last reference to an open directory is gone.
    fn releasedir(&self, node: NodeId, handle: FileHandle) -> Result<()> {
        Ok(())
    }

    /// Whether the caller may access the node; `mask` as in access(2).
    fn access(&self, caller: &Caller<'_>, node: NodeId, mask: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Finds a lock that stands in the way of `lock`; of kind `F_UNLCK` if there is none. Its `pid` is one of the
    /// client's processes, or 0.
    ///
    /// Asked only if POSIX_LOCKS was agreed, and of `setlk` also FLOCK_LOCKS. Otherwise a client keeps locks to itself,
    /// and no other client nor a process of the host sees them. One that asks all the same is told ENOSYS: success
    /// that locks nothing would be worse than none.
    fn getlk(&self, caller: &Caller<'_>, node: NodeId, lock: &LkIn) -> Result<Lock> {
        Err(Errno::ENOSYS)
    }

    /// Takes, changes or drops a lock, of flock(2) if [`LK_FLOCK`](ashore_wire::flags::LK_FLOCK) says so.
    ///
    /// If another stands in the way: EAGAIN at once without `wait`. With it, waits until the other is gone, or `wait`
    /// is told to give up; it then comes on a thread that serves no queue, after a try without.
    ///
    /// Locks belong to `lock.owner`, on this node, and stay until it drops them, [`FileSystem::flush`] and
    /// [`FileSystem::release`] name it, or the client goes ([`FileSystem::destroy`]).
    fn setlk(&self, caller: &Caller<'_>, node: NodeId, lock: &LkIn, wait: Option<&Wait>) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Allocates or punches space; `mode` as in fallocate(2).
    fn fallocate(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// Finds data or a hole; `whence` as in lseek(2).
    fn lseek(&self, node: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    /// Copies from `node` to another open file; returns how many bytes.
    fn copy_file_range(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        arguments: &CopyFileRangeIn,
    ) -> Result<usize> {
        Err(Errno::ENOSYS)
    }

    /// A call by number (ioctl(2)) with an argument of plain bytes; what it answers goes into `output`, of which the
    /// client is sent as much as it has room for. Returns the call's result. ENOTTY for a number that is not known.
    ///
    /// A number alone does not say whether it changes anything, so each counts as a change for a sync.
    fn ioctl(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        arguments: &IoctlIn,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<i32> {
        Err(Errno::ENOSYS)
    }
}
