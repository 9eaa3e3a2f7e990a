//! How long somebody is willing to wait, and for what.

use std::sync::Arc;
use std::time::Duration;

use ashore_wire::Errno;

use crate::primitives::atomic::{AtomicBool, Ordering};
use crate::primitives::{Condvar, Instant, MutexGuard};

/// A waiting caller that can be cancelled looks this often whether it was.
const CANCEL_LOOK: Duration = Duration::from_millis(5);

/// Tells a waiting sync to give up. Clones are the same.
///
/// ```
/// let cancel = ashore_client::Cancel::default();
/// cancel.clone().cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Whoever waits with this, now or later, gives up.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A limit to a wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
    /// There is none to begin with.
    never: bool,
}

impl Patience {
    /// Waits as long as it takes. The connection's own time-out ends it, if nothing else does.
    pub(crate) const ENDLESS: Patience = Patience { deadline: None, cancel: None, never: false };
    /// Does not wait at all.
    pub(crate) const NONE: Patience = Patience { deadline: None, cancel: None, never: true };

    /// Waits until then, or until cancelled.
    pub(crate) fn new(timeout: Option<Duration>, cancel: Option<Cancel>) -> Patience {
        Patience {
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            cancel,
            never: false,
        }
    }

    /// Waits for this long.
    pub(crate) fn at_most(timeout: Duration) -> Patience {
        Patience::new(Some(timeout), None)
    }

    /// ETIMEDOUT or EINTR once there is none left.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Err(Errno::EINTR);
        }
        match self.deadline {
            None if self.never => Err(Errno::ETIMEDOUT),
            Some(deadline) if Instant::now() >= deadline => Err(Errno::ETIMEDOUT),
            _ => Ok(()),
        }
    }

    /// Until when to wait before looking again; `None` is as long as it takes.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let look = self.cancel.as_ref().map(|_| Instant::now() + CANCEL_LOOK);
        match (look, self.deadline) {
            (Some(look), Some(deadline)) => Some(look.min(deadline)),
            (look, deadline) => look.or(deadline),
        }
    }

    /// Waits for a change of what the lock protects, or fails once patience is at an end.
    pub(crate) fn wait<T>(&self, changed: &Condvar, guard: &mut MutexGuard<'_, T>) -> Result<(), Errno> {
        self.check()?;
        match self.next_look() {
            Some(look) => _ = changed.wait_until(guard, look),
            None => changed.wait(guard),
        }
        Ok(())
    }
}
