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

use std::collections::HashMap;
use std::sync::Arc;

use ashore_wire::NodeId;
use parking_lot::Mutex;

use crate::filesystem::Result;
use crate::offload::Offload;

/// Superblocks of one session that are synced side by side, at most; the rest wait their turn.
const MAX_SYNC_THREADS: usize = 16;

/// Tells one waiting client how its sync went.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// The syncs of one session.
pub(crate) struct Syncs {
    lanes: Arc<Mutex<HashMap<NodeId, Vec<Answer>>>>,
    threads: Offload,
}

impl Default for Syncs {
    fn default() -> Syncs {
        Syncs { lanes: Arc::default(), threads: Offload::new("ashore-sync", MAX_SYNC_THREADS) }
    }
}

impl Syncs {
    /// Has the superblock of `node` synced by `sync`, in a round that has not begun yet, and `answer` told. Returns
    /// at once.
    pub(crate) fn request(
        &self,
        node: NodeId,
        answer: Answer,
        sync: impl FnMut(NodeId) -> Result<()> + Send + 'static,
    ) {
        let mut lanes = self.lanes.lock();
        // A lane that is there is being worked on: it is removed, under this lock, by the thread that finds it
        // empty.
        if let Some(waiting) = lanes.get_mut(&node) {
            return waiting.push(answer);
        }
        lanes.insert(node, vec![answer]);
        drop(lanes);
        let lanes = Arc::clone(&self.lanes);
        self.threads.submit(move || rounds(&lanes, node, sync));
    }
}

fn rounds(
    lanes: &Mutex<HashMap<NodeId, Vec<Answer>>>,
    node: NodeId,
    mut sync: impl FnMut(NodeId) -> Result<()>,
) {
    loop {
        let waiting = {
            let mut lanes = lanes.lock();
            match lanes.get_mut(&node) {
                Some(waiting) if !waiting.is_empty() => std::mem::take(waiting),
                _ => {
                    lanes.remove(&node);
                    return;
                }
            }
        };
        // The waiting have been taken: whoever comes from here on belongs to the next round.
        let synced = sync(node);
        waiting.into_iter().for_each(|answer| answer(synced));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use ashore_wire::Errno;

    /// Aim: overlapping syncs share rounds. Method: the first round is held until 63 more syncs have come.
    #[test]
    fn syncs_that_come_during_a_round_share_the_next_and_all_hear_its_error() {
        let syncs = Syncs::default();
        let (began, begun) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let mut rounds = 0;
        let mut sync = Some(move |_| {
            rounds += 1;
            began.send(rounds).unwrap();
            if rounds == 1 { held.recv().map_err(|_| Errno::EIO) } else { Err(Errno::ENOSPC) }
        });
        let (told, answers) = mpsc::channel();
        let mut request = |answer: i32| {
            let told = told.clone();
            let answer = Box::new(move |synced| told.send((answer, synced)).unwrap());
            match sync.take() {
                Some(sync) => syncs.request(NodeId::ROOT, answer, sync),
                None => syncs.request(NodeId::ROOT, answer, |_| unreachable!("the lane has its own")),
            }
        };
        request(0);
        assert_eq!(begun.recv_timeout(Duration::from_secs(10)), Ok(1));
        (1..64).for_each(request);
        release.send(()).unwrap();
        let results: Vec<_> =
            (0..64).map(|_| answers.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        assert_eq!(results[0], (0, Ok(())));
        assert!(results[1..].iter().all(|(_, synced)| *synced == Err(Errno::ENOSPC)), "{results:?}");
        assert_eq!(begun.try_iter().collect::<Vec<_>>(), [2], "63 syncs shared one round");
    }

    #[test]
    fn a_superblock_is_not_held_up_by_the_sync_of_another() {
        let syncs = Syncs::default();
        let (release, held) = mpsc::channel::<()>();
        let (told, answers) = mpsc::channel();
        let slow = told.clone();
        syncs.request(NodeId(7), Box::new(move |_| slow.send(7).unwrap()), move |_| {
            held.recv().map_err(|_| Errno::EIO)
        });
        syncs.request(NodeId(8), Box::new(move |_| told.send(8).unwrap()), |_| Ok(()));
        assert_eq!(answers.recv_timeout(Duration::from_secs(10)), Ok(8));
        release.send(()).unwrap();
        assert_eq!(answers.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
