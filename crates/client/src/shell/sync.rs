//! Sync, as the promise has it: flush, cut, wait, gather errors, SYNCFS to every superblock, the first error.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ashore_barrier::{Cut, WaitError};
use ashore_wire::abi::{SYNCFS_COMPLETE, SyncfsIn};
use ashore_wire::{Errno, NodeId, Opcode};

use super::Mount;
use super::connection::Reply;
use super::inodes::Inode;
use super::message::Outgoing;
use super::patience::Patience;
use super::writeback::IfHeldUp;
use crate::core::rounds::{Action, Event, Round, Turn};
use crate::mutant::{self, Mutant};
use crate::options::SyncUnsupported;
use crate::primitives::Instant;
use crate::primitives::atomic::Ordering;

impl Mount {
    /// Makes everything stable that was changed before this call. Errors of writes stand in [`Mount::errors`] when
    /// it returns, whatever it returns; the caller has the cursor to read them with.
    pub(crate) fn sync(self: &Arc<Self>, patience: &Patience) -> Result<(), Errno> {
        if self.options.read_only || self.unmounted.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut rounds = self.rounds.lock();
        let arrival = rounds.arrive();
        loop {
            match rounds.turn(arrival) {
                Turn::Served => break,
                Turn::Wait => patience.wait(&self.round_ended, &mut rounds)?,
                Turn::Lead => {
                    drop(rounds);
                    let led = self.lead_round(patience);
                    rounds = self.rounds.lock();
                    match led {
                        Ok(()) => rounds.finish(),
                        Err(_) => rounds.abandon(),
                    }
                    self.round_ended.notify_all();
                    led?;
                }
            }
        }
        drop(rounds);
        if self.syncfs_missing.load(Ordering::Acquire) { self.unsupported() } else { Ok(()) }
    }

    /// What a sync that the server has no request for returns.
    pub(crate) fn unsupported(&self) -> Result<(), Errno> {
        match self.options.sync_unsupported {
            SyncUnsupported::Error => Err(Errno::ENOSYS),
            SyncUnsupported::Success => Ok(()),
        }
    }

    /// One round. Fails only if nobody was served: the connection has ended or patience has.
    fn lead_round(self: &Arc<Self>, patience: &Patience) -> Result<(), Errno> {
        let mut round = Round::new();
        let mut cut = None;
        let mut event = Event::Begun;
        loop {
            event = match round.apply(event) {
                Action::Flush => {
                    if !mutant::on(Mutant::NothingFlushed) {
                        self.flush_all(patience)?;
                    }
                    Event::Flushed
                }
                Action::Cut => {
                    cut = Some(self.barrier.cut());
                    Event::WasCut
                }
                Action::Wait => {
                    let cut = cut.take().expect("a round cuts before it waits");
                    if !mutant::on(Mutant::NothingAwaited) {
                        self.wait_for(cut, patience)?;
                    }
                    Event::Settled
                }
                Action::Syncfs => {
                    self.sync_superblocks(patience)?;
                    Event::Answered
                }
                Action::Done => return Ok(()),
            };
        }
    }

    /// Starts all that is dirty on its way. Inodes that hold us up (a truncate under way, a page being written
    /// again) are left for the end, so that they do not hold up the others.
    fn flush_all(self: &Arc<Self>, patience: &Patience) -> Result<(), Errno> {
        let mut left = VecDeque::new();
        for inode in self.dirty_inodes() {
            if self.start_runs(&inode, 0..u64::MAX, IfHeldUp::Skip, patience)? {
                self.want_times(&inode);
            } else {
                left.push_back(inode);
            }
        }
        for inode in left {
            self.flush_inode(&inode, 0..u64::MAX, patience)?;
            self.want_times(&inode);
        }
        Ok(())
    }

    fn wait_for(&self, cut: Cut, patience: &Patience) -> Result<(), Errno> {
        self.connection.attend(&mut || cut.outcome().is_some() || patience.check().is_err());
        loop {
            let waited = match patience.next_look() {
                None => cut.wait().map_err(WaitError::from),
                Some(look) => cut.wait_timeout(
                    look.saturating_duration_since(Instant::now()).max(Duration::from_micros(1)),
                ),
            };
            match waited {
                Ok(()) => return self.connection.check_before_sync(),
                Err(WaitError::TimedOut) => patience.check()?,
                Err(_) => return Err(Errno::ENOTCONN),
            }
        }
    }

    /// SYNCFS to every superblock at once, each with the node of its own root.
    fn sync_superblocks(self: &Arc<Self>, patience: &Patience) -> Result<(), Errno> {
        if self.syncfs_missing.load(Ordering::Acquire) {
            return Ok(());
        }
        let roots: Vec<NodeId> = self.superblocks.lock().iter().map(|root: &Arc<Inode>| root.node).collect();
        let replies: Vec<Reply> = roots
            .into_iter()
            .map(|root| {
                let request =
                    Outgoing::new(Opcode::Syncfs, root).with(&SyncfsIn { padding: SYNCFS_COMPLETE });
                let errors = Arc::clone(self);
                // The error goes into the log, and from there to every mount handle: whoever shares this round, or
                // comes later, hears of it.
                self.ask(request, None, move |answer| {
                    match answer {
                        Err(Errno::ENOSYS) => errors.syncfs_missing.store(true, Ordering::Release),
                        Err(errno) => errors.errors.lock().record(errno),
                        Ok(_) => {}
                    }
                    answer.map(|_| ())
                })
            })
            .collect();
        let mut gone = Ok(());
        for reply in replies {
            match self.wait_reply(reply, patience)? {
                Err(errno) if self.connection.has_ended() => gone = Err(errno),
                _ => {}
            }
        }
        gone
    }
}
