//! A share over a temporary directory, and a client's side of a transfer.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ashore_passthrough::{HostFileSystems, InodeFileHandles, Options, Passthrough};
use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write,
};
use ashore_wire::abi::SetattrIn;
use ashore_wire::flags::{InitFlags, OpenRequestFlags, SetattrValid, WriteFlags};
use ashore_wire::init::Agreement;
use ashore_wire::seam::{NoRoom, Payload, ReplyBody, TransferMode};
use ashore_wire::{FileHandle, Name, NodeId};
use rustix::io::ReadWriteFlags;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tempfile::TempDir;

pub(crate) const ROOT: NodeId = NodeId::ROOT;
pub(crate) const RDWR: u32 = libc::O_RDWR as u32;

/// How inodes may be held; most tests run over both.
pub(crate) const MODES: [InodeFileHandles; 2] = [InodeFileHandles::Prefer, InodeFileHandles::Never];

/// A shared directory, and how often the host file systems were synced.
pub(crate) struct Share {
    pub(crate) fs: Arc<Passthrough>,
    pub(crate) syncs: Arc<AtomicUsize>,
    pub(crate) directory: Arc<TempDir>,
}

impl Share {
    /// A share with default options.
    pub(crate) fn new() -> Share {
        Share::with(|_| {})
    }

    /// A share that holds inodes in this way.
    pub(crate) fn holding(mode: InodeFileHandles) -> Share {
        Share::with(|options| options.inode_file_handles = mode)
    }

    /// A share with other options.
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Share {
        let syncs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&syncs);
        let hosts = HostFileSystems::with_sync_call(move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        Share { syncs, ..Share::over(Arc::new(TempDir::new().unwrap()), &hosts, change) }
    }

    /// A share of this directory whose syncs go through `hosts`.
    pub(crate) fn over(
        directory: Arc<TempDir>,
        hosts: &Arc<HostFileSystems>,
        change: impl FnOnce(&mut Options),
    ) -> Share {
        // Files get the permissions the client asked for; all tests of this program want that.
        rustix::process::umask(rustix::fs::Mode::empty());
        let mut options = Options::new(directory.path());
        options.xattr = true;
        change(&mut options);
        let fs = Passthrough::with_hosts(options, Arc::clone(hosts)).unwrap();
        let flags = fs.features();
        fs.init(&Agreement { minor: 45, flags, max_write: 1 << 20 });
        Share { fs: Arc::new(fs), syncs: Arc::default(), directory }
    }

    /// Where this name is on the host.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn synced(&self) -> usize {
        self.syncs.load(Ordering::SeqCst)
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &str) -> Result<Entry> {
        with_name(name, |name| self.fs.lookup(&caller(), parent, name))
    }

    /// Looks a name up and forgets it is counted.
    pub(crate) fn node(&self, parent: NodeId, name: &str) -> NodeId {
        NodeId(self.lookup(parent, name).unwrap().node)
    }

    pub(crate) fn create(&self, parent: NodeId, name: &str) -> Result<Created> {
        with_name(name, |name| {
            self.fs.create(&caller(), parent, name, RDWR, 0o644, 0, OpenRequestFlags::empty())
        })
    }

    pub(crate) fn mkdir(&self, parent: NodeId, name: &str) -> Result<Entry> {
        with_name(name, |name| self.fs.mkdir(&caller(), parent, name, 0o755, 0))
    }

    pub(crate) fn unlink(&self, parent: NodeId, name: &str) -> Result<()> {
        with_name(name, |name| self.fs.unlink(&caller(), parent, name))
    }

    pub(crate) fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), flags: u32) -> Result<()> {
        with_name(from.1, |name| {
            with_name(to.1, |new_name| self.fs.rename(&caller(), from.0, name, to.0, new_name, flags))
        })
    }

    pub(crate) fn open(&self, node: NodeId, flags: u32) -> Result<Opened> {
        self.fs.open(&caller(), node, flags, OpenRequestFlags::empty())
    }

    pub(crate) fn write(&self, node: NodeId, handle: FileHandle, offset: u64, bytes: &[u8]) -> Result<usize> {
        let write = Write { handle, offset, size: bytes.len(), write_flags: WriteFlags::empty(), flags: 0 };
        self.fs.write(&caller(), node, &write, &mut Bytes(bytes.to_vec()))
    }

    pub(crate) fn read(&self, node: NodeId, handle: FileHandle, offset: u64, size: usize) -> Result<Vec<u8>> {
        self.read_if(node, handle, offset, size, true)
    }

    pub(crate) fn read_if(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        size: usize,
        may_wait: bool,
    ) -> Result<Vec<u8>> {
        let mut target = Bytes(vec![0; size]);
        let length = self.fs.read(node, &Read { handle, offset, size, may_wait }, &mut target)?;
        target.0.truncate(length);
        Ok(target.0)
    }

    /// The whole content of a file, by its node.
    pub(crate) fn content(&self, node: NodeId) -> Result<Vec<u8>> {
        let opened = self.open(node, 0)?;
        let content = self.read(node, opened.handle, 0, 1 << 16);
        self.release(node, opened.handle);
        content
    }

    pub(crate) fn release(&self, node: NodeId, handle: FileHandle) {
        self.fs.release(node, handle, None).unwrap();
    }

    pub(crate) fn getattr(&self, node: NodeId) -> Result<Attributes> {
        self.fs.getattr(&caller(), node, None)
    }

    pub(crate) fn setattr(&self, node: NodeId, valid: SetattrValid, values: SetattrIn) -> Result<Attributes> {
        self.fs.setattr(&caller(), node, &SetAttributes { valid, values: &values })
    }

    /// Makes a file with this content, and closes it.
    pub(crate) fn put(&self, parent: NodeId, name: &str, content: &[u8]) -> NodeId {
        let Created { entry, opened } = self.create(parent, name).unwrap();
        let node = NodeId(entry.node);
        assert_eq!(self.write(node, opened.handle, 0, content), Ok(content.len()));
        self.release(node, opened.handle);
        node
    }
}

/// The superuser of the client.
pub(crate) fn caller() -> Caller<'static> {
    Caller::default()
}

pub(crate) fn with_name<T>(name: &str, call: impl FnOnce(Name<'_>) -> T) -> T {
    let name = CString::new(name).unwrap();
    call(Name::new(&name).unwrap())
}

/// What a feature word of INIT would be without this feature.
pub(crate) fn init_without(fs: &Passthrough, feature: InitFlags) {
    fs.init(&Agreement { minor: 45, flags: fs.features() - feature, max_write: 1 << 20 });
}

/// A client's memory.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Payload for Bytes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        let length = len.min(self.0.len());
        Ok(rustix::io::pwritev2(
            file,
            &[IoSlice::new(&self.0[..length])],
            offset,
            ReadWriteFlags::from_bits_retain(mode.flags()),
        )?)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.0.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        length
    }
}

impl ReplyBody for Bytes {
    fn room(&self) -> Option<usize> {
        Some(self.0.len())
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> std::result::Result<(), NoRoom> {
        self.0.get_mut(position..position + bytes.len()).ok_or(NoRoom)?.copy_from_slice(bytes);
        Ok(())
    }

    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        let length = len.min(self.0.len());
        let mut buffers = [IoSliceMut::new(&mut self.0[..length])];
        Ok(rustix::io::preadv2(file, &mut buffers, offset, ReadWriteFlags::from_bits_retain(mode.flags()))?)
    }
}

/// Fails the test if it does not run as root.
pub(crate) fn need_root(why: &str) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root {why}; run it as root, as CI does");
}

/// A mount that goes away with the test, however that ends.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Mounts a file or directory at another place.
    pub(crate) fn bind(source: &Path, target: &Path) -> Mounted {
        need_root("to mount");
        rustix::mount::mount_bind(source, target).unwrap();
        Mounted(target.to_owned())
    }

    /// Mounts a new tmpfs.
    pub(crate) fn tmpfs(target: &Path, options: &str) -> Mounted {
        need_root("to mount");
        let options = CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str()).unwrap();
        Mounted(target.to_owned())
    }

    /// What is mounted there.
    pub(crate) fn already(target: &Path) -> Mounted {
        Mounted(target.to_owned())
    }

    /// Mounts a file system image by a loop device.
    pub(crate) fn image(image: &Path, target: &Path) -> Mounted {
        need_root("to mount");
        let status = std::process::Command::new("mount")
            .arg("-o")
            .arg("loop")
            .arg(image)
            .arg(target)
            .status()
            .unwrap();
        assert!(status.success(), "mount -o loop failed");
        Mounted(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: the share under test holds descriptors on it.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs `test` as on a Linux before 6.13: the calls for extended attributes that are new there are not known.
pub(crate) fn before_linux_6_13(test: fn()) {
    let filtered = std::thread::spawn(move || {
        let unknown = (463..=466).map(|call| (call, Vec::new())).collect();
        let answer = SeccompAction::Errno(libc::ENOSYS as u32);
        let here = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let filter = SeccompFilter::new(unknown, SeccompAction::Allow, answer, here).unwrap();
        // Of this thread alone.
        seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        test();
    });
    filtered.join().unwrap();
}
