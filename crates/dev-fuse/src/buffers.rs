//! Memory for requests and replies, kept from one to the next.

use std::sync::atomic::{AtomicUsize, Ordering};

use ashore_wire::abi::{IN_HEADER_SIZE, WriteIn};
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use crate::exchange::FuseBulk;

/// Files opened with O_DIRECT want memory that begins on a page.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Bytes in front of the data of a WRITE.
const WRITE_HEAD: usize = IN_HEADER_SIZE + size_of::<WriteIn>();
/// The kernel refuses to hand requests to a shorter buffer (`FUSE_MIN_READ_BUFFER`).
const SHORTEST_READ: usize = 8192;
/// Slots kept for the next requests, for each queue; more are let go of when they come back.
const KEPT_PER_QUEUE: usize = 4;
/// Requests under way above which those that take long are refused. Each holds address space for two buffers, though no
/// more memory than it fills.
pub(crate) const IN_FLIGHT_MAX: usize = 4096;

/// Slots for requests. Memory is bounded by what is kept, and by the number of requests under way.
pub(crate) struct Pool {
    max_write: usize,
    kept_max: usize,
    kept: Mutex<Vec<Slot>>,
    in_flight: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(max_write: usize, queues: usize) -> Pool {
        Pool {
            max_write,
            kept_max: queues * KEPT_PER_QUEUE,
            kept: Mutex::default(),
            in_flight: AtomicUsize::new(0),
        }
    }

    pub(crate) fn take(&self) -> Slot {
        self.begin();
        let kept = self.kept.lock().pop();
        kept.unwrap_or_else(|| Slot::new(self.max_write))
    }

    pub(crate) fn give_back(&self, mut slot: Slot) {
        self.end();
        slot.head.shorten();
        let mut kept = self.kept.lock();
        if kept.len() < self.kept_max {
            kept.push(slot);
        }
    }

    /// One more request is under way.
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub(crate) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether so much is under way that what takes long must not be added to it.
    pub(crate) fn is_crowded(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > IN_FLIGHT_MAX
    }
}

/// Memory for one request and its reply.
pub(crate) struct Slot {
    pub(crate) head: Head,
    pub(crate) bulk: FuseBulk,
    /// With io_uring: the kernel got it at a time when no request waited there for a slot.
    pub(crate) sure: bool,
}

impl Slot {
    fn new(max_write: usize) -> Slot {
        let request = (WRITE_HEAD + max_write).max(SHORTEST_READ);
        let bulk = FuseBulk {
            request: PageBuffer::new(WRITE_HEAD, request),
            payload: 0..0,
            reply: Some(PageBuffer::new(0, max_write.max(SHORTEST_READ))),
        };
        Slot { head: Head::default(), bulk, sure: false }
    }

    /// For io_uring: a page for the headers, and behind it the room in which a request's payload comes and its reply goes.
    pub(crate) fn for_ring(payload: usize) -> Slot {
        let bulk = FuseBulk { request: PageBuffer::new(0, PAGE_SIZE + payload), payload: 0..0, reply: None };
        Slot { head: Head::default(), bulk, sure: false }
    }
}

/// Zeroed memory that becomes real only where it is touched.
pub(crate) struct PageBuffer {
    memory: Vec<u8>,
    begin: usize,
    length: usize,
}

impl PageBuffer {
    /// `length` bytes, so placed that a page begins `before` bytes into them.
    fn new(before: usize, length: usize) -> PageBuffer {
        let memory = vec![0; length + 2 * PAGE_SIZE];
        let to_page = memory.as_ptr().addr().next_multiple_of(PAGE_SIZE) - memory.as_ptr().addr();
        let begin = if to_page >= before { to_page - before } else { to_page + PAGE_SIZE - before };
        PageBuffer { memory, begin, length }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.length]
    }
}

/// The head of a request, aligned to 8 bytes so that the structures in it can be looked at in place.
#[derive(Default)]
pub(crate) struct Head {
    words: Vec<u64>,
    length: usize,
}

impl Head {
    /// Bytes of capacity kept from one request to the next.
    const KEPT: usize = 8192;

    /// Takes what stands in these pieces, one behind the other.
    pub(crate) fn set(&mut self, pieces: &[&[u8]]) {
        self.length = pieces.iter().map(|piece| piece.len()).sum();
        self.words.resize(self.length.div_ceil(size_of::<u64>()), 0);
        let mut rest = self.words.as_mut_bytes();
        for piece in pieces {
            let (place, behind) = rest.split_at_mut(piece.len());
            place.copy_from_slice(piece);
            rest = behind;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }

    pub(crate) fn shorten(&mut self) {
        self.words.clear();
        self.words.shrink_to(Self::KEPT / size_of::<u64>());
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_write_begins_on_a_page() {
        for _ in 0..16 {
            let slot = Slot::new(1 << 20);
            assert!(slot.bulk.request.bytes()[WRITE_HEAD..].as_ptr().addr().is_multiple_of(PAGE_SIZE));
            assert!(slot.bulk.reply_room().as_ptr().addr().is_multiple_of(PAGE_SIZE));
            assert_eq!(slot.bulk.request.bytes().len(), WRITE_HEAD + (1 << 20));
        }
    }

    #[test]
    fn no_more_slots_are_kept_than_the_bound_says() {
        let pool = Pool::new(PAGE_SIZE, 1);
        let slots: Vec<_> = (0..2 * KEPT_PER_QUEUE).map(|_| pool.take()).collect();
        slots.into_iter().for_each(|slot| pool.give_back(slot));
        assert_eq!(pool.kept.lock().len(), KEPT_PER_QUEUE);
        assert_eq!(pool.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_crowd_is_noticed() {
        let pool = Pool::new(PAGE_SIZE, 1);
        pool.in_flight.store(IN_FLIGHT_MAX, Ordering::Relaxed);
        assert!(!pool.is_crowded());
        let _slot = pool.take();
        assert!(pool.is_crowded());
    }
}
