//! One ring, from the driver's side: requests are made available, answers are reaped.
//!
//! Every request is one descriptor of the ring, which leads to a table of its own (INDIRECT_DESC): head, payload, room
//! for the reply, target. A slot belongs to a request from its submission until its completion was reaped, so the
//! number of the slot is the number of the descriptor, and a completion of one that is not in flight is a lie.
//!
//! ```text
//!     free slots ──submit──► in flight ──used ring──► reap ──► free slots
//!         ▲                                             │
//!         └── overflow: requests that found no slot, in their order, go next
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::Duration;

use ashore_wire::abi::OUT_HEADER_SIZE;
use ashore_wire::link::{
    Closed, Completion, HEAD_MAX, Message, PAGE_BYTES, REPLY_ROOM_MAX, SEGMENTS_MAX, Segment,
};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::{GUEST_BASE, Memory};

/// Requests in flight on one queue; as many as the ring has descriptors.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Requests that wait for a slot, at most: far more than a client has in flight, so that reaching it is a mistake.
const OVERFLOW_MAX: usize = 65_536;
/// Bytes of a reply that are not in pages, header included, at most.
const REPLY_MAX: usize = OUT_HEADER_SIZE + REPLY_ROOM_MAX;
/// Descriptors in a table, at most: the segments, and the two fixed parts.
const TABLE_MAX: usize = SEGMENTS_MAX + 2;

const DESCRIPTOR_BYTES: usize = 16;
const TABLE_BYTES: usize = (TABLE_MAX * DESCRIPTOR_BYTES).next_multiple_of(PAGE_BYTES);
const SLOT_BYTES: usize = TABLE_BYTES + HEAD_MAX + REPLY_MAX.next_multiple_of(PAGE_BYTES);
const DESCRIPTORS_BYTES: usize = QUEUE_SIZE as usize * DESCRIPTOR_BYTES;
const AVAILABLE_BYTES: usize = (6 + 2 * QUEUE_SIZE as usize).next_multiple_of(64);
const USED_BYTES: usize = (6 + 8 * QUEUE_SIZE as usize).next_multiple_of(64);
/// Bytes that one queue takes.
pub(super) const QUEUE_BYTES: usize = (DESCRIPTORS_BYTES + AVAILABLE_BYTES + USED_BYTES)
    .next_multiple_of(PAGE_BYTES)
    + QUEUE_SIZE as usize * SLOT_BYTES;

const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const DESCRIPTOR_INDIRECT: u16 = 4;
/// `avail.flags`: do not interrupt us.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: do not notify the server.
const NO_NOTIFY: u16 = 1;

/// Where the three parts of a ring are, as offsets into the memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlaces {
    pub(super) descriptors: usize,
    pub(super) available: usize,
    pub(super) used: usize,
}

/// The server broke the rules of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Lie {
    #[error("it completed {0} requests at once, more than there are in flight")]
    Index(u16),
    #[error("it completed descriptor {0}, which is not in flight")]
    NotInFlight(u32),
    #[error("it says that it wrote {said} bytes where there was room for {room}")]
    Length { said: u32, room: usize },
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    memory: Arc<Memory>,
    places: RingPlaces,
    slots: usize,
    /// Where the pages of the client begin.
    pages: usize,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
    state: Mutex<State>,
    /// Held by the one who reaps.
    reaping: Mutex<()>,
    /// The used index up to which completions were reaped. Written by the one who reaps.
    reaped: AtomicU16,
}

#[derive(Debug)]
struct State {
    free: Vec<u16>,
    in_flight: Vec<Option<InFlight>>,
    available: u16,
    overflow: VecDeque<Message>,
    closed: bool,
    /// Where a table is put together; always the same memory.
    table: Table,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: u64,
    /// Bytes of the reply that lie in the slot.
    fixed: usize,
    /// Bytes there was room for in all.
    room: usize,
}

impl Queue {
    /// A queue whose memory begins at `offset`.
    pub(super) fn new(
        memory: Arc<Memory>,
        offset: usize,
        pages: usize,
        event_idx: bool,
    ) -> io::Result<Queue> {
        let available = offset + DESCRIPTORS_BYTES;
        let used = available + AVAILABLE_BYTES;
        let state = State {
            free: (0..QUEUE_SIZE).rev().collect(),
            in_flight: vec![None; usize::from(QUEUE_SIZE)],
            available: 0,
            overflow: VecDeque::new(),
            closed: false,
            table: Table::with_room(),
        };
        Ok(Queue {
            memory,
            places: RingPlaces { descriptors: offset, available, used },
            slots: (used + USED_BYTES).next_multiple_of(PAGE_BYTES),
            pages,
            event_idx,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            state: Mutex::new(state),
            reaping: Mutex::new(()),
            reaped: AtomicU16::new(0),
        })
    }

    pub(super) fn places(&self) -> RingPlaces {
        self.places
    }

    pub(super) fn size(&self) -> u16 {
        QUEUE_SIZE
    }

    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    pub(super) fn call(&self) -> &EventFd {
        &self.call
    }

    /// Makes a request available, or lets it wait for a slot.
    pub(super) fn submit(&self, message: Message) -> Result<(), Closed> {
        let mut state = self.state.lock();
        let fits = message.head.len() <= HEAD_MAX && OUT_HEADER_SIZE + message.reply_room <= REPLY_MAX;
        let segments = message.payload.len() + message.target.len();
        assert!(fits && segments + 2 <= TABLE_MAX, "a request is within the limits that this link states");
        if state.closed || state.overflow.len() >= OVERFLOW_MAX {
            return Err(Closed);
        }
        let old = state.available;
        match state.free.pop() {
            Some(slot) if state.overflow.is_empty() => self.make_available(&mut state, slot, &message),
            Some(slot) => {
                state.free.push(slot);
                state.overflow.push_back(message);
            }
            None => state.overflow.push_back(message),
        }
        let new = state.available;
        // A wake-up takes longer than all else here; nobody need wait for it.
        drop(state);
        self.notify(old, new);
        Ok(())
    }

    fn make_available(&self, state: &mut State, slot: u16, message: &Message) {
        let place = self.slots + usize::from(slot) * SLOT_BYTES;
        let (head, reply) = (place + TABLE_BYTES, place + TABLE_BYTES + HEAD_MAX);
        self.memory.write(head, &message.head);
        let fixed = if message.id == 0 { 0 } else { OUT_HEADER_SIZE + message.reply_room };
        let table = &mut state.table;
        table.clear();
        table.push(head, message.head.len(), 0);
        self.push_pages(table, &message.payload, 0);
        if fixed > 0 {
            table.push(reply, fixed, DESCRIPTOR_WRITE);
        }
        self.push_pages(table, &message.target, DESCRIPTOR_WRITE);
        self.memory.write(place, table.finish());
        let target: usize = message.target.iter().map(|segment| segment.length as usize).sum();
        let whole = descriptor(place, table.bytes.len(), DESCRIPTOR_INDIRECT, 0);
        self.memory.write(self.places.descriptors + usize::from(slot) * DESCRIPTOR_BYTES, &whole);
        state.in_flight[usize::from(slot)] = Some(InFlight { id: message.id, fixed, room: fixed + target });
        let entry = self.places.available + 4 + 2 * usize::from(state.available % QUEUE_SIZE);
        self.memory.store(entry, slot, Ordering::Relaxed);
        state.available = state.available.wrapping_add(1);
        // Release: a server that sees the index sees all that was written before.
        self.memory.store(self.places.available + 2, state.available, Ordering::Release);
    }

    /// Segments that follow each other in memory become one descriptor.
    fn push_pages(&self, table: &mut Table, segments: &[Segment], flags: u16) {
        let mut run: Option<(usize, usize)> = None;
        for segment in segments {
            let offset = self.pages + segment.page as usize * PAGE_BYTES;
            let length = segment.length as usize;
            run = match run {
                Some((begin, so_far)) if begin + so_far == offset => Some((begin, so_far + length)),
                _ => {
                    run.inspect(|(begin, length)| table.push(*begin, *length, flags));
                    Some((offset, length))
                }
            };
        }
        run.inspect(|(begin, length)| table.push(*begin, *length, flags));
    }

    /// Wakes the server, if it wants to be woken for what was made available since `old`.
    fn notify(&self, old: u16, new: u16) {
        if old == new {
            return;
        }
        // The server writes what it wants and then looks at the index; we have written the index and now look at what
        // it wants. With a full fence on both sides one of us sees the other.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event: u16 =
                self.memory.load(self.places.used + 4 + 8 * usize::from(QUEUE_SIZE), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load::<u16>(self.places.used, Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if wanted {
            // It fails only if the counter is full: then the server has been woken often enough.
            let _ = self.kick.write(1);
        }
    }

    /// Whether something was completed and not reaped.
    pub(super) fn has_completions(&self) -> bool {
        self.memory.load::<u16>(self.places.used + 2, Ordering::Acquire)
            != self.reaped.load(Ordering::Relaxed)
    }

    /// The right to reap. Whoever gives it back has asked for an interrupt before, so that nothing is left lying.
    /// `None` if it could not be had in time.
    pub(super) fn wait_for_reaping(&self, time: Duration) -> Option<MutexGuard<'_, ()>> {
        self.reaping.try_lock_for(time)
    }

    /// Whether both sides say when they are to be woken.
    pub(super) fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// As [`Queue::wait_for_reaping`], without waiting.
    pub(super) fn try_reaping(&self) -> Option<MutexGuard<'_, ()>> {
        self.reaping.try_lock()
    }

    /// Takes what has been completed; with the right to reap. `None`: nothing has.
    pub(super) fn reap(&self) -> Result<Option<Completion>, Lie> {
        let reaped = self.reaped.load(Ordering::Relaxed);
        // Acquire: what the server wrote before the index is there.
        let used: u16 = self.memory.load(self.places.used + 2, Ordering::Acquire);
        if used == reaped {
            return Ok(None);
        }
        if used.wrapping_sub(reaped) > QUEUE_SIZE {
            return Err(Lie::Index(used.wrapping_sub(reaped)));
        }
        let entry = self.places.used + 4 + 8 * usize::from(reaped % QUEUE_SIZE);
        let mut bytes = [0; 8];
        self.memory.read(entry, &mut bytes);
        let [id, length] =
            [0, 4].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")));
        self.reaped.store(reaped.wrapping_add(1), Ordering::Relaxed);
        self.complete(id, length).map(Some)
    }

    fn complete(&self, descriptor: u32, length: u32) -> Result<Completion, Lie> {
        let mut state = self.state.lock();
        let slot = usize::try_from(descriptor).unwrap_or(usize::MAX);
        let request =
            state.in_flight.get_mut(slot).and_then(Option::take).ok_or(Lie::NotInFlight(descriptor))?;
        if length as usize > request.room {
            return Err(Lie::Length { said: length, room: request.room });
        }
        let mut reply = vec![0; request.fixed.min(length as usize)];
        // Now, before the slot goes to the next request.
        self.memory.read(self.slots + slot * SLOT_BYTES + TABLE_BYTES + HEAD_MAX, &mut reply);
        let old = state.available;
        match state.overflow.pop_front() {
            Some(next) => self.make_available(&mut state, slot as u16, &next),
            None => state.free.push(slot as u16),
        }
        let new = state.available;
        drop(state);
        self.notify(old, new);
        Ok(Completion { id: request.id, length: length as usize, reply })
    }

    /// Asks to be woken by the next completion. Returns `false` if there is one already.
    pub(super) fn ask_for_interrupt(&self) -> bool {
        if self.event_idx {
            let event = self.places.available + 4 + 2 * usize::from(QUEUE_SIZE);
            self.memory.store(event, self.reaped.load(Ordering::Relaxed), Ordering::Relaxed);
        } else {
            self.memory.store(self.places.available, 0u16, Ordering::Relaxed);
        }
        // Ours is the server's part of `notify` here: say what is wanted, then look.
        fence(Ordering::SeqCst);
        !self.has_completions()
    }

    /// No interrupts while we look anyway: the event lies behind us. One that is on its way still comes.
    pub(super) fn want_no_interrupt(&self) {
        if self.event_idx {
            let event = self.places.available + 4 + 2 * usize::from(QUEUE_SIZE);
            let behind = self.reaped.load(Ordering::Relaxed).wrapping_sub(1);
            self.memory.store(event, behind, Ordering::Relaxed);
        } else {
            self.memory.store(self.places.available, NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    /// Whether the server has given back all that was submitted.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.overflow.is_empty() && state.free.len() == usize::from(QUEUE_SIZE)
    }

    /// From now on nothing is submitted.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.overflow.clear();
    }
}

/// Descriptors as they stand in memory, each but the last leading to the next.
#[derive(Debug)]
struct Table {
    bytes: Vec<u8>,
}

impl Table {
    fn with_room() -> Table {
        Table { bytes: Vec::with_capacity(TABLE_MAX * DESCRIPTOR_BYTES) }
    }

    fn clear(&mut self) {
        self.bytes.clear();
    }

    fn push(&mut self, offset: usize, length: usize, flags: u16) {
        let next = (self.bytes.len() / DESCRIPTOR_BYTES + 1) as u16;
        self.bytes.extend_from_slice(&descriptor(offset, length, flags | DESCRIPTOR_NEXT, next));
    }

    /// The whole table, whose last descriptor leads nowhere.
    fn finish(&mut self) -> &[u8] {
        let flags = self.bytes.len() - 4;
        self.bytes[flags] &= !(DESCRIPTOR_NEXT as u8);
        &self.bytes
    }
}

fn descriptor(offset: usize, length: usize, flags: u16, next: u16) -> [u8; DESCRIPTOR_BYTES] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    bytes[..8].copy_from_slice(&(GUEST_BASE + offset as u64).to_le_bytes());
    bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    /// A queue, and the part of a server that fills the used ring as it likes.
    struct World {
        memory: Arc<Memory>,
        queue: Queue,
        used: u16,
    }

    fn world() -> World {
        let memory = Arc::new(Memory::new(QUEUE_BYTES + PAGE_BYTES).unwrap());
        let queue = Queue::new(Arc::clone(&memory), 0, QUEUE_BYTES, true).unwrap();
        World { memory, queue, used: 0 }
    }

    impl World {
        /// Submits a request with room for 8 bytes behind the header.
        fn submit(&self, id: u64) -> Result<(), Closed> {
            let (payload, target) = (Vec::new(), Vec::new());
            self.queue.submit(Message {
                id,
                head: vec![1; 40],
                payload,
                reply_room: 8,
                target,
                urgent: false,
            })
        }

        /// The descriptor of the newest request.
        fn newest(&self) -> u32 {
            let at = self.queue.state.lock().available.wrapping_sub(1) % QUEUE_SIZE;
            u32::from(
                self.memory
                    .load::<u16>(self.queue.places.available + 4 + 2 * usize::from(at), Ordering::Relaxed),
            )
        }

        fn complete(&mut self, descriptor: u32, length: u32) {
            let entry = self.queue.places.used + 4 + 8 * usize::from(self.used % QUEUE_SIZE);
            self.memory.write(entry, &descriptor.to_le_bytes());
            self.memory.write(entry + 4, &length.to_le_bytes());
            self.used = self.used.wrapping_add(1);
            self.claim(self.used);
        }

        fn claim(&self, index: u16) {
            self.memory.store(self.queue.places.used + 2, index, Ordering::Release);
        }
    }

    #[test]
    fn an_honest_server_is_believed() {
        let mut world = world();
        for id in 1..=1000 {
            world.submit(id).unwrap();
            world.complete(world.newest(), 24);
            let done = world.queue.reap().unwrap().unwrap();
            assert_eq!((done.id, done.length, done.reply.len()), (id, 24, 24));
            assert!(world.queue.reap().unwrap().is_none());
        }
    }

    #[test]
    fn requests_beyond_the_ring_wait_for_a_slot_and_go_in_order() {
        let mut world = world();
        (1..=300).for_each(|id| world.submit(id).unwrap());
        let mut first = world.queue.state.lock().in_flight.iter().flatten().map(|f| f.id).collect::<Vec<_>>();
        first.sort_unstable();
        assert_eq!(first, (1..=u64::from(QUEUE_SIZE)).collect::<Vec<_>>());
        for id in 1..=300 {
            let in_flight = world.queue.state.lock().in_flight.clone();
            let slot = in_flight.iter().position(|f| f.is_some_and(|f| f.id == id)).unwrap();
            world.complete(slot as u32, 16);
            assert_eq!(world.queue.reap().unwrap().unwrap().id, id);
        }
    }

    #[test]
    fn an_answer_may_be_short_or_nothing() {
        let mut world = world();
        for length in [0, 3, 16] {
            world.submit(7).unwrap();
            world.complete(world.newest(), length);
            assert_eq!(world.queue.reap().unwrap().unwrap().reply.len(), length as usize);
        }
    }

    #[test]
    fn an_unknown_descriptor_is_a_lie() {
        for descriptor in [5, u32::from(QUEUE_SIZE), u32::from(QUEUE_SIZE) + 1, 1 << 16, u32::MAX] {
            let mut world = world();
            world.submit(1).unwrap();
            world.complete(descriptor, 16);
            assert_eq!(world.queue.reap().unwrap_err(), Lie::NotInFlight(descriptor));
        }
    }

    #[test]
    fn completing_a_request_twice_is_a_lie() {
        let mut world = world();
        world.submit(1).unwrap();
        let descriptor = world.newest();
        world.complete(descriptor, 16);
        world.complete(descriptor, 16);
        assert_eq!(world.queue.reap().unwrap().unwrap().id, 1);
        assert_eq!(world.queue.reap().unwrap_err(), Lie::NotInFlight(descriptor));
    }

    #[test]
    fn an_index_that_jumps_is_a_lie() {
        for index in [QUEUE_SIZE + 1, 1 << 15, u16::MAX] {
            let world = world();
            world.submit(1).unwrap();
            world.claim(index);
            assert_eq!(world.queue.reap().unwrap_err(), Lie::Index(index));
        }
    }

    /// A jump that the ring has room for leads to entries that were never written.
    #[test]
    fn an_index_that_runs_ahead_is_found_at_the_first_entry_that_says_nothing() {
        let mut world = world();
        world.submit(1).unwrap();
        world.complete(world.newest(), 16);
        world.claim(QUEUE_SIZE);
        assert_eq!(world.queue.reap().unwrap().unwrap().id, 1);
        assert_eq!(world.queue.reap().unwrap_err(), Lie::NotInFlight(0));
    }

    #[test]
    fn more_bytes_than_there_was_room_for_are_a_lie() {
        let room = OUT_HEADER_SIZE + 8;
        for said in [room as u32 + 1, u32::MAX] {
            let mut world = world();
            world.submit(1).unwrap();
            world.complete(world.newest(), said);
            assert_eq!(world.queue.reap().unwrap_err(), Lie::Length { said, room });
        }
    }

    #[test]
    fn a_closed_queue_takes_nothing() {
        let world = world();
        world.queue.close();
        assert_eq!(world.submit(1).unwrap_err(), Closed);
    }
}
