//! Queues in memory between a client and a server.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex as Plain, OnceLock};
use std::time::Duration;
use std::{io, mem};

use ashore_barrier::model::{Condvar, Mutex, thread};
use ashore_client::link::{Closed, Completion, Link, Message, Receiver, Segment};
use ashore_server::{Session, Worker};
use ashore_wire::abi::{OUT_HEADER_SIZE, OutHeader};
use ashore_wire::seam::{
    Backlog, BacklogMark, Exchange, NoRoom, Payload, ReplyBody, RequestQueue, TransferMode, head_length,
};

use crate::host::SimFs;

const PAGES: u32 = 64;
const PAGE: usize = 4096;

/// Only the start of a page is kept: a workload writes numbers, one to a page.
const KEPT: usize = 8;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Message>,
    submitted: u64,
    taken: u64,
    passed: u64,
}

struct State {
    queues: Vec<Queue>,
    next: usize,
    closed: bool,
    /// What is answered now arrives nowhere.
    lost: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    pages: Plain<Vec<[u8; KEPT]>>,
    receiver: OnceLock<Arc<dyn Receiver>>,
}

/// A link to `session`, with a worker for each queue.
pub struct SimLink {
    shared: Arc<Shared>,
    session: Arc<Session<SimFs>>,
    queues: usize,
    workers: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl SimLink {
    pub fn new(session: Arc<Session<SimFs>>, queues: usize) -> SimLink {
        let state = State {
            queues: (0..queues).map(|_| Queue::default()).collect(),
            next: 0,
            closed: false,
            lost: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            pages: Plain::new(vec![[0; KEPT]; PAGES as usize]),
            receiver: OnceLock::new(),
        };
        SimLink { shared: Arc::new(shared), session, queues, workers: Mutex::default() }
    }
}

impl SimLink {
    /// The connection is lost: requests that were not taken go nowhere, and no answer comes any more.
    pub fn lose(&self) {
        let mut state = self.shared.state.lock();
        (state.closed, state.lost) = (true, true);
        state.queues.iter_mut().for_each(|queue| queue.waiting.clear());
        drop(state);
        self.shared.changed.notify_all();
        if let Some(receiver) = self.shared.receiver.get() {
            receiver.ended();
        }
    }
}

impl Link for SimLink {
    fn pages(&self) -> u32 {
        PAGES
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        let kept = self.shared.pages.lock().unwrap()[page as usize];
        for (place, byte) in into.iter_mut().enumerate() {
            *byte = kept.get(offset + place).copied().unwrap_or(0);
        }
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        let kept = &mut self.shared.pages.lock().unwrap()[page as usize];
        kept.iter_mut().skip(offset).zip(from).for_each(|(kept, byte)| *kept = *byte);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        let kept = &mut self.shared.pages.lock().unwrap()[page as usize];
        kept.iter_mut()
            .enumerate()
            .filter(|(place, _)| range.contains(place))
            .for_each(|(_, byte)| *byte = 0);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        assert!(self.shared.receiver.set(receiver).is_ok(), "a link starts once");
        for number in 0..self.queues {
            let queue = SimQueue { shared: Arc::clone(&self.shared), number };
            let worker = Worker::new(Arc::clone(&self.session));
            self.workers.lock().push(thread::spawn(move || worker.run(queue)));
        }
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        let mut state = self.shared.state.lock();
        if state.closed {
            return Err(Closed);
        }
        let next = state.next;
        state.next = (next + 1) % self.queues;
        state.queues[next].submitted += 1;
        state.queues[next].waiting.push_back(message);
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
        for worker in mem::take(&mut *self.workers.lock()) {
            worker.join().unwrap();
        }
    }
}

struct SimQueue {
    shared: Arc<Shared>,
    number: usize,
}

impl RequestQueue for SimQueue {
    type Exchange = SimExchange;

    fn next(&mut self) -> Option<SimExchange> {
        let mut state = self.shared.state.lock();
        let queue = &mut state.queues[self.number];
        queue.passed = queue.taken;
        self.shared.changed.notify_all();
        loop {
            let queue = &mut state.queues[self.number];
            if let Some(message) = queue.waiting.pop_front() {
                queue.taken += 1;
                drop(state);
                return Some(SimExchange::new(message, Arc::clone(&self.shared)));
            }
            if state.closed {
                return None;
            }
            self.shared.changed.wait(&mut state);
        }
    }
}

/// A request on its way.
pub struct SimExchange {
    message: Message,
    head_length: usize,
    bulk: SimBulk,
    shared: Arc<Shared>,
}

pub struct SimBulk {
    payload: Vec<u8>,
    body: Vec<u8>,
    room: Option<usize>,
}

impl SimExchange {
    fn new(message: Message, shared: Arc<Shared>) -> SimExchange {
        let bytes =
            |segments: &[Segment]| segments.iter().map(|segment| segment.length as usize).sum::<usize>();
        let mut payload = Vec::with_capacity(bytes(&message.payload));
        let opcode = u32::from_le_bytes(message.head[4..8].try_into().unwrap());
        let head_length = head_length(opcode, message.head.len());
        payload.extend_from_slice(&message.head[head_length..]);
        for segment in &message.payload {
            let start = payload.len();
            payload.resize(start + segment.length as usize, 0);
            let kept = shared.pages.lock().unwrap()[segment.page as usize];
            let length = KEPT.min(segment.length as usize);
            payload[start..start + length].copy_from_slice(&kept[..length]);
        }
        let room = (message.id != 0).then_some(message.reply_room + bytes(&message.target));
        SimExchange { message, head_length, bulk: SimBulk { payload, body: Vec::new(), room }, shared }
    }
}

impl Exchange for SimExchange {
    type Bulk = SimBulk;

    fn parts(&mut self) -> (&[u8], &mut SimBulk) {
        (&self.message.head[..self.head_length], &mut self.bulk)
    }

    fn finish(self, header: OutHeader) {
        let SimExchange { message, mut bulk, shared, .. } = self;
        if message.id == 0 || shared.state.lock().lost {
            return;
        }
        bulk.body.resize(header.len as usize - OUT_HEADER_SIZE, 0);
        let mut reply = Vec::with_capacity(OUT_HEADER_SIZE + message.reply_room);
        reply.extend_from_slice(&header.len.to_ne_bytes());
        reply.extend_from_slice(&header.error.to_ne_bytes());
        reply.extend_from_slice(&header.unique.to_ne_bytes());
        let (inline, mut rest) = bulk.body.split_at(message.reply_room.min(bulk.body.len()));
        reply.extend_from_slice(inline);
        for segment in &message.target {
            let (here, after) = rest.split_at(rest.len().min(segment.length as usize).min(PAGE));
            let kept = &mut shared.pages.lock().unwrap()[segment.page as usize];
            kept.iter_mut().zip(here).for_each(|(kept, byte)| *kept = *byte);
            rest = after;
        }
        let completion = Completion { id: message.id, length: header.len as usize, reply };
        shared.receiver.get().expect("a link that carries requests has started").completed(completion);
    }

    fn finish_without_reply(self) {}

    fn backlog(&self) -> Arc<dyn Backlog> {
        Arc::new(SimBacklog(Arc::clone(&self.shared)))
    }
}

impl Payload for SimBulk {
    fn len(&self) -> usize {
        self.payload.len()
    }

    fn write_to(&mut self, _: BorrowedFd<'_>, _: u64, _: usize, _: TransferMode) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.payload.len());
        buffer[..length].copy_from_slice(&self.payload[..length]);
        length
    }
}

impl ReplyBody for SimBulk {
    fn room(&self) -> Option<usize> {
        self.room
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = position + bytes.len();
        if self.room.is_none_or(|room| end > room) {
            return Err(NoRoom);
        }
        self.body.resize(self.body.len().max(end), 0);
        self.body[position..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_from(&mut self, _: BorrowedFd<'_>, _: u64, _: usize, _: TransferMode) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct SimBacklog(Arc<Shared>);

struct SimMark {
    shared: Arc<Shared>,
    ends: Vec<u64>,
}

impl Backlog for SimBacklog {
    fn mark(&self) -> Box<dyn BacklogMark> {
        let ends = self.0.state.lock().queues.iter().map(|queue| queue.submitted).collect();
        Box::new(SimMark { shared: Arc::clone(&self.0), ends })
    }
}

impl SimMark {
    fn is_passed(&self, state: &State) -> bool {
        state.closed || state.queues.iter().zip(&self.ends).all(|(queue, end)| queue.passed >= *end)
    }
}

impl BacklogMark for SimMark {
    fn passed(&self) -> bool {
        self.is_passed(&self.shared.state.lock())
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.shared.state.lock();
        while !self.is_passed(&state) {
            if self.shared.changed.wait_for(&mut state, timeout).timed_out() {
                return self.is_passed(&state);
            }
        }
        true
    }
}
