//! Requests one by one, as a kernel would send them: no cache, and no state but ids and what is on its way.
//!
//! For tests, and to measure servers with. A request is a [`Call`]; [`RawConnection::call`] sends it and waits,
//! [`RawConnection::send`] and [`RawConnection::wait`] do the halves, so that many can be on their way:
//!
//! ```no_run
//! use ashore_vhost_user::driver::{Call, LinkOptions, RawConnection};
//! use ashore_wire::NodeId;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let raw = RawConnection::connect("/run/share.socket", LinkOptions::default())?;
//! raw.init(ashore_vhost_user::driver::LINUX_FLAGS)?;
//! let found = raw.lookup(NodeId::ROOT, b"hello")?;
//! println!("{} bytes", found.attr.size);
//!
//! let both = [raw.send(Call::getattr(NodeId::ROOT))?, raw.send(Call::syncfs(NodeId::ROOT))?];
//! for sent in both {
//!     raw.wait(sent)?;
//! }
//! # Ok(())
//! # }
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashore_wire::abi::{AttrOut, EntryOut, InitOut, OUT_HEADER_SIZE, OpenOut, WriteOut};
use ashore_wire::encode::{AnswerError, AnswerFault, Sender, answer_body, take};
use ashore_wire::flags::InitFlags;
use ashore_wire::link::{Completion, Link, Message, Receiver, Segment};
use ashore_wire::{Errno, FileHandle, NodeId, Opcode, RequestId};
use parking_lot::{Condvar, Mutex};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::call::{Call, Pages};
use super::handshake::ConnectError;
use super::link::{LinkOptions, VhostUserLink};

/// Requests that may be on their way, or answered and not waited for, on one connection.
pub const RAW_IN_FLIGHT_MAX: usize = 1024;

/// Why there is no good answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RawError {
    /// The file system said no.
    #[error("{0}")]
    Errno(Errno),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Fault(#[from] AnswerFault),
    /// The link has ended, before or after the request was sent.
    #[error("the link to the server has ended")]
    Closed,
    /// No answer came in time.
    #[error("the server did not answer within {0:?}")]
    NoAnswer(Duration),
    /// [`RAW_IN_FLIGHT_MAX`] requests are on their way, or were never waited for.
    #[error("{RAW_IN_FLIGHT_MAX} requests are on their way")]
    Full,
}

impl From<AnswerError> for RawError {
    fn from(error: AnswerError) -> RawError {
        match error {
            AnswerError::Errno(errno) => RawError::Errno(errno),
            AnswerError::Fault(fault) => RawError::Fault(fault),
        }
    }
}

/// A good answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What is behind the header, as far as it is not in pages.
    pub body: Vec<u8>,
    /// Bytes in the pages of the call.
    pub in_place: usize,
}

/// A request on its way. To be waited for, or it takes up room until the connection ends.
#[must_use]
#[derive(Debug)]
pub struct Sent {
    id: u64,
    has_target: bool,
    /// Takes as long as a disk does: looking for the answer would be in vain.
    slow: bool,
}

impl Sent {
    /// Its id, for an INTERRUPT.
    pub fn id(&self) -> RequestId {
        RequestId(self.id)
    }
}

/// A connection to a server; see the module.
pub struct RawConnection {
    link: Arc<dyn Link>,
    inbox: Arc<Inbox>,
    sender: Sender,
    patience: Option<Duration>,
    /// The next number of a request without an answer.
    told: AtomicU64,
}

impl RawConnection {
    /// Connects to the server that listens at `socket`. INIT is the caller's next step.
    pub fn connect(socket: impl AsRef<Path>, options: LinkOptions) -> Result<RawConnection, ConnectError> {
        Ok(RawConnection::over(Arc::new(VhostUserLink::connect(socket, options)?)))
    }

    /// Uses a link that nobody has started.
    pub fn over(link: Arc<dyn Link>) -> RawConnection {
        let inbox = Arc::new(Inbox::default());
        link.start(Arc::clone(&inbox) as Arc<dyn Receiver>);
        let sender = Sender { pid: std::process::id(), ..Sender::default() };
        RawConnection { link, inbox, sender, patience: None, told: AtomicU64::new(2) }
    }

    /// Gives up waiting for an answer after some time.
    pub fn with_patience(mut self, patience: Duration) -> RawConnection {
        self.patience = Some(patience);
        self
    }

    /// On whose behalf requests are made: root's, unless told otherwise.
    pub fn with_sender(mut self, sender: Sender) -> RawConnection {
        self.sender = sender;
        self
    }

    /// The link, for its pages.
    pub fn link(&self) -> &dyn Link {
        &*self.link
    }

    /// Sends a request.
    pub fn send(&self, call: Call) -> Result<Sent, RawError> {
        let id = self.inbox.begin()?;
        let slow = matches!(
            call.head.opcode(),
            Opcode::Setlkw | Opcode::Syncfs | Opcode::Fsync | Opcode::Fsyncdir | Opcode::Destroy
        );
        let sent = Sent { id, has_target: call.target.is_some(), slow };
        if self.link.submit(message(id, RequestId(id), self.sender, call)).is_err() {
            self.inbox.end();
            self.inbox.take(id);
            return Err(RawError::Closed);
        }
        Ok(sent)
    }

    /// Sends a request that has no answer: FORGET, INTERRUPT and their like.
    pub fn tell(&self, call: Call) -> Result<(), RawError> {
        let unique = RequestId(ONE_WAY | self.told.fetch_add(2, Ordering::Relaxed));
        self.link.submit(message(0, unique, self.sender, call)).map_err(|_| RawError::Closed)
    }

    /// Waits for an answer.
    pub fn wait(&self, sent: Sent) -> Result<Answer, RawError> {
        let completion = self.wait_for_completion(&sent)?;
        answer(&sent, completion)
    }

    /// Keeps `depth` requests on their way until `count` of them were answered; `sent` are those that are on their way, for the
    /// next call or to be waited for. Returns how many were answered, a few more perhaps. An answer that is not a good one is the
    /// error.
    pub fn stream(
        &self,
        sent: &mut Vec<Sent>,
        depth: usize,
        count: usize,
        mut next: impl FnMut() -> Call,
    ) -> Result<usize, RawError> {
        let (mut answered, mut outcome) = (0, Ok(()));
        loop {
            let mut turn = || {
                let took = self.take_answered(sent).and_then(|took| {
                    while sent.len() < depth {
                        sent.push(self.send(next())?);
                    }
                    Ok(took)
                });
                match took {
                    Ok(took) => answered += took,
                    Err(error) => outcome = Err(error),
                }
                answered >= count || outcome.is_err()
            };
            // All in one visit, lest the answers to what is being sent interrupt the sending.
            if turn() || self.link.attend(&mut turn) {
                return outcome.map(|()| answered);
            }
            self.sleep_until_one_of(sent);
        }
    }

    /// Takes those answers out of `sent` that are there.
    fn take_answered(&self, sent: &mut Vec<Sent>) -> Result<usize, RawError> {
        let mut table = self.inbox.table.lock();
        let (before, mut outcome) = (sent.len(), Ok(()));
        sent.retain(|one| match table.take(one.id) {
            Some(completion) => {
                outcome = outcome.and(answer(one, completion).map(drop));
                false
            }
            None => true,
        });
        if table.ended && outcome.is_ok() {
            return Err(RawError::Closed);
        }
        outcome.map(|()| before - sent.len())
    }

    fn sleep_until_one_of(&self, sent: &[Sent]) {
        let mut table = self.inbox.table.lock();
        table.watchers += 1;
        while !table.ended && !sent.iter().any(|sent| table.is_done(sent.id)) {
            self.inbox.came.wait(&mut table);
        }
        table.watchers -= 1;
    }

    /// Whether a request is answered.
    pub fn is_done(&self, sent: &Sent) -> bool {
        self.inbox.table.lock().is_done(sent.id)
    }

    /// Sends a request and waits for its answer.
    pub fn call(&self, call: Call) -> Result<Answer, RawError> {
        self.wait(self.send(call)?)
    }

    fn wait_for_completion(&self, sent: &Sent) -> Result<Completion, RawError> {
        let (id, deadline) = (sent.id, self.patience.map(|patience| Instant::now() + patience));
        if !sent.slow {
            self.link.attend(&mut || self.is_done(sent));
        }
        let mut table = self.inbox.table.lock();
        loop {
            if let Some(completion) = table.take(id) {
                return Ok(completion);
            }
            if table.ended {
                return Err(RawError::Closed);
            }
            table.slot(id).expect("it was sent, and not taken").somebody_sleeps = true;
            match deadline {
                None => self.inbox.came.wait(&mut table),
                Some(deadline) if !self.inbox.came.wait_until(&mut table, deadline).timed_out() => {}
                Some(_) if table.is_done(id) => {}
                Some(_) => {
                    table.abandon(id);
                    return Err(RawError::NoAnswer(self.patience.unwrap_or_default()));
                }
            }
        }
    }

    fn structure<T: FromBytes + KnownLayout + Immutable>(&self, call: Call) -> Result<T, RawError> {
        Ok(take::<T>(&self.call(call)?.body)?.0)
    }

    /// Agrees on version and features. The reply's flags are those of both sides.
    pub fn init(&self, flags: InitFlags) -> Result<InitOut, RawError> {
        self.structure(Call::init(flags))
    }

    /// Finds a name.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<EntryOut, RawError> {
        self.structure(Call::lookup(parent, name))
    }

    /// Attributes of a node.
    pub fn getattr(&self, node: NodeId) -> Result<AttrOut, RawError> {
        self.structure(Call::getattr(node))
    }

    /// Opens a file, with the `O_` flags of open(2).
    pub fn open(&self, node: NodeId, flags: u32) -> Result<FileHandle, RawError> {
        let open: OpenOut = self.structure(Call::open(node, flags))?;
        Ok(FileHandle(open.fh))
    }

    /// Closes a file.
    pub fn release(&self, node: NodeId, handle: FileHandle) -> Result<(), RawError> {
        self.call(Call::release(node, handle)).map(drop)
    }

    /// Makes a file and opens it for reading and writing.
    pub fn create(&self, parent: NodeId, name: &[u8]) -> Result<(EntryOut, FileHandle), RawError> {
        let answer = self.call(Call::create(parent, name))?;
        let (entry, rest) = take::<EntryOut>(&answer.body)?;
        Ok((entry, FileHandle(take::<OpenOut>(rest)?.0.fh)))
    }

    /// Makes a directory.
    pub fn mkdir(&self, parent: NodeId, name: &[u8]) -> Result<EntryOut, RawError> {
        self.structure(Call::mkdir(parent, name))
    }

    /// Removes a name.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<(), RawError> {
        self.call(Call::unlink(parent, name)).map(drop)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<(), RawError> {
        self.call(Call::rmdir(parent, name)).map(drop)
    }

    /// Reads into pages; returns the number of bytes.
    pub fn read(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        into: Pages,
    ) -> Result<usize, RawError> {
        Ok(self.call(Call::read(node, handle, offset, into))?.in_place)
    }

    /// Reads up to 256 KiB.
    pub fn read_bytes(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        most: u32,
    ) -> Result<Vec<u8>, RawError> {
        Ok(self.call(Call::read_bytes(node, handle, offset, most))?.body)
    }

    /// Writes from pages; returns the number of bytes.
    pub fn write(&self, node: NodeId, handle: FileHandle, offset: u64, from: Pages) -> Result<u32, RawError> {
        let written: WriteOut = self.structure(Call::write(node, handle, offset, from))?;
        Ok(written.size)
    }

    /// Writes up to 64 KiB.
    pub fn write_bytes(
        &self,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        from: &[u8],
    ) -> Result<u32, RawError> {
        let written: WriteOut = self.structure(Call::write_bytes(node, handle, offset, from))?;
        Ok(written.size)
    }

    /// Makes one file stable.
    pub fn fsync(&self, node: NodeId, handle: FileHandle) -> Result<(), RawError> {
        self.call(Call::fsync(node, handle)).map(drop)
    }

    /// Makes the whole file system stable.
    pub fn syncfs(&self) -> Result<(), RawError> {
        self.call(Call::syncfs(NodeId::ROOT)).map(drop)
    }

    /// Opens a directory.
    pub fn opendir(&self, node: NodeId) -> Result<FileHandle, RawError> {
        let open: OpenOut = self.structure(Call::opendir(node))?;
        Ok(FileHandle(open.fh))
    }

    /// Names and entries from an offset on, as [`ashore_wire::encode::listed_names`] understands them; nothing at the
    /// end of the directory.
    pub fn readdirplus(&self, node: NodeId, handle: FileHandle, offset: u64) -> Result<Vec<u8>, RawError> {
        Ok(self.call(Call::readdirplus(node, handle, offset))?.body)
    }

    /// Closes a directory.
    pub fn releasedir(&self, node: NodeId, handle: FileHandle) -> Result<(), RawError> {
        self.call(Call::releasedir(node, handle)).map(drop)
    }

    /// Gives lookups of nodes back: each node with their number.
    pub fn forget(&self, nodes: &[(NodeId, u64)]) -> Result<(), RawError> {
        nodes.chunks(Call::FORGET_MAX).try_for_each(|nodes| self.tell(Call::batch_forget(nodes)))
    }

    /// Takes leave. virtiofsd gives this request back without a word; leaving has but one outcome, so that will do.
    pub fn destroy(&self) -> Result<(), RawError> {
        match self.call(Call::destroy()) {
            Ok(_) | Err(RawError::Fault(AnswerFault::NoHeader(0))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn answer(sent: &Sent, completion: Completion) -> Result<Answer, RawError> {
    let Completion { mut reply, length, .. } = completion;
    let body = answer_body(RequestId(sent.id), &reply, length)?;
    reply.truncate(length);
    reply.drain(..OUT_HEADER_SIZE);
    let in_place = if sent.has_target { body - reply.len() } else { 0 };
    Ok(Answer { in_place, body: reply })
}

/// `id` is 0 where nobody waits for an answer.
fn message(id: u64, unique: RequestId, sender: Sender, call: Call) -> Message {
    let payload = call.payload.map_or(0, |pages| pages.bytes);
    Message {
        id,
        head: call.head.finish(unique, sender, payload),
        payload: call.payload.map_or_else(Vec::new, segments),
        reply_room: call.reply_room,
        target: call.target.map_or_else(Vec::new, segments),
        urgent: call.urgent,
    }
}

fn segments(pages: Pages) -> Vec<Segment> {
    let starts = (0..pages.bytes).step_by(Pages::BYTES);
    let segment = |(page, start): (u32, usize)| Segment {
        page: pages.first + page,
        length: (pages.bytes - start).min(Pages::BYTES) as u32,
    };
    (0..).zip(starts).map(segment).collect()
}

/// Answers that came, each in the slot that its id names.
#[derive(Default)]
struct Inbox {
    table: Mutex<Table>,
    came: Condvar,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Threads that sleep until some of several answers have come.
    watchers: usize,
    ended: bool,
}

struct Slot {
    id: u64,
    state: State,
    somebody_sleeps: bool,
}

enum State {
    Free,
    Sent,
    /// Nobody waits any more.
    Abandoned,
    Done(Completion),
}

/// Ids are even, as Linux's are: above the slot stands how often it was used.
const SLOT_SHIFT: u32 = 1;
const USE_SHIFT: u32 = 17;
/// In the ids of requests without an answer.
const ONE_WAY: u64 = 1 << 63;

fn slot_of(id: u64) -> usize {
    (id >> SLOT_SHIFT) as usize & 0xffff
}

impl Inbox {
    fn begin(&self) -> Result<u64, RawError> {
        self.table.lock().begin()
    }

    fn take(&self, id: u64) -> Option<Completion> {
        self.table.lock().take(id)
    }

    fn end(&self) {
        self.table.lock().ended = true;
        self.came.notify_all();
    }
}

impl Table {
    fn begin(&mut self) -> Result<u64, RawError> {
        if self.ended {
            return Err(RawError::Closed);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < RAW_IN_FLIGHT_MAX => {
                let id = (self.slots.len() as u64) << SLOT_SHIFT;
                self.slots.push(Slot { id, state: State::Free, somebody_sleeps: false });
                self.slots.len() - 1
            }
            None => return Err(RawError::Full),
        };
        let slot = &mut self.slots[index];
        slot.id += 1 << USE_SHIFT;
        (slot.state, slot.somebody_sleeps) = (State::Sent, false);
        Ok(slot.id)
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(slot_of(id)).filter(|slot| slot.id == id)
    }

    fn is_done(&self, id: u64) -> bool {
        let slot = self.slots.get(slot_of(id)).filter(|slot| slot.id == id);
        slot.is_some_and(|slot| matches!(slot.state, State::Done(_)))
    }

    fn take(&mut self, id: u64) -> Option<Completion> {
        let slot = self.slot(id)?;
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Done(completion) => {
                self.free.push(slot_of(id));
                Some(completion)
            }
            other => {
                slot.state = other;
                None
            }
        }
    }

    fn abandon(&mut self, id: u64) {
        if let Some(slot) = self.slot(id) {
            slot.state = State::Abandoned;
        }
    }

    /// Says whether somebody sleeps until this. The link sees to it that the id was sent; a slot that is in no such state
    /// is left alone.
    fn completed(&mut self, completion: Completion) -> bool {
        let (id, watched) = (completion.id, self.watchers > 0);
        let Some(slot) = self.slot(id) else { return false };
        match slot.state {
            State::Sent => {
                slot.state = State::Done(completion);
                slot.somebody_sleeps || watched
            }
            State::Abandoned => {
                slot.state = State::Free;
                self.free.push(slot_of(id));
                false
            }
            State::Free | State::Done(_) => false,
        }
    }
}

impl Receiver for Inbox {
    fn completed(&self, completion: Completion) {
        let wake = self.table.lock().completed(completion);
        if wake {
            self.came.notify_all();
        }
    }

    fn ended(&self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use std::ops::Range;
    use std::sync::OnceLock;

    use ashore_wire::abi::OutHeader;
    use ashore_wire::link::Closed;
    use zerocopy::IntoBytes;

    use super::*;

    /// Answers at once, or never, or ends.
    struct Scripted {
        receiver: OnceLock<Arc<dyn Receiver>>,
        script: fn(&Message) -> Option<Completion>,
    }

    impl Link for Scripted {
        fn pages(&self) -> u32 {
            0
        }
        fn read_page(&self, _: u32, _: usize, _: &mut [u8]) {}
        fn write_page(&self, _: u32, _: usize, _: &[u8]) {}
        fn zero_page(&self, _: u32, _: Range<usize>) {}
        fn start(&self, receiver: Arc<dyn Receiver>) {
            assert!(self.receiver.set(receiver).is_ok());
        }
        fn submit(&self, message: Message) -> Result<(), Closed> {
            if let Some(completion) = (self.script)(&message) {
                self.receiver.get().unwrap().completed(completion);
            }
            Ok(())
        }
        fn close(&self) {}
    }

    fn connection(script: fn(&Message) -> Option<Completion>) -> (RawConnection, Arc<Scripted>) {
        let link = Arc::new(Scripted { receiver: OnceLock::new(), script });
        (RawConnection::over(Arc::clone(&link) as Arc<dyn Link>), link)
    }

    fn refuse(message: &Message) -> Option<Completion> {
        let header = OutHeader { len: 16, error: -2, unique: message.id };
        Some(Completion { id: message.id, length: 16, reply: header.as_bytes().to_vec() })
    }

    #[test]
    fn an_answer_is_for_the_request_it_came_for() {
        let (raw, _) = connection(refuse);
        for _ in 0..3 * RAW_IN_FLIGHT_MAX {
            assert_eq!(raw.lookup(NodeId::ROOT, b"x").unwrap_err(), RawError::Errno(Errno::ENOENT));
        }
        assert_eq!(raw.inbox.table.lock().slots.len(), 1, "slots are used again");
    }

    #[test]
    fn a_short_body_is_a_fault() {
        let (raw, _) = connection(|message| {
            let header = OutHeader { len: 16, error: 0, unique: message.id };
            Some(Completion { id: message.id, length: 16, reply: header.as_bytes().to_vec() })
        });
        assert_eq!(raw.getattr(NodeId::ROOT).unwrap_err(), RawError::Fault(AnswerFault::Body));
        assert_eq!(raw.syncfs(), Ok(()));
    }

    #[test]
    fn patience_comes_to_an_end_and_a_late_answer_frees_its_slot() {
        let (raw, link) = connection(|_| None);
        let raw = raw.with_patience(Duration::from_millis(5));
        let sent = raw.send(Call::getattr(NodeId::ROOT)).unwrap();
        let id = sent.id;
        assert_eq!(raw.wait(sent).unwrap_err(), RawError::NoAnswer(Duration::from_millis(5)));
        assert_eq!(raw.inbox.table.lock().free.len(), 0);
        let late = Completion { id, length: 0, reply: Vec::new() };
        link.receiver.get().unwrap().completed(late);
        assert_eq!(raw.inbox.table.lock().free.len(), 1);
    }

    #[test]
    fn a_stream_goes_on_until_so_many_are_answered_and_ends_with_an_error() {
        let (raw, _) = connection(|message| {
            let error = if message.id >> USE_SHIFT > 40 { -2 } else { 0 };
            let header = OutHeader { len: 16, error, unique: message.id };
            Some(Completion { id: message.id, length: 16, reply: header.as_bytes().to_vec() })
        });
        let mut sent = Vec::new();
        let mut stream = |count| raw.stream(&mut sent, 4, count, || Call::syncfs(NodeId::ROOT));
        assert_eq!(stream(100), Ok(100));
        assert_eq!(stream(100), Err(RawError::Errno(Errno::ENOENT)));
    }

    #[test]
    fn the_end_of_the_link_ends_all_waiting() {
        let (raw, link) = connection(|_| None);
        let sent = [raw.send(Call::getattr(NodeId::ROOT)), raw.send(Call::syncfs(NodeId::ROOT))];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let streamed = raw.stream(&mut Vec::new(), 2, 2, || Call::syncfs(NodeId::ROOT));
                assert_eq!(streamed, Err(RawError::Closed));
            });
            for sent in sent {
                scope.spawn(|| assert_eq!(raw.wait(sent.unwrap()).unwrap_err(), RawError::Closed));
            }
            link.receiver.get().unwrap().ended();
        });
        assert_eq!(raw.getattr(NodeId::ROOT).unwrap_err(), RawError::Closed);
    }

    #[test]
    fn what_is_on_its_way_has_a_bound() {
        let (raw, _) = connection(|_| None);
        for _ in 0..RAW_IN_FLIGHT_MAX {
            _ = raw.send(Call::getattr(NodeId::ROOT)).unwrap();
        }
        assert_eq!(raw.send(Call::getattr(NodeId::ROOT)).unwrap_err(), RawError::Full);
    }

    #[test]
    fn pages_become_segments_with_a_short_last_one() {
        let segments = segments(Pages { first: 7, bytes: 2 * Pages::BYTES + 1 });
        let pairs: Vec<_> = segments.iter().map(|segment| (segment.page, segment.length)).collect();
        assert_eq!(pairs, [(7, 4096), (8, 4096), (9, 1)]);
    }
}
