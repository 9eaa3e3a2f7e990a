//! Deliberate bugs, to show that the tests can fail. Only a build with `--cfg mutants` has them; in any other,
//! [`on`] is the constant `false` and nothing is left of them.

/// The bugs. `tests/suite/mutants.rs` says which test must catch each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A sync shares a round that had begun before it came.
    BegunRoundShared,
    /// Only the root's host file system is synced.
    OnlyRootSynced,
    /// fdatasync(2) where attributes are to be stable too.
    DataOnly,
    /// A host that does not sync counts as synced.
    UnsupportedIsSuccess,
    /// An error of the host is not counted.
    ErrorSwallowed,
    /// A new descriptor for each sync of a host file system.
    FreshDescriptor,
    /// One count of what was told, for all clients of a host file system.
    OneCountForAll,
    /// What was told is looked up when a sync ends, not when it is called.
    ToldLookedUpLate,
    /// Data is handed to the disk, which is not told to flush.
    NoFlush,
    /// What the host says of a sync or fsync is believed.
    GapsLeft,
    /// One inode is synced in place of the host file system.
    OneInodeSynced,
    /// Directories are left out where a sync goes by inode.
    DirectoriesSkipped,
    /// A server begins as if all were stable.
    RestartForgets,
    /// The wish of a single write to be stable is dropped.
    WriteNotStable,
    /// A changed inode without a name makes a sync fail.
    NamelessFails,
    /// A handle that was on the list of one sync is taken to be on the next one too.
    EpochIgnored,
    /// What a failed sync covered is forgotten.
    FailedForgotten,
    /// An fsync is of another open file than its handle's, if there is one.
    OtherFileSynced,
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
