//! A server that is killed and started again goes on where it was.
//!
//! What a client was given (node ids, open files, what was agreed) and what was answered is written to a state file before
//! the answer goes out. The file's pages belong to the host's kernel, so a process that is killed loses nothing of it; after
//! a loss of power it is void, and is not read.
//!
//! ```text
//!   RequestQueue ──► Recovering ──► Worker ──► FileSystem
//!                      │  ▲
//!                      │  └─ on the way back: what was answered         (Done)
//!                      └──── on the way in: what was there before       (Intent), of changes that cannot be made twice
//! ```
//!
//! What was in flight comes again, with the same numbers. Then there are three cases:
//!
//! - It is Done: the client gets the answer that is written down.
//! - There is neither: nothing has happened, or what can be done again. It is done.
//! - There is an Intent alone: the change was made or not. `resolve.rs` looks at the host, which of both.
//!
//! ```text
//!   file   | header | area 0: records ...        | area 1: records ...            |
//!            which area, which epoch   after many records the state is told anew in the other area, and the header turned
//! ```

mod exchange;
mod migration;
mod record;
mod resolve;

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ashore_wire::{FileHandle, Name, NodeId};

use crate::filesystem::{FileSystem, Result};
use crate::primitives::Mutex;
use crate::session::{ResumeError, Session};

pub use exchange::{RecordedExchange, Recovering};
pub use migration::{
    FindBy, Migratable, MigrationError, Moved, NODES_MAX, Term, Unfound, load, prepare, save,
};
pub use record::OpenedBy;
use record::{Answer, BLOCK, FORGETS_MAX, Known, Pending, Reader, Record, Slot, State, What, Writer};

const MAGIC: u64 = u64::from_le_bytes(*b"ashore\x00\x00");
/// Of what stands in the file.
const VERSION: u64 = 1;
/// Where the areas begin. They are sparse, and none comes near the size of the other.
const AREAS: [u64; 2] = [BLOCK as u64, 1 << 37];
/// Requests kept of earlier processes whose client has not asked for them again, at most: each process leaves as many as it
/// had under way at once.
const PENDING_MAX: usize = 4096;
/// Records written before the state is told anew, at least.
const RECORDS_MIN: u64 = 1 << 14;
/// Bytes told anew in one write.
const WRITE_BYTES: usize = 1 << 20;

/// Which file a name leads to: device, inode number, time of birth in nanoseconds, kind.
pub type Look = [u64; 4];

/// A file system whose nodes and open files outlive the process.
pub trait Recoverable: FileSystem {
    /// How a node that the client knows is found again, within 200 bytes. `None`: it is not.
    fn describe(&self, node: NodeId) -> Option<Vec<u8>>;
    /// Makes a node valid again, under its id.
    fn restore_node(&self, node: NodeId, lookups: u64, description: &[u8]) -> Result<()>;
    /// Opens a file or directory again, under its handle.
    fn restore_open(&self, handle: FileHandle, node: NodeId, flags: u32, directory: bool) -> Result<()>;
    /// All is restored. Ids and handles given out from now on are none that were told before. `elsewhere`: there were nodes
    /// that could not be described; what was changed there is not known here, and is to be stable when this returns.
    fn restored(&self, elsewhere: bool);
    /// What a name leads to now. Counts no lookup.
    fn look(&self, parent: NodeId, name: Name<'_>) -> Result<Option<Look>>;
    /// What a node is.
    fn look_node(&self, node: NodeId) -> Result<Look>;
    /// Bytes of an open file.
    fn size(&self, node: NodeId, handle: FileHandle) -> Result<u64>;
    /// Reads of an open file, also if it was opened for writing only. Returns the number of bytes, fewer at the end.
    fn read_back(&self, node: NodeId, handle: FileHandle, offset: u64, into: &mut [u8]) -> Result<usize>;
}

/// The state file of a server.
#[derive(Debug)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    identity: Identity,
    epoch: u64,
    area: usize,
    /// Records in the area.
    count: u64,
    /// Records at which the state is told anew.
    limit: u64,
    state: State,
    /// Slots that no request has; those from `next_slot` on were never in use.
    free_slots: Vec<Slot>,
    next_slot: Slot,
    /// Requests of earlier processes, which may come again.
    before: HashMap<u64, Slot>,
}

/// What a state file is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Since when this machine runs: what was written before is void. At most 100 bytes.
    pub boot: Vec<u8>,
    /// What is shared. At most 100 bytes.
    pub share: Vec<u8>,
}

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Not to be overwritten.
    #[error("it is no state file, or its beginning is damaged; remove it to begin anew")]
    Foreign,
    /// To be used by the version that wrote it, or to be removed.
    #[error("it was written by another version of this program ({0}); remove it to begin anew")]
    Version(u64),
    /// To be used with the other share, or to be removed.
    #[error("it is of another share; remove it to begin anew")]
    OtherShare,
    /// Some of it is not as it was written.
    #[error("its record {0} is damaged, and there are others after it; remove it to begin anew")]
    Damaged(u64),
    /// The client relies on what cannot be had any more.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Journal {
    /// Reads the file, which nobody else must be writing.
    pub fn open(file: File, identity: Identity) -> Result<Journal, JournalError> {
        let mut inner = Inner {
            file,
            identity,
            epoch: 0,
            area: 0,
            count: 0,
            limit: RECORDS_MIN,
            state: State::default(),
            free_slots: Vec::new(),
            next_slot: 0,
            before: HashMap::new(),
        };
        if inner.read_header()? {
            inner.read_records()?;
            inner.expect_pending();
        }
        inner.tell_anew()?;
        Ok(Journal { inner: Mutex::new(inner) })
    }

    /// Puts a session back to where the process before this one was. Says how many nodes and open files there were, and
    /// how many of both could not be had again; `None` if there was no client.
    pub fn restore<F: Recoverable>(
        &self,
        session: &Arc<Session<F>>,
    ) -> Result<Option<Restored>, JournalError> {
        let inner = &*self.inner.lock();
        let Some((init, answer)) = &inner.state.init else { return Ok(None) };
        session.resume(init, answer)?;
        let mut restored = Restored::default();
        let filesystem = session.filesystem();
        // Who takes an id is written down after it was free, and who gave it up perhaps not yet: the newer one has it.
        let mut nodes: Vec<_> = inner.state.nodes.iter().collect();
        nodes.sort_unstable_by_key(|(node, _)| std::cmp::Reverse(node.0));
        for (node, (lookups, description)) in nodes {
            restored.note(filesystem.restore_node(*node, *lookups, description).is_ok());
        }
        let mut open: Vec<_> = inner.state.open.values().collect();
        open.sort_unstable_by_key(|opened| opened.handle.0);
        for opened in open {
            let OpenedBy { handle, node, flags, directory } = *opened;
            restored.note(filesystem.restore_open(handle, node, flags, directory).is_ok());
        }
        filesystem.restored(inner.state.elsewhere);
        Ok(Some(restored))
    }

    /// The client has gone for good: there is nothing to go on with.
    pub fn end(&self) -> io::Result<()> {
        let inner = &mut *self.inner.lock();
        if inner.state.init.is_none() { Ok(()) } else { inner.write(Record::Ended) }
    }

    /// A queue whose requests are written down.
    pub fn record<F: Recoverable, Q>(
        self: &Arc<Self>,
        session: &Arc<Session<F>>,
        queue: Q,
    ) -> Recovering<F, Q> {
        Recovering::new(queue, Arc::clone(session), Arc::clone(self))
    }

    /// What is known of a request of an earlier process, and its slot. Asked once: then it is this process's request.
    fn before(&self, unique: u64) -> Option<(Slot, What)> {
        let inner = &mut *self.inner.lock();
        let slot = inner.before.remove(&unique)?;
        inner.state.pending.get(&slot).map(|pending| (slot, pending.what.clone()))
    }

    fn write(&self, record: Record) -> io::Result<()> {
        self.inner.lock().write(record)
    }

    /// A change is about to be made.
    fn begin(&self, unique: u64, seen: Vec<u8>) -> io::Result<Slot> {
        let inner = &mut *self.inner.lock();
        let slot = inner.take_slot();
        inner.write(Record::Intent { slot, unique, seen }).map(|()| slot)
    }

    /// A request was done; its answer, not given yet, brings the client these.
    fn done<F: Recoverable>(&self, filesystem: &F, slot: Option<Slot>, done: Done) -> io::Result<Slot> {
        let inner = &mut *self.inner.lock();
        let mut elsewhere = false;
        // Under the lock: whether the node is new to the file is the same question for all.
        let gained = done.gained.map(|node| {
            let known = inner.state.nodes.contains_key(&node);
            let description = if known { None } else { filesystem.describe(node) };
            elsewhere = !known && description.is_none();
            Known { node, lookups: 1, description: description.unwrap_or_default() }
        });
        if elsewhere && !inner.state.elsewhere {
            inner.append(Record::Elsewhere)?;
        }
        let slot = slot.unwrap_or_else(|| inner.take_slot());
        let Done { unique, answer, opened, closed, .. } = done;
        inner.write(Record::Done { slot, unique, answer, gained, opened, closed }).map(|()| slot)
    }

    /// Lookups were given back.
    fn forgot(&self, unique: u64, nodes: &[(NodeId, u64)]) -> io::Result<Slot> {
        let inner = &mut *self.inner.lock();
        let slot = inner.take_slot();
        let parts = nodes.chunks(FORGETS_MAX);
        for (number, nodes) in (1..).zip(parts.clone()) {
            let last = number == parts.len();
            inner.append(Record::Forgot { slot, unique, nodes: nodes.to_vec(), last })?;
        }
        inner.tell_anew_in_time().map(|()| slot)
    }

    /// The answer has gone out: another request may have the slot.
    fn answered(&self, slot: Slot) {
        let inner = &mut *self.inner.lock();
        inner.state.pending.remove(&slot);
        inner.free_slots.push(slot);
    }
}

/// What there is to write of a request that was done.
struct Done {
    unique: u64,
    answer: Answer,
    gained: Option<NodeId>,
    opened: Option<OpenedBy>,
    closed: Option<FileHandle>,
}

/// How a restoration went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Nodes and open files that are valid again.
    pub found: u64,
    /// Those that are not: files whose last name was gone, and what is on file systems mounted below the share.
    pub lost: u64,
}

impl Restored {
    fn note(&mut self, found: bool) {
        *(if found { &mut self.found } else { &mut self.lost }) += 1;
    }
}

impl Inner {
    /// Whether there is anything in it to go on with.
    fn read_header(&mut self) -> Result<bool, JournalError> {
        if self.file.metadata()?.len() == 0 {
            return Ok(false);
        }
        let block = self.read_block(0)?.ok_or(JournalError::Foreign)?;
        let mut from = Reader(record::open(&block).ok_or(JournalError::Foreign)?);
        let mut number = || from.number().ok_or(JournalError::Foreign);
        if number()? != MAGIC {
            return Err(JournalError::Foreign);
        }
        match number()? {
            VERSION => {}
            other => return Err(JournalError::Version(other)),
        }
        (self.epoch, self.area) = (number()?, usize::from(number()? != 0));
        let (boot, share) = from.bytes().zip(from.bytes()).ok_or(JournalError::Foreign)?;
        if boot != self.identity.boot {
            tracing::warn!("the state file is from before this machine was started, and is not gone on with");
            return Ok(false);
        }
        if share == self.identity.share { Ok(true) } else { Err(JournalError::OtherShare) }
    }

    fn read_records(&mut self) -> Result<(), JournalError> {
        while let Some(record) = self.read_record(self.count)? {
            self.state.apply(record);
            self.count += 1;
        }
        self.state.drop_unfinished();
        // A process that is killed leaves nothing behind a record that it did not finish.
        if self.read_record(self.count + 1)?.is_some() {
            return Err(JournalError::Damaged(self.count));
        }
        Ok(())
    }

    fn read_record(&self, number: u64) -> io::Result<Option<Record>> {
        let block = self.read_block(AREAS[self.area] + number * BLOCK as u64)?;
        Ok(block.and_then(|block| Record::decode(&block, self.epoch)))
    }

    /// The requests that may come again keep their slots until they have come.
    fn expect_pending(&mut self) {
        let pending = &mut self.state.pending;
        while pending.len() > PENDING_MAX {
            pending.pop_first();
        }
        self.next_slot = pending.last_key_value().map_or(0, |(slot, _)| slot + 1);
        self.free_slots = (0..self.next_slot).filter(|slot| !pending.contains_key(slot)).collect();
        // A client that does not number its FORGETs calls all of them 0.
        let numbered = pending.iter().filter(|(_, pending)| pending.unique != 0);
        self.before = numbered.map(|(slot, Pending { unique, .. })| (*unique, *slot)).collect();
    }

    fn take_slot(&mut self) -> Slot {
        self.free_slots.pop().unwrap_or_else(|| {
            self.next_slot += 1;
            self.next_slot - 1
        })
    }

    fn read_block(&self, at: u64) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        match self.file.read_exact_at(&mut block, at) {
            Ok(()) => Ok(Some(block)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, record: Record) -> io::Result<()> {
        self.append(record)?;
        self.tell_anew_in_time()
    }

    /// Writes a record, and it counts.
    fn append(&mut self, record: Record) -> io::Result<()> {
        let block = record.encode(self.epoch).ok_or(io::ErrorKind::InvalidInput)?;
        self.file.write_all_at(&block, AREAS[self.area] + self.count * BLOCK as u64)?;
        self.count += 1;
        if matches!(record, Record::Began { .. } | Record::Ended) {
            self.before.clear();
        }
        self.state.apply(record);
        Ok(())
    }

    fn tell_anew_in_time(&mut self) -> io::Result<()> {
        if self.count > self.limit { self.tell_anew() } else { Ok(()) }
    }

    /// Writes the whole state to the other area, and turns to that.
    fn tell_anew(&mut self) -> io::Result<()> {
        // By chance: what a process has left there that was killed in the middle of this is of another epoch.
        let (area, epoch) = (1 - self.area, RandomState::new().hash_one(self.epoch));
        let (mut blocks, mut at, mut count) = (Vec::new(), AREAS[area], 0);
        for record in self.state.records() {
            blocks.extend_from_slice(&record.encode(epoch).ok_or(io::ErrorKind::InvalidInput)?);
            count += 1;
            if blocks.len() >= WRITE_BYTES {
                self.file.write_all_at(&blocks, at)?;
                at += blocks.len() as u64;
                blocks.clear();
            }
        }
        self.file.write_all_at(&blocks, at)?;
        let mut header = Writer(Vec::new());
        [MAGIC, VERSION, epoch, area as u64].into_iter().for_each(|number| header.number(number));
        header.bytes(&self.identity.boot);
        header.bytes(&self.identity.share);
        let header = record::seal(header.0).ok_or(io::ErrorKind::InvalidInput)?;
        self.file.write_all_at(&header, 0)?;
        (self.area, self.epoch, self.count) = (area, epoch, count);
        self.limit = count + RECORDS_MIN + self.state.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory's file system, without a name.
    fn file() -> File {
        let path = std::env::temp_dir().join(format!(
            "ashore-journal-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn identity(share: &[u8]) -> Identity {
        Identity { boot: b"today".to_vec(), share: share.to_vec() }
    }

    fn open(file: &File, identity: Identity) -> Result<Journal, JournalError> {
        Journal::open(file.try_clone().unwrap(), identity)
    }

    fn done(slot: Slot, unique: u64) -> Record {
        let answer = Answer { error: 0, body: vec![2; 16] };
        Record::Done { slot, unique, answer, gained: None, opened: None, closed: None }
    }

    fn began() -> Record {
        Record::Began { init: vec![1; 104], answer: vec![2; 64] }
    }

    /// A journal of a client with these requests under way, of which nothing is answered.
    fn journal(file: &File, under_way: u64) -> Journal {
        let journal = open(file, identity(b"this")).unwrap();
        journal.write(began()).unwrap();
        for unique in 1..=under_way {
            let slot = journal.begin(unique, vec![]).unwrap();
            journal.write(done(slot, unique)).unwrap();
        }
        journal
    }

    #[test]
    fn what_is_not_answered_is_known_to_the_next_process_and_to_the_one_after_it() {
        let file = file();
        let first = journal(&file, 5);
        first.answered(3);
        // Enough for the state to be told anew, twice, while four are not answered.
        for unique in 6..2 * RECORDS_MIN + 100 {
            let slot = first.begin(unique, vec![]).unwrap();
            first.answered(slot);
        }
        let torn = {
            let inner = first.inner.lock();
            AREAS[inner.area] + inner.count * BLOCK as u64
        };
        file.write_all_at(&[7; 100], torn).unwrap();
        for process in ["second", "third"] {
            let next = open(&file, identity(b"this")).unwrap();
            assert_eq!(next.inner.lock().state.init, Some((vec![1; 104], vec![2; 64])), "{process}");
            let Some((0, What::Done(answer))) = next.before(1) else { panic!("{process}") };
            assert_eq!(answer.body, [2; 16]);
            assert_eq!(next.before(1), None, "it came again, and comes no more");
            assert_eq!(next.before(4), None, "it was answered, and its slot is another request's");
            assert!(next.begin(100, vec![]).unwrap() >= 5, "those that may come again keep theirs");
        }
        let fourth = open(&file, identity(b"this")).unwrap();
        fourth.write(began()).unwrap();
        assert_eq!(fourth.before(2), None, "it was another client's");
    }

    #[test]
    fn a_state_file_that_is_something_else_is_left_alone() {
        let refused = |file: &File, identity: Identity| {
            let length = file.metadata().unwrap().len();
            let error = open(file, identity).unwrap_err();
            assert_eq!(file.metadata().unwrap().len(), length);
            error
        };
        let diary = file();
        diary.write_all_at(b"precious", 0).unwrap();
        assert!(matches!(refused(&diary, identity(b"this")), JournalError::Foreign));
        diary.write_all_at(&[0; 2000], 0).unwrap();
        assert!(matches!(refused(&diary, identity(b"this")), JournalError::Foreign));

        let file = file();
        let area = AREAS[journal(&file, 5).inner.lock().area];
        assert!(matches!(refused(&file, identity(b"other")), JournalError::OtherShare));
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, area + 3 * BLOCK as u64).unwrap();
        let mut damaged = block;
        damaged[77] ^= 1;
        file.write_all_at(&damaged, area + 3 * BLOCK as u64).unwrap();
        assert!(matches!(refused(&file, identity(b"this")), JournalError::Damaged(3)));
        file.write_all_at(&block, area + 3 * BLOCK as u64).unwrap();
        let later = Identity { boot: b"tomorrow".to_vec(), ..identity(b"other") };
        assert_eq!(open(&file, later).unwrap().inner.into_inner().state, State::default());

        let mut header = Writer(Vec::new());
        [MAGIC, VERSION + 1].into_iter().for_each(|number| header.number(number));
        file.write_all_at(&record::seal(header.0).unwrap(), 0).unwrap();
        assert!(matches!(refused(&file, identity(b"this")), JournalError::Version(2)));
    }
}
