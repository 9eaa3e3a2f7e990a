//! The split virtqueue in guest memory. All pointers into it are here, and nowhere else.
//!
//! ```text
//!   descriptor table       available ring                 used ring
//!   the guest writes       the guest writes, we read      we write, the guest reads
//!
//!   0  address  u64        0  flags  u16                  0  flags  u16
//!   8  len      u32        2  index  u16                  2  index  u16
//!   12 flags    u16        4  head   u16  x size          4  (head u32, written u32)  x size
//!   14 next     u16        .. used_event u16              .. avail_event u16
//!   16 ... x size
//! ```
//!
//! An index counts for ever and wraps at 65536; its slot is the index modulo the size. `used_event` says after
//! which completion the guest wants to be notified, `avail_event` after which request we want to be. Without
//! EVENT_IDX, bit 0 of the flags of each ring asks the other side not to notify at all.
//!
//! Each value is read once into a local before it is checked, because the guest may change it in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::memory::{GuestMap, Region};

/// Largest ring: what the virtio specification allows for split rings.
pub(crate) const RING_SIZE_MAX: u16 = 32768;

/// The other side does not want to be notified (in the flags of its ring, without EVENT_IDX).
const NO_NOTIFICATION: u16 = 1;

/// A descriptor, as read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) const BYTES: u64 = 16;
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;

    pub(crate) fn from_words([address, rest]: [u64; 2]) -> Descriptor {
        let (address, rest) = (u64::from_le(address), u64::from_le(rest));
        Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    pub(crate) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Where the VMM says the parts of a ring are, in its own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RingPlace {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("a ring must have a size that is a power of two and at most {RING_SIZE_MAX}, not {0}")]
    Size(u32),
    #[error("its {0} is not in the memory that the VMM shares")]
    Outside(&'static str),
    #[error("its {0} is not aligned")]
    Alignment(&'static str),
}

/// The size of a ring, if it can have it.
pub(crate) fn check_size(size: u32) -> Result<u16, RingError> {
    let narrow = u16::try_from(size).ok();
    narrow.filter(|size| size.is_power_of_two() && *size <= RING_SIZE_MAX).ok_or(RingError::Size(size))
}

/// A ring in mapped guest memory.
#[derive(Debug)]
pub(crate) struct Ring {
    size: u16,
    event_idx: bool,
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
    /// Keeps the three pointers above good, also when the VMM takes the memory away meanwhile.
    _mapped: [Arc<Region>; 3],
}

// SAFETY: the pointers lead to shared memory that belongs to no thread, mapped for as long as the ring lives;
// every access through them is atomic.
unsafe impl Send for Ring {}
// SAFETY: as above. Who may call what at the same time is a matter of the ring's protocol, not of memory safety.
unsafe impl Sync for Ring {}

impl Ring {
    /// Finds the parts of a ring in guest memory.
    pub(crate) fn new(
        map: &GuestMap,
        place: RingPlace,
        size: u32,
        event_idx: bool,
    ) -> Result<Ring, RingError> {
        let size = check_size(size)?;
        let entries = u64::from(size);
        let part = |what, user, len, align: usize| {
            let (region, pointer) = map.at_user_address(user, len).ok_or(RingError::Outside(what))?;
            let aligned = pointer.addr().is_multiple_of(align);
            aligned.then_some((region, pointer)).ok_or(RingError::Alignment(what))
        };
        let (first, descriptors) =
            part("descriptor table", place.descriptors, Descriptor::BYTES * entries, align_of::<u64>())?;
        let (second, available) =
            part("available ring", place.available, 6 + 2 * entries, align_of::<u16>())?;
        let (third, used) = part("used ring", place.used, 6 + 8 * entries, align_of::<u32>())?;
        Ok(Ring { size, event_idx, descriptors, available, used, _mapped: [first, second, third] })
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor with this index, which must be below the size.
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        let offset = usize::from(self.slot(index)) * Descriptor::BYTES as usize;
        let word = |offset: usize| {
            // SAFETY: `slot` is below the size, so both words lie in the table that `new` found in a mapping
            // which lives as long as self; the table is aligned to u64, and 16 and 8 are multiples of that.
            let word =
                unsafe { AtomicU64::from_ptr(self.descriptors.wrapping_add(offset).cast_mut().cast()) };
            // The chain was handed over by the available index, which was read with Acquire.
            word.load(Ordering::Relaxed)
        };
        Descriptor::from_words([word(offset), word(offset + 8)])
    }

    /// How many requests the guest has made available, ever, modulo 65536. Everything the guest wrote before it
    /// made them available is visible after this (Acquire, with the guest's own barrier before its store).
    pub(crate) fn available_index(&self) -> u16 {
        u16::from_le(self.available_word(2).load(Ordering::Acquire))
    }

    /// The head of the chain at this index of the available ring; any value.
    pub(crate) fn available_head(&self, index: u16) -> u16 {
        let offset = 4 + 2 * usize::from(self.slot(index));
        u16::from_le(self.available_word(offset).load(Ordering::Relaxed))
    }

    /// How many completions have been published, ever, modulo 65536.
    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(self.used_word(2).load(Ordering::Relaxed))
    }

    /// Where in the used ring the completion at `index` stands, and how many bytes it has.
    pub(crate) fn used_element(&self, index: u16) -> (usize, usize) {
        (4 + 8 * usize::from(self.slot(index)), 8)
    }

    /// Where in the used ring its flags and its index stand.
    pub(crate) const USED_HEAD: (usize, usize) = (0, 4);

    /// Where in the used ring the guest finds whether to notify us.
    pub(crate) fn used_wish(&self) -> (usize, usize) {
        (if self.event_idx { self.avail_event() } else { 0 }, 2)
    }

    /// Writes a completion into the used ring, where the guest does not look before [`Ring::publish`].
    pub(crate) fn write_used(&self, index: u16, head: u16, written: u32) {
        let (offset, _) = self.used_element(index);
        for (offset, value) in [(offset, u32::from(head)), (offset + 4, written)] {
            // SAFETY: `slot` is below the size, so both words lie in the used ring that `new` found in a mapping
            // which lives as long as self; it is aligned to u32, and 4 and 8 are multiples of that.
            let word = unsafe { AtomicU32::from_ptr(self.used.wrapping_add(offset).cast()) };
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Shows the guest all completions before `index`, and what was written for them (Release).
    pub(crate) fn publish(&self, index: u16) {
        self.used_word(2).store(index.to_le(), Ordering::Release);
    }

    /// Whether the guest wants to be notified of the completions from `old` up to, not including, `new`.
    pub(crate) fn wants_notification(&self, old: u16, new: u16) -> bool {
        // The guest writes its wish and then looks at the used index; we wrote the index and look at its wish.
        // With a full fence on each side, at least one of us sees what the other wrote.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event = 4 + 2 * usize::from(self.size);
            let event = u16::from_le(self.available_word(used_event).load(Ordering::Relaxed));
            passes(event, old, new)
        } else {
            u16::from_le(self.available_word(0).load(Ordering::Relaxed)) & NO_NOTIFICATION == 0
        }
    }

    /// Asks the guest to notify us of the request at `index`, the next one. Returns whether it is there already,
    /// in which case no notification may come.
    pub(crate) fn enable_kicks(&self, index: u16) -> bool {
        if self.event_idx {
            self.used_word(self.avail_event()).store(index.to_le(), Ordering::Relaxed);
        } else {
            self.used_word(0).store(0, Ordering::Relaxed);
        }
        // The counterpart of the guest's fence between its index and its look at our wish.
        fence(Ordering::SeqCst);
        self.available_index() != index
    }

    /// Tells the guest that we are looking by ourselves. With EVENT_IDX nothing needs to be said: the event asked
    /// for has passed, and is asked for again before we sleep. Returns whether something was written.
    pub(crate) fn disable_kicks(&self) -> bool {
        if !self.event_idx {
            self.used_word(0).store(NO_NOTIFICATION.to_le(), Ordering::Relaxed);
        }
        !self.event_idx
    }

    fn avail_event(&self) -> usize {
        4 + 8 * usize::from(self.size)
    }

    fn slot(&self, index: u16) -> u16 {
        index & (self.size - 1)
    }

    /// A word of the available ring. `offset` is even and at most 4 + 2 * size.
    fn available_word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= 4 + 2 * usize::from(self.size));
        // SAFETY: `new` found 6 + 2 * size bytes from here in a mapping that lives as long as self, aligned to u16.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(offset).cast_mut().cast()) }
    }

    /// A word of the used ring. `offset` is even and at most 4 + 8 * size.
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset <= 4 + 8 * usize::from(self.size));
        // SAFETY: `new` found 6 + 8 * size bytes from here in a mapping that lives as long as self, aligned to u16.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }
}

/// Whether going from `old` to `new` goes past `event`, all modulo 65536.
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionPlace;
    use std::fs::File;

    fn map() -> (GuestMap, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(65536).unwrap();
        let place = RegionPlace { guest: 0, len: 65536, user: 0x7000_0000 };
        let region = Region::map(place, file.try_clone().unwrap(), 0).unwrap();
        (GuestMap::default().with(region).unwrap(), file)
    }

    const PLACE: RingPlace =
        RingPlace { descriptors: 0x7000_0000, available: 0x7000_1000, used: 0x7000_2000 };

    #[test]
    fn an_event_is_passed_by_the_steps_that_go_over_it_and_by_no_others() {
        // Method: every distance around the wrap, against counting.
        for old in [0u16, 5, 65530, 65535] {
            for distance in 0..40u16 {
                let new = old.wrapping_add(distance);
                for event in (0..60).map(|step| old.wrapping_add(step).wrapping_sub(10)) {
                    let counted = (0..distance).any(|step| old.wrapping_add(step) == event);
                    assert_eq!(passes(event, old, new), counted, "event {event}, from {old} to {new}");
                }
            }
        }
    }

    #[test]
    fn a_ring_must_lie_in_memory_and_be_aligned() {
        let (map, _file) = map();
        let at = |place| Ring::new(&map, place, 64, true).map(|_| ());
        assert_eq!(at(PLACE), Ok(()));
        let end = 0x7000_0000 + 65536;
        assert_eq!(
            at(RingPlace { descriptors: end - 1008, ..PLACE }),
            Err(RingError::Outside("descriptor table"))
        );
        assert_eq!(
            at(RingPlace { available: end - 132, ..PLACE }),
            Err(RingError::Outside("available ring"))
        );
        assert_eq!(at(RingPlace { used: end - 516, ..PLACE }), Err(RingError::Outside("used ring")));
        assert_eq!(at(RingPlace { used: 0x6fff_fffc, ..PLACE }), Err(RingError::Outside("used ring")));
        assert_eq!(at(RingPlace { used: u64::MAX - 3, ..PLACE }), Err(RingError::Outside("used ring")));
        assert_eq!(
            at(RingPlace { available: 0x7000_1001, ..PLACE }),
            Err(RingError::Alignment("available ring"))
        );
        assert_eq!(at(RingPlace { used: 0x7000_2002, ..PLACE }), Err(RingError::Alignment("used ring")));
        assert_eq!(at(RingPlace { used: end - 518, ..PLACE }), Err(RingError::Alignment("used ring")));
    }

    #[test]
    fn the_size_is_a_power_of_two_up_to_32768() {
        let good: Vec<u32> = (0..70_000).filter(|size| check_size(*size).is_ok()).collect();
        assert_eq!(good, (0..16).map(|power| 1 << power).collect::<Vec<u32>>());
    }

    #[test]
    fn kicks_are_asked_for_in_the_way_that_was_agreed() {
        let (map, _file) = map();
        for event_idx in [true, false] {
            let ring = Ring::new(&map, PLACE, 64, event_idx).unwrap();
            ring.disable_kicks();
            assert_eq!(ring.used_word(0).load(Ordering::Relaxed), u16::from(!event_idx));
            assert!(!ring.enable_kicks(0));
            assert!(ring.enable_kicks(9), "the available index is 0 and not what was expected");
            let event = ring.used_word(ring.avail_event()).load(Ordering::Relaxed);
            assert_eq!(
                (event, ring.used_word(0).load(Ordering::Relaxed)),
                (if event_idx { 9 } else { 0 }, 0)
            );
            ring.used_word(ring.avail_event()).store(0, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_descriptor_is_read_as_it_is_laid_out() {
        let words = [0x1122_3344_5566_7788, 0xaaaa_bbbb_cccc_dddd];
        let descriptor = Descriptor::from_words(words);
        let expected = Descriptor { address: words[0], len: 0xcccc_dddd, flags: 0xbbbb, next: 0xaaaa };
        assert_eq!(descriptor, expected);
    }
}
