//! The memory of a guest, mapped here: from the guest's addresses, and the VMM's, to ours.
//!
//! ```text
//!     guest addresses      0 ........ 3 GiB      4 GiB ....... 6 GiB
//!                          | region 0   |        | region 1       |
//!     our addresses     mapping of fd 7       mapping of fd 7, further on
//! ```
//!
//! A map is never changed: adding or removing a region makes a new one, and whoever still works with the old
//! one keeps its regions mapped. All access to guest memory beside the rings goes through [`Spans`], which
//! copies with volatile reads and writes: a guest may change its memory while we look at it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// Regions a VMM may give us: as many as KVM has slots for, which is also what other back ends take.
pub(crate) const MEMORY_REGIONS_MAX: usize = 509;

/// Why a region was not accepted, or not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a memory region of {len:#x} bytes at guest address {guest:#x} wraps around the address space")]
    Wraps { guest: u64, len: u64 },
    #[error("a memory region at guest address {guest:#x} overlaps another one")]
    Overlaps { guest: u64 },
    #[error("more than {MEMORY_REGIONS_MAX} memory regions")]
    TooMany,
    #[error("there is no memory region of {len:#x} bytes at guest address {guest:#x}")]
    NoSuchRegion { guest: u64, len: u64 },
    #[error("a memory region needs {needed:#x} bytes of its file, which has {len:#x}")]
    FileTooShort { needed: u64, len: u64 },
    #[error("a memory region cannot be mapped: {0}")]
    Map(io::Error),
}

/// An access to an address that is in no region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutsideMemory;

/// Where a region lies, in the words of the VMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionPlace {
    pub(crate) guest: u64,
    pub(crate) len: u64,
    pub(crate) user: u64,
}

/// A piece of guest memory, mapped for as long as this lives.
#[derive(Debug)]
pub(crate) struct Region {
    place: RegionPlace,
    mapping: MmapRegion<()>,
}

impl Region {
    /// Maps `place.len` bytes of `file` from `file_offset` on.
    pub(crate) fn map(place: RegionPlace, file: File, file_offset: u64) -> Result<Region, MemoryError> {
        let RegionPlace { guest, len, user } = place;
        let wraps = MemoryError::Wraps { guest, len };
        let fits = guest.checked_add(len).is_some() && user.checked_add(len).is_some() && len > 0;
        let needed = file_offset.checked_add(len).filter(|_| fits).ok_or(wraps)?;
        check_file_length(&file, needed)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, file_offset), len as usize)
            .map_err(|error| MemoryError::Map(io::Error::other(error)))?;
        Ok(Region { place, mapping })
    }

    /// Our pointer to `len` bytes at the address that is `offset` bytes into the region; `None` if they are not
    /// all in it.
    fn pointer(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.place.len);
        // Stays inside the mapping, or one past its end where len is 0, because offset + len does not exceed it.
        inside.then(|| self.mapping.as_ptr().wrapping_add(offset as usize))
    }
}

/// Memory beyond the end of its file can be mapped, but kills us at the first touch.
fn check_file_length(file: &File, needed: u64) -> Result<(), MemoryError> {
    if cfg!(miri) {
        return Ok(());
    }
    let metadata = file.metadata().map_err(MemoryError::Map)?;
    let device = metadata.file_type().is_char_device() || metadata.file_type().is_block_device();
    match metadata.size() {
        len if len < needed && !device => Err(MemoryError::FileTooShort { needed, len }),
        _ => Ok(()),
    }
}

/// All regions of a guest, in the order of their guest addresses.
#[derive(Debug, Default)]
pub(crate) struct GuestMap {
    regions: Vec<Arc<Region>>,
}

impl GuestMap {
    /// A map with one region more.
    pub(crate) fn with(&self, region: Region) -> Result<GuestMap, MemoryError> {
        let place = region.place;
        if self.regions.len() >= MEMORY_REGIONS_MAX {
            return Err(MemoryError::TooMany);
        }
        if self.regions.iter().any(|other| overlap(&other.place, &place)) {
            return Err(MemoryError::Overlaps { guest: place.guest });
        }
        let mut regions = self.regions.clone();
        regions.push(Arc::new(region));
        regions.sort_by_key(|region| region.place.guest);
        Ok(GuestMap { regions })
    }

    /// A map without the region at `place`.
    pub(crate) fn without(&self, place: RegionPlace) -> Result<GuestMap, MemoryError> {
        let mut regions = self.regions.clone();
        regions.retain(|region| region.place != place);
        if regions.len() == self.regions.len() {
            return Err(MemoryError::NoSuchRegion { guest: place.guest, len: place.len });
        }
        Ok(GuestMap { regions })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Adds the `len` bytes at a guest address to `spans`, which must not outlive this map. They may lie in
    /// several regions that follow each other.
    pub(crate) fn add_to(&self, spans: &mut Spans, address: u64, len: u64) -> Result<(), OutsideMemory> {
        let (mut address, mut left) = (address, len);
        while left > 0 {
            let (region, offset) = self.region_at(address).ok_or(OutsideMemory)?;
            let here = left.min(region.place.len - offset);
            let pointer = region.pointer(offset, here).ok_or(OutsideMemory)?;
            spans.push(pointer, here as usize);
            left -= here;
            address = address.checked_add(here).filter(|_| left > 0).unwrap_or(address);
        }
        Ok(())
    }

    /// Where the `len` bytes at an address of the VMM are; they must be in one region, which is kept mapped by
    /// holding on to it.
    pub(crate) fn at_user_address(&self, user: u64, len: u64) -> Option<(Arc<Region>, *mut u8)> {
        self.regions.iter().find_map(|region| {
            let pointer = region.pointer(user.checked_sub(region.place.user)?, len)?;
            Some((region.clone(), pointer))
        })
    }

    /// A copy of `N` bytes at a guest address.
    pub(crate) fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], OutsideMemory> {
        let mut bytes = [0; N];
        let mut done = 0;
        while done < N {
            let here = address.checked_add(done as u64).ok_or(OutsideMemory)?;
            let (region, offset) = self.region_at(here).ok_or(OutsideMemory)?;
            let len = (region.place.len - offset).min((N - done) as u64) as usize;
            let pointer = region.pointer(offset, len as u64).ok_or(OutsideMemory)?;
            // SAFETY: `pointer` checked that the bytes are in the region, which self keeps mapped.
            unsafe { read_volatile_bytes(pointer, &mut bytes[done..done + len]) };
            done += len;
        }
        Ok(bytes)
    }

    fn region_at(&self, address: u64) -> Option<(&Region, u64)> {
        let after = self.regions.partition_point(|region| region.place.guest <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = address - region.place.guest;
        (offset < region.place.len).then_some((region, offset))
    }
}

fn overlap(one: &RegionPlace, other: &RegionPlace) -> bool {
    let meet = |a: u64, b: u64| a < b + other.len && b < a + one.len;
    meet(one.guest, other.guest) || meet(one.user, other.user)
}

/// The map as it is now, for queues that look once a request whether it is another one.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    current: Mutex<Arc<GuestMap>>,
    generation: AtomicU64,
}

impl Memory {
    /// The map, and the generation it belongs to.
    pub(crate) fn current(&self) -> (Arc<GuestMap>, u64) {
        let current = self.current.lock();
        (current.clone(), self.generation.load(Ordering::Relaxed))
    }

    /// Counts replacements. A guest learns of new memory only after the VMM heard that we have it, and makes a
    /// request that uses it after that; so whoever has seen the request sees the new generation (Acquire, with
    /// the Release in `replace`).
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn replace(&self, map: GuestMap) {
        let mut current = self.current.lock();
        *current = Arc::new(map);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Pieces of guest memory that together are one stream of bytes.
///
/// The pointers are good for as long as the map lives from which [`GuestMap::add_to`] took them; who keeps spans
/// keeps that map beside them.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    list: Vec<libc::iovec>,
    bytes: usize,
}

// SAFETY: the pointers lead to shared memory that belongs to no thread. It is read and written with volatile
// accesses or by the kernel, and a race with another thread of ours could only mix up the bytes of one guest.
unsafe impl Send for Spans {}
// SAFETY: as above; a shared reference allows copying, and nothing that changes the list.
unsafe impl Sync for Spans {}

impl Spans {
    /// Pieces whose list is kept for the next request; beyond that it was an odd one.
    const KEPT_MAX: usize = 1024;

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.list.shrink_to(Self::KEPT_MAX);
        self.bytes = 0;
    }

    fn push(&mut self, pointer: *mut u8, len: usize) {
        self.list.push(libc::iovec { iov_base: pointer.cast(), iov_len: len });
        self.bytes += len;
    }

    /// Takes the first `len` bytes away (all, if there are fewer) and gives them to `front`.
    pub(crate) fn split_front(&mut self, len: usize, mut front: Option<&mut Spans>) {
        let mut left = len.min(self.bytes);
        self.bytes -= left;
        let mut whole = 0;
        while left > 0 {
            let piece = &mut self.list[whole];
            let taken = piece.iov_len.min(left);
            if let Some(front) = front.as_deref_mut() {
                front.push(piece.iov_base.cast(), taken);
            }
            whole += usize::from(taken == piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(taken);
            piece.iov_len -= taken;
            left -= taken;
        }
        self.list.drain(..whole);
    }

    /// Copies the bytes from `position` on into `buffer`; returns how many there were.
    pub(crate) fn copy_to(&self, position: usize, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        self.pieces(position, buffer.len(), |pointer, len| {
            // SAFETY: the piece lies in a mapping that is alive (see the type), and any byte is a valid u8.
            unsafe { read_volatile_bytes(pointer, &mut buffer[done..done + len]) };
            done += len;
        });
        done
    }

    /// Copies `bytes` to `position`; returns how many there was room for.
    pub(crate) fn copy_from(&self, position: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.pieces(position, bytes.len(), |pointer, len| {
            // SAFETY: the piece lies in a mapping that is alive (see the type) and writable (see `Region::map`).
            unsafe { write_volatile_bytes(pointer, &bytes[done..done + len]) };
            done += len;
        });
        done
    }

    /// Calls `each` with every piece of the `len` bytes from `position` on, as far as there are any.
    fn pieces(&self, position: usize, len: usize, mut each: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (position, len);
        for piece in &self.list {
            if left == 0 {
                break;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let here = (piece.iov_len - skip).min(left);
            each(piece.iov_base.cast::<u8>().wrapping_add(skip), here);
            (skip, left) = (0, left - here);
        }
    }

    /// Lends the first `len` bytes (all, if there are fewer) in the form system calls take.
    pub(crate) fn with_prefix<R>(&mut self, len: usize, act: impl FnOnce(&[libc::iovec]) -> R) -> R {
        let (mut count, mut left) = (0, len);
        while left > 0 && count < self.list.len() && self.list[count].iov_len <= left {
            left -= self.list[count].iov_len;
            count += 1;
        }
        let cut = (left > 0 && count < self.list.len()).then_some(count);
        let Some(cut) = cut else { return act(&self.list[..count]) };
        let whole = std::mem::replace(&mut self.list[cut].iov_len, left);
        let result = act(&self.list[..=cut]);
        self.list[cut].iov_len = whole;
        result
    }
}

const WORD: usize = size_of::<u64>();

/// Reads each byte exactly once, in words where the source is aligned.
///
/// # Safety
/// `source` must be readable for `target.len()` bytes.
unsafe fn read_volatile_bytes(source: *const u8, target: &mut [u8]) {
    let lead = source.align_offset(WORD).min(target.len());
    let (bytes, rest) = target.split_at_mut(lead);
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    let words_at = source.wrapping_add(lead);
    let tail_at = words_at.wrapping_add(words.len() * WORD);
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: index < lead <= target.len(), which the caller vouches for.
        *byte = unsafe { source.add(index).read_volatile() };
    }
    for (index, word) in words.iter_mut().enumerate() {
        // SAFETY: lies within target.len() bytes of source, and lead made the address a multiple of a word.
        *word = unsafe { words_at.cast::<u64>().add(index).read_volatile() }.to_ne_bytes();
    }
    for (index, byte) in tail.iter_mut().enumerate() {
        // SAFETY: lead + words + tail is target.len(), which the caller vouches for.
        *byte = unsafe { tail_at.add(index).read_volatile() };
    }
}

/// Writes each byte exactly once, in words where the target is aligned.
///
/// # Safety
/// `target` must be writable for `source.len()` bytes.
unsafe fn write_volatile_bytes(target: *mut u8, source: &[u8]) {
    let lead = target.align_offset(WORD).min(source.len());
    let (bytes, rest) = source.split_at(lead);
    let (words, tail) = rest.as_chunks::<WORD>();
    let words_at = target.wrapping_add(lead);
    let tail_at = words_at.wrapping_add(words.len() * WORD);
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: index < lead <= source.len(), which the caller vouches for.
        unsafe { target.add(index).write_volatile(*byte) };
    }
    for (index, word) in words.iter().enumerate() {
        // SAFETY: lies within source.len() bytes of target, and lead made the address a multiple of a word.
        unsafe { words_at.cast::<u64>().add(index).write_volatile(u64::from_ne_bytes(*word)) };
    }
    for (index, byte) in tail.iter().enumerate() {
        // SAFETY: lead + words + tail is source.len(), which the caller vouches for.
        unsafe { tail_at.add(index).write_volatile(*byte) };
    }
}
