//! Open files: opening, reading, writing, space, and copies within the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ashore_server::{Caller, Opened, Read, Result, Write};
use ashore_wire::abi::CopyFileRangeIn;
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, WriteFlags};
use ashore_wire::seam::{Payload, ReplyBody, TransferMode};
use ashore_wire::{Errno, FileHandle, NodeId};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use crate::Passthrough;
use crate::credentials::BitsCleared;
use crate::handles::OpenFile;
use crate::host::HostResult;
use crate::inodes::Location;
use crate::mutant::{self, Mutant};
use crate::options::Durability;
use crate::places::Place;
use crate::sync::{fsync_file, settled};

const O_SYNC: u32 = libc::O_SYNC as u32;
const O_DSYNC: u32 = libc::O_DSYNC as u32;
const O_APPEND: u32 = libc::O_APPEND as u32;

/// OPEN of a file. One system call, or three the first time after its lookup.
pub(crate) fn open(
    fs: &Passthrough,
    node: NodeId,
    flags: u32,
    open_flags: OpenRequestFlags,
) -> Result<Opened> {
    let host_flags = host_flags(fs, flags);
    let changes = host_flags.contains(OFlags::TRUNC);
    if changes || host_flags & OFlags::RWMODE != OFlags::RDONLY {
        fs.refuse_if_readonly()?;
    }
    let kill = changes && open_flags.contains(OpenRequestFlags::KILL_SUIDGID);
    let cleared = BitsCleared::when(kill)?;
    let (file, place) = open_inode(fs, node, host_flags, libc::S_IFREG)?;
    drop(cleared);
    fs.places.before_change(place, file.as_fd());
    if changes {
        changed_file(fs, node, place, file)
    } else {
        Ok(opened_file(fs, node, place, host_flags, file))
    }
}

/// Opens an inode for good, if it is of this kind. Others are not opened: a device or a pipe would act on the host.
pub(crate) fn open_inode(
    fs: &Passthrough,
    node: NodeId,
    flags: OFlags,
    kind: u32,
) -> Result<(OwnedFd, &Place)> {
    if node != NodeId::ROOT {
        let found = fs.inodes.find(node).ok_or(Errno::ESTALE)?;
        // A handle that was taken by name may lead to a file of another kind; so it is opened as a path first.
        if let (true, Location::Short { .. } | Location::Long(_)) = (found.verified, &found.location) {
            expect_kind(found.candidate.kind, kind)?;
            let place = fs.places.at(found.candidate.key.place);
            let handle = found.location.handle().expect("it is not a descriptor");
            let opened = place.open_by_handle(&handle, flags);
            return Ok((opened.inspect_err(|errno| fs.note_stale(node, *errno))?, place));
        }
    }
    let inode = fs.inode(node)?;
    expect_kind(inode.kind, kind)?;
    Ok((fs.places.reopen(inode.fd(), flags).told()?, inode.place))
}

fn expect_kind(kind: u32, wanted: u32) -> Result<()> {
    match (kind, wanted) {
        (kind, wanted) if kind == wanted => Ok(()),
        (_, libc::S_IFDIR) => Err(Errno::ENOTDIR),
        (libc::S_IFDIR, _) => Err(Errno::EISDIR),
        _ => Err(Errno::ENXIO),
    }
}

/// Gives a file that was changed by being opened a handle.
pub(crate) fn changed_file(fs: &Passthrough, node: NodeId, place: &Place, file: OwnedFd) -> Result<Opened> {
    let file = Arc::new(OpenFile::file(node, place.index, file));
    place.ledger.mark_file_changed(&file);
    settled(fs, place)?;
    Ok(opened(fs, place, file, true))
}

/// Gives an open file a handle.
fn opened_file(fs: &Passthrough, node: NodeId, place: &Place, flags: OFlags, file: OwnedFd) -> Opened {
    let writable = flags & OFlags::RWMODE != OFlags::RDONLY;
    opened(fs, place, Arc::new(OpenFile::file(node, place.index, file)), writable)
}

fn opened(fs: &Passthrough, place: &Place, file: Arc<OpenFile>, writable: bool) -> Opened {
    let given = fs.agreed(InitFlags::PASSTHROUGH).then(|| fs.kernel_io.opened(file.node, file.descriptor()));
    let Some(backing_id) = given.flatten() else {
        return Opened::new(fs.handles.add(file), fs.options.cache.file_flags());
    };
    if writable {
        file.written_by_kernel.store(true, Ordering::Relaxed);
        place.ledger.begin_kernel_writes();
    }
    Opened { backing_id, ..Opened::new(fs.handles.add(file), OpenReplyFlags::PASSTHROUGH) }
}

/// Flags to open a file of the host by, from those the client gave.
///
/// O_APPEND never reaches the host: each write says whether it appends. With a write-back cache the client reads what
/// it is about to write to partly, through any handle, so files open for writing must be readable.
pub(crate) fn host_flags(fs: &Passthrough, flags: u32) -> OFlags {
    let flags = OFlags::from_bits_retain(flags);
    let mut kept = flags & (OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC);
    if fs.options.allow_direct_io {
        kept |= flags & OFlags::DIRECT;
    }
    if fs.options.preserve_noatime {
        kept |= flags & OFlags::NOATIME;
    }
    if fs.agreed(InitFlags::WRITEBACK_CACHE) && kept & OFlags::RWMODE == OFlags::WRONLY {
        kept = (kept - OFlags::RWMODE) | OFlags::RDWR;
    }
    kept | OFlags::NOCTTY
}

/// READ. One system call, unless it ends short of the end of the file.
pub(crate) fn read(fs: &Passthrough, node: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
    let file = fs.handles.find(read.handle, node)?;
    let place = fs.places.at(file.place);
    if !read.may_wait && place.may_not_wait() {
        let nowait = TransferMode { nowait: true, ..Default::default() };
        match target.read_from(file.descriptor(), read.offset, read.size, nowait) {
            Ok(length) if length == read.size || is_end(file.descriptor(), read.offset + length as u64) => {
                return Ok(length);
            }
            // The rest is not in memory, and a short answer would mean the end of the file.
            Ok(_) => return Err(Errno::EAGAIN),
            Err(error) => match Errno::from(error) {
                Errno::EOPNOTSUPP => place.always_waits.store(true, Ordering::Relaxed),
                Errno::EINVAL => {}
                errno => return Err(errno),
            },
        }
    }
    Ok(target.read_from(file.descriptor(), read.offset, read.size, TransferMode::default())?)
}

/// Whether the file is known to end here, without waiting for the disk.
fn is_end(file: BorrowedFd<'_>, offset: u64) -> bool {
    let mut byte = [0];
    let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
    matches!(rustix::io::preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT), Ok(0))
}

/// WRITE. One system call.
pub(crate) fn write(
    fs: &Passthrough,
    node: NodeId,
    write: &Write,
    payload: &mut dyn Payload,
) -> Result<usize> {
    fs.refuse_if_readonly()?;
    let file = fs.handles.find(write.handle, node)?;
    let cleared = BitsCleared::when(write.write_flags.contains(WriteFlags::KILL_SUIDGID))?;
    let mode = transfer_mode(fs, write);
    let taken = payload.write_to(file.descriptor(), write.offset, write.size, mode);
    drop(cleared);
    // Marked in any case: a write that failed may have been done in part.
    let ledger = &fs.places.at(file.place).ledger;
    ledger.mark_file_changed(&file);
    if !file.written.load(Ordering::Relaxed) {
        file.written.store(true, Ordering::Relaxed);
    }
    if mode.data_sync || mode.sync {
        ledger.host().after_fsync().told()?;
    }
    Ok(taken?)
}

/// What a single write asks for: O_SYNC and O_DSYNC in its flags, in every cache mode.
fn transfer_mode(fs: &Passthrough, write: &Write) -> TransferMode {
    let cached = write.write_flags.contains(WriteFlags::CACHE) || fs.agreed(InitFlags::WRITEBACK_CACHE);
    let append = write.flags & O_APPEND != 0 && !cached;
    let (data_sync, sync) = match fs.options.durability {
        Durability::Relaxed => (false, false),
        _ if mutant::on(Mutant::WriteNotStable) => (false, false),
        Durability::OnSync => (write.flags & O_DSYNC != 0, write.flags & O_SYNC == O_SYNC),
        Durability::Strict => (true, true),
    };
    TransferMode { append, data_sync, sync, nowait: false }
}

/// RELEASE and RELEASEDIR.
pub(crate) fn release(fs: &Passthrough, node: NodeId, handle: FileHandle) -> Result<()> {
    let file = fs.handles.remove(handle, node)?;
    if file.written_by_kernel.load(Ordering::Relaxed) {
        fs.places.at(file.place).ledger.end_kernel_writes();
    }
    if file.position.is_none() && fs.agreed(InitFlags::PASSTHROUGH) {
        fs.kernel_io.released(node);
    }
    Ok(())
}

/// FALLOCATE.
pub(crate) fn fallocate(
    fs: &Passthrough,
    caller: &Caller<'_>,
    node: NodeId,
    handle: FileHandle,
    (offset, length): (u64, u64),
    mode: u32,
) -> Result<()> {
    fs.refuse_if_readonly()?;
    let file = fs.handles.find(handle, node)?;
    let cleared = BitsCleared::when(kills_bits(fs, caller))?;
    let mode = FallocateFlags::from_bits_retain(mode);
    let outcome = rustix::fs::fallocate(file.descriptor(), mode, offset, length).told();
    drop(cleared);
    written(fs, &file)?;
    outcome
}

/// COPY_FILE_RANGE.
pub(crate) fn copy_file_range(
    fs: &Passthrough,
    caller: &Caller<'_>,
    node: NodeId,
    arguments: &CopyFileRangeIn,
) -> Result<usize> {
    fs.refuse_if_readonly()?;
    if arguments.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let source = fs.handles.find(FileHandle(arguments.fh_in), node)?;
    let target = fs.handles.find(FileHandle(arguments.fh_out), NodeId(arguments.nodeid_out))?;
    let (mut from, mut to) = (arguments.off_in, arguments.off_out);
    let length = usize::try_from(arguments.len).unwrap_or(usize::MAX);
    let cleared = BitsCleared::when(kills_bits(fs, caller))?;
    let copied = rustix::fs::copy_file_range(
        source.descriptor(),
        Some(&mut from),
        target.descriptor(),
        Some(&mut to),
        length,
    )
    .told();
    drop(cleared);
    written(fs, &target)?;
    copied
}

/// A file was changed otherwise than by WRITE.
pub(crate) fn written(fs: &Passthrough, file: &Arc<OpenFile>) -> Result<()> {
    file.written.store(true, Ordering::Relaxed);
    let place = fs.places.at(file.place);
    place.ledger.mark_file_changed(file);
    if fs.options.durability == Durability::Strict { fsync_file(fs, file, false) } else { Ok(()) }
}

/// Where the client leaves set-user-id and set-group-id bits to the server, these operations clear them too.
fn kills_bits(fs: &Passthrough, caller: &Caller<'_>) -> bool {
    caller.uid != 0 && fs.agreed(InitFlags::HANDLE_KILLPRIV_V2)
}

/// LSEEK.
pub(crate) fn lseek(
    fs: &Passthrough,
    node: NodeId,
    handle: FileHandle,
    offset: u64,
    whence: u32,
) -> Result<u64> {
    let file = fs.handles.find(handle, node)?;
    let position = match whence as i32 {
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        libc::SEEK_END => SeekFrom::End(offset as i64),
        libc::SEEK_SET => SeekFrom::Start(offset),
        _ => return Err(Errno::EINVAL),
    };
    if file.position.is_some() {
        return Err(Errno::EISDIR);
    }
    rustix::fs::seek(file.descriptor(), position).told()
}
