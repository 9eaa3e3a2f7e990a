//! A client that waits for nothing it is not asked to wait for, as no client of ours is: what it sends is for the server to
//! put in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ashore_barrier::model::{Condvar, Mutex};
use ashore_client::link::{Completion, Link, Message, Receiver};
use ashore_server::Session;
use ashore_wire::abi::{CreateIn, EntryOut, FallocateIn, InitIn, OpenOut, WriteIn};
use ashore_wire::encode::{AnswerError, RequestHead, Sender, answer_body, take};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, NodeId, Opcode, RequestId};

use crate::host::{Cell, SimFs};
use crate::link::SimLink;

const PAGE: u64 = 4096;
const REPLY_ROOM: usize = 512;

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Sent(u64);

/// An answer, and what was durable when it came.
pub struct Answer {
    pub body: Result<Vec<u8>, Errno>,
    pub durable: BTreeMap<Cell, u64>,
}

/// See the top of this file.
pub struct RawClient {
    link: SimLink,
    inbox: Arc<Inbox>,
    next: AtomicU64,
}

struct Inbox {
    host: SimFs,
    answers: Mutex<BTreeMap<u64, (Completion, BTreeMap<Cell, u64>)>>,
    came: Condvar,
}

impl RawClient {
    /// A client of this session over so many queues, which take its requests in turn.
    pub fn connect(session: &Arc<Session<SimFs>>, queues: usize) -> RawClient {
        let host = session.filesystem().clone();
        let inbox = Arc::new(Inbox { host, answers: Mutex::default(), came: Condvar::new() });
        let link = SimLink::new(Arc::clone(session), queues);
        link.start(Arc::clone(&inbox) as Arc<dyn Receiver>);
        let client = RawClient { link, inbox, next: AtomicU64::new(2) };
        let flags = InitFlags::all().bits();
        let init = InitIn {
            major: 7,
            minor: 45,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..Default::default()
        };
        client.call(RequestHead::new(Opcode::Init, NodeId(0)).with(&init), &[]).body.unwrap();
        client
    }

    /// Sends a request.
    pub fn send(&self, head: RequestHead, payload: &[u8]) -> Sent {
        let id = self.next.fetch_add(2, Ordering::Relaxed);
        self.submit(id, head, payload);
        Sent(id)
    }

    /// Sends a request that has no room for an answer.
    pub fn send_without_room(&self, head: RequestHead) {
        self.submit(0, head, &[]);
    }

    fn submit(&self, id: u64, head: RequestHead, payload: &[u8]) {
        let mut head = head.finish(RequestId(id), Sender::default(), payload.len());
        head.extend_from_slice(payload);
        let message = Message {
            id,
            head,
            payload: Vec::new(),
            reply_room: REPLY_ROOM,
            target: Vec::new(),
            urgent: false,
        };
        self.link.submit(message).unwrap();
    }

    /// Waits for the answer.
    pub fn wait(&self, sent: Sent) -> Answer {
        let mut answers = self.inbox.answers.lock();
        loop {
            if let Some((completion, durable)) = answers.remove(&sent.0) {
                let body = match answer_body(RequestId(sent.0), &completion.reply, completion.length) {
                    Ok(length) => Ok(completion.reply[completion.reply.len() - length..].to_vec()),
                    Err(AnswerError::Errno(errno)) => Err(errno),
                    Err(AnswerError::Fault(fault)) => panic!("{fault}"),
                };
                return Answer { body, durable };
            }
            self.inbox.came.wait(&mut answers);
        }
    }

    /// Sends and waits.
    pub fn call(&self, head: RequestHead, payload: &[u8]) -> Answer {
        self.wait(self.send(head, payload))
    }

    /// Makes a file; its node and its handle.
    pub fn create(&self, parent: u64, name: &str) -> (u64, u64) {
        let create = CreateIn { flags: 2, mode: 0o644, ..Default::default() };
        let head = RequestHead::new(Opcode::Create, NodeId(parent)).with(&create).name(name.as_bytes());
        let body = self.call(head, &[]).body.unwrap();
        let (entry, rest) = take::<EntryOut>(&body).unwrap();
        (entry.nodeid, take::<OpenOut>(rest).unwrap().0.fh)
    }

    /// Sends a WRITE of one page with this version in it.
    pub fn write(&self, (node, fh): (u64, u64), page: u64, version: u64) -> Sent {
        let mut data = vec![0; PAGE as usize];
        data[..8].copy_from_slice(&version.to_ne_bytes());
        let write = WriteIn { fh, offset: page * PAGE, size: PAGE as u32, ..Default::default() };
        self.send(RequestHead::new(Opcode::Write, NodeId(node)).with(&write), &data)
    }

    /// Sends a FALLOCATE up to the end of this page.
    pub fn allocate(&self, (node, fh): (u64, u64), page: u64) -> Sent {
        let arguments = FallocateIn { fh, offset: page * PAGE, length: PAGE, ..Default::default() };
        self.send(RequestHead::new(Opcode::Fallocate, NodeId(node)).with(&arguments), &[])
    }

    /// Sends a SYNCFS of this node.
    pub fn syncfs(&self, node: u64) -> Sent {
        self.send(RequestHead::new(Opcode::Syncfs, NodeId(node)).with(&[0u64]), &[])
    }

    /// Ends the link.
    pub fn close(self) {
        self.link.close();
    }
}

impl Receiver for Inbox {
    fn completed(&self, completion: Completion) {
        let durable = self.host.host(|host| host.all_durable());
        self.answers.lock().insert(completion.id, (completion, durable));
        self.came.notify_all();
    }

    fn ended(&self) {}
}
