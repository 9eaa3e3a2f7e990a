//! From a parsed request to the one method it is for, and from the value returned to the reply.

use ashore_wire::abi::{
    AttrOut, CopyFileRangeIn, IoctlIn, IoctlOut, LkOut, OpenOut, OutHeader, StatfsOut, StatxOut,
};
use ashore_wire::flags::ReleaseFlags;
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{Errno, NodeId, Operation, Reply, Request, RequestId};

use crate::filesystem::{Attributes, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write};
use crate::wait::Wait;
use crate::worker::Scratch;

/// Bytes of the largest extended attribute (`XATTR_SIZE_MAX` of Linux) and list of names.
const XATTR_MAX: u32 = 64 << 10;
/// Bytes an ioctl may return.
const IOCTL_MAX: u32 = 64 << 10;

/// What became of a request.
pub(crate) enum Outcome {
    /// It is to be answered with this header, whose body has been filled.
    Answer(OutHeader),
    /// It has no answer.
    NoAnswer,
    /// It would have had to wait for the disk, and was not allowed to. Nothing has been done.
    WouldWait,
    /// It would have had to wait for a lock, and was not allowed to. Nothing has been done.
    WouldWaitForLock,
}

/// What a request may wait for on this thread.
#[derive(Clone, Copy)]
pub(crate) enum Leave<'a> {
    /// Nothing: a queue stands behind it.
    None,
    /// The disk.
    Disk,
    /// A lock, until it is told to give up.
    Lock(&'a Wait),
}

/// Does what a request asks for; what takes long only if it may.
pub(crate) fn perform<B: Payload + ReplyBody>(
    fs: &impl FileSystem,
    request: &Request<'_>,
    bulk: &mut B,
    scratch: &mut Scratch,
    leave: Leave<'_>,
) -> Outcome {
    let (node, caller) = (request.node, &request.caller);
    let answer = Answer { id: request.id, fs };
    Outcome::Answer(match request.operation {
        Operation::Forget { lookups } => {
            fs.forget(node, lookups);
            return Outcome::NoAnswer;
        }
        Operation::BatchForget { nodes } => {
            nodes.iter().for_each(|one| fs.forget(NodeId(one.nodeid), one.nlookup));
            return Outcome::NoAnswer;
        }
        Operation::NotifyReply { .. } => return Outcome::NoAnswer,

        Operation::Lookup { name } => answer.entry(bulk, fs.lookup(caller, node, name)),
        Operation::Getattr { handle } => answer.attributes(bulk, fs.getattr(caller, node, handle)),
        Operation::Statx { handle, flags, mask } => {
            let found = fs.statx(caller, node, handle, flags, mask).map(|(stat, timeout)| StatxOut {
                attr_valid: timeout.as_secs(),
                attr_valid_nsec: timeout.subsec_nanos(),
                stat,
                ..Default::default()
            });
            answer.send(bulk, found.as_ref().map(Reply::Statx))
        }
        Operation::Setattr { valid, attributes } => {
            let set = SetAttributes { valid, values: attributes };
            answer.attributes(bulk, fs.setattr(caller, node, &set))
        }
        Operation::Readlink => {
            let target = fs.readlink(caller, node);
            answer.send(bulk, target.as_deref().map(Reply::Bytes))
        }
        Operation::Symlink { name, target } => answer.entry(bulk, fs.symlink(caller, node, name, target)),
        Operation::Mknod { name, mode, umask, device } => {
            answer.entry(bulk, fs.mknod(caller, node, name, mode, umask, device))
        }
        Operation::Mkdir { name, mode, umask } => {
            answer.entry(bulk, fs.mkdir(caller, node, name, mode, umask))
        }
        Operation::Unlink { name } => answer.empty(bulk, fs.unlink(caller, node, name)),
        Operation::Rmdir { name } => answer.empty(bulk, fs.rmdir(caller, node, name)),
        Operation::Rename { name, new_parent, new_name, flags } => {
            answer.empty(bulk, fs.rename(caller, node, name, new_parent, new_name, flags))
        }
        Operation::Link { existing, name } => answer.entry(bulk, fs.link(caller, existing, node, name)),

        Operation::Open { flags, open_flags } => {
            answer.opened(bulk, node, fs.open(caller, node, flags, open_flags))
        }
        Operation::Create { name, flags, mode, umask, open_flags } => {
            answer.created(bulk, fs.create(caller, node, name, flags, mode, umask, open_flags))
        }
        Operation::Tmpfile { flags, mode, umask } => {
            answer.created(bulk, fs.tmpfile(caller, node, flags, mode, umask))
        }
        Operation::Read { handle, offset, size, .. } => {
            let size = (size as usize).min(bulk.room().unwrap_or(0));
            let may_wait = !matches!(leave, Leave::None);
            let read = Read { handle, offset, size, may_wait };
            match fs.read(node, &read, bulk) {
                Err(Errno::EAGAIN) if !may_wait => return Outcome::WouldWait,
                came => answer.send(bulk, came.map(Reply::InPlace)),
            }
        }
        Operation::Write { handle, offset, size, write_flags, flags } => {
            let write = Write { handle, offset, size: size as usize, write_flags, flags };
            let taken = fs.write(caller, node, &write, bulk);
            answer.send(bulk, taken.map(|bytes| Reply::Written(bytes as u32)))
        }
        Operation::Statfs => {
            let found = fs.statfs(node).map(|st| StatfsOut { st });
            answer.send(bulk, found.as_ref().map(Reply::Statfs))
        }
        Operation::Release { handle, release_flags, lock_owner, .. } => {
            let flock_owner = release_flags.contains(ReleaseFlags::FLOCK_UNLOCK).then_some(lock_owner);
            answer.empty(bulk, fs.release(node, handle, flock_owner))
        }
        Operation::Flush { handle, lock_owner } => answer.empty(bulk, fs.flush(node, handle, lock_owner)),
        Operation::Fsync { handle, data_only } => answer.empty(bulk, fs.fsync(node, handle, data_only)),
        Operation::Fsyncdir { handle, data_only } => answer.empty(bulk, fs.fsyncdir(node, handle, data_only)),

        Operation::Setxattr { name, value, flags, setxattr_flags } => {
            answer.empty(bulk, fs.setxattr(caller, node, name, value, flags, setxattr_flags))
        }
        Operation::Getxattr { name, size } => {
            answer.xattr(bulk, scratch, size, |buffer| fs.getxattr(caller, node, name, buffer))
        }
        Operation::Listxattr { size } => {
            answer.xattr(bulk, scratch, size, |buffer| fs.listxattr(caller, node, buffer))
        }
        Operation::Removexattr { name } => answer.empty(bulk, fs.removexattr(caller, node, name)),

        Operation::Opendir { flags } => answer.opened(bulk, node, fs.opendir(caller, node, flags)),
        Operation::Readdir { handle, offset, size } => {
            scratch.names.reset((size as usize).min(bulk.room().unwrap_or(0)));
            let read = fs.readdir(caller, node, handle, offset, &mut scratch.names);
            answer.send(bulk, read.map(|()| Reply::Bytes(scratch.names.as_bytes())))
        }
        Operation::Readdirplus { handle, offset, size } => {
            scratch.names.reset((size as usize).min(bulk.room().unwrap_or(0)));
            let read = fs.readdirplus(caller, node, handle, offset, &mut scratch.names);
            answer.send(bulk, read.map(|()| Reply::Bytes(scratch.names.as_bytes())))
        }
        Operation::Releasedir { handle } => answer.empty(bulk, fs.releasedir(node, handle)),

        Operation::Access { mask } => answer.empty(bulk, fs.access(caller, node, mask)),
        Operation::Getlk { lock } => {
            let found = fs.getlk(caller, node, lock).map(|lk| LkOut { lk });
            answer.send(bulk, found.as_ref().map(Reply::Lock))
        }
        Operation::Setlk { lock, wait } => {
            let may_wait = if let Leave::Lock(wait) = leave { Some(wait) } else { None };
            match fs.setlk(caller, node, lock, may_wait) {
                Err(Errno::EAGAIN) if wait && may_wait.is_none() => return Outcome::WouldWaitForLock,
                done => answer.empty(bulk, done),
            }
        }
        Operation::Fallocate { handle, offset, length, mode } => {
            answer.empty(bulk, fs.fallocate(caller, node, handle, offset, length, mode))
        }
        Operation::Lseek { handle, offset, whence } => {
            let found = fs.lseek(node, handle, offset, whence);
            answer.send(bulk, found.map(Reply::Offset))
        }
        Operation::CopyFileRange { arguments, wide } => {
            let copied = copy_file_range(fs, request, arguments, wide);
            answer.send(bulk, copied)
        }
        Operation::Ioctl { arguments, data } => ioctl(&answer, bulk, scratch, request, arguments, data),

        // Not served by anything: a client does without when it is told so.
        Operation::Bmap { .. }
        | Operation::Poll { .. }
        | Operation::Setupmapping { .. }
        | Operation::Removemapping { .. } => error_header(request.id, Errno::ENOSYS),
        Operation::Init { .. }
        | Operation::Destroy
        | Operation::Syncfs { .. }
        | Operation::Interrupt { .. } => {
            unreachable!("the session deals with these itself")
        }
    })
}

/// The 32-bit reply cannot say more than 4 GiB - 1; a copy that is cut short is one the client goes on with.
fn copy_file_range(
    fs: &impl FileSystem,
    request: &Request<'_>,
    arguments: &CopyFileRangeIn,
    wide: bool,
) -> Result<Reply<'static>> {
    let longest = if wide { u64::MAX } else { u64::from(u32::MAX) & !4095 };
    let arguments = CopyFileRangeIn { len: arguments.len.min(longest), ..*arguments };
    let copied = fs.copy_file_range(&request.caller, request.node, &arguments)?;
    Ok(if wide { Reply::Copied(copied as u64) } else { Reply::Written(copied as u32) })
}

fn ioctl<F: FileSystem>(
    answer: &Answer<'_, F>,
    body: &mut impl ReplyBody,
    scratch: &mut Scratch,
    request: &Request<'_>,
    arguments: &IoctlIn,
    data: &[u8],
) -> OutHeader {
    if arguments.out_size > IOCTL_MAX {
        return error_header(request.id, Errno::EINVAL);
    }
    scratch.bytes.clear();
    match answer.fs.ioctl(&request.caller, request.node, arguments, data, &mut scratch.bytes) {
        Ok(result) => {
            let result = IoctlOut { result, ..Default::default() };
            scratch.bytes.truncate(arguments.out_size as usize);
            answer.reply(body, Reply::Ioctl(&result, &scratch.bytes))
        }
        Err(errno) => error_header(request.id, errno),
    }
}

/// Turns the value of a method into the reply to one request.
struct Answer<'a, F> {
    id: RequestId,
    fs: &'a F,
}

impl<F: FileSystem> Answer<'_, F> {
    fn send<E: Into<Errno>>(&self, body: &mut impl ReplyBody, outcome: Result<Reply<'_>, E>) -> OutHeader {
        match outcome {
            Ok(reply) => self.reply(body, reply),
            Err(errno) => error_header(self.id, errno.into()),
        }
    }

    fn reply(&self, body: &mut impl ReplyBody, reply: Reply<'_>) -> OutHeader {
        self.encode(body, reply).unwrap_or_else(|header| header)
    }

    /// The header to send, or that of the error to send in its place if the reply did not fit: the client asked for
    /// something it left no room for.
    fn encode(&self, body: &mut impl ReplyBody, reply: Reply<'_>) -> Result<OutHeader, OutHeader> {
        reply.encode(self.id, body).map_err(|no_room| {
            tracing::warn!("{:?}: {no_room}", self.id);
            error_header(self.id, Errno::ERANGE)
        })
    }

    fn empty(&self, body: &mut impl ReplyBody, outcome: Result<()>) -> OutHeader {
        self.send(body, outcome.map(|()| Reply::Empty))
    }

    /// An entry that the client is not told of must not count as looked up.
    fn entry(&self, body: &mut impl ReplyBody, outcome: Result<Entry>) -> OutHeader {
        let entry = match outcome {
            Ok(entry) => entry,
            Err(errno) => return error_header(self.id, errno),
        };
        self.encode(body, Reply::Entry(&entry.to_wire())).unwrap_or_else(|header| {
            self.take_back(&entry);
            header
        })
    }

    fn created(&self, body: &mut impl ReplyBody, outcome: Result<Created>) -> OutHeader {
        let Created { entry, opened } = match outcome {
            Ok(created) => created,
            Err(errno) => return error_header(self.id, errno),
        };
        let reply = (entry.to_wire(), open_out(&opened));
        self.encode(body, Reply::Created(&reply.0, &reply.1)).unwrap_or_else(|header| {
            let _ = self.fs.release(NodeId(entry.node), opened.handle, None);
            self.take_back(&entry);
            header
        })
    }

    fn opened(&self, body: &mut impl ReplyBody, node: NodeId, outcome: Result<Opened>) -> OutHeader {
        let opened = match outcome {
            Ok(opened) => opened,
            Err(errno) => return error_header(self.id, errno),
        };
        self.encode(body, Reply::Open(&open_out(&opened))).unwrap_or_else(|header| {
            let _ = self.fs.release(node, opened.handle, None);
            header
        })
    }

    fn take_back(&self, entry: &Entry) {
        if entry.node != 0 {
            self.fs.forget(NodeId(entry.node), 1);
        }
    }

    fn attributes(&self, body: &mut impl ReplyBody, outcome: Result<Attributes>) -> OutHeader {
        let found = outcome.map(|Attributes { attr, timeout }| AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            attr,
            ..Default::default()
        });
        self.send(body, found.as_ref().map(Reply::Attr))
    }

    /// GETXATTR and LISTXATTR: a size of zero asks only how long the value is.
    fn xattr(
        &self,
        body: &mut impl ReplyBody,
        scratch: &mut Scratch,
        size: u32,
        fetch: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> OutHeader {
        scratch.bytes.resize(size.min(XATTR_MAX) as usize, 0);
        match fetch(&mut scratch.bytes) {
            Ok(length) if size == 0 => self.reply(body, Reply::XattrSize(length as u32)),
            Ok(length) if length > scratch.bytes.len() => error_header(self.id, Errno::ERANGE),
            Ok(length) => self.reply(body, Reply::Bytes(&scratch.bytes[..length])),
            Err(errno) => error_header(self.id, errno),
        }
    }
}

fn open_out(opened: &Opened) -> OpenOut {
    OpenOut {
        fh: opened.handle.0,
        open_flags: opened.flags.bits(),
        backing_id: opened.backing_id.cast_signed(),
    }
}
