//! A server that breaks one promise, on purpose: what `ashore doctor` must find.
//!
//!     broken-server FAULT --shared-dir DIR --socket-path PATH
//!
//! It is our server with one thing put wrong between its parts; see [`Fault`].

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ashore_passthrough::{CachePolicy, Options, Passthrough};
use ashore_server::*;
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};
use ashore_wire::abi::*;
use ashore_wire::flags::{InitFlags, OpenRequestFlags};
use ashore_wire::init::Agreement;
use ashore_wire::seam::{Backlog, Exchange, NothingWaits, Payload, ReplyBody, RequestQueue};
use ashore_wire::{DirentBuffer, Errno, FileHandle, LockOwner, Name, NodeId, Opcode, Request};
use parking_lot::Mutex;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Nothing: the server is as it should be.
    None,
    /// SYNCFS is not implemented.
    SyncfsUnknown,
    /// SYNCFS is answered at once.
    SyncfsHollow,
    /// SYNCFS makes the root directory stable, and nothing else.
    SyncfsRootOnly,
    /// SYNCFS takes no notice of requests that wait in other queues.
    SyncfsOvertakes,
    /// SYNCFS succeeds for nodes that do not exist.
    SyncfsAnyNode,
    /// SYNCFS forgets errors.
    SyncfsSwallows,
    /// SYNCFS opens the file system anew each time, so that an error told to another is lost.
    SyncfsFreshly,
    /// SYNCFS waits until no more writes come.
    SyncfsDrains,
    /// While a SYNCFS is carried out, no queue is served.
    SyncfsStalls,
    /// Each SYNCFS is a sync of the host of its own.
    SyncfsEach,
    /// FSYNC is answered at once.
    FsyncHollow,
    /// FSYNCDIR fails.
    FsyncdirBad,
    /// O_DSYNC of a write is dropped, with a cache mode in which the guest relies on it.
    DsyncDropped,
    /// DESTROY, disconnection and signals are no syncs.
    NoLastCall,
    /// Write-back is granted, and nothing is done for guests that send SYNCFS before their data.
    EarlySync,
}

const FAULTS: &[(&str, Fault)] = &[
    ("none", Fault::None),
    ("syncfs-unknown", Fault::SyncfsUnknown),
    ("syncfs-hollow", Fault::SyncfsHollow),
    ("syncfs-root-only", Fault::SyncfsRootOnly),
    ("syncfs-overtakes", Fault::SyncfsOvertakes),
    ("syncfs-any-node", Fault::SyncfsAnyNode),
    ("syncfs-swallows", Fault::SyncfsSwallows),
    ("syncfs-freshly", Fault::SyncfsFreshly),
    ("syncfs-drains", Fault::SyncfsDrains),
    ("syncfs-stalls", Fault::SyncfsStalls),
    ("syncfs-each", Fault::SyncfsEach),
    ("fsync-hollow", Fault::FsyncHollow),
    ("fsyncdir-bad", Fault::FsyncdirBad),
    ("dsync-dropped", Fault::DsyncDropped),
    ("no-last-call", Fault::NoLastCall),
    ("early-sync", Fault::EarlySync),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("the fault comes first");
    let fault = FAULTS.iter().find(|(known, _)| *known == name).expect("a known fault").1;
    let (mut shared_dir, mut socket) = (PathBuf::new(), PathBuf::new());
    while let (Some(option), Some(value)) = (arguments.next(), arguments.next()) {
        match option.as_str() {
            "--shared-dir" => shared_dir = value.into(),
            "--socket-path" => socket = value.into(),
            // Not listened to, which is a fault of its own.
            "--sync-scope" => {}
            _ => panic!("{option} is no option"),
        }
    }
    serve(fault, shared_dir, socket);
}

fn serve(fault: Fault, shared_dir: PathBuf, socket: PathBuf) {
    let options = Options {
        writeback: fault == Fault::EarlySync,
        cache: if fault == Fault::DsyncDropped { CachePolicy::Never } else { CachePolicy::Auto },
        ..Options::new(&shared_dir)
    };
    let broken = Broken {
        inner: Passthrough::new(options).expect("the directory can be shared"),
        fault,
        root: File::open(&shared_dir).expect("the directory can be opened"),
        shared_dir,
        last_write: Mutex::new(Instant::now()),
        shared: Arc::default(),
    };
    let shared = Arc::clone(&broken.shared);
    let early_sync_grace = match fault {
        Fault::EarlySync => Duration::ZERO,
        _ => Limits::default().early_sync_grace,
    };
    let session = Session::new(broken, Limits { early_sync_grace, ..Limits::default() });
    let listener = Listener::bind(&socket).expect("the socket can be made");
    let workers = Arc::clone(&session);
    let options = DeviceOptions { request_queues: 2, ..DeviceOptions::default() };
    let device = Device::new(options, move |_, queue| {
        let queue = BrokenQueue { inner: queue, fault, shared: Arc::clone(&shared), took_sync: false };
        Worker::new(Arc::clone(&workers)).run(queue);
    });
    let device = device.expect("threads can be made");
    let stop = device.stop_handle();
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).expect("signals come");
    std::thread::spawn(move || {
        signals.forever().next();
        stop.stop();
    });
    // A link that ends in disorder is an end too.
    _ = device.serve(&listener);
    _ = session.end();
}

/// What queues and file system know of each other.
#[derive(Default)]
struct Shared {
    /// SYNCFS taken and not carried out.
    syncs_wanted: AtomicUsize,
    /// A SYNCFS is being carried out.
    is_syncing: AtomicBool,
}

struct Broken {
    inner: Passthrough,
    fault: Fault,
    root: File,
    shared_dir: PathBuf,
    last_write: Mutex<Instant>,
    shared: Arc<Shared>,
}

impl Broken {
    fn sync_once(&self, node: NodeId) -> Result<()> {
        match self.fault {
            Fault::SyncfsUnknown => Err(Errno::ENOSYS),
            // Nodes are looked at all the same: nothing else is to be wrong.
            Fault::SyncfsHollow => self.known(node),
            Fault::SyncfsRootOnly => {
                self.known(node)?;
                self.root.sync_all().map_err(|_| Errno::EIO)
            }
            Fault::SyncfsAnyNode => self.inner.syncfs(node).or(Ok(())),
            Fault::SyncfsSwallows => {
                self.known(node)?;
                self.inner.syncfs(node).or(Ok(()))
            }
            Fault::SyncfsFreshly => {
                self.known(node)?;
                let fresh = File::open(&self.shared_dir).map_err(|_| Errno::EIO)?;
                rustix::fs::syncfs(fresh).map_err(|_| Errno::EIO)
            }
            Fault::SyncfsDrains => {
                while self.last_write.lock().elapsed() < Duration::from_millis(60) {
                    sleep(Duration::from_millis(1));
                }
                self.inner.syncfs(node)
            }
            Fault::SyncfsEach => {
                self.known(node)?;
                for _ in 0..self.shared.syncs_wanted.swap(0, Ordering::SeqCst).max(1) {
                    rustix::fs::syncfs(&self.root).map_err(|_| Errno::EIO)?;
                    // So that who looks on sees one after the other, also from a busy processor.
                    sleep(Duration::from_millis(4));
                }
                Ok(())
            }
            _ => self.inner.syncfs(node),
        }
    }

    fn known(&self, node: NodeId) -> Result<()> {
        self.inner.statfs(node).map(drop)
    }
}

impl FileSystem for Broken {
    fn syncfs(&self, node: NodeId) -> Result<()> {
        self.shared.is_syncing.store(true, Ordering::SeqCst);
        let synced = self.sync_once(node);
        self.shared.is_syncing.store(false, Ordering::SeqCst);
        synced
    }

    fn last_call(&self) -> Result<()> {
        if self.fault == Fault::NoLastCall { Ok(()) } else { self.inner.last_call() }
    }

    fn fsync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        if self.fault == Fault::FsyncHollow {
            return self.inner.lseek(node, handle, 0, 0).map(drop);
        }
        self.inner.fsync(node, handle, data_only)
    }

    fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        if self.fault == Fault::FsyncdirBad {
            return Err(Errno::EBADF);
        }
        self.inner.fsyncdir(node, handle, data_only)
    }

    fn write(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        write: &Write,
        payload: &mut dyn Payload,
    ) -> Result<usize> {
        if self.fault == Fault::SyncfsOvertakes {
            // A slow disk: what is overtaken comes too late for the host's sync too.
            sleep(Duration::from_millis(4));
        }
        let dropped = Write { flags: 0, ..*write };
        let write = if self.fault == Fault::DsyncDropped { &dropped } else { write };
        let written = self.inner.write(caller, node, write, payload);
        *self.last_write.lock() = Instant::now();
        written
    }

    fn open(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        flags: u32,
        open_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        /// `O_DSYNC` and `O_SYNC`.
        const SYNC_FLAGS: u32 = 0o4_010_000;
        let flags = if self.fault == Fault::DsyncDropped { flags & !SYNC_FLAGS } else { flags };
        self.inner.open(caller, node, flags, open_flags)
    }

    ashore_testkit::delegate! {
        fn features(&self) -> InitFlags;
        fn init(&self, agreement: &Agreement);
        fn destroy(&self);
        fn lookup(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry>;
        fn forget(&self, node: NodeId, lookups: u64);
        fn getattr(
            &self, caller: &Caller<'_>, node: NodeId, handle: Option<FileHandle>
        ) -> Result<Attributes>;
        fn setattr(&self, caller: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes>;
        fn readlink(&self, caller: &Caller<'_>, node: NodeId) -> Result<Vec<u8>>;
        fn symlink(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, target: &CStr
        ) -> Result<Entry>;
        fn mknod(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, mode: u32, umask: u32,
            device: u32
        ) -> Result<Entry>;
        fn mkdir(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, mode: u32, umask: u32
        ) -> Result<Entry>;
        fn unlink(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()>;
        fn rmdir(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()>;
        fn rename(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, new_parent: NodeId,
            new_name: Name<'_>, flags: u32
        ) -> Result<()>;
        fn link(&self, caller: &Caller<'_>, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry>;
        fn create(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, flags: u32, mode: u32,
            umask: u32, open_flags: OpenRequestFlags
        ) -> Result<Created>;
        fn read(&self, node: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize>;
        fn statfs(&self, node: NodeId) -> Result<Kstatfs>;
        fn release(&self, node: NodeId, handle: FileHandle, lock_owner: Option<LockOwner>) -> Result<()>;
        fn flush(&self, node: NodeId, handle: FileHandle, lock_owner: LockOwner) -> Result<()>;
        fn setxattr(
            &self, caller: &Caller<'_>, node: NodeId, name: &CStr, value: &[u8], flags: u32,
            setxattr_flags: u32
        ) -> Result<()>;
        fn getxattr(
            &self, caller: &Caller<'_>, node: NodeId, name: &CStr, buffer: &mut [u8]
        ) -> Result<usize>;
        fn opendir(&self, caller: &Caller<'_>, node: NodeId, flags: u32) -> Result<Opened>;
        fn readdir(
            &self, caller: &Caller<'_>, node: NodeId, handle: FileHandle, offset: u64,
            names: &mut DirentBuffer
        ) -> Result<()>;
        fn readdirplus(
            &self, caller: &Caller<'_>, node: NodeId, handle: FileHandle, offset: u64,
            names: &mut DirentBuffer
        ) -> Result<()>;
        fn releasedir(&self, node: NodeId, handle: FileHandle) -> Result<()>;
        fn access(&self, caller: &Caller<'_>, node: NodeId, mask: u32) -> Result<()>;
        fn fallocate(
            &self, caller: &Caller<'_>, node: NodeId, handle: FileHandle, offset: u64, length: u64,
            mode: u32
        ) -> Result<()>;
        fn lseek(&self, node: NodeId, handle: FileHandle, offset: u64, whence: u32) -> Result<u64>;
    }
}

/// A queue that looks at what passes, and at times holds it back.
struct BrokenQueue<Q> {
    inner: Q,
    fault: Fault,
    shared: Arc<Shared>,
    took_sync: bool,
}

impl<Q: RequestQueue> RequestQueue for BrokenQueue<Q> {
    type Exchange = BrokenExchange<Q::Exchange>;

    fn next(&mut self) -> Option<Self::Exchange> {
        if self.fault == Fault::SyncfsStalls {
            // The last one was a SYNCFS: its thread shall have begun with it.
            if std::mem::take(&mut self.took_sync) {
                sleep(Duration::from_millis(5));
            }
            while self.shared.is_syncing.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(1));
            }
        }
        let mut exchange = self.inner.next()?;
        let (head, bulk) = exchange.parts();
        let request = Request::parse(head, bulk.len(), Default::default());
        if request.is_ok_and(|request| request.opcode == Opcode::Syncfs) {
            self.shared.syncs_wanted.fetch_add(1, Ordering::SeqCst);
            self.took_sync = true;
        }
        Some(BrokenExchange { inner: exchange, blind: self.fault == Fault::SyncfsOvertakes })
    }
}

/// An exchange that may not see what waits in other queues.
struct BrokenExchange<E> {
    inner: E,
    blind: bool,
}

impl<E: Exchange> Exchange for BrokenExchange<E> {
    type Bulk = E::Bulk;

    fn parts(&mut self) -> (&[u8], &mut E::Bulk) {
        self.inner.parts()
    }

    fn finish(self, header: OutHeader) {
        self.inner.finish(header);
    }

    fn finish_without_reply(self) {
        self.inner.finish_without_reply();
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        if self.blind { Arc::new(NothingWaits) } else { self.inner.backlog() }
    }
}
