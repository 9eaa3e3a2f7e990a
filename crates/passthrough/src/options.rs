//! What can be chosen about a share, and why one cannot be opened.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ashore_wire::flags::{InitFlags, OpenReplyFlags};

use crate::ids::IdMap;
use crate::xattrmap::XattrMap;

/// Long enough that a client never asks again: a day, as the incumbent has it.
const LONG_TIMEOUT: Duration = Duration::from_secs(86_400);
/// How long names and attributes may be remembered with [`CachePolicy::Auto`].
const AUTO_TIMEOUT: Duration = Duration::from_secs(1);
/// Descriptors kept open for inodes that could be opened again by handle.
const DESCRIPTOR_BOUND: usize = 1000;

/// How a host directory is shared.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory, or the single file, to share.
    pub shared_dir: PathBuf,
    /// How long a client may remember names, attributes and data.
    pub cache: CachePolicy,
    /// How long a client may remember that there is no such name. Until then it does not see what others make under it.
    pub negative_timeout: Duration,
    /// Whether a client may write back from its cache when it likes. Linux guests that do not wait for their own
    /// write-back then break the promise on their side; off by default.
    pub writeback: bool,
    /// Refuse every change with EROFS.
    pub readonly: bool,
    /// Serve extended attributes; without this they are ENOSYS, unless one of the next three wants them.
    pub xattr: bool,
    /// Other names for extended attributes on the host.
    pub xattr_map: Option<XattrMap>,
    /// Access control lists.
    pub posix_acl: Negotiation,
    /// Security labels for new files, as SELinux wants them.
    pub security_label: Negotiation,
    /// Users of the client, and who they are on the host.
    pub uids: IdMap,
    /// Groups likewise.
    pub gids: IdMap,
    /// How inodes are held.
    pub inode_file_handles: InodeFileHandles,
    /// Tell the client where other host file systems begin, so that it mounts each of its own.
    pub announce_submounts: bool,
    /// Honour O_DIRECT of the client on the host.
    pub allow_direct_io: bool,
    /// Allow shared mappings of files that bypass the client's cache (`never` and `metadata`).
    pub allow_mmap: bool,
    /// Send names together with their attributes.
    pub readdirplus: bool,
    /// Clear set-user-id and set-group-id bits here rather than in the client.
    pub killpriv_v2: bool,
    /// Honour O_NOATIME of the client on the host.
    pub preserve_noatime: bool,
    /// Who sees locks of fcntl(2).
    pub posix_lock: LockScope,
    /// Who sees locks of flock(2).
    pub flock: LockScope,
    /// When changes become stable.
    pub durability: Durability,
    /// What a sync covers on a host file system.
    pub sync_scope: SyncScope,
    /// Make FLUSH of a written file as good as FSYNC, for clients that know no FSYNC.
    pub flush_fsync: bool,
    /// The client's kernel may read and write files itself, if it is on this machine; see [`crate::Passthrough::give_files_to`].
    /// Not granted with a durability other than [`Durability::OnSync`], with `flush_fsync`, with [`SyncScope::Share`] and with
    /// write-back, which all need to see each write.
    pub kernel_io: bool,
    /// Refuse what cannot be stable rather than warn: such host file systems, and a write-back cache.
    pub require_durable: bool,
    /// How long a host file system may take to sync before a client is told EIO; `None`: as long as it does.
    pub sync_timeout: Option<Duration>,
    /// Descriptors kept open for inodes that could be opened again by handle, at most.
    pub descriptor_bound: usize,
}

impl Options {
    /// The defaults for sharing `shared_dir`. They are the incumbent's.
    pub fn new(shared_dir: impl Into<PathBuf>) -> Options {
        Options {
            shared_dir: shared_dir.into(),
            cache: CachePolicy::Auto,
            negative_timeout: Duration::ZERO,
            writeback: false,
            readonly: false,
            xattr: false,
            xattr_map: None,
            posix_acl: Negotiation::Never,
            security_label: Negotiation::Never,
            uids: IdMap::default(),
            gids: IdMap::default(),
            inode_file_handles: InodeFileHandles::Prefer,
            announce_submounts: true,
            allow_direct_io: false,
            allow_mmap: false,
            readdirplus: true,
            killpriv_v2: false,
            preserve_noatime: false,
            posix_lock: LockScope::Guest,
            flock: LockScope::Guest,
            durability: Durability::OnSync,
            sync_scope: SyncScope::Filesystem,
            flush_fsync: false,
            kernel_io: false,
            require_durable: false,
            sync_timeout: None,
            descriptor_bound: DESCRIPTOR_BOUND,
        }
    }

    /// The features of INIT that are implemented under these options, beside those the server itself does.
    pub(crate) fn features(&self) -> InitFlags {
        let mut features = InitFlags::PARALLEL_DIROPS
            | InitFlags::AUTO_INVAL_DATA
            | InitFlags::ASYNC_DIO
            | InitFlags::ATOMIC_O_TRUNC
            | InitFlags::HAS_IOCTL_DIR
            | InitFlags::CREATE_SUPP_GROUP
            | InitFlags::ALLOW_IDMAP;
        // With `never` a client would ask for the attributes of each name again anyway.
        let readdirplus = self.readdirplus && self.cache != CachePolicy::Never;
        features.set(InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO, readdirplus);
        // Where a link leads never changes. But with "auto", and on Linux before 6.14, a cached link is cut at the length in
        // its attributes, which is 0 in /proc and the like.
        let long = matches!(self.cache, CachePolicy::Metadata | CachePolicy::Always);
        features.set(InitFlags::CACHE_SYMLINKS, long);
        features.set(InitFlags::SUBMOUNTS, self.announce_submounts);
        features.set(InitFlags::WRITEBACK_CACHE, self.writeback_granted());
        // Under another name the host does not know a capability, and would not take it from a file that is written; so
        // the client has to.
        let capability = c"security.capability";
        let mapped = self.xattr_map.as_ref().is_some_and(|map| !map.keeps(capability));
        features.set(InitFlags::HANDLE_KILLPRIV_V2, self.killpriv_v2 && !mapped);
        features.set(InitFlags::SECURITY_CTX, self.security_label != Negotiation::Never);
        features.set(InitFlags::DIRECT_IO_ALLOW_MMAP, self.allow_mmap);
        features.set(InitFlags::POSIX_LOCKS, self.posix_lock != LockScope::Guest);
        features.set(InitFlags::FLOCK_LOCKS, self.flock != LockScope::Guest);
        features.set(InitFlags::PASSTHROUGH, self.kernel_io_granted());
        features
    }

    /// Whether there are extended attributes at all.
    pub(crate) fn serves_xattrs(&self) -> bool {
        let negotiated = [self.posix_acl, self.security_label];
        self.xattr || self.xattr_map.is_some() || negotiated.iter().any(|one| *one != Negotiation::Never)
    }

    /// Where each write is to be seen here, the kernel must not make it itself.
    fn kernel_io_granted(&self) -> bool {
        let seen =
            self.durability != Durability::OnSync || self.flush_fsync || self.sync_scope == SyncScope::Share;
        self.kernel_io && !seen && !self.writeback_granted()
    }

    /// With `strict` an acknowledged change is stable, and what sits in a client's cache is acknowledged to its
    /// programs; so it must not. With `require_durable` neither: Linux 6.18.21, 6.19.11, 7.0 and later return from sync(2)
    /// before all of such a cache was sent, and cannot be told from others.
    pub(crate) fn writeback_granted(&self) -> bool {
        self.writeback && self.durability != Durability::Strict && !self.require_durable
    }
}

/// How long a client may remember names, attributes and data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CachePolicy {
    /// Nothing; data goes past the client's cache.
    Never,
    /// Names and attributes for a day; data goes past the client's cache.
    Metadata,
    /// Names and attributes for a second, data from open to close.
    #[default]
    Auto,
    /// Everything for a day: for shares that nobody else changes.
    Always,
}

impl CachePolicy {
    /// How long names and attributes may be remembered.
    pub(crate) fn timeout(self) -> Duration {
        match self {
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Auto => AUTO_TIMEOUT,
            CachePolicy::Metadata | CachePolicy::Always => LONG_TIMEOUT,
        }
    }

    /// How a client is to treat an open file.
    pub(crate) fn file_flags(self) -> OpenReplyFlags {
        match self {
            CachePolicy::Never | CachePolicy::Metadata => OpenReplyFlags::DIRECT_IO,
            CachePolicy::Auto => OpenReplyFlags::empty(),
            CachePolicy::Always => OpenReplyFlags::KEEP_CACHE,
        }
    }

    /// How a client is to treat an open directory.
    pub(crate) fn directory_flags(self) -> OpenReplyFlags {
        match self {
            CachePolicy::Never | CachePolicy::Auto => OpenReplyFlags::empty(),
            CachePolicy::Metadata | CachePolicy::Always => {
                OpenReplyFlags::CACHE_DIR | OpenReplyFlags::KEEP_CACHE
            }
        }
    }
}

/// How inodes that a client has looked up are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum InodeFileHandles {
    /// By one descriptor each.
    Never,
    /// By file handle where the server may use them and the host file system has them, by descriptor elsewhere.
    #[default]
    Prefer,
    /// By file handle; what has none cannot be looked up.
    Mandatory,
}

/// Whether a feature is offered to a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Negotiation {
    /// It is not.
    #[default]
    Never,
    /// It is, if the host can; a client may do without.
    Auto,
    /// It is; a host that cannot is an error at start, and a client that does without is refused.
    Always,
}

/// Who sees the locks that a client's processes take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum LockScope {
    /// The client alone: it keeps them to itself and does not ask. What two clients lock, both have.
    #[default]
    Guest,
    /// Everybody: processes of the host, and all other clients of this kind.
    Host,
    /// Nobody: to lock fails with ENOSYS, rather than succeed and lock out no other client.
    Refuse,
}

/// When changes become stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Durability {
    /// When a client syncs, leaves, or asks for it with a single write.
    #[default]
    OnSync,
    /// Before each change is acknowledged. No write-back cache is granted.
    Strict,
    /// As virtiofsd: a sync covers one host file system, leaving covers none, and the wishes of single writes are
    /// ignored. Warned about.
    Relaxed,
}

/// What a sync covers on each host file system that was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum SyncScope {
    /// All of it, by syncfs(2): also what others on the host changed there.
    #[default]
    Filesystem,
    /// What was changed through this share, by fsync(2) of each file and directory. All of it where that is not exact:
    /// on other file systems than ext4 with a journal and XFS, after very many changes, and at the first sync.
    Share,
}

/// Why a directory cannot be shared: what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shared directory cannot be opened.
    #[error(
        "cannot open the shared directory {path}: {source}; check that it exists and that this user may read it"
    )]
    OpenShare {
        /// The shared directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The share is neither a directory nor a regular file.
    #[error("{path} is neither a directory nor a regular file; share the directory it is in")]
    NotShareable {
        /// What was to be shared.
        path: PathBuf,
    },
    /// The host's kernel is too old.
    #[error("the host's kernel does not have openat2(2); Linux 5.8 or newer is needed")]
    KernelTooOld,
    /// The table of this process's descriptors cannot be opened.
    #[error("cannot open /proc/self/fd: {source}; mount /proc where the server runs")]
    NoProc {
        /// What the host said.
        source: io::Error,
    },
    /// File handles are mandatory and cannot be used.
    #[error(
        "file handles cannot be used on {path}: {source}; give the server CAP_DAC_READ_SEARCH, share a file system \
         that has file handles, or use --inode-file-handles=prefer"
    )]
    NoFileHandles {
        /// The shared directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Access control lists are wanted, and the host has none.
    #[error(
        "{path} is on a file system without access control lists; share another, or use --posix-acl=auto"
    )]
    NoAcls {
        /// The shared directory.
        path: PathBuf,
    },
    /// Access control lists name users and groups by ids, which nobody would translate.
    #[error(
        "--posix-acl does not go with ids that are translated; use --uid-map and --gid-map, or leave one of them out"
    )]
    AclsOfOthers,
    /// Access control lists under another name mean nothing to the host.
    #[error(
        "--posix-acl does not go with this --xattrmap; let it begin with \":ok:all:system.posix_acl_:system.posix_acl_:\""
    )]
    AclsMapped,
    /// The host file system of the share cannot be stable.
    #[error("{path} cannot be made stable: {why}; share another file system, or drop --require-durable")]
    NotDurable {
        /// The shared directory.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
}
