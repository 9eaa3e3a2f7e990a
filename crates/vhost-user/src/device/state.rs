//! The state that a device keeps for its guest moves to another server, through a pipe that the VMM gives us.
//!
//! ```text
//!     VMM                        here
//!     begins to log        --->  a thread does ahead what can be done while the guest runs
//!     queues are stopped
//!     SET_DEVICE_STATE_FD  --->  a thread writes the state, or reads it     VMM reads it, or writes it, to its end
//!     CHECK_DEVICE_STATE   --->  waits for the thread, and says how it went
//! ```
//!
//! A device that could not take a state in has none, so its queues are not started. One that has given its state away goes on
//! as before when its queues are started again: the VMM decided not to move after all.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vhost::vhost_user::message::VhostTransferStateDirection as Direction;

/// Why a state was not transferred. It is logged; a VMM is told no more than that.
pub type StateError = Box<dyn Error + Send + Sync>;

/// What a device keeps for its guest beside its queues.
pub trait DeviceState: Send + Sync {
    /// The VMM has begun to copy the guest's memory, while the guest runs: what will take long when it has stopped may be done
    /// now. Runs on a thread of its own; a migration need not follow.
    fn prepare(&self) {}
    /// Writes it. No queue runs meanwhile, and all that was taken has been finished. The device goes on as before if its queues
    /// are started again.
    fn save(&self, into: &mut dyn Write) -> Result<(), StateError>;
    /// Reads what another device has saved, up to its end, and goes on with it.
    fn load(&self, from: &mut dyn Read) -> Result<(), StateError>;
}

/// Why the device has no state to serve with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("it belongs to a feature that was not offered")]
    NotOffered,
    #[error("no transfer of its state has begun")]
    NotBegun,
    #[error("its state was not {what}: {why}")]
    Failed { what: &'static str, why: StateError },
    #[error("the state that came for it could not be taken in")]
    NoState,
    #[error("no thread for it can be started: {0}")]
    Thread(#[from] io::Error),
}

/// The transfers of one connection, one at a time.
#[derive(Default)]
pub(crate) struct Transfers {
    state: Option<Arc<dyn DeviceState>>,
    under_way: Option<UnderWay>,
    /// A state should have come, and did not.
    lacks_state: bool,
}

struct UnderWay {
    loading: bool,
    thread: JoinHandle<Result<(), StateError>>,
}

impl Transfers {
    pub(crate) fn of(state: Option<Arc<dyn DeviceState>>) -> Transfers {
        Transfers { state, under_way: None, lacks_state: false }
    }

    pub(crate) fn are_offered(&self) -> bool {
        self.state.is_some()
    }

    /// The VMM has begun to copy memory.
    pub(crate) fn prepare(&self) {
        let Some(state) = self.state.clone() else { return };
        let thread = thread::Builder::new().name("ashore-prepare".into()).spawn(move || state.prepare());
        // Without it all is done when the guest has stopped.
        let _ = thread.inspect_err(|error| tracing::warn!("a migration cannot be prepared: {error}"));
    }

    /// Begins a transfer; an earlier one is ended first.
    pub(crate) fn begin(&mut self, direction: Direction, mut pipe: File) -> Result<(), TransferError> {
        let _ = self.end();
        let state = Arc::clone(self.state.as_ref().ok_or(TransferError::NotOffered)?);
        let loading = matches!(direction, Direction::LOAD);
        let transfer = move || match loading {
            true => state.load(&mut pipe),
            false => state.save(&mut pipe),
        };
        let thread = thread::Builder::new().name("ashore-state".into()).spawn(transfer)?;
        self.under_way = Some(UnderWay { loading, thread });
        Ok(())
    }

    /// Waits for the end of a transfer, and says how it went.
    pub(crate) fn end(&mut self) -> Result<(), TransferError> {
        let UnderWay { loading, thread } = self.under_way.take().ok_or(TransferError::NotBegun)?;
        let outcome = thread.join().unwrap_or_else(|_| Err("its thread panicked".into()));
        self.lacks_state = loading && outcome.is_err();
        let what = if loading { "loaded" } else { "saved" };
        outcome.map_err(|why| TransferError::Failed { what, why })
    }

    /// A queue is about to be started: nothing may be under way, and what should have come must have.
    pub(crate) fn allow_start(&mut self) -> Result<(), TransferError> {
        if self.under_way.is_some()
            && let Err(error) = self.end()
        {
            tracing::error!("{error}");
        }
        if self.lacks_state { Err(TransferError::NoState) } else { Ok(()) }
    }

    /// The device begins anew.
    pub(crate) fn reset(&mut self) {
        let _ = self.end();
        self.lacks_state = false;
    }
}
