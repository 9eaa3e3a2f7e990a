//! Rounds of syncs: those that overlap share them.
//!
//! A caller may only share a round that began after it came, so n that overlap cost at most two. At most one round is
//! under way.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::mutant::{self, Mutant};

/// The rounds of one thing that is synced.
#[derive(Default)]
pub(crate) struct Rounds {
    counts: Mutex<Counts>,
    ended: Condvar,
}

#[derive(Default)]
struct Counts {
    begun: u64,
    ended: u64,
}

/// The deadline came first. The round goes on without its caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TimedOut;

impl Rounds {
    /// Returns when a round that began after this call has ended. `run` does what a round does, and sees to it that its
    /// outcome is known when it returns.
    ///
    /// With a deadline, rounds are run on a thread of their own.
    pub(crate) fn join(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        run: impl Fn() + Clone + Send + 'static,
    ) -> Result<(), TimedOut> {
        let mut counts = self.counts.lock();
        let begun = mutant::on(Mutant::BegunRoundShared) && counts.begun > counts.ended;
        let needed = if begun { counts.begun } else { counts.begun + 1 };
        while counts.ended < needed {
            if counts.begun > counts.ended {
                match deadline {
                    None => self.ended.wait(&mut counts),
                    Some(deadline) => {
                        let timed_out = self.ended.wait_until(&mut counts, deadline).timed_out();
                        if timed_out && counts.ended < needed {
                            return Err(TimedOut);
                        }
                    }
                }
                continue;
            }
            counts.begun += 1;
            drop(counts);
            if deadline.is_none() || !self.run_detached(run.clone()) {
                run();
                self.end();
            }
            counts = self.counts.lock();
        }
        Ok(())
    }

    /// How many have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.counts.lock().ended
    }

    /// Runs a round on a thread of its own; says whether there was one.
    fn run_detached(self: &Arc<Self>, run: impl Fn() + Send + 'static) -> bool {
        let rounds = Arc::clone(self);
        let thread = thread::Builder::new().name("ashore-round".into());
        let started = thread.spawn(move || {
            run();
            rounds.end();
        });
        if let Err(error) = &started {
            tracing::warn!("no thread for a sync ({error}); it will not be bounded in time");
        }
        started.is_ok()
    }

    fn end(&self) {
        let mut counts = self.counts.lock();
        counts.ended = counts.begun;
        drop(counts);
        self.ended.notify_all();
    }
}
