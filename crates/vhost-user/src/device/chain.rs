//! One request as a guest describes it: a chain of descriptors, walked and checked.
//!
//! ```text
//!     head --> [readable] --> [readable] --> [writable] --> [writable]
//!                  in header, arguments, data    |  room for out header, arguments, data
//! ```
//!
//! What is readable comes before what is writable, and each side is one stream of bytes: where one descriptor
//! ends and the next begins means nothing. The chain may lie in the ring's own table, or end in one descriptor
//! that leads to a table of its own (indirect).

use crate::memory::{GuestMap, Spans};

use super::ring::{Descriptor, Ring};

/// Descriptors in one chain. Linux needs one for each page of data and a few more: 259 for 1 MiB.
pub(crate) const CHAIN_DESCRIPTORS_MAX: u32 = 4096;

/// Bytes of one request: data of 1 MiB, and a page for header and arguments. It is also what a head can have, which
/// is copied and so costs memory.
pub(crate) const REQUEST_BYTES_MAX: usize = (1 << 20) + 4096;

/// Why a chain is not a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("a chain of descriptors has a loop or more than {CHAIN_DESCRIPTORS_MAX} of them")]
    TooLong,
    #[error("a descriptor leads to one that does not exist")]
    Index,
    #[error("a descriptor leads outside of the guest's memory")]
    OutsideMemory,
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    #[error("an indirect descriptor is inside an indirect table")]
    NestedIndirect,
    #[error("an indirect descriptor has a successor")]
    IndirectWithNext,
    #[error("an indirect table has a length that is not a number of descriptors")]
    IndirectLength,
    #[error("the request has more than {REQUEST_BYTES_MAX} bytes")]
    TooManyBytes,
    #[error("the request has {0} readable bytes, fewer than a header")]
    NoHeader(usize),
}

/// The bytes of a request and the room for its reply, where they lie.
#[derive(Debug, Default)]
pub(crate) struct ChainBytes {
    pub(crate) readable: Spans,
    pub(crate) writable: Spans,
}

impl ChainBytes {
    pub(crate) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Walks the chain that begins at `head`, a descriptor that exists. After an error, what was found before it
    /// is still there: it may be enough to answer.
    pub(crate) fn collect(&mut self, ring: &Ring, map: &GuestMap, head: u16) -> Result<(), ChainError> {
        let mut table = Table::Ring(ring);
        let mut index = head;
        for _ in 0..CHAIN_DESCRIPTORS_MAX {
            let descriptor = table.read(map, index)?;
            if descriptor.is(Descriptor::INDIRECT) {
                table = table.indirect(&descriptor)?;
                index = 0;
                continue;
            }
            self.add(map, &descriptor)?;
            if !descriptor.is(Descriptor::NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong)
    }

    fn add(&mut self, map: &GuestMap, descriptor: &Descriptor) -> Result<(), ChainError> {
        let writable = descriptor.is(Descriptor::WRITE);
        if !writable && self.writable.bytes() > 0 {
            return Err(ChainError::ReadableAfterWritable);
        }
        let spans = if writable { &mut self.writable } else { &mut self.readable };
        let len = u64::from(descriptor.len);
        if !writable && spans.bytes() as u64 + len > REQUEST_BYTES_MAX as u64 {
            return Err(ChainError::TooManyBytes);
        }
        // Room is only room: a guest may leave more of it than any reply needs. It costs nothing, and ends where
        // the length in the used ring, a u32, can no longer say how much was written.
        let len = len.min(u64::from(u32::MAX) - spans.bytes() as u64);
        map.add_to(spans, descriptor.address, len).map_err(|_| ChainError::OutsideMemory)
    }
}

/// The table a chain goes through at the moment.
enum Table<'a> {
    Ring(&'a Ring),
    Indirect { address: u64, entries: u32 },
}

impl<'a> Table<'a> {
    fn read(&self, map: &GuestMap, index: u16) -> Result<Descriptor, ChainError> {
        match self {
            Table::Ring(ring) if index < ring.size() => Ok(ring.descriptor(index)),
            Table::Indirect { address, entries } if u32::from(index) < *entries => {
                read_indirect(map, address.checked_add(u64::from(index) * Descriptor::BYTES))
            }
            _ => Err(ChainError::Index),
        }
    }

    /// The table that an indirect descriptor leads to. Its WRITE flag means nothing.
    fn indirect(&self, descriptor: &Descriptor) -> Result<Table<'a>, ChainError> {
        if matches!(self, Table::Indirect { .. }) {
            return Err(ChainError::NestedIndirect);
        }
        if descriptor.is(Descriptor::NEXT) {
            return Err(ChainError::IndirectWithNext);
        }
        let len = u64::from(descriptor.len);
        if len == 0 || !len.is_multiple_of(Descriptor::BYTES) {
            return Err(ChainError::IndirectLength);
        }
        Ok(Table::Indirect { address: descriptor.address, entries: (len / Descriptor::BYTES) as u32 })
    }
}

/// An indirect table may lie anywhere in guest memory, aligned or not, so each entry is fetched on its own.
fn read_indirect(map: &GuestMap, address: Option<u64>) -> Result<Descriptor, ChainError> {
    let address = address.ok_or(ChainError::OutsideMemory)?;
    let bytes = map.read::<{ Descriptor::BYTES as usize }>(address).map_err(|_| ChainError::OutsideMemory)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(Descriptor::from_words([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ring::RingPlace;
    use crate::memory::{Region, RegionPlace};

    const SIZE: u32 = 8;

    /// A ring at the start of 64 KiB whose table holds these descriptors: address, length, flags, next.
    fn ring_of(descriptors: &[(u64, u32, u16, u16)]) -> (GuestMap, Ring) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(65536).unwrap();
        let region = Region::map(RegionPlace { guest: 0, len: 65536, user: 0 }, file, 0).unwrap();
        let map = GuestMap::default().with(region).unwrap();
        put(&map, 0, descriptors);
        let place = RingPlace { descriptors: 0, available: 1024, used: 2048 };
        let ring = Ring::new(&map, place, SIZE, false).unwrap();
        (map, ring)
    }

    fn put(map: &GuestMap, at: u64, descriptors: &[(u64, u32, u16, u16)]) {
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            let mut spans = Spans::default();
            map.add_to(&mut spans, at + 16 * index as u64, 16).unwrap();
            spans.copy_from(0, &address.to_le_bytes());
            spans.copy_from(8, &len.to_le_bytes());
            spans.copy_from(12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
        }
    }

    fn walk(descriptors: &[(u64, u32, u16, u16)]) -> (Result<(), ChainError>, usize, usize) {
        let (map, ring) = ring_of(descriptors);
        put(&map, 4096 + 3, &[(8192, 50, 1, 1), (9000, 60, 3, 2), (9100, 70, 2, 0)]);
        let mut bytes = ChainBytes::default();
        let result = bytes.collect(&ring, &map, 0);
        (result, bytes.readable.bytes(), bytes.writable.bytes())
    }

    #[test]
    fn a_chain_in_the_ring_and_one_in_a_table_are_the_same() {
        assert_eq!(walk(&[(8192, 50, 1, 4), (0, 0, 0, 0), (1, 1, 1, 1)]), (Ok(()), 50, 0));
        assert_eq!(walk(&[(8192, 50, 1, 1), (9000, 60, 3, 2), (9100, 70, 2, 0)]), (Ok(()), 50, 130));
        // Wherever it lies, and behind others.
        assert_eq!(walk(&[(4099, 48, 4, 0)]), (Ok(()), 50, 130));
        assert_eq!(walk(&[(9500, 5, 1, 7), (0, 0, 0, 0)]), (Ok(()), 5, 0));
        assert_eq!(walk(&[(9500, 5, 1, 1), (4099, 48, 4 | 2, 0)]), (Ok(()), 55, 130));
    }

    #[test]
    fn what_was_found_before_a_mistake_is_kept() {
        use ChainError::*;
        assert_eq!(walk(&[(8192, 50, 1, 1), (9000, 60, 3, 8)]), (Err(Index), 50, 60));
        assert_eq!(walk(&[(9500, 5, 1, 1), (4099, 32, 4, 0)]), (Err(Index), 55, 60));
        assert_eq!(
            walk(&[(8192, 50, 1, 1), (9000, 60, 3, 2), (0, 1, 0, 0)]),
            (Err(ReadableAfterWritable), 50, 60)
        );
        assert_eq!(walk(&[(8192, 50, 1, 1), (65500, 60, 2, 0)]), (Err(OutsideMemory), 50, 36));
        assert_eq!(walk(&[(8192, 50, 1, 1), (4099, 47, 4, 0)]), (Err(IndirectLength), 50, 0));
        assert_eq!(walk(&[(8192, 50, 5, 1)]), (Err(IndirectWithNext), 0, 0));
        assert_eq!(walk(&[(0, REQUEST_BYTES_MAX as u32 + 1, 0, 0)]), (Err(TooManyBytes), 0, 0));
    }

    #[test]
    fn a_loop_ends() {
        assert_eq!(walk(&[(8192, 0, 1, 0)]), (Err(ChainError::TooLong), 0, 0));
        let (result, readable, _) = walk(&[(8192, 1, 1, 1), (8192, 1, 1, 0)]);
        assert_eq!((result, readable), (Err(ChainError::TooLong), CHAIN_DESCRIPTORS_MAX as usize));
    }
}
