//! The barrier that we ship: counters per thread, summed by whoever cuts.
//!
//! Time is divided into numbered epochs, and each epoch has a bucket: a pair of counters, "entered" and "settled", in
//! each thread's slot. A ticket belongs to the epoch in which it was entered. A cut ends the current epoch. From then on
//! nobody enters its bucket, and the bucket is empty when both counters, summed over all threads, are equal.
//!
//! ```text
//!     epoch        5            6            7        8
//!              drained  |   closed     |  closed  | current
//!                       |   2 left     |  0 left  | everyone enters here
//!                       |<- oldest                |<- current
//!     cut 5 is over; cuts 6 and 7 wait for the two (7 has nothing of its own, but cuts are over in order)
//! ```
//!
//! # Why it is right
//!
//! *Nobody enters a closed bucket.* Entering counts first and looks at the epoch afterwards. If the epoch moved, the
//! thread takes its count back and tries again. So a cut that has stored the new epoch and passed its heavy fence sees
//! the count of everyone who got a ticket in the old one; and the bucket of a drained epoch is truly free for reuse.
//!
//! *Equal sums mean empty.* "Settled" is read first, acquiring. For each settle that is counted, the matching enter came
//! before it, and the read of "entered", which comes later, counts it too. So the difference is never less than what is
//! outstanding. The other way round, a thread that takes its count back between the two reads would be counted as
//! settled and not as entered, and hide somebody's ticket.
//!
//! *The last one out is seen.* Who settles counts, passes the light fence, and looks at the epoch. Either the cut saw
//! that count, or the thread sees that its bucket was closed, and then it looks under the lock whether the bucket is
//! empty. Of several who do, the last to get the lock sees the counts of all the others.
//!
//! *What was recorded before a settle is visible after the wait.* The count is stored with release and summed with
//! acquire, or the settle went through the lock; completion and waiter meet in a lock as well.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::completion::{Completion, Cut, WakeUps};
use crate::fence::Fences;
use crate::mutant::{Mutant, on};
use crate::shared::{Pool, Shared};
use crate::slots::{Counts, MOST_BUCKETS, Slot, Slots};
use crate::sync::{AtomicU64, Mutex, lock};

/// Divides what was entered earlier from what is entered later, and waits for the earlier. See the [crate] for more.
pub struct Barrier {
    inner: Shared<Inner>,
}

/// One thing that was entered and has not settled. Dropping it settles it.
///
/// It may be sent to another thread and settled there, in any order. It borrows nothing, and it may outlive the barrier.
///
/// **Record the result first**, then drop the ticket: whoever waited for it will look for the result.
///
/// A ticket that is leaked ([`std::mem::forget`]) never settles. No cut after it is ever over; [`Cut::wait_timeout`]
/// and [`Barrier::abort`] still end the wait, and nothing worse happens. A thread that dies drops the tickets it
/// holds, as it does with all it owns.
#[must_use = "a ticket that is dropped at once has waited for nothing"]
pub struct Ticket {
    inner: Shared<Inner>,
    epoch: u64,
}

/// What a barrier can be told when it is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Whether enter and settle each execute a full fence, although the kernel offers membarrier(2). For processes whose
    /// other threads must not be interrupted by a cut (a few microseconds), and for those whose sandbox will forbid
    /// that call later on.
    pub full_fences: bool,
    /// How many buckets can be live: the current one, and those of cuts that are not over. 2, 4 or 8, rounded up.
    ///
    /// A cut for which there is no bucket is put off until the oldest is over. All that are asked for meanwhile share
    /// it; they may then wait for what was entered before it was made, though after they were asked for.
    pub live_buckets: usize,
    #[cfg(any(loom, shuttle))]
    #[doc(hidden)]
    pub paired_fences: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            full_fences: false,
            live_buckets: MOST_BUCKETS,
            #[cfg(any(loom, shuttle))]
            paired_fences: false,
        }
    }
}

impl Options {
    fn fences(&self) -> Fences {
        #[cfg(any(loom, shuttle))]
        if self.paired_fences {
            return Fences::Paired;
        }
        if self.full_fences { Fences::Full } else { Fences::fastest() }
    }

    fn mask(&self) -> u64 {
        self.live_buckets.clamp(2, MOST_BUCKETS).next_power_of_two() as u64 - 1
    }
}

static POOL: Pool<Inner> = Pool::new();

impl Barrier {
    /// A barrier with the default [`Options`].
    #[must_use]
    pub fn new() -> Self {
        Self::with(&Options::default())
    }

    /// A barrier made to order.
    #[must_use]
    pub fn with(options: &Options) -> Self {
        let (fences, mask) = (options.fences(), options.mask());
        let fits = |old: &Inner| old.fences == fences && old.mask == mask && old.restart();
        Self { inner: POOL.take(fits, || Inner::new(fences, mask)) }
    }

    /// Enters: every cut that is made from now on waits until the ticket is dropped.
    ///
    /// Never waits for a sync. Nothing is allocated, except by the first thread of sixteen to use this barrier.
    #[inline]
    pub fn enter(&self) -> Ticket {
        let epoch = self.inner.enter();
        let ticket = Ticket { inner: self.inner.clone(), epoch };
        if on(Mutant::SettledEarly) {
            ticket.inner.settle(epoch);
        }
        ticket
    }

    /// Makes a cut: all that entered before is earlier, all that enters after this returns is later.
    ///
    /// What enters at the same moment, on another thread, falls on one side or the other: at most one ticket a thread.
    /// It does not wait for anything. See [`Options::live_buckets`] for what happens if very many cuts drain at once.
    pub fn cut(&self) -> Cut {
        self.inner.cut()
    }

    /// Whether `cut` waits for `ticket`. Both must be of this barrier.
    #[must_use]
    pub fn is_earlier(&self, ticket: &Ticket, cut: &Cut) -> bool {
        let control = lock(&self.inner.control);
        assert!(cut.belongs_to(&control.completion), "the cut is of another barrier");
        assert!(
            std::ptr::eq(&raw const *ticket.inner, &raw const *self.inner),
            "the ticket is of another barrier"
        );
        ticket.epoch <= cut.number()
    }

    /// Wakes everyone who waits, with an error, and lets every later wait fail at once: for when the results can no
    /// longer arrive. Cuts that were over before stay so. Tickets can still be had and dropped.
    pub fn abort(&self) {
        let completion = lock(&self.inner.control).completion.clone();
        drop(completion.abort());
    }

    /// Whether [`abort`](Barrier::abort) was called.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        lock(&self.inner.control).completion.is_aborted()
    }
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Barrier {
    /// Its tickets and cuts live on: a cut is over when its tickets have settled, with or without the barrier.
    fn drop(&mut self) {
        POOL.give(&self.inner);
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("epoch", &self.inner.epoch.load(Relaxed)).finish_non_exhaustive()
    }
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        if !on(Mutant::SettledEarly) {
            self.inner.settle(self.epoch);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What the threads share. The first line is read by everyone and written once a cut; the lock has a line of its own.
#[repr(C, align(128))]
struct Inner {
    /// The current epoch. Stored under the lock only.
    epoch: AtomicU64,
    /// Turns an epoch into a bucket's place: one less than the number of live buckets, which is a power of two.
    mask: u64,
    fences: Fences,
    slots: Slots,
    control: Mutex<Control>,
}

/// What is changed under the lock.
struct Control {
    /// All epochs below it are drained. At most one round of buckets behind `current`.
    oldest: u64,
    /// The epoch, for those who hold the lock.
    current: u64,
    /// For each closed bucket, how many tickets are outstanding: never less, and more only while somebody is on the way
    /// to the lock to have it counted again.
    left: [u64; MOST_BUCKETS],
    /// What is counted under the lock: by threads that have no slot, and for tickets of closed buckets.
    common: [CommonCounts; MOST_BUCKETS],
    /// Somebody asked for a cut when there was no bucket for it. It ends `current`.
    put_off: bool,
    completion: Arc<Completion>,
}

#[derive(Clone, Copy, Default)]
struct CommonCounts {
    entered: u64,
    settled: u64,
}

impl Inner {
    fn new(fences: Fences, mask: u64) -> Self {
        let control = Control {
            oldest: 0,
            current: 0,
            left: [0; MOST_BUCKETS],
            common: [CommonCounts::default(); MOST_BUCKETS],
            put_off: false,
            completion: Arc::new(Completion::new(0)),
        };
        Self { epoch: AtomicU64::new(0), mask, fences, slots: Slots::new(), control: Mutex::new(control) }
    }

    #[inline(always)]
    fn bucket(&self, epoch: u64) -> usize {
        (epoch & self.mask) as usize
    }

    /// Returns the epoch that was entered.
    #[inline]
    fn enter(&self) -> u64 {
        let Some(slot) = self.slots.own() else {
            return self.enter_in_common();
        };
        loop {
            // Relaxed: a stale value only costs another round. What decides is the second look.
            let epoch = self.epoch.load(Relaxed);
            let counts = slot.bucket(self.bucket(epoch));
            counts.entered.add_one();
            self.fences.light(slot);
            // Against the store and the heavy fence in `close_current`. Still the same: our count came before that
            // fence, or there was no cut, and whoever cuts next will see it. Moved: the cut may or may not have seen
            // our count, so it is taken back, and the bucket counted again in case the cut did see it.
            if self.epoch.load(Relaxed) == epoch || on(Mutant::DeadBucketEntered) {
                return epoch;
            }
            self.take_back(counts, epoch);
        }
    }

    /// Happens at most once a cut. The bucket may have been drained and reused by now, so this speaks of its place.
    #[cold]
    fn take_back(&self, counts: &Counts, epoch: u64) {
        counts.settled.add_one();
        if !on(Mutant::TakeBackNotRecounted) {
            self.recount(self.bucket(epoch));
        }
    }

    #[cold]
    fn enter_in_common(&self) -> u64 {
        let mut control = lock(&self.control);
        let epoch = control.current;
        let counts = &mut control.common[self.bucket(epoch)];
        counts.entered = counts.entered.wrapping_add(1);
        epoch
    }

    #[inline]
    fn settle(&self, epoch: u64) {
        // The first look only spares work: after a cut, going straight to the lock avoids counting everything again.
        match self.slots.own() {
            Some(slot) if self.epoch.load(Relaxed) == epoch => self.settle_in(slot, epoch),
            _ => self.settle_in_common(epoch),
        }
    }

    #[inline(always)]
    fn settle_in(&self, slot: &Slot, epoch: u64) {
        let bucket = self.bucket(epoch);
        slot.bucket(bucket).settled.add_one();
        self.fences.light(slot);
        // Against the store and the heavy fence in `close_current`. Still the same: whoever cuts next sees our count.
        // Moved: that cut may or may not have seen it. If it did not, and we were the last, nobody else would notice.
        let closed = self.epoch.load(Relaxed) != epoch && !on(Mutant::SettleNotRecounted);
        if closed || on(Mutant::SwapAfterWait) {
            self.recount(bucket);
        }
    }

    /// For tickets of a closed bucket, and threads without a slot. The count was not in the sum that `left` is from, so
    /// one fewer is left.
    #[cold]
    fn settle_in_common(&self, epoch: u64) {
        let bucket = self.bucket(epoch);
        let mut control = lock(&self.control);
        let counts = &mut control.common[bucket];
        counts.settled = counts.settled.wrapping_add(1);
        if epoch == control.current {
            return;
        }
        let left = control.left[bucket];
        control.left[bucket] = left.saturating_sub(1);
        let wake_ups = self.advance(&mut control);
        drop(control);
        drop(wake_ups);
        assert!(left > 0, "a ticket settled in a bucket that was drained");
    }

    /// Counts the bucket again, if it is closed and not drained.
    #[cold]
    fn recount(&self, bucket: usize) {
        let mut control = lock(&self.control);
        if (control.oldest..control.current).any(|epoch| self.bucket(epoch) == bucket) {
            control.left[bucket] = self.outstanding(&control, bucket);
        }
        let wake_ups = self.advance(&mut control);
        drop(control);
        drop(wake_ups);
    }

    /// How many tickets of a bucket are outstanding: never too few, if the bucket is closed, its closing passed the
    /// heavy fence, and whoever settled without seeing it closed was counted then (which is so, since closing counts
    /// under the lock that we hold).
    fn outstanding(&self, control: &Control, bucket: usize) -> u64 {
        let common = control.common[bucket];
        let (settled, entered) = if on(Mutant::EnteredReadFirst) {
            let entered = self.slots.sum_entered(bucket);
            (self.slots.sum_settled(bucket), entered)
        } else {
            // Settled before entered. See the head of the file.
            let settled = self.slots.sum_settled(bucket);
            (settled, self.slots.sum_entered(bucket))
        };
        let entered = entered.wrapping_add(common.entered);
        let outstanding = entered.wrapping_sub(settled.wrapping_add(common.settled));
        if on(Mutant::OneTooMany) { outstanding.saturating_sub(1) } else { outstanding }
    }

    fn cut(&self) -> Cut {
        let mut control = lock(&self.control);
        let completion = control.completion.clone();
        if on(Mutant::OldCutShared) && control.oldest < control.current {
            return Cut::new(completion, control.current - 1);
        }
        let number = control.current;
        let wake_ups = if self.has_room(&control) {
            self.close_current(&mut control)
        } else {
            control.put_off = true;
            WakeUps::none()
        };
        drop(control);
        drop(wake_ups);
        Cut::new(completion, number)
    }

    /// Whether the bucket after the current one is free.
    fn has_room(&self, control: &Control) -> bool {
        if on(Mutant::SwapAfterWait) {
            return self.outstanding(control, self.bucket(control.current)) == 0;
        }
        control.current - control.oldest < self.mask
    }

    /// Ends the current epoch.
    fn close_current(&self, control: &mut Control) -> WakeUps {
        let closed = self.bucket(control.current);
        control.current += 1;
        // Relaxed: the fence does the ordering. Those who see the new epoch and come for the lock wait until we are done.
        self.epoch.store(control.current, Relaxed);
        // Against the light fences in `enter` and `settle_in`.
        if self.fences.heavy(&self.slots).is_err() {
            // The kernel offered the call and now forbids it: a sandbox came down in between. Without it nothing can be
            // known any more, and an error is the truth.
            control.left[closed] = u64::MAX;
            return control.completion.abort();
        }
        control.left[closed] = self.outstanding(control, closed);
        self.advance(control)
    }

    /// Moves `oldest` past the drained buckets, in order, and makes a cut that was put off when there is room for it.
    fn advance(&self, control: &mut Control) -> WakeUps {
        while control.oldest < control.current && self.is_drained(control, control.oldest) {
            control.oldest += 1;
        }
        if control.put_off && self.has_room(control) {
            control.put_off = false;
            // Advances again, and then reports for both.
            return self.close_current(control);
        }
        control.completion.advance(control.oldest)
    }

    fn is_drained(&self, control: &Control, epoch: u64) -> bool {
        let empty = |epoch| control.left[self.bucket(epoch)] == 0;
        if on(Mutant::AncestorIgnored) && (epoch..control.current).any(empty) {
            return true;
        }
        if on(Mutant::WaitsForLater) && self.outstanding(control, self.bucket(control.current)) != 0 {
            return false;
        }
        empty(epoch)
    }

    /// Makes the memory of a dropped barrier fit for a new one, unless tickets are outstanding.
    ///
    /// Nobody can enter it any more, and all who did so did it before the barrier was dropped. So no fence is needed.
    fn restart(&self) -> bool {
        let mut control = lock(&self.control);
        let idle = (0..MOST_BUCKETS).all(|bucket| self.outstanding(&control, bucket) == 0);
        if idle {
            control.oldest = control.current;
            control.left = [0; MOST_BUCKETS];
            control.put_off = false;
            control.completion = Arc::new(Completion::new(control.current));
        }
        idle
    }
}
