//! Whether each sync was right. The one definition of right for every scenario.
//!
//! The log is made of relaxed atomics that the models know. Relaxed, so that a result is visible by the barrier's doing
//! or not at all. Known to the models, since a model explores only such orders as it can tell apart: what a scenario
//! sees and acts on must not be hidden from it.
//!
//! | checked | invariant |
//! |---|---|
//! | all that was seen to have entered before `cut` was called has settled when the wait returns | B1, B3 (for the second of two syncs), B4 (a cut that is over at once) |
//! | its result is visible | B11 |
//! | what began after `cut` returned is not waited for: it may stay for ever, and is not earlier | B2 |
//! | what was still entering then is waited for at most once a thread | slack |
//! | no member joins, and no ticket settles in, a drained bucket (assertions in the crate) | B5, B8 |
//! | a wait that nobody wakes is a deadlock, which the models report | B6 |
//! | after all have settled, a cut is over at once | B8 |
//! | after an abort each wait ends | B10 |

use std::sync::atomic::Ordering::Relaxed;

use crate::runtime::{AtomicBool, AtomicUsize};
use crate::subject::Subject;

pub(crate) struct Oracle {
    /// For each writer, how many of its writes have entered.
    entered: Vec<AtomicUsize>,
    /// For each write, whether its result was recorded.
    recorded: Vec<AtomicBool>,
    writes: usize,
}

/// What a sync must find settled: the first so many of each writer.
pub(crate) struct Earlier(Vec<usize>);

impl Oracle {
    /// Writes are numbered writer by writer.
    pub(crate) fn new(writers: usize, writes: usize) -> Self {
        Self {
            entered: (0..writers).map(|_| AtomicUsize::new(0)).collect(),
            recorded: (0..writers * writes).map(|_| AtomicBool::new(false)).collect(),
            writes,
        }
    }

    pub(crate) fn enter<S: Subject>(&self, subject: &S, operation: usize) -> S::Ticket {
        let ticket = subject.enter();
        self.entered[operation / self.writes].store(operation % self.writes + 1, Relaxed);
        ticket
    }

    /// Record first, settle afterwards: the second of the two orders that carry everything.
    pub(crate) fn settle<T>(&self, ticket: T, operation: usize) {
        let recorded = &self.recorded[operation];
        if cfg!(mutants) && std::env::var("ASHORE_MUTANT").is_ok_and(|name| name == "ResultAfterSettle") {
            drop(ticket);
            recorded.store(true, Relaxed);
            return;
        }
        recorded.store(true, Relaxed);
        drop(ticket);
    }

    pub(crate) fn operation<S: Subject>(&self, subject: &S, operation: usize) {
        let ticket = self.enter(subject, operation);
        self.settle(ticket, operation);
    }

    /// To be asked before `cut` is called.
    pub(crate) fn earlier(&self) -> Earlier {
        Earlier(self.entered.iter().map(|entered| entered.load(Relaxed)).collect())
    }

    /// To be asked after the wait.
    pub(crate) fn check(&self, earlier: &Earlier) {
        for (writer, &entered) in earlier.0.iter().enumerate() {
            for operation in writer * self.writes..writer * self.writes + entered {
                let recorded = self.recorded[operation].load(Relaxed);
                assert!(recorded, "B1, B11: the sync is over, and the result of {operation} is not there");
            }
        }
    }

    pub(crate) fn sync<S: Subject>(&self, subject: &S) {
        let earlier = self.earlier();
        subject.cut().wait().unwrap();
        self.check(&earlier);
    }

    /// To be called when all tickets are gone.
    pub(crate) fn finish<S: Subject>(&self, subject: &S) {
        assert!(subject.cut().is_settled(), "B8: nothing is outstanding, and yet a cut waits");
    }
}
