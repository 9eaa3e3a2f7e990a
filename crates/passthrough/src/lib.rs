//! A host directory as a file system.
//!
//! [`Passthrough`] implements [`FileSystem`] on the host's system calls. The implementation of the trait at the end of
//! this file is the table of contents: each method is one line, and leads to the file of its theme.
//!
//! | file | what it is about |
//! |---|---|
//! | `inodes.rs` | what a client has looked up: node ids, handles, a bounded number of descriptors |
//! | `places.rs` | the mounts a share is made of, also those made after it was opened |
//! | `names.rs`, `attributes.rs`, `data.rs`, `directory.rs`, `xattr.rs`, `ioctl.rs` | the operations |
//! | `xattrmap.rs` | other names for extended attributes |
//! | `handles.rs`, `kernel_io.rs` | what a client has open, and of that what its kernel reads and writes itself |
//! | `locks.rs` | locks that other clients and the host see |
//! | `credentials.rs`, `ids.rs` | files belong to the caller who made them, and who that is on the host |
//! | `sync.rs` | what a client changed and was told; SYNCFS, FSYNC, FLUSH |
//! | `dirt.rs` | which inodes a client changed, where a sync is to cover no others |
//! | `hostfs.rs`, `rounds.rs`, `backing.rs` | the host's file systems: rounds of syncs, errors, and what cannot be stable |
//! | `recovery.rs` | nodes and open files of an earlier process |
//! | `own_process.rs` | /proc/self, kept open |
//! | `host.rs`, `sys.rs` | system calls, the latter with all `unsafe` of this crate |
//!
//! # What the process has to see to
//!
//! - The umask should be 0: a client has applied its own, and the host would apply the process's on top. It is not set
//!   here, for it is the whole process's; a warning says so if it is not 0.
//! - Its supplementary groups should be none: while a file is made for a caller who sends groups they are replaced,
//!   otherwise they are left alone.
//! - /proc must be mounted when the share is opened, and the process that opens the share must be the one that serves
//!   it: /proc/self is opened once and kept.
//! - It may change its root when the share is open, and need not see /proc any more. On Linux before 6.13 extended attributes
//!   need [`Passthrough::enter_descriptors`] then, and of what is mounted below the share later less can be told.
//! - Threads that serve requests must have the ids and capabilities of the thread that opened the share.
//!
//! # Mounts below
//!
//! A descriptor is kept on each host file system that was seen, for the whole life of the share: errors could not be
//! reported truly otherwise. So a mount below the share cannot be unmounted on the host (EBUSY) while the share is
//! open; `umount --lazy` works.

#![deny(unsafe_code)]

mod attributes;
mod backing;
mod credentials;
mod data;
mod directory;
mod dirt;
mod gaps;
mod handles;
mod host;
mod hostfs;
mod ids;
mod inodes;
mod ioctl;
mod kernel_io;
mod locks;
mod migration;
mod mutant;
mod names;
mod options;
mod own_process;
mod paths;
mod places;
mod recovery;
mod rounds;
mod sync;
mod sys;
mod xattr;
mod xattrmap;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Lock, Opened, Read, Result, SetAttributes, Wait, Write,
};
use ashore_wire::abi::{CopyFileRangeIn, IoctlIn, Kstatfs, LkIn, Statx};
use ashore_wire::flags::{InitFlags, OpenRequestFlags};
use ashore_wire::init::Agreement;
use ashore_wire::seam::{BackingFiles, Payload, ReplyBody};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno as HostErrno;

pub use backing::Backing;
pub use hostfs::{HostCalls, HostFileSystems, HostReport};
pub use ids::{IdMap, IdRule, IdRuleError};
pub use options::{
    CachePolicy, Durability, InodeFileHandles, LockScope, Negotiation, Options, StartError, SyncScope,
};

pub use xattrmap::{XattrMap, XattrMapError};

use credentials::{AsCaller, CallerIds, Credentials};
use handles::Handles;
use host::FileIdentity;
use inodes::{Candidate, Found, Inodes, Location, SharedFd};
use kernel_io::KernelIo;
use places::{Place, Places, Refusal, identity_of};

/// A host directory as a file system, for one client at a time.
pub struct Passthrough {
    options: Options,
    root: Root,
    inodes: Inodes,
    handles: Handles,
    kernel_io: KernelIo,
    locks: locks::Locks,
    places: Places,
    credentials: Credentials,
    /// Features agreed with the client, as [`InitFlags`].
    agreed: AtomicU64,
    /// Extended attributes can be reached relative to a directory.
    relative_xattrs: bool,
    /// The working directory is /proc/self/fd.
    at_descriptors: AtomicBool,
    /// The host file system of the share has access control lists.
    has_acls: bool,
}

/// The shared directory itself.
struct Root {
    descriptor: SharedFd,
    place: u32,
    number: u64,
    kind: u32,
}

/// An inode a request acts on.
struct Inode<'a> {
    place: &'a Place,
    /// Its number.
    number: u64,
    /// The kind of file: the bits of `S_IFMT`.
    kind: u32,
    descriptor: SharedFd,
}

impl Inode<'_> {
    /// A path descriptor.
    fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn shared_fd(&self) -> SharedFd {
        Arc::clone(&self.descriptor)
    }
}

impl Passthrough {
    /// Opens a share. Its syncs share rounds with those of all other shares of this process.
    pub fn new(options: Options) -> std::result::Result<Passthrough, StartError> {
        Passthrough::with_hosts(options, HostFileSystems::of_this_process())
    }

    /// Opens a share whose host file systems are synced by `hosts`.
    pub fn with_hosts(
        options: Options,
        hosts: Arc<HostFileSystems>,
    ) -> std::result::Result<Passthrough, StartError> {
        let descriptors = own_process::descriptors();
        let descriptors = descriptors.map_err(|errno| StartError::NoProc { source: errno.into() })?;
        let share = open_share(&options)?;
        let open_error = |errno: HostErrno| StartError::OpenShare {
            path: options.shared_dir.clone(),
            source: errno.into(),
        };
        let identity = identity_of(&share).map_err(open_error)?;
        if !matches!(identity.kind, libc::S_IFDIR | libc::S_IFREG) {
            return Err(StartError::NotShareable { path: options.shared_dir.clone() });
        }
        let places = Places::new(hosts, &options, descriptors);
        let place =
            places.enter(&identity, share.as_fd()).map_err(|refusal| refused(&options, refusal))?.index;
        warn_of_options(&options);
        let mut passthrough = Passthrough {
            root: Root { descriptor: Arc::new(share), place, number: identity.ino, kind: identity.kind },
            inodes: Inodes::new(options.descriptor_bound),
            handles: Handles::default(),
            kernel_io: KernelIo::default(),
            locks: locks::Locks::default(),
            credentials: Credentials::of_this_thread(),
            agreed: AtomicU64::new(0),
            relative_xattrs: xattr::has_relative_calls(places.descriptors()),
            at_descriptors: AtomicBool::new(false),
            has_acls: false,
            places,
            options,
        };
        passthrough.has_acls = xattr::has_acls(&passthrough, passthrough.root.descriptor.as_fd());
        passthrough.check_options()?;
        Ok(passthrough)
    }

    /// Options that need each other, or a host that can do what they ask for.
    fn check_options(&self) -> std::result::Result<(), StartError> {
        let Options { posix_acl, xattr_map, uids, gids, shared_dir, .. } = &self.options;
        match posix_acl {
            Negotiation::Never => return Ok(()),
            Negotiation::Always if !self.has_acls => {
                return Err(StartError::NoAcls { path: shared_dir.clone() });
            }
            Negotiation::Auto if !self.has_acls => {
                tracing::info!(
                    "{} has no access control lists; the guest is offered none",
                    shared_dir.display()
                );
            }
            _ => {}
        }
        if !uids.is_identity() || !gids.is_identity() {
            return Err(StartError::AclsOfOthers);
        }
        match xattr_map {
            Some(map) if !xattr::ACLS.iter().all(|name| map.keeps(name)) => Err(StartError::AclsMapped),
            _ => Ok(()),
        }
    }

    /// From now on the client's kernel is given the files that are opened, if it agrees to [`Options::kernel_io`].
    pub fn give_files_to(&self, kernel: Arc<dyn BackingFiles>) {
        self.kernel_io.set(kernel);
    }

    /// How it is shared.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The host file systems seen so far: what they are, what they cannot do, and how their syncs went.
    pub fn host_file_systems(&self) -> Vec<HostReport> {
        self.places.ledgers().iter().map(|ledger| ledger.report()).collect()
    }

    /// Nodes that the client has looked up and not forgotten, the root left out.
    pub fn looked_up(&self) -> usize {
        self.inodes.len()
    }

    /// Files and directories the client has open.
    pub fn open_handles(&self) -> usize {
        self.handles.len()
    }

    /// Descriptors that this process has.
    pub fn open_descriptors(&self) -> u64 {
        own_process::open_descriptors()
    }

    /// Inodes are opened by file handles, which needs CAP_DAC_READ_SEARCH as long as the share is served.
    pub fn holds_by_handle(&self) -> bool {
        self.places.at(self.root.place).has_handles
    }

    /// Makes /proc/self/fd the working directory of the process, if extended attributes are to be had by such names alone
    /// (Linux before 6.13): the process may lose sight of /proc then.
    pub fn enter_descriptors(&self) -> std::io::Result<()> {
        if self.relative_xattrs {
            return Ok(());
        }
        rustix::process::fchdir(self.places.descriptors())?;
        self.at_descriptors.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Owners in the client that hold locks the host sees.
    pub fn lock_owners(&self) -> usize {
        self.locks.len()
    }

    /// Finds an inode, and opens it as a path if it is not open.
    fn inode(&self, node: NodeId) -> Result<Inode<'_>> {
        if node == NodeId::ROOT {
            let Root { descriptor, place, number, kind } = &self.root;
            let (descriptor, place) = (Arc::clone(descriptor), self.places.at(*place));
            return Ok(Inode { place, number: *number, kind: *kind, descriptor });
        }
        let found = self.inodes.find(node).ok_or(Errno::ESTALE)?;
        let Candidate { key, kind, .. } = found.candidate;
        let place = self.places.at(key.place);
        let descriptor = match &found.location {
            Location::Descriptor(descriptor) => Arc::clone(descriptor),
            _ => self.open_again(node, place, &found)?,
        };
        Ok(Inode { place, number: key.ino, kind, descriptor })
    }

    fn open_again(&self, node: NodeId, place: &Place, found: &Found) -> Result<SharedFd> {
        let handle = found.location.handle().ok_or(Errno::ESTALE)?;
        let opened = place.open_by_handle(&handle, OFlags::PATH);
        let opened = opened.inspect_err(|errno| self.note_stale(node, *errno))?;
        if !found.verified {
            self.verify(node, place, found, opened.as_fd())?;
        }
        let descriptor = Arc::new(opened);
        self.inodes.cache(node, &descriptor);
        Ok(descriptor)
    }

    /// Attributes and handle were taken by name, one after the other. If the name was given to another file in between,
    /// this is where it comes out.
    fn verify(&self, node: NodeId, place: &Place, found: &Found, opened: BorrowedFd<'_>) -> Result<()> {
        let identity = identity_of(opened).map_err(host::told)?;
        let FileIdentity { ino, kind, birth, .. } = identity;
        let expected = &found.candidate;
        if !place.holds(&identity) || (ino, kind, birth) != (expected.key.ino, expected.kind, expected.birth)
        {
            self.inodes.abandon(node);
            return Err(Errno::ESTALE);
        }
        self.inodes.verified(node);
        Ok(())
    }

    /// An inode that is gone must not be found again by a file that gets its number.
    fn note_stale(&self, node: NodeId, errno: Errno) {
        if errno == Errno::ESTALE {
            self.inodes.abandon(node);
        }
    }

    /// Where a node is, without opening it.
    fn place_of(&self, node: NodeId) -> Result<&Place> {
        if node == NodeId::ROOT {
            return Ok(self.places.at(self.root.place));
        }
        let found = self.inodes.find(node).ok_or(Errno::ESTALE)?;
        Ok(self.places.at(found.candidate.key.place))
    }

    fn agreed(&self, feature: InitFlags) -> bool {
        self.agreed.load(Ordering::Relaxed) & feature.bits() != 0
    }

    fn refuse_if_readonly(&self) -> Result<()> {
        if self.options.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Takes on the caller's ids, to make a file that belongs to him.
    fn become_caller(&self, caller: &Caller<'_>) -> Result<AsCaller<'_>> {
        let ids = CallerIds::of(caller, &self.options.uids, &self.options.gids)?;
        self.credentials.become_caller(&ids, !self.agreed(InitFlags::CREATE_SUPP_GROUP))
    }
}

impl std::fmt::Debug for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passthrough").field("options", &self.options).finish_non_exhaustive()
    }
}

fn open_share(options: &Options) -> std::result::Result<OwnedFd, StartError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = options.shared_dir.as_path();
    match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()) {
        Ok(share) => Ok(share),
        Err(HostErrno::NOSYS) => Err(StartError::KernelTooOld),
        Err(errno) => Err(StartError::OpenShare { path: path.to_owned(), source: errno.into() }),
    }
}

fn refused(options: &Options, refusal: Refusal) -> StartError {
    let path = options.shared_dir.clone();
    match refusal {
        Refusal::NoHandles(errno) => StartError::NoFileHandles { path, source: errno.into() },
        Refusal::NotDurable(why) => StartError::NotDurable { path, why },
        Refusal::TooMany => StartError::OpenShare { path, source: HostErrno::NFILE.into() },
    }
}

fn warn_of_options(options: &Options) {
    if options.durability == Durability::Relaxed {
        tracing::warn!(
            "durability is relaxed: a sync covers one host file system, leaving covers none, and single writes are \
             not made stable though they ask for it"
        );
    }
    if options.writeback && !options.writeback_granted() {
        let why = match options.durability {
            Durability::Strict => "every change is to be stable before it is acknowledged",
            _ => "a guest's sync(2) may return before all of it was sent, and all is to be durable",
        };
        tracing::warn!("no write-back cache is granted, for {why}");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap_or("0").trim();
    if u32::from_str_radix(umask, 8).is_ok_and(|umask| umask != 0) {
        tracing::warn!("files the client makes will lack the permissions of this process's umask {umask}");
    }
}

impl FileSystem for Passthrough {
    fn features(&self) -> InitFlags {
        let acls = self.options.posix_acl != Negotiation::Never && self.has_acls;
        let mut features = self.options.features();
        features.set(InitFlags::POSIX_ACL | InitFlags::DONT_MASK | InitFlags::SETXATTR_EXT, acls);
        features
    }

    fn required(&self) -> InitFlags {
        let mut required = InitFlags::empty();
        required.set(InitFlags::POSIX_ACL, self.options.posix_acl == Negotiation::Always);
        required.set(InitFlags::SECURITY_CTX, self.options.security_label == Negotiation::Always);
        required
    }

    fn init(&self, agreement: &Agreement) {
        self.destroy();
        self.agreed.store(agreement.flags.bits(), Ordering::Relaxed);
        self.places.ledgers().iter().for_each(|ledger| ledger.begin_session());
    }

    fn destroy(&self) {
        self.locks.clear();
        self.handles.clear();
        self.kernel_io.clear();
        self.inodes.clear();
    }

    fn lookup(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        names::lookup(self, parent, name)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        sync::forget(self, node, lookups);
    }

    fn getattr(&self, _: &Caller<'_>, node: NodeId, handle: Option<FileHandle>) -> Result<Attributes> {
        attributes::getattr(self, node, handle)
    }

    fn statx(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        handle: Option<FileHandle>,
        flags: u32,
        mask: u32,
    ) -> Result<(Statx, Duration)> {
        attributes::statx(self, node, handle, flags, mask)
    }

    fn setattr(&self, _: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
        attributes::setattr(self, node, set)
    }

    fn readlink(&self, _: &Caller<'_>, node: NodeId) -> Result<Vec<u8>> {
        names::readlink(self, node)
    }

    fn symlink(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, target: &CStr) -> Result<Entry> {
        names::symlink(self, caller, parent, name, target)
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
        names::mknod(self, caller, parent, name, (mode, umask), device)
    }

    fn mkdir(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        names::mkdir(self, caller, parent, name, (mode, umask))
    }

    fn unlink(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        names::remove(self, parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        names::remove(self, parent, name, AtFlags::REMOVEDIR)
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
        names::rename(self, (parent, name), (new_parent, new_name), flags)
    }

    fn link(&self, _: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        names::link(self, node, parent, name)
    }

    fn open(&self, _: &Caller<'_>, node: NodeId, flags: u32, open_flags: OpenRequestFlags) -> Result<Opened> {
        data::open(self, node, flags, open_flags)
    }

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
        names::create(self, caller, parent, name, (flags, mode, umask), open_flags)
    }

    fn tmpfile(
        &self,
        caller: &Caller<'_>,
        parent: NodeId,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<Created> {
        names::tmpfile(self, caller, parent, flags, (mode, umask))
    }

    fn read(&self, node: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        data::read(self, node, read, target)
    }

    fn write(&self, _: &Caller<'_>, node: NodeId, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        data::write(self, node, write, payload)
    }

    fn statfs(&self, node: NodeId) -> Result<Kstatfs> {
        attributes::statfs(self, node)
    }

    fn release(&self, node: NodeId, handle: FileHandle, flock_owner: Option<LockOwner>) -> Result<()> {
        flock_owner.inspect(|owner| self.locks.released(node, *owner));
        data::release(self, node, handle)
    }

    fn flush(&self, node: NodeId, handle: FileHandle, lock_owner: LockOwner) -> Result<()> {
        self.locks.flushed(node, lock_owner);
        sync::flush(self, node, handle)
    }

    fn fsync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        sync::fsync(self, node, handle, data_only)
    }

    fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        sync::fsync(self, node, handle, data_only)
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        sync::syncfs(self, node)
    }

    fn last_call(&self) -> Result<()> {
        sync::last_call(self)
    }

    fn setxattr(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        setxattr_flags: u32,
    ) -> Result<()> {
        xattr::setxattr(self, node, name, value, (flags, setxattr_flags))
    }

    fn getxattr(&self, _: &Caller<'_>, node: NodeId, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
        xattr::getxattr(self, node, name, buffer)
    }

    fn listxattr(&self, _: &Caller<'_>, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
        xattr::listxattr(self, node, buffer)
    }

    fn removexattr(&self, _: &Caller<'_>, node: NodeId, name: &CStr) -> Result<()> {
        xattr::removexattr(self, node, name)
    }

    fn opendir(&self, _: &Caller<'_>, node: NodeId, flags: u32) -> Result<Opened> {
        directory::opendir(self, node, flags)
    }

    fn readdir(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        directory::readdir(self, node, handle, offset, names)
    }

    fn readdirplus(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        names: &mut DirentBuffer,
    ) -> Result<()> {
        directory::readdirplus(self, node, handle, offset, names)
    }

    fn releasedir(&self, node: NodeId, handle: FileHandle) -> Result<()> {
        data::release(self, node, handle)
    }

    fn access(&self, caller: &Caller<'_>, node: NodeId, mask: u32) -> Result<()> {
        attributes::access(self, caller, node, mask)
    }

    fn getlk(&self, _: &Caller<'_>, node: NodeId, lock: &LkIn) -> Result<Lock> {
        locks::getlk(self, node, lock)
    }

    fn setlk(&self, _: &Caller<'_>, node: NodeId, lock: &LkIn, wait: Option<&Wait>) -> Result<()> {
        locks::setlk(self, node, lock, wait)
    }

    fn fallocate(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        data::fallocate(self, caller, node, handle, (offset, length), mode)
    }

    fn lseek(&self, node: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64> {
        data::lseek(self, node, handle, offset, whence)
    }

    fn ioctl(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        arguments: &IoctlIn,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<i32> {
        ioctl::ioctl(self, node, arguments, input, output)
    }

    fn copy_file_range(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        arguments: &CopyFileRangeIn,
    ) -> Result<usize> {
        data::copy_file_range(self, caller, node, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inodes::Key;

    /// Aim: a client that swaps names while it is looking one up cannot have a pipe or a device opened as a file.
    /// Method: an inode with the attributes of one file and the handle of another, as that race would leave it.
    #[test]
    fn a_handle_that_leads_to_another_file_is_never_opened() {
        let directory = tempfile::tempdir().unwrap();
        let share = std::fs::File::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("file"), b"x").unwrap();
        rustix::fs::mkfifoat(&share, c"pipe", Mode::from_raw_mode(0o600)).unwrap();
        let hosts = HostFileSystems::with_sync_call(|_, _| Ok(()));
        let fs = Passthrough::with_hosts(Options::new(directory.path()), hosts).unwrap();
        let place = fs.places.at(fs.root.place);
        assert!(place.has_handles, "this test needs root, for file handles");
        let expected = FileIdentity::of(&host::statx_at(share.as_fd(), c"file").unwrap());
        let candidate = Candidate {
            key: Key { place: place.index, ino: expected.ino },
            birth: expected.birth,
            kind: expected.kind,
        };
        let pipe = sys::name_to_handle(share.as_fd(), c"pipe").unwrap();
        let node = fs.inodes.add(&candidate, Location::by_handle(&pipe), false);
        // For reading and writing: so the pipe would be opened at once, and the test fail rather than hang.
        let flags = libc::O_RDWR as u32;
        assert_eq!(data::open(&fs, node, flags, OpenRequestFlags::empty()).unwrap_err(), Errno::ESTALE);
        assert_eq!(fs.getattr(&Caller::default(), node, None).unwrap_err(), Errno::ESTALE);
        let found = fs.lookup(&Caller::default(), NodeId::ROOT, Name::new(c"file").unwrap()).unwrap();
        assert_ne!(found.node, node.0, "the file itself is found");
        assert!(data::open(&fs, NodeId(found.node), 0, OpenRequestFlags::empty()).is_ok());
    }
}
