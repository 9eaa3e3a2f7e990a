//! Calls that wait for somebody else, perhaps for ever, and how they are told to stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ashore_wire::{Errno, RequestId};

use crate::filesystem::Result;
use crate::primitives::{Condvar, Mutex};

/// Requests of one session that wait for a lock at once, at most. Each takes a thread here and a place in the client's
/// ring, which must not fill up with them: the request that frees the lock has to come through it.
pub(crate) const LOCK_WAITS_MAX: usize = 64;
/// How long to wait for a call that was woken before it is woken again: it may not have begun to block yet.
const WAKE_AGAIN: Duration = Duration::from_millis(1);

/// A call that may block until somebody else acts, and that can be told to give up.
///
/// It is told so when its caller in the client is interrupted (EINTR), and when the client's queue is stopped (EAGAIN).
#[derive(Default)]
pub struct Wait {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    given_up: Option<Errno>,
    /// Makes the call return that is blocked now, if one is.
    waker: Option<Box<dyn Fn() + Send>>,
}

impl Wait {
    /// Makes `call`, which may block, again and again as long as it says EINTR, until it is told to give up.
    ///
    /// `wake` comes from another thread, any number of times, but only while `call` runs; it is to make `call` return
    /// EINTR if it is blocked. Success that comes at the same time as the wish to give up stays a success.
    pub fn block<T>(
        &self,
        wake: impl Fn() + Send + 'static,
        mut call: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        if let Some(errno) = state.given_up {
            return Err(errno);
        }
        state.waker = Some(Box::new(wake));
        drop(state);
        let _blocked = Blocked(self);
        loop {
            match call() {
                Err(Errno::EINTR) => {}
                outcome => return outcome,
            }
            if let Some(errno) = self.state.lock().given_up {
                return Err(errno);
            }
        }
    }

    /// Has the call give up with this error. When this returns it is not blocked any more, and will not be.
    fn give_up(&self, errno: Errno) {
        let mut state = self.state.lock();
        state.given_up.get_or_insert(errno);
        while let Some(wake) = &state.waker {
            wake();
            self.left.wait_for(&mut state, WAKE_AGAIN);
        }
    }
}

/// The call runs; dropped also if it panics.
struct Blocked<'a>(&'a Wait);

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waker = None;
        self.0.left.notify_all();
    }
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wait").field("given_up", &self.state.lock().given_up).finish_non_exhaustive()
    }
}

/// The requests of one session that wait.
#[derive(Default)]
pub(crate) struct Waits(Mutex<Known>);

#[derive(Default)]
struct Known {
    waiting: Vec<(RequestId, Arc<Wait>)>,
    /// Interrupted, and not waiting: an INTERRUPT has a queue of its own, and may overtake what it is about. At most
    /// [`LOCK_WAITS_MAX`], the oldest first. Most were answered meanwhile and are no longer of interest to anybody.
    early: VecDeque<RequestId>,
}

impl Waits {
    /// One more; `None` if there are too many.
    pub(crate) fn begin(&self, id: RequestId) -> Option<Arc<Wait>> {
        let mut known = self.0.lock();
        if known.waiting.len() >= LOCK_WAITS_MAX {
            return None;
        }
        let wait = Arc::new(Wait::default());
        if let Some(at) = known.early.iter().position(|early| *early == id) {
            known.early.remove(at);
            wait.state.lock().given_up = Some(Errno::EINTR);
        }
        known.waiting.push((id, Arc::clone(&wait)));
        Some(wait)
    }

    /// It waits no longer.
    pub(crate) fn end(&self, wait: &Arc<Wait>) {
        self.0.lock().waiting.retain(|(_, other)| !Arc::ptr_eq(wait, other));
    }

    /// Its caller was interrupted. One that does not wait is not to begin.
    pub(crate) fn interrupt(&self, target: RequestId) {
        let mut known = self.0.lock();
        let found = known.waiting.iter().find(|(id, _)| *id == target).map(|(_, wait)| Arc::clone(wait));
        if found.is_none() {
            if known.early.len() >= LOCK_WAITS_MAX {
                known.early.pop_front();
            }
            known.early.push_back(target);
        }
        drop(known);
        if let Some(wait) = found {
            wait.give_up(Errno::EINTR);
        }
    }

    /// A queue was stopped, or the client has gone: nobody is to be waited for any more.
    ///
    /// EAGAIN, for a client's kernel that sees EINTR looks for a signal, and there is none.
    pub(crate) fn give_up_all(&self) {
        let mut known = self.0.lock();
        // Whoever comes next may begin with the same numbers.
        known.early.clear();
        let waits: Vec<_> = known.waiting.iter().map(|(_, wait)| Arc::clone(wait)).collect();
        drop(known);
        waits.iter().for_each(|wait| wait.give_up(Errno::EAGAIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    /// Blocks until the waker says so, as a system call does until a signal comes.
    fn block_in(wait: &Wait, begun: &mpsc::Sender<()>) -> Result<()> {
        let (wake, woken) = mpsc::channel();
        wait.block(
            move || _ = wake.send(()),
            || {
                begun.send(()).unwrap();
                woken.recv().unwrap();
                Err(Errno::EINTR)
            },
        )
    }

    #[test]
    fn a_call_that_blocks_gives_up_when_it_is_told_to() {
        let waits = Waits::default();
        let (begun, has_begun) = mpsc::channel();
        for (give_up, errno) in [
            (Box::new(|waits: &Waits| waits.interrupt(RequestId(6))) as Box<dyn Fn(&Waits)>, Errno::EINTR),
            (Box::new(Waits::give_up_all), Errno::EAGAIN),
        ] {
            let wait = waits.begin(RequestId(6)).unwrap();
            thread::scope(|scope| {
                let blocked = scope.spawn(|| block_in(&wait, &begun));
                has_begun.recv().unwrap();
                waits.interrupt(RequestId(8));
                give_up(&waits);
                assert_eq!(blocked.join().unwrap(), Err(errno));
            });
            assert_eq!(block_in(&wait, &begun), Err(errno), "nor does it block again");
            waits.end(&wait);
        }
    }

    #[test]
    fn who_was_interrupted_before_it_waits_does_not_wait() {
        let waits = Waits::default();
        (0..200).for_each(|id| waits.interrupt(RequestId(id)));
        let (begun, _has_begun) = mpsc::channel();
        let wait = waits.begin(RequestId(199)).unwrap();
        assert_eq!(block_in(&wait, &begun), Err(Errno::EINTR));
        assert!(waits.0.lock().early.len() < LOCK_WAITS_MAX);
        waits.give_up_all();
        let wait = waits.begin(RequestId(198)).unwrap();
        assert_eq!(wait.block(|| {}, || Ok(())), Ok(()), "by the next client");
    }

    #[test]
    fn a_signal_for_somebody_else_does_not_end_the_wait() {
        let mut calls = 0;
        let outcome = Wait::default().block(
            || {},
            || {
                calls += 1;
                if calls < 3 { Err(Errno::EINTR) } else { Ok(calls) }
            },
        );
        assert_eq!(outcome, Ok(3));
    }

    #[test]
    fn no_more_wait_than_the_bound() {
        let waits = Waits::default();
        let all: Vec<_> = (0..LOCK_WAITS_MAX).map(|id| waits.begin(RequestId(id as u64)).unwrap()).collect();
        assert!(waits.begin(RequestId(1)).is_none());
        waits.end(&all[7]);
        assert!(waits.begin(RequestId(1)).is_some());
    }
}
