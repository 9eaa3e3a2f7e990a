//! Requests as bytes, and answers as values.

use ashore_wire::encode::{RequestHead, Sender, take};
use ashore_wire::{Errno, NodeId, Opcode, RequestId};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::core::pages::PageId;

/// Part of a page of the link's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) page: PageId,
    pub(crate) length: u32,
}

/// A request before it has an id.
#[derive(Debug)]
pub(crate) struct Outgoing {
    opcode: Opcode,
    /// Until it is sent.
    head: Option<RequestHead>,
    /// Data of a WRITE, from the start of each page.
    pub(crate) payload: Vec<Segment>,
    /// Bytes the answer may have, header and pages not counted.
    pub(crate) reply_room: usize,
    /// Where the data of a READ goes.
    pub(crate) target: Vec<Segment>,
}

/// A successful answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The body, without what went into pages.
    pub(crate) body: Vec<u8>,
    /// Bytes that went into the pages of [`Outgoing::target`].
    pub(crate) in_place: usize,
}

impl Outgoing {
    /// A request about a node.
    pub(crate) fn new(opcode: Opcode, node: NodeId) -> Outgoing {
        Outgoing {
            opcode,
            head: Some(RequestHead::new(opcode, node)),
            payload: Vec::new(),
            reply_room: 0,
            target: Vec::new(),
        }
    }

    /// With this structure or these bytes behind what there is.
    pub(crate) fn with<T: IntoBytes + Immutable + ?Sized>(mut self, part: &T) -> Outgoing {
        self.head = self.head.map(|head| head.with(part));
        self
    }

    /// With a name and its NUL. The caller has checked that there is none inside it.
    pub(crate) fn name(mut self, name: &[u8]) -> Outgoing {
        self.head = self.head.map(|head| head.name(name));
        self
    }

    /// Expects this structure in the answer, behind others that were named before.
    pub(crate) fn expect<T>(mut self) -> Outgoing {
        self.reply_room += size_of::<T>();
        self
    }

    /// Expects up to so many bytes in the answer.
    pub(crate) fn expect_bytes(mut self, room: usize) -> Outgoing {
        self.reply_room += room;
        self
    }

    /// Sends these pages along.
    pub(crate) fn payload(mut self, payload: Vec<Segment>) -> Outgoing {
        self.payload = payload;
        self
    }

    /// Expects data into these pages.
    pub(crate) fn into_pages(mut self, target: Vec<Segment>) -> Outgoing {
        self.target = target;
        self
    }

    /// What the request asks for.
    pub(crate) fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The request's head with everything in it, once.
    pub(crate) fn finish(&mut self, id: RequestId, sender: Sender) -> Vec<u8> {
        let payload = self.payload.iter().map(|segment| segment.length as usize).sum();
        self.head.take().expect("a request is sent once").finish(id, sender, payload)
    }
}

impl Answer {
    /// The structure at the start of the body. EIO if the server sent less: a wrong length is an error, never
    /// success.
    pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Errno> {
        take(&self.body).map(|(value, _)| value).map_err(|_| Errno::EIO)
    }

    /// Two structures, one behind the other.
    pub(crate) fn read_two<T, U>(&self) -> Result<(T, U), Errno>
    where
        T: FromBytes + KnownLayout + Immutable,
        U: FromBytes + KnownLayout + Immutable,
    {
        let (first, rest) = take(&self.body).map_err(|_| Errno::EIO)?;
        let (second, _) = take(rest).map_err(|_| Errno::EIO)?;
        Ok((first, second))
    }
}
