//! A queue without a VMM: rings in memory of one's own. For driving a ring directly, in tests and in fuzzing.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ashore_wire::seam::Backlog;

use super::QueueIndex;
use super::backlog::DeviceBacklog;
use super::counters::{Counters, QueueCounters};
use super::queue::DeviceQueue;
use super::ring::{Ring, RingPlace};
use super::shared::{Kick, Parts, Shared};
use crate::memory::{GuestMap, Memory, Region, RegionPlace};

/// Where a ring lies in its memory, in bytes from the start, and how it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLayout {
    /// Entries: a power of two.
    pub size: u16,
    /// Offset of the descriptor table.
    pub descriptors: u64,
    /// Offset of the available ring.
    pub available: u64,
    /// Offset of the used ring.
    pub used: u64,
    /// Whether notifications are asked for by event index.
    pub event_idx: bool,
    /// The available index to begin with.
    pub base: u16,
}

/// The other end of a queue made by [`DeviceQueue::detached`].
#[derive(Debug)]
pub struct DetachedQueue {
    shared: Arc<Shared>,
    backlog: Arc<DeviceBacklog>,
}

impl DeviceQueue {
    /// A queue over the first `len` bytes of `memory`, whose guest addresses begin at 0. Without a `kick` the
    /// ring is looked at every millisecond; without a `call` nobody is notified.
    pub fn detached(
        memory: File,
        len: u64,
        layout: RingLayout,
        kick: Option<OwnedFd>,
        call: Option<OwnedFd>,
    ) -> io::Result<(DeviceQueue, DetachedQueue)> {
        let place = RegionPlace { guest: 0, len, user: 0 };
        let region = Region::map(place, memory, 0).map_err(io::Error::other)?;
        let map = GuestMap::default().with(region).map_err(io::Error::other)?;
        let RingLayout { size, descriptors, available, used, event_idx, base } = layout;
        let place = RingPlace { descriptors, available, used };
        let ring = Ring::new(&map, place, u32::from(size), event_idx).map_err(io::Error::other)?;
        let memory = Arc::new(Memory::default());
        memory.replace(map);
        let backlog = Arc::new(DeviceBacklog::default());
        let shared = Arc::new(Shared::new(Parts {
            index: QueueIndex(1),
            ring,
            base,
            memory,
            counters: Arc::new(Counters::default()),
            backlog: backlog.clone(),
            kick: kick.map_or(Kick::Polling, |kick| Kick::Event(Arc::new(kick))),
            call,
            error: None,
            poll_us: 0,
            nap: Duration::ZERO,
            empty_handed: Arc::default(),
            inflight: None,
            marks: None,
        })?);
        backlog.add(shared.clone());
        Ok((DeviceQueue::new(shared.clone(), VecDeque::new())?, DetachedQueue { shared, backlog }))
    }
}

impl DetachedQueue {
    /// Stops the queue: it says `None` from now on.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Waits until every request that was taken has been finished.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// What the queue has done.
    pub fn counters(&self) -> QueueCounters {
        self.shared.counters.read()
    }

    /// What waits in the queue.
    pub fn backlog(&self) -> Arc<dyn Backlog> {
        self.backlog.clone()
    }
}

impl Drop for DetachedQueue {
    fn drop(&mut self) {
        self.shared.stop();
        self.backlog.remove(&self.shared);
    }
}
