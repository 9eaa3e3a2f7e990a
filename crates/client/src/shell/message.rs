//! Requests as bytes, and answers as values.

use ashore_wire::abi::{IN_HEADER_SIZE, InHeader};
use ashore_wire::{Errno, NodeId, Opcode};
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
    head: Vec<u8>,
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
        let header = InHeader { opcode: opcode as u32, nodeid: node.0, ..Default::default() };
        Outgoing {
            opcode,
            head: header.as_bytes().to_vec(),
            payload: Vec::new(),
            reply_room: 0,
            target: Vec::new(),
        }
    }

    /// With this structure or these bytes behind what there is.
    pub(crate) fn with<T: IntoBytes + Immutable + ?Sized>(mut self, part: &T) -> Outgoing {
        self.head.extend_from_slice(part.as_bytes());
        self
    }

    /// With a name and its NUL. The caller has checked that there is none inside it.
    pub(crate) fn name(mut self, name: &[u8]) -> Outgoing {
        self.head.extend_from_slice(name);
        self.head.push(0);
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

    /// The request's head with everything in it.
    pub(crate) fn finish(&mut self, unique: u64, caller: (u32, u32), pid: u32) -> Vec<u8> {
        let payload: usize = self.payload.iter().map(|segment| segment.length as usize).sum();
        let (header, _) = InHeader::mut_from_prefix(&mut self.head).expect("it was put there first");
        header.unique = unique;
        (header.uid, header.gid, header.pid) = (caller.0, caller.1, pid);
        let mut head = std::mem::take(&mut self.head);
        let length = (head.len() + payload) as u32;
        head[..4].copy_from_slice(&length.to_ne_bytes());
        debug_assert!(head.len() >= IN_HEADER_SIZE);
        head
    }
}

impl Answer {
    /// The structure at the start of the body. EIO if the server sent less: a wrong length is an error, never
    /// success.
    pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Errno> {
        T::read_from_prefix(&self.body).map(|(value, _)| value).map_err(|_| Errno::EIO)
    }

    /// Two structures, one behind the other.
    pub(crate) fn read_two<T, U>(&self) -> Result<(T, U), Errno>
    where
        T: FromBytes + KnownLayout + Immutable,
        U: FromBytes + KnownLayout + Immutable,
    {
        let (first, rest) = T::read_from_prefix(&self.body).map_err(|_| Errno::EIO)?;
        let (second, _) = U::read_from_prefix(rest).map_err(|_| Errno::EIO)?;
        Ok((first, second))
    }
}
