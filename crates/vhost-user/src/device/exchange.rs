//! One request out of a ring, and the way back for its reply.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ashore_wire::abi::{IN_HEADER_SIZE, InHeader, OUT_HEADER_SIZE, OutHeader};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Backlog, Exchange, NoRoom, Payload, ReplyBody, TransferMode, head_length};
use ashore_wire::{Errno, Opcode, Request, RequestId};
use zerocopy::{FromBytes, IntoBytes};

use crate::memory::{GuestMap, Spans};

use super::chain::{ChainBytes, ChainError};
use super::dirty_log::DirtyLog;
use super::ring::Ring;
use super::shared::Shared;
use super::transfer;

/// Bytes of a head buffer that are kept for the next request. Enough for any name or xattr; a longer head was an
/// odd one.
const HEAD_KEPT_MAX: usize = 128 * 1024;

/// A request that was taken from a queue. Finished exactly once: if by nobody else, then with EIO when dropped.
#[derive(Debug)]
pub struct RingExchange {
    shared: Arc<Shared>,
    /// Taken out when the request is finished.
    slot: Option<Box<Slot>>,
}

impl RingExchange {
    pub(crate) fn new(shared: Arc<Shared>, slot: Box<Slot>) -> RingExchange {
        RingExchange { shared, slot: Some(slot) }
    }

    fn complete(&mut self, header: Option<OutHeader>) {
        if let Some(slot) = self.slot.take() {
            let written = header.map_or(0, |header| slot.write_header(header));
            self.shared.complete(slot, written);
        }
    }
}

impl Exchange for RingExchange {
    type Bulk = Bulk;

    fn parts(&mut self) -> (&[u8], &mut Bulk) {
        let slot =
            self.slot.as_mut().expect("an exchange has its slot until it is finished, which consumes it");
        let Slot { head, bulk, .. } = &mut **slot;
        (head.as_bytes(), bulk)
    }

    fn finish(mut self, header: OutHeader) {
        self.complete(Some(header));
    }

    fn finish_without_reply(mut self) {
        self.complete(None);
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        self.shared.backlog()
    }
}

impl Drop for RingExchange {
    fn drop(&mut self) {
        let Some(slot) = &self.slot else { return };
        let id = Request::id_of(slot.head.as_bytes());
        tracing::warn!(
            "{}: request {id:?} was dropped unfinished and is answered with EIO",
            self.shared.index()
        );
        self.complete(id.map(|id| error_header(id, Errno::EIO)));
    }
}

/// What a request needs while it is under way. Slots are used again and again, so that a request allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The first descriptor of the chain, by which the guest knows the request.
    pub(crate) chain: u16,
    head: HeadBuffer,
    bulk: Bulk,
}

impl Slot {
    /// Reads the request whose chain begins at `chain`.
    pub(crate) fn load(&mut self, ring: &Ring, map: &Arc<GuestMap>, chain: u16) -> Result<(), ChainError> {
        self.chain = chain;
        self.bulk.map = Some(map.clone());
        let collected = self.bulk.bytes.collect(ring, map, chain);
        let Bulk { bytes, header, .. } = &mut self.bulk;
        bytes.writable.split_front(OUT_HEADER_SIZE, Some(header));
        let head = self.load_head();
        collected.and(head)
    }

    /// Copies the head: first the header, which says how much that is. From then on it is ours, and the rest is
    /// data.
    fn load_head(&mut self) -> Result<(), ChainError> {
        let payload = &mut self.bulk.bytes.readable;
        let bytes = payload.bytes();
        if bytes < IN_HEADER_SIZE {
            return Err(ChainError::NoHeader(bytes));
        }
        payload.copy_to(0, self.head.resize(IN_HEADER_SIZE));
        let opcode = self.opcode().unwrap_or_default();
        let length = head_length(opcode, bytes);
        let payload = &mut self.bulk.bytes.readable;
        payload.copy_to(IN_HEADER_SIZE, &mut self.head.resize(length)[IN_HEADER_SIZE..]);
        payload.split_front(length, None);
        Ok(())
    }

    /// How long the request may take.
    pub(crate) fn kind(&self) -> Kind {
        Kind::of(self.opcode().unwrap_or_default())
    }

    fn opcode(&self) -> Option<u32> {
        InHeader::ref_from_prefix(self.head.as_bytes()).ok().map(|(header, _)| header.opcode)
    }

    /// The request's id, if a header was read.
    pub(crate) fn id(&self) -> Option<RequestId> {
        Request::id_of(self.head.as_bytes())
    }

    /// Writes the out header and returns the length of the whole reply; 0 if there is no room for one.
    pub(crate) fn write_header(&self, header: OutHeader) -> u32 {
        let Some(room) = self.bulk.room() else { return 0 };
        let header = match (header.len as usize).checked_sub(OUT_HEADER_SIZE) {
            Some(body) if body <= room => header,
            _ => {
                tracing::error!("a reply of {} bytes, with room for {room}, becomes EIO", header.len);
                error_header(RequestId(header.unique), Errno::EIO)
            }
        };
        self.bulk.header.copy_from(0, header.as_bytes());
        header.len
    }

    /// Marks what was written to guest memory, after it was.
    pub(crate) fn mark_written(&self, log: &DirtyLog, header_written: bool) {
        let Bulk { map: Some(map), bytes, header, filled } = &self.bulk else { return };
        let header_bytes = if header_written { OUT_HEADER_SIZE } else { 0 };
        header.guest_addresses(map, header_bytes, |address, len| log.mark(address, len));
        bytes.writable.guest_addresses(map, *filled, |address, len| log.mark(address, len));
    }

    /// Lets go of the guest's memory and of what was unusually large.
    pub(crate) fn recycle(&mut self) {
        self.head.clear();
        self.bulk.clear();
    }
}

/// How long a request may keep its thread, and so the announcement of what was completed before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// Answered from what the host has in memory, most of the time.
    Quick,
    /// Moves data, and may wait for a disk or be held back by the host.
    Data,
    /// Waits by its nature.
    Slow,
}

impl Kind {
    fn of(opcode: u32) -> Kind {
        use Opcode::*;
        match Opcode::from_raw(opcode) {
            Some(Read | Write) => Kind::Data,
            Some(Fsync | Fsyncdir | Syncfs | Flush | Fallocate | CopyFileRange | CopyFileRange64) => {
                Kind::Slow
            }
            Some(Setlkw | Ioctl | Destroy) => Kind::Slow,
            _ => Kind::Quick,
        }
    }
}

/// Where the data and the reply of a request lie in guest memory.
#[derive(Debug, Default)]
pub struct Bulk {
    /// Keeps the pieces below mapped.
    map: Option<Arc<GuestMap>>,
    /// What is left of the chain beside the two headers: the payload, and the room for a body.
    bytes: ChainBytes,
    /// Room for the out header, as much of it as there is.
    header: Spans,
    /// Bytes of the body, from its beginning, that may have been written.
    filled: usize,
}

impl Bulk {
    fn clear(&mut self) {
        self.bytes.clear();
        self.header.clear();
        self.filled = 0;
        self.map = None;
    }
}

impl Payload for Bulk {
    fn len(&self) -> usize {
        self.bytes.readable.bytes()
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        transfer::write_to_file(&mut self.bytes.readable, file, offset, len, mode)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        self.bytes.readable.copy_to(0, buffer)
    }
}

impl ReplyBody for Bulk {
    fn room(&self) -> Option<usize> {
        (self.header.bytes() == OUT_HEADER_SIZE).then(|| self.bytes.writable.bytes())
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = position.checked_add(bytes.len()).ok_or(NoRoom)?;
        if self.room().is_none_or(|room| room < end) {
            return Err(NoRoom);
        }
        self.bytes.writable.copy_from(position, bytes);
        self.filled = self.filled.max(end);
        Ok(())
    }

    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        // All of it, also if fewer bytes come or it fails in the middle: a disk may have written whole blocks.
        self.filled = self.filled.max(len);
        transfer::read_from_file(&mut self.bytes.writable, file, offset, len, mode)
    }
}

/// A private copy of a head, aligned to 8 bytes so that the structures in it can be looked at in place.
#[derive(Debug, Default)]
struct HeadBuffer {
    words: Vec<u64>,
    bytes: usize,
}

impl HeadBuffer {
    fn as_bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.bytes]
    }

    /// Makes the buffer `bytes` long, keeping what is in it.
    fn resize(&mut self, bytes: usize) -> &mut [u8] {
        self.words.resize(bytes.div_ceil(size_of::<u64>()), 0);
        self.bytes = bytes;
        &mut self.words.as_mut_bytes()[..bytes]
    }

    fn clear(&mut self) {
        self.words.clear();
        self.words.shrink_to(HEAD_KEPT_MAX / size_of::<u64>());
        self.bytes = 0;
    }
}
