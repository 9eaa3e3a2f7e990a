//! The structures of `include/uapi/linux/fuse.h`, field for field, under the kernel's names in Rust case.
//!
//! Integers are the client's native ones: FUSE over virtio does not swap bytes, and neither do we. Flag fields
//! stay plain integers here; [`crate::flags`] gives them types once a request is parsed. `layout.txt` holds the
//! sizes and offsets the kernel's own compiler gave, and a test holds these structures against it.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Protocol version, the only one there has been since 2006.
pub const KERNEL_VERSION: u32 = 7;
/// The minor version this crate speaks.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version it understands (Linux 5.0).
pub const OLDEST_MINOR_VERSION: u32 = 27;
/// Bytes of an [`InHeader`].
pub const IN_HEADER_SIZE: usize = size_of::<InHeader>();
/// Bytes of an [`OutHeader`].
pub const OUT_HEADER_SIZE: usize = size_of::<OutHeader>();
/// Bytes of the part of [`SetxattrIn`] that is sent without SETXATTR_EXT (`FUSE_COMPAT_SETXATTR_IN_SIZE`).
pub const COMPAT_SETXATTR_IN_SIZE: usize = 8;
/// Bytes of an [`InitIn`] before 7.36.
pub const COMPAT_INIT_IN_SIZE: usize = 16;
/// Bytes of the unit in which `InHeader::total_extlen` counts.
pub const EXTENSION_UNIT: usize = 8;
/// In the word of a SYNCFS that Linux leaves 0: everything that this sync is for was sent before it. A client that waits for
/// its own write-back says so, and a server need not hold the sync back for what might still come. To a server that does
/// not know it, the word means nothing.
pub const SYNCFS_COMPLETE: u64 = u64::from_le_bytes(*b"complete");
/// Extension types up to this one are security contexts, their number being the type (`FUSE_MAX_NR_SECCTX`).
pub const MAX_SECURITY_CONTEXTS: u32 = 31;
/// The extension that carries supplementary groups (`FUSE_EXT_GROUPS`).
pub const EXTENSION_GROUPS: u32 = 32;
/// Bit 63 of a request's id: the kernel sends it for the second time (`FUSE_UNIQUE_RESEND`, 7.40).
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// A structure's name and size, and its fields with their offsets.
#[cfg(test)]
type Layout<'a> = (&'a str, usize, Vec<(&'a str, usize)>);

macro_rules! kernel_structures {
    ($($(#[$doc:meta])* $name:ident $kernel:literal { $($field:ident: $type:ty),* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs, reason = "the fields are the kernel's, explained in its header")]
            pub struct $name { $(pub $field: $type),* }

            impl Default for $name {
                fn default() -> Self {
                    Self::new_zeroed()
                }
            }
        )*

        /// Every structure, under the kernel's name.
        #[cfg(test)]
        fn layouts() -> Vec<Layout<'static>> {
            vec![$((
                $kernel,
                size_of::<$name>(),
                vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*],
            )),*]
        }
    };
}

kernel_structures! {
    /// Attributes of an inode.
    Attr "fuse_attr" {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32,
        flags: u32
    }
    /// A point in time in the layout of statx(2).
    SxTime "fuse_sx_time" { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// Attributes in the layout of statx(2).
    Statx "fuse_statx" {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16,
        spare0: [u16; 1], ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: SxTime,
        btime: SxTime, ctime: SxTime, mtime: SxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32,
        dev_minor: u32, spare2: [u64; 14]
    }
    /// Space and limits of a file system.
    Kstatfs "fuse_kstatfs" {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6]
    }
    /// A range of a file and the kind of lock on it.
    FileLock "fuse_file_lock" { start: u64, end: u64, kind: u32, pid: u32 }
    /// A name was found or made: its inode and how long the client may remember both.
    EntryOut "fuse_entry_out" {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr
    }
    /// How many lookups to give back.
    ForgetIn "fuse_forget_in" { nlookup: u64 }
    /// One inode of a BATCH_FORGET.
    ForgetOne "fuse_forget_one" { nodeid: u64, nlookup: u64 }
    /// How many [`ForgetOne`] follow.
    BatchForgetIn "fuse_batch_forget_in" { count: u32, dummy: u32 }
    /// GETATTR: by node, or by open handle.
    GetattrIn "fuse_getattr_in" { getattr_flags: u32, dummy: u32, fh: u64 }
    /// Attributes and how long the client may remember them.
    AttrOut "fuse_attr_out" { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// STATX.
    StatxIn "fuse_statx_in" { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// Reply to STATX.
    StatxOut "fuse_statx_out" {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx
    }
    /// MKNOD; the name follows.
    MknodIn "fuse_mknod_in" { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// MKDIR; the name follows.
    MkdirIn "fuse_mkdir_in" { mode: u32, umask: u32 }
    /// RENAME; old and new name follow.
    RenameIn "fuse_rename_in" { newdir: u64 }
    /// RENAME2; old and new name follow.
    Rename2In "fuse_rename2_in" { newdir: u64, flags: u32, padding: u32 }
    /// LINK; the new name follows.
    LinkIn "fuse_link_in" { oldnodeid: u64 }
    /// SETATTR: which attributes (`valid`) and their values.
    SetattrIn "fuse_setattr_in" {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32
    }
    /// OPEN and OPENDIR.
    OpenIn "fuse_open_in" { flags: u32, open_flags: u32 }
    /// CREATE and TMPFILE; the name follows.
    CreateIn "fuse_create_in" { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// An open file.
    OpenOut "fuse_open_out" { fh: u64, open_flags: u32, backing_id: i32 }
    /// RELEASE and RELEASEDIR.
    ReleaseIn "fuse_release_in" { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// FLUSH.
    FlushIn "fuse_flush_in" { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// READ, READDIR and READDIRPLUS.
    ReadIn "fuse_read_in" {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32
    }
    /// WRITE; the data follows.
    WriteIn "fuse_write_in" {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32
    }
    /// How much was written.
    WriteOut "fuse_write_out" { size: u32, padding: u32 }
    /// Reply to STATFS.
    StatfsOut "fuse_statfs_out" { st: Kstatfs }
    /// FSYNC and FSYNCDIR.
    FsyncIn "fuse_fsync_in" { fh: u64, fsync_flags: u32, padding: u32 }
    /// SETXATTR; name and value follow. Only the first 8 bytes are sent unless SETXATTR_EXT was agreed.
    SetxattrIn "fuse_setxattr_in" { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// GETXATTR (the name follows) and LISTXATTR.
    GetxattrIn "fuse_getxattr_in" { size: u32, padding: u32 }
    /// The size a value or list would have.
    GetxattrOut "fuse_getxattr_out" { size: u32, padding: u32 }
    /// GETLK, SETLK and SETLKW.
    LkIn "fuse_lk_in" { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// Reply to GETLK.
    LkOut "fuse_lk_out" { lk: FileLock }
    /// ACCESS.
    AccessIn "fuse_access_in" { mask: u32, padding: u32 }
    /// INIT; 16 bytes before 7.36.
    InitIn "fuse_init_in" {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11]
    }
    /// Reply to INIT.
    InitOut "fuse_init_out" {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11]
    }
    /// INTERRUPT: the request meant.
    InterruptIn "fuse_interrupt_in" { unique: u64 }
    /// BMAP.
    BmapIn "fuse_bmap_in" { block: u64, blocksize: u32, padding: u32 }
    /// Reply to BMAP.
    BmapOut "fuse_bmap_out" { block: u64 }
    /// IOCTL; its data follows.
    IoctlIn "fuse_ioctl_in" { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// A range of the caller's memory for an unrestricted IOCTL.
    IoctlIovec "fuse_ioctl_iovec" { base: u64, len: u64 }
    /// Reply to IOCTL; its data follows.
    IoctlOut "fuse_ioctl_out" { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// POLL.
    PollIn "fuse_poll_in" { fh: u64, kh: u64, flags: u32, events: u32 }
    /// Reply to POLL.
    PollOut "fuse_poll_out" { revents: u32, padding: u32 }
    /// Notification: poll again.
    NotifyPollWakeupOut "fuse_notify_poll_wakeup_out" { kh: u64 }
    /// FALLOCATE.
    FallocateIn "fuse_fallocate_in" { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// The head of every request.
    InHeader "fuse_in_header" {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16,
        padding: u16
    }
    /// The head of every reply and notification.
    OutHeader "fuse_out_header" { len: u32, error: i32, unique: u64 }
    /// One name of a READDIR reply; `namelen` bytes follow, padded to 8.
    Dirent "fuse_dirent" { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// One name of a READDIRPLUS reply.
    Direntplus "fuse_direntplus" { entry_out: EntryOut, dirent: Dirent }
    /// Notification: cached data or attributes of an inode are out of date.
    NotifyInvalInodeOut "fuse_notify_inval_inode_out" { ino: u64, off: i64, len: i64 }
    /// Notification: a cached name is out of date; the name follows.
    NotifyInvalEntryOut "fuse_notify_inval_entry_out" { parent: u64, namelen: u32, flags: u32 }
    /// Notification: a name was removed; the name follows.
    NotifyDeleteOut "fuse_notify_delete_out" { parent: u64, child: u64, namelen: u32, padding: u32 }
    /// Notification: data for the cache follows.
    NotifyStoreOut "fuse_notify_store_out" { nodeid: u64, offset: u64, size: u32, padding: u32 }
    /// Notification: send cached data back.
    NotifyRetrieveOut "fuse_notify_retrieve_out" {
        notify_unique: u64, nodeid: u64, offset: u64, size: u32, padding: u32
    }
    /// NOTIFY_REPLY; the data follows.
    NotifyRetrieveIn "fuse_notify_retrieve_in" {
        dummy1: u64, offset: u64, size: u32, dummy2: u32, dummy3: u64, dummy4: u64
    }
    /// Notification: forget these inodes if unused; their ids follow.
    NotifyPruneOut "fuse_notify_prune_out" { count: u32, padding: u32, spare: u64 }
    /// Device ioctl: registers a backing file for passthrough.
    BackingMap "fuse_backing_map" { fd: i32, flags: u32, padding: u64 }
    /// LSEEK.
    LseekIn "fuse_lseek_in" { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// Reply to LSEEK.
    LseekOut "fuse_lseek_out" { offset: u64 }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn "fuse_copy_file_range_in" {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64
    }
    /// Reply to COPY_FILE_RANGE_64.
    CopyFileRangeOut "fuse_copy_file_range_out" { bytes_copied: u64 }
    /// SETUPMAPPING.
    SetupmappingIn "fuse_setupmapping_in" { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    /// REMOVEMAPPING: how many [`RemovemappingOne`] follow.
    RemovemappingIn "fuse_removemapping_in" { count: u32 }
    /// One mapping to remove.
    RemovemappingOne "fuse_removemapping_one" { moffset: u64, len: u64 }
    /// SYNCFS; the kernel leaves its word 0, and [`SYNCFS_COMPLETE`] is our own.
    SyncfsIn "fuse_syncfs_in" { padding: u64 }
    /// One security context; its name and value follow.
    Secctx "fuse_secctx" { size: u32, padding: u32 }
    /// How many security contexts follow.
    SecctxHeader "fuse_secctx_header" { size: u32, nr_secctx: u32 }
    /// The head of one extension at the end of a request.
    ExtHeader "fuse_ext_header" { size: u32, kind: u32 }
    /// Supplementary groups; `nr_groups` 32-bit ids follow.
    SuppGroups "fuse_supp_groups" { nr_groups: u32 }
    /// Per-entry state of FUSE-over-io_uring.
    UringEntInOut "fuse_uring_ent_in_out" {
        flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64
    }
    /// Header area of a FUSE-over-io_uring entry.
    UringReqHeader "fuse_uring_req_header" {
        in_out: [u8; 128], op_in: [u8; 128], ring_ent_in_out: UringEntInOut
    }
    /// Command area of a FUSE-over-io_uring submission.
    UringCmdReq "fuse_uring_cmd_req" { flags: u64, commit_id: u64, qid: u16, padding: [u8; 6] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field names that Rust cannot or should not have: leading underscores, and a keyword.
    fn in_rust(kernel_field: &str) -> &str {
        match kernel_field.trim_start_matches('_') {
            "type" => "kind",
            field => field,
        }
    }

    #[test]
    fn every_structure_is_laid_out_as_in_the_kernels_header() {
        let mut expected: Vec<Layout<'_>> = Vec::new();
        for line in include_str!("layout.txt").lines().filter(|line| !line.starts_with('#')) {
            let (name, number) = line.trim().split_once(' ').unwrap();
            let number = number.parse().unwrap();
            match name.split_once('.') {
                None => expected.push((name, number, Vec::new())),
                Some((_, field)) => expected.last_mut().unwrap().2.push((in_rust(field), number)),
            }
        }
        assert!(expected.len() > 70, "the table was read");
        assert_eq!(layouts(), expected);
    }
}
