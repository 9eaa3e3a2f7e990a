//! A file system of one file, `disk`, whose bytes are those of a [`Disk`].
//!
//! The file bypasses every cache, so that each write of the loop device on it arrives here, and several may be under way
//! at once. A flush of the block layer arrives as FSYNC.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ashore_server::{Attributes, Caller, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write};
use ashore_wire::abi::{Attr, Kstatfs, OUT_HEADER_SIZE, OutHeader};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags};
use ashore_wire::seam::{Exchange, Payload, ReplyBody, RequestQueue};
use ashore_wire::{Errno, FileHandle, Name, NodeId, Opcode};

use super::disk::Disk;

/// The name of the one file.
pub(super) const FILE_NAME: &str = "disk";

const FILE: u64 = 2;
const HANDLE: FileHandle = FileHandle(1);
/// Nothing about it ever changes.
const FOREVER: Duration = Duration::from_secs(86_400);

/// The file system.
pub(super) struct OneFile(pub(super) Arc<Disk>);

impl OneFile {
    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let attr = match node.0 {
            1 => Attr { ino: 1, mode: 0o040_755, nlink: 2, blksize: 4096, ..Attr::default() },
            FILE => Attr {
                ino: FILE,
                mode: 0o100_600,
                nlink: 1,
                size: self.0.length(),
                blocks: self.0.length() / 512,
                blksize: 4096,
                ..Attr::default()
            },
            _ => return Err(Errno::ESTALE),
        };
        Ok(Attributes { attr, timeout: FOREVER })
    }
}

impl FileSystem for OneFile {
    fn features(&self) -> InitFlags {
        InitFlags::ASYNC_DIO
    }

    fn lookup(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        if parent != NodeId::ROOT || name.as_bytes() != FILE_NAME.as_bytes() {
            return Err(Errno::ENOENT);
        }
        let attr = self.attributes(NodeId(FILE))?.attr;
        Ok(Entry { node: FILE, generation: 0, attr, entry_timeout: FOREVER, attr_timeout: FOREVER })
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn getattr(&self, _: &Caller<'_>, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        self.attributes(node)
    }

    /// Times may be set, and are not kept.
    fn setattr(&self, _: &Caller<'_>, node: NodeId, _: &SetAttributes<'_>) -> Result<Attributes> {
        self.attributes(node)
    }

    fn open(&self, _: &Caller<'_>, _: NodeId, _: u32, _: OpenRequestFlags) -> Result<Opened> {
        let flags =
            OpenReplyFlags::DIRECT_IO | OpenReplyFlags::PARALLEL_DIRECT_WRITES | OpenReplyFlags::NOFLUSH;
        Ok(Opened::new(HANDLE, flags))
    }

    fn read(&self, _: NodeId, read: &Read, target: &mut dyn ReplyBody) -> Result<usize> {
        let rest = self.0.length().saturating_sub(read.offset);
        let mut buffer = vec![0; read.size.min(usize::try_from(rest).unwrap_or(usize::MAX))];
        self.0.read(&mut buffer, read.offset).map_err(|_| Errno::EIO)?;
        target.fill(0, &buffer).map_err(|_| Errno::EINVAL)?;
        Ok(buffer.len())
    }

    fn write(&self, _: &Caller<'_>, _: NodeId, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        let end = write.offset.checked_add(write.size as u64);
        if end.is_none_or(|end| end > self.0.length()) {
            return Err(Errno::ENOSPC);
        }
        let mut data = vec![0; write.size];
        let length = payload.copy_to(&mut data);
        let full = |error: std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        let written = self.0.write(&data[..length], write.offset);
        written.map_err(|error| if full(error) { Errno::ENOSPC } else { Errno::EIO })?;
        Ok(length)
    }

    fn fsync(&self, _: NodeId, _: FileHandle, _: bool) -> Result<()> {
        self.0.flush(self.0.flush_arrives()).map_err(|_| Errno::EIO)
    }

    fn fsyncdir(&self, _: NodeId, _: FileHandle, _: bool) -> Result<()> {
        Ok(())
    }

    fn syncfs(&self, _: NodeId) -> Result<()> {
        self.0.flush(self.0.flush_arrives()).map_err(|_| Errno::EIO)
    }

    fn statfs(&self, _: NodeId) -> Result<Kstatfs> {
        Ok(Kstatfs { bsize: 4096, frsize: 4096, namelen: 255, ..Default::default() })
    }
}

/// A queue that takes flushes out before the server sees them: the server waits for writes that are under way before it
/// passes a sync on, and a disk does not.
pub(super) struct FlushesApart<Q> {
    /// Where requests come from.
    pub(super) queue: Q,
    /// Whose flushes they are.
    pub(super) disk: Arc<Disk>,
}

impl<Q: RequestQueue> RequestQueue for FlushesApart<Q> {
    type Exchange = Q::Exchange;

    fn next(&mut self) -> Option<Q::Exchange> {
        loop {
            let mut exchange = self.queue.next()?;
            let (opcode, unique) = opcode_and_id(exchange.parts().0);
            if opcode != Opcode::Fsync as u32 {
                return Some(exchange);
            }
            let (arrival, disk) = (self.disk.flush_arrives(), Arc::clone(&self.disk));
            // Others go on while this one is held.
            thread::spawn(move || {
                let error = if disk.flush(arrival).is_ok() { 0 } else { -Errno::EIO.raw() };
                exchange.finish(OutHeader { len: OUT_HEADER_SIZE as u32, error, unique });
            });
        }
    }
}

fn opcode_and_id(head: &[u8]) -> (u32, u64) {
    let opcode = head.get(4..8).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let id = head.get(8..16).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_ne_bytes);
    (opcode, id)
}
