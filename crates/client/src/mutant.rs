//! Deliberate bugs, to show that the tests can fail. Only a build with `--cfg mutants` has them; in any other,
//! [`on`] is the constant `false` and nothing is left of them.

/// The bugs. The simulation runs with them, and `crates/testkit/tests/client_mutants.rs` says what else must catch each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// SYNCFS is sent without a wait for what is in flight.
    NothingAwaited,
    /// Dirty pages are not started before the cut.
    NothingFlushed,
    /// A run enters the barrier after its pages have stopped being dirty.
    EntersAfterClean,
    /// A run leaves the barrier before its result is recorded.
    LeavesBeforeRecorded,
    /// The error of a write nobody waits for is not recorded.
    WriteErrorForgotten,
    /// The answer to a run makes its pages clean, those that were written to meanwhile too.
    RedirtiedIsClean,
    /// A change is in the barrier for as long as its caller cares, not until it is answered.
    CallerLeaves,
}

#[cfg(not(mutants))]
#[inline(always)]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}

/// Whether the environment variable `ASHORE_MUTANT` names this bug.
#[cfg(mutants)]
pub(crate) fn on(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("ASHORE_MUTANT").unwrap_or_default()) == format!("{mutant:?}")
}
