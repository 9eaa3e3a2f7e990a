//! The life of one queue, as the VMM's messages tell it.
//!
//! ```text
//!     SET_VRING_NUM, _ADDR, _BASE      what the ring is
//!     SET_VRING_KICK                   started: the ring is ready
//!     SET_VRING_ENABLE 1 / 0           enabled: it is to be served
//!     GET_VRING_BASE                   stopped, after everything available has been taken and finished
//! ```
//!
//! A thread runs while the ring is started *and* enabled. Whatever ends one of the two drains the queue first, so
//! that the available index we remember, or report, is also the end of what has been answered.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::QueueIndex;
use super::backlog::DeviceBacklog;
use super::counters::Counters;
use super::dirty_log::{DirtyLog, Marks};
use super::inflight::InflightMemory;
use super::queue::DeviceQueue;
use super::ring::{Ring, RingError, RingPlace};
use super::shared::{Kick, Parts, Shared};
use crate::memory::Memory;

/// What a queue's thread runs.
pub(crate) type Handler = dyn Fn(QueueIndex, DeviceQueue) + Send + Sync;

/// What all queues of a device need to run.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) handler: Arc<Handler>,
    pub(crate) backlog: Arc<DeviceBacklog>,
    pub(crate) poll_us: u32,
    pub(crate) hiprio_nap: Duration,
    /// Called when the VMM resets the device, with all queues stopped.
    pub(crate) on_reset: Arc<dyn Fn() + Send + Sync>,
    /// Set by a queue that was notified of requests that are not there.
    pub(crate) empty_handed: Arc<AtomicBool>,
}

/// Why a queue was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("the VMM did not say where the ring is")]
    NoAddresses,
    #[error("its thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// What is known of one queue.
pub(crate) struct Vring {
    index: QueueIndex,
    surroundings: Surroundings,
    counters: Arc<Counters>,
    size: u32,
    place: Option<RingPlace>,
    /// At which guest address writes to the used ring are marked, if they are.
    used_ring_log: Option<u64>,
    marks: Option<Marks>,
    base: u16,
    kick: Option<Kick>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    enabled: bool,
    running: Option<Running>,
}

struct Running {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Vring {
    pub(crate) fn new(index: QueueIndex, surroundings: Surroundings, counters: Arc<Counters>) -> Vring {
        Vring {
            index,
            surroundings,
            counters,
            size: 0,
            place: None,
            used_ring_log: None,
            marks: None,
            base: 0,
            kick: None,
            call: None,
            error: None,
            enabled: false,
            running: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// It does not run, and nothing is missing for it to be started.
    pub(crate) fn is_about_to_start(&self) -> bool {
        !self.is_running() && self.enabled && self.kick.is_some()
    }

    pub(crate) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    /// Where the ring is, and where writes to its used ring are marked. `false`: it runs, and cannot go elsewhere.
    pub(crate) fn set_place(&mut self, place: RingPlace, used_ring_log: Option<u64>) -> bool {
        if self.is_running() && self.place != Some(place) {
            return false;
        }
        (self.place, self.used_ring_log) = (Some(place), used_ring_log);
        true
    }

    /// From now on what is written is marked in this log, if there is one; what is written to buffers only if `data`.
    pub(crate) fn set_log(&mut self, log: Option<&Arc<DirtyLog>>, data: bool) {
        self.marks = log.and_then(|log| Marks::new(log, data, self.used_ring_log));
        if let Some(running) = &self.running {
            running.shared.set_marks(self.marks.clone());
        }
    }

    pub(crate) fn set_base(&mut self, base: u16) {
        self.base = base;
    }

    pub(crate) fn set_kick(&mut self, kick: Option<OwnedFd>) {
        let kick = kick.map_or(Kick::Polling, |kick| Kick::Event(Arc::new(kick)));
        if let Some(running) = &self.running {
            running.shared.set_kick(kick.clone());
        }
        self.kick = Some(kick);
    }

    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) -> io::Result<()> {
        if let Some(running) = &self.running {
            running.shared.set_call(call.as_ref().map(OwnedFd::try_clone).transpose()?);
        }
        self.call = call;
        Ok(())
    }

    pub(crate) fn set_error(&mut self, error: Option<OwnedFd>) -> io::Result<()> {
        if let Some(running) = &self.running {
            running.shared.set_error(error.as_ref().map(OwnedFd::try_clone).transpose()?);
        }
        self.error = error;
        Ok(())
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Wakes the thread, for what it has to notice by itself.
    pub(crate) fn nudge(&self) {
        if let Some(running) = &self.running {
            running.shared.wake.set();
        }
    }

    /// Starts the thread or stops it, as the state now demands.
    pub(crate) fn settle(
        &mut self,
        memory: &Arc<Memory>,
        inflight: Option<&InflightMemory>,
        event_idx: bool,
    ) -> Result<(), StartError> {
        match (&self.kick, self.enabled, self.is_running()) {
            (Some(kick), true, false) => {
                let kick = kick.clone();
                self.start(kick, memory, inflight, event_idx)
            }
            (None, _, true) | (_, false, true) => {
                self.stop(Shared::stop_after_what_is_available);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Stops and forgets, but for the counters. Returns the available index to go on from.
    pub(crate) fn reset(&mut self) -> u16 {
        self.stop(Shared::stop);
        let fresh = Vring::new(self.index, self.surroundings.clone(), self.counters.clone());
        std::mem::replace(self, fresh).base
    }

    /// Stops as GET_VRING_BASE has it: the ring is no longer started, but stays enabled and where it is.
    pub(crate) fn unstart(&mut self) -> u16 {
        self.stop(Shared::stop_after_what_is_available);
        self.kick = None;
        self.call = None;
        self.base
    }

    fn start(
        &mut self,
        kick: Kick,
        memory: &Arc<Memory>,
        inflight: Option<&InflightMemory>,
        event_idx: bool,
    ) -> Result<(), StartError> {
        let (map, _) = memory.current();
        let ring = Ring::new(&map, self.place.ok_or(StartError::NoAddresses)?, self.size, event_idx)?;
        let mut inflight = inflight.and_then(|inflight| inflight.part(self.index, self.size));
        let again = inflight.as_mut().and_then(|inflight| inflight.recover(ring.used_index()));
        if again.is_some() {
            // A server that was killed could not say how far it came. The used ring does: what is in flight comes next.
            self.base = ring.used_index();
        }
        let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let shared = Arc::new(Shared::new(Parts {
            index: self.index,
            ring,
            base: self.base,
            memory: memory.clone(),
            counters: self.counters.clone(),
            backlog: self.surroundings.backlog.clone(),
            kick,
            call: clone(&self.call)?,
            error: clone(&self.error)?,
            // Nobody waits for what comes by hiprio.
            poll_us: if self.index.is_hiprio() { 0 } else { self.surroundings.poll_us },
            nap: if self.index.is_hiprio() { self.surroundings.hiprio_nap } else { Duration::ZERO },
            empty_handed: self.surroundings.empty_handed.clone(),
            inflight,
            marks: self.marks.clone(),
        })?);
        if again.is_some() {
            // What was completed last may not have been announced.
            shared.set_call(clone(&self.call)?);
        }
        let thread = self.spawn(shared.clone(), again.unwrap_or_default())?;
        self.surroundings.backlog.add(shared.clone());
        self.running = Some(Running { shared, thread });
        tracing::debug!("{}: started with {} entries from index {}", self.index, self.size, self.base);
        Ok(())
    }

    fn spawn(&self, shared: Arc<Shared>, again: VecDeque<u16>) -> io::Result<JoinHandle<()>> {
        let handler = self.surroundings.handler.clone();
        let (index, queue) = (self.index, DeviceQueue::new(shared.clone(), again)?);
        thread::Builder::new().name(format!("ashore-q{}", index.0)).spawn(move || {
            handler(index, queue);
            if !shared.is_stopping() {
                tracing::error!(
                    "{index}: its thread has ended, nothing will be served until it is started again"
                );
            }
        })
    }

    fn stop(&mut self, how: fn(&Shared)) {
        let Some(Running { shared, thread }) = self.running.take() else { return };
        how(&shared);
        if thread.join().is_err() {
            tracing::error!("{}: its thread panicked", self.index);
        }
        shared.drain();
        self.surroundings.backlog.remove(&shared);
        self.base = shared.position() as u16;
        tracing::debug!("{}: stopped at index {}: {}", self.index, self.base, self.counters.read());
    }
}

impl Drop for Vring {
    fn drop(&mut self) {
        self.stop(Shared::stop);
    }
}
