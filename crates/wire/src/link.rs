//! The seam between the client and what carries its requests to a server.
//!
//! A link has memory that the server can see, divided into pages of 4 KiB; requests name pages of it, so that the
//! data of a WRITE and of a READ is never copied: the client's page cache *is* this memory.

use std::ops::Range;
use std::sync::Arc;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a request's head, at most: SETXATTR with the largest value Linux knows, and its name.
pub const HEAD_MAX: usize = 72 << 10;
/// Bytes of [`Message::reply_room`], at most: the largest READDIR, 256 KiB, and some.
pub const REPLY_ROOM_MAX: usize = (256 << 10) + 128;
/// Segments of payload and target together, at most: 1 MiB in single pages both ways.
pub const SEGMENTS_MAX: usize = 2 * 256;

/// Part of a page: from its start, so many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page.
    pub page: u32,
    /// Bytes of it, at most 4096.
    pub length: u32,
}

/// A request to be carried over. The bounds above hold for it; who makes a larger one has made a mistake, and a link may
/// panic.
#[derive(Debug)]
pub struct Message {
    /// Comes back with the completion; the `unique` of the request's header. 0 for a request without an answer.
    pub id: u64,
    /// Header and arguments.
    pub head: Vec<u8>,
    /// The data of a WRITE, behind the head.
    pub payload: Vec<Segment>,
    /// Bytes the answer may have between its header and what goes into `target`.
    pub reply_room: usize,
    /// Where the rest of the answer goes: the data of a READ.
    pub target: Vec<Segment>,
    /// Requests that must not wait behind others: FORGET, INTERRUPT.
    pub urgent: bool,
}

/// What came back for a request.
#[derive(Debug)]
pub struct Completion {
    /// [`Message::id`].
    pub id: u64,
    /// Bytes the server says it has written, header included; never more than there was room for.
    pub length: usize,
    /// The start of the answer, header first, as far as it is not in pages.
    pub reply: Vec<u8>,
}

/// Takes what a link brings. Called from threads of the link, several at once; never waits for the link.
pub trait Receiver: Send + Sync {
    /// An answer.
    fn completed(&self, completion: Completion);
    /// The link has ended and brings no more answers. Called once.
    fn ended(&self);
}

/// The link has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the link to the server has ended")]
pub struct Closed;

/// Carries requests to a server and brings back the answers.
///
/// Answers may come in any order. A link whose server breaks the rules (an id that was not sent, more bytes than
/// there was room for) ends.
pub trait Link: Send + Sync + 'static {
    /// Pages of shared memory; they are named by numbers from 0.
    fn pages(&self) -> u32;

    /// Copies out of a page. The server may be changing it meanwhile; what is read then is anything.
    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]);

    /// Copies into a page.
    fn write_page(&self, page: u32, offset: usize, from: &[u8]);

    /// Copies out of pages that follow each other, from `offset` in the first of them on. A link whose pages do so in memory, too,
    /// does better than page by page.
    fn read_pages(&self, first: u32, offset: usize, into: &mut [u8]) {
        let (head, rest) = into.split_at_mut(into.len().min(PAGE_BYTES - offset));
        self.read_page(first, offset, head);
        for (page, piece) in (first + 1..).zip(rest.chunks_mut(PAGE_BYTES)) {
            self.read_page(page, 0, piece);
        }
    }

    /// Copies into pages that follow each other, likewise.
    fn write_pages(&self, first: u32, offset: usize, from: &[u8]) {
        let (head, rest) = from.split_at(from.len().min(PAGE_BYTES - offset));
        self.write_page(first, offset, head);
        for (page, piece) in (first + 1..).zip(rest.chunks(PAGE_BYTES)) {
            self.write_page(page, 0, piece);
        }
    }

    /// Makes part of a page zero.
    fn zero_page(&self, page: u32, range: Range<usize>);

    /// Tells who takes the answers. Called once, before the first [`Link::submit`].
    fn start(&self, receiver: Arc<dyn Receiver>);

    /// Sends a request. May be called by a [`Receiver`], and therefore never waits for an answer.
    fn submit(&self, message: Message) -> Result<(), Closed>;

    /// A thread that is about to sleep until an answer comes may look for it itself first: that saves waking it. Brings
    /// answers, others' too, until `done` or until none has come for as long as the link finds worth while; returns
    /// whether `done`, which may send more. The caller holds no lock that its [`Receiver`] takes, and must be ready to sleep
    /// afterwards.
    /// A link without a better idea looks not at all.
    fn attend(&self, done: &mut dyn FnMut() -> bool) -> bool {
        done()
    }

    /// Ends the link. After this returns the server touches no page any more, or none that is read again.
    fn close(&self);
}
