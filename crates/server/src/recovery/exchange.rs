//! The queue between a transport and its worker that writes down what is asked and answered.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ashore_wire::abi::{
    BatchForgetIn, CreateIn, EntryOut, ForgetIn, ForgetOne, InHeader, OUT_HEADER_SIZE, OpenIn, OpenOut,
};
use ashore_wire::abi::{OutHeader, ReleaseIn};
use ashore_wire::reply::error_header;
use ashore_wire::seam::{Backlog, Exchange, NoRoom, Payload, ReplyBody, RequestQueue, TransferMode};
use ashore_wire::{Errno, FileHandle, NodeId, Opcode, Request, RequestId};
use zerocopy::FromBytes;

use super::record::{Answer, OpenedBy, Record, Slot, What};
use super::resolve::{self, Verdict};
use super::{Done, Journal, Recoverable};
use crate::session::Session;

/// Bytes of an answer that are written down; those that are longer are of requests that change nothing.
const ANSWER_MAX: usize = size_of::<EntryOut>() + size_of::<OpenOut>();

/// A queue whose requests are written down. Made by [`Journal::record`].
pub struct Recovering<F, Q> {
    queue: Q,
    session: Arc<Session<F>>,
    journal: Arc<Journal>,
}

impl<F: Recoverable, Q> Recovering<F, Q> {
    pub(super) fn new(queue: Q, session: Arc<Session<F>>, journal: Arc<Journal>) -> Recovering<F, Q> {
        Recovering { queue, session, journal }
    }
}

impl<F: Recoverable, Q: RequestQueue> RequestQueue for Recovering<F, Q> {
    type Exchange = RecordedExchange<F, Q::Exchange>;

    fn next(&mut self) -> Option<Self::Exchange> {
        loop {
            let mut exchange = self.queue.next()?;
            let head = exchange.parts().0.to_vec();
            let mut recorded = RecordedExchange {
                head,
                both: Both::new(exchange),
                slot: None,
                forgiven: None,
                session: Arc::clone(&self.session),
                journal: Arc::clone(&self.journal),
            };
            match recorded.admit() {
                Admission::Go => return Some(recorded),
                Admission::Answered(answer) => recorded.answer_as_before(&answer),
                Admission::Forgotten => recorded.settle(None),
                Admission::Refused(errno) => {
                    let refusal = error_header(recorded.id(), errno);
                    recorded.settle(Some(refusal));
                }
            }
        }
    }
}

enum Admission {
    Go,
    Answered(Answer),
    Forgotten,
    Refused(Errno),
}

/// An exchange that is written down before it is finished. Made by [`Recovering`].
pub struct RecordedExchange<F, E: Exchange> {
    head: Vec<u8>,
    both: Both<E>,
    /// Where its records stand, once there are any.
    slot: Option<Slot>,
    /// The error that means that the process before this one has done it.
    forgiven: Option<Errno>,
    session: Arc<Session<F>>,
    journal: Arc<Journal>,
}

/// Payload and room of the exchange; what is filled in is remembered.
pub struct Both<E> {
    exchange: E,
    bytes: usize,
    room: Option<usize>,
    body: Vec<u8>,
}

impl<F: Recoverable, E: Exchange> RecordedExchange<F, E> {
    fn header(&self) -> Option<InHeader> {
        InHeader::read_from_prefix(&self.head).ok().map(|(header, _)| header)
    }

    fn id(&self) -> RequestId {
        Request::id_of(&self.head).unwrap_or(RequestId(0))
    }

    fn opcode(&self) -> Option<Opcode> {
        Opcode::from_raw(self.header()?.opcode)
    }

    /// Whether it goes to the file system, and as what.
    fn admit(&mut self) -> Admission {
        let unique = self.id().0;
        if self.opcode().is_some_and(is_forget) {
            let before = self.journal.before(unique);
            self.slot = before.map(|(slot, _)| slot);
            return if self.slot.is_some() { Admission::Forgotten } else { Admission::Go };
        }
        let recorded = self.opcode().is_some_and(is_recorded);
        let Some(dialect) = self.session.dialect().filter(|_| recorded) else { return Admission::Go };
        let bytes = self.both.len();
        let Ok(request) = Request::parse(&self.head, bytes, dialect) else { return Admission::Go };
        let filesystem = self.session.filesystem();
        let Some((slot, before)) = self.journal.before(unique) else {
            let Some(seen) = resolve::before(filesystem, &request) else { return Admission::Go };
            return match self.journal.begin(unique, seen) {
                Ok(slot) => {
                    self.slot = Some(slot);
                    Admission::Go
                }
                // Made without a note of it, it might be made twice.
                Err(error) => Admission::Refused(told(&error)),
            };
        };
        self.slot = Some(slot);
        let seen = match before {
            What::Done(answer) => return Admission::Answered(answer),
            What::Begun(seen) => seen,
            What::Forgot => return Admission::Go,
        };
        let mut payload = || {
            let mut payload = vec![0; bytes];
            self.both.copy_to(&mut payload);
            payload
        };
        match resolve::after(filesystem, &self.head, &request, &seen, &mut payload) {
            Verdict::Done => Admission::Answered(Answer { error: 0, body: Vec::new() }),
            Verdict::Again(form) => {
                self.head = form.unwrap_or_else(|| std::mem::take(&mut self.head));
                Admission::Go
            }
            Verdict::AgainUnless(errno) => {
                self.forgiven = Some(errno);
                Admission::Go
            }
        }
    }

    fn answer_as_before(mut self, answer: &Answer) {
        let length = OUT_HEADER_SIZE + answer.body.len();
        let header = OutHeader { len: length as u32, error: answer.error, unique: self.id().0 };
        let filled = self.both.exchange.parts().1.fill(0, &answer.body);
        let header = filled.map_or_else(|NoRoom| error_header(self.id(), Errno::ERANGE), |()| header);
        self.settle(Some(header));
    }

    /// Gives the request back; nothing need be known of it any more.
    fn settle(self, header: Option<OutHeader>) {
        let RecordedExchange { both, journal, slot, .. } = self;
        match header {
            Some(header) => both.exchange.finish(header),
            None => both.exchange.finish_without_reply(),
        }
        slot.inspect(|slot| journal.answered(*slot));
    }

    /// What the answer brings the client.
    fn outcome(&self, opcode: Opcode, header: &OutHeader) -> Done {
        let body = &self.both.body[..self.both.body.len().min(header.len as usize - OUT_HEADER_SIZE)];
        let mut done = Done {
            unique: header.unique,
            answer: Answer { error: header.error, body: body.to_vec() },
            gained: None,
            opened: None,
            closed: None,
        };
        if header.error != 0 {
            return done;
        }
        let node = NodeId(self.header().map_or(0, |header| header.nodeid));
        let arguments = &self.head[ashore_wire::abi::IN_HEADER_SIZE.min(self.head.len())..];
        use Opcode::*;
        if matches!(opcode, Lookup | Symlink | Mknod | Mkdir | Link | Create | Tmpfile) {
            let entry = EntryOut::read_from_prefix(body).ok();
            done.gained = entry.map(|(entry, _)| NodeId(entry.nodeid)).filter(|node| node.0 != 0);
        }
        let opened = |open: &[u8], node, flags, directory| {
            let (open, _) = OpenOut::read_from_prefix(open).ok()?;
            Some(OpenedBy { handle: FileHandle(open.fh), node, flags, directory })
        };
        match opcode {
            Open | Opendir => {
                let flags = OpenIn::read_from_prefix(arguments).map_or(0, |(open, _)| open.flags);
                done.opened = opened(body, node, flags, opcode == Opendir);
            }
            Create | Tmpfile => {
                let flags = CreateIn::read_from_prefix(arguments).map_or(0, |(create, _)| create.flags);
                let open = body.get(size_of::<EntryOut>()..).unwrap_or_default();
                done.opened = done.gained.and_then(|node| opened(open, node, flags, false));
            }
            Release | Releasedir => {
                done.closed =
                    ReleaseIn::read_from_prefix(arguments).ok().map(|(release, _)| FileHandle(release.fh));
            }
            _ => {}
        }
        done
    }

    fn note(&mut self, header: &OutHeader) -> io::Result<()> {
        match self.opcode() {
            // A client that is asked to say INIT again, with another version, has agreed on nothing yet.
            Some(Opcode::Init) if header.error == 0 && self.session.dialect().is_some() => {
                let (init, answer) = (self.head.clone(), self.both.body.clone());
                self.journal.write(Record::Began { init, answer })
            }
            Some(Opcode::Destroy) => self.journal.end(),
            // A name that is not there was looked for: nothing has changed.
            Some(Opcode::Lookup) if header.error != 0 => Ok(()),
            Some(opcode) if is_recorded(opcode) => {
                let done = self.outcome(opcode, header);
                self.slot = Some(self.journal.done(self.session.filesystem(), self.slot, done)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn note_forgotten(&mut self) -> io::Result<()> {
        let Some(header) = self.header() else { return Ok(()) };
        let arguments = &self.head[ashore_wire::abi::IN_HEADER_SIZE..];
        let nodes: Vec<(NodeId, u64)> = match Opcode::from_raw(header.opcode) {
            Some(Opcode::Forget) => ForgetIn::read_from_prefix(arguments)
                .map_or_else(|_| Vec::new(), |(forget, _)| vec![(NodeId(header.nodeid), forget.nlookup)]),
            Some(Opcode::BatchForget) => {
                let nodes = arguments.get(size_of::<BatchForgetIn>()..).unwrap_or_default();
                let node = |bytes: &[u8]| ForgetOne::read_from_bytes(bytes).ok();
                let nodes = nodes.chunks_exact(size_of::<ForgetOne>()).filter_map(node);
                nodes.map(|one| (NodeId(one.nodeid), one.nlookup)).collect()
            }
            _ => return Ok(()),
        };
        self.slot = Some(self.journal.forgot(header.unique, &nodes)?);
        Ok(())
    }
}

impl<F: Recoverable, E: Exchange> Exchange for RecordedExchange<F, E> {
    type Bulk = Both<E>;

    fn parts(&mut self) -> (&[u8], &mut Both<E>) {
        (&self.head, &mut self.both)
    }

    fn finish(mut self, header: OutHeader) {
        let forgiven = self.forgiven.is_some_and(|errno| header.error == -errno.raw());
        let header =
            if forgiven { OutHeader { len: OUT_HEADER_SIZE as u32, error: 0, ..header } } else { header };
        if let Err(error) = self.note(&header) {
            tracing::error!(
                "an answer could not be written to the state file: {error}; killed now, it may be done twice"
            );
        }
        self.settle(Some(header));
    }

    fn finish_without_reply(mut self) {
        if let Err(error) = self.note_forgotten() {
            tracing::error!("lookups given back could not be written to the state file: {error}");
        }
        self.settle(None);
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        self.both.exchange.backlog()
    }
}

impl<E: Exchange> Both<E> {
    fn new(mut exchange: E) -> Both<E> {
        let bulk = exchange.parts().1;
        let (bytes, room) = (bulk.len(), bulk.room());
        Both { exchange, bytes, room, body: Vec::new() }
    }
}

impl<E: Exchange> Payload for Both<E> {
    fn len(&self) -> usize {
        self.bytes
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        self.exchange.parts().1.write_to(file, offset, len, mode)
    }

    fn copy_to(&mut self, buffer: &mut [u8]) -> usize {
        self.exchange.parts().1.copy_to(buffer)
    }
}

impl<E: Exchange> ReplyBody for Both<E> {
    fn room(&self) -> Option<usize> {
        self.room
    }

    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
        self.exchange.parts().1.fill(position, bytes)?;
        let end = position + bytes.len();
        if end <= ANSWER_MAX {
            self.body.resize(end.max(self.body.len()), 0);
            self.body[position..end].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize> {
        self.exchange.parts().1.read_from(file, offset, len, mode)
    }
}

/// What is answered from the file if it comes again.
fn is_recorded(opcode: Opcode) -> bool {
    use Opcode::*;
    let gives = matches!(opcode, Lookup | Open | Opendir | Release | Releasedir);
    // What IOCTL does can be done twice.
    gives || opcode.is_change() && opcode != Ioctl
}

fn is_forget(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Forget | Opcode::BatchForget)
}

fn told(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
