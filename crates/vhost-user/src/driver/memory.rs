//! The memory shared with the server: rings, slots for requests, and the pages of the client's cache.
//!
//! ```text
//!     | rings of queue 0 | slots of queue 0 | rings of queue 1 | slots of queue 1 | ... | pages |
//!                          slot: indirect table, head, start of the reply
//! ```
//!
//! It is one file in memory, sparse: room that no request ever used costs nothing. The server may write to all of it at
//! any time, so every access is a volatile copy, and nothing that lies in it is trusted twice.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Where the shared memory begins for the server, as a guest's would: any address but 0 shows mistakes sooner.
pub(super) const GUEST_BASE: u64 = 1 << 32;

/// Why an access inside the memory cannot fail.
const INSIDE: &str = "every offset is of a part that was laid out inside the memory";

/// The memory.
#[derive(Debug)]
pub(super) struct Memory {
    region: MmapRegion,
    file: File,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> io::Result<Memory> {
        let file = File::from(memfd_create(c"ashore-link", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, bytes as u64)?;
        let offset = FileOffset::new(file.try_clone()?, 0);
        let region = MmapRegion::from_file(offset, bytes).map_err(io::Error::other)?;
        Ok(Memory { region, file })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn bytes(&self) -> usize {
        self.region.size()
    }

    /// Where the memory is in this process: what vhost-user calls the user address.
    pub(super) fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        self.part(offset, into.len()).copy_to(into);
    }

    pub(super) fn write(&self, offset: usize, from: &[u8]) {
        self.part(offset, from.len()).copy_from(from);
    }

    pub(super) fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> T {
        self.region.as_volatile_slice().load(offset, order).expect(INSIDE)
    }

    pub(super) fn store<T: AtomicAccess>(&self, offset: usize, value: T, order: Ordering) {
        self.region.as_volatile_slice().store(value, offset, order).expect(INSIDE);
    }

    fn part(&self, offset: usize, length: usize) -> VolatileSlice<'_, impl BitmapSlice> {
        self.region.get_slice(offset, length).expect(INSIDE)
    }
}
