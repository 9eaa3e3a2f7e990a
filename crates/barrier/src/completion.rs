//! Who waits for a cut, and how they hear of it: asleep, by callback, or as a future.
//!
//! Cuts complete in order. One number therefore says it all: every cut below `complete` is over.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{fmt, mem, thread};

use crate::mutant::{Mutant, on};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// The barrier was aborted before the cut had settled: nothing is known about what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the barrier was aborted before everything earlier had settled")
    }
}

impl std::error::Error for Aborted {}

/// Why [`Cut::wait_timeout`] came back without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitError {
    /// Something earlier is still outstanding. The cut can be waited for again.
    TimedOut,
    /// See [`Aborted`].
    Aborted,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitError::TimedOut => f.write_str("something earlier than the cut is still outstanding"),
            WaitError::Aborted => Aborted.fmt(f),
        }
    }
}

impl std::error::Error for WaitError {}

impl From<Aborted> for WaitError {
    fn from(Aborted: Aborted) -> Self {
        WaitError::Aborted
    }
}

/// The line between what was entered earlier and what is entered later. It is over when everything earlier has settled.
///
/// A cut that nobody waits for costs nothing and may be dropped. Wait in one of three ways: asleep ([`wait`],
/// [`wait_timeout`]), by callback ([`on_settled`]), or by `.await`: it is a [`Future`] and needs no particular runtime.
///
/// [`wait`]: Cut::wait
/// [`wait_timeout`]: Cut::wait_timeout
/// [`on_settled`]: Cut::on_settled
#[must_use = "a cut waits for nothing by itself"]
pub struct Cut {
    completion: Arc<Completion>,
    number: u64,
    /// The entry that holds this future's waker, if it was polled.
    waker_entry: Option<u64>,
}

impl Cut {
    pub(crate) fn new(completion: Arc<Completion>, number: u64) -> Self {
        Self { completion, number, waker_entry: None }
    }

    /// Whether everything earlier has settled. Also false after an abort that came first.
    pub fn is_settled(&self) -> bool {
        matches!(self.outcome(), Some(Ok(())))
    }

    /// How it ended, or nothing if it has not. Never waits.
    pub fn outcome(&self) -> Option<Result<(), Aborted>> {
        lock(&self.completion.state).outcome(self.number)
    }

    /// Sleeps until everything earlier has settled.
    pub fn wait(&self) -> Result<(), Aborted> {
        let mut state = lock(&self.completion.state);
        loop {
            if let Some(outcome) = state.outcome(self.number) {
                return outcome;
            }
            state = self.completion.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sleeps like [`wait`](Cut::wait), but no longer than `limit`.
    pub fn wait_timeout(&self, limit: Duration) -> Result<(), WaitError> {
        let start = Instant::now();
        let mut state = lock(&self.completion.state);
        loop {
            if let Some(outcome) = state.outcome(self.number) {
                return Ok(outcome?);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(WaitError::TimedOut);
            }
            state = self.completion.sleep(state, left);
        }
    }

    /// Has `callback` called once with the outcome, and returns at once.
    ///
    /// It runs on whichever thread settles the last earlier ticket or aborts the barrier, or on this one, before this
    /// returns, if the cut is over already. That thread is usually busy serving requests: hand long work to another.
    /// No lock of the barrier is held. The callback may enter, settle, abort, and make further cuts; one that makes
    /// a cut and adds a callback to it, for ever, on a barrier where nothing is outstanding, is a recursion without end.
    ///
    /// If it panics, the panic reaches that thread after all other callbacks have run.
    pub fn on_settled(self, callback: impl FnOnce(Result<(), Aborted>) + Send + 'static) {
        let mut state = lock(&self.completion.state);
        match state.outcome(self.number) {
            Some(outcome) => {
                drop(state);
                callback(outcome);
            }
            None => {
                state.add(self.number, Wake::Callback(Box::new(callback)));
            }
        }
    }

    pub(crate) fn belongs_to(&self, completion: &Arc<Completion>) -> bool {
        Arc::ptr_eq(&self.completion, completion)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Future for Cut {
    type Output = Result<(), Aborted>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let cut = &mut *self;
        let mut state = lock(&cut.completion.state);
        let replaced = cut.waker_entry.take().and_then(|entry| state.remove(entry));
        let poll = match state.outcome(cut.number) {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                cut.waker_entry = Some(state.add(cut.number, Wake::Waker(context.waker().clone())));
                Poll::Pending
            }
        };
        drop(state);
        // A waker's drop is somebody else's code. It must not run under our lock.
        drop(replaced);
        poll
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(entry) = self.waker_entry.take() {
            let waker = lock(&self.completion.state).remove(entry);
            drop(waker);
        }
    }
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut").field("number", &self.number).finish_non_exhaustive()
    }
}

/// How far the cuts of one barrier are over, and who wants to know.
pub(crate) struct Completion {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Cuts with lower numbers are over. An abort stops it for good, so that an outcome, once known, stays.
    complete: u64,
    aborted: bool,
    next_entry: u64,
    /// As long as the callbacks and futures that wait now: their callers bound it.
    waiters: Vec<Waiter>,
}

struct Waiter {
    entry: u64,
    number: u64,
    wake: Wake,
}

enum Wake {
    Callback(Box<dyn FnOnce(Result<(), Aborted>) + Send>),
    Waker(Waker),
}

impl Completion {
    pub(crate) fn new(complete: u64) -> Self {
        let state = State { complete, aborted: false, next_entry: 0, waiters: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Says that all cuts below `complete` are over. The caller runs the result when it holds no lock any more.
    pub(crate) fn advance(&self, complete: u64) -> WakeUps {
        let mut state = lock(&self.state);
        if state.aborted || complete <= state.complete {
            return WakeUps::none();
        }
        state.complete = complete;
        self.changed.notify_all();
        WakeUps { outcome: Ok(()), waiters: state.take(|waiter| waiter.number < complete) }
    }

    /// Fails every wait that is not over, now and from now on.
    pub(crate) fn abort(&self) -> WakeUps {
        let mut state = lock(&self.state);
        state.aborted = true;
        self.changed.notify_all();
        WakeUps { outcome: Err(Aborted), waiters: mem::take(&mut state.waiters) }
    }

    pub(crate) fn is_aborted(&self) -> bool {
        lock(&self.state).aborted
    }

    #[cfg(not(any(loom, shuttle)))]
    fn sleep<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The models have no clock: there, a limit that is not zero never passes.
    #[cfg(any(loom, shuttle))]
    fn sleep<'a>(&self, state: MutexGuard<'a, State>, _limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn outcome(&self, number: u64) -> Option<Result<(), Aborted>> {
        if number < self.complete || on(Mutant::ReturnsBeforeEmpty) {
            Some(Ok(()))
        } else if self.aborted {
            Some(Err(Aborted))
        } else {
            None
        }
    }

    fn add(&mut self, number: u64, wake: Wake) -> u64 {
        let entry = self.next_entry;
        self.next_entry += 1;
        self.waiters.push(Waiter { entry, number, wake });
        entry
    }

    fn remove(&mut self, entry: u64) -> Option<Waiter> {
        let place = self.waiters.iter().position(|waiter| waiter.entry == entry)?;
        Some(self.waiters.swap_remove(place))
    }

    fn take(&mut self, chosen: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        self.waiters.extract_if(.., |waiter| chosen(waiter)).collect()
    }
}

/// Callbacks and wakers that are due. They run when this is dropped, which is for after the locks are released.
#[must_use = "drop it after the locks"]
pub(crate) struct WakeUps {
    outcome: Result<(), Aborted>,
    waiters: Vec<Waiter>,
}

impl WakeUps {
    pub(crate) fn none() -> Self {
        Self { outcome: Ok(()), waiters: Vec::new() }
    }
}

impl Drop for WakeUps {
    fn drop(&mut self) {
        let mut first_panic = None;
        for waiter in mem::take(&mut self.waiters) {
            // If one panics, the rest still run: a lost wake-up would be worse.
            let result = catch_unwind(AssertUnwindSafe(|| waiter.wake.run(self.outcome)));
            first_panic = first_panic.or(result.err());
        }
        if let Some(panic) = first_panic
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Wake {
    fn run(self, outcome: Result<(), Aborted>) {
        match self {
            Wake::Callback(callback) => callback(outcome),
            Wake::Waker(waker) => waker.wake(),
        }
    }
}
