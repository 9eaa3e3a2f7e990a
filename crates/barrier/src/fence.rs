//! Fences in pairs: a light one, for the many who enter and settle, against a heavy one, for the few who cut.
//!
//! Every use has the same shape (store buffering, or "Dekker"):
//!
//! ```text
//!     enter or settle                      cut
//!     store to my counter                  store the new epoch
//!     LIGHT                                HEAVY
//!     load the epoch                       load every counter
//! ```
//!
//! and gives the same promise: **the cut sees my counter, or I see its epoch** (or both). Never neither.
//!
//! Rule: only light-heavy pairs. Two light fences promise each other nothing, since with membarrier a light fence is
//! an instruction to the compiler and no more. Threads that enter or settle never need to agree with each other; where
//! they must (the last two of a bucket, each of which may be the one that empties it) they meet in a lock.
//! The model test `a_fence_pair_per_thread_is_enough` checks the rule, with fences that order nothing but such pairs.

use std::sync::atomic::Ordering::SeqCst;
#[cfg(not(any(loom, shuttle)))]
use std::sync::atomic::compiler_fence;

use crate::mutant::{Mutant, on};
use crate::slots::{Slot, Slots};
use crate::sync::fence;
use crate::sys::{self, Refused};

/// How the two fences are made. Chosen when a barrier is made, never changed afterwards: a thread that still believed
/// in the other kind would be half of no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fences {
    /// Light: the compiler keeps the order. Heavy: membarrier(2) makes every processor keep it.
    ///
    /// Case by case: each processor that runs a thread of ours passes a full barrier at some moment during the call.
    /// If its store came before that moment, it is visible to all loads after the call. If it came after, then so did,
    /// because the compiler kept the order, the load that follows it, and that load sees what was stored before
    /// the call.
    #[cfg_attr(any(loom, shuttle), allow(dead_code, reason = "the models have no system calls"))]
    Membarrier,
    /// Both sides a sequentially consistent fence. All such fences have one order; whoever comes second sees what
    /// the first had stored.
    Full,
    /// In models only: a pair per thread that orders that thread with the cut, and threads not at all with each other.
    /// It is what membarrier gives, in terms that a model checker knows: read-modify-writes of one variable have one
    /// order, and each synchronizes with the next.
    #[cfg(any(loom, shuttle))]
    Paired,
}

impl Fences {
    /// The fastest kind that this process may use.
    pub(crate) fn fastest() -> Self {
        #[cfg(not(any(loom, shuttle)))]
        if sys::register() {
            return Fences::Membarrier;
        }
        Fences::Full
    }

    #[inline(always)]
    pub(crate) fn light(self, slot: &Slot) {
        if on(Mutant::NoLightFence) {
            return;
        }
        self.light_unmutated(slot);
    }

    #[cfg(not(any(loom, shuttle)))]
    #[inline(always)]
    fn light_unmutated(self, _slot: &Slot) {
        match self {
            Fences::Membarrier => compiler_fence(SeqCst),
            Fences::Full => fence(SeqCst),
        }
    }

    #[cfg(any(loom, shuttle))]
    fn light_unmutated(self, slot: &Slot) {
        match self {
            Fences::Membarrier | Fences::Full => fence(SeqCst),
            Fences::Paired => slot.meet(),
        }
    }

    /// The other half.
    #[cfg_attr(
        not(any(loom, shuttle)),
        allow(unused_variables, reason = "only the model's fences are kept in slots")
    )]
    pub(crate) fn heavy(self, slots: &Slots) -> Result<(), Refused> {
        if on(Mutant::NoHeavyFence) {
            return Ok(());
        }
        match self {
            Fences::Membarrier => sys::expedite()?,
            Fences::Full => fence(SeqCst),
            #[cfg(any(loom, shuttle))]
            Fences::Paired => slots.iter().for_each(Slot::meet),
        }
        Ok(())
    }
}
