//! Writing back: dirty pages go to the server in runs.
//!
//! This file and [`super::connection`] hold the two orders that carry everything. Here: [`Mount::send_run_at`]
//! enters the barrier before the pages stop being dirty. There: a ticket is dropped after the result was recorded; a
//! run takes its own along, because an answer need not be its end (see [`Mount::run_answered`]).

use std::ops::Range;
use std::sync::Arc;

use ashore_barrier::Ticket;
use ashore_wire::abi::{AttrOut, SetattrIn, WriteIn, WriteOut};
use ashore_wire::flags::{SetattrValid, WriteFlags};
use ashore_wire::{Errno, Opcode};

use super::Mount;
use super::connection::IfFull;
use super::flusher::Chore;
use super::inodes::{Inode, Locked, OpenHandle};
use super::message::{Answer, Outgoing, Segment};
use super::patience::Patience;
use crate::core::inode::{Run, Serial};
use crate::core::pages::PAGE_SIZE;
use crate::mutant::{self, Mutant};
use crate::primitives::MutexGuard;
use crate::primitives::atomic::Ordering;

/// What to do about pages that cannot be sent at once: the gate is closed, or their last write is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IfHeldUp {
    /// Wait until they can.
    Wait,
    /// Leave them for later.
    Skip,
}

/// What became of an attempt to send a page.
enum Attempt {
    /// It was sent, with others up to here.
    SentUpTo(u64),
    /// Somebody else has sent it, so it has entered the barrier.
    NotDirty,
    /// It was left for later.
    Skipped,
}

/// A run in flight, and what it holds until it is answered.
pub(crate) struct SentRun {
    inode: Arc<Inode>,
    handle: Arc<OpenHandle>,
    run: Run,
    /// Bytes the server has taken already, in answers that were short.
    taken: usize,
}

impl Mount {
    /// Starts writing back all pages of `range` that are dirty now, those being written right now included: their
    /// writes are answered before they are sent again. When this returns, each of them has entered the barrier.
    /// Pages dirtied meanwhile may be left out, so that an endless writer holds up nobody.
    pub(crate) fn flush_inode(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
        patience: &Patience,
    ) -> Result<(), Errno> {
        // The first pass starts all that can be started, the second waits for the rest.
        if !self.start_runs(inode, range.clone(), IfHeldUp::Skip, patience)? {
            self.start_runs(inode, range, IfHeldUp::Wait, patience)?;
        }
        Ok(())
    }

    /// Starts writing back what is dirty in `range`: goes over it once, from its start to the last page that is
    /// dirty now. `false` if a page was left for later.
    pub(crate) fn start_runs(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
        if_held_up: IfHeldUp,
        patience: &Patience,
    ) -> Result<bool, Errno> {
        let end = range.end.min(inode.lock().core.pages.dirty_end());
        let mut next = range.start;
        let mut nothing_left = true;
        loop {
            let Some(index) = inode.lock().core.pages.first_dirty(next..end) else { return Ok(nothing_left) };
            self.slots.acquire(patience)?;
            let attempt = self.send_from(inode, index..end, if_held_up, patience);
            next = match attempt {
                Ok(Attempt::SentUpTo(sent)) => sent,
                _ => {
                    self.slots.release();
                    nothing_left &= matches!(attempt?, Attempt::NotDirty);
                    index + 1
                }
            };
        }
    }

    /// Sends the run that begins at the start of `range`, once it can be sent. The caller has a place in
    /// [`Mount::slots`], which goes with the run.
    fn send_from(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
        if_held_up: IfHeldUp,
        patience: &Patience,
    ) -> Result<Attempt, Errno> {
        let only = range.start..range.start + 1;
        let mut locked = inode.lock();
        loop {
            let pages = &locked.core.pages;
            if pages.first_dirty(only.clone()).is_none() {
                return Ok(Attempt::NotDirty);
            }
            if locked.core.may_write_back() && pages.first_redirtied(only.clone()).is_none() {
                return Ok(self.send_run_at(inode, locked, range));
            }
            if if_held_up == IfHeldUp::Skip {
                return Ok(Attempt::Skipped);
            }
            patience.wait(&inode.changed, &mut locked)?;
        }
    }

    /// Sends the run at the start of `range`, which can be sent.
    fn send_run_at(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        mut locked: MutexGuard<'_, Locked>,
        range: Range<u64>,
    ) -> Attempt {
        let Some(handle) = locked.write_handles.last().cloned() else {
            // Closing a file writes its pages back first. Should that ever be wrong, a sync must not say otherwise.
            tracing::error!("{}: dirty, and open for writing nowhere", inode.node);
            self.errors.lock().record(Errno::EIO);
            return Attempt::Skipped;
        };
        // First order: enter before the page stops being dirty. A sync that sees the page clean finds it in the
        // barrier.
        let early = (!mutant::on(Mutant::EntersAfterClean)).then(|| self.barrier.enter());
        let run = locked.core.begin_run(range, self.agreed().write_pages).expect("the caller has looked");
        drop(locked);
        let ticket = early.unwrap_or_else(|| self.barrier.enter());
        self.dirty_pages.fetch_sub(run.pages.len(), Ordering::Relaxed);
        self.writeback_pages.fetch_add(run.pages.len(), Ordering::Relaxed);
        let end = run.indices.end;
        self.send_run(SentRun { inode: Arc::clone(inode), handle, run, taken: 0 }, ticket);
        Attempt::SentUpTo(end)
    }

    /// Sends what the server has not yet taken of a run.
    pub(crate) fn send_run(self: &Arc<Self>, sent: SentRun, ticket: Ticket) {
        let request = sent.request();
        let mount = Arc::clone(self);
        self.send(request, None, Box::new(move |answer| mount.run_answered(sent, ticket, answer)));
    }

    fn run_answered(self: &Arc<Self>, mut sent: SentRun, ticket: Ticket, answer: Result<Answer, Errno>) {
        let skipped = sent.skipped();
        let result = match answer
            .and_then(|answer| answer.read::<WriteOut>())
            .map(|out| skipped + out.size as usize)
        {
            Ok(taken) if taken == sent.run.length => Ok(()),
            Ok(taken) if taken > sent.taken && taken < sent.run.length => {
                // The host took a part. The rest is the same change, and keeps its place in the barrier: a ticket
                // entered now would be later than the cut of a sync that waits for this one.
                sent.taken = taken;
                self.chores.push(Chore::SendOn(sent, ticket));
                return;
            }
            Ok(_) => Err(Errno::EIO),
            Err(errno) => Err(errno),
        };
        let mut ticket = Some(ticket);
        if mutant::on(Mutant::LeavesBeforeRecorded) {
            ticket = None;
        }
        let result = if mutant::on(Mutant::WriteErrorForgotten) { Ok(()) } else { result };
        if let Err(errno) = result {
            tracing::warn!("{}: data at {} was not written: {errno}", sent.inode.node, sent.run.offset);
            self.errors.lock().record(errno);
        }
        let mut locked = sent.inode.lock();
        locked.core.run_answered(&sent.run, result);
        if result.is_ok() && locked.stream.sent(&sent.run.indices) {
            self.drop_behind(&mut locked, sent.run.indices.clone());
        }
        self.writeback_pages.fetch_sub(sent.run.pages.len(), Ordering::Relaxed);
        let times_due = locked.core.times_due();
        self.maybe_off_dirty_list(&sent.inode, &mut locked);
        drop(locked);
        if times_due {
            self.send_times(&sent.inode, IfFull::Exceed);
        }
        // Second order: the result is recorded, now the ticket may go.
        drop(ticket);
        sent.inode.changed.notify_all();
        self.slots.release();
        self.ease_pressure();
        self.send_what_was_held_up();
    }

    /// Pages that were written to while they were in flight could not be sent on. Now they can, if there are too many.
    fn send_what_was_held_up(&self) {
        let (dirty, in_flight) =
            (self.dirty_pages.load(Ordering::Relaxed), self.writeback_pages.load(Ordering::Relaxed));
        if dirty > self.dirty_limit || dirty > self.background_limit && in_flight == 0 {
            self.chores.wake();
        }
    }

    /// The times of this inode are to be sent once no write of it is in flight. They enter the barrier now.
    pub(crate) fn want_times(self: &Arc<Self>, inode: &Arc<Inode>) {
        let mut locked = inode.lock();
        if locked.times.is_some() || !locked.core.times_behind() {
            return;
        }
        let ticket = self.barrier.enter();
        let serial = locked.core.begin_change();
        locked.times = Some((ticket, serial));
        locked.core.want_times();
        let due = locked.core.times_due();
        drop(locked);
        if due {
            self.send_times(inode, IfFull::Wait);
        }
    }

    /// Sends the times, if they are wanted and nothing is in the way. Also called when a WRITE has been answered.
    fn send_times(self: &Arc<Self>, inode: &Arc<Inode>, if_full: IfFull) {
        let mut locked = inode.lock();
        if !locked.core.times_due() {
            return;
        }
        let (ticket, serial) = locked.times.take().expect("they were wanted with a ticket");
        let (mtime, ctime) = locked.core.take_times();
        let handle = locked.write_handles.last().cloned();
        drop(locked);
        inode.changed.notify_all();
        let mut valid = SetattrValid::MTIME | SetattrValid::CTIME;
        if handle.is_some() {
            valid |= SetattrValid::FH;
        }
        let values = SetattrIn {
            valid: valid.bits(),
            fh: handle.as_ref().map_or(0, |handle| handle.handle.0),
            mtime: mtime.seconds,
            mtimensec: mtime.nanoseconds,
            ctime: ctime.seconds,
            ctimensec: ctime.nanoseconds,
            ..Default::default()
        };
        let request = Outgoing::new(Opcode::Setattr, inode.node).with(&values).expect::<AttrOut>();
        let (mount, held) = (Arc::clone(self), Arc::clone(inode));
        let answered = Box::new(move |answer: Result<Answer, Errno>| {
            mount.times_answered(
                &held,
                serial,
                answer.and_then(|answer| answer.read::<AttrOut>()).map(|_| ()),
            );
            drop(handle);
        });
        self.send_or(if_full, request, Some(ticket), answered);
    }

    fn times_answered(&self, inode: &Arc<Inode>, serial: Serial, result: Result<(), Errno>) {
        let mut locked = inode.lock();
        if let Err(errno) = result {
            tracing::warn!("{}: times were not stored: {errno}", inode.node);
            self.errors.lock().record(errno);
            locked.core.times_failed(errno);
        }
        locked.core.end_change(serial);
        self.maybe_off_dirty_list(inode, &mut locked);
        drop(locked);
        inode.changed.notify_all();
    }

    /// Waits until every change of this inode that has begun before now is settled.
    pub(crate) fn wait_settled(&self, inode: &Inode, patience: &Patience) -> Result<(), Errno> {
        let mut locked = inode.lock();
        let cut = locked.core.cut_here();
        while !locked.core.settled_before(cut) {
            patience.wait(&inode.changed, &mut locked)?;
        }
        Ok(())
    }
}

impl SentRun {
    /// Bytes left out of the next request. A short answer need not end at a page, but the data of a WRITE starts
    /// with one: the rest is sent from the page it is in, and a few bytes twice, which changes nothing.
    fn skipped(&self) -> usize {
        self.taken / PAGE_SIZE * PAGE_SIZE
    }

    fn request(&self) -> Outgoing {
        let skipped = self.skipped();
        let first = skipped / PAGE_SIZE;
        let length = self.run.length - skipped;
        let write = WriteIn {
            fh: self.handle.handle.0,
            offset: self.run.offset + skipped as u64,
            size: length as u32,
            write_flags: WriteFlags::CACHE.bits(),
            ..Default::default()
        };
        let mut left = length;
        let mut payload = Vec::with_capacity(self.run.pages.len() - first);
        for page in &self.run.pages[first..] {
            let here = left.min(PAGE_SIZE);
            payload.push(Segment { page: *page, length: here as u32 });
            left -= here;
        }
        Outgoing::new(Opcode::Write, self.inode.node).with(&write).payload(payload).expect::<WriteOut>()
    }
}
