//! FUSE over io_uring (Linux 6.14, with the module's parameter `enable_uring`): a queue for each processor.
//!
//! ```text
//!     processor 0: program --> the kernel's queue 0 --> Ring of thread 0, on processor 0 --> FuseExchange
//!     processor 1: program --> the kernel's queue 1 --> Ring of thread 1, on processor 1 --> FuseExchange
//!     INIT, FORGET, INTERRUPT -----------------------> read(2) by a queue of the other kind
//! ```
//!
//! The kernel puts a request into one of the slots that it was given, and one system call gives the slot back with the answer and
//! waits for the next. The request is brought by the ring's own thread, in that call; so only this thread may give slots back, and
//! an exchange that ends on another thread leaves its slot in `Returned` and wakes it.
//!
//! Until INIT is answered requests come by read(2), and the queue waits for what the answer says: see `rings.rs`.
//!
//! # A queue never runs dry
//!
//! A request that takes long (a sync, a wait for a lock) keeps its slot, and a program whose request finds no slot waits in the
//! kernel, perhaps with the very request that would end the wait. So before the thread sleeps it sees to it that the kernel has
//! slots, and gives it new ones in place of those that are kept. That is not enough for a request that came while there was none:
//! the kernel looks for those that wait only when an answer is given. If no slot that it has was given with an answer, some may
//! wait, and the kernel is asked for a message (a RETRIEVE of nothing, from a file that it has open), whose answer makes it look.
//!
//! # Memory
//!
//! Each slot has room for the longest payload, and becomes real only where it is touched. The kernel takes the slot that came back
//! last, so few of them are. A queue begins with [`SLOTS`] and has at most as many more as requests were under way at once that
//! take long, which are refused above `IN_FLIGHT_MAX`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ashore_wire::abi::{IN_HEADER_SIZE, InHeader, OUT_HEADER_SIZE, OutHeader, UringEntInOut, UringReqHeader};
use ashore_wire::{NodeId, Opcode};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use zerocopy::{FromBytes, IntoBytes};

use crate::buffers::{PAGE_SIZE, Slot};
use crate::exchange::{FuseBulk, FuseExchange, Origin};
use crate::notify::Notifier;
use crate::rings::{Decision, Rings};
use crate::sys::{Completion, Ring};

/// Slots that a queue begins with.
pub(crate) const SLOTS: usize = 4;
/// Slots that the kernel has before a queue's thread sleeps.
const SPARE: usize = 2;
/// Files of each kind that are tried, at most, when the kernel is to be made to look.
const FILES_TRIED: usize = 64;

/// Slots that exchanges have given back, with answers in them.
pub(crate) struct Returned {
    slots: Mutex<Vec<(Slot, u64)>>,
    /// The ring's thread waits in the kernel, or is about to.
    asleep: AtomicBool,
    wake: OwnedFd,
}

impl Returned {
    fn push(&self, slot: Slot, unique: u64) {
        self.slots.lock().push((slot, unique));
        // One order for both: the thread says that it sleeps and then looks for slots, we leave a slot and then look whether it
        // sleeps. Either it sees the slot, or we see it asleep.
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        // It can only fail to wake who has been woken 2^64 times.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Where a request that came through a ring goes back to.
pub(crate) struct RingPlace {
    returned: Arc<Returned>,
    unique: u64,
}

impl RingPlace {
    pub(crate) fn unique(&self) -> u64 {
        self.unique
    }

    pub(crate) fn give_back(&self, slot: Slot) {
        self.returned.push(slot, self.unique);
    }
}

/// Writes an answer where the kernel looks for it, when it gets the slot back. The body is in its place.
pub(crate) fn write_answer(bulk: &mut FuseBulk, header: OutHeader) {
    let body = (header.len as usize).saturating_sub(OUT_HEADER_SIZE);
    let Ok((area, _)) = UringReqHeader::mut_from_prefix(bulk.request.bytes_mut()) else { return };
    area.in_out[..OUT_HEADER_SIZE].copy_from_slice(header.as_bytes());
    area.ring_ent_in_out.payload_sz = body as u32;
}

/// One queue, and its thread's side of it.
pub(crate) struct RingQueue {
    processor: u16,
    rings: Arc<Rings>,
    ring: Ring,
    returned: Arc<Returned>,
    /// Requests that have come, with their numbers.
    arrived: VecDeque<(Slot, u64)>,
    /// Requests that have come and were not answered yet, and the nodes they are about.
    out: HashMap<u64, NodeId>,
    /// Whether the thread was given one and has not come back.
    handed_out: bool,
    payload: usize,
    /// Slots in the kernel that it was given at a time when no request waited there for one.
    sure: usize,
    /// Something has come since the kernel was made to look.
    look_again: bool,
    /// Why the kernel refused a slot, if it did.
    refused: Option<Errno>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    /// The mount is gone; the kernel gives back its slots.
    Ending,
}

/// What a ring's queue has for its thread.
pub(crate) enum Next {
    Request(FuseExchange),
    /// Requests are read from the kernel.
    Read,
    Ended,
}

impl RingQueue {
    pub(crate) fn new(rings: Arc<Rings>, processor: u16) -> io::Result<RingQueue> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let returned = Returned { slots: Mutex::default(), asleep: AtomicBool::new(false), wake };
        Ok(RingQueue {
            processor,
            rings,
            ring: Ring::new(processor)?,
            returned: Arc::new(returned),
            arrived: VecDeque::new(),
            out: HashMap::new(),
            handed_out: false,
            payload: 0,
            sure: 0,
            look_again: true,
            refused: None,
            state: State::Waiting,
        })
    }

    pub(crate) fn next(&mut self, origin: &Arc<Origin>, index: usize, notifier: &Notifier) -> Next {
        if std::mem::take(&mut self.handed_out) {
            origin.turns.end_one(index);
        }
        if self.state == State::Waiting {
            let Decision::Rings(payload) = self.rings.wait() else { return Next::Read };
            self.payload = payload;
            self.state = State::Running;
            if let Err(error) = self.start(origin, index) {
                tracing::error!("queue {index}: io_uring cannot be used: {error}; requests are read");
                return Next::Read;
            }
        }
        match self.next_slot(origin, index, notifier) {
            Ok(Some((slot, unique))) => {
                self.handed_out = true;
                let place = RingPlace { returned: Arc::clone(&self.returned), unique };
                Next::Request(FuseExchange::of_ring(Arc::clone(origin), slot, place))
            }
            Ok(None) => Next::Ended,
            Err(error) => {
                tracing::error!("queue {index}: io_uring failed: {error}; the queue is stopped");
                Next::Ended
            }
        }
    }

    /// The thread goes to its processor, and the kernel gets its slots.
    fn start(&mut self, origin: &Origin, index: usize) -> io::Result<()> {
        let mut own = CpuSet::new();
        own.set(usize::from(self.processor));
        if let Err(errno) = sched_setaffinity(None, &own) {
            // It is not there at the moment, or not for us: requests from it come here all the same.
            tracing::debug!("the thread of processor {} goes where it likes: {errno}", self.processor);
        }
        self.ring.enable(Arc::clone(&origin.device))?;
        self.ring.watch(&self.returned.wake)?;
        (0..SLOTS).try_for_each(|_| self.register(true))?;
        self.ring.submit(0)?;
        // What is refused is so at once. A request may be there as well, if the other queues were ready before.
        self.reap(origin, index)?;
        match self.refused {
            Some(errno) if self.ring.in_kernel() == 0 && self.arrived.is_empty() => Err(errno.into()),
            _ => Ok(()),
        }
    }

    fn register(&mut self, sure: bool) -> io::Result<()> {
        let mut slot = Slot::for_ring(self.payload);
        slot.sure = sure;
        self.sure += usize::from(sure);
        self.ring.register(slot)
    }

    fn next_slot(
        &mut self,
        origin: &Origin,
        index: usize,
        notifier: &Notifier,
    ) -> io::Result<Option<(Slot, u64)>> {
        loop {
            self.give_back()?;
            if let Some(arrived) = self.arrived.pop_front() {
                // Who waits for an answer does not wait for the next request to be done as well.
                if self.ring.has_unsubmitted() {
                    self.ring.submit(0)?;
                    self.reap(origin, index)?;
                }
                return Ok(Some(arrived));
            }
            if self.state == State::Ending && self.ring.in_kernel() == 0 {
                return Ok(None);
            }
            self.keep_supplied(origin, notifier)?;
            self.returned.asleep.store(true, Ordering::SeqCst);
            let wait = usize::from(self.returned.slots.lock().is_empty());
            self.ring.submit(wait)?;
            self.returned.asleep.store(false, Ordering::SeqCst);
            self.reap(origin, index)?;
        }
    }

    /// Gives the kernel the slots with answers.
    fn give_back(&mut self) -> io::Result<()> {
        let returned = std::mem::take(&mut *self.returned.slots.lock());
        for (mut slot, unique) in returned {
            slot.head.shorten();
            self.out.remove(&unique);
            // It takes one that waits, if there is one, or else none does.
            slot.sure = true;
            self.sure += 1;
            self.ring.commit(slot, unique)?;
        }
        Ok(())
    }

    /// Takes all that has arrived.
    fn reap(&mut self, origin: &Origin, index: usize) -> io::Result<()> {
        let before = self.arrived.len();
        while let Some(completion) = self.ring.completed() {
            match completion {
                Completion::Woken => {
                    let _ = rustix::io::read(&self.returned.wake, &mut [0; 8]);
                    self.ring.watch(&self.returned.wake)?;
                }
                Completion::Slot(slot, outcome) => {
                    self.sure -= usize::from(slot.sure);
                    self.look_again = true;
                    match outcome {
                        Ok(()) => self.arrive(slot)?,
                        Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV | Errno::CANCELED) => {
                            self.state = State::Ending;
                        }
                        // The request has gone, and the kernel has no use for the slot any more.
                        Err(errno) => {
                            tracing::error!("queue {index}: the kernel refused a slot: {errno}");
                            self.refused = Some(errno);
                        }
                    }
                }
            }
        }
        origin.turns.take(index, self.arrived.len() - before);
        Ok(())
    }

    /// A request is in the slot.
    fn arrive(&mut self, mut slot: Slot) -> io::Result<()> {
        let unique = take_request(&mut slot);
        let header = InHeader::ref_from_prefix(slot.head.bytes());
        let (opcode, node) =
            header.map_or((0, NodeId(0)), |(header, _)| (header.opcode, NodeId(header.nodeid)));
        if opcode == Opcode::NotifyReply as u32 {
            // We asked for it so that the kernel looks, which it does with the answer.
            let header = OutHeader { len: OUT_HEADER_SIZE as u32, error: 0, unique };
            write_answer(&mut slot.bulk, header);
            self.returned.slots.lock().push((slot, unique));
            return Ok(());
        }
        self.out.insert(unique, node);
        self.arrived.push_back((slot, unique));
        Ok(())
    }

    /// Sees to it that the kernel has slots, and that no request waits there that came when it had none.
    fn keep_supplied(&mut self, origin: &Origin, notifier: &Notifier) -> io::Result<()> {
        if self.state == State::Ending {
            return Ok(());
        }
        while self.ring.in_kernel() < SPARE {
            let sure = self.sure > 0;
            self.register(sure)?;
        }
        if self.sure == 0 && std::mem::take(&mut self.look_again) {
            self.ring.submit(0)?;
            // On this processor, so that it comes to this queue.
            let said = self.files(origin).any(|file| notifier.ask_for_a_message(file).is_ok());
            if !said {
                tracing::debug!("the kernel was not made to look for requests that wait for a slot");
            }
        }
        Ok(())
    }

    /// Files that the kernel knows, for what is under way keeps them open, and those that it may be about to write back.
    fn files(&self, origin: &Origin) -> impl Iterator<Item = NodeId> + use<> {
        let mut files: Vec<_> = self.out.values().copied().take(FILES_TRIED).collect();
        files.extend(origin.write_back.iter().flat_map(|write_back| write_back.files(FILES_TRIED)));
        files.into_iter()
    }
}

/// Takes a request out of the headers of its slot; the payload of a WRITE stays where it is. Returns its number.
fn take_request(slot: &mut Slot) -> u64 {
    let memory = slot.bulk.request.bytes();
    let (headers, room) = memory.split_at(PAGE_SIZE);
    let (area, _) = UringReqHeader::ref_from_prefix(headers).expect("a page of headers has room for them");
    let UringEntInOut { payload_sz, commit_id, .. } = area.ring_ent_in_out;
    let header = &area.in_out[..IN_HEADER_SIZE];
    let (in_header, _) = InHeader::read_from_prefix(header).expect("it is as long as one");
    let payload = &room[..(payload_sz as usize).min(room.len())];
    let arguments = (in_header.len as usize).saturating_sub(IN_HEADER_SIZE + payload.len());
    let arguments = &area.op_in[..arguments.min(area.op_in.len())];
    if in_header.opcode == Opcode::Write as u32 {
        slot.head.set(&[header, arguments]);
        slot.bulk.payload = PAGE_SIZE..PAGE_SIZE + payload.len();
    } else {
        slot.head.set(&[header, arguments, payload]);
        slot.bulk.payload = PAGE_SIZE..PAGE_SIZE;
    }
    commit_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashore_wire::abi::WriteIn;

    fn filled(header: InHeader, arguments: &[u8], payload: &[u8]) -> Slot {
        let mut slot = Slot::for_ring(PAGE_SIZE);
        let memory = slot.bulk.request.bytes_mut();
        memory[PAGE_SIZE..][..payload.len()].copy_from_slice(payload);
        let (area, _) = UringReqHeader::mut_from_prefix(memory).unwrap();
        area.in_out[..IN_HEADER_SIZE].copy_from_slice(header.as_bytes());
        area.op_in[..arguments.len()].copy_from_slice(arguments);
        area.ring_ent_in_out.payload_sz = payload.len() as u32;
        area.ring_ent_in_out.commit_id = header.unique;
        slot
    }

    fn header(opcode: Opcode, length: usize) -> InHeader {
        InHeader {
            len: (IN_HEADER_SIZE + length) as u32,
            opcode: opcode as u32,
            unique: 42,
            ..Default::default()
        }
    }

    #[test]
    fn a_request_is_put_together_as_if_it_had_been_read() {
        let mut lookup = filled(header(Opcode::Lookup, 5), &[], b"name\0");
        assert_eq!(take_request(&mut lookup), 42);
        assert_eq!(&lookup.head.bytes()[IN_HEADER_SIZE..], b"name\0");
        let write = WriteIn { size: 3, ..Default::default() };
        let mut slot = filled(header(Opcode::Write, size_of::<WriteIn>() + 3), write.as_bytes(), b"abc");
        take_request(&mut slot);
        assert_eq!(&slot.head.bytes()[IN_HEADER_SIZE..], write.as_bytes());
        assert_eq!(&slot.bulk.request.bytes()[slot.bulk.payload.clone()], b"abc");
    }

    #[test]
    fn lengths_that_do_not_fit_together_are_cut_and_not_believed() {
        let mut slot = filled(header(Opcode::Lookup, 1 << 20), &[], b"name\0");
        slot.bulk.request.bytes_mut()[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        let (area, _) = UringReqHeader::mut_from_prefix(slot.bulk.request.bytes_mut()).unwrap();
        area.ring_ent_in_out.payload_sz = u32::MAX;
        take_request(&mut slot);
        assert!(slot.head.bytes().len() <= IN_HEADER_SIZE + 128 + PAGE_SIZE);
    }
}
