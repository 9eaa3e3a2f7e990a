//! Deliberate bugs, to show that the tests can fail. Only a build with `--cfg mutants` has them; in any other,
//! [`on`] is the constant `false` and nothing is left of them.

/// The bugs. `crates/testkit/tests/server_mutants.rs` says which test must catch each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A SYNCFS is answered before the file system has been synced.
    AnsweredBeforeSynced,
    /// A SYNCFS that comes while another is under way is answered with it.
    RunningRoundJoined,
    /// A file system that cannot sync counts as synced.
    UnsupportedIsSuccess,
    /// The error of a sync is not passed on.
    ErrorSwallowed,
    /// FALLOCATE and COPY_FILE_RANGE are not waited for.
    CarriedNotCounted,
    /// What was made available in other queues, and not taken, is not waited for.
    BacklogIgnored,
    /// Nothing that other queues were given is waited for, taken or not.
    OtherQueuesIgnored,
    /// Everything that is under way is waited for, however late it came.
    LaterAwaited,
    /// A client that leaves has nothing synced.
    LeavesUnsynced,
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
