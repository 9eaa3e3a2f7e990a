//! Wait for all that was started before now, and for nothing that came later.
#![forbid(unsafe_code)]

mod barrier;
pub mod bucket;
mod completion;
mod fence;
mod group_commit;
mod mutant;
mod shared;
mod slots;
mod sync;
mod sys;

pub use barrier::{Barrier, Options, Ticket};
pub use completion::{Aborted, Cut, WaitError};
pub use group_commit::{GroupCommit, Round};

/// For models only: numbers the threads of one execution from `first`.
#[cfg(any(loom, shuttle))]
#[doc(hidden)]
pub fn start_model(first: usize) {
    slots::index::restart(first);
}
