//! The client's half of the protocol: requests become bytes here, and the bytes of answers become values.
//!
//! [`crate::request`] and [`crate::reply`] are the server's half, and what stands here is their mirror: what
//! [`RequestHead`] puts together, [`crate::Request::parse`] takes apart. An answer is believed as little as a request
//! is: [`answer_body`] holds it against what was asked, and a wrong id, a wrong length or an error outside Linux's range
//! is a fault of the server, never success.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Dirent, Direntplus, EntryOut, InHeader, OUT_HEADER_SIZE, OutHeader};
use crate::{Errno, NodeId, Opcode, RequestId};

/// The largest error number of Linux; an answer holds it negated.
const ERRNO_MAX: i32 = 4095;

/// On whose behalf a request is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sender {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; 0 for what is nobody's in particular, such as data written back.
    pub pid: u32,
}

/// Header and arguments of a request that has no id yet.
#[derive(Clone, Debug)]
pub struct RequestHead {
    opcode: Opcode,
    bytes: Vec<u8>,
}

impl RequestHead {
    /// A request about a node.
    pub fn new(opcode: Opcode, node: NodeId) -> RequestHead {
        let header = InHeader { opcode: opcode as u32, nodeid: node.0, ..Default::default() };
        RequestHead { opcode, bytes: header.as_bytes().to_vec() }
    }

    /// With this structure, or these bytes, behind what there is.
    pub fn with<T: IntoBytes + Immutable + ?Sized>(mut self, part: &T) -> RequestHead {
        self.bytes.extend_from_slice(part.as_bytes());
        self
    }

    /// With a name and the NUL that ends it. The caller sees to it that there is none inside.
    pub fn name(mut self, name: &[u8]) -> RequestHead {
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self
    }

    /// What is asked for.
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The bytes to send; `payload` bytes of data follow them.
    pub fn finish(self, id: RequestId, sender: Sender, payload: usize) -> Vec<u8> {
        let mut bytes = self.bytes;
        let length = bytes.len() + payload;
        let (header, _) = InHeader::mut_from_prefix(&mut bytes).expect("it was put there first");
        header.len = u32::try_from(length).expect("no link has room for 4 GiB in one request");
        header.unique = id.0;
        (header.uid, header.gid, header.pid) = (sender.uid, sender.gid, sender.pid);
        bytes
    }
}

/// What is wrong with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerFault {
    /// Shorter than its header.
    #[error("the answer is {0} bytes long, less than its header")]
    NoHeader(usize),
    /// The header is another request's.
    #[error("the answer says that it belongs to {said}, and it came for {asked}")]
    WrongId {
        /// What the header says.
        said: RequestId,
        /// What was asked.
        asked: RequestId,
    },
    /// The header and the transport do not say the same.
    #[error("the answer says that it is {said} bytes long, and {came} bytes came")]
    WrongLength {
        /// What the header says.
        said: u32,
        /// What the transport says.
        came: usize,
    },
    /// An error that is none of Linux's.
    #[error("the answer holds the error {0}, which does not exist")]
    NoSuchError(i32),
    /// An error and data at once.
    #[error("the answer holds an error, and {0} bytes of data as well")]
    ErrorWithData(usize),
    /// Too short, or names that make no sense.
    #[error("the data of the answer makes no sense")]
    Body,
}

/// Why there is no good answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// The file system said no.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Fault(#[from] AnswerFault),
}

/// The number of bytes behind the header of a good answer. `start` is the answer as far as it is at hand, and `length`
/// is the number of bytes that came in all.
pub fn answer_body(asked: RequestId, start: &[u8], length: usize) -> Result<usize, AnswerError> {
    let header = OutHeader::read_from_prefix(start).ok().filter(|_| length >= OUT_HEADER_SIZE);
    let (header, _) = header.ok_or(AnswerFault::NoHeader(length))?;
    if header.unique != asked.0 {
        return Err(AnswerFault::WrongId { said: RequestId(header.unique), asked }.into());
    }
    if header.len as usize != length {
        return Err(AnswerFault::WrongLength { said: header.len, came: length }.into());
    }
    let body = length - OUT_HEADER_SIZE;
    match header.error {
        0 => Ok(body),
        error if !(-ERRNO_MAX..0).contains(&error) => Err(AnswerFault::NoSuchError(error).into()),
        _ if body > 0 => Err(AnswerFault::ErrorWithData(body).into()),
        error => Err(Errno::from_raw(-error).into()),
    }
}

/// The structure at the start of a body, and what is behind it.
pub fn take<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<(T, &[u8]), AnswerFault> {
    T::read_from_prefix(body).map_err(|_| AnswerFault::Body)
}

/// One name of an answer to READDIR or READDIRPLUS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedName<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Number, kind, and where to go on.
    pub dirent: Dirent,
    /// The inode, with READDIRPLUS. Its node is 0 if the server counts no lookup for it.
    pub entry: Option<EntryOut>,
}

/// The names in the body of an answer to READDIR (`plus` is false) or READDIRPLUS, in their order. Ends after the first
/// that makes no sense.
pub fn listed_names(body: &[u8], plus: bool) -> impl Iterator<Item = Result<ListedName<'_>, AnswerFault>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let taken = take_name(rest, plus);
        rest = taken.as_ref().map_or(&[][..], |(_, behind)| behind);
        Some(taken.map(|(name, _)| name))
    })
}

fn take_name(body: &[u8], plus: bool) -> Result<(ListedName<'_>, &[u8]), AnswerFault> {
    let (entry, dirent, head) = if plus {
        let (both, _) = take::<Direntplus>(body)?;
        (Some(both.entry_out), both.dirent, size_of::<Direntplus>())
    } else {
        (None, take::<Dirent>(body)?.0, size_of::<Dirent>())
    };
    let end = (dirent.namelen as usize).checked_add(head).ok_or(AnswerFault::Body)?;
    let name = body.get(head..end).filter(|name| !name.is_empty() && !name.contains(&b'/'));
    let name = ListedName { name: name.ok_or(AnswerFault::Body)?, dirent, entry };
    Ok((name, body.get(end.next_multiple_of(8)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use crate::abi::{LseekIn, WriteIn};
    use crate::reply::{self, DirentBuffer};
    use crate::request::{Dialect, Operation, Request};
    use proptest::prelude::*;

    const ASKED: RequestId = RequestId(6);

    fn answer(len: u32, error: i32, unique: u64) -> Vec<u8> {
        OutHeader { len, error, unique }.as_bytes().to_vec()
    }

    #[test]
    fn the_servers_parser_understands_what_is_sent() {
        let sender = Sender { uid: 5, gid: 6, pid: 7 };
        let head = RequestHead::new(Opcode::Lookup, NodeId(3)).name(b"name").finish(ASKED, sender, 0);
        let request = Request::parse(&head, 0, Dialect::default()).unwrap();
        assert_eq!((request.id, request.node), (ASKED, NodeId(3)));
        assert!(matches!(request.operation, Operation::Lookup { name } if name.as_bytes() == b"name"));

        let write = WriteIn { fh: 4, size: 4096, ..Default::default() };
        let head = RequestHead::new(Opcode::Write, NodeId(3)).with(&write).finish(ASKED, sender, 4096);
        assert!(Request::parse(&head, 4096, Dialect::default()).is_ok());
        assert!(Request::parse(&head, 4095, Dialect::default()).is_err(), "the length covers the payload");

        let lseek = RequestHead::new(Opcode::Lseek, NodeId(3)).with(&LseekIn::default());
        assert_eq!(lseek.opcode(), Opcode::Lseek);
    }

    #[test]
    fn good_answers_and_errors_are_told_apart() {
        assert_eq!(answer_body(ASKED, &answer(16, 0, 6), 16), Ok(0));
        assert_eq!(answer_body(ASKED, &answer(24, 0, 6), 24), Ok(8));
        assert_eq!(answer_body(ASKED, &answer(16, -28, 6), 16), Err(Errno::ENOSPC.into()));
        let refusal = reply::error_header(ASKED, Errno::EROFS);
        assert_eq!(answer_body(ASKED, refusal.as_bytes(), 16), Err(Errno::EROFS.into()));
    }

    #[test]
    fn a_lie_is_a_fault_and_never_success() {
        let fault = |start: &[u8], length| match answer_body(ASKED, start, length) {
            Err(AnswerError::Fault(fault)) => fault,
            other => panic!("{other:?}"),
        };
        assert_eq!(fault(&answer(16, 0, 6)[..15], 15), AnswerFault::NoHeader(15));
        assert_eq!(fault(&answer(16, 0, 6), 0), AnswerFault::NoHeader(0), "stale bytes do not count");
        let wrong_id = AnswerFault::WrongId { said: RequestId(8), asked: ASKED };
        assert_eq!(fault(&answer(16, 0, 8), 16), wrong_id);
        for said in [0, 15, 17, u32::MAX] {
            assert_eq!(fault(&answer(said, 0, 6), 16), AnswerFault::WrongLength { said, came: 16 });
        }
        for error in [1, 7, -4096, i32::MIN, i32::MAX] {
            assert_eq!(fault(&answer(16, error, 6), 16), AnswerFault::NoSuchError(error));
        }
        assert_eq!(fault(&answer(20, -5, 6), 20), AnswerFault::ErrorWithData(4));
    }

    #[test]
    fn names_come_back_as_the_server_put_them_together() {
        let mut names = DirentBuffer::default();
        names.reset(4096);
        let dirent = |name, next_offset| reply::Dirent { ino: 9, next_offset, kind: 8, name };
        let entry = EntryOut { nodeid: 5, ..Default::default() };
        assert!(names.push_plus(dirent(b"a", 1), &entry));
        assert!(names.push_plus(dirent(b"longer name", 2), &entry));
        let back: Vec<_> = listed_names(names.as_bytes(), true).map(Result::unwrap).collect();
        assert_eq!(back.iter().map(|name| name.name).collect::<Vec<_>>(), [&b"a"[..], b"longer name"]);
        assert_eq!(back[1].dirent.off, 2);
        assert_eq!(back[1].entry, Some(entry));

        names.reset(4096);
        assert!(names.push(dirent(b"abcdefgh", 3)));
        let back: Vec<_> = listed_names(names.as_bytes(), false).map(Result::unwrap).collect();
        assert_eq!((back[0].name, back[0].entry), (&b"abcdefgh"[..], None));
    }

    proptest! {
        #[test]
        fn random_bytes_are_names_or_one_fault_at_the_end(
            body in proptest::collection::vec(any::<u8>(), 0..600),
            plus: bool,
        ) {
            let found: Vec<_> = listed_names(&body, plus).collect();
            let faults = found.iter().filter(|name| name.is_err()).count();
            prop_assert!(faults == 0 || (faults == 1 && found.last().unwrap().is_err()));
            prop_assert!(found.len() <= body.len() / 24 + 1);
        }

        #[test]
        fn random_answers_are_never_success_unless_all_is_right(
            start in proptest::collection::vec(any::<u8>(), 0..40),
            length in 0usize..40,
        ) {
            if let Ok(body) = answer_body(ASKED, &start, length) {
                prop_assert_eq!(body + OUT_HEADER_SIZE, length);
                prop_assert_eq!(&start[4..16], &answer(0, 0, 6)[4..]);
            }
        }
    }
}
