//! What syncs cost, counted once a round: nothing beside a sync of the host.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{Histogram, Times};

/// Rounds are sorted by how many syncs shared them: bucket `n` has those of at most 2^n. The last has no end.
pub const SHARING_BUCKETS: usize = 9;

/// What the rounds of a session cost so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncCounts {
    /// From the beginning of a round until all that is earlier had settled.
    pub barrier_waits: Times,
    /// What the file system took to make it stable.
    pub host_syncs: Times,
    /// How many SYNCFS were answered by all rounds together. Divided by the number of rounds: what group commit saves.
    pub syncs: u64,
    /// How many rounds were shared by how many; see [`SHARING_BUCKETS`].
    pub sharing: [u64; SHARING_BUCKETS],
}

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct SyncCounters {
    pub(crate) barrier_waits: Histogram,
    pub(crate) host_syncs: Histogram,
    syncs: AtomicU64,
    sharing: [AtomicU64; SHARING_BUCKETS],
}

impl SyncCounters {
    /// A round for so many syncs.
    pub(crate) fn note_round(&self, members: usize) {
        self.syncs.fetch_add(members as u64, Ordering::Relaxed);
        let bucket = members.max(1).next_power_of_two().trailing_zeros() as usize;
        self.sharing[bucket.min(SHARING_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> SyncCounts {
        SyncCounts {
            barrier_waits: self.barrier_waits.read(),
            host_syncs: self.host_syncs.read(),
            syncs: self.syncs.load(Ordering::Relaxed),
            sharing: array::from_fn(|bucket| self.sharing[bucket].load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_sorted_by_how_many_share_them() {
        let counters = SyncCounters::default();
        [1, 2, 3, 4, 5, 1000].into_iter().for_each(|members| counters.note_round(members));
        let counts = counters.read();
        assert_eq!(counts.sharing, [1, 1, 2, 1, 0, 0, 0, 0, 1]);
        assert_eq!(counts.syncs, 1015);
    }
}
