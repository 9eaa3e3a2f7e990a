//! What requests cost, counted on their way through: a queue that stands between a transport and its worker.
//!
//! ```text
//!   transport ── RequestQueue ──► Observed ── RequestQueue ──► Worker
//!                                 notes when each request was taken, and when it was answered
//! ```
//!
//! A server that is not watched has no such queue, and pays nothing. One that is pays for two looks at the clock and a few
//! additions in memory that is its queue's own.
//!
//! Times are from the moment a request was taken from its queue until its answer was handed back; how long it waited in
//! the queue before that cannot be seen from here.

use std::array;
use std::sync::Arc;
use std::time::Duration;

use ashore_wire::abi::{InHeader, OutHeader};
use ashore_wire::seam::{Backlog, Exchange, Payload, RequestQueue};
use ashore_wire::{Errno, NodeId, Opcode};
use zerocopy::FromBytes;

use crate::histogram::{Histogram, Times};
use crate::primitives::Instant;
use crate::primitives::atomic::{AtomicU64, Ordering};

/// Opcodes are below this.
const OPCODES: usize = 64;

/// Counts of one server, over all its queues and clients.
#[derive(Debug)]
pub struct Metrics {
    /// One for each queue, so that queues do not share memory.
    shards: Vec<Arc<Shard>>,
}

impl Metrics {
    /// Counts for so many queues. A request that takes longer than `slow` is logged as a warning.
    pub fn new(queues: usize, slow: Option<Duration>) -> Metrics {
        let synced_bytes = Arc::new(AtomicU64::new(0));
        let shard = |_| Arc::new(Shard::new(slow, Arc::clone(&synced_bytes)));
        Metrics { shards: (0..queues.max(1)).map(shard).collect() }
    }

    /// Watches this queue, the one with this number.
    pub fn observe<Q: RequestQueue>(&self, number: usize, queue: Q) -> Observed<Q> {
        let shard = &self.shards[number % self.shards.len()];
        Observed { queue, all: self.shards.clone(), shard: Arc::clone(shard) }
    }

    /// The counts of now, of each operation that was ever asked for.
    pub fn operations(&self) -> Vec<OperationCounts> {
        let counts = |opcode: &Opcode| {
            let mut sum = OperationCounts::of(*opcode);
            self.shards.iter().for_each(|shard| shard.of(*opcode).add_to(&mut sum));
            (sum.taken > 0).then_some(sum)
        };
        Opcode::ALL.iter().filter_map(counts).collect()
    }

    /// Bytes written since the last SYNCFS that succeeded was taken: at most so many are not stable yet.
    pub fn unsynced_bytes(&self) -> u64 {
        let synced = self.shards[0].synced_bytes.load(Ordering::Relaxed);
        written(&self.shards).saturating_sub(synced)
    }
}

/// Bytes of all WRITEs that were answered.
fn written(shards: &[Arc<Shard>]) -> u64 {
    shards.iter().map(|shard| shard.of(Opcode::Write).bytes_in.load(Ordering::Relaxed)).sum()
}

/// What is known of one operation.
#[derive(Clone, Debug)]
pub struct OperationCounts {
    /// Which one.
    pub opcode: Opcode,
    /// Requests taken from a queue.
    pub taken: u64,
    /// Requests answered, or done if they have no answer.
    pub done: u64,
    /// Of them, those whose answer was an error.
    pub failed: u64,
    /// Bytes of data that came with requests which did not fail. Not counted: headers.
    pub bytes_in: u64,
    /// Bytes of data in answers. Not counted: headers.
    pub bytes_out: u64,
    /// How long they took.
    pub times: Times,
}

impl OperationCounts {
    fn of(opcode: Opcode) -> OperationCounts {
        OperationCounts {
            opcode,
            taken: 0,
            done: 0,
            failed: 0,
            bytes_in: 0,
            bytes_out: 0,
            times: Times::default(),
        }
    }

    /// Requests that were taken and are not answered yet.
    pub fn in_flight(&self) -> u64 {
        self.taken.saturating_sub(self.done)
    }
}

/// The counts of one queue.
#[derive(Debug)]
struct Shard {
    operations: [Counters; OPCODES],
    slow: Option<Duration>,
    /// Bytes that had been written when the last SYNCFS that succeeded was taken. All queues share it.
    synced_bytes: Arc<AtomicU64>,
}

impl Shard {
    fn new(slow: Option<Duration>, synced_bytes: Arc<AtomicU64>) -> Shard {
        Shard { operations: array::from_fn(|_| Counters::default()), slow, synced_bytes }
    }

    fn of(&self, opcode: Opcode) -> &Counters {
        &self.operations[opcode as usize % OPCODES]
    }
}

/// Relaxed everywhere: each is a sum of its own, and nothing is concluded from two of them together.
#[derive(Debug, Default)]
struct Counters {
    taken: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    times: Histogram,
}

impl Counters {
    fn add_to(&self, sum: &mut OperationCounts) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Done before taken, so that nothing seems to be done that was not taken.
        sum.done += read(&self.done);
        sum.taken += read(&self.taken);
        sum.failed += read(&self.failed);
        sum.bytes_in += read(&self.bytes_in);
        sum.bytes_out += read(&self.bytes_out);
        self.times.add_to(&mut sum.times);
    }

    fn note(&self, time: Duration) {
        self.times.note(time);
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// A queue whose requests are counted. Made by [`Metrics::observe`].
pub struct Observed<Q> {
    queue: Q,
    shard: Arc<Shard>,
    /// Those of all queues.
    all: Vec<Arc<Shard>>,
}

impl<Q: RequestQueue> RequestQueue for Observed<Q> {
    type Exchange = ObservedExchange<Q::Exchange>;

    fn next(&mut self) -> Option<Self::Exchange> {
        let mut exchange = self.queue.next()?;
        let (head, bulk) = exchange.parts();
        let subject = InHeader::read_from_prefix(head).ok().and_then(|(header, _)| {
            let opcode = Opcode::from_raw(header.opcode)?;
            Some(Subject {
                opcode,
                node: NodeId(header.nodeid),
                bytes: bulk.len() as u64,
                taken: Instant::now(),
            })
        });
        if let Some(subject) = &subject {
            self.shard.of(subject.opcode).taken.fetch_add(1, Ordering::Relaxed);
        }
        let written_before = match &subject {
            Some(Subject { opcode: Opcode::Syncfs, .. }) => written(&self.all),
            _ => 0,
        };
        Some(ObservedExchange {
            exchange: Some(exchange),
            subject,
            written_before,
            shard: Arc::clone(&self.shard),
        })
    }
}

/// What a request is about.
struct Subject {
    opcode: Opcode,
    node: NodeId,
    bytes: u64,
    taken: Instant,
}

/// An exchange that is counted when it is finished. Made by [`Observed`].
pub struct ObservedExchange<E: Exchange> {
    /// `None` once it is finished.
    exchange: Option<E>,
    /// `None` if the head is not understood: what cannot be named is not counted.
    subject: Option<Subject>,
    /// Of a SYNCFS: bytes written before it was taken.
    written_before: u64,
    shard: Arc<Shard>,
}

impl<E: Exchange> ObservedExchange<E> {
    fn note(&mut self, header: Option<&OutHeader>) {
        let Some(subject) = self.subject.take() else { return };
        let counters = self.shard.of(subject.opcode);
        match header {
            Some(header) if header.error != 0 => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                let body = header
                    .map_or(0, |header| u64::from(header.len).saturating_sub(size_of::<OutHeader>() as u64));
                counters.bytes_in.fetch_add(subject.bytes, Ordering::Relaxed);
                counters.bytes_out.fetch_add(body, Ordering::Relaxed);
                if subject.opcode == Opcode::Syncfs {
                    self.shard.synced_bytes.fetch_max(self.written_before, Ordering::Relaxed);
                }
            }
        }
        let time = subject.taken.elapsed();
        counters.note(time);
        if self.shard.slow.is_some_and(|slow| time >= slow) {
            let outcome = header.map_or(0, |header| header.error);
            tracing::warn!(
                "slow: {} of {:?} took {time:?} (error {})",
                subject.opcode,
                subject.node,
                -outcome
            );
        }
    }
}

impl<E: Exchange> Exchange for ObservedExchange<E> {
    type Bulk = E::Bulk;

    fn parts(&mut self) -> (&[u8], &mut E::Bulk) {
        self.exchange.as_mut().expect(NOT_FINISHED).parts()
    }

    fn finish(mut self, header: OutHeader) {
        self.note(Some(&header));
        self.exchange.take().expect(NOT_FINISHED).finish(header);
    }

    fn finish_without_reply(mut self) {
        self.note(None);
        self.exchange.take().expect(NOT_FINISHED).finish_without_reply();
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        self.exchange.as_ref().expect(NOT_FINISHED).backlog()
    }
}

const NOT_FINISHED: &str = "finishing an exchange consumes it";

/// A request that is dropped is answered with EIO by its transport; it is done, and failed.
impl<E: Exchange> Drop for ObservedExchange<E> {
    fn drop(&mut self) {
        self.note(Some(&OutHeader {
            len: size_of::<OutHeader>() as u32,
            error: -Errno::EIO.raw(),
            unique: 0,
        }));
    }
}
