//! Which requests are in flight, in memory that the VMM keeps: a server that is killed leaves it to the next one.
//!
//! Its layout is the one that the vhost-user specification has for split rings; each queue has a part of its own:
//!
//! ```text
//!     0    features u64 | version u16 | entries u16 | last given back u16 | used index u16
//!     16   ( in flight u8, 5 bytes unused, next u16, counter u64 ) x entries, by the head of the chain
//! ```
//!
//! A server may be killed between any two of these steps, and what the next one makes of it is always right:
//!
//! ```text
//!     taken          in flight[head] = 1                       not in flight: it is taken from the available ring again
//!     giving back    last given back = head                    in flight, the used index as here: it is done again
//!                    used ring: the completion, the index      in flight, the used index another: the last is done
//!     given back     in flight[head] = 0; used index
//! ```
//!
//! Only stores of one process are looked at by another one later, so Release suffices: it keeps them in their order.
//! The memory is the VMM's, who may write nonsense to it; that harms nobody but his own guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::AtomicAccess;

use super::QueueIndex;
use super::ring;
use crate::memory::{MemoryError, Region, RegionPlace};

const VERSION: u16 = 1;
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
/// Parts begin at multiples of this.
const ALIGNMENT: usize = 64;

/// Why every access is inside.
const INSIDE: &str = "a part lies in the mapping, and a head is below the number of its entries";

/// Why what a VMM wants to keep what is in flight in cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("{0}")]
    Ring(#[from] ring::RingError),
    #[error("{0} queues were asked for, of {1} there are")]
    Queues(u16, usize),
    #[error("{bytes} bytes are too few for {queues} queues of {entries}")]
    TooShort { bytes: u64, queues: u16, entries: u16 },
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The memory of all queues of a device.
#[derive(Debug)]
pub(crate) struct InflightMemory {
    region: Arc<Region>,
    queues: u16,
    entries: u16,
}

impl InflightMemory {
    /// New memory for the VMM to keep, and what it looks like.
    pub(crate) fn make(
        wanted: &VhostUserInflight,
        queues: usize,
    ) -> Result<(VhostUserInflight, File), InflightError> {
        let entries = ring::check_size(u32::from(wanted.queue_size))?;
        if usize::from(wanted.num_queues) > queues {
            return Err(InflightError::Queues(wanted.num_queues, queues));
        }
        let bytes = (part_bytes(entries) * usize::from(wanted.num_queues)) as u64;
        let file =
            File::from(memfd_create(c"ashore-inflight", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
        ftruncate(&file, bytes).map_err(io::Error::from)?;
        Ok((VhostUserInflight { mmap_size: bytes, mmap_offset: 0, ..*wanted }, file))
    }

    /// What the VMM has kept, or has just been given.
    pub(crate) fn map(what: &VhostUserInflight, file: File) -> Result<InflightMemory, InflightError> {
        let &VhostUserInflight { mmap_size: bytes, mmap_offset: offset, num_queues: queues, queue_size } =
            what;
        let entries = ring::check_size(u32::from(queue_size))?;
        if bytes < (part_bytes(entries) * usize::from(queues)) as u64 {
            return Err(InflightError::TooShort { bytes, queues, entries });
        }
        let place = RegionPlace { guest: 0, len: bytes, user: 0 };
        Ok(InflightMemory { region: Arc::new(Region::map(place, file, offset)?), queues, entries })
    }

    /// The part of a queue; `None` if it has none, or a ring of this size has more entries.
    pub(crate) fn part(&self, queue: QueueIndex, size: u32) -> Option<Inflight> {
        let fits = queue.0 < self.queues && size <= u32::from(self.entries);
        fits.then(|| Inflight {
            region: self.region.clone(),
            at: usize::from(queue.0) * part_bytes(self.entries),
            entries: self.entries,
            counter: 0,
        })
    }
}

fn part_bytes(entries: u16) -> usize {
    (HEADER_BYTES + usize::from(entries) * ENTRY_BYTES).next_multiple_of(ALIGNMENT)
}

/// What is in flight of one queue. Its owner's lock keeps calls apart.
#[derive(Debug)]
pub(crate) struct Inflight {
    region: Arc<Region>,
    at: usize,
    entries: u16,
    counter: u64,
}

impl Inflight {
    /// The heads that were taken and not given back, in their order, by how far the used ring has come. `None`: nobody
    /// has used this memory before.
    pub(crate) fn recover(&mut self, used: u16) -> Option<VecDeque<u16>> {
        if self.load::<u16>(VERSION_AT) != VERSION {
            self.store(ENTRIES_AT, self.entries);
            self.store(USED_AT, used);
            self.store(VERSION_AT, VERSION);
            return None;
        }
        let last: u16 = self.load(LAST_AT);
        if self.load::<u16>(USED_AT) != used && last < self.entries {
            self.given_back(last, used);
        }
        let heads = (0..self.entries).filter(|head| self.load::<u8>(self.entry(*head)) != 0);
        let mut heads: Vec<(u64, u16)> =
            heads.map(|head| (self.load(self.entry(head) + COUNTER_AT), head)).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Some(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// A request was taken from the available ring.
    pub(crate) fn taken(&mut self, head: u16) {
        self.store(self.entry(head) + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store(self.entry(head), 1u8);
    }

    /// Its completion is about to be published.
    pub(crate) fn giving_back(&self, head: u16) {
        self.store(self.entry(head) + NEXT_AT, self.load::<u16>(LAST_AT));
        self.store(LAST_AT, head);
    }

    /// Its completion is published, and the used index is this.
    pub(crate) fn given_back(&self, head: u16, used: u16) {
        self.store(self.entry(head), 0u8);
        self.store(USED_AT, used);
    }

    fn entry(&self, head: u16) -> usize {
        HEADER_BYTES + usize::from(head) * ENTRY_BYTES
    }

    fn load<T: AtomicAccess>(&self, offset: usize) -> T {
        self.region.load(self.at + offset, Ordering::Acquire).expect(INSIDE)
    }

    fn store<T: AtomicAccess>(&self, offset: usize, value: T) {
        self.region.store(self.at + offset, value, Ordering::Release).expect(INSIDE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(queues: u16, entries: u16) -> (VhostUserInflight, File) {
        let wanted = VhostUserInflight { num_queues: queues, queue_size: entries, ..Default::default() };
        InflightMemory::make(&wanted, usize::from(queues)).unwrap()
    }

    fn part(what: &VhostUserInflight, file: &File) -> Inflight {
        let memory = InflightMemory::map(what, file.try_clone().unwrap()).unwrap();
        memory.part(QueueIndex(what.num_queues - 1), u32::from(what.queue_size)).unwrap()
    }

    #[test]
    fn whenever_the_server_is_killed_each_request_is_taken_again_unless_it_was_given_back() {
        // Method: requests 3, 0 and 2 are taken, and 0 and 3 given back, by a server that ends after each of the steps.
        for steps in 0..=9 {
            let (what, file) = memory(3, 4);
            let mut inflight = part(&what, &file);
            assert_eq!(inflight.recover(7), None, "nobody has used it before");
            let mut used = 7;
            let mut left = steps;
            let mut step = |act: &mut dyn FnMut()| {
                if left > 0 {
                    left -= 1;
                    act();
                }
            };
            for head in [3, 0, 2] {
                step(&mut || inflight.taken(head));
            }
            for head in [0, 3] {
                step(&mut || inflight.giving_back(head));
                step(&mut || used += 1);
                step(&mut || inflight.given_back(head, used));
            }
            let all: &[&[u16]] =
                &[&[], &[3], &[3, 0], &[3, 0, 2], &[3, 0, 2], &[3, 2], &[3, 2], &[3, 2], &[2], &[2]];
            let mut next = part(&what, &file);
            assert_eq!(next.recover(used).unwrap(), all[steps], "after {steps} steps");
            next.taken(1);
            let mut third = part(&what, &file);
            let expected: Vec<u16> = all[steps].iter().copied().chain([1]).collect();
            assert_eq!(third.recover(used).unwrap(), expected, "and once more");
        }
    }

    #[test]
    fn memory_that_is_too_short_or_for_other_rings_is_refused() {
        let (what, file) = memory(2, 128);
        let map = |what| InflightMemory::map(&what, file.try_clone().unwrap());
        assert!(map(VhostUserInflight { queue_size: 100, ..what }).is_err(), "no power of two");
        assert!(map(VhostUserInflight { queue_size: 256, ..what }).is_err(), "too short as it says itself");
        assert!(
            map(VhostUserInflight { mmap_size: 2 * what.mmap_size, ..what }).is_err(),
            "shorter than it says"
        );
        assert!(map(VhostUserInflight { mmap_offset: u64::MAX - 8, ..what }).is_err(), "beyond everything");
        let mapped = map(what).unwrap();
        assert!(mapped.part(QueueIndex(2), 128).is_none() && mapped.part(QueueIndex(1), 256).is_none());
        let wanted = VhostUserInflight { num_queues: 3, queue_size: 128, ..Default::default() };
        assert!(InflightMemory::make(&wanted, 2).is_err(), "more queues than there are");
    }
}
