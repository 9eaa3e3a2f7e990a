//! The places a share is made of: each device as reached through each mount.
//!
//! Most shares are one place. Others begin where another file system is mounted below, or a file or directory is
//! bind-mounted, also long after the share was opened. Places are few and never go away, so each has an index, and
//! finding one by it takes no lock.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ashore_server::Result;
use ashore_wire::Errno;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};

use crate::backing::Backing;
use crate::host::{DescriptorPath, FileIdentity, HostResult, statx_of};
use crate::hostfs::HostFileSystems;
use crate::options::{InodeFileHandles, Options, SyncScope};
use crate::sync::Ledger;
use crate::sys;

/// Places in the first chunk; each chunk has twice as many as the one before.
const FIRST_CHUNK: u32 = 16;
const CHUNKS: usize = 16;

/// A device as reached through one mount.
pub(crate) struct Place {
    /// Its index.
    pub(crate) index: u32,
    /// The device.
    pub(crate) device: u64,
    /// The mount.
    pub(crate) mount_id: u64,
    /// What the client changed there.
    pub(crate) ledger: Arc<Ledger>,
    /// Whether its inodes can be located by handle.
    pub(crate) has_handles: bool,
    /// Whether closing a file there may bring an error that nothing else brings.
    pub(crate) flushes_on_close: bool,
    /// Reads with RWF_NOWAIT do not work there.
    pub(crate) always_waits: AtomicBool,
    /// A file on that mount, to open others by handle.
    mount: Option<OwnedFd>,
}

impl Place {
    /// Opens a file by its handle.
    pub(crate) fn open_by_handle(&self, handle: &sys::RawHandle, flags: OFlags) -> Result<OwnedFd> {
        let mount = self.mount.as_ref().ok_or(Errno::ESTALE)?;
        let mut opened = sys::open_by_handle(mount.as_fd(), handle, flags);
        if matches!(opened, Err(rustix::io::Errno::NOMEM)) {
            // So says Linux of a file whose last name is being removed at this moment, too. A moment later it is ESTALE.
            opened = sys::open_by_handle(mount.as_fd(), handle, flags);
        }
        opened.told()
    }
}

/// All places of one share.
pub(crate) struct Places {
    hosts: Arc<HostFileSystems>,
    policy: InodeFileHandles,
    require_durable: bool,
    sync_scope: SyncScope,
    /// /proc/self/fd, by which a path descriptor is opened for good.
    descriptors: OwnedFd,
    chunks: [OnceLock<Box<[OnceLock<Place>]>>; CHUNKS],
    by_identity: Mutex<HashMap<(u64, u64), u32>>,
    ledgers: RwLock<Vec<Arc<Ledger>>>,
    /// Devices that were refused, so that it is said once.
    refused: Mutex<HashSet<u64>>,
}

/// Why a place cannot be used.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// File handles are mandatory and there are none.
    NoHandles(rustix::io::Errno),
    /// It cannot be stable, for this reason, and must be.
    NotDurable(String),
    /// There are too many.
    TooMany,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Errno {
        match refusal {
            Refusal::NoHandles(_) => Errno::EOPNOTSUPP,
            Refusal::NotDurable(_) => Errno::EPERM,
            Refusal::TooMany => Errno::ENFILE,
        }
    }
}

impl Places {
    /// No places yet.
    pub(crate) fn new(hosts: Arc<HostFileSystems>, options: &Options, descriptors: OwnedFd) -> Places {
        Places {
            hosts,
            policy: options.inode_file_handles,
            require_durable: options.require_durable,
            sync_scope: options.sync_scope,
            descriptors,
            chunks: Default::default(),
            by_identity: Mutex::default(),
            ledgers: RwLock::default(),
            refused: Mutex::default(),
        }
    }

    /// The place with this index, which has been given out.
    pub(crate) fn at(&self, index: u32) -> &Place {
        self.cell(index).and_then(OnceLock::get).expect("an index is given out when its place is there")
    }

    /// The place that a file is at, if it has been there before.
    pub(crate) fn known(&self, identity: &FileIdentity) -> Option<&Place> {
        let index = *self.by_identity.lock().get(&(identity.device, identity.mount_id))?;
        Some(self.at(index))
    }

    /// The place that `file`, a path descriptor, is at; a new one if need be.
    pub(crate) fn enter(
        &self,
        identity: &FileIdentity,
        file: BorrowedFd<'_>,
    ) -> std::result::Result<&Place, Refusal> {
        // Held to the end: two requests must not make the same place. It happens once a mount.
        let mut by_identity = self.by_identity.lock();
        let key = (identity.device, identity.mount_id);
        if let Some(index) = by_identity.get(&key) {
            return Ok(self.at(*index));
        }
        let index = by_identity.len() as u32;
        let place = self.survey(index, identity, file)?;
        let cell = self.cell(index).ok_or(Refusal::TooMany)?;
        let place = cell.get_or_init(|| place);
        by_identity.insert(key, index);
        Ok(place)
    }

    /// What the client changed, of each host file system.
    pub(crate) fn ledgers(&self) -> Vec<Arc<Ledger>> {
        self.ledgers.read().clone()
    }

    /// Opens a file for good that a path descriptor leads to. Special files must not come here.
    pub(crate) fn reopen(&self, file: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = DescriptorPath::of(file);
        rustix::fs::openat(&self.descriptors, path.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// /proc/self/fd.
    pub(crate) fn descriptors(&self) -> BorrowedFd<'_> {
        self.descriptors.as_fd()
    }

    fn cell(&self, index: u32) -> Option<&OnceLock<Place>> {
        let chunk = (index / FIRST_CHUNK + 1).ilog2();
        let before = FIRST_CHUNK * ((1 << chunk) - 1);
        let cells = self.chunks.get(chunk as usize)?;
        let cells = cells.get_or_init(|| (0..FIRST_CHUNK << chunk).map(|_| OnceLock::new()).collect());
        cells.get((index - before) as usize)
    }

    fn survey(
        &self,
        index: u32,
        identity: &FileIdentity,
        file: BorrowedFd<'_>,
    ) -> std::result::Result<Place, Refusal> {
        let mount = self.open_for_sync(identity, file);
        let backing = mount.as_ref().map(|mount| Backing::of(mount, identity.device));
        self.judge(identity.device, backing.as_ref())?;
        let has_handles = self.probe_handles(index, file, mount.as_ref().map(AsFd::as_fd))?;
        let duplicate = mount.as_ref().and_then(|mount| rustix::io::fcntl_dupfd_cloexec(mount, 0).ok());
        Ok(Place {
            index,
            device: identity.device,
            mount_id: identity.mount_id,
            ledger: self.ledger(identity.device, duplicate, backing.as_ref()),
            has_handles,
            flushes_on_close: rustix::fs::fstatfs(file)
                .is_ok_and(|numbers| Backing::flushes_on_close(&numbers)),
            always_waits: AtomicBool::new(false),
            mount: mount.filter(|_| has_handles),
        })
    }

    /// A descriptor by which the file system can be synced: not a path descriptor, so of a file that is safe to open.
    fn open_for_sync(&self, identity: &FileIdentity, file: BorrowedFd<'_>) -> Option<OwnedFd> {
        if !matches!(identity.kind, libc::S_IFDIR | libc::S_IFREG) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.reopen(file, flags);
        opened.inspect_err(|errno| tracing::debug!("a place cannot be opened to sync it: {errno}")).ok()
    }

    /// Says aloud what a file system cannot do, once for each.
    fn judge(&self, device: u64, backing: Option<&Backing>) -> std::result::Result<(), Refusal> {
        let Some(Backing { kind, mount_point, weakness: Some(weakness) }) = backing else { return Ok(()) };
        if self.ledgers.read().iter().any(|ledger| ledger.host().device() == device) {
            return Ok(());
        }
        if self.require_durable {
            if !self.refused.lock().insert(device) {
                return Err(Refusal::NotDurable(weakness.clone()));
            }
            tracing::error!("refusing {mount_point} ({kind}), which cannot be made stable: {weakness}");
            return Err(Refusal::NotDurable(weakness.clone()));
        }
        tracing::warn!("a sync cannot make {mount_point} ({kind}) stable: {weakness}");
        Ok(())
    }

    fn probe_handles(
        &self,
        index: u32,
        file: BorrowedFd<'_>,
        mount: Option<BorrowedFd<'_>>,
    ) -> std::result::Result<bool, Refusal> {
        if self.policy == InodeFileHandles::Never {
            return Ok(false);
        }
        let opened = sys::name_to_handle(file, c"").and_then(|handle| {
            sys::open_by_handle(mount.ok_or(rustix::io::Errno::ACCESS)?, &handle, OFlags::PATH)
        });
        match opened {
            Ok(_) => Ok(true),
            Err(errno) if self.policy == InodeFileHandles::Mandatory => Err(Refusal::NoHandles(errno)),
            Err(errno) => {
                if index == 0 {
                    tracing::info!("file handles cannot be used ({errno}); each inode takes a descriptor");
                }
                Ok(false)
            }
        }
    }

    fn ledger(&self, device: u64, descriptor: Option<OwnedFd>, backing: Option<&Backing>) -> Arc<Ledger> {
        let mut ledgers = self.ledgers.write();
        if let Some(ledger) = ledgers.iter().find(|ledger| ledger.host().device() == device) {
            if let Some(descriptor) = descriptor {
                ledger.host().offer(descriptor);
            }
            return Arc::clone(ledger);
        }
        let tracked = self.sync_scope == SyncScope::Share && self.is_exact_by_inode(device, backing);
        let ledger = Arc::new(Ledger::new(self.hosts.reach(device, descriptor), tracked));
        ledgers.push(Arc::clone(&ledger));
        ledger
    }

    /// Whether fsync(2) of all that was changed is as good as a sync of the whole; says so if it is not.
    fn is_exact_by_inode(&self, device: u64, backing: Option<&Backing>) -> bool {
        let exact = backing.is_some_and(|backing| backing.is_exact_by_inode(device));
        if !exact {
            let (kind, mount_point) =
                backing.map_or(("unknown", "?"), |backing| (&backing.kind, &backing.mount_point));
            tracing::warn!(
                "--sync-scope share: {mount_point} ({kind}) is synced as a whole all the same; that fsync of each file \
                 and directory is enough is known of ext4 with a journal and of xfs only"
            );
        }
        exact
    }

    /// A file is about to be changed through `opened`. If its file system could not be opened for syncing before, this
    /// is the last chance.
    pub(crate) fn before_change(&self, place: &Place, opened: BorrowedFd<'_>) {
        if place.ledger.host().can_sync() {
            return;
        }
        let again =
            self.reopen(opened, OFlags::RDONLY).or_else(|_| rustix::io::fcntl_dupfd_cloexec(opened, 0));
        if let Ok(descriptor) = again {
            place.ledger.host().offer(descriptor);
        }
    }
}

impl Place {
    /// Whether a read without waiting is worth a try.
    pub(crate) fn may_not_wait(&self) -> bool {
        !self.always_waits.load(Ordering::Relaxed)
    }

    /// Whether this is where that file is.
    pub(crate) fn holds(&self, identity: &FileIdentity) -> bool {
        (self.device, self.mount_id) == (identity.device, identity.mount_id)
    }
}

/// The identity of an open file.
pub(crate) fn identity_of(file: impl AsFd) -> rustix::io::Result<FileIdentity> {
    statx_of(file).map(|stat| FileIdentity::of(&stat))
}
