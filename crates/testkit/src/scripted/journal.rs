//! What a scripted server saw and did, in order.

use std::fmt;

use ashore_wire::Opcode;
use ashore_wire::abi::WriteIn;
use zerocopy::FromBytes;

/// What happened to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// It came.
    Arrived,
    /// It was answered, with this error number (0 for success).
    Answered(i32),
}

/// One line of the journal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub what: What,
    /// The kind of request.
    pub opcode: Opcode,
    /// The node it is about.
    pub node: u64,
    /// Its id.
    pub id: u64,
    /// Where a WRITE goes.
    pub offset: u64,
}

/// Everything in the order in which it happened.
#[derive(Clone, Default)]
pub struct Journal(Vec<Entry>);

impl Journal {
    pub(super) fn note(&mut self, what: What, opcode: Opcode, node: u64, id: u64, head: &[u8]) {
        let write = (opcode == Opcode::Write).then(|| WriteIn::read_from_prefix(&head[40..]).ok()).flatten();
        let offset = write.map_or(0, |(write, _)| write.offset);
        self.0.push(Entry { what, opcode, node, id, offset });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// All lines.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// How many requests of this kind have arrived.
    pub fn arrived(&self, opcode: Opcode) -> usize {
        self.0.iter().filter(|entry| entry.opcode == opcode && entry.what == What::Arrived).count()
    }

    /// How many requests of this kind were answered.
    pub fn answered(&self, opcode: Opcode) -> usize {
        self.0.iter().filter(|entry| entry.opcode == opcode && entry.what != What::Arrived).count()
    }

    /// Where the first line is that this is true of.
    pub fn position(&self, of: impl Fn(&Entry) -> bool) -> Option<usize> {
        self.0.iter().position(of)
    }

    /// Fails unless every request of this kind (and node, if given) that arrived was answered, there was at least
    /// one, and the last was answered before the first SYNCFS arrived.
    pub fn assert_all_before_syncfs(&self, opcode: Opcode, node: Option<u64>) {
        let mine = |entry: &Entry| entry.opcode == opcode && node.is_none_or(|node| node == entry.node);
        let syncfs = self.position(|entry| entry.opcode == Opcode::Syncfs).expect("a SYNCFS was sent");
        let (before, after) = self.0.split_at(syncfs);
        let count = |entries: &[Entry], arrived: bool| {
            entries.iter().filter(|entry| mine(entry) && (entry.what == What::Arrived) == arrived).count()
        };
        assert!(count(before, true) > 0, "no {opcode} of {node:?} before SYNCFS: {self:?}");
        assert_eq!(count(before, true), count(before, false), "SYNCFS overtook a {opcode}: {self:?}");
        assert_eq!(count(after, true), 0, "a {opcode} came after SYNCFS: {self:?}");
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {} of node {} at {}", self.what, self.opcode, self.id, self.node, self.offset)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}
