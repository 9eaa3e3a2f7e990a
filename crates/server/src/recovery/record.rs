//! What is written down, and what it adds up to.
//!
//! Each record is one block of 512 bytes at a multiple of 512, so it lies within one page and the host's kernel takes it
//! whole or not at all, however the process ends:
//!
//! ```text
//!   0      8       16     18                                512
//!   | sum  | epoch | kind | fields in the order of Record,   |
//!   |      |       |      | little-endian, lengths first     |
//! ```

use std::collections::{BTreeMap, HashMap};

use ashore_wire::{FileHandle, NodeId};

/// Bytes of a record.
pub(super) const BLOCK: usize = 512;
/// Nodes in one record of FORGETs.
pub(super) const FORGETS_MAX: usize = 24;

/// A file or directory that a client has open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenedBy {
    /// By this handle.
    pub handle: FileHandle,
    /// What it is.
    pub node: NodeId,
    /// The `O_` flags it was opened with.
    pub flags: u32,
    /// Whether it is a directory.
    pub directory: bool,
}

/// A node, how often it was looked up, and how the file system finds it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub(super) node: NodeId,
    pub(super) lookups: u64,
    pub(super) description: Vec<u8>,
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) error: i32,
    pub(super) body: Vec<u8>,
}

/// What is known of a request whose answer may not have reached the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    pub(super) unique: u64,
    pub(super) what: What,
}

/// How far it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// It was about to be done; this was seen before.
    Begun(Vec<u8>),
    /// It was done, and this is its answer.
    Done(Answer),
    /// It was a FORGET, which has no answer.
    Forgot,
}

/// Whose place a record of a request takes: requests that are under way at the same time have different slots, so what
/// stands in one is void when the next request has it.
pub(super) type Slot = u32;

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    /// A client came, with this INIT, and was answered so; what was before it is void.
    Began { init: Vec<u8>, answer: Vec<u8> },
    /// The client has gone.
    Ended,
    /// A change is about to be made; this was seen before.
    Intent { slot: Slot, unique: u64, seen: Vec<u8> },
    /// A request was done, with what its answer gave to the client and took from it.
    Done {
        slot: Slot,
        unique: u64,
        answer: Answer,
        gained: Option<Known>,
        opened: Option<OpenedBy>,
        closed: Option<FileHandle>,
    },
    /// Lookups were given back; all of one request count together, when the last of its records is there.
    Forgot { slot: Slot, unique: u64, nodes: Vec<(NodeId, u64)>, last: bool },
    /// The client knows this node.
    Knows(Known),
    /// The client has this open.
    HasOpen(OpenedBy),
    /// The client has come to what will not be found again.
    Elsewhere,
}

/// What all records up to now add up to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    /// The client's INIT, and its answer.
    pub(super) init: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) nodes: HashMap<NodeId, (u64, Vec<u8>)>,
    pub(super) open: HashMap<FileHandle, OpenedBy>,
    /// Requests that were begun or done, until their answers have reached the client.
    pub(super) pending: BTreeMap<Slot, Pending>,
    /// The client knows, or knew, nodes that will not be found again.
    pub(super) elsewhere: bool,
    /// Of a FORGET whose last record is to come.
    forgetting: Vec<(NodeId, u64)>,
}

impl State {
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Began { init, answer } => {
                *self = State { init: Some((init, answer)), ..State::default() };
            }
            Record::Ended => *self = State::default(),
            Record::Intent { slot, unique, seen } => self.note(slot, unique, What::Begun(seen)),
            Record::Done { slot, unique, answer, gained, opened, closed } => {
                gained.into_iter().for_each(|known| self.gain(known));
                opened.inspect(|opened| _ = self.open.insert(opened.handle, *opened));
                closed.inspect(|handle| _ = self.open.remove(handle));
                self.note(slot, unique, What::Done(answer));
            }
            Record::Forgot { slot, unique, nodes, last } => {
                self.forgetting.extend(nodes);
                if last {
                    let nodes = std::mem::take(&mut self.forgetting);
                    nodes.iter().for_each(|(node, lookups)| self.forget(*node, *lookups));
                    self.note(slot, unique, What::Forgot);
                }
            }
            Record::Knows(known) => self.gain(known),
            Record::HasOpen(opened) => _ = self.open.insert(opened.handle, opened),
            Record::Elsewhere => self.elsewhere = true,
        }
    }

    /// What the process did not finish to write counts as not written.
    pub(super) fn drop_unfinished(&mut self) {
        self.forgetting.clear();
    }

    fn note(&mut self, slot: Slot, unique: u64, what: What) {
        self.pending.insert(slot, Pending { unique, what });
    }

    fn gain(&mut self, Known { node, lookups, description }: Known) {
        self.nodes.entry(node).or_insert((0, description)).0 += lookups;
    }

    fn forget(&mut self, node: NodeId, lookups: u64) {
        if let Some((left, _)) = self.nodes.get_mut(&node) {
            *left = left.saturating_sub(lookups);
            if *left == 0 {
                self.nodes.remove(&node);
            }
        }
    }

    /// Records that add up to this state again.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let began = self
            .init
            .iter()
            .map(|(init, answer)| Record::Began { init: init.clone(), answer: answer.clone() });
        let nodes = self.nodes.iter().map(|(node, (lookups, description))| {
            Record::Knows(Known { node: *node, lookups: *lookups, description: description.clone() })
        });
        let open = self.open.values().map(|opened| Record::HasOpen(*opened));
        let pending = self.pending.iter().map(|(slot, pending)| pending.record(*slot));
        let elsewhere = self.elsewhere.then_some(Record::Elsewhere);
        began.chain(elsewhere).chain(nodes).chain(open).chain(pending)
    }

    pub(super) fn len(&self) -> u64 {
        (2 + self.nodes.len() + self.open.len() + self.pending.len()) as u64
    }
}

impl Pending {
    fn record(&self, slot: Slot) -> Record {
        let unique = self.unique;
        match self.what.clone() {
            What::Begun(seen) => Record::Intent { slot, unique, seen },
            What::Done(answer) => {
                Record::Done { slot, unique, answer, gained: None, opened: None, closed: None }
            }
            What::Forgot => Record::Forgot { slot, unique, nodes: Vec::new(), last: true },
        }
    }
}

impl Record {
    /// The block, or `None` if it does not fit into one.
    pub(super) fn encode(&self, epoch: u64) -> Option<[u8; BLOCK]> {
        let mut out = Writer(Vec::with_capacity(BLOCK));
        out.number(epoch);
        match self {
            Record::Began { init, answer } => {
                out.short(1);
                out.bytes(init);
                out.bytes(answer);
            }
            Record::Ended => out.short(2),
            Record::Intent { slot, unique, seen } => {
                out.request(3, *slot, *unique);
                out.bytes(seen);
            }
            Record::Done { slot, unique, answer, gained, opened, closed } => {
                out.request(4, *slot, *unique);
                out.number(answer.error as u32 as u64);
                out.bytes(&answer.body);
                out.option(gained.as_ref(), Writer::known);
                out.option(opened.as_ref(), Writer::opened);
                out.option(closed.as_ref(), |out, handle| out.number(handle.0));
            }
            Record::Forgot { slot, unique, nodes, last } => {
                out.request(5, *slot, *unique);
                out.short(u16::from(*last));
                out.short(nodes.len() as u16);
                for (node, lookups) in nodes {
                    out.number(node.0);
                    out.number(*lookups);
                }
            }
            Record::Knows(known) => {
                out.short(6);
                out.known(known);
            }
            Record::HasOpen(opened) => {
                out.short(7);
                out.opened(opened);
            }
            Record::Elsewhere => out.short(8),
        }
        seal(out.0)
    }

    /// The record of a block. `None`: it is none, or none of this epoch.
    pub(super) fn decode(block: &[u8; BLOCK], epoch: u64) -> Option<Record> {
        let mut from = Reader(open(block)?);
        if from.number()? != epoch {
            return None;
        }
        Some(match from.short()? {
            1 => Record::Began { init: from.bytes()?, answer: from.bytes()? },
            2 => Record::Ended,
            3 => {
                let (slot, unique) = from.request()?;
                Record::Intent { slot, unique, seen: from.bytes()? }
            }
            4 => {
                let (slot, unique) = from.request()?;
                let answer = Answer { error: from.number()? as u32 as i32, body: from.bytes()? };
                let gained = from.option(Reader::known)?;
                let opened = from.option(Reader::opened)?;
                let closed = from.option(|from| from.number().map(FileHandle))?;
                Record::Done { slot, unique, answer, gained, opened, closed }
            }
            5 => {
                let (slot, unique) = from.request()?;
                let (last, count) = (from.short()? != 0, from.short()?);
                let node = |_| Some((NodeId(from.number()?), from.number()?));
                Record::Forgot { slot, unique, nodes: (0..count).map(node).collect::<Option<_>>()?, last }
            }
            6 => Record::Knows(from.known()?),
            7 => Record::HasOpen(from.opened()?),
            8 => Record::Elsewhere,
            _ => return None,
        })
    }
}

/// A block of these bytes with their sum before them. `None` if they do not fit.
pub(super) fn seal(mut bytes: Vec<u8>) -> Option<[u8; BLOCK]> {
    if bytes.len() > BLOCK - 8 {
        return None;
    }
    bytes.resize(BLOCK - 8, 0);
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&sum(&bytes).to_le_bytes());
    block[8..].copy_from_slice(&bytes);
    Some(block)
}

/// The bytes of a block whose sum is right.
pub(super) fn open(block: &[u8; BLOCK]) -> Option<&[u8]> {
    let (said, bytes) = block.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*said) == sum(bytes)).then_some(bytes)
}

/// Not against malice: who may write the file may serve the share.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let rest = rest.iter().map(|byte| u64::from(*byte));
    // Numbers other than 0 to begin with and to multiply by, so that a block of zeros is no record.
    words.chain(rest).fold(0x9e37_79b9_7f4a_7c15, |sum, word| {
        (sum ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29)
    })
}

pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn short(&mut self, number: u16) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.short(bytes.len().min(usize::from(u16::MAX)) as u16);
        self.0.extend_from_slice(bytes);
    }

    fn request(&mut self, kind: u16, slot: Slot, unique: u64) {
        self.short(kind);
        self.number(u64::from(slot));
        self.number(unique);
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Writer, &T)) {
        self.short(u16::from(value.is_some()));
        value.inspect(|value| write(self, value));
    }

    pub(super) fn known(&mut self, Known { node, lookups, description }: &Known) {
        self.number(node.0);
        self.number(*lookups);
        self.bytes(description);
    }

    pub(super) fn opened(&mut self, OpenedBy { handle, node, flags, directory }: &OpenedBy) {
        self.number(handle.0);
        self.number(node.0);
        self.number(u64::from(*flags));
        self.short(u16::from(*directory));
    }
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn short(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(self.short()?);
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    fn request(&mut self) -> Option<(Slot, u64)> {
        Some((self.number()? as Slot, self.number()?))
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.short()? == 0 { Some(None) } else { read(self).map(Some) }
    }

    pub(super) fn known(&mut self) -> Option<Known> {
        Some(Known { node: NodeId(self.number()?), lookups: self.number()?, description: self.bytes()? })
    }

    pub(super) fn opened(&mut self) -> Option<OpenedBy> {
        Some(OpenedBy {
            handle: FileHandle(self.number()?),
            node: NodeId(self.number()?),
            flags: self.number()? as u32,
            directory: self.short()? != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(slot: Slot, unique: u64) -> Record {
        Record::Done {
            slot,
            unique,
            answer: Answer { error: -17, body: vec![7; 144] },
            gained: Some(Known { node: NodeId(33), lookups: 1, description: vec![9; 150] }),
            opened: Some(OpenedBy { handle: FileHandle(5), node: NodeId(33), flags: 2, directory: false }),
            closed: Some(FileHandle(6)),
        }
    }

    fn forgot(nodes: Vec<(NodeId, u64)>, last: bool) -> Record {
        Record::Forgot { slot: 2, unique: 12, nodes, last }
    }

    #[test]
    fn a_record_comes_back_from_its_block_and_from_no_other() {
        let began = Record::Began { init: vec![1; 104], answer: vec![2; 64] };
        let intent = Record::Intent { slot: 8, unique: 1, seen: vec![2; 64] };
        let knows = Record::Knows(Known { node: NodeId(3), lookups: 4, description: vec![5; 200] });
        let opened = OpenedBy { handle: FileHandle(5), node: NodeId(33), flags: 2, directory: true };
        let forgot = forgot(vec![(NodeId(3), 4); FORGETS_MAX], false);
        for record in [
            began,
            Record::Ended,
            intent,
            done(1, 3),
            forgot,
            knows,
            Record::HasOpen(opened),
            Record::Elsewhere,
        ] {
            let block = record.encode(9).unwrap();
            assert_eq!(Record::decode(&block, 9).as_ref(), Some(&record));
            assert_eq!(Record::decode(&block, 8), None, "of another epoch");
            for at in [0, 8, 17, 100, 511] {
                let mut torn = block;
                torn[at] ^= 1;
                assert_eq!(Record::decode(&torn, 9), None, "byte {at}");
            }
        }
        assert_eq!(Record::Intent { slot: 0, unique: 1, seen: vec![0; 600] }.encode(1), None);
    }

    #[test]
    fn a_state_told_anew_is_the_same() {
        let mut state = State::default();
        state.apply(Record::Began { init: vec![1; 104], answer: vec![2; 64] });
        state.apply(Record::Intent { slot: 0, unique: 7, seen: vec![3] });
        state.apply(done(0, 7));
        state.apply(done(1, 9));
        state.apply(Record::Intent { slot: 3, unique: 11, seen: vec![3] });
        state.apply(done(1, 13));
        state.apply(forgot(vec![], true));
        state.apply(Record::Elsewhere);
        let pending: Vec<_> = state.pending.iter().map(|(slot, pending)| (*slot, pending.unique)).collect();
        assert_eq!(pending, [(0, 7), (1, 13), (2, 12), (3, 11)], "the last of each slot");
        assert_eq!(state.nodes[&NodeId(33)].0, 3);
        let mut again = State::default();
        state.records().for_each(|record| again.apply(record));
        assert_eq!(again, state);
        again.apply(forgot(vec![(NodeId(33), 1), (NodeId(33), 1)], false));
        assert_eq!(again.nodes[&NodeId(33)].0, 3, "the rest of it is not there");
        again.apply(forgot(vec![(NodeId(33), 1)], true));
        assert!(again.nodes.is_empty());
        again.apply(Record::Ended);
        assert_eq!(again, State::default());
    }
}
