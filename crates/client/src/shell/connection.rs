//! Requests on their way, and what becomes of their answers.
//!
//! One place ends every request, [`Mount::end_request`]: it hands the result over, and only then drops the ticket.
//! That is the second of the two orders.

use std::sync::Arc;

use ashore_barrier::Ticket;
use ashore_wire::abi::InterruptIn;
use ashore_wire::encode::Sender;
use ashore_wire::{Errno, NodeId, Opcode, RequestId};

use super::Mount;
use super::message::{Answer, Outgoing};
use super::patience::Patience;
use super::port::{Completed, Port};
use crate::core::in_flight::{InFlight, interrupt_id};
use crate::mutant::{self, Mutant};
use crate::primitives::{Condvar, Instant, Mutex};

/// What is to be done with an answer. Runs on the thread that brings answers: it must not wait.
pub(crate) type Then = Box<dyn FnOnce(Result<Answer, Errno>) + Send>;

/// What to do when there are as many requests in flight as may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IfFull {
    /// Wait until one is answered.
    Wait,
    /// One more. For the threads that bring answers: if they waited, nobody would bring any. What they send follows an
    /// answer, one for each at most, and that bounds it.
    Exceed,
}

/// A request in flight.
pub(crate) struct Pending {
    ticket: Option<Ticket>,
    then: Then,
    sent: Instant,
    /// Bytes of data asked for, at most.
    most_in_place: usize,
}

/// The connection: the link, and what is in flight on it.
pub(crate) struct Connection {
    port: Port,
    table: Mutex<InFlight<Pending>>,
    room: Condvar,
    caller: (u32, u32),
}

/// An answer somebody waits for.
pub(crate) struct Reply<T = ()> {
    id: Option<RequestId>,
    slot: Arc<Slot<T>>,
}

struct Slot<T> {
    result: Mutex<Option<Result<T, Errno>>>,
    came: Condvar,
}

impl Connection {
    pub(crate) fn new(port: Port, caller: (u32, u32)) -> Connection {
        Connection { port, table: Mutex::new(InFlight::new()), room: Condvar::new(), caller }
    }

    /// ENOTCONN once the connection has ended.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        if self.has_ended() { Err(Errno::ENOTCONN) } else { Ok(()) }
    }

    /// What was waited for is settled; if the connection's end has settled it, nothing is stable.
    pub(crate) fn check_before_sync(&self) -> Result<(), Errno> {
        self.check()
    }

    /// Whether the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.table.lock().has_ended()
    }

    /// When the oldest request in flight was sent.
    pub(crate) fn oldest_sent(&self) -> Option<Instant> {
        self.table.lock().iter().map(|pending| pending.sent).min()
    }

    /// Looks for answers itself, in the link, until `done` or until that is not worth while; the caller, who holds no
    /// lock, is ready to sleep afterwards. Waking a thread takes longer than most requests do.
    pub(crate) fn attend(&self, done: &mut dyn FnMut() -> bool) {
        self.port.attend(done);
    }

    /// Sends a request that has no answer.
    pub(crate) fn send_without_reply(&self, mut request: Outgoing) {
        if self.check().is_ok() {
            let id = self.table.lock().one_way();
            let head = request.finish(id, self.sender(0));
            self.port.submit_one_way(request.opcode(), head);
        }
    }

    fn begin(
        &self,
        request: &mut Outgoing,
        pending: Pending,
        if_full: IfFull,
    ) -> Result<RequestId, (Errno, Pending)> {
        let mut table = self.table.lock();
        while if_full == IfFull::Wait && !table.has_room() && !table.has_ended() {
            self.room.wait(&mut table);
        }
        let id = table.begin(pending)?;
        drop(table);
        let pid = if request.opcode() == Opcode::Write { 0 } else { std::process::id() };
        let head = request.finish(id, self.sender(pid));
        if let Err(errno) = self.port.submit(id.0, head, request) {
            // The end of the link has been noticed here first; the table may have been emptied already.
            return match self.table.lock().answered(id) {
                Some(pending) => Err((errno, pending)),
                None => Ok(id),
            };
        }
        Ok(id)
    }

    fn sender(&self, pid: u32) -> Sender {
        let (uid, gid) = crate::nodes::caller().unwrap_or(self.caller);
        Sender { uid, gid, pid }
    }

    /// The caller of this request no longer waits for it. Its answer is still taken when it comes.
    fn interrupt(&self, id: RequestId) {
        if self.table.lock().pending(id).is_none() {
            return;
        }
        let arguments = InterruptIn { unique: id.0 };
        let mut request = Outgoing::new(Opcode::Interrupt, NodeId(0)).with(&arguments);
        let head = request.finish(interrupt_id(id), self.sender(0));
        self.port.submit_one_way(Opcode::Interrupt, head);
    }
}

impl Mount {
    /// Sends a request; `then` gets its answer. A request that changes something brings its ticket along, which is
    /// dropped once `then` has returned, however the request ends and whoever still waits for it.
    pub(crate) fn send(&self, request: Outgoing, ticket: Option<Ticket>, then: Then) -> Option<RequestId> {
        self.send_or(IfFull::Wait, request, ticket, then)
    }

    /// As [`Mount::send`], where waiting may not be what is wanted.
    pub(crate) fn send_or(
        &self,
        if_full: IfFull,
        mut request: Outgoing,
        ticket: Option<Ticket>,
        then: Then,
    ) -> Option<RequestId> {
        let most_in_place = request.target.iter().map(|segment| segment.length as usize).sum();
        let pending = Pending { ticket, then, sent: Instant::now(), most_in_place };
        match self.connection.begin(&mut request, pending, if_full) {
            Ok(id) => Some(id),
            Err((errno, pending)) => {
                end_request(pending, Err(errno));
                None
            }
        }
    }

    /// Sends a request whose answer is waited for with [`Mount::wait_reply`]. `then` sees the answer first, before
    /// the ticket goes.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        request: Outgoing,
        ticket: Option<Ticket>,
        then: impl FnOnce(Result<Answer, Errno>) -> Result<T, Errno> + Send + 'static,
    ) -> Reply<T> {
        let slot = Arc::new(Slot { result: Mutex::new(None), came: Condvar::new() });
        let filled = Arc::clone(&slot);
        let id = self.send(
            request,
            ticket,
            Box::new(move |answer| {
                let result = then(answer);
                *filled.result.lock() = Some(result);
                filled.came.notify_all();
            }),
        );
        Reply { id, slot }
    }

    /// Waits for an answer. The outer error says that patience came to an end first; the request goes on without
    /// anybody waiting for it.
    pub(crate) fn wait_reply<T>(
        &self,
        reply: Reply<T>,
        patience: &Patience,
    ) -> Result<Result<T, Errno>, Errno> {
        self.connection.attend(&mut || reply.slot.result.lock().is_some() || patience.check().is_err());
        let mut result = reply.slot.result.lock();
        loop {
            if let Some(result) = result.take() {
                return Ok(result);
            }
            if let Err(errno) = patience.wait(&reply.slot.came, &mut result) {
                drop(result);
                if let Some(id) = reply.id {
                    self.connection.interrupt(id);
                }
                return Err(errno);
            }
        }
    }

    /// Sends a request and waits for its answer, which `then` sees before the ticket goes.
    pub(crate) fn call_then<T: Send + 'static>(
        &self,
        request: Outgoing,
        ticket: Option<Ticket>,
        then: impl FnOnce(Result<Answer, Errno>) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let ticket = ticket.filter(|_| !mutant::on(Mutant::CallerLeaves));
        let reply = self.ask(request, ticket, then);
        self.wait_reply(reply, &Patience::ENDLESS)?
    }

    /// Sends a request that changes nothing, and waits for its answer.
    pub(crate) fn call(&self, request: Outgoing) -> Result<Answer, Errno> {
        self.call_then(request, None, |answer| answer)
    }

    /// Sends a request that changes something, and waits for its answer.
    pub(crate) fn change(&self, request: Outgoing) -> Result<Answer, Errno> {
        if self.options.read_only {
            return Err(Errno::EROFS);
        }
        let ticket = self.barrier.enter();
        self.call_then(request, Some(ticket), |answer| answer)
    }

    /// The link brings an answer.
    pub(crate) fn completed(&self, completed: Completed) {
        let mut table = self.connection.table.lock();
        let Some(pending) = table.answered(RequestId(completed.id)) else {
            drop(table);
            tracing::error!("the server answered request {}, which nobody asked", completed.id);
            return self.link_ended();
        };
        drop(table);
        self.connection.room.notify_one();
        let most = pending.most_in_place;
        end_request(pending, completed.into_answer(most));
    }

    /// Ends the connection and its link. Whatever waits on it fails. Not to be called from a thread of the link, which
    /// closing waits for.
    pub(crate) fn abort(&self) {
        let aborted = self.connection.table.lock().end();
        self.connection.port.close();
        self.fail(aborted);
    }

    /// The link has ended, or brings nonsense: whatever waits on it fails. It is closed when the mount is.
    pub(crate) fn link_ended(&self) {
        let aborted = self.connection.table.lock().end();
        self.fail(aborted);
    }

    fn fail(&self, aborted: Vec<Pending>) {
        for pending in aborted {
            end_request(pending, Err(Errno::from_raw(ECONNABORTED)));
        }
        self.barrier.abort();
        self.connection.room.notify_all();
        self.wake_everyone();
    }
}

/// Linux's number for a request that was in flight when its connection ended.
const ECONNABORTED: i32 = 103;

/// Second order: the result is handed over, and with it recorded, before the ticket is dropped. A sync that finds
/// the barrier empty finds every error in the logs.
fn end_request(pending: Pending, result: Result<Answer, Errno>) {
    (pending.then)(result);
    drop(pending.ticket);
}
