//! Bytes become a typed request here, once. After that, nothing asks whether a message is well formed.
//!
//! What is checked: every length against the bytes that are there, every name (ended by NUL, not empty, no `/`,
//! neither `.` nor `..`, at most 255 bytes), every flag word given its type. What is not: whether a node or a
//! handle exists, which only the file system knows.

use std::ffi::CStr;
use std::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::abi::*;
use crate::errno::Errno;
use crate::flags::{FSYNC_FDATASYNC, GETATTR_FH};
use crate::flags::{OpenRequestFlags, ReleaseFlags, SetattrValid, WriteFlags};
use crate::ids::{FileHandle, LockOwner, NodeId, RequestId};
use crate::opcode::Opcode;

/// Bytes of the longest name in a directory (`FUSE_NAME_MAX` before 7.44, and what Linux file systems take).
pub const NAME_MAX: usize = 255;
/// Bytes of the longest target of a symbolic link, NUL not counted (`PATH_MAX` less one).
pub const LINK_TARGET_MAX: usize = 4095;

/// How requests are laid out, as agreed by INIT. The default is what stands before INIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dialect {
    /// SETXATTR carries the long structure.
    pub setxattr_ext: bool,
}

/// A request: who asks, what about, and what for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Request<'a> {
    /// Which request this is.
    pub id: RequestId,
    /// The inode it is about; without meaning for INIT, DESTROY, INTERRUPT and BATCH_FORGET.
    pub node: NodeId,
    /// Who asks.
    pub caller: Caller<'a>,
    /// What for, by its number.
    pub opcode: Opcode,
    /// What for, with its arguments.
    pub operation: Operation<'a>,
}

/// The process that made the call, as its kernel sees it.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Caller<'a> {
    /// User id; `u32::MAX` where an id-mapped mount has no mapping for it.
    pub uid: u32,
    /// Group id; `u32::MAX` likewise.
    pub gid: u32,
    /// Process id; 0 for requests no process waits for.
    pub pid: u32,
    /// What came behind the arguments (`total_extlen`).
    pub extensions: Extensions<'a>,
}

/// Extensions of a request that makes a file.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Extensions<'a> {
    /// Supplementary groups of the caller: the one that the parent directory belongs to, if he is in it.
    pub groups: Option<&'a [u8]>,
    /// Security contexts, as they came: a `SecctxHeader` and what follows it.
    pub security_contexts: Option<&'a [u8]>,
}

impl Extensions<'_> {
    /// The supplementary groups one by one.
    pub fn group_ids(&self) -> impl Iterator<Item = u32> + '_ {
        let (ids, _) = self.groups.unwrap_or_default().as_chunks::<4>();
        ids.iter().map(|id| u32::from_ne_bytes(*id))
    }
}

impl<'a> Extensions<'a> {
    /// The security contexts one by one: the attribute's name, and its value. `None` if they are not well formed.
    pub fn labels(&self) -> Option<Vec<(&'a CStr, &'a [u8])>> {
        let Some(bytes) = self.security_contexts else { return Some(Vec::new()) };
        let (head, mut rest) = SecctxHeader::read_from_prefix(bytes).ok()?;
        (0..head.nr_secctx)
            .map(|_| {
                let (context, body) = Secctx::read_from_prefix(rest).ok()?;
                let name = CStr::from_bytes_until_nul(body).ok()?;
                let start = name.count_bytes() + 1;
                let value = body.get(start..start.checked_add(context.size as usize)?)?;
                let taken = (size_of::<Secctx>() + start + value.len()).next_multiple_of(EXTENSION_UNIT);
                rest = rest.get(taken..).unwrap_or_default();
                Some((name, value))
            })
            .collect()
    }
}

/// One name in a directory: not empty, no `/`, neither `.` nor `..`, at most 255 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a name. `None` if it is not one.
    pub fn new(name: &'a CStr) -> Option<Name<'a>> {
        let bytes = name.to_bytes();
        let fine = !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.contains(&b'/');
        (fine && bytes.len() <= NAME_MAX).then_some(Name(name))
    }

    /// The name with its NUL, as system calls take it.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name without its NUL.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// What a request asks for, with its arguments. Named after the protocol's operations.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs, reason = "arguments carry the names of the kernel's header, or say what they are")]
pub enum Operation<'a> {
    Lookup { name: Name<'a> },
    Forget { lookups: u64 },
    BatchForget { nodes: &'a [ForgetOne] },
    Getattr { handle: Option<FileHandle> },
    Statx { handle: Option<FileHandle>, flags: u32, mask: u32 },
    Setattr { valid: SetattrValid, attributes: &'a SetattrIn },
    Readlink,
    Symlink { name: Name<'a>, target: &'a CStr },
    Mknod { name: Name<'a>, mode: u32, umask: u32, device: u32 },
    Mkdir { name: Name<'a>, mode: u32, umask: u32 },
    Unlink { name: Name<'a> },
    Rmdir { name: Name<'a> },
    Rename { name: Name<'a>, new_parent: NodeId, new_name: Name<'a>, flags: u32 },
    Link { existing: NodeId, name: Name<'a> },
    Open { flags: u32, open_flags: OpenRequestFlags },
    Create { name: Name<'a>, flags: u32, mode: u32, umask: u32, open_flags: OpenRequestFlags },
    Tmpfile { flags: u32, mode: u32, umask: u32 },
    Read { handle: FileHandle, offset: u64, size: u32, flags: u32 },
    Write { handle: FileHandle, offset: u64, size: u32, write_flags: WriteFlags, flags: u32 },
    Statfs,
    Release { handle: FileHandle, flags: u32, release_flags: ReleaseFlags, lock_owner: LockOwner },
    Flush { handle: FileHandle, lock_owner: LockOwner },
    Fsync { handle: FileHandle, data_only: bool },
    Syncfs { complete: bool },
    Setxattr { name: &'a CStr, value: &'a [u8], flags: u32, setxattr_flags: u32 },
    Getxattr { name: &'a CStr, size: u32 },
    Listxattr { size: u32 },
    Removexattr { name: &'a CStr },
    Init { offer: InitIn },
    Destroy,
    Opendir { flags: u32 },
    Readdir { handle: FileHandle, offset: u64, size: u32 },
    Readdirplus { handle: FileHandle, offset: u64, size: u32 },
    Releasedir { handle: FileHandle },
    Fsyncdir { handle: FileHandle, data_only: bool },
    Getlk { lock: &'a LkIn },
    Setlk { lock: &'a LkIn, wait: bool },
    Access { mask: u32 },
    Interrupt { target: RequestId },
    Bmap { block: u64, block_size: u32 },
    Ioctl { arguments: &'a IoctlIn, data: &'a [u8] },
    Poll { arguments: &'a PollIn },
    NotifyReply { arguments: &'a NotifyRetrieveIn, data: &'a [u8] },
    Fallocate { handle: FileHandle, offset: u64, length: u64, mode: u32 },
    Lseek { handle: FileHandle, offset: u64, whence: u32 },
    CopyFileRange { arguments: &'a CopyFileRangeIn, wide: bool },
    Setupmapping { arguments: &'a SetupmappingIn },
    Removemapping { mappings: &'a [RemovemappingOne] },
}

/// The peer broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// There is not even a header; nobody can be answered.
    #[error("a request of {0} bytes is too short for its header")]
    NoHeader(usize),
    /// The header says more bytes than came.
    #[error("the header says {said} bytes, {came} came")]
    Length {
        /// `InHeader::len`.
        said: usize,
        /// Bytes that came.
        came: usize,
    },
    /// An operation that protocol 7.45 does not have.
    #[error("unknown opcode {0}")]
    UnknownOpcode(u32),
    /// Arguments missing, or not what they must be.
    #[error("{opcode}: {what}")]
    Malformed {
        /// The operation asked for.
        opcode: Opcode,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ProtocolError {
    /// The answer to give: ENOSYS for the unknown (a client then does without), ENAMETOOLONG for a long name,
    /// EINVAL for the rest.
    pub fn errno(&self) -> Errno {
        match self {
            ProtocolError::UnknownOpcode(_) => Errno::ENOSYS,
            ProtocolError::Malformed { what: NAME_TOO_LONG, .. } => Errno::ENAMETOOLONG,
            _ => Errno::EINVAL,
        }
    }
}

const NAME_TOO_LONG: &str = "the name is longer than 255 bytes";

impl<'a> Request<'a> {
    /// Parses the head of a request that was `payload_len` bytes longer.
    pub fn parse(head: &'a [u8], payload_len: usize, dialect: Dialect) -> Result<Request<'a>, ProtocolError> {
        let (header, _) = InHeader::ref_from_prefix(head).map_err(|_| ProtocolError::NoHeader(head.len()))?;
        let (said, came) = (header.len as usize, head.len() + payload_len);
        if said > came || said < IN_HEADER_SIZE {
            return Err(ProtocolError::Length { said, came });
        }
        let opcode = Opcode::from_raw(header.opcode).ok_or(ProtocolError::UnknownOpcode(header.opcode))?;
        let mut arguments = Arguments { opcode, bytes: &head[IN_HEADER_SIZE..said.min(head.len())] };
        let extensions = arguments.take_extensions(header)?;
        let node = NodeId(header.nodeid);
        let payload = said.saturating_sub(head.len());
        let operation = arguments.operation(header.nodeid, payload, dialect)?;
        let caller = Caller { uid: header.uid, gid: header.gid, pid: header.pid, extensions };
        Ok(Request { id: RequestId(header.unique), node, caller, opcode, operation })
    }

    /// The id of a request whose head may be anything; `None` without a header.
    pub fn id_of(head: &[u8]) -> Option<RequestId> {
        InHeader::ref_from_prefix(head).ok().map(|(header, _)| RequestId(header.unique))
    }
}

/// The bytes of the arguments, taken from the front.
struct Arguments<'a> {
    opcode: Opcode,
    bytes: &'a [u8],
}

impl<'a> Arguments<'a> {
    fn operation(
        &mut self,
        nodeid: u64,
        payload: usize,
        dialect: Dialect,
    ) -> Result<Operation<'a>, ProtocolError> {
        Ok(match self.opcode {
            Opcode::Lookup => Operation::Lookup { name: self.name()? },
            Opcode::Forget => Operation::Forget { lookups: self.take::<ForgetIn>()?.nlookup },
            Opcode::BatchForget => self.batch_forget()?,
            Opcode::Getattr => {
                let arguments: &GetattrIn = self.take()?;
                Operation::Getattr {
                    handle: handle_if(arguments.getattr_flags & GETATTR_FH != 0, arguments.fh),
                }
            }
            Opcode::Statx => {
                let arguments: &StatxIn = self.take()?;
                Operation::Statx {
                    handle: handle_if(arguments.getattr_flags & GETATTR_FH != 0, arguments.fh),
                    flags: arguments.sx_flags,
                    mask: arguments.sx_mask,
                }
            }
            Opcode::Setattr => {
                let attributes: &SetattrIn = self.take()?;
                Operation::Setattr { valid: SetattrValid::from_bits_retain(attributes.valid), attributes }
            }
            Opcode::Readlink => Operation::Readlink,
            Opcode::Symlink => {
                let name = self.name()?;
                let target = self.c_str()?;
                if target.is_empty() || target.count_bytes() > LINK_TARGET_MAX {
                    return self.malformed("the target of the link is empty or longer than 4095 bytes");
                }
                Operation::Symlink { name, target }
            }
            Opcode::Mknod => {
                let MknodIn { mode, rdev, umask, .. } = *self.take()?;
                Operation::Mknod { name: self.name()?, mode, umask, device: rdev }
            }
            Opcode::Mkdir => {
                let MkdirIn { mode, umask } = *self.take()?;
                Operation::Mkdir { name: self.name()?, mode, umask }
            }
            Opcode::Unlink => Operation::Unlink { name: self.name()? },
            Opcode::Rmdir => Operation::Rmdir { name: self.name()? },
            Opcode::Rename => {
                let RenameIn { newdir } = *self.take()?;
                self.rename(newdir, 0)?
            }
            Opcode::Rename2 => {
                let Rename2In { newdir, flags, .. } = *self.take()?;
                self.rename(newdir, flags)?
            }
            Opcode::Link => {
                let LinkIn { oldnodeid } = *self.take()?;
                Operation::Link { existing: NodeId(oldnodeid), name: self.name()? }
            }
            Opcode::Open => {
                let OpenIn { flags, open_flags } = *self.take()?;
                Operation::Open { flags, open_flags: OpenRequestFlags::from_bits_retain(open_flags) }
            }
            Opcode::Create => {
                let CreateIn { flags, mode, umask, open_flags } = *self.take()?;
                let open_flags = OpenRequestFlags::from_bits_retain(open_flags);
                Operation::Create { name: self.name()?, flags, mode, umask, open_flags }
            }
            Opcode::Tmpfile => {
                let CreateIn { flags, mode, umask, .. } = *self.take()?;
                Operation::Tmpfile { flags, mode, umask }
            }
            Opcode::Read => {
                let ReadIn { fh, offset, size, flags, .. } = *self.take()?;
                Operation::Read { handle: FileHandle(fh), offset, size, flags }
            }
            Opcode::Write => self.write(payload)?,
            Opcode::Statfs => Operation::Statfs,
            Opcode::Release => {
                let ReleaseIn { fh, flags, release_flags, lock_owner } = *self.take()?;
                let release_flags = ReleaseFlags::from_bits_retain(release_flags);
                let lock_owner = LockOwner(lock_owner);
                Operation::Release { handle: FileHandle(fh), flags, release_flags, lock_owner }
            }
            Opcode::Flush => {
                let FlushIn { fh, lock_owner, .. } = *self.take()?;
                Operation::Flush { handle: FileHandle(fh), lock_owner: LockOwner(lock_owner) }
            }
            Opcode::Fsync => {
                let (handle, data_only) = self.fsync()?;
                Operation::Fsync { handle, data_only }
            }
            Opcode::Fsyncdir => {
                let (handle, data_only) = self.fsync()?;
                Operation::Fsyncdir { handle, data_only }
            }
            // Shorter or longer arguments are taken alike.
            Opcode::Syncfs => {
                let complete = self.take::<SyncfsIn>().is_ok_and(|syncfs| syncfs.padding == SYNCFS_COMPLETE);
                Operation::Syncfs { complete }
            }
            Opcode::Setxattr => self.setxattr(dialect)?,
            Opcode::Getxattr => {
                let GetxattrIn { size, .. } = *self.take()?;
                Operation::Getxattr { name: self.xattr_name()?, size }
            }
            Opcode::Listxattr => Operation::Listxattr { size: self.take::<GetxattrIn>()?.size },
            Opcode::Removexattr => Operation::Removexattr { name: self.xattr_name()? },
            Opcode::Init => self.init()?,
            Opcode::Destroy => Operation::Destroy,
            Opcode::Opendir => Operation::Opendir { flags: self.take::<OpenIn>()?.flags },
            Opcode::Readdir => {
                let ReadIn { fh, offset, size, .. } = *self.take()?;
                Operation::Readdir { handle: FileHandle(fh), offset, size }
            }
            Opcode::Readdirplus => {
                let ReadIn { fh, offset, size, .. } = *self.take()?;
                Operation::Readdirplus { handle: FileHandle(fh), offset, size }
            }
            Opcode::Releasedir => Operation::Releasedir { handle: FileHandle(self.take::<ReleaseIn>()?.fh) },
            Opcode::Getlk => Operation::Getlk { lock: self.take()? },
            Opcode::Setlk => Operation::Setlk { lock: self.take()?, wait: false },
            Opcode::Setlkw => Operation::Setlk { lock: self.take()?, wait: true },
            Opcode::Access => Operation::Access { mask: self.take::<AccessIn>()?.mask },
            Opcode::Interrupt => {
                Operation::Interrupt { target: RequestId(self.take::<InterruptIn>()?.unique) }
            }
            Opcode::Bmap => {
                let BmapIn { block, blocksize, .. } = *self.take()?;
                Operation::Bmap { block, block_size: blocksize }
            }
            Opcode::Ioctl => {
                let arguments: &IoctlIn = self.take()?;
                let data = self.take_bytes(arguments.in_size as usize)?;
                Operation::Ioctl { arguments, data }
            }
            Opcode::Poll => Operation::Poll { arguments: self.take()? },
            Opcode::NotifyReply => {
                // An answer to a notification: `nodeid` is the inode, the id is that of the notification.
                let _ = nodeid;
                let arguments: &NotifyRetrieveIn = self.take()?;
                let data = self.take_bytes(arguments.size as usize)?;
                Operation::NotifyReply { arguments, data }
            }
            Opcode::Fallocate => {
                let FallocateIn { fh, offset, length, mode, .. } = *self.take()?;
                Operation::Fallocate { handle: FileHandle(fh), offset, length, mode }
            }
            Opcode::Lseek => {
                let LseekIn { fh, offset, whence, .. } = *self.take()?;
                Operation::Lseek { handle: FileHandle(fh), offset, whence }
            }
            Opcode::CopyFileRange => Operation::CopyFileRange { arguments: self.take()?, wide: false },
            Opcode::CopyFileRange64 => Operation::CopyFileRange { arguments: self.take()?, wide: true },
            Opcode::Setupmapping => Operation::Setupmapping { arguments: self.take()? },
            Opcode::Removemapping => {
                let count = self.take::<RemovemappingIn>()?.count;
                Operation::Removemapping { mappings: self.take_many(count)? }
            }
        })
    }

    fn malformed<T>(&self, what: &'static str) -> Result<T, ProtocolError> {
        Err(ProtocolError::Malformed { opcode: self.opcode, what })
    }

    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<&'a T, ProtocolError> {
        match T::ref_from_prefix(self.bytes) {
            Ok((value, rest)) => {
                self.bytes = rest;
                Ok(value)
            }
            // Heads are copied to an aligned buffer and all structures before names are multiples of 8, so a
            // misaligned one cannot happen with honest transports; it is an error all the same, never a crash.
            Err(_) => self.malformed("arguments are missing"),
        }
    }

    fn take_many<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        count: u32,
    ) -> Result<&'a [T], ProtocolError> {
        match <[T]>::ref_from_prefix_with_elems(self.bytes, count as usize) {
            Ok((values, rest)) => {
                self.bytes = rest;
                Ok(values)
            }
            Err(_) => self.malformed("fewer elements came than were announced"),
        }
    }

    fn take_bytes(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => self.malformed("less data came than was announced"),
        }
    }

    fn c_str(&mut self) -> Result<&'a CStr, ProtocolError> {
        match CStr::from_bytes_until_nul(self.bytes) {
            Ok(string) => {
                self.bytes = &self.bytes[string.count_bytes() + 1..];
                Ok(string)
            }
            Err(_) => self.malformed("a name has no end"),
        }
    }

    fn name(&mut self) -> Result<Name<'a>, ProtocolError> {
        let string = self.c_str()?;
        if string.count_bytes() > NAME_MAX {
            return self.malformed(NAME_TOO_LONG);
        }
        match Name::new(string) {
            Some(name) => Ok(name),
            None => self.malformed("a name is empty, \".\", \"..\", or contains \"/\""),
        }
    }

    /// Attribute names are not directory names: they may contain `/`, and have a limit of 255 bytes too.
    fn xattr_name(&mut self) -> Result<&'a CStr, ProtocolError> {
        let name = self.c_str()?;
        if name.is_empty() || name.count_bytes() > NAME_MAX {
            return self.malformed("the attribute's name is empty or longer than 255 bytes");
        }
        Ok(name)
    }

    fn batch_forget(&mut self) -> Result<Operation<'a>, ProtocolError> {
        let count = self.take::<BatchForgetIn>()?.count;
        Ok(Operation::BatchForget { nodes: self.take_many(count)? })
    }

    fn rename(&mut self, newdir: u64, flags: u32) -> Result<Operation<'a>, ProtocolError> {
        let (name, new_name) = (self.name()?, self.name()?);
        Ok(Operation::Rename { name, new_parent: NodeId(newdir), new_name, flags })
    }

    fn write(&mut self, payload: usize) -> Result<Operation<'a>, ProtocolError> {
        let WriteIn { fh, offset, size, write_flags, flags, .. } = *self.take()?;
        if payload + self.bytes.len() < size as usize {
            return self.malformed("less data came than was announced");
        }
        let write_flags = WriteFlags::from_bits_retain(write_flags);
        Ok(Operation::Write { handle: FileHandle(fh), offset, size, write_flags, flags })
    }

    fn fsync(&mut self) -> Result<(FileHandle, bool), ProtocolError> {
        let FsyncIn { fh, fsync_flags, .. } = *self.take()?;
        Ok((FileHandle(fh), fsync_flags & FSYNC_FDATASYNC != 0))
    }

    fn setxattr(&mut self, dialect: Dialect) -> Result<Operation<'a>, ProtocolError> {
        let (size, flags, setxattr_flags) = if dialect.setxattr_ext {
            let SetxattrIn { size, flags, setxattr_flags, .. } = *self.take()?;
            (size, flags, setxattr_flags)
        } else {
            let [size, flags]: [u32; 2] = *self.take()?;
            (size, flags, 0)
        };
        let name = self.xattr_name()?;
        Ok(Operation::Setxattr { name, value: self.take_bytes(size as usize)?, flags, setxattr_flags })
    }

    /// INIT before 7.36 is shorter; what is not there counts as zero.
    fn init(&mut self) -> Result<Operation<'a>, ProtocolError> {
        if self.bytes.len() < COMPAT_INIT_IN_SIZE {
            return self.malformed("arguments are missing");
        }
        let mut offer = [0; size_of::<InitIn>()];
        let there = self.bytes.len().min(offer.len());
        offer[..there].copy_from_slice(&self.bytes[..there]);
        Ok(Operation::Init { offer: zerocopy::transmute!(offer) })
    }

    /// Cuts the extensions off the end of the arguments.
    fn take_extensions(&mut self, header: &InHeader) -> Result<Extensions<'a>, ProtocolError> {
        let length = usize::from(header.total_extlen) * EXTENSION_UNIT;
        let Some(split) = self.bytes.len().checked_sub(length) else {
            return self.malformed("extensions are longer than the request");
        };
        let (arguments, mut rest) = self.bytes.split_at(split);
        self.bytes = arguments;
        let mut extensions = Extensions::default();
        while !rest.is_empty() {
            let Ok((head, _)) = ExtHeader::read_from_prefix(rest) else {
                return self.malformed("an extension is shorter than its head");
            };
            let size = head.size as usize;
            if size < size_of::<ExtHeader>() || size > rest.len() {
                return self.malformed("an extension's size is wrong");
            }
            match head.kind {
                EXTENSION_GROUPS => {
                    extensions.groups = Some(self.groups(&rest[size_of::<ExtHeader>()..size])?)
                }
                0..=MAX_SECURITY_CONTEXTS => extensions.security_contexts = Some(&rest[..size]),
                // An extension that came after this protocol: meant to be skipped.
                _ => {}
            }
            rest = rest.get(size.next_multiple_of(EXTENSION_UNIT)..).unwrap_or_default();
        }
        Ok(extensions)
    }

    fn groups(&self, body: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        let count = SuppGroups::read_from_prefix(body).map(|(groups, _)| groups.nr_groups as usize);
        let ids = count.ok().and_then(|count| body.get(4..4 + count.checked_mul(4)?));
        ids.map_or_else(|| self.malformed("fewer groups came than were announced"), Ok)
    }
}

fn handle_if(valid: bool, fh: u64) -> Option<FileHandle> {
    valid.then_some(FileHandle(fh))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// A request's bytes in an aligned buffer, as transports have them.
    #[repr(align(8))]
    struct Aligned([u8; 1024]);

    fn message(opcode: u32, parts: &[&[u8]]) -> (Aligned, usize) {
        let length = IN_HEADER_SIZE + parts.iter().map(|part| part.len()).sum::<usize>();
        let header =
            InHeader { len: length as u32, opcode, unique: 6, nodeid: 1, uid: 1000, ..Default::default() };
        let mut buffer = Aligned([0; 1024]);
        let mut position = 0;
        for part in [header.as_bytes()].iter().chain(parts) {
            buffer.0[position..position + part.len()].copy_from_slice(part);
            position += part.len();
        }
        (buffer, length)
    }

    fn parsed(opcode: Opcode, parts: &[&[u8]], check: impl FnOnce(Result<Operation<'_>, ProtocolError>)) {
        let (buffer, length) = message(opcode as u32, parts);
        let request = Request::parse(&buffer.0[..length], 0, Dialect::default());
        check(request.map(|request| request.operation));
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "../x"] {
            let bytes = [name.as_bytes(), b"\0"].concat();
            parsed(Opcode::Lookup, &[&bytes], |request| {
                assert_eq!(request.unwrap_err().errno(), Errno::EINVAL, "{name:?}");
            });
        }
        let long = [vec![b'a'; 256], vec![0]].concat();
        parsed(Opcode::Unlink, &[&long], |request| {
            assert_eq!(request.unwrap_err().errno(), Errno::ENAMETOOLONG);
        });
        parsed(Opcode::Lookup, &[b"no end"], |request| assert!(request.is_err()));
        parsed(Opcode::Lookup, &[b"...\0"], |request| assert!(request.is_ok()));
    }

    #[test]
    fn a_rename_has_both_its_names() {
        let arguments = Rename2In { newdir: 7, flags: 1, padding: 0 };
        parsed(Opcode::Rename2, &[arguments.as_bytes(), b"old\0new\0"], |request| {
            let Ok(Operation::Rename { name, new_parent, new_name, flags }) = request else {
                panic!("{request:?}")
            };
            assert_eq!((name.as_bytes(), new_name.as_bytes()), (&b"old"[..], &b"new"[..]));
            assert_eq!((new_parent, flags), (NodeId(7), 1));
        });
        parsed(Opcode::Rename2, &[arguments.as_bytes(), b"old\0new"], |request| assert!(request.is_err()));
    }

    #[test]
    fn syncfs_takes_any_argument() {
        let complete = SyncfsIn { padding: SYNCFS_COMPLETE };
        for (argument, complete) in
            [(&[][..], false), (&[0; 8], false), (&[0xff; 24], false), (complete.as_bytes(), true)]
        {
            parsed(Opcode::Syncfs, &[argument], |request| {
                assert_eq!(request, Ok(Operation::Syncfs { complete }));
            });
        }
    }

    #[test]
    fn setxattr_is_read_in_the_dialect_that_was_agreed() {
        let value = [7u8; 3];
        let short = [3u32, 0];
        parsed(Opcode::Setxattr, &[short.as_bytes(), b"user.a\0", &value], |request| {
            assert!(matches!(request, Ok(Operation::Setxattr { value: [7, 7, 7], setxattr_flags: 0, .. })));
        });
        let long = SetxattrIn { size: 3, setxattr_flags: 1, ..Default::default() };
        let (buffer, length) = message(Opcode::Setxattr as u32, &[long.as_bytes(), b"user.a\0", &value]);
        let request = Request::parse(&buffer.0[..length], 0, Dialect { setxattr_ext: true }).unwrap();
        assert!(matches!(request.operation, Operation::Setxattr { setxattr_flags: 1, .. }));
    }

    #[test]
    fn the_old_short_init_is_understood() {
        let short = [7u32, 27, 131_072, 0xff];
        parsed(Opcode::Init, &[short.as_bytes()], |request| {
            let Ok(Operation::Init { offer }) = request else { panic!("{request:?}") };
            assert_eq!((offer.minor, offer.flags, offer.flags2), (27, 0xff, 0));
        });
        parsed(Opcode::Init, &[&[0; 12]], |request| assert!(request.is_err()));
    }

    #[test]
    fn a_write_whose_payload_is_shorter_than_it_says_is_refused() {
        let arguments = WriteIn { size: 4096, ..Default::default() };
        let (mut buffer, length) = message(Opcode::Write as u32, &[arguments.as_bytes()]);
        let mut with_payload = |payload: usize| {
            let total = (length + payload) as u32;
            buffer.0[..4].copy_from_slice(total.as_bytes());
            Request::parse(&buffer.0[..length], payload, Dialect::default()).is_ok()
        };
        assert!(with_payload(4096));
        assert!(with_payload(5000));
        assert!(!with_payload(4095));
    }

    #[test]
    fn supplementary_groups_come_from_the_extension() {
        let extension = [16u32, EXTENSION_GROUPS, 1, 4242];
        let (mut buffer, length) = message(
            Opcode::Mkdir as u32,
            &[MkdirIn::default().as_bytes(), b"dir\0\0\0\0\0", extension.as_bytes()],
        );
        let units = 2u16;
        buffer.0[36..38].copy_from_slice(units.as_bytes());
        let request = Request::parse(&buffer.0[..length], 0, Dialect::default()).unwrap();
        assert_eq!(request.caller.extensions.group_ids().collect::<Vec<_>>(), [4242]);
        buffer.0[36..38].copy_from_slice(200u16.as_bytes());
        assert!(Request::parse(&buffer.0[..length], 0, Dialect::default()).is_err());
    }

    #[test]
    fn an_unknown_opcode_is_enosys() {
        let (buffer, length) = message(4711, &[&[0; 64]]);
        let error = Request::parse(&buffer.0[..length], 0, Dialect::default()).unwrap_err();
        assert_eq!((error, error.errno()), (ProtocolError::UnknownOpcode(4711), Errno::ENOSYS));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        /// Aim: no bytes whatever make the parser panic. Method: random heads, opcodes mostly valid, lengths
        /// mostly right, so that the arms behind the header are reached.
        #[test]
        fn no_bytes_make_the_parser_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            opcode in 0u32..56,
            honest_length in proptest::bool::weighted(0.9),
            extlen in 0u16..4,
            payload in 0usize..8192,
            setxattr_ext: bool,
        ) {
            let total = (bytes.len() + payload) as u32;
            if honest_length && bytes.len() >= IN_HEADER_SIZE {
                bytes[..4].copy_from_slice(total.as_bytes());
                bytes[4..8].copy_from_slice(opcode.as_bytes());
                bytes[36..38].copy_from_slice(extlen.as_bytes());
            }
            let mut aligned = Aligned([0; 1024]);
            aligned.0[..bytes.len()].copy_from_slice(&bytes);
            if let Err(error) = Request::parse(&aligned.0[..bytes.len()], payload, Dialect { setxattr_ext }) {
                let _ = (error.errno(), error.to_string());
            }
        }
    }
}
