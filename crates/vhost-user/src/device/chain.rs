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
