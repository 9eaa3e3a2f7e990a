//! The side of a queue that its thread holds: taking requests, and sleeping when there are none.
//!
//! ```text
//!     next() --> came back: earlier requests are in good hands
//!        |
//!        v           nothing available                nothing either
//!       take --------------------------> announce --> look for poll_us --> ask for a kick, look once more, sleep
//!        |                                  ^                                                          |
//!        | a request                        +------------------- kicked, or told to stop <-------------+
//!        v
//!      return
//! ```
//!
//! By hiprio come FORGETs, one behind the other, for which nobody waits. To be notified of each and to notify of each costs far
//! more than they do. So a thread that has served some there naps, while more of them gather, before it announces anything and asks
//! for a kick. A sync that has to wait for one ends the nap ([`Shared::end_nap`]).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ashore_wire::Errno;
use ashore_wire::reply::error_header;
use ashore_wire::seam::RequestQueue;

use super::QueueIndex;
use super::chain::ChainError;
use super::exchange::{RingExchange, Slot};
use super::fds::Readiness;
use super::serve::NO_SHARED_MEMORY;
use super::shared::{Kick, Shared};
use super::sleeper::Sleeper;
use crate::look::Look;
use crate::memory::GuestMap;

/// How often a ring is looked at whose guest cannot notify us.
const LOOK_WITHOUT_KICK: Duration = Duration::from_millis(1);
/// Notifications without a request, before there ever was one, after which memory is probably not shared. One is
/// usual: VMMs notify once when they start a queue.
const EMPTY_KICKS_SUSPICIOUS: u32 = 2;
/// At most one complaint about malformed requests in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// A queue of requests from a guest. Its thread takes them; see [`RequestQueue`].
#[derive(Debug)]
pub struct DeviceQueue {
    shared: Arc<Shared>,
    /// Position of the next request to take; its low 16 bits are the index in the available ring.
    next: u64,
    /// Heads that a server before this one took and did not give back. Their positions are the first ones.
    again: VecDeque<u16>,
    /// The available index when last looked at.
    available: u16,
    map: Arc<GuestMap>,
    map_generation: u64,
    complaints: Complaints,
    look: Look,
    /// It has served something since it last napped.
    may_nap: bool,
    sleeper: Sleeper,
    /// Notifications that came without a request, before the first one.
    empty_kicks: EmptyKicks,
    /// The thread that takes is known, and its completions are announced in batches.
    has_thread: bool,
}

impl RequestQueue for DeviceQueue {
    type Exchange = RingExchange;

    fn next(&mut self) -> Option<RingExchange> {
        if !self.has_thread {
            self.has_thread = true;
            self.shared.set_worker();
        }
        loop {
            self.shared.set_position(self.next);
            let stopping = self.shared.is_stopping();
            if stopping && !self.shared.has_to_catch_up(self.next as u16) || self.shared.has_ended() {
                self.shared.announce_now();
                return None;
            }
            match self.take() {
                Ok(Taken::Request(exchange)) => return Some(exchange),
                Ok(Taken::Malformed) => {}
                Ok(Taken::Nothing) if stopping => {
                    self.shared.announce_now();
                    return None;
                }
                Ok(Taken::Nothing) => self.wait(),
                Err(broken) => {
                    self.break_down(broken);
                    return None;
                }
            }
        }
    }
}

impl DeviceQueue {
    pub(crate) fn new(shared: Arc<Shared>, again: VecDeque<u16>) -> io::Result<DeviceQueue> {
        let sleeper = Sleeper::new(&shared.wake)?;
        let (map, map_generation) = shared.memory.current();
        let next = shared.position();
        let look = Look::new(shared.poll_us);
        let available = (next as u16).wrapping_add(again.len() as u16);
        let complaints = Complaints::default();
        shared.disable_kicks();
        Ok(DeviceQueue {
            shared,
            next,
            again,
            available,
            map,
            map_generation,
            complaints,
            look,
            may_nap: false,
            sleeper,
            empty_kicks: EmptyKicks::Count(0),
            has_thread: false,
        })
    }

    /// Which queue this is.
    pub fn index(&self) -> QueueIndex {
        self.shared.index()
    }

    /// The next request if there is one already; never waits. `None` says nothing about whether more will come.
    pub fn try_next(&mut self) -> Option<RingExchange> {
        loop {
            self.shared.set_position(self.next);
            if self.shared.is_stopping() || self.shared.has_ended() {
                return None;
            }
            match self.take() {
                Ok(Taken::Request(exchange)) => return Some(exchange),
                Ok(Taken::Malformed) => {}
                Ok(Taken::Nothing) => return None,
                Err(broken) => {
                    self.break_down(broken);
                    return None;
                }
            }
        }
    }

    fn take(&mut self) -> Result<Taken, RingBroken> {
        let Some(chain) = self.next_chain()? else { return Ok(Taken::Nothing) };
        let Some(mut slot) = self.shared.begin(chain) else { return Err(RingBroken::TooManyInFlight) };
        self.next += 1;
        self.empty_kicks = EmptyKicks::NoLongerCounted;
        self.may_nap = true;
        self.shared.counters.requests.add_one();
        self.refresh_map();
        match slot.load(&self.shared.ring, &self.map, chain) {
            Ok(()) => {
                self.shared.announce_before(slot.kind());
                Ok(Taken::Request(RingExchange::new(self.shared.clone(), slot)))
            }
            Err(error) => {
                self.refuse(slot, error);
                Ok(Taken::Malformed)
            }
        }
    }

    /// The head of the next chain, if the guest has made one available.
    fn next_chain(&mut self) -> Result<Option<u16>, RingBroken> {
        if let Some(head) = self.again.pop_front() {
            return Ok(Some(head));
        }
        let next = self.next as u16;
        if self.available == next {
            self.available = self.shared.ring.available_index();
            let count = self.available.wrapping_sub(next);
            if count > self.shared.ring.size() {
                return Err(RingBroken::IndexJumped { from: next, to: self.available });
            }
            if count == 0 {
                return Ok(None);
            }
        }
        match self.shared.ring.available_head(next) {
            head if head < self.shared.ring.size() => Ok(Some(head)),
            head => Err(RingBroken::Head(head)),
        }
    }

    fn refresh_map(&mut self) {
        if self.map_generation != self.shared.memory.generation() {
            (self.map, self.map_generation) = self.shared.memory.current();
        }
    }

    /// Gives a request back that cannot be read, with EIO if there is a header to answer to and room to answer in.
    fn refuse(&mut self, slot: Box<Slot>, error: ChainError) {
        self.shared.counters.malformed.add_one();
        if let Some(unmentioned) = self.complaints.may_complain() {
            let index = self.shared.index();
            tracing::warn!(
                "{index}: a malformed request: {error} ({unmentioned} more since the last report)"
            );
        }
        let written = slot.id().map_or(0, |id| slot.write_header(error_header(id, Errno::EIO)));
        self.shared.complete(slot, written);
    }

    /// The ring makes no sense any more, so nothing in it can be believed: stop, and leave the rest to the VMM.
    fn break_down(&mut self, broken: RingBroken) {
        tracing::error!("{}: {broken}; the queue is stopped", self.shared.index());
        self.shared.end();
        self.shared.signal_error();
    }

    fn wait(&mut self) {
        if std::mem::take(&mut self.may_nap) && !self.shared.nap.is_zero() {
            self.sleep(Some(self.shared.nap));
            return;
        }
        self.shared.announce_now();
        let next = self.next as u16;
        let (ring, stopping) = (&self.shared.ring, || self.shared.is_stopping());
        if self.look.finds(|| ring.available_index() != next, stopping) {
            return;
        }
        // Whether the guest was asked before or after it looked, one of us notices: see `enable_kicks`.
        if !self.shared.enable_kicks(next) {
            let kicked = self.sleep(None);
            self.shared.counters.wake_ups.add_one();
            self.look.woken();
            if kicked && self.shared.ring.available_index() == next {
                self.suspect_memory();
            }
            // Memory may have been taken away meanwhile; not to be the one who keeps it mapped.
            self.refresh_map();
        }
        self.shared.disable_kicks();
    }

    /// A VMM that forgot to share its guest's memory maps a copy of its own, and passes on the notifications of
    /// requests that only the guest can see.
    fn suspect_memory(&mut self) {
        let EmptyKicks::Count(count) = &mut self.empty_kicks else { return };
        *count += 1;
        if *count == EMPTY_KICKS_SUSPICIOUS {
            let index = self.shared.index();
            tracing::warn!(
                "{index}: the guest notifies us of requests that are not there; {NO_SHARED_MEMORY}"
            );
            self.shared.empty_handed.store(true, Ordering::Relaxed);
        }
    }

    /// Sleeps until woken, or until the time is up; says whether it was the guest who did it.
    fn sleep(&mut self, timeout: Option<Duration>) -> bool {
        let kick = self.shared.kick.lock().clone();
        let kicked = match &kick {
            Kick::Event(fd) => self.sleeper.sleep(Some(fd), timeout),
            Kick::Polling => self.sleeper.sleep(None, Some(LOOK_WITHOUT_KICK)),
        };
        if kicked == Readiness::Broken {
            tracing::warn!("{}: the VMM closed the kick; looking for requests instead", self.shared.index());
            *self.shared.kick.lock() = Kick::Polling;
        }
        kicked == Readiness::Readable
    }
}

impl Drop for DeviceQueue {
    fn drop(&mut self) {
        self.shared.set_position(self.next);
        self.shared.end();
    }
}

/// Notifications without a request.
#[derive(Debug)]
enum EmptyKicks {
    Count(u32),
    NoLongerCounted,
}

enum Taken {
    Request(RingExchange),
    Malformed,
    Nothing,
}

/// A ring that contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum RingBroken {
    #[error("the available index jumped from {from} to {to}, further than the ring is long")]
    IndexJumped { from: u16, to: u16 },
    #[error("the available ring names descriptor {0}, which does not exist")]
    Head(u16),
    #[error("more requests are available than the ring has room for, beside those in flight")]
    TooManyInFlight,
}

/// Keeps a guest that sends nonsense from filling the log.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    unmentioned: u64,
}

impl Complaints {
    /// Whether to complain now: then how many were not mentioned since the last time.
    fn may_complain(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            self.unmentioned += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.unmentioned))
    }
}
