//! The thread behind the scenes: writes back what has become old or too much, does small chores that must not be
//! done where they come up, and gives up on a server that no longer answers.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ashore_barrier::Ticket;
use ashore_wire::abi::{BatchForgetIn, ForgetIn, ForgetOne, ReleaseIn};
use ashore_wire::{FileHandle, NodeId, Opcode};
use zerocopy::IntoBytes;

use super::Mount;
use super::inodes::Inode;
use super::message::Outgoing;
use super::patience::Patience;
use super::writeback::{IfHeldUp, SentRun};
use crate::core::inode::Moment;
use crate::primitives::atomic::Ordering;
use crate::primitives::{Condvar, Instant, Mutex};

/// How often the thread looks at the age of dirty pages, while there are any.
const LOOK: Duration = Duration::from_millis(250);
/// Looks at unanswered requests within the time-out of one.
const LOOKS_PER_TIMEOUT: u32 = 4;
/// How long it waits for a place to write in before it looks after its other duties.
const PATIENCE: Duration = Duration::from_millis(50);
/// Inodes given back in one BATCH_FORGET, at most.
const FORGETS_PER_BATCH: usize = 128;

/// Something to be done soon, by a thread that may wait.
pub(crate) enum Chore {
    /// These lookups are given back.
    Forget(NodeId, u64),
    /// Nobody uses this handle any more.
    Release { node: NodeId, handle: FileHandle, flags: u32, directory: bool },
    /// The server took a part of a run: the rest follows.
    SendOn(SentRun, Ticket),
    /// Drops what would send something when dropped.
    Drop(Vec<Arc<Inode>>),
}

/// Chores waiting. Bounded by what makes them: inodes and handles known, writes in flight.
#[derive(Default)]
pub(crate) struct Chores {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    chores: VecDeque<Chore>,
    woken: bool,
    stop: bool,
}

impl Chores {
    /// Adds one.
    pub(crate) fn push(&self, chore: Chore) {
        let mut waiting = self.waiting.lock();
        waiting.chores.push_back(chore);
        drop(waiting);
        self.more.notify_one();
    }

    /// There is reason to look at what is dirty.
    pub(crate) fn wake(&self) {
        self.waiting.lock().woken = true;
        self.more.notify_one();
    }

    /// The thread is to end, once the chores are done.
    pub(crate) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.more.notify_one();
    }

    /// What there is to do, after waiting for it for at most this long (`None`: until there is). The second value
    /// says that the thread is to end.
    fn next(&self, limit: Option<Duration>) -> (VecDeque<Chore>, bool) {
        let mut waiting = self.waiting.lock();
        if waiting.chores.is_empty() && !waiting.woken && !waiting.stop {
            match limit {
                Some(limit) => _ = self.more.wait_for(&mut waiting, limit),
                None => self.more.wait(&mut waiting),
            }
        }
        waiting.woken = false;
        (std::mem::take(&mut waiting.chores), waiting.stop)
    }
}

/// Runs until it is told to stop, or until the mount is gone.
pub(crate) fn run(mount: &Weak<Mount>) {
    let Some(chores) = mount.upgrade().map(|mount| Arc::clone(&mount.chores)) else { return };
    let mut limit = Some(LOOK);
    loop {
        let (todo, stop) = chores.next(limit);
        let Some(mount) = mount.upgrade() else { return };
        mount.do_chores(todo);
        if stop {
            return;
        }
        mount.write_back_what_is_due();
        mount.give_up_on_silence();
        limit = mount.next_look();
    }
}

impl Mount {
    /// How long this thread may sleep if nobody wakes it. Requests wake it neither when they are sent nor when they
    /// stay unanswered, so it looks at them several times within their time-out.
    fn next_look(&self) -> Option<Duration> {
        let silence = self.options.request_timeout.map(|timeout| timeout / LOOKS_PER_TIMEOUT);
        let clean = self.dirty_list.lock().is_empty();
        if clean { silence } else { Some(silence.map_or(LOOK, |silence| silence.min(LOOK))) }
    }

    fn do_chores(self: &Arc<Self>, chores: VecDeque<Chore>) {
        let mut forgets = Vec::new();
        for chore in chores {
            match chore {
                Chore::Forget(node, lookups) => forgets.push(ForgetOne { nodeid: node.0, nlookup: lookups }),
                Chore::Release { node, handle, flags, directory } => {
                    self.release(node, handle, flags, directory);
                }
                Chore::SendOn(run, ticket) => self.send_run(run, ticket),
                Chore::Drop(inodes) => drop(inodes),
            }
        }
        for batch in forgets.chunks(FORGETS_PER_BATCH) {
            self.forget(batch);
        }
    }

    fn release(self: &Arc<Self>, node: NodeId, handle: FileHandle, flags: u32, directory: bool) {
        let opcode = if directory { Opcode::Releasedir } else { Opcode::Release };
        let arguments = ReleaseIn { fh: handle.0, flags, ..Default::default() };
        // Nobody waits for the answer, and nobody could do anything about an error.
        self.send(Outgoing::new(opcode, node).with(&arguments), None, Box::new(|_| ()));
    }

    fn forget(self: &Arc<Self>, batch: &[ForgetOne]) {
        let request = match batch {
            [one] => {
                Outgoing::new(Opcode::Forget, NodeId(one.nodeid)).with(&ForgetIn { nlookup: one.nlookup })
            }
            _ => Outgoing::new(Opcode::BatchForget, NodeId(0))
                .with(&BatchForgetIn { count: batch.len() as u32, dummy: 0 })
                .with(batch.as_bytes()),
        };
        self.connection.send_without_reply(request);
    }

    /// Writes back inodes whose dirty pages are old, or all of them if there are too many dirty pages.
    fn write_back_what_is_due(self: &Arc<Self>) {
        let too_many = self.dirty_pages.load(Ordering::Relaxed) > self.background_limit;
        let age = self.options.writeback_age.as_nanos() as u64;
        let now = self.now();
        for inode in self.dirty_inodes() {
            let since = inode.lock().core.dirty_since();
            let old = since.is_none_or(|Moment(since)| now.0.saturating_sub(since) >= age);
            if !(too_many || old) || self.connection.has_ended() {
                continue;
            }
            let patience = Patience::at_most(PATIENCE);
            if self.start_runs(&inode, 0..u64::MAX, IfHeldUp::Skip, &patience) == Ok(true) {
                inode.lock().core.dirty_again_since(now);
            }
            if old {
                self.want_times(&inode);
            }
        }
    }

    /// Starts writing back what can be started without waiting for long.
    pub(crate) fn start_writeback(self: &Arc<Self>) {
        for inode in self.dirty_inodes() {
            // What could not be started now is for the thread behind the scenes.
            _ = self.start_runs(&inode, 0..u64::MAX, IfHeldUp::Skip, &Patience::at_most(PATIENCE));
        }
    }

    /// Ends a connection on which a request has stayed unanswered for too long.
    fn give_up_on_silence(&self) {
        let Some(timeout) = self.options.request_timeout else { return };
        if self.connection.oldest_sent().is_some_and(|sent| Instant::now() - sent > timeout) {
            tracing::error!(
                "the server has not answered a request for {timeout:?}: giving the connection up"
            );
            self.abort();
        }
    }
}
