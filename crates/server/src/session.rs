//! One client's session: what was agreed with it, and the way each of its requests goes.

use std::sync::Arc;
use std::time::Duration;

use ashore_barrier::{Barrier, Ticket};
use ashore_wire::abi::{InitIn, InitOut, OUT_HEADER_SIZE, OutHeader};
use ashore_wire::flags::{InitFlags, WriteFlags};
use ashore_wire::init::{self, Agreement, Implemented, Outcome};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Exchange, Payload, ReplyBody};
use ashore_wire::{Dialect, Errno, NodeId, Operation, ProtocolError, Reply, Request, RequestId};
use zerocopy::{FromBytes, IntoBytes};

use crate::dispatch::{self, Leave};
use crate::early::EarlySyncs;
use crate::filesystem::{FileSystem, Result};
use crate::mutant::{self, Mutant};
use crate::offload::Pools;
use crate::primitives::atomic::{AtomicU8, Ordering};
use crate::primitives::{Instant, Mutex};
use crate::sync::{Earlier, Syncs, Waiting};
use crate::sync_counts::{SyncCounters, SyncCounts};
use crate::wait::{LOCK_WAITS_MAX, Wait, Waits};
use crate::worker::Scratch;

/// How long to wait for queues to come past their marks before looking whether they have been stopped.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes in which `max_pages` of INIT counts.
const PAGE_SIZE: u32 = 4096;

const NEVER_ABORTED: &str = "nothing aborts the barriers of a session";

/// Features the server implements whatever the file system is.
const SERVER_FEATURES: InitFlags =
    InitFlags::ASYNC_READ.union(InitFlags::BIG_WRITES).union(InitFlags::MAX_PAGES).union(InitFlags::INIT_EXT);

/// What a session grants its client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in one READ or WRITE, at most.
    pub max_write: u32,
    /// Bytes the client may read ahead.
    pub max_readahead: u32,
    /// Background requests (write-back, read-ahead) the client may have under way.
    pub max_background: u16,
    /// Background requests above which the client holds back read-ahead and idle write-back. Equal to
    /// `max_background` at the largest value, so that a Linux client's flusher never skips a file because others
    /// are busy (measured on Linux 6.19.11 and 7.0: a sync returned without it).
    pub congestion_threshold: u16,
    /// How long WRITEs from the client's cache must have been quiet before a SYNCFS is carried out; zero: not at all.
    /// For Linux guests from 6.18.21, 6.19.11 and 7.0 on, which send SYNCFS before their data. Costs a client that was
    /// granted write-back, or that maps files, this much for each sync.
    pub early_sync_grace: Duration,
    /// Answer a SYNCFS that data from the client's cache followed with EIO, though all that came was synced: what else was to
    /// follow it nobody knows. Needs an `early_sync_grace`, during which it shows.
    pub refuse_early_syncs: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_write: 1 << 20,
            max_readahead: 4 << 20,
            max_background: u16::MAX,
            congestion_threshold: u16::MAX,
            early_sync_grace: Duration::from_millis(20),
            refuse_early_syncs: false,
        }
    }
}

/// A file system in service for one client.
pub struct Session<F> {
    filesystem: F,
    limits: Limits,
    state: AtomicState,
    /// The client's INIT, and its answer.
    greeting: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// Changes under way. Each enters when its request is taken.
    changes: Barrier,
    /// Those of them that threads of a pool carry on.
    carried: Barrier,
    pools: Pools,
    waits: Waits,
    syncs: Syncs,
    sync_counters: SyncCounters,
    early_syncs: EarlySyncs,
}

impl<F: FileSystem> Session<F> {
    /// Serves `filesystem` to one client at a time.
    pub fn new(filesystem: F, limits: Limits) -> Arc<Session<F>> {
        Arc::new(Session {
            filesystem,
            limits,
            state: AtomicState::default(),
            greeting: Mutex::default(),
            changes: Barrier::new(),
            carried: Barrier::new(),
            pools: Pools::default(),
            waits: Waits::default(),
            syncs: Syncs::default(),
            sync_counters: SyncCounters::default(),
            early_syncs: EarlySyncs::new(limits.early_sync_grace, limits.refuse_early_syncs),
        })
    }

    /// Goes on with a client of the process before this one, whose INIT this was, and was answered so.
    pub(crate) fn resume(&self, init: &[u8], answer: &[u8]) -> Result<(), ResumeError> {
        self.agree_again(init, answer, &self.implemented())
    }

    /// Agrees to an INIT by this table, if that comes to the answer that it had.
    fn agree_again(&self, init: &[u8], answer: &[u8], table: &Implemented) -> Result<(), ResumeError> {
        let request = Request::parse(init, 0, Dialect::default()).map_err(|_| ResumeError::NoInit)?;
        let Operation::Init { offer } = request.operation else { return Err(ResumeError::NoInit) };
        match init::negotiate(&offer, table) {
            Outcome::Agreed(reply, agreement) if reply.as_bytes() == answer => {
                self.greet(&offer, &agreement);
                *self.greeting.lock() = Some((init.to_vec(), answer.to_vec()));
                Ok(())
            }
            _ => Err(ResumeError::Differs),
        }
    }

    /// Goes on with a client of another server. What that one did not offer is not used with this client; what it did has to
    /// be had here.
    pub(crate) fn take_over(&self, init: &[u8], answer: &[u8]) -> Result<(), ResumeError> {
        let promised = InitOut::read_from_bytes(answer).map_err(|_| ResumeError::NoInit)?;
        let flags = InitFlags::from_bits_retain(u64::from(promised.flags2) << 32 | u64::from(promised.flags));
        let mut table = self.implemented();
        let missing = flags - table.flags;
        if !missing.is_empty() {
            return Err(ResumeError::Lacks(missing));
        }
        table.flags = flags;
        let required = self.filesystem.required() - flags;
        if !required.is_empty() {
            return Err(ResumeError::Lacks(required));
        }
        self.agree_again(init, answer, &table)
    }

    /// The INIT of the client, and its answer; `None` if there is no client.
    pub(crate) fn greeting(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        self.dialect().and_then(|_| self.greeting.lock().clone())
    }

    /// Lets go of a client that never sent a request here.
    pub(crate) fn forget_client(&self) {
        self.state.take_leave();
        self.filesystem.destroy();
    }

    /// How the client lays out requests; `None` if there is none.
    pub(crate) fn dialect(&self) -> Option<Dialect> {
        self.state.dialect()
    }

    /// The file system.
    pub fn filesystem(&self) -> &F {
        &self.filesystem
    }

    /// What its syncs cost so far.
    pub fn sync_counts(&self) -> SyncCounts {
        self.sync_counters.read()
    }

    /// The last call: the client has gone without a word, or the server is told to end. Everything it changed is
    /// made stable, and its nodes and handles are forgotten. Harmless if the client took its leave already.
    ///
    /// To be called when no request is under way any more.
    pub fn end(&self) -> Result<()> {
        self.waits.give_up_all();
        let synced = if mutant::on(Mutant::LeavesUnsynced) { Ok(()) } else { self.filesystem.last_call() };
        if self.state.take_leave() {
            self.filesystem.destroy();
        }
        synced
    }

    /// The client's machine was reset: it has gone without a word, and another may come at once. Its nodes and handles are
    /// forgotten, and what it changed is made stable; that is waited for as long as `patience` lasts, and goes on then.
    ///
    /// To be called when no request is under way any more. Harmless if no client is there.
    pub fn reset(self: &Arc<Self>, patience: Duration) {
        if !self.state.take_leave() {
            return;
        }
        self.waits.give_up_all();
        // First, for when the wait is given up this must not come over the next client.
        self.filesystem.destroy();
        let (session, (tell, told)) = (Arc::clone(self), std::sync::mpsc::channel());
        self.pools.syncs.submit(move || {
            match session.filesystem.last_call() {
                Ok(()) => tracing::info!("the machine was reset; all that its client had changed is stable"),
                Err(errno) => tracing::error!("the machine was reset, and the last sync failed: {errno}"),
            }
            let _ = tell.send(());
        });
        if told.recv_timeout(patience).is_err() {
            tracing::error!(
                "the machine was reset, and the last sync did not end within {patience:?}; it goes on"
            );
        }
    }

    /// Whether the client has been seen to send SYNCFS before the data that should be synced, as Linux guests from 6.18.21,
    /// 6.19.11 and 7.0 on do. Its syncs are held back for that; see [`Limits::early_sync_grace`].
    pub fn sends_syncfs_early(&self) -> bool {
        self.early_syncs.recognised()
    }

    /// Takes one request to its answer, or hands it to a thread that will.
    pub(crate) fn handle<E: Exchange>(self: &Arc<Self>, mut exchange: E, scratch: &mut Scratch) {
        match self.begin(&mut exchange, scratch) {
            // The ticket, if there is one, is dropped when the answer is on its way: the change is settled.
            (Step::Answer(header), _ticket) => exchange.finish(header),
            (Step::NoAnswer, _ticket) => exchange.finish_without_reply(),
            (Step::CarryOn, ticket) => {
                let session = Arc::clone(self);
                let counted = ticket.filter(|_| !mutant::on(Mutant::CarriedNotCounted));
                let tickets = counted.map(|ticket| (ticket, self.carried.enter()));
                self.pools.disk.submit(move || {
                    session.carry_on(exchange, Leave::Disk);
                    drop(tickets);
                });
            }
            (Step::AwaitLock(id), _) => match self.waits.begin(id) {
                Some(wait) => self.await_lock(exchange, wait),
                None => {
                    tracing::warn!("{LOCK_WAITS_MAX} requests wait for locks; one more was refused (ENOLCK)");
                    exchange.finish(error_header(id, Errno::ENOLCK));
                }
            },
            (Step::AwaitEarlier, _) => {
                let (session, earlier) = (Arc::clone(self), self.earlier(&exchange));
                self.pools.syncs.submit(move || {
                    session.settle([&earlier]);
                    session.carry_on(exchange, Leave::Disk);
                });
            }
            (Step::Sync { id, node, complete }, _) => self.sync(exchange, id, node, complete),
        }
    }

    /// Does what can be done on the thread of a queue. A change enters the barrier here.
    fn begin<E: Exchange>(&self, exchange: &mut E, scratch: &mut Scratch) -> (Step, Option<Ticket>) {
        let dialect = self.state.dialect();
        let (head, bulk) = exchange.parts();
        let request = match Request::parse(head, bulk.len(), dialect.unwrap_or_default()) {
            Ok(request) => request,
            Err(error) => return (refuse(head, &error), None),
        };
        let (id, opcode) = (request.id, request.opcode);
        let _span = tracing::trace_span!("request", %opcode, unique = id.0, node = request.node.0).entered();
        if bulk.room().is_none() && opcode.has_reply() {
            tracing::warn!("{opcode}, {id:?}, came without room for an answer and was not done");
            return (Step::NoAnswer, None);
        }
        if let Operation::Init { offer } = &request.operation {
            return (Step::Answer(self.init(id, head, offer, bulk)), None);
        }
        // Before INIT, or after the client took its leave.
        if dialect.is_none() {
            let refusal = error_header(id, Errno::ENOTCONN);
            return (if opcode.has_reply() { Step::Answer(refusal) } else { Step::NoAnswer }, None);
        }
        if matches!(request.operation, Operation::Write { write_flags, .. } if write_flags.contains(WriteFlags::CACHE))
        {
            self.early_syncs.note_cached_write();
        }
        let ticket = opcode.is_change().then(|| self.changes.enter());
        let step = match &request.operation {
            &Operation::Syncfs { complete } => Step::Sync { id, node: request.node, complete },
            Operation::Fsync { .. } | Operation::Fsyncdir { .. } | Operation::Destroy => Step::AwaitEarlier,
            Operation::Fallocate { .. } | Operation::CopyFileRange { .. } => Step::CarryOn,
            // Nothing but a wait for a lock is interrupted: the rest that takes long holds up nobody.
            Operation::Interrupt { target } => {
                self.waits.interrupt(*target);
                Step::NoAnswer
            }
            _ => Step::after(id, dispatch::perform(&self.filesystem, &request, bulk, scratch, Leave::None)),
        };
        (step, ticket)
    }

    /// Does what may block, on a thread of a pool. The head is a private copy: parsed once more it says the same.
    fn carry_on<E: Exchange>(&self, mut exchange: E, leave: Leave<'_>) {
        let (head, bulk) = exchange.parts();
        let scratch = &mut Scratch::default();
        let step = match Request::parse(head, bulk.len(), self.state.dialect().unwrap_or_default()) {
            Ok(Request { id, operation: Operation::Destroy, .. }) => {
                Step::Answer(empty_header(id, self.take_leave()))
            }
            Ok(request) => {
                let (opcode, unique) = (request.opcode, request.id.0);
                let _span =
                    tracing::trace_span!("carried on", %opcode, unique, node = request.node.0).entered();
                Step::after(request.id, dispatch::perform(&self.filesystem, &request, bulk, scratch, leave))
            }
            Err(error) => refuse(head, &error),
        };
        match step {
            Step::Answer(header) => exchange.finish(header),
            _ => exchange.finish_without_reply(),
        }
    }

    /// SETLKW of a lock that another holds: waits on a thread of its own, until it has it or is told to give up.
    fn await_lock<E: Exchange>(self: &Arc<Self>, exchange: E, wait: Arc<Wait>) {
        let session = Arc::clone(self);
        self.pools.locks.submit(move || {
            session.carry_on(exchange, Leave::Lock(&wait));
            session.waits.end(&wait);
        });
    }

    /// A queue was stopped. Its requests are to be finished, also those that would wait for ever.
    pub(crate) fn queue_ended(&self) {
        self.waits.give_up_all();
    }

    /// SYNCFS: joins the next round of its superblock.
    fn sync<E: Exchange>(self: &Arc<Self>, exchange: E, id: RequestId, node: NodeId, complete: bool) {
        let earlier = self.earlier(&exchange);
        let answer = Box::new(move |synced| exchange.finish(empty_header(id, synced)));
        let session = Arc::clone(self);
        self.syncs.request(&self.pools.syncs, node, Waiting { earlier, complete, answer }, move |waiting| {
            let _span = tracing::trace_span!("sync", node = node.0, shared_by = waiting.len()).entered();
            let begun = Instant::now();
            session.settle(waiting.iter().map(|one| &one.earlier));
            session.sync_counters.barrier_waits.note(begun.elapsed());
            let complete = waiting.iter().all(|one| one.complete);
            let early = !complete && session.early_syncs.await_quiet();
            if early {
                session.changes.cut().wait().expect(NEVER_ABORTED);
            }
            let begun = Instant::now();
            let synced = session.syncfs(node);
            session.sync_counters.host_syncs.note(begun.elapsed());
            session.sync_counters.note_round(waiting.len());
            if early && session.limits.refuse_early_syncs { synced.and(Err(Errno::EIO)) } else { synced }
        });
    }

    fn syncfs(self: &Arc<Self>, node: NodeId) -> Result<()> {
        if mutant::on(Mutant::AnsweredBeforeSynced) {
            let session = Arc::clone(self);
            self.pools.disk.submit(move || _ = session.filesystem.syncfs(node));
            return Ok(());
        }
        match self.filesystem.syncfs(node) {
            Err(Errno::ENOSYS | Errno::EOPNOTSUPP) if mutant::on(Mutant::UnsupportedIsSuccess) => Ok(()),
            Err(_) if mutant::on(Mutant::ErrorSwallowed) => Ok(()),
            synced => synced,
        }
    }

    /// Divides what is earlier than a request, of whichever queue, from what is later. To be called on the thread of
    /// its queue, when it has just been taken.
    fn earlier<E: Exchange>(&self, exchange: &E) -> Earlier {
        Earlier { mark: exchange.backlog().mark(), cut: self.changes.cut() }
    }

    /// Waits until every change that is earlier has settled. To be called on a thread that serves no queue.
    ///
    /// A change that was taken before is before the cut. One that had been made available, and not taken, has been done
    /// when its queue has come past the mark, or it is carried on by another thread and holds a ticket of `carried`. So
    /// what is waited for beyond what is earlier is this: a change carried on by another thread that was taken while
    /// the queues came past their marks. Nothing that a queue does itself is.
    fn settle<'a>(&self, earlier: impl IntoIterator<Item = &'a Earlier>) {
        for Earlier { mark, cut } in earlier {
            // Queues come past their marks or are stopped, sooner or later; there is nothing else to do meanwhile.
            if mutant::on(Mutant::OtherQueuesIgnored) {
                continue;
            }
            while !mutant::on(Mutant::BacklogIgnored) && !mark.wait(LOOK_AGAIN) {}
            cut.wait().expect(NEVER_ABORTED);
        }
        if mutant::on(Mutant::LaterAwaited) {
            self.changes.cut().wait().expect(NEVER_ABORTED);
        }
        self.carried.cut().wait().expect(NEVER_ABORTED);
    }

    fn implemented(&self) -> Implemented {
        Implemented {
            flags: SERVER_FEATURES | self.filesystem.features(),
            max_readahead: self.limits.max_readahead,
            max_write: self.limits.max_write,
            max_pages: u16::try_from(self.limits.max_write / PAGE_SIZE).unwrap_or(u16::MAX),
            max_background: self.limits.max_background,
            congestion_threshold: self.limits.congestion_threshold,
            time_gran: 1,
        }
    }

    fn init(&self, id: RequestId, head: &[u8], offer: &InitIn, body: &mut impl ReplyBody) -> OutHeader {
        let reply = match init::negotiate(offer, &self.implemented()) {
            Outcome::Agreed(reply, agreement) => {
                let missing = self.filesystem.required() - agreement.flags;
                if !missing.is_empty() {
                    tracing::error!("the client lacks {missing:?}, which is required here; it is refused");
                    return error_header(id, Errno::EPROTO);
                }
                self.greet(offer, &agreement);
                *self.greeting.lock() = Some((head.to_vec(), reply.as_bytes().to_vec()));
                reply
            }
            Outcome::AskAgain(reply) => reply,
            Outcome::TooOld { major, minor } => {
                tracing::error!(
                    "the client speaks FUSE {major}.{minor}; 7.27 (Linux 5.0) is the oldest understood"
                );
                return error_header(id, Errno::EPROTO);
            }
        };
        Reply::Init(&reply).encode(id, body).unwrap_or_else(|_| error_header(id, Errno::ERANGE))
    }

    fn greet(&self, offer: &InitIn, agreement: &Agreement) {
        // A guest that was reset says INIT again without having said DESTROY.
        if self.state.take_leave() {
            tracing::info!("the client begins anew; what the one before it changed is synced first");
            self.waits.give_up_all();
            if let Err(errno) = self.filesystem.last_call() {
                tracing::error!("the sync for the client that left failed: {errno}");
            }
            self.filesystem.destroy();
        }
        self.filesystem.init(agreement);
        self.early_syncs.begin(agreement.flags.contains(InitFlags::WRITEBACK_CACHE));
        self.state.agree(agreement);
        tracing::info!(
            "a client speaks FUSE 7.{} (agreed 7.{}), features {:?}",
            offer.minor,
            agreement.minor,
            agreement.flags
        );
    }

    /// DESTROY: the client takes its leave. Linux unmounts without a SYNCFS, so this is the last chance to keep the
    /// promise.
    fn take_leave(&self) -> Result<()> {
        let synced = self.end();
        match synced {
            Ok(()) => tracing::info!("the client has unmounted; all it changed is stable"),
            Err(errno) => tracing::error!("the client has unmounted, and the last sync failed: {errno}"),
        }
        synced
    }
}

/// Why it cannot be gone on with a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResumeError {
    /// What was kept is not the beginning of a conversation.
    #[error("what the client began with is damaged")]
    NoInit,
    /// Other options, or another version of this program.
    #[error(
        "its client was promised other features than this server has; start it with the options of the one before"
    )]
    Differs,
    /// The options of both servers differ.
    #[error("its client was promised {0:?}, which this server does not offer")]
    Lacks(InitFlags),
}

/// How far a request came on the thread of its queue.
enum Step {
    Answer(OutHeader),
    NoAnswer,
    /// It may wait for the disk, and goes on on a thread of the pool for that.
    CarryOn,
    /// It waits for a lock that another holds.
    AwaitLock(RequestId),
    /// It makes earlier changes stable, and has to wait for them to settle first.
    AwaitEarlier,
    /// It shares a round with other syncs of this superblock.
    Sync {
        id: RequestId,
        node: NodeId,
        complete: bool,
    },
}

impl Step {
    fn after(id: RequestId, outcome: dispatch::Outcome) -> Step {
        match outcome {
            dispatch::Outcome::Answer(header) => Step::Answer(header),
            dispatch::Outcome::NoAnswer => Step::NoAnswer,
            dispatch::Outcome::WouldWait => Step::CarryOn,
            dispatch::Outcome::WouldWaitForLock => Step::AwaitLock(id),
        }
    }
}

/// The peer broke the protocol, or asks for what protocol 7.45 does not have.
fn refuse(head: &[u8], error: &ProtocolError) -> Step {
    match error {
        ProtocolError::UnknownOpcode(_) => tracing::debug!("{error}: answered with ENOSYS"),
        _ => tracing::warn!("a malformed request was refused: {error}"),
    }
    Request::id_of(head).map_or(Step::NoAnswer, |id| Step::Answer(error_header(id, error.errno())))
}

fn empty_header(id: RequestId, outcome: Result<()>) -> OutHeader {
    match outcome {
        Ok(()) => OutHeader { len: OUT_HEADER_SIZE as u32, error: 0, unique: id.0 },
        Err(errno) => error_header(id, errno),
    }
}

/// Whether a client is there, and in which dialect it speaks.
#[derive(Default)]
struct AtomicState(AtomicU8);

const GONE: u8 = 0;
const THERE: u8 = 1;
const THERE_WITH_SETXATTR_EXT: u8 = 2;

impl AtomicState {
    fn agree(&self, agreement: &Agreement) {
        let state = if agreement.dialect().setxattr_ext { THERE_WITH_SETXATTR_EXT } else { THERE };
        // Release: a worker that sees the client there also sees what FileSystem::init did.
        self.0.store(state, Ordering::Release);
    }

    /// The client is gone; says whether it was there.
    fn take_leave(&self) -> bool {
        self.0.swap(GONE, Ordering::AcqRel) != GONE
    }

    fn dialect(&self) -> Option<Dialect> {
        match self.0.load(Ordering::Acquire) {
            GONE => None,
            state => Some(Dialect { setxattr_ext: state == THERE_WITH_SETXATTR_EXT }),
        }
    }
}
