//! Attributes: GETATTR, STATX, SETATTR, ACCESS, STATFS.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ashore_server::{Attributes, Caller, Result, SetAttributes};
use ashore_wire::abi::{Attr, Kstatfs, Statx, SxTime};
use ashore_wire::flags::SetattrValid;
use ashore_wire::{Errno, FileHandle, NodeId};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use crate::credentials::BitsCleared;
use crate::handles::OpenFile;
use crate::host::{DescriptorPath, HostResult, HostStatx, told};
use crate::ids::IdMap;
use crate::sync::{Change, settled};
use crate::{Inode, Passthrough};

/// Flags of statx(2) that say how fresh the answer has to be; the others are about paths.
const FRESHNESS: AtFlags = AtFlags::from_bits_retain(0x6000);

/// GETATTR. One system call.
pub(crate) fn getattr(fs: &Passthrough, node: NodeId, handle: Option<FileHandle>) -> Result<Attributes> {
    let stat = stat(fs, node, handle, AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    Ok(Attributes { attr: to_wire(fs, &stat), timeout: fs.options.cache.timeout() })
}

/// STATX.
pub(crate) fn statx(
    fs: &Passthrough,
    node: NodeId,
    handle: Option<FileHandle>,
    flags: u32,
    mask: u32,
) -> Result<(Statx, Duration)> {
    let flags = AtFlags::from_bits_retain(flags) & FRESHNESS;
    let wanted = StatxFlags::from_bits_retain(mask) & (StatxFlags::BASIC_STATS | StatxFlags::BTIME);
    let stat = stat(fs, node, handle, flags, wanted)?;
    Ok((statx_to_wire(fs, &stat), fs.options.cache.timeout()))
}

/// By the handle if there is one, for the node may have no name any more.
fn stat(
    fs: &Passthrough,
    node: NodeId,
    handle: Option<FileHandle>,
    flags: AtFlags,
    mask: StatxFlags,
) -> Result<HostStatx> {
    let flags = flags | AtFlags::EMPTY_PATH;
    match handle {
        Some(handle) => {
            let file = fs.handles.find(handle, node)?;
            rustix::fs::statx(file.descriptor(), c"", flags, mask).told()
        }
        None => rustix::fs::statx(fs.inode(node)?.fd(), c"", flags, mask).told(),
    }
}

/// What a SETATTR acts on.
enum Target<'a> {
    /// An open file the client named.
    File(Arc<OpenFile>),
    /// The inode, ready to be changed.
    Inode(Inode<'a>, Change<'a>),
}

/// SETATTR.
pub(crate) fn setattr(fs: &Passthrough, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
    fs.refuse_if_readonly()?;
    let target = match set.handle() {
        Some(handle) => Target::File(fs.handles.find(handle, node)?),
        None => match fs.inode(node) {
            Ok(inode) => {
                let change = Change::of(fs, &inode);
                Target::Inode(inode, change)
            }
            Err(Errno::ESTALE) => return times_of_the_dead(fs, node, set),
            Err(errno) => return Err(errno),
        },
    };
    let outcome = apply(fs, &target, node, set);
    // Some of it may have been done, even if not all.
    let settled = target.settle(fs);
    outcome.and(settled)?;
    let stat = rustix::fs::statx(target.fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).told()?;
    Ok(Attributes { attr: to_wire(fs, &stat), timeout: fs.options.cache.timeout() })
}

fn apply(fs: &Passthrough, target: &Target<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<()> {
    let (valid, values) = (set.valid, set.values);
    if valid.contains(SetattrValid::MODE) {
        target.chmod(fs, Mode::from_raw_mode(values.mode & 0o7777)).told()?;
    }
    if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
        let uid = id(valid.contains(SetattrValid::UID), values.uid, &fs.options.uids)?.map(Uid::from_raw);
        let gid = id(valid.contains(SetattrValid::GID), values.gid, &fs.options.gids)?.map(Gid::from_raw);
        rustix::fs::chownat(target.fd(), c"", uid, gid, AtFlags::EMPTY_PATH).told()?;
    }
    if valid.contains(SetattrValid::SIZE) {
        let _cleared = BitsCleared::when(valid.contains(SetattrValid::KILL_SUIDGID))?;
        truncate(fs, target, node, values.size)?;
    }
    if let Some(times) = times(set) {
        target.utimens(fs, &times).told()?;
    }
    Ok(())
}

/// The host's id for one that is to be set; the one that means "leave it" to the host is none.
fn id(wanted: bool, id: u32, map: &IdMap) -> Result<Option<u32>> {
    match (wanted, id) {
        (false, _) => Ok(None),
        (true, u32::MAX) => Err(Errno::EINVAL),
        (true, id) => map.to_host(id).map(Some),
    }
}

fn truncate(fs: &Passthrough, target: &Target<'_>, node: NodeId, size: u64) -> Result<()> {
    match target {
        Target::File(file) => match rustix::fs::ftruncate(file.descriptor(), size) {
            // Opened for reading only: the client's kernel has checked that the caller may write to the file.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => {
                truncate_inode(fs, &fs.inode(node)?, size)
            }
            outcome => outcome.told(),
        },
        Target::Inode(inode, _) => truncate_inode(fs, inode, size),
    }
}

fn truncate_inode(fs: &Passthrough, inode: &Inode<'_>, size: u64) -> Result<()> {
    match inode.kind {
        libc::S_IFREG => {
            let file = fs.places.reopen(inode.fd(), OFlags::WRONLY | OFlags::NONBLOCK).told()?;
            fs.places.before_change(inode.place, rustix::fd::AsFd::as_fd(&file));
            rustix::fs::ftruncate(file, size).told()
        }
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

/// Times to set, if any. A client's ctime is the host's business: no call sets it.
fn times(set: &SetAttributes<'_>) -> Option<Timestamps> {
    let (valid, values) = (set.valid, set.values);
    let time = |given, now, seconds: u64, nanoseconds: u32| match (given, now) {
        (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        (true, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        (true, false) => Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() },
    };
    let (atime, mtime) = (valid.contains(SetattrValid::ATIME), valid.contains(SetattrValid::MTIME));
    let (atime_now, mtime_now) =
        (valid.contains(SetattrValid::ATIME_NOW), valid.contains(SetattrValid::MTIME_NOW));
    (atime || mtime || atime_now || mtime_now).then(|| Timestamps {
        last_access: time(atime || atime_now, atime_now, values.atime, values.atimensec),
        last_modification: time(mtime || mtime_now, mtime_now, values.mtime, values.mtimensec),
    })
}

/// Times of an inode that has neither a name nor a descriptor left: another process of the host removed it.
///
/// A client with a write-back cache sends the times of a file after its last close, and counts a failure as a lost
/// write, which its next sync would report. Nobody can see these times any more, so nothing is lost.
fn times_of_the_dead(fs: &Passthrough, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
    let harmless = SetattrValid::ATIME
        | SetattrValid::MTIME
        | SetattrValid::CTIME
        | SetattrValid::ATIME_NOW
        | SetattrValid::MTIME_NOW
        | SetattrValid::LOCKOWNER;
    let found = fs.inodes.find(node).ok_or(Errno::ESTALE)?;
    if !harmless.contains(set.valid) {
        return Err(Errno::ESTALE);
    }
    let values = set.values;
    let attr = Attr {
        ino: found.candidate.key.ino,
        mode: found.candidate.kind,
        atime: values.atime,
        atimensec: values.atimensec,
        mtime: values.mtime,
        mtimensec: values.mtimensec,
        ctime: values.ctime,
        ctimensec: values.ctimensec,
        ..Default::default()
    };
    Ok(Attributes { attr, timeout: Duration::ZERO })
}

impl Target<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Target::File(file) => file.descriptor(),
            Target::Inode(inode, _) => inode.fd(),
        }
    }

    /// To be called after it was changed.
    fn settle(&self, fs: &Passthrough) -> Result<()> {
        match self {
            Target::File(file) => {
                let place = fs.places.at(file.place);
                place.ledger.mark_file_changed(file);
                settled(fs, place)
            }
            Target::Inode(_, change) => change.settle(fs),
        }
    }

    fn chmod(&self, fs: &Passthrough, mode: Mode) -> rustix::io::Result<()> {
        match self {
            Target::File(file) => rustix::fs::fchmod(file.descriptor(), mode),
            Target::Inode(inode, _) => {
                let path = DescriptorPath::of(inode.fd());
                rustix::fs::chmodat(fs.places.descriptors(), path.as_c_str(), mode, AtFlags::empty())
            }
        }
    }

    fn utimens(&self, fs: &Passthrough, times: &Timestamps) -> rustix::io::Result<()> {
        match self {
            Target::File(file) => rustix::fs::futimens(file.descriptor(), times),
            Target::Inode(inode, _) => {
                let path = DescriptorPath::of(inode.fd());
                rustix::fs::utimensat(fs.places.descriptors(), path.as_c_str(), times, AtFlags::empty())
            }
        }
    }
}

/// ACCESS, by the permission bits and the ids the client sent. Linux checks itself and does not ask.
pub(crate) fn access(fs: &Passthrough, caller: &Caller<'_>, node: NodeId, mask: u32) -> Result<()> {
    let stat = stat(fs, node, None, AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    let Attr { mode, uid: owner, gid: group, .. } = to_wire(fs, &stat);
    let wanted = mask & 0o7;
    if wanted & 0o2 != 0 {
        fs.refuse_if_readonly()?;
    }
    let in_group = caller.gid == group || caller.extensions.group_ids().any(|other| other == group);
    let granted = match caller.uid {
        0 if mode & 0o111 != 0 || mode & libc::S_IFMT == libc::S_IFDIR => 0o7,
        0 => 0o6,
        uid if uid == owner => mode >> 6,
        _ if in_group => mode >> 3,
        _ => mode,
    };
    if wanted & !granted == 0 { Ok(()) } else { Err(Errno::EACCES) }
}

/// STATFS.
pub(crate) fn statfs(fs: &Passthrough, node: NodeId) -> Result<Kstatfs> {
    let numbers = rustix::fs::fstatfs(fs.inode(node)?.fd()).map_err(told)?;
    Ok(Kstatfs {
        blocks: numbers.f_blocks,
        bfree: numbers.f_bfree,
        bavail: numbers.f_bavail,
        files: numbers.f_files,
        ffree: numbers.f_ffree,
        bsize: numbers.f_bsize as u32,
        namelen: numbers.f_namelen as u32,
        frsize: numbers.f_frsize as u32,
        ..Default::default()
    })
}

/// Attributes as the protocol has them.
pub(crate) fn to_wire(fs: &Passthrough, stat: &HostStatx) -> Attr {
    Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: stat.stx_atime.tv_sec as u64,
        mtime: stat.stx_mtime.tv_sec as u64,
        ctime: stat.stx_ctime.tv_sec as u64,
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: fs.options.uids.to_guest(stat.stx_uid),
        gid: fs.options.gids.to_guest(stat.stx_gid),
        rdev: wire_device(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
        flags: 0,
    }
}

/// A device number in the 32 bits of the protocol.
pub(crate) fn wire_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn statx_to_wire(fs: &Passthrough, stat: &HostStatx) -> Statx {
    let time = |time: &rustix::fs::StatxTimestamp| SxTime {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
        reserved: 0,
    };
    Statx {
        mask: stat.stx_mask & (StatxFlags::BASIC_STATS | StatxFlags::BTIME).bits(),
        blksize: stat.stx_blksize,
        attributes: stat.stx_attributes.bits(),
        nlink: stat.stx_nlink,
        uid: fs.options.uids.to_guest(stat.stx_uid),
        gid: fs.options.gids.to_guest(stat.stx_gid),
        mode: stat.stx_mode,
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        attributes_mask: stat.stx_attributes_mask.bits(),
        atime: time(&stat.stx_atime),
        btime: time(&stat.stx_btime),
        ctime: time(&stat.stx_ctime),
        mtime: time(&stat.stx_mtime),
        rdev_major: stat.stx_rdev_major,
        rdev_minor: stat.stx_rdev_minor,
        dev_major: stat.stx_dev_major,
        dev_minor: stat.stx_dev_minor,
        ..Default::default()
    }
}
