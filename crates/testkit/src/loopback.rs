//! A transport without a transport: requests are bytes handed over in memory, and so are replies.
//!
//! Serves a session on a thread of its own, as any transport does, and lets a test play the client, honest or
//! not.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ashore_server::{FileSystem, Journal, Recoverable, Session, Worker};
use ashore_wire::abi::{InHeader, InitIn, OUT_HEADER_SIZE, OutHeader};
use ashore_wire::flags::InitFlags;
use ashore_wire::seam::{
    Backlog, BacklogMark, Exchange, NoRoom, Payload, ReplyBody, RequestQueue, TransferMode, head_length,
};
use ashore_wire::{Errno, Opcode, Request};
use zerocopy::{FromBytes, IntoBytes};

/// How long a test waits for a reply before it fails.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// One queue of a session, served by a thread of its own.
pub struct Loopback {
    requests: Option<Sender<LoopbackExchange>>,
    worker: Option<JoinHandle<()>>,
    index: usize,
    queues: Arc<Queues>,
}

impl Loopback {
    /// A session with one queue.
    pub fn start<F: FileSystem>(session: &Arc<Session<F>>) -> Loopback {
        Loopback::start_queues(session, 1).remove(0)
    }

    /// A session with one queue, whose requests are written down.
    pub fn start_recorded<F: Recoverable>(session: &Arc<Session<F>>, journal: &Arc<Journal>) -> Loopback {
        let (session, journal) = (Arc::clone(session), Arc::clone(journal));
        let run = move |queue| Worker::new(Arc::clone(&session)).run(journal.record(&session, queue));
        Loopback::start_with(1, run).remove(0)
    }

    /// A session with several queues. Each sees what waits in the others, as it must for a sync.
    pub fn start_queues<F: FileSystem>(session: &Arc<Session<F>>, count: usize) -> Vec<Loopback> {
        let session = Arc::clone(session);
        Loopback::start_with(count, move |queue| Worker::new(Arc::clone(&session)).run(queue))
    }

    fn start_with(count: usize, run: impl Fn(LoopbackQueue) + Clone + Send + 'static) -> Vec<Loopback> {
        let queues: Arc<Queues> = (0..count).map(|_| Position::default()).collect();
        let start = |index| {
            let (requests, receiver) = channel();
            let queue = LoopbackQueue { receiver, index, queues: Arc::clone(&queues), taken: 0 };
            let run = run.clone();
            let worker = std::thread::spawn(move || run(queue));
            Loopback { requests: Some(requests), worker: Some(worker), index, queues: Arc::clone(&queues) }
        };
        (0..count).map(start).collect()
    }

    /// Hands over the bytes of a request as they are, with `room` bytes for the whole reply, header included.
    pub fn submit(&self, request: &[u8], room: usize) -> PendingReply {
        let (reply, pending) = channel();
        let opcode = request.get(4..8).map_or(0, |raw| u32::from_ne_bytes(raw.try_into().unwrap()));
        let (head, payload) = request.split_at(head_length(opcode, request.len()));
        let exchange = LoopbackExchange {
            head: AlignedBytes::from(head),
            bulk: LoopbackBulk {
                payload: payload.to_vec(),
                body: vec![0; room.saturating_sub(OUT_HEADER_SIZE)],
                answerable: room >= OUT_HEADER_SIZE,
            },
            reply: Some(reply),
            queues: Arc::clone(&self.queues),
        };
        self.queues[self.index].made_available.fetch_add(1, Ordering::SeqCst);
        let requests = self.requests.as_ref().expect("taken only when dropped");
        requests.send(exchange).expect("the worker runs until this end is dropped");
        PendingReply(pending)
    }

    /// A request in the usual form, answered.
    pub fn call(&self, opcode: Opcode, node: u64, arguments: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        self.submit(&request(opcode, node, arguments), 1 << 20).wait().expect("this opcode has a reply")
    }

    /// INIT as Linux 6.12 says it.
    pub fn init(&self, flags: InitFlags) -> Vec<u8> {
        let offer = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 128 << 10,
            flags: flags.bits() as u32,
            flags2: (flags.bits() >> 32) as u32,
            ..Default::default()
        };
        self.call(Opcode::Init, 0, &[offer.as_bytes()]).expect("INIT is agreed")
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// The bytes of a request from caller 0:0.
pub fn request(opcode: Opcode, node: u64, arguments: &[&[u8]]) -> Vec<u8> {
    let length = size_of::<InHeader>() + arguments.iter().map(|part| part.len()).sum::<usize>();
    let header = InHeader {
        len: length as u32,
        opcode: opcode as u32,
        unique: 42,
        nodeid: node,
        ..Default::default()
    };
    [&[header.as_bytes()], arguments].concat().concat()
}

/// A reply on its way.
pub struct PendingReply(Receiver<Option<Vec<u8>>>);

impl PendingReply {
    /// Whether no reply comes within `time`. A reply that does come is lost.
    pub fn stays_out(&self, time: Duration) -> bool {
        matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// Waits for the reply: its body, or its error. `None` if the request was given back without an answer.
    ///
    /// Panics if no answer comes: a server must never leave a client waiting.
    pub fn wait(self) -> Option<Result<Vec<u8>, Errno>> {
        let bytes = self.0.recv_timeout(REPLY_TIMEOUT).expect("each request is answered or given back");
        bytes.map(|bytes| {
            let (header, body) = OutHeader::read_from_prefix(&bytes).expect("a reply has a header");
            assert_eq!(header.len as usize, bytes.len(), "the length is exact");
            match header.error {
                0 => Ok(body.to_vec()),
                error => Err(Errno::from_raw(-error)),
            }
        })
    }
}

/// How far the queues of one session are.
type Queues = [Position];

#[derive(Default)]
struct Position {
    made_available: AtomicU64,
    /// Requests taken whose taker has come back for another.
    passed: AtomicU64,
}

/// What waits in the queues of one session.
struct Unseen(Arc<Queues>);

/// What had been made available in each queue.
struct Mark {
    queues: Arc<Queues>,
    ends: Vec<u64>,
}

impl Backlog for Unseen {
    fn mark(&self) -> Box<dyn BacklogMark> {
        let ends = self.0.iter().map(|position| position.made_available.load(Ordering::SeqCst)).collect();
        Box::new(Mark { queues: Arc::clone(&self.0), ends })
    }
}

impl BacklogMark for Mark {
    fn passed(&self) -> bool {
        let mut queues = self.queues.iter().zip(&self.ends);
        queues.all(|(position, end)| position.passed.load(Ordering::SeqCst) >= *end)
    }

    fn wait(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        while !self.passed() && begun.elapsed() < timeout {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.passed()
    }
}

struct LoopbackQueue {
    receiver: Receiver<LoopbackExchange>,
    index: usize,
    queues: Arc<Queues>,
    taken: u64,
}

impl RequestQueue for LoopbackQueue {
    type Exchange = LoopbackExchange;

    fn next(&mut self) -> Option<LoopbackExchange> {
        self.queues[self.index].passed.store(self.taken, Ordering::SeqCst);
        let exchange = self.receiver.recv().ok()?;
        self.taken += 1;
        Some(exchange)
    }
}

struct LoopbackExchange {
    head: AlignedBytes,
    bulk: LoopbackBulk,
    reply: Option<Sender<Option<Vec<u8>>>>,
    queues: Arc<Queues>,
}

impl LoopbackExchange {
    fn answer(&mut self, bytes: Option<Vec<u8>>) {
        if let Some(reply) = self.reply.take() {
            // A test that no longer waits is no failure of the server.
            let _ = reply.send(bytes);
        }
    }
}

impl Exchange for LoopbackExchange {
    type Bulk = LoopbackBulk;

    fn parts(&mut self) -> (&[u8], &mut LoopbackBulk) {
        (self.head.as_bytes(), &mut self.bulk)
    }

    fn finish(mut self, header: OutHeader) {
        let body = &self.bulk.body[..header.len as usize - OUT_HEADER_SIZE];
        let bytes = [header.as_bytes(), body].concat();
        let answerable = self.bulk.answerable;
        self.answer(answerable.then_some(bytes));
    }

    fn finish_without_reply(mut self) {
        self.answer(None);
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        Arc::new(Unseen(Arc::clone(&self.queues)))
    }
}

impl Drop for LoopbackExchange {
    fn drop(&mut self) {
        let id = Request::id_of(self.head.as_bytes());
        let eio = id.map(|id| ashore_wire::reply::error_header(id, Errno::EIO).as_bytes().to_vec());
        self.answer(eio);
    }
}

struct LoopbackBulk {
    payload: Vec<u8>,
    body: Vec<u8>,
    answerable: bool,
}

impl Payload for LoopbackBulk {
    fn len(&self) -> usize {
        self.payload.len()
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        let offset = if mode.append { rustix::fs::fstat(file)?.st_size as u64 } else { offset };
        Ok(rustix::io::pwrite(file, &self.payload[..len.min(self.payload.len())], offset)?)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.payload.len());
        buffer[..length].copy_from_slice(&self.payload[..length]);
        length
    }
}

impl ReplyBody for LoopbackBulk {
    fn room(&self) -> Option<usize> {
        self.answerable.then_some(self.body.len())
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = position.checked_add(bytes.len()).ok_or(NoRoom)?;
        self.body.get_mut(position..end).ok_or(NoRoom)?.copy_from_slice(bytes);
        Ok(())
    }

    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        _mode: TransferMode,
    ) -> io::Result<usize> {
        let len = len.min(self.body.len());
        Ok(rustix::io::pread(file, &mut self.body[..len], offset)?)
    }
}

/// Bytes that begin at a multiple of eight, as a transport's heads do.
struct AlignedBytes {
    words: Vec<u64>,
    length: usize,
}

impl From<&[u8]> for AlignedBytes {
    fn from(bytes: &[u8]) -> AlignedBytes {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        AlignedBytes { words, length: bytes.len() }
    }
}

impl AlignedBytes {
    fn as_bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }
}
