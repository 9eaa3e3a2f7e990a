//! The ways to count what is in flight.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::AcqRel;

use ashore_barrier::bucket::BucketBarrier;
use ashore_barrier::{Barrier, Options};

/// One enter and one settle, with something opaque in between.
pub(crate) trait Pair: Send + Sync {
    fn pair(&self);
}

thread_local! {
    static ENTERED: Cell<u64> = const { Cell::new(0) };
    static SETTLED: Cell<u64> = const { Cell::new(0) };
}

/// Two plain increments of thread-local variables. Counts nothing that anyone could wait for: the limit.
pub(crate) struct ThreadLocals;

impl Pair for ThreadLocals {
    #[inline(always)]
    fn pair(&self) {
        ENTERED.set(ENTERED.get() + 1);
        black_box(());
        SETTLED.set(SETTLED.get() + 1);
        black_box(());
    }
}

impl Pair for Barrier {
    #[inline(always)]
    fn pair(&self) {
        let ticket = self.enter();
        black_box(());
        drop(ticket);
    }
}

pub(crate) fn full_fences() -> Barrier {
    let mut options = Options::default();
    options.full_fences = true;
    Barrier::with(&options)
}

/// One counter up and down, without buckets, cuts or anything.
#[repr(align(128))]
#[derive(Default)]
pub(crate) struct SharedAtomic(AtomicU64);

impl Pair for SharedAtomic {
    #[inline(always)]
    fn pair(&self) {
        self.0.fetch_add(1, AcqRel);
        black_box(());
        self.0.fetch_sub(1, AcqRel);
    }
}

impl Pair for BucketBarrier {
    #[inline(always)]
    fn pair(&self) {
        let ticket = self.enter();
        black_box(());
        drop(ticket);
    }
}

impl Pair for RwLock<()> {
    #[inline(always)]
    fn pair(&self) {
        let guard = self.read();
        black_box(());
        drop(guard);
    }
}
