//! A mount of a share that another process serves: each request of the kernel goes over a link as it is, and the answer back.
//!
//! ```text
//!     kernel --> FuseQueue --> carry --> Link::submit ~~~> server
//!     kernel <-- finish <----- completed <~~~~~~~~~~~~~~~~~~'
//! ```
//!
//! Nothing is kept here: the only cache is the kernel's, and with [`crate::MountOptions::write_back_barrier`] it has sent all it
//! held before a SYNCFS goes over the link. What the kernel takes for success and is none is told apart: ENOSYS for a SYNCFS.

use std::collections::HashMap;
use std::sync::Arc;

use ashore_wire::abi::{
    BatchForgetIn, ForgetOne, GetxattrIn, IN_HEADER_SIZE, InHeader, InitIn, InitOut, InterruptIn, IoctlIn,
    OUT_HEADER_SIZE, OutHeader, ReadIn, SyncfsIn,
};
use ashore_wire::encode::{AnswerError, RequestHead, Sender, answer_body};
use ashore_wire::flags::InitFlags;
use ashore_wire::link::{Completion, HEAD_MAX, Link, Message, REPLY_ROOM_MAX, Receiver, Segment};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Exchange, NoRoom, Payload, ReplyBody, RequestQueue};
use ashore_wire::{Errno, NodeId, Opcode, RequestId};
use parking_lot::{Condvar, Mutex};
use zerocopy::FromBytes;

use crate::exchange::FuseExchange;
use crate::queue::FuseQueue;

/// Bytes of a page of a link.
const PAGE_BYTES: usize = 4096;
/// Room for the answers that have no size of their own: a link's target is the longest of them.
const USUAL_ROOM: usize = PAGE_BYTES + 256;
/// Room for names of a directory.
const NAMES_ROOM: usize = REPLY_ROOM_MAX - 128;
/// The largest value or list of extended attributes that Linux knows.
const XATTR_ROOM: usize = 64 << 10;
/// Inodes in one BATCH_FORGET that we send.
const FORGETS_AT_ONCE: usize = (HEAD_MAX / 2) / size_of::<ForgetOne>();
/// The id of the sync that we add to a DESTROY; the kernel's ids are even.
const LAST_SYNC: u64 = u64::MAX;

/// Carries requests of a mount over a link.
pub struct Relay {
    link: Arc<dyn Link>,
    max_write: u32,
    writeback: bool,
    desk: Arc<Desk>,
}

/// Where answers find their requests.
struct Desk {
    /// For the pages that answers came in.
    link: Arc<dyn Link>,
    max_write: u32,
    state: Mutex<State>,
    /// Pages have become free, the last sync was answered, or the link has ended.
    moved: Condvar,
    on_end: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    free: Vec<u32>,
    last_sync: Option<Result<(), Errno>>,
    /// The mount is gone: that the server goes as well is no news.
    leaving: bool,
    ended: bool,
}

/// A request on its way.
struct Waiting {
    exchange: FuseExchange,
    opcode: u32,
    payload: Vec<u32>,
    target: Vec<u32>,
}

impl Relay {
    /// Uses a link that nobody has started. `max_write` is the one of the mount; `writeback` lets the server grant the kernel a
    /// write-back cache, which wants [`crate::MountOptions::write_back_barrier`]. `on_end` is called once, on a thread of the
    /// link, when it ends before the mount does: the server has gone, and every request fails from then on.
    pub fn new(
        link: Arc<dyn Link>,
        max_write: u32,
        writeback: bool,
        on_end: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Relay> {
        let state = State { free: (0..link.pages()).collect(), ..State::default() };
        let desk = Arc::new(Desk {
            link: Arc::clone(&link),
            max_write,
            state: Mutex::new(state),
            moved: Condvar::new(),
            on_end: Box::new(on_end),
        });
        link.start(Arc::clone(&desk) as Arc<dyn Receiver>);
        Arc::new(Relay { link, max_write, writeback, desk })
    }

    /// Carries what comes from a queue, until the mount is gone.
    pub fn run(&self, mut queue: FuseQueue) {
        while let Some(exchange) = queue.next() {
            self.carry(exchange);
        }
    }

    /// The last call, when all queues have ended: a sync, and a DESTROY if the kernel has sent none. Fails if not everything may be
    /// stable.
    pub fn end(&self) -> Result<(), Errno> {
        let already = self.desk.state.lock().last_sync;
        if let Some(synced) = already {
            return synced;
        }
        let synced = self.last_sync();
        let destroy = RequestHead::new(Opcode::Destroy, NodeId(0));
        let _ = self.link.submit(request(LAST_SYNC - 1, destroy, USUAL_ROOM));
        synced
    }

    fn carry(&self, mut exchange: FuseExchange) {
        let Ok((header, arguments)) = InHeader::read_from_prefix(exchange.head()) else {
            return exchange.finish_without_reply();
        };
        let opcode = Opcode::from_raw(header.opcode);
        let (reply_room, read) = (room(opcode, arguments), read_size(opcode, arguments));
        match opcode {
            Some(Opcode::BatchForget) => {
                self.forget_many(arguments);
                return exchange.finish_without_reply();
            }
            Some(Opcode::Interrupt) => return self.interrupt(exchange),
            Some(Opcode::NotifyReply) => return exchange.finish_without_reply(),
            Some(Opcode::Destroy) => drop(self.last_sync()),
            _ => {}
        }
        let head = self.rewritten(opcode, exchange.head().to_vec());
        let mut message = message(header.unique, head, reply_room);
        if opcode == Some(Opcode::Forget) {
            return self.forget(exchange, message);
        }
        let payload_length = exchange.parts().1.len();
        if read.max(payload_length) > self.max_write as usize || message.head.len() > HEAD_MAX {
            return exchange.finish(error_header(RequestId(header.unique), Errno::EINVAL));
        }
        let Some((payload, target)) = self.desk.take_pages(payload_length, read) else { return };
        self.fill(&mut exchange, &payload);
        message.payload = segments(&payload, payload_length);
        message.target = segments(&target, read);
        let waiting = Waiting { exchange, opcode: header.opcode, payload, target };
        self.desk.state.lock().waiting.insert(header.unique, waiting);
        if self.link.submit(message).is_err() {
            // Dropped, it is answered with EIO.
            self.desk.take(header.unique);
        }
    }

    /// The head as the server is to see it: without what we do not want, and asking for no more names than a link has room for.
    fn rewritten(&self, opcode: Option<Opcode>, mut head: Vec<u8>) -> Vec<u8> {
        let arguments = &mut head[IN_HEADER_SIZE..];
        match opcode {
            Some(Opcode::Init) if !self.writeback => {
                if let Ok((init, _)) = InitIn::mut_from_prefix(arguments) {
                    init.flags &= !(InitFlags::WRITEBACK_CACHE.bits() as u32);
                }
            }
            Some(Opcode::Readdir | Opcode::Readdirplus) => {
                if let Ok((read, _)) = ReadIn::mut_from_prefix(arguments) {
                    read.size = read.size.min(NAMES_ROOM as u32);
                }
            }
            _ => {}
        }
        head
    }

    /// Copies the payload into pages of the link.
    fn fill(&self, exchange: &mut FuseExchange, pages: &[u32]) {
        let payload = exchange.payload();
        for (page, piece) in pages.iter().zip(payload.chunks(PAGE_BYTES)) {
            self.link.write_page(*page, 0, piece);
        }
    }

    fn forget(&self, exchange: FuseExchange, message: Message) {
        let _ = self.link.submit(Message { id: 0, reply_room: 0, urgent: true, ..message });
        exchange.finish_without_reply();
    }

    /// The kernel puts as many into one request as fit into our buffer; a link takes less.
    fn forget_many(&self, arguments: &[u8]) {
        let items = arguments.get(size_of::<BatchForgetIn>()..).unwrap_or_default();
        for items in items.chunks(FORGETS_AT_ONCE * size_of::<ForgetOne>()) {
            let count = (items.len() / size_of::<ForgetOne>()) as u32;
            let batch = BatchForgetIn { count, ..Default::default() };
            let head = RequestHead::new(Opcode::BatchForget, NodeId(0)).with(&batch).with(items);
            let _ = self.link.submit(Message { urgent: true, ..request(0, head, 0) });
        }
    }

    /// Passed on if it is about a wait for a lock, perhaps for ever. Linux sends no other over virtio-fs, nor this one, and servers
    /// whose locks end with their client expect none.
    fn interrupt(&self, exchange: FuseExchange) {
        let head = exchange.head().to_vec();
        let Ok((header, arguments)) = InHeader::read_from_prefix(&head) else {
            return exchange.finish_without_reply();
        };
        let target = InterruptIn::read_from_prefix(arguments).map_or(0, |(interrupt, _)| interrupt.unique);
        let waiting = self.desk.state.lock().waiting.get(&target).map(|waiting| waiting.opcode);
        match waiting.map(Opcode::from_raw) {
            Some(Some(Opcode::Setlkw)) => {
                let _ = self.link.submit(Message { urgent: true, ..message(0, head, 0) });
                exchange.finish_without_reply();
            }
            Some(_) => exchange.finish_without_reply(),
            // Answered, which the kernel knows, or about to be carried: then it asks again.
            None => exchange.finish(error_header(RequestId(header.unique), Errno::EAGAIN)),
        }
    }

    /// Leaving is a sync too, also for servers that do not know it.
    fn last_sync(&self) -> Result<(), Errno> {
        let head = RequestHead::new(Opcode::Syncfs, NodeId::ROOT).with(&SyncfsIn::default());
        let sent = self.link.submit(request(LAST_SYNC, head, USUAL_ROOM));
        let mut state = self.desk.state.lock();
        state.leaving = true;
        if sent.is_err() {
            state.last_sync = Some(Err(Errno::ENOTCONN));
        }
        loop {
            match state.last_sync {
                Some(synced) => return synced,
                None if state.ended => return Err(Errno::ENOTCONN),
                None => self.desk.moved.wait(&mut state),
            }
        }
    }
}

impl Desk {
    /// Pages for so many bytes each way, waiting for them; `None` if the link has ended.
    fn take_pages(&self, payload: usize, target: usize) -> Option<(Vec<u32>, Vec<u32>)> {
        let (payload, target) = (payload.div_ceil(PAGE_BYTES), target.div_ceil(PAGE_BYTES));
        let mut state = self.state.lock();
        while state.free.len() < payload + target && !state.ended {
            self.moved.wait(&mut state);
        }
        if state.ended {
            return None;
        }
        let mut take = |count| {
            let rest = state.free.len() - count;
            state.free.split_off(rest)
        };
        Some((take(payload), take(target)))
    }

    fn take(&self, id: u64) -> Option<Waiting> {
        let waiting = self.state.lock().waiting.remove(&id)?;
        Some(waiting)
    }

    fn give_back(&self, pages: [Vec<u32>; 2]) {
        let pages = pages.concat();
        if !pages.is_empty() {
            self.state.lock().free.extend(pages);
            self.moved.notify_all();
        }
    }

    fn answer(&self, waiting: Waiting, completion: &Completion) {
        let Waiting { mut exchange, opcode, payload, target } = waiting;
        let header = self.header(completion, opcode, &mut exchange, &target);
        self.give_back([payload, target]);
        exchange.finish(header);
    }

    /// The header to answer with, once the body is in its place; EIO for an answer that makes no sense.
    fn header(
        &self,
        completion: &Completion,
        opcode: u32,
        exchange: &mut FuseExchange,
        target: &[u32],
    ) -> OutHeader {
        let id = RequestId(completion.id);
        let asked = Opcode::from_raw(opcode);
        // virtiofsd gives it back without a word.
        if asked == Some(Opcode::Destroy) && completion.length == 0 {
            return OutHeader { len: OUT_HEADER_SIZE as u32, error: 0, unique: id.0 };
        }
        let end = match answer_body(id, &completion.reply, completion.length) {
            Ok(end) => end,
            // The kernel would take it for success, and never ask again.
            Err(AnswerError::Errno(Errno::ENOSYS)) if asked == Some(Opcode::Syncfs) => {
                tracing::error!(
                    "the server knows no SYNCFS: sync fails, and only fsync makes changes stable"
                );
                return error_header(id, Errno::EOPNOTSUPP);
            }
            Err(AnswerError::Errno(errno)) => return error_header(id, errno),
            Err(AnswerError::Fault(fault)) => {
                tracing::error!("{fault} ({id:?}); it becomes EIO");
                return error_header(id, Errno::EIO);
            }
        };
        let fixed = completion.reply.get(OUT_HEADER_SIZE..completion.length.min(completion.reply.len()));
        let mut fixed = fixed.unwrap_or_default().to_vec();
        if asked == Some(Opcode::Init)
            && let Ok((init, _)) = InitOut::mut_from_prefix(&mut fixed)
        {
            init.max_write = init.max_write.min(self.max_write);
        }
        let body = exchange.parts().1;
        let mut filled = body.fill(0, &fixed);
        let mut page_bytes = [0; PAGE_BYTES];
        let mut position = fixed.len();
        for page in target {
            let piece = &mut page_bytes[..PAGE_BYTES.min(end.saturating_sub(position))];
            self.link.read_page(*page, 0, piece);
            filled = filled.and_then(|()| body.fill(position, piece));
            position += piece.len();
        }
        match filled {
            Ok(()) => OutHeader { len: completion.length as u32, error: 0, unique: id.0 },
            Err(NoRoom) => error_header(id, Errno::EIO),
        }
    }
}

impl Receiver for Desk {
    fn completed(&self, completion: Completion) {
        if completion.id == LAST_SYNC {
            let answer = answer_body(RequestId(completion.id), &completion.reply, completion.length);
            let synced = answer.map(drop).map_err(|error| match error {
                AnswerError::Errno(errno) => errno,
                AnswerError::Fault(_) => Errno::EIO,
            });
            self.state.lock().last_sync = Some(synced);
            self.moved.notify_all();
        } else if let Some(waiting) = self.take(completion.id) {
            self.answer(waiting, &completion);
        }
    }

    fn ended(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        let waiting = std::mem::take(&mut state.waiting);
        let leaving = state.leaving;
        drop(state);
        // Dropped, each is answered with EIO.
        drop(waiting);
        self.moved.notify_all();
        if !leaving {
            (self.on_end)();
        }
    }
}

/// Bytes of data that a READ asks for; 0 for everything else.
fn read_size(opcode: Option<Opcode>, arguments: &[u8]) -> usize {
    match opcode {
        Some(Opcode::Read) => ReadIn::read_from_prefix(arguments).map_or(0, |(read, _)| read.size as usize),
        _ => 0,
    }
}

/// Bytes of an answer between its header and the data of a READ.
fn room(opcode: Option<Opcode>, arguments: &[u8]) -> usize {
    match opcode {
        Some(Opcode::Read) => 0,
        Some(Opcode::Readdir | Opcode::Readdirplus) => {
            let size = ReadIn::read_from_prefix(arguments).map_or(0, |(read, _)| read.size as usize);
            size.min(NAMES_ROOM)
        }
        Some(Opcode::Getxattr | Opcode::Listxattr) => {
            // With size 0 only the size is asked for.
            GetxattrIn::read_from_prefix(arguments)
                .map_or(0, |(get, _)| get.size as usize)
                .clamp(8, XATTR_ROOM)
        }
        Some(Opcode::Ioctl) => {
            let size = IoctlIn::read_from_prefix(arguments).map_or(0, |(ioctl, _)| ioctl.out_size as usize);
            USUAL_ROOM + size.min(XATTR_ROOM)
        }
        _ => USUAL_ROOM,
    }
}

fn message(id: u64, head: Vec<u8>, reply_room: usize) -> Message {
    Message { id, head, payload: Vec::new(), reply_room, target: Vec::new(), urgent: false }
}

/// A request of our own.
fn request(id: u64, head: RequestHead, reply_room: usize) -> Message {
    message(id, head.finish(RequestId(id), Sender::default(), 0), reply_room)
}

fn segments(pages: &[u32], length: usize) -> Vec<Segment> {
    let lengths = (0..length).step_by(PAGE_BYTES).map(|begin| (length - begin).min(PAGE_BYTES) as u32);
    pages.iter().zip(lengths).map(|(&page, length)| Segment { page, length }).collect()
}
