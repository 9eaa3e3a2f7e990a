//! Deliberate bugs, to show that the tests can fail. Only a build with `--cfg mutants` has them; in any other,
//! [`on`] is the constant `false` and nothing is left of them.

/// The bugs. `tests/suite/mutants.rs` says which test must catch each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A cut is over although an older one is not.
    AncestorIgnored,
    /// A ticket counts as settled as soon as it is given out.
    SettledEarly,
    /// A bucket is entered without a look at whether it was closed meanwhile.
    DeadBucketEntered,
    /// The next bucket is started only when the old one is empty.
    SwapAfterWait,
    /// One ticket outstanding is taken for none.
    OneTooMany,
    /// The wait returns at once.
    ReturnsBeforeEmpty,
    /// The wait goes on until nothing at all is outstanding.
    WaitsForLater,
    /// Nothing between the store and the load of those who enter and settle.
    NoLightFence,
    /// Nothing between the store and the loads of the one who cuts.
    NoHeavyFence,
    /// The sum reads "entered" before "settled".
    EnteredReadFirst,
    /// A sync that has to share takes a cut that was made before it arrived.
    OldCutShared,
    /// Settling publishes nothing.
    ResultNotPublished,
    /// A settle that raced with a cut does not look again.
    RaceNotRecounted,
}

#[cfg(not(mutants))]
#[inline(always)]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}

/// Whether the environment variable `BARRIER_MUTANT` names this bug.
#[cfg(mutants)]
pub(crate) fn on(mutant: Mutant) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<String> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("BARRIER_MUTANT").unwrap_or_default());
    !chosen.is_empty() && *chosen == format!("{mutant:?}")
}
