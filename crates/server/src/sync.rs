//! SYNCFS requests of one session, in rounds.
//!
//! A sync that comes while one of the same superblock is running waits for the next round, and all that wait
//! share it: n overlapping syncs cost at most two calls of [`crate::FileSystem::syncfs`]. A round is shared only
//! by syncs that came before it began.
//!
//! ```text
//!   sync A ──►│ round 1 ........................ │ answers A
//!   sync B, C ────────►│ (waiting)              │ round 2 ............... │ answers B and C
//! ```

use std::sync::Arc;

use ashore_barrier::{Cut, GroupCommit, Round};
use ashore_wire::NodeId;
use ashore_wire::seam::BacklogMark;

use crate::filesystem::Result;
use crate::mutant::{self, Mutant};
use crate::offload::Offload;
use crate::primitives::{HashMap, Mutex};

/// What is earlier than a sync.
pub(crate) struct Earlier {
    /// What had been made available when it came, taken or not.
    pub(crate) mark: Box<dyn BacklogMark>,
    /// What had been taken.
    pub(crate) cut: Cut,
}

/// A sync that waits for its round.
pub(crate) struct Waiting {
    /// What it waits for before anything else.
    pub(crate) earlier: Earlier,
    /// The client says that it has sent everything that this sync is for.
    pub(crate) complete: bool,
    /// Tells the client how it went.
    pub(crate) answer: Box<dyn FnOnce(Result<()>) + Send>,
}

/// The syncs of one session, by superblock.
///
/// A superblock has an entry only while a round of it is running, so a client that asks for many that are not there
/// leaves nothing behind.
#[derive(Default)]
pub(crate) struct Syncs(Arc<Mutex<HashMap<NodeId, GroupCommit<Waiting>>>>);

impl Syncs {
    /// Has the superblock of `node` synced by `sync`, on a thread of `pool`, in a round that has not begun yet.
    /// Returns at once.
    pub(crate) fn request(
        &self,
        pool: &Offload,
        node: NodeId,
        waiting: Waiting,
        sync: impl FnMut(&[Waiting]) -> Result<()> + Send + 'static,
    ) {
        let round = self.0.lock().entry(node).or_default().join(waiting);
        if let Some(round) = round {
            let syncs = Syncs(Arc::clone(&self.0));
            pool.submit(move || syncs.run(node, round, sync));
        }
    }

    /// A round that fails fails for those too who came before its error was answered: the file system has counted the
    /// error as told, and none of them has been told of it yet.
    fn run(&self, node: NodeId, first: Round<Waiting>, mut sync: impl FnMut(&[Waiting]) -> Result<()>) {
        let (mut next, mut untold) = (Some(first), Ok(()));
        while let Some(round) = next {
            let synced = sync(round.members());
            // Under the lock, so that nobody joins a superblock whose entry is being removed, nor between the end of a
            // round and its answers.
            let mut superblocks = self.0.lock();
            let (members, mut after) = round.finish();
            if mutant::on(Mutant::RunningRoundJoined)
                && let Some(late) = after
            {
                let late = late.finish();
                late.0.for_each(|waiting| (waiting.answer)(synced));
                after = late.1;
            }
            if after.is_none() {
                superblocks.remove(&node);
            }
            members.for_each(|waiting| (waiting.answer)(untold.and(synced)));
            drop(superblocks);
            (next, untold) = (after, synced);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    use ashore_barrier::Barrier;
    use ashore_wire::Errno;
    use ashore_wire::seam::NothingWaits;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn waiting(told: &mpsc::Sender<(i32, Result<()>)>, name: i32) -> Waiting {
        let told = told.clone();
        let answer = Box::new(move |synced| told.send((name, synced)).unwrap());
        Waiting {
            earlier: Earlier { mark: Box::new(NothingWaits), cut: Barrier::new().cut() },
            complete: false,
            answer,
        }
    }

    /// Has 64 syncs overlap: the first round is held until the other 63 have come. Returns what each was told.
    fn overlap(outcomes: [Result<()>; 2]) -> Vec<(i32, Result<()>)> {
        let (syncs, pool) = (Syncs::default(), Offload::new("test", 4));
        let (began, begun) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let (told, answers) = mpsc::channel();
        let mut rounds = 0;
        syncs.request(&pool, NodeId::ROOT, waiting(&told, 0), move |members| {
            rounds += 1;
            began.send(members.len()).unwrap();
            if rounds == 1 {
                held.recv().unwrap();
            }
            outcomes[rounds - 1]
        });
        assert_eq!(begun.recv_timeout(PATIENCE), Ok(1));
        for name in 1..64 {
            syncs.request(&pool, NodeId::ROOT, waiting(&told, name), |_| unreachable!("it shares a round"));
        }
        release.send(()).unwrap();
        let results = (0..64).map(|_| answers.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(begun.try_iter().collect::<Vec<_>>(), [63], "63 syncs shared one round");
        drop(pool);
        results
    }

    #[test]
    fn syncs_that_come_during_a_round_share_the_next_and_all_hear_its_error() {
        let results = overlap([Ok(()), Err(Errno::ENOSPC)]);
        assert_eq!(results[0], (0, Ok(())));
        assert!(results[1..].iter().all(|(_, synced)| *synced == Err(Errno::ENOSPC)), "{results:?}");
    }

    /// Clause D2: the error was not answered when they came, so "another sync has taken it" is no excuse.
    #[test]
    fn who_comes_before_an_error_is_answered_hears_of_it_too() {
        let results = overlap([Err(Errno::EIO), Ok(())]);
        assert!(results.iter().all(|(_, synced)| *synced == Err(Errno::EIO)), "{results:?}");
    }

    #[test]
    fn nothing_is_left_behind_and_an_error_is_told_once() {
        let (syncs, pool) = (Syncs::default(), Offload::new("test", 4));
        let (told, answers) = mpsc::channel();
        syncs.request(&pool, NodeId::ROOT, waiting(&told, 0), |_| Err(Errno::EIO));
        assert_eq!(answers.recv_timeout(PATIENCE), Ok((0, Err(Errno::EIO))));
        assert!(syncs.0.lock().is_empty());
        syncs.request(&pool, NodeId::ROOT, waiting(&told, 1), |_| Ok(()));
        assert_eq!(answers.recv_timeout(PATIENCE), Ok((1, Ok(()))));
    }

    #[test]
    fn a_superblock_is_not_held_up_by_the_sync_of_another() {
        let (syncs, pool) = (Syncs::default(), Offload::new("test", 4));
        let (release, held) = mpsc::channel::<()>();
        let (told, answers) = mpsc::channel();
        let slow = move |_: &[Waiting]| held.recv().map_err(|_| Errno::EIO);
        syncs.request(&pool, NodeId(7), waiting(&told, 7), slow);
        syncs.request(&pool, NodeId(8), waiting(&told, 8), |_| Ok(()));
        assert_eq!(answers.recv_timeout(PATIENCE), Ok((8, Ok(()))));
        release.send(()).unwrap();
        assert_eq!(answers.recv_timeout(PATIENCE), Ok((7, Ok(()))));
    }
}
