//! The requests that tests and measurements send, each with the room its answer needs.

use ashore_wire::abi::*;
use ashore_wire::encode::RequestHead;
use ashore_wire::flags::InitFlags;
use ashore_wire::{FileHandle, LockOwner, NodeId, Opcode, RequestId};

/// Pages of a link that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// The first.
    pub first: u32,
    /// Bytes, from the start of the first page on.
    pub bytes: usize,
}

impl Pages {
    /// Bytes of one.
    pub const BYTES: usize = 4096;
}

/// A request, ready but for its id.
#[derive(Clone, Debug)]
pub struct Call {
    pub(super) head: RequestHead,
    pub(super) payload: Option<Pages>,
    pub(super) reply_room: usize,
    pub(super) target: Option<Pages>,
    pub(super) urgent: bool,
}

/// What Linux 6.18 offers over virtio-fs.
pub const LINUX_FLAGS: InitFlags = InitFlags::from_bits_retain(0x73ff_fffb | 0x0000_05fd << 32);

const READAHEAD_BYTES: u32 = 128 << 10;
const DIRECTORY_ROOM: u32 = 128 << 10;
const NEW_FILE_MODE: u32 = 0o100_644;
const NEW_DIRECTORY_MODE: u32 = 0o40_755;
/// `O_RDWR`.
const READ_WRITE: u32 = 2;

impl Call {
    /// Nodes in one BATCH_FORGET.
    pub const FORGET_MAX: usize = 4096;

    /// A request of any kind, whose answer has `reply_room` bytes at most.
    pub fn new(head: RequestHead, reply_room: usize) -> Call {
        Call { head, payload: None, reply_room, target: None, urgent: false }
    }

    fn about(opcode: Opcode, node: NodeId) -> RequestHead {
        RequestHead::new(opcode, node)
    }

    /// INIT, as version 7.45.
    pub fn init(flags: InitFlags) -> Call {
        let offer = InitIn {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            max_readahead: READAHEAD_BYTES,
            flags: flags.bits() as u32,
            flags2: (flags.bits() >> 32) as u32,
            ..Default::default()
        };
        Call::new(Call::about(Opcode::Init, NodeId(0)).with(&offer), size_of::<InitOut>())
    }

    /// A request that asks for nothing that a file system has: the cost of asking.
    pub fn empty() -> Call {
        let poll = Call::about(Opcode::Poll, NodeId::ROOT).with(&PollIn::default());
        Call::new(poll, size_of::<PollOut>())
    }

    /// LOOKUP.
    pub fn lookup(parent: NodeId, name: &[u8]) -> Call {
        Call::new(Call::about(Opcode::Lookup, parent).name(name), size_of::<EntryOut>())
    }

    /// GETATTR.
    pub fn getattr(node: NodeId) -> Call {
        let getattr = Call::about(Opcode::Getattr, node).with(&GetattrIn::default());
        Call::new(getattr, size_of::<AttrOut>())
    }

    /// OPEN, with the `O_` flags of open(2).
    pub fn open(node: NodeId, flags: u32) -> Call {
        let open = Call::about(Opcode::Open, node).with(&OpenIn { flags, open_flags: 0 });
        Call::new(open, size_of::<OpenOut>())
    }

    /// RELEASE.
    pub fn release(node: NodeId, handle: FileHandle) -> Call {
        let release = ReleaseIn { fh: handle.0, ..Default::default() };
        Call::new(Call::about(Opcode::Release, node).with(&release), 0)
    }

    /// CREATE, for reading and writing.
    pub fn create(parent: NodeId, name: &[u8]) -> Call {
        let create = CreateIn { flags: READ_WRITE, mode: NEW_FILE_MODE, ..Default::default() };
        let head = Call::about(Opcode::Create, parent).with(&create).name(name);
        Call::new(head, size_of::<EntryOut>() + size_of::<OpenOut>())
    }

    /// MKNOD of an empty regular file.
    pub fn mknod(parent: NodeId, name: &[u8]) -> Call {
        let mknod = MknodIn { mode: NEW_FILE_MODE, ..Default::default() };
        Call::new(Call::about(Opcode::Mknod, parent).with(&mknod).name(name), size_of::<EntryOut>())
    }

    /// MKDIR.
    pub fn mkdir(parent: NodeId, name: &[u8]) -> Call {
        let mkdir = MkdirIn { mode: NEW_DIRECTORY_MODE, umask: 0 };
        Call::new(Call::about(Opcode::Mkdir, parent).with(&mkdir).name(name), size_of::<EntryOut>())
    }

    /// UNLINK.
    pub fn unlink(parent: NodeId, name: &[u8]) -> Call {
        Call::new(Call::about(Opcode::Unlink, parent).name(name), 0)
    }

    /// RMDIR.
    pub fn rmdir(parent: NodeId, name: &[u8]) -> Call {
        Call::new(Call::about(Opcode::Rmdir, parent).name(name), 0)
    }

    /// READ into pages.
    pub fn read(node: NodeId, handle: FileHandle, offset: u64, into: Pages) -> Call {
        let read = ReadIn { fh: handle.0, offset, size: into.bytes as u32, ..Default::default() };
        Call { target: Some(into), ..Call::new(Call::about(Opcode::Read, node).with(&read), 0) }
    }

    /// READ of up to 256 KiB.
    pub fn read_bytes(node: NodeId, handle: FileHandle, offset: u64, most: u32) -> Call {
        let read = ReadIn { fh: handle.0, offset, size: most, ..Default::default() };
        Call::new(Call::about(Opcode::Read, node).with(&read), most as usize)
    }

    /// WRITE from pages.
    pub fn write(node: NodeId, handle: FileHandle, offset: u64, from: Pages) -> Call {
        let write = WriteIn { fh: handle.0, offset, size: from.bytes as u32, ..Default::default() };
        let head = Call::about(Opcode::Write, node).with(&write);
        Call { payload: Some(from), ..Call::new(head, size_of::<WriteOut>()) }
    }

    /// WRITE of up to 64 KiB.
    pub fn write_bytes(node: NodeId, handle: FileHandle, offset: u64, from: &[u8]) -> Call {
        let write = WriteIn { fh: handle.0, offset, size: from.len() as u32, ..Default::default() };
        Call::new(Call::about(Opcode::Write, node).with(&write).with(from), size_of::<WriteOut>())
    }

    /// FSYNC.
    pub fn fsync(node: NodeId, handle: FileHandle) -> Call {
        let fsync = FsyncIn { fh: handle.0, ..Default::default() };
        Call::new(Call::about(Opcode::Fsync, node).with(&fsync), 0)
    }

    /// SYNCFS.
    pub fn syncfs(node: NodeId) -> Call {
        Call::new(Call::about(Opcode::Syncfs, node).with(&SyncfsIn::default()), 0)
    }

    /// OPENDIR.
    pub fn opendir(node: NodeId) -> Call {
        let open = Call::about(Opcode::Opendir, node).with(&OpenIn::default());
        Call::new(open, size_of::<OpenOut>())
    }

    /// READDIRPLUS of 128 KiB.
    pub fn readdirplus(node: NodeId, handle: FileHandle, offset: u64) -> Call {
        let read = ReadIn { fh: handle.0, offset, size: DIRECTORY_ROOM, ..Default::default() };
        Call::new(Call::about(Opcode::Readdirplus, node).with(&read), DIRECTORY_ROOM as usize)
    }

    /// RELEASEDIR.
    pub fn releasedir(node: NodeId, handle: FileHandle) -> Call {
        let release = ReleaseIn { fh: handle.0, ..Default::default() };
        Call::new(Call::about(Opcode::Releasedir, node).with(&release), 0)
    }

    /// SETLK or, to wait for it, SETLKW.
    pub fn setlk(node: NodeId, lock: &LkIn, wait: bool) -> Call {
        let opcode = if wait { Opcode::Setlkw } else { Opcode::Setlk };
        Call::new(Call::about(opcode, node).with(lock), 0)
    }

    /// FLUSH, which drops the POSIX locks of this owner.
    pub fn flush(node: NodeId, handle: FileHandle, owner: LockOwner) -> Call {
        let flush = FlushIn { fh: handle.0, lock_owner: owner.0, ..Default::default() };
        Call::new(Call::about(Opcode::Flush, node).with(&flush), 0)
    }

    /// INTERRUPT of another request. It has no answer.
    pub fn interrupt(target: RequestId) -> Call {
        let interrupt = Call::about(Opcode::Interrupt, NodeId(0)).with(&InterruptIn { unique: target.0 });
        Call { urgent: true, ..Call::new(interrupt, 0) }
    }

    /// BATCH_FORGET of up to [`Call::FORGET_MAX`] nodes. It has no answer.
    pub fn batch_forget(nodes: &[(NodeId, u64)]) -> Call {
        let count = BatchForgetIn { count: nodes.len() as u32, dummy: 0 };
        let mut head = Call::about(Opcode::BatchForget, NodeId(0)).with(&count);
        for (node, lookups) in nodes {
            head = head.with(&ForgetOne { nodeid: node.0, nlookup: *lookups });
        }
        Call { urgent: true, ..Call::new(head, 0) }
    }

    /// DESTROY.
    pub fn destroy() -> Call {
        Call::new(Call::about(Opcode::Destroy, NodeId(0)), 0)
    }
}
