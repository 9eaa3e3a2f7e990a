//! Flag words of the protocol as types. Bits that this crate does not know are kept, never dropped: whether an
//! unknown bit matters is for the one who acts on it to decide.

#![allow(missing_docs, reason = "the names are the kernel's, explained in its header")]

use bitflags::bitflags;

bitflags! {
    /// Features offered and agreed by INIT: `flags` in the low half, `flags2` in the high half.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct InitFlags: u64 {
        const ASYNC_READ = 1 << 0;
        const POSIX_LOCKS = 1 << 1;
        const FILE_OPS = 1 << 2;
        const ATOMIC_O_TRUNC = 1 << 3;
        const EXPORT_SUPPORT = 1 << 4;
        const BIG_WRITES = 1 << 5;
        const DONT_MASK = 1 << 6;
        const SPLICE_WRITE = 1 << 7;
        const SPLICE_MOVE = 1 << 8;
        const SPLICE_READ = 1 << 9;
        const FLOCK_LOCKS = 1 << 10;
        const HAS_IOCTL_DIR = 1 << 11;
        const AUTO_INVAL_DATA = 1 << 12;
        const DO_READDIRPLUS = 1 << 13;
        const READDIRPLUS_AUTO = 1 << 14;
        const ASYNC_DIO = 1 << 15;
        const WRITEBACK_CACHE = 1 << 16;
        const NO_OPEN_SUPPORT = 1 << 17;
        const PARALLEL_DIROPS = 1 << 18;
        const HANDLE_KILLPRIV = 1 << 19;
        const POSIX_ACL = 1 << 20;
        const ABORT_ERROR = 1 << 21;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        const NO_OPENDIR_SUPPORT = 1 << 24;
        const EXPLICIT_INVAL_DATA = 1 << 25;
        const MAP_ALIGNMENT = 1 << 26;
        const SUBMOUNTS = 1 << 27;
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        const SETXATTR_EXT = 1 << 29;
        const INIT_EXT = 1 << 30;
        const SECURITY_CTX = 1 << 32;
        const HAS_INODE_DAX = 1 << 33;
        const CREATE_SUPP_GROUP = 1 << 34;
        const HAS_EXPIRE_ONLY = 1 << 35;
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        const PASSTHROUGH = 1 << 37;
        const NO_EXPORT_SUPPORT = 1 << 38;
        const HAS_RESEND = 1 << 39;
        const ALLOW_IDMAP = 1 << 40;
        const OVER_IO_URING = 1 << 41;
        const REQUEST_TIMEOUT = 1 << 42;
        const _ = !0;
    }

    /// `open_flags` of a reply to OPEN, OPENDIR and CREATE (`FOPEN_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct OpenReplyFlags: u32 {
        const DIRECT_IO = 1 << 0;
        const KEEP_CACHE = 1 << 1;
        const NONSEEKABLE = 1 << 2;
        const CACHE_DIR = 1 << 3;
        const STREAM = 1 << 4;
        const NOFLUSH = 1 << 5;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        const PASSTHROUGH = 1 << 7;
    }

    /// `open_flags` of a request to open (`FUSE_OPEN_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct OpenRequestFlags: u32 {
        /// Set-user-id and set-group-id bits are to be cleared if the file is truncated.
        const KILL_SUIDGID = 1 << 0;
        const _ = !0;
    }

    /// Which fields of a SETATTR count (`FATTR_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SetattrValid: u32 {
        const MODE = 1 << 0;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const LOCKOWNER = 1 << 9;
        const CTIME = 1 << 10;
        const KILL_SUIDGID = 1 << 11;
        const _ = !0;
    }

    /// `write_flags` of a WRITE (`FUSE_WRITE_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct WriteFlags: u32 {
        /// Written back from the client's page cache; the file handle is any that was open for writing.
        const CACHE = 1 << 0;
        /// `lock_owner` means something.
        const LOCKOWNER = 1 << 1;
        /// Set-user-id and set-group-id bits are to be cleared.
        const KILL_SUIDGID = 1 << 2;
        const _ = !0;
    }

    /// `flags` of an attribute reply (`FUSE_ATTR_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AttrFlags: u32 {
        /// The directory is the root of another host file system, to be mounted of its own by the client.
        const SUBMOUNT = 1 << 0;
        /// The file may be mapped through the DAX window.
        const DAX = 1 << 1;
    }

    /// `release_flags` of a RELEASE (`FUSE_RELEASE_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ReleaseFlags: u32 {
        /// The release is a flush too.
        const FLUSH = 1 << 0;
        /// Locks taken by flock(2) are to be dropped.
        const FLOCK_UNLOCK = 1 << 1;
        const _ = !0;
    }
}

/// `getattr_flags`: the file handle is valid (`FUSE_GETATTR_FH`).
pub const GETATTR_FH: u32 = 1 << 0;
/// `fsync_flags`: data only, not metadata (`FUSE_FSYNC_FDATASYNC`).
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `lk_flags`: an flock(2) lock, not a POSIX one (`FUSE_LK_FLOCK`).
pub const LK_FLOCK: u32 = 1 << 0;
