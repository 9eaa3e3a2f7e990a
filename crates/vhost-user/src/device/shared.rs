//! What the thread of a queue and its exchanges have in common: the used ring, and who waits for it.
//!
//! ```text
//!     taken ------------------------------------------+      by the queue's thread
//!                                                     v
//!     used ring  | c0 c1 c2 c3 c4 c5 |  in flight: taken - finished, at most the ring's size
//!                           ^        ^
//!                       announced   published = finished       by any thread, under the lock
//! ```
//!
//! A completion is published at once, because a guest that is looking anyway can go on with it. It is *announced*,
//! which is what costs (a write to an eventfd here, an interrupt there), once a batch if it was made by the
//! queue's own thread, which goes on to the next request; and at once if it was made by another thread.
//!
//! A batch ends when the queue is empty, after [`BATCH_MAX`] completions or [`BATCH_DELAY_MAX`], and before a
//! request that may take much longer than what is in it (see [`Shared::announce_before`]). So a completion waits
//! at most for one request of its own kind.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use ashore_wire::seam::Backlog;
use parking_lot::{Condvar, Mutex};

use super::QueueIndex;
use super::backlog::DeviceBacklog;
use super::counters::Counters;
use super::dirty_log::Marks;
use super::exchange::{Kind, Slot};
use super::fds::{self, Wake};
use super::inflight::Inflight;
use super::ring::Ring;
use crate::memory::Memory;

/// Completions announced together at most.
const BATCH_MAX: u16 = 16;
/// How long a completion waits to be announced with others, unless the request after it takes longer.
const BATCH_DELAY_MAX: Duration = Duration::from_micros(50);
/// Slots kept for the next requests; more than this are in use only when many requests wait on other threads.
const SLOTS_KEPT_MAX: usize = 64;
/// In `stop_at`: no index of a ring.
const NOTHING_MORE: u32 = u32::MAX;
/// How often a drain that takes long says so.
const DRAIN_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// A queue while it runs.
#[derive(Debug)]
pub(crate) struct Shared {
    index: QueueIndex,
    pub(crate) ring: Ring,
    pub(crate) memory: Arc<Memory>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) poll_us: u32,
    /// How long the thread lets requests gather once it has served one.
    pub(crate) nap: Duration,
    /// Set where notifications come and requests do not.
    pub(crate) empty_handed: Arc<AtomicBool>,
    backlog: Arc<DeviceBacklog>,
    used: Mutex<Used>,
    drained: Condvar,
    /// Everything before this has been taken, and whoever took it came back. Its low 16 bits are an index of the
    /// available ring.
    position: AtomicU64,
    stopping: AtomicBool,
    /// What is to be taken before the thread stops: up to this index of the available ring, or nothing more.
    stop_at: AtomicU32,
    /// The thread takes nothing any more.
    ended: AtomicBool,
    /// There are marks to make; see [`Shared::mark_wish`].
    marking: AtomicBool,
    pub(crate) kick: Mutex<Kick>,
    /// Interrupts the thread's sleep, for whatever reason.
    pub(crate) wake: Wake,
    error: Mutex<Option<OwnedFd>>,
}

/// How the guest tells us of new requests.
#[derive(Clone, Debug)]
pub(crate) enum Kick {
    /// It does not: we have to look.
    Polling,
    /// By this eventfd.
    Event(Arc<OwnedFd>),
}

/// What a queue is made of.
pub(crate) struct Parts {
    pub(crate) index: QueueIndex,
    pub(crate) ring: Ring,
    pub(crate) base: u16,
    pub(crate) memory: Arc<Memory>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) backlog: Arc<DeviceBacklog>,
    pub(crate) kick: Kick,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) error: Option<OwnedFd>,
    pub(crate) poll_us: u32,
    pub(crate) nap: Duration,
    pub(crate) empty_handed: Arc<AtomicBool>,
    pub(crate) inflight: Option<Inflight>,
    pub(crate) marks: Option<Marks>,
}

#[derive(Debug)]
struct Used {
    /// Index of the next completion; all before it are published.
    next: u16,
    /// All completions before it were announced, or the guest did not want to hear of them.
    announced: u16,
    /// Since when there is something to announce.
    waiting_since: Option<Instant>,
    /// Whether a quick one is among what is to be announced.
    quick_waits: bool,
    /// The guest's interrupt; none if it looks by itself.
    call: Option<OwnedFd>,
    taken: u64,
    finished: u64,
    /// Where the VMM wants to have it.
    inflight: Option<Inflight>,
    /// Where the VMM wants to hear of what is written.
    marks: Option<Marks>,
    /// Who defers announcements, because he comes back to make them.
    worker: Option<ThreadToken>,
    #[expect(clippy::vec_box, reason = "a slot is large, and goes from thread to thread as a pointer")]
    slots: Vec<Box<Slot>>,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> std::io::Result<Shared> {
        let Parts { index, ring, base, memory, counters, backlog, kick, call, error, poll_us, .. } = parts;
        let Parts { empty_handed, inflight, marks, nap, .. } = parts;
        let marking = AtomicBool::new(marks.is_some());
        let next = ring.used_index();
        let used = Used {
            next,
            announced: next,
            waiting_since: None,
            quick_waits: false,
            call,
            taken: 0,
            finished: 0,
            inflight,
            marks,
            worker: None,
            slots: Vec::with_capacity(SLOTS_KEPT_MAX),
        };
        Ok(Shared {
            index,
            ring,
            memory,
            counters,
            poll_us,
            nap,
            empty_handed,
            backlog,
            used: Mutex::new(used),
            drained: Condvar::new(),
            position: AtomicU64::new(u64::from(base)),
            stopping: AtomicBool::new(false),
            stop_at: AtomicU32::new(NOTHING_MORE),
            ended: AtomicBool::new(false),
            marking,
            kick: Mutex::new(kick),
            wake: Wake::new()?,
            error: Mutex::new(error),
        })
    }

    pub(crate) fn index(&self) -> QueueIndex {
        self.index
    }

    pub(crate) fn backlog(&self) -> Arc<dyn Backlog> {
        self.backlog.clone()
    }

    /// Room to read the request at `head` into, or `None` if the guest has made more available than its ring can hold.
    pub(crate) fn begin(&self, head: u16) -> Option<Box<Slot>> {
        let mut used = self.used.lock();
        if used.taken - used.finished >= u64::from(self.ring.size()) {
            return None;
        }
        used.taken += 1;
        if let Some(inflight) = &mut used.inflight {
            inflight.taken(head);
        }
        if used.waiting_since.is_some_and(|since| since.elapsed() >= BATCH_DELAY_MAX) {
            self.announce(&mut used);
        }
        Some(used.slots.pop().unwrap_or_default())
    }

    /// Gives a request back to the guest, with `written` bytes of reply.
    pub(crate) fn complete(&self, mut slot: Box<Slot>, written: u32) {
        let quick = slot.kind() == Kind::Quick;
        let mut used = self.used.lock();
        if let Some(inflight) = &used.inflight {
            inflight.giving_back(slot.chain);
        }
        self.ring.write_used(used.next, slot.chain, written);
        used.next = used.next.wrapping_add(1);
        self.ring.publish(used.next);
        if let Some(inflight) = &used.inflight {
            inflight.given_back(slot.chain, used.next);
        }
        if let Some(marks) = &used.marks {
            self.mark(marks, &slot, used.next.wrapping_sub(1), written > 0);
        }
        used.finished += 1;
        slot.recycle();
        if used.slots.len() < SLOTS_KEPT_MAX {
            used.slots.push(slot);
        }
        let batch_full = used.next.wrapping_sub(used.announced) >= BATCH_MAX;
        if batch_full || used.worker != Some(ThreadToken::of_this_thread()) {
            self.announce(&mut used);
        } else {
            used.quick_waits |= quick;
            used.waiting_since.get_or_insert_with(Instant::now);
        }
        if used.taken == used.finished {
            self.drained.notify_all();
        }
    }

    /// Marks what was written for a request, and for its completion at `index`.
    #[cold]
    fn mark(&self, marks: &Marks, slot: &Slot, index: u16, replied: bool) {
        if let Some(log) = marks.data() {
            slot.mark_written(log, replied);
        }
        marks.used_ring(self.ring.used_element(index));
        marks.used_ring(Ring::USED_HEAD);
    }

    /// From now on other marks are made, or none. When this returns, all that is written is either marked so, or was in
    /// memory before.
    pub(crate) fn set_marks(&self, marks: Option<Marks>) {
        let mut used = self.used.lock();
        self.marking.store(marks.is_some(), Ordering::SeqCst);
        used.marks = marks;
        drop(used);
        fence(Ordering::SeqCst);
    }

    /// Asks the guest to notify us of the request at `index`. Returns whether it is there already.
    pub(crate) fn enable_kicks(&self, index: u16) -> bool {
        let there = self.ring.enable_kicks(index);
        self.mark_wish();
        there
    }

    /// Tells the guest that we are looking by ourselves.
    pub(crate) fn disable_kicks(&self) {
        if self.ring.disable_kicks() {
            fence(Ordering::SeqCst);
            self.mark_wish();
        }
    }

    /// What we wish of the guest is written without the lock. A full fence stands between that and this look, and another
    /// one between the switch and what the VMM reads after it: so either we see that marks are to be made, or the VMM sees
    /// what was written.
    fn mark_wish(&self) {
        if self.marking.load(Ordering::Relaxed)
            && let Some(marks) = &self.used.lock().marks
        {
            marks.used_ring(self.ring.used_wish());
        }
    }

    /// Announces what must not wait for the request that comes now: what was quick does not wait for data to be
    /// moved, and nothing waits for what is slow. Data waits for data, within the limits of a batch.
    pub(crate) fn announce_before(&self, kind: Kind) {
        if kind == Kind::Quick {
            return;
        }
        let mut used = self.used.lock();
        if used.quick_waits || kind == Kind::Slow {
            self.announce(&mut used);
        }
    }

    /// Announces what waits to be announced.
    pub(crate) fn announce_now(&self) {
        self.announce(&mut self.used.lock());
    }

    fn announce(&self, used: &mut Used) {
        let (old, new) = (used.announced, used.next);
        used.announced = new;
        used.waiting_since = None;
        used.quick_waits = false;
        if old == new || !self.ring.wants_notification(old, new) {
            return;
        }
        if let Some(call) = &used.call {
            fds::signal(call.as_fd());
            self.counters.notifications.add_one();
        }
    }

    /// From now on the calling thread comes back after each request, to announce.
    pub(crate) fn set_worker(&self) {
        self.used.lock().worker = Some(ThreadToken::of_this_thread());
    }

    /// Replaces the guest's interrupt. What was announced to the old one may have been lost, so the new one is
    /// rung once; a guest with nothing to do goes back to sleep.
    pub(crate) fn set_call(&self, call: Option<OwnedFd>) {
        let mut used = self.used.lock();
        used.call = call;
        if let Some(call) = &used.call {
            fds::signal(call.as_fd());
        }
    }

    pub(crate) fn set_kick(&self, kick: Kick) {
        *self.kick.lock() = kick;
        self.wake.set();
    }

    pub(crate) fn set_error(&self, error: Option<OwnedFd>) {
        *self.error.lock() = error;
    }

    /// Tells the VMM that the ring is broken.
    pub(crate) fn signal_error(&self) {
        if let Some(error) = &*self.error.lock() {
            fds::signal(error.as_fd());
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::SeqCst)
    }

    /// The thread came back: everything before `position` was taken and is in good hands. See [`DeviceBacklog`]
    /// for the order.
    pub(crate) fn set_position(&self, position: u64) {
        if self.position.load(Ordering::Relaxed) != position {
            self.position.swap(position, Ordering::SeqCst);
            self.backlog.moved();
        }
    }

    /// Somebody waits for what is available here: its thread takes it now if it naps.
    pub(crate) fn end_nap(&self) {
        if !self.nap.is_zero() {
            self.wake.set();
        }
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.set();
    }

    /// Stops when all that is available now has been taken: another server may go on with the queue, and what a sync that is
    /// under way here has to wait for must not be left to it.
    pub(crate) fn stop_after_what_is_available(&self) {
        self.stop_at.store(u32::from(self.ring.available_index()), Ordering::SeqCst);
        self.stop();
    }

    /// Whether what comes next is to be taken though the queue is being stopped.
    pub(crate) fn has_to_catch_up(&self, next: u16) -> bool {
        let stop_at = self.stop_at.load(Ordering::SeqCst);
        let left = (stop_at as u16).wrapping_sub(next);
        stop_at != NOTHING_MORE && (1..=self.ring.size()).contains(&left)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Nothing is taken any more; what is still available belongs to whoever starts the ring again.
    pub(crate) fn end(&self) {
        let mut used = self.used.lock();
        self.announce(&mut used);
        used.worker = None;
        drop(used);
        self.ended.store(true, Ordering::SeqCst);
        self.backlog.moved();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Waits until everything taken has been finished.
    pub(crate) fn drain(&self) {
        let mut used = self.used.lock();
        while used.finished < used.taken {
            let timed_out = self.drained.wait_for(&mut used, DRAIN_REPORT_INTERVAL).timed_out();
            if timed_out {
                let left = used.taken - used.finished;
                tracing::warn!("{}: still waiting for {left} requests to finish before it stops", self.index);
            }
        }
    }
}

/// Tells the threads of this moment apart, for less than the counted reference that `thread::current` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ThreadToken(usize);

impl ThreadToken {
    fn of_this_thread() -> ThreadToken {
        // Every live thread has its own copy, so its own address.
        thread_local!(static PLACE: u8 = const { 0 });
        PLACE.with(|place| ThreadToken((place as *const u8).addr()))
    }
}
