//! The counters: one slot per thread, written by that thread alone, read by whoever cuts.
//!
//! A thread gets an index when it first enters or settles anything, and gives it back when it ends; the next new thread
//! takes it over. The index is the same for all barriers, and a barrier's slots are found by it:
//!
//! ```text
//!     thread 18 ── index 18 ──┐
//!                             ▼
//!     barrier ── chunks   [ 0..16 | 16..32 | not yet made | ... ]
//!                                      │
//!                                      ▼
//!     slot 18     entered settled | entered settled | ...      one pair per live bucket, 128 bytes in all
//! ```
//!
//! The counters only ever grow (they wrap), so a slot changes hands without being cleared: what its former owner
//! counted stays counted. The hand-over goes through the lock of the index list, which orders the last store of the old
//! owner before the first load of the new one. So each counter has one writer at a time, and adding is a load and a
//! store: no read-modify-write, no lock prefix, no line that moves.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::mutant::{Mutant, on};
use crate::sync::AtomicU64;

/// The most buckets that can be live. Eight pairs of counters fill a slot of two cache lines.
pub(crate) const MOST_BUCKETS: usize = 8;

/// Slots that are allocated together.
const CHUNK: usize = if cfg!(loom) { 3 } else { 16 };

const CHUNKS: usize = if cfg!(any(loom, shuttle)) { 1 } else { 256 };

/// Threads that can have a slot at the same time. The rest share counters under a lock: slower, and just as right.
pub(crate) const MOST_THREADS: usize = CHUNK * CHUNKS;

/// A counter with one writer.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    ///
    /// The load sees the last store, since both are by the owner of the slot, or the slot changed hands in between under
    /// a lock. The store releases: who reads this value and acquires sees all that the thread did before. For
    /// "settled" that is the promise that a recorded result is visible after the wait. For "entered" nobody needs it,
    /// and on x86 it costs nothing.
    #[inline(always)]
    pub(crate) fn add_one(&self) {
        let next = self.0.load(Relaxed).wrapping_add(1);
        self.0.store(next, if on(Mutant::ResultNotPublished) { Relaxed } else { Release });
    }

    /// Acquires what the counted threads did before; and as an acquiring load it is not overtaken by the loads that
    /// come after it, which is what "settled before entered" needs.
    fn read(&self) -> u64 {
        self.0.load(if on(Mutant::ResultNotPublished) { Relaxed } else { Acquire })
    }
}

/// What one thread counts in one bucket.
pub(crate) struct Counts {
    pub(crate) entered: Counter,
    pub(crate) settled: Counter,
}

/// What one thread counts. Two lines, because processors fetch lines in pairs: a neighbour's line half a pair away
/// would be dragged along.
#[repr(align(128))]
pub(crate) struct Slot {
    buckets: [Counts; MOST_BUCKETS],
    #[cfg(any(loom, shuttle))]
    partner: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        let counter = || Counter(AtomicU64::new(0));
        Self {
            buckets: array::from_fn(|_| Counts { entered: counter(), settled: counter() }),
            #[cfg(any(loom, shuttle))]
            partner: AtomicU64::new(0),
        }
    }

    #[inline(always)]
    pub(crate) fn bucket(&self, bucket: usize) -> &Counts {
        &self.buckets[bucket % MOST_BUCKETS]
    }

    /// See [`Fences::Paired`](crate::fence::Fences::Paired).
    #[cfg(any(loom, shuttle))]
    pub(crate) fn meet(&self) {
        self.partner.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}

/// Like the barrier's other memory, reused and never freed. See [`shared`](crate::shared).
#[cfg(not(any(loom, shuttle)))]
type Chunk = &'static [Slot; CHUNK];
#[cfg(any(loom, shuttle))]
type Chunk = Box<[Slot; CHUNK]>;

/// The slots of one barrier.
pub(crate) struct Slots {
    chunks: [OnceLock<Chunk>; CHUNKS],
}

impl Slots {
    pub(crate) fn new() -> Self {
        let slots = Self { chunks: [const { OnceLock::new() }; CHUNKS] };
        #[cfg(any(loom, shuttle))]
        slots.chunks[0].get_or_init(|| Box::new(array::from_fn(|_| Slot::new())));
        slots
    }

    /// The calling thread's own slot; none if the thread has no index, because too many have or because it is ending.
    #[inline(always)]
    pub(crate) fn own(&self) -> Option<&Slot> {
        // Most threads use one barrier, and remember where they found their slot.
        #[cfg(not(any(loom, shuttle)))]
        if let Some(slot) = index::remembered(self) {
            return Some(slot);
        }
        self.find()
    }

    #[cfg(not(any(loom, shuttle)))]
    #[inline(never)]
    fn find(&self) -> Option<&Slot> {
        let index = index::current();
        let chunk: Chunk = match self.chunks.get(index / CHUNK).and_then(OnceLock::get) {
            Some(chunk) => chunk,
            None => self.first_use()?,
        };
        let slot = &chunk[index::current() % CHUNK];
        index::remember(self, slot);
        Some(slot)
    }

    /// The thread's first use of any barrier, or the chunk's first use in this one.
    #[cfg(not(any(loom, shuttle)))]
    #[cold]
    fn first_use(&self) -> Option<Chunk> {
        let index = index::assign()?;
        Some(self.chunks[index / CHUNK].get_or_init(|| Box::leak(Box::new(array::from_fn(|_| Slot::new())))))
    }

    #[cfg(any(loom, shuttle))]
    fn find(&self) -> Option<&Slot> {
        self.chunks[0].get()?.get(index::current())
    }

    /// All slots in which anything may have been counted.
    ///
    /// A chunk that is missed here was made by a thread whose store to it (of "made") comes before its light fence, like
    /// its count. So after a heavy fence a chunk is missed only if its thread has yet to look at the epoch, and will
    /// see the new one. The same holds for the number of indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> + Clone {
        let used = index::handed_out().div_ceil(CHUNK);
        self.chunks[..used].iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter())
    }

    pub(crate) fn sum_settled(&self, bucket: usize) -> u64 {
        self.iter().fold(0, |sum, slot| sum.wrapping_add(slot.bucket(bucket).settled.read()))
    }

    pub(crate) fn sum_entered(&self, bucket: usize) -> u64 {
        self.iter().fold(0, |sum, slot| sum.wrapping_add(slot.bucket(bucket).entered.read()))
    }
}

/// Small numbers for living threads.
#[cfg(not(any(loom, shuttle)))]
mod index {
    use super::{MOST_THREADS, Slot, Slots};
    use std::cell::Cell;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    use std::ptr;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::{Mutex, PoisonError};

    const NONE: usize = usize::MAX;

    thread_local! {
        /// Without a destructor, so that reading it is one load and is allowed until the very end of a thread.
        static INDEX: Cell<usize> = const { Cell::new(NONE) };
        /// Where the last slot that was looked for was found: the barrier's slots, by address, and the slot. An address
        /// stands for the same slots for ever, since they are never freed. As long as the thread has its index, the
        /// slot is its own; it is forgotten when the index is given back.
        static LAST: Cell<(usize, Option<&'static Slot>)> = const { Cell::new((0, None)) };
        /// Whose destructor gives the index back.
        static GIVE_BACK: GiveBack = const { GiveBack };
    }

    /// Indices that were given back. The lowest goes first, which keeps the part that a cut has to sum small.
    static FREE: Mutex<BinaryHeap<Reverse<usize>>> = Mutex::new(BinaryHeap::new());

    /// Indices that were ever handed out are below this.
    static HANDED_OUT: AtomicUsize = AtomicUsize::new(0);

    struct GiveBack;

    impl Drop for GiveBack {
        fn drop(&mut self) {
            let index = INDEX.replace(NONE);
            LAST.set((0, None));
            if index != NONE {
                FREE.lock().unwrap_or_else(PoisonError::into_inner).push(Reverse(index));
            }
        }
    }

    #[inline(always)]
    pub(super) fn remembered(slots: &Slots) -> Option<&'static Slot> {
        let (address, slot) = LAST.get();
        if address == ptr::from_ref(slots).addr() { slot } else { None }
    }

    pub(super) fn remember(slots: &Slots, slot: &'static Slot) {
        LAST.set((ptr::from_ref(slots).addr(), Some(slot)));
    }

    pub(super) fn current() -> usize {
        INDEX.get()
    }

    pub(super) fn assign() -> Option<usize> {
        if current() != NONE {
            return Some(current());
        }
        // A thread whose destructor already ran would keep an index for ever.
        GIVE_BACK.try_with(|_| ()).ok()?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.pop() {
            Some(Reverse(index)) => index,
            None => next()?,
        };
        INDEX.set(index);
        Some(index)
    }

    /// Called under the lock of the free list, so only one thread stores.
    fn next() -> Option<usize> {
        let next = HANDED_OUT.load(Relaxed);
        if next == MOST_THREADS {
            return None;
        }
        HANDED_OUT.store(next + 1, Relaxed);
        Some(next)
    }

    pub(super) fn handed_out() -> usize {
        HANDED_OUT.load(Relaxed)
    }
}

/// In a model, threads are numbered as they come, and anew in each execution: statics outlive it.
#[cfg(any(loom, shuttle))]
pub(crate) mod index {
    use super::MOST_THREADS;
    use std::cell::Cell;

    std::thread_local! {
        // Of the real thread: a model runs all of its threads on one, and another test's model on another.
        static NEXT: Cell<usize> = const { Cell::new(0) };
    }

    #[cfg(loom)]
    loom::thread_local! {
        static INDEX: usize = NEXT.replace(NEXT.get() + 1);
    }

    #[cfg(shuttle)]
    shuttle::thread_local! {
        static INDEX: usize = NEXT.replace(NEXT.get() + 1);
    }

    pub(crate) fn restart(first: usize) {
        NEXT.set(first);
    }

    pub(super) fn current() -> usize {
        INDEX.try_with(|index| *index).unwrap_or(usize::MAX)
    }

    pub(super) fn handed_out() -> usize {
        MOST_THREADS
    }
}
