//! One request of the kernel, and the way back for its reply.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ashore_wire::abi::{InHeader, OUT_HEADER_SIZE, OutHeader};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Backlog, Exchange, NoRoom, Payload, ReplyBody, TransferMode, head_length};
use ashore_wire::{Errno, Opcode, Request, RequestId};
use rustix::io::ReadWriteFlags;
use zerocopy::FromBytes;

use crate::backlog::{FuseBacklog, Turns};
use crate::buffers::{PAGE_SIZE, PageBuffer, Pool, Slot};
use crate::device::Device;
use crate::ring::{self, RingPlace};
use crate::rings::Rings;
use crate::write_back::{Effect, WriteBack};

const HELD: &str = "a request's memory is given back only when the request is dropped";

/// What an exchange needs of the mount that it came from.
pub(crate) struct Origin {
    pub(crate) device: Arc<Device>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) write_back: Option<Arc<WriteBack>>,
    /// If io_uring is wanted: what INIT's answer says of it, and who waits to hear.
    pub(crate) rings: Option<Arc<Rings>>,
}

/// Where a request came from, and its answer goes.
enum Way {
    /// read(2) and write(2).
    Device,
    /// The ring of a queue.
    Ring(RingPlace),
}

/// A request from the kernel; see [`Exchange`].
pub struct FuseExchange {
    origin: Arc<Origin>,
    slot: Option<Slot>,
    way: Way,
    answered: bool,
    effect: Effect,
}

impl FuseExchange {
    /// A request of `length` bytes has been read into `slot`.
    pub(crate) fn new(origin: Arc<Origin>, mut slot: Slot, length: usize) -> FuseExchange {
        let Slot { head, bulk, .. } = &mut slot;
        let bytes = &bulk.request.bytes()[..length];
        let opcode = InHeader::read_from_prefix(bytes).map_or(0, |(header, _)| header.opcode);
        let head_length = head_length(opcode, length);
        head.set(&[&bytes[..head_length]]);
        bulk.payload = head_length..length;
        FuseExchange { origin, slot: Some(slot), way: Way::Device, answered: false, effect: Effect::None }
    }

    /// A request that came through a ring.
    pub(crate) fn of_ring(origin: Arc<Origin>, slot: Slot, place: RingPlace) -> FuseExchange {
        origin.pool.begin();
        FuseExchange {
            origin,
            slot: Some(slot),
            way: Way::Ring(place),
            answered: false,
            effect: Effect::None,
        }
    }

    /// What takes long is answered at once, with ENOMEM, while very much is under way already.
    pub(crate) fn unless_crowded(self) -> Option<FuseExchange> {
        if !self.origin.pool.is_crowded() || !self.takes_long() {
            return Some(self);
        }
        tracing::warn!("very many requests are under way; one more that takes long is answered with ENOMEM");
        if let Some(id) = self.id() {
            self.finish(error_header(id, Errno::ENOMEM));
        }
        None
    }

    fn takes_long(&self) -> bool {
        use Opcode::{CopyFileRange, CopyFileRange64, Fallocate, Fsync, Fsyncdir, Setlkw, Syncfs};
        let opcode = InHeader::ref_from_prefix(self.head()).ok().map(|(header, _)| header.opcode);
        let long = [CopyFileRange, CopyFileRange64, Fallocate, Fsync, Fsyncdir, Setlkw, Syncfs];
        opcode.and_then(Opcode::from_raw).is_some_and(|opcode| long.contains(&opcode))
    }

    /// What succeeding will mean for the kernel's write-back.
    pub(crate) fn set_effect(&mut self, effect: Effect) {
        self.effect = effect;
    }

    pub(crate) fn head(&self) -> &[u8] {
        self.slot.as_ref().expect(HELD).head.bytes()
    }

    pub(crate) fn payload(&self) -> &[u8] {
        let bulk = &self.slot.as_ref().expect(HELD).bulk;
        &bulk.request.bytes()[bulk.payload.clone()]
    }

    pub(crate) fn id(&self) -> Option<RequestId> {
        Request::id_of(self.head())
    }

    fn send(&mut self, header: OutHeader) {
        self.answered = true;
        let Slot { head, bulk, .. } = self.slot.as_mut().expect(HELD);
        let length = (header.len as usize).checked_sub(OUT_HEADER_SIZE);
        let Some(length) = length.filter(|length| *length <= bulk.reply_room().len()) else {
            tracing::error!("a reply of {} bytes makes no sense and becomes EIO", header.len);
            return self.hand_over(error_header(RequestId(header.unique), Errno::EIO));
        };
        let mut agreed = None;
        if header.error == 0 {
            // Before the kernel knows: from then on the file can become dirty.
            if let Some(write_back) = &self.origin.write_back {
                write_back.done(self.effect, &bulk.reply_room()[..length]);
            }
            if let Some(rings) = &self.origin.rings {
                agreed = rings.agree(head.bytes(), &mut bulk.reply_room_mut()[..length]);
            }
        }
        self.hand_over(header);
        if let (Some(agreed), Some(rings)) = (agreed, &self.origin.rings) {
            rings.decide(agreed);
        }
    }

    /// Gives the kernel its answer, or writes it where the kernel will look for it when the slot is back in its ring.
    fn hand_over(&mut self, header: OutHeader) {
        let bulk = &mut self.slot.as_mut().expect(HELD).bulk;
        match &self.way {
            Way::Device => self.origin.device.reply(header, bulk.reply_room()),
            Way::Ring(_) => ring::write_answer(bulk, header),
        }
    }
}

impl Exchange for FuseExchange {
    type Bulk = FuseBulk;

    fn parts(&mut self) -> (&[u8], &mut FuseBulk) {
        let Slot { head, bulk, .. } = self.slot.as_mut().expect(HELD);
        (head.bytes(), bulk)
    }

    fn finish(mut self, header: OutHeader) {
        self.send(header);
    }

    fn finish_without_reply(mut self) {
        self.answered = true;
        // What comes through a ring goes back through it, even so.
        if let Way::Ring(place) = &self.way {
            let header = OutHeader { len: OUT_HEADER_SIZE as u32, error: 0, unique: place.unique() };
            self.hand_over(header);
        }
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        Arc::new(FuseBacklog(Arc::clone(&self.origin.turns)))
    }
}

impl Drop for FuseExchange {
    fn drop(&mut self) {
        if !self.answered
            && let Some(id) = self.id()
        {
            self.send(error_header(id, Errno::EIO));
        }
        let Some(slot) = self.slot.take() else { return };
        match &self.way {
            Way::Device => self.origin.pool.give_back(slot),
            Way::Ring(place) => {
                self.origin.pool.end();
                place.give_back(slot);
            }
        }
    }
}

/// The payload of a request and the body of its reply, both in memory of ours.
pub struct FuseBulk {
    /// A request as it was read, so placed that the data of a WRITE begins on a page.
    pub(crate) request: PageBuffer,
    /// Where in it the payload is.
    pub(crate) payload: Range<usize>,
    /// With io_uring there is none: the reply goes where the payload was, behind the page of the headers.
    pub(crate) reply: Option<PageBuffer>,
}

impl FuseBulk {
    /// Where the body of the reply goes.
    pub(crate) fn reply_room(&self) -> &[u8] {
        match &self.reply {
            Some(reply) => reply.bytes(),
            None => &self.request.bytes()[PAGE_SIZE..],
        }
    }

    pub(crate) fn reply_room_mut(&mut self) -> &mut [u8] {
        match &mut self.reply {
            Some(reply) => reply.bytes_mut(),
            None => &mut self.request.bytes_mut()[PAGE_SIZE..],
        }
    }
}

impl Payload for FuseBulk {
    fn len(&self) -> usize {
        self.payload.len()
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        let data = &self.request.bytes()[self.payload.clone()];
        let data = &data[..len.min(data.len())];
        let (offset, flags) = (mode.offset(offset)?, ReadWriteFlags::from_bits_retain(mode.flags()));
        let write = || rustix::io::pwritev2(file, &[IoSlice::new(data)], offset, flags);
        Ok(rustix::io::retry_on_intr(write)?)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        let data = &self.request.bytes()[self.payload.clone()];
        let length = data.len().min(buffer.len());
        buffer[..length].copy_from_slice(&data[..length]);
        length
    }
}

impl ReplyBody for FuseBulk {
    /// The kernel does not tell how much it expects; it checks a reply against the request that it remembers.
    fn room(&self) -> Option<usize> {
        Some(self.reply_room().len())
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = position.checked_add(bytes.len()).ok_or(NoRoom)?;
        self.reply_room_mut().get_mut(position..end).ok_or(NoRoom)?.copy_from_slice(bytes);
        Ok(())
    }

    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        let body = self.reply_room_mut();
        let len = len.min(body.len());
        let (offset, flags) = (mode.offset(offset)?, ReadWriteFlags::from_bits_retain(mode.flags()));
        let read = || rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut body[..len])], offset, flags);
        Ok(rustix::io::retry_on_intr(read)?)
    }
}
