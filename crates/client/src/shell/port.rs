//! The link, as the shell uses it.

use std::ops::Range;
use std::sync::{Arc, Weak};

use ashore_wire::abi::OUT_HEADER_SIZE;
use ashore_wire::encode::{AnswerError, AnswerFault, answer_body};
use ashore_wire::{Errno, Opcode, RequestId};

use super::Mount;
use super::message::{Answer, Outgoing};
use crate::core::pages::PageId;
use crate::link::{Completion, Link, Message, Receiver, Segment};

/// The link's memory: the page cache itself.
#[derive(Clone)]
pub(crate) struct Memory(pub(crate) Arc<dyn Link>);

impl Memory {
    #[inline]
    pub(crate) fn read(&self, page: PageId, offset: usize, into: &mut [u8]) {
        self.0.read_pages(page.0, offset, into);
    }

    #[inline]
    pub(crate) fn write(&self, page: PageId, offset: usize, from: &[u8]) {
        self.0.write_pages(page.0, offset, from);
    }

    pub(crate) fn zero(&self, page: PageId, range: Range<usize>) {
        if !range.is_empty() {
            self.0.zero_page(page.0, range);
        }
    }
}

/// The link's way out.
pub(crate) struct Port(pub(crate) Arc<dyn Link>);

impl Port {
    pub(crate) fn submit(&self, id: u64, head: Vec<u8>, request: &Outgoing) -> Result<(), Errno> {
        let segments = |segments: &[super::message::Segment]| {
            segments.iter().map(|segment| Segment { page: segment.page.0, length: segment.length }).collect()
        };
        let message = Message {
            id,
            head,
            payload: segments(&request.payload),
            reply_room: request.reply_room,
            target: segments(&request.target),
            urgent: false,
        };
        self.0.submit(message).map_err(|_| Errno::ENOTCONN)
    }

    /// Sends what has no answer, or none that anybody takes.
    pub(crate) fn submit_one_way(&self, opcode: Opcode, head: Vec<u8>) {
        let urgent = matches!(opcode, Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt);
        let message = Message { id: 0, head, payload: Vec::new(), reply_room: 0, target: Vec::new(), urgent };
        // A server that is gone has forgotten everything by itself.
        _ = self.0.submit(message);
    }

    pub(crate) fn attend(&self, done: &mut dyn FnMut() -> bool) {
        self.0.attend(done);
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }
}

/// What came back, not yet checked.
pub(crate) struct Completed {
    pub(crate) id: u64,
    length: usize,
    reply: Vec<u8>,
}

impl Completed {
    /// The answer or the error in it. A wrong id, a wrong length or no header at all is EIO: never success.
    pub(crate) fn into_answer(mut self, most_in_place: usize) -> Result<Answer, Errno> {
        let whole = match answer_body(RequestId(self.id), &self.reply, self.length) {
            Ok(whole) => whole,
            Err(AnswerError::Errno(errno)) => return Err(errno),
            // Given back without an answer: virtiofsd does that with DESTROY, and nothing is wrong.
            Err(AnswerError::Fault(AnswerFault::NoHeader(0))) => return Err(Errno::EIO),
            Err(AnswerError::Fault(fault)) => {
                tracing::error!("the server broke the protocol: {fault}");
                return Err(Errno::EIO);
            }
        };
        let body = self.reply.split_off(OUT_HEADER_SIZE);
        if most_in_place > 0 {
            return if whole <= most_in_place {
                Ok(Answer { body, in_place: whole })
            } else {
                Err(Errno::EIO)
            };
        }
        Ok(Answer { body: body.get(..whole).map(<[u8]>::to_vec).ok_or(Errno::EIO)?, in_place: 0 })
    }
}

/// Hands what the link brings to the mount.
pub(crate) struct Inbox(pub(crate) Weak<Mount>);

impl Receiver for Inbox {
    fn completed(&self, completion: Completion) {
        if let Some(mount) = self.0.upgrade() {
            let Completion { id, length, reply } = completion;
            mount.completed(Completed { id, length, reply });
        }
    }

    fn ended(&self) {
        if let Some(mount) = self.0.upgrade() {
            mount.link_ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashore_wire::abi::OutHeader;
    use zerocopy::IntoBytes;

    fn completed(len: u32, error: i32, unique: u64, body: &[u8]) -> Completed {
        let header = OutHeader { len, error, unique };
        Completed { id: 6, length: 16 + body.len(), reply: [header.as_bytes(), body].concat() }
    }

    #[test]
    fn garbage_is_an_error_and_never_success() {
        assert!(completed(24, 0, 6, &[1; 8]).into_answer(0).is_ok());
        assert_eq!(completed(24, 0, 8, &[1; 8]).into_answer(0).unwrap_err(), Errno::EIO, "not our id");
        assert_eq!(completed(25, 0, 6, &[1; 8]).into_answer(0).unwrap_err(), Errno::EIO, "a wrong length");
        assert_eq!(completed(16, -28, 6, &[]).into_answer(0).unwrap_err(), Errno::ENOSPC);
        assert_eq!(completed(16, i32::MIN, 6, &[]).into_answer(0).unwrap_err(), Errno::EIO);
        assert_eq!(completed(16, 7, 6, &[]).into_answer(0).unwrap_err(), Errno::EIO);
        let short = Completed { id: 6, length: 4, reply: vec![0; 4] };
        assert_eq!(short.into_answer(0).unwrap_err(), Errno::EIO);
        let given_back = Completed { id: 6, length: 0, reply: Vec::new() };
        assert_eq!(given_back.into_answer(0).unwrap_err(), Errno::EIO);
    }
}
