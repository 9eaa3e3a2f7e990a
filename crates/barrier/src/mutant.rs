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
    SettleNotRecounted,
    /// Nor does an enter that was too late and took its count back.
    TakeBackNotRecounted,
}

#[cfg(not(mutants))]
#[inline(always)]
pub(crate) const fn on(_: Mutant) -> bool {
    false
}

/// Whether the environment variable `ASHORE_MUTANT` names this bug.
#[cfg(mutants)]
pub(crate) fn on(mutant: Mutant) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("ASHORE_MUTANT").ok()?;
        ALL.into_iter().find(|mutant| format!("{mutant:?}") == name)
    });
    *chosen == Some(mutant)
}

#[cfg(mutants)]
const ALL: [Mutant; 14] = [
    Mutant::AncestorIgnored,
    Mutant::SettledEarly,
    Mutant::DeadBucketEntered,
    Mutant::SwapAfterWait,
    Mutant::OneTooMany,
    Mutant::ReturnsBeforeEmpty,
    Mutant::WaitsForLater,
    Mutant::NoLightFence,
    Mutant::NoHeavyFence,
    Mutant::EnteredReadFirst,
    Mutant::OldCutShared,
    Mutant::ResultNotPublished,
    Mutant::SettleNotRecounted,
    Mutant::TakeBackNotRecounted,
];
