//! A link to the real server: a client's requests become exchanges of a session, in memory, on as many workers as the
//! test wants. No script, no socket; what is tested is client and server against each other.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver as Queue, Sender, channel};
use std::sync::{Arc, OnceLock};

use ashore_client::link::{Closed, Link, Message, Receiver};
use ashore_client::toy::Pages;
use ashore_client::{Client, Options};
use ashore_server::{FileSystem, Session, Worker};
use ashore_wire::abi::{OUT_HEADER_SIZE, OutHeader};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Exchange, NoRoom, Payload, ReplyBody, RequestQueue, TransferMode};
use ashore_wire::{Errno, RequestId};
use parking_lot::Mutex;
use rustix::io::ReadWriteFlags;
use zerocopy::IntoBytes;

/// A client of this session, over so many queues and pages.
pub fn connect<F: FileSystem>(
    session: &Arc<Session<F>>,
    queues: usize,
    pages: u32,
    options: Options,
) -> Client {
    let started: Vec<_> = (0..queues)
        .map(|_| {
            let (sender, queue) = channel();
            let worker = Worker::new(Arc::clone(session));
            std::thread::spawn(move || worker.run(ServedQueue(queue)));
            sender
        })
        .collect();
    let link = ServedLink {
        pages: Arc::new(Pages::new(pages)),
        queues: Mutex::new(started),
        receiver: OnceLock::new(),
    };
    Client::new(link, options).expect("our server agrees with our client")
}

struct ServedLink {
    pages: Arc<Pages>,
    queues: Mutex<Vec<Sender<ServedExchange>>>,
    receiver: OnceLock<Arc<dyn Receiver>>,
}

impl Link for ServedLink {
    fn pages(&self) -> u32 {
        self.pages.len()
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        self.pages.read(page, offset, into);
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        self.pages.write(page, offset, from);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        self.pages.zero(page, range);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        _ = self.receiver.set(receiver);
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        let room =
            message.reply_room + message.target.iter().map(|segment| segment.length as usize).sum::<usize>();
        let mut words = vec![0u64; message.head.len().div_ceil(8)];
        words.as_mut_bytes()[..message.head.len()].copy_from_slice(&message.head);
        let queues = self.queues.lock();
        // Requests of one file go over different queues, so that they overtake each other.
        let position = (message.id / 2) as usize % queues.len().max(1);
        let exchange = ServedExchange {
            bulk: Bulk { payload: self.pages.gather(&message.payload), body: vec![0; room] },
            head: words,
            pages: Arc::clone(&self.pages),
            receiver: self.receiver.get().cloned(),
            message: Some(message),
        };
        queues.get(position).ok_or(Closed)?.send(exchange).map_err(|_| Closed)
    }

    fn close(&self) {
        self.queues.lock().clear();
    }
}

struct ServedQueue(Queue<ServedExchange>);

impl RequestQueue for ServedQueue {
    type Exchange = ServedExchange;

    fn next(&mut self) -> Option<ServedExchange> {
        self.0.recv().ok()
    }
}

struct ServedExchange {
    head: Vec<u64>,
    bulk: Bulk,
    pages: Arc<Pages>,
    receiver: Option<Arc<dyn Receiver>>,
    message: Option<Message>,
}

impl ServedExchange {
    fn answer(&mut self, header: OutHeader) {
        let Some(message) = self.message.take().filter(|message| message.id != 0) else { return };
        let body = &self.bulk.body[..header.len as usize - OUT_HEADER_SIZE];
        let reply = [header.as_bytes(), body].concat();
        if let Some(receiver) = &self.receiver {
            receiver.completed(self.pages.deliver(&message, reply));
        }
    }
}

impl Exchange for ServedExchange {
    type Bulk = Bulk;

    fn parts(&mut self) -> (&[u8], &mut Bulk) {
        let length = self.message.as_ref().map_or(0, |message| message.head.len());
        (&self.head.as_bytes()[..length], &mut self.bulk)
    }

    fn finish(mut self, header: OutHeader) {
        self.answer(header);
    }

    fn finish_without_reply(mut self) {
        self.message = None;
    }
}

impl Drop for ServedExchange {
    fn drop(&mut self) {
        let id = self.message.as_ref().map(|message| RequestId(message.id));
        if let Some(id) = id {
            self.answer(error_header(id, Errno::EIO));
        }
    }
}

struct Bulk {
    payload: Vec<u8>,
    body: Vec<u8>,
}

impl Payload for Bulk {
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
        let data = [io::IoSlice::new(&self.payload[..len.min(self.payload.len())])];
        Ok(rustix::io::pwritev2(file, &data, offset, ReadWriteFlags::from_bits_retain(mode.flags()))?)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.payload.len());
        buffer[..length].copy_from_slice(&self.payload[..length]);
        length
    }
}

impl ReplyBody for Bulk {
    fn room(&self) -> Option<usize> {
        Some(self.body.len())
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
        _: TransferMode,
    ) -> io::Result<usize> {
        let len = len.min(self.body.len());
        Ok(rustix::io::pread(file, &mut self.body[..len], offset)?)
    }
}
