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
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use vm_memory::mmap::MmapRegion;
use vm_memory::{AtomicAccess, Bytes, FileOffset, VolatileMemory};

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

    /// A number at this offset; `None` if it is not inside, or not aligned.
    pub(crate) fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Option<T> {
        self.mapping.as_volatile_slice().load(offset, order).ok()
    }

    /// Stores a number at this offset; `None` if it is not inside, or not aligned.
    pub(crate) fn store<T: AtomicAccess>(&self, offset: usize, value: T, order: Ordering) -> Option<()> {
        self.mapping.as_volatile_slice().store(value, offset, order).ok()
    }

    /// The byte at this offset; `None` if it is not inside.
    pub(crate) fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        self.mapping.get_atomic_ref(offset).ok()
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

    /// The guest address of what a pointer of [`GuestMap::add_to`] leads to.
    fn guest_address(&self, pointer: *const u8) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = pointer.addr().checked_sub(region.mapping.as_ptr().addr())? as u64;
            (offset < region.place.len).then(|| region.place.guest + offset)
        })
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

    /// Calls `each` with the guest addresses and lengths of the first `len` bytes; `map` is the one that they are from.
    pub(crate) fn guest_addresses(&self, map: &GuestMap, len: usize, mut each: impl FnMut(u64, u64)) {
        self.pieces(0, len, |pointer, len| {
            if let Some(address) = map.guest_address(pointer) {
                each(address, len as u64);
            }
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn region(guest: u64, pages: u64, user: u64) -> Region {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        Region::map(RegionPlace { guest, len: pages * PAGE, user }, file, 0).unwrap()
    }

    /// Pages 0 and 1, a hole, pages 3 and 4 in two regions.
    fn map() -> GuestMap {
        let map = GuestMap::default().with(region(3 * PAGE, 1, 0x30_0000)).unwrap();
        map.with(region(0, 2, 0x10_0000)).unwrap().with(region(4 * PAGE, 1, 0x20_0000)).unwrap()
    }

    fn spans(map: &GuestMap, address: u64, len: u64) -> Result<Spans, OutsideMemory> {
        let mut spans = Spans::default();
        map.add_to(&mut spans, address, len).map(|()| spans)
    }

    #[test]
    fn addresses_inside_are_found_and_those_outside_are_not() {
        let map = map();
        for (address, len, pieces) in
            [(0, 2 * PAGE, 1), (3 * PAGE, 2 * PAGE, 2), (4 * PAGE - 1, 2, 2), (77, 0, 0)]
        {
            let spans = spans(&map, address, len).unwrap();
            assert_eq!((spans.list.len(), spans.bytes() as u64), (pieces, len));
        }
        for (address, len) in
            [(0, 2 * PAGE + 1), (2 * PAGE, 1), (5 * PAGE, 1), (5 * PAGE - 1, 2), (u64::MAX, 1), (1, u64::MAX)]
        {
            assert!(spans(&map, address, len).is_err(), "{address:#x} {len:#x}");
        }
        assert_eq!(map.read::<8>(5 * PAGE - 7), Err(OutsideMemory));
        assert_eq!(map.read::<8>(u64::MAX - 3), Err(OutsideMemory));
    }

    #[test]
    fn what_is_copied_in_comes_out_across_regions_and_at_any_alignment() {
        let map = map();
        for start in 0..20u64 {
            for len in 0..40usize {
                let at = 4 * PAGE - 20 + start;
                let bytes: Vec<u8> = (0..len).map(|i| (i * 3 + start as usize) as u8 | 1).collect();
                let all = spans(&map, at - 1, len as u64 + 2).unwrap();
                all.copy_from(0, &vec![0; len + 2]);
                assert_eq!(all.copy_from(1, &bytes), len);
                let mut out = vec![9; len + 5];
                assert_eq!(all.copy_to(0, &mut out), len + 2);
                assert_eq!(out, [&[0], &bytes[..], &[0, 9, 9, 9]].concat());
                if len >= 8 {
                    assert_eq!(map.read::<8>(at).unwrap(), bytes[..8]);
                }
            }
        }
    }

    #[test]
    fn the_front_of_spans_is_split_off_wherever_it_ends() {
        let map = map();
        for len in [0, 1, 99, 100, 101, 4096, 5000] {
            let mut back = spans(&map, 4 * PAGE - 100, 200).unwrap();
            let mut front = Spans::default();
            back.split_front(len, Some(&mut front));
            assert_eq!((front.bytes(), back.bytes()), (len.min(200), 200 - len.min(200)));
            let sum = |spans: &Spans| spans.list.iter().map(|piece| piece.iov_len).sum::<usize>();
            assert_eq!((sum(&front), sum(&back)), (front.bytes(), back.bytes()));
        }
    }

    #[test]
    fn a_prefix_is_lent_and_given_back_whole() {
        let map = map();
        let mut all = spans(&map, 4 * PAGE - 100, 200).unwrap();
        for len in [0, 1, 99, 100, 101, 199, 200, 300] {
            let lent = all.with_prefix(len, |pieces| pieces.iter().map(|piece| piece.iov_len).sum::<usize>());
            assert_eq!(lent, len.min(200));
            assert_eq!(all.list.iter().map(|piece| piece.iov_len).sum::<usize>(), 200);
        }
    }

    #[test]
    fn regions_must_not_overlap_nor_wrap_nor_be_longer_than_their_file() {
        let map = map();
        assert!(matches!(map.with(region(PAGE, 1, 0x90_0000)), Err(MemoryError::Overlaps { .. })));
        assert!(matches!(map.with(region(9 * PAGE, 1, 0x10_1000)), Err(MemoryError::Overlaps { .. })));
        let mapped = |guest, len, user, offset| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(PAGE).unwrap();
            Region::map(RegionPlace { guest, len, user }, file, offset).map(|_| ())
        };
        assert!(matches!(mapped(u64::MAX - 5, PAGE, 0, 0), Err(MemoryError::Wraps { .. })));
        assert!(matches!(mapped(0, PAGE, u64::MAX - 5, 0), Err(MemoryError::Wraps { .. })));
        assert!(matches!(mapped(0, PAGE, 0, u64::MAX - 5), Err(MemoryError::Wraps { .. })));
        assert!(matches!(mapped(0, 0, 0, 0), Err(MemoryError::Wraps { .. })));
        if !cfg!(miri) {
            assert!(matches!(mapped(0, 2 * PAGE, 0, 0), Err(MemoryError::FileTooShort { .. })));
            assert!(matches!(mapped(0, 100, 0, 100), Err(MemoryError::Map(_))));
        }
    }

    #[test]
    fn a_region_stays_mapped_for_those_who_hold_the_old_map() {
        let memory = Memory::default();
        memory.replace(map());
        let (old, generation) = memory.current();
        let place = RegionPlace { guest: 0, len: 2 * PAGE, user: 0x10_0000 };
        memory.replace(old.without(place).unwrap());
        assert_ne!(memory.generation(), generation);
        assert!(memory.current().0.without(place).is_err(), "it is gone");
        assert!(spans(&memory.current().0, 0, 1).is_err());
        let held = spans(&old, 0, 10).unwrap();
        assert_eq!(held.copy_from(0, b"still here"), 10);
        assert!(old.at_user_address(0x10_1000, PAGE).is_some());
        assert!(old.at_user_address(0x10_1000, PAGE + 1).is_none());
    }
}
