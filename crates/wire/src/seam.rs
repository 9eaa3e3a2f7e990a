//! The seam between the transports, which move bytes, and the server, which understands them.
//!
//! A transport hands out [`Exchange`]s, one for each request, from a [`RequestQueue`]. The server parses the
//! head, acts, and finishes the exchange. Neither knows the other: a new transport implements these traits, and
//! a new server uses them.
//!
//! ```text
//!     request                                          reply
//!     +-----------------------+----------------+      +------------+----------------------------+
//!     | head                  | payload        |      | out header | body                       |
//!     +-----------------------+----------------+      +------------+----------------------------+
//!       copied once, private    stays where it is       written by   filled in place, in any
//!       (Exchange::head)        (Payload)               finish       order (ReplyBody)
//! ```
//!
//! The head is everything but the data of a WRITE. It is copied once because a hostile client could rewrite
//! its memory at any time: what was checked must be what is used. The payload stays in the client's memory and
//! is moved by one system call; it is data, and whatever it says is what gets written.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::Errno;
use crate::abi::OutHeader;

/// How a transfer between a file and the client's memory is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransferMode {
    /// Append, wherever the file ends when the write is done (`RWF_APPEND`). The offset is ignored.
    pub append: bool,
    /// The transferred data is stable when the call returns (`RWF_DSYNC`).
    pub data_sync: bool,
    /// Data and metadata of the file are stable when the call returns (`RWF_SYNC`).
    pub sync: bool,
    /// Fail with EAGAIN rather than wait for the disk (`RWF_NOWAIT`).
    pub nowait: bool,
}

impl TransferMode {
    /// The flags of preadv2(2) and pwritev2(2) that say so, in Linux's numbers (`RWF_*` of linux/fs.h).
    pub fn flags(self) -> u32 {
        const DSYNC: u32 = 0x02;
        const SYNC: u32 = 0x04;
        const NOWAIT: u32 = 0x08;
        const APPEND: u32 = 0x10;
        let TransferMode { append, data_sync, sync, nowait } = self;
        [(append, APPEND), (data_sync, DSYNC), (sync, SYNC), (nowait, NOWAIT)]
            .into_iter()
            .filter_map(|(set, flag)| set.then_some(flag))
            .fold(0, |all, flag| all | flag)
    }

    /// The offset for those calls; EINVAL beyond the largest file. To them -1 is not an offset: it stands for the position of the
    /// file descriptor.
    pub fn offset(self, offset: u64) -> io::Result<u64> {
        match i64::try_from(offset) {
            _ if self.append => Ok(0),
            Ok(_) => Ok(offset),
            Err(_) => Err(io::Error::from_raw_os_error(Errno::EINVAL.raw())),
        }
    }
}

/// The data a client sent with a request, where it lies.
pub trait Payload {
    /// Bytes of it.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the first `len` bytes (or all there are, if fewer) to `file` at `offset`. Returns how many bytes
    /// the host took, which may be fewer; nothing is retried here.
    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize>;

    /// Copies from the start of the payload into `buffer`; returns how many bytes were copied.
    fn copy_to(&mut self, buffer: &mut [u8]) -> usize;
}

/// The room a client left for the body of a reply, where it lies.
pub trait ReplyBody {
    /// Bytes of room for the body; the header's room is not counted. `None` if not even a header fits, so that
    /// the request cannot be answered.
    fn room(&self) -> Option<usize>;

    /// Copies `bytes` to `position` in the body. Fails, changing nothing, if they do not fit.
    fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom>;

    /// Reads up to `len` bytes of `file` from `offset` into the start of the body. Returns how many came, which
    /// may be fewer.
    fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        mode: TransferMode,
    ) -> io::Result<usize>;
}

/// The reply does not fit into the room the client left for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the reply does not fit into the room the client left for it")]
pub struct NoRoom;

/// One request and the way back for its reply.
///
/// An exchange may be finished on any thread, in any order. One that is dropped unfinished is answered with EIO
/// by its transport, so that a client never waits for ever because of a mistake of ours.
pub trait Exchange: Send + 'static {
    /// Payload and reply room, wherever this transport has them.
    type Bulk: Payload + ReplyBody;

    /// The head of the request, and beside it what is moved in bulk.
    fn parts(&mut self) -> (&[u8], &mut Self::Bulk);

    /// Sends the reply: `header`, then the `header.len - 16` bytes of the body that were filled. The length
    /// reported to the client is exactly `header.len`.
    ///
    /// If [`ReplyBody::room`] is `None` the request is given back to the client without an answer.
    fn finish(self, header: OutHeader);

    /// Gives the request back without an answer: it has none (FORGET).
    fn finish_without_reply(self);

    /// What clients have made available beside this request, in all queues of its transport.
    ///
    /// The default is for a transport in which nothing can wait unseen: one that hands out every request in the
    /// order in which they were made, on one thread.
    fn backlog(&self) -> Arc<dyn Backlog> {
        Arc::new(NothingWaits)
    }
}

/// What clients have made available in the queues of a transport, taken or not.
///
/// A SYNCFS must count every change that was made available before it, also in a queue whose thread is busy and
/// has not looked yet. So the server marks all queues when it meets a SYNCFS, and waits until each has passed
/// its mark before it divides earlier changes from later ones:
///
/// ```text
///     queue 1   ... W  W  S |            taken up to S
///     queue 2   ... W | W  W             the first W taken, two more have been made available
///                          ^ mark: wait until queue 2 has taken these, but not for what comes after them
/// ```
pub trait Backlog: Send + Sync {
    /// Marks the end of what has been made available up to now, in every queue.
    fn mark(&self) -> Box<dyn BacklogMark>;
}

/// An end of what had been made available, in every queue. Made by [`Backlog::mark`].
///
/// A queue has passed the mark when its thread took everything before it *and came back to
/// [`RequestQueue::next`]*: what was taken has then been finished or handed to another thread, and has been
/// counted by whoever counts changes on the way. So the thread of a queue must never wait for a mark itself: it
/// would wait for its own return. A queue that is stopped, or has broken, has passed every mark.
pub trait BacklogMark: Send {
    /// Whether every queue has passed.
    fn passed(&self) -> bool;

    /// Waits until every queue has passed, but no longer than `timeout`; says whether they have.
    fn wait(&self, timeout: Duration) -> bool;
}

/// The backlog of a transport in which nothing can wait unseen.
#[derive(Clone, Copy, Debug)]
pub struct NothingWaits;

impl Backlog for NothingWaits {
    fn mark(&self) -> Box<dyn BacklogMark> {
        Box::new(NothingWaits)
    }
}

impl BacklogMark for NothingWaits {
    fn passed(&self) -> bool {
        true
    }

    fn wait(&self, _timeout: Duration) -> bool {
        true
    }
}

/// A queue of requests, taken by one thread.
pub trait RequestQueue: Send {
    /// The requests of this transport.
    type Exchange: Exchange;

    /// The next request, waiting for it as long as it takes; `None` once the queue has been stopped.
    ///
    /// Answers to earlier requests may be announced to the client in batches, but no later than this call
    /// begins to wait.
    fn next(&mut self) -> Option<Self::Exchange>;
}

/// Bytes of a request that are its head, given its opcode and its length: everything but the data of a WRITE.
pub fn head_length(opcode: u32, length: usize) -> usize {
    if opcode == crate::Opcode::Write as u32 {
        length.min(crate::abi::IN_HEADER_SIZE + size_of::<crate::abi::WriteIn>())
    } else {
        length
    }
}

/// The kernel of a client on this machine, which can read and write files that it is given.
pub trait BackingFiles: Send + Sync {
    /// Gives it a file, which it numbers. Numbers begin at 1.
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32>;
    /// It may let go of the file.
    fn close(&self, id: u32) -> io::Result<()>;
}
