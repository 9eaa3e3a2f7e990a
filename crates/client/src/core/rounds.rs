//! A sync, step by step, and how syncs that come at the same time share the work.
//!
//! One round is: flush, cut, wait, SYNCFS, in this order and no other. The first caller leads it; who comes while
//! it runs waits for the next one, together with all the others who came meanwhile. So n callers at once cost two
//! rounds, and nobody is served by a round whose flush had begun when he called: his last change might have been
//! made behind the flush's back.

/// What the shell is to do next for a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Send all that is dirty, pages being written right now included: each entered before it stops being dirty.
    Flush,
    /// Cut the barrier: what has entered is earlier than this round, what enters from now on is not.
    Cut,
    /// Wait until all before the cut is settled.
    Wait,
    /// Send SYNCFS to every superblock and wait for the answers.
    Syncfs,
    /// The round is over.
    Done,
}

/// What happened to a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A caller leads a round.
    Begun,
    /// Everything that was dirty has entered the barrier.
    Flushed,
    /// The barrier was cut.
    WasCut,
    /// Everything before the cut is settled, and its errors are recorded.
    Settled,
    /// Every superblock has answered, errors are recorded.
    Answered,
}

/// The order of a round.
#[derive(Debug)]
pub(crate) struct Round {
    next: Action,
}

impl Round {
    /// A round that has not begun.
    pub(crate) fn new() -> Round {
        Round { next: Action::Flush }
    }

    /// What to do now that this has happened.
    pub(crate) fn apply(&mut self, event: Event) -> Action {
        let action = match (self.next, event) {
            (Action::Flush, Event::Begun) => Action::Flush,
            (Action::Flush, Event::Flushed) => Action::Cut,
            (Action::Cut, Event::WasCut) => Action::Wait,
            // SYNCFS goes out only from here: never while a change before the cut is unsettled.
            (Action::Wait, Event::Settled) => Action::Syncfs,
            (Action::Syncfs, Event::Answered) => Action::Done,
            (next, event) => panic!("{event:?} cannot happen while {next:?} is to be done"),
        };
        self.next = action;
        action
    }
}

/// Names a round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RoundNumber(u64);

/// What a caller of sync is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Lead a round.
    Lead,
    /// Wait, and ask again when a round has ended.
    Wait,
    /// A round that began after the caller came is done.
    Served,
}

/// Which rounds have begun and ended.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    begun: u64,
    served_up_to: u64,
    running: bool,
}

impl Rounds {
    /// A caller comes: only a round that begins from now on may serve him.
    pub(crate) fn arrive(&self) -> RoundNumber {
        RoundNumber(self.begun + 1)
    }

    /// What the caller who came at `arrival` is to do now.
    pub(crate) fn turn(&mut self, arrival: RoundNumber) -> Turn {
        if self.served_up_to >= arrival.0 {
            return Turn::Served;
        }
        if self.running {
            return Turn::Wait;
        }
        self.begun += 1;
        self.running = true;
        Turn::Lead
    }

    /// The leader has come to the end of its round.
    pub(crate) fn finish(&mut self) {
        self.running = false;
        self.served_up_to = self.begun;
    }

    /// The leader gives up (cancelled, or out of time): nobody is served, one of those who wait leads again.
    pub(crate) fn abandon(&mut self) {
        self.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_sends_syncfs_last() {
        let mut round = Round::new();
        let events = [Event::Begun, Event::Flushed, Event::WasCut, Event::Settled, Event::Answered];
        let actions = events.map(|event| round.apply(event));
        assert_eq!(actions, [Action::Flush, Action::Cut, Action::Wait, Action::Syncfs, Action::Done]);
    }

    #[test]
    #[should_panic(expected = "cannot happen")]
    fn a_round_cannot_be_talked_into_leaving_out_the_wait() {
        let mut round = Round::new();
        round.apply(Event::Begun);
        round.apply(Event::Flushed);
        round.apply(Event::Settled);
    }

    #[test]
    fn callers_who_come_during_a_round_share_the_next_one() {
        let mut rounds = Rounds::default();
        let first = rounds.arrive();
        assert_eq!(rounds.turn(first), Turn::Lead);
        let late = [rounds.arrive(), rounds.arrive(), rounds.arrive()];
        assert!(late.iter().all(|late| rounds.turn(*late) == Turn::Wait));
        rounds.finish();
        assert_eq!(rounds.turn(late[0]), Turn::Lead, "the round that ran had begun before they came");
        assert_eq!(rounds.turn(late[1]), Turn::Wait);
        rounds.finish();
        assert!(late.iter().all(|late| rounds.turn(*late) == Turn::Served));
    }

    #[test]
    fn a_leader_that_gives_up_serves_nobody() {
        let mut rounds = Rounds::default();
        let first = rounds.arrive();
        assert_eq!(rounds.turn(first), Turn::Lead);
        let second = rounds.arrive();
        let third = rounds.arrive();
        rounds.abandon();
        assert_eq!(rounds.turn(second), Turn::Lead);
        rounds.abandon();
        assert_eq!(
            rounds.turn(third),
            Turn::Lead,
            "he came with the second, whose round was not carried out"
        );
        rounds.finish();
        assert_eq!(rounds.turn(third), Turn::Served);
    }
}
