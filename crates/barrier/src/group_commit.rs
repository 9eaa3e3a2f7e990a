//! Group commit: those who come while a round is running share the next one.

use std::fmt;
use std::sync::Arc;
use std::{mem, vec};

use crate::sync::{Mutex, lock};

/// Lets many share one expensive act, such as syncing a host file system, without anyone sharing an act that began
/// before they came.
///
/// ```text
///     a joins: gets round 1           b, c, d join: wait           round 1 finishes
///     |--------------------- round 1 { a } -----------------------||--- round 2 { b, c, d } ---...
/// ```
///
/// However many come at once, two rounds are enough for them. There are no threads in here and nobody waits: a member is
/// whatever can be told the result, such as the handle for a reply, and whoever gets a [`Round`] carries it out where
/// it likes.
///
/// What to do first, cut or join? Both are right. *Join, then cut in each round* costs one cut a round. *Cut on arrival,
/// wait, then join* waits for nothing that came after the sync, and shares the host's work only; a server that wants
/// promise P3 to the letter does this.
///
/// ```
/// # use ashore_barrier::{Barrier, GroupCommit};
/// # let barrier = Barrier::new();
/// let syncs: GroupCommit<&str> = GroupCommit::new();
/// let mut next = syncs.join("first");
/// assert!(syncs.join("second").is_none(), "the first one's round is running");
/// while let Some(round) = next {
///     let cut = barrier.cut(); // later than the arrival of every member
///     cut.wait().unwrap();
///     // ... sync the host file systems here ...
///     let (members, after) = round.finish();
///     for member in members {
///         // ... reply ...
/// #       let _ = member;
///     }
///     next = after;
/// }
/// ```
pub struct GroupCommit<T> {
    rounds: Arc<Mutex<Rounds<T>>>,
}

struct Rounds<T> {
    running: bool,
    next: Vec<T>,
}

/// A round to be carried out now, for its members.
///
/// If it is dropped and not [finished](Round::finish), because whoever carried it out panicked, its members and those
/// who wait for the next round are dropped. Nobody is told of a success that was not; a member that must answer should
/// answer with an error when it is dropped.
#[must_use = "the members wait for this round, and those who come later wait for its end"]
pub struct Round<T> {
    rounds: Arc<Mutex<Rounds<T>>>,
    members: Vec<T>,
    finished: bool,
}

impl<T> GroupCommit<T> {
    /// No round is running.
    #[must_use]
    pub fn new() -> Self {
        Self { rounds: Arc::new(Mutex::new(Rounds { running: false, next: Vec::new() })) }
    }

    /// Joins the next round to begin. If none is running that is now, and it is for the caller to carry it out;
    /// otherwise whoever [finishes](Round::finish) the running one gets it.
    pub fn join(&self, member: T) -> Option<Round<T>> {
        let mut rounds = lock(&self.rounds);
        rounds.next.push(member);
        if rounds.running {
            return None;
        }
        rounds.running = true;
        Some(self.round(mem::take(&mut rounds.next)))
    }

    fn round(&self, members: Vec<T>) -> Round<T> {
        Round { rounds: self.rounds.clone(), members, finished: false }
    }
}

impl<T> Default for GroupCommit<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for GroupCommit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").finish_non_exhaustive()
    }
}

impl<T> Round<T> {
    /// Those who came before this round began.
    pub fn members(&self) -> &[T] {
        &self.members
    }

    /// Ends the round. Gives its members, to be told, and the next round, if anybody came meanwhile: the caller is to
    /// carry it out.
    pub fn finish(mut self) -> (vec::IntoIter<T>, Option<Round<T>>) {
        self.finished = true;
        let members = mem::take(&mut self.members).into_iter();
        let mut rounds = lock(&self.rounds);
        let next = mem::take(&mut rounds.next);
        rounds.running = !next.is_empty();
        let round =
            rounds.running.then(|| Round { rounds: self.rounds.clone(), members: next, finished: false });
        drop(rounds);
        (members, round)
    }
}

impl<T> Drop for Round<T> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut rounds = lock(&self.rounds);
        rounds.running = false;
        let next = mem::take(&mut rounds.next);
        drop(rounds);
        // Not under the lock: a member's drop may join again.
        drop(next);
    }
}

impl<T> fmt::Debug for Round<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn those_who_come_during_a_round_share_the_next_one_and_only_that() {
        let group = GroupCommit::new();
        let first = group.join(1).expect("nothing is running");
        assert_eq!(first.members(), [1]);
        for late in 2..100 {
            assert!(group.join(late).is_none());
        }
        let (told, second) = first.finish();
        assert_eq!(told.collect::<Vec<_>>(), [1]);
        let second = second.expect("many came");
        assert_eq!(second.members(), (2..100).collect::<Vec<_>>());
        assert!(group.join(100).is_none(), "the second round is running");
        let (_, third) = second.finish();
        let (told, none) = third.expect("one came").finish();
        assert_eq!(told.collect::<Vec<_>>(), [100]);
        assert!(none.is_none());
        assert!(group.join(101).is_some(), "idle again");
    }

    #[test]
    fn a_round_that_is_lost_drops_everyone_who_waits_and_lets_others_begin() {
        let group = GroupCommit::new();
        let member = Arc::new(());
        let round = group.join(member.clone()).expect("nothing is running");
        assert!(group.join(member.clone()).is_none());
        drop(round);
        assert_eq!(Arc::strong_count(&member), 1, "both were dropped");
        assert!(group.join(member).is_some());
    }
}
