//! The algorithm of 2021 as Linux merged it, to be read beside the patch. Reference and base line, not for use.
//!
//! | Linux 5.15, `fs/fuse` | here |
//! |---|---|
//! | `struct fuse_sync_bucket`, `count`, `wait` | `Bucket`, `count`, the `Completion` |
//! | `fuse_sync_bucket_alloc`, count starts at 1 | `Inner::allocate` |
//! | `fc->curr_bucket`, RCU-dereferenced | `Inner::current`, an index that is loaded with acquire |
//! | `atomic_inc_not_zero` in a loop | `Inner::join` |
//! | `fuse_sync_bucket_dec`: decrement and wake | `Inner::leave` |
//! | `fuse_sync_fs_writes` | `BucketBarrier::cut` |
//! | `fc->lock` | `Inner::control` |
//! | `kfree_rcu` | the buckets are an array: a stale index leads to a bucket, though perhaps to a new one |
//!
//! Two things differ, for the sake of a common test suite. Linux waits in place, one task a bucket; here what follows
//! the wait (passing the turn on to the next bucket, waking whoever wants to know) is done by whoever empties the
//! bucket, so that a cut can also be waited for by callback. And RCU is replaced by memory that keeps its type: who
//! loaded the index of a bucket that was meanwhile emptied and put to use again either finds it at zero and loads the
//! index once more, or joins the new one, which is either current, or closed after that load.

use std::array;
use std::fmt;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, PoisonError};

use crate::completion::{Completion, Cut, WakeUps};
use crate::mutant::{Mutant, on};
use crate::shared::{Pool, Shared};
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, lock};

/// Cuts that can drain at the same time, less one. A further one waits for a bucket, as the kernel waits for memory.
const BUCKETS: usize = if cfg!(loom) { 4 } else { 64 };

/// The number of a cut that waits for nothing. Buckets are numbered from one.
const ALREADY_OVER: u64 = 0;

/// The barrier of 2021: one counter that every writer changes twice.
pub struct BucketBarrier {
    inner: Shared<Inner>,
}

/// A ticket of a [`BucketBarrier`].
#[must_use = "a ticket that is dropped at once has waited for nothing"]
pub struct BucketTicket {
    inner: Shared<Inner>,
    bucket: usize,
}

struct Inner {
    /// The bucket that is joined now.
    current: AtomicU64,
    buckets: [Bucket; BUCKETS],
    control: Mutex<Control>,
    freed: Condvar,
}

/// Zero: free, or about to be. Otherwise members, plus one while it is current, plus one while its parent drains.
struct Bucket {
    count: AtomicU64,
    /// Which cut ends it. Written before `count` first leaves zero, and read by members only.
    number: AtomicU64,
}

struct Control {
    next_number: u64,
    free: Vec<usize>,
    /// The bucket that must not be empty before this one is.
    child: [Option<usize>; BUCKETS],
    completion: Arc<Completion>,
}

static POOL: Pool<Inner> = Pool::new();

impl BucketBarrier {
    /// One current bucket, nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: POOL.take(Inner::restart, Inner::new) }
    }

    /// See [`Barrier::enter`](crate::Barrier::enter).
    #[inline]
    pub fn enter(&self) -> BucketTicket {
        let bucket = self.inner.join();
        let ticket = BucketTicket { inner: self.inner.clone(), bucket };
        if on(Mutant::SettledEarly) {
            ticket.inner.leave(bucket);
        }
        ticket
    }

    /// See [`Barrier::cut`](crate::Barrier::cut).
    ///
    /// Unlike there, a ticket that is entered after this returned may belong to it, if its thread had looked at the
    /// current bucket before: at most one a thread.
    pub fn cut(&self) -> Cut {
        let mut control = self.inner.lock_with_a_free_bucket();
        let completion = control.completion.clone();
        let old = self.inner.current();
        let number = self.inner.buckets[old].number.load(Relaxed);
        if self.inner.is_untouched(old) {
            // Nobody is in it, and its parent has drained, or it would count 2. So all before is over.
            return Cut::new(completion, ALREADY_OVER);
        }
        if on(Mutant::OldCutShared) && control.child.iter().any(Option::is_some) {
            return Cut::new(completion, number - 1);
        }
        self.inner.swap(&mut control, old);
        drop(control);
        self.inner.leave(old); // The token of "current".
        Cut::new(completion, number)
    }

    /// See [`Barrier::is_earlier`](crate::Barrier::is_earlier).
    #[must_use]
    pub fn is_earlier(&self, ticket: &BucketTicket, cut: &Cut) -> bool {
        self.inner.buckets[ticket.bucket].number.load(Relaxed) <= cut.number()
    }

    /// See [`Barrier::abort`](crate::Barrier::abort).
    pub fn abort(&self) {
        let completion = lock(&self.inner.control).completion.clone();
        drop(completion.abort());
    }
}

impl Default for BucketBarrier {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BucketBarrier {
    fn drop(&mut self) {
        POOL.give(&self.inner);
    }
}

impl fmt::Debug for BucketBarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketBarrier").finish_non_exhaustive()
    }
}

impl Drop for BucketTicket {
    #[inline]
    fn drop(&mut self) {
        if !on(Mutant::SettledEarly) {
            self.inner.leave(self.bucket);
        }
    }
}

impl fmt::Debug for BucketTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketTicket").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Inner {
    fn new() -> Self {
        let control = Control {
            next_number: 1,
            free: (0..BUCKETS).rev().collect(),
            child: [None; BUCKETS],
            completion: Arc::new(Completion::new(1)),
        };
        let bucket = || Bucket { count: AtomicU64::new(0), number: AtomicU64::new(0) };
        let inner = Self {
            current: AtomicU64::new(0),
            buckets: array::from_fn(|_| bucket()),
            control: Mutex::new(control),
            freed: Condvar::new(),
        };
        let first = inner.allocate(&mut lock(&inner.control));
        inner.current.store(first as u64, Release);
        inner
    }

    fn current(&self) -> usize {
        // Acquire: the count and number of the bucket were written before it was made current.
        self.current.load(Acquire) as usize
    }

    /// The bucket that was joined.
    #[inline]
    fn join(&self) -> usize {
        loop {
            let bucket = self.current();
            if self.increment_unless_zero(&self.buckets[bucket].count) {
                return bucket;
            }
        }
    }

    /// A bucket at zero was emptied after a newer one was made current. The acquiring load of that zero makes the newer
    /// one visible, so a caller fails at most once a cut.
    #[inline]
    fn increment_unless_zero(&self, count: &AtomicU64) -> bool {
        if on(Mutant::DeadBucketEntered) {
            count.fetch_add(1, AcqRel);
            return true;
        }
        let mut seen = count.load(Acquire);
        while seen != 0 {
            match count.compare_exchange_weak(seen, seen + 1, AcqRel, Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Releases what the member recorded; whoever finds zero acquires what all members recorded, since every change of
    /// the count is a read-modify-write and carries the releases before it on.
    #[inline]
    fn leave(&self, bucket: usize) {
        let order = if on(Mutant::ResultNotPublished) { Relaxed } else { AcqRel };
        if self.buckets[bucket].count.fetch_sub(1, order) == 1 {
            self.emptied(bucket);
        }
    }

    /// Called once in each life of a bucket, by whoever brought its count to zero; a bucket at zero is never joined.
    #[cold]
    fn emptied(&self, mut bucket: usize) {
        let mut control = lock(&self.control);
        let complete = loop {
            let number = self.buckets[bucket].number.load(Relaxed);
            let child = control.child[bucket].take().expect("a current bucket counts at least its token");
            control.free.push(bucket);
            self.freed.notify_one();
            if on(Mutant::AncestorIgnored) || self.buckets[child].count.fetch_sub(1, AcqRel) != 1 {
                break number + 1;
            }
            bucket = child;
        };
        let wake_ups = self.report(&control, complete);
        drop(control);
        drop(wake_ups);
    }

    fn report(&self, control: &Control, complete: u64) -> WakeUps {
        if on(Mutant::WaitsForLater) && !self.is_untouched(self.current()) {
            return WakeUps::none();
        }
        control.completion.advance(complete)
    }

    /// The shortcut's test. Adding nothing, instead of a load, reads the newest value there is: a load may be stale,
    /// and miss somebody who joined before the cut. (The kernel's increment is a full barrier, which does the same.)
    fn is_untouched(&self, bucket: usize) -> bool {
        let count = self.buckets[bucket].count.fetch_add(0, AcqRel);
        assert!(count >= 1, "the current bucket counts at least its token");
        count == 1 || (on(Mutant::OneTooMany) && count == 2)
    }

    /// Makes a new bucket current. Whoever still has the old index may join the old bucket, until it is empty.
    fn swap(&self, control: &mut Control, old: usize) {
        let new = self.allocate(control);
        if !on(Mutant::AncestorIgnored) {
            // The child may not drain before its parent. Nobody can see it yet, but a stale index may point to it.
            self.buckets[new].count.fetch_add(1, AcqRel);
        }
        control.child[old] = Some(new);
        self.current.store(new as u64, Release);
    }

    fn lock_with_a_free_bucket(&self) -> MutexGuard<'_, Control> {
        let mut control = lock(&self.control);
        while control.free.is_empty() || self.waits_before_the_swap() {
            control = self.freed.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        control
    }

    fn waits_before_the_swap(&self) -> bool {
        on(Mutant::SwapAfterWait) && !self.is_untouched(self.current())
    }

    fn allocate(&self, control: &mut Control) -> usize {
        let bucket = control.free.pop().expect("the caller made sure");
        self.buckets[bucket].number.store(control.next_number, Relaxed);
        control.next_number += 1;
        // Release: who joins acquires the number too. A stale index may have waited for exactly this.
        let was = self.buckets[bucket].count.fetch_add(1, AcqRel);
        assert!(was == 0, "a free bucket has no members");
        bucket
    }

    /// See `Inner::restart` in `barrier.rs`.
    fn restart(&self) -> bool {
        let mut control = lock(&self.control);
        let idle = control.free.len() == BUCKETS - 1 && self.is_untouched(self.current());
        if idle {
            control.completion = Arc::new(Completion::new(control.next_number - 1));
        }
        idle
    }
}
