//! A session goes on at another server: all that its client was given, as one stream of bytes.
//!
//! ```text
//!   | magic | version |  length | sum | record  |  length | sum | record  | ...
//!
//!   Agreed   what the client and the server said in INIT; without it there is no client, and nothing follows
//!   Term     an option of the source that the client has come to rely on, and its value
//!   Knows    a node, how often it was looked up, and how the file system finds it again
//!   HasOpen  an open file
//!   End      how many of both there were
//! ```
//!
//! What a node is described by is the file system's affair, as it is in the state file, whose words are used here. The
//! stream comes from another machine and is believed in nothing: it is bounded, its sums and its end are checked, and a
//! session that it made half of is forgotten.

use std::io::{self, Read, Write};
use std::sync::Arc;

use ashore_wire::NodeId;
use ashore_wire::flags::InitFlags;

use super::record::{Known, OpenedBy, Reader, Writer, sum};
use super::{Recoverable, Restored};
use crate::filesystem::FileSystem;
use crate::session::{ResumeError, Session};

const MAGIC: [u8; 8] = *b"ashoremv";
/// Of what stands in the stream.
const VERSION: u64 = 1;
/// Bytes of a record: a path has up to 4096.
const RECORD_MAX: usize = 16 << 10;
/// Nodes and open files that a client may have: tables have room for as many as the highest number among them.
pub const NODES_MAX: u64 = 1 << 24;
/// Files that were not found and are named in the log.
const COMPLAINTS_MAX: u64 = 10;

/// How the other server finds a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindBy {
    /// By its path, relative to what is shared. With `verify`, it must have the file handle that it has here, too.
    Path {
        /// Whether both sides share the same directory of the same file system, and can compare.
        verify: bool,
    },
    /// By its file handle. Both sides share the same directory of the same file system.
    Handle,
}

/// What to do at the destination about files that are not found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfound {
    /// The session does not move.
    Abort,
    /// It moves, and the client is told ESTALE or EBADF when it uses them.
    TellTheClient,
}

/// An option that the client relies on, and its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Term {
    /// Its name, as the user gives it.
    pub option: String,
    /// Its value; the same text means the same.
    pub value: String,
}

/// A file system whose client can go on at another server.
pub trait Migratable: Recoverable {
    /// The client may leave soon, and goes on meanwhile: makes stable what it has changed so far, so that little is left to do
    /// when it has stopped. Takes no error from the client's syncs.
    fn sync_ahead(&self);
    /// The client is about to leave for another server; none of its requests is under way. What it changed is made stable. An
    /// error, told to whoever moves it, means that it stays, and is told to it once more at its next sync.
    fn hand_over(&self) -> std::result::Result<(), String>;
    /// What the client relies on beside what was agreed in INIT.
    fn terms(&self) -> Vec<Term>;
    /// The options by which these features are offered.
    fn options_for(&self, features: InitFlags) -> String;
    /// Nodes that the client knows, without the root, and how often each was looked up.
    fn known_nodes(&self) -> Vec<(NodeId, u64)>;
    /// Files and directories that the client has open.
    fn open_files(&self) -> Vec<OpenedBy>;
    /// How the other server finds these nodes: one description each, in their order, within 8 KiB. One that cannot be found
    /// has a description that says so.
    fn describe_all(&self, nodes: &[NodeId], by: FindBy) -> Vec<Vec<u8>>;
    /// Makes a node of another server valid here, under its id. Says why not, if not; the id is none that will be given out.
    fn take_over(&self, node: NodeId, lookups: u64, description: &[u8]) -> std::result::Result<(), String>;
}

/// Why a session did not move.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The file system keeps its client.
    #[error("{0}")]
    Stays(String),
    /// More than a destination takes.
    #[error("the client knows {0} files, or has as many open; no more than {NODES_MAX} can move")]
    TooMany(u64),
    /// It comes from something else.
    #[error("what came is no state of `ashore serve`; a session moves only between servers of this program")]
    Foreign,
    /// Another version wrote it.
    #[error("the state was written by another version of this program ({0})")]
    Version(u64),
    /// It is not as it was written.
    #[error("the state is damaged ({0})")]
    Damaged(&'static str),
    /// The client relies on an option.
    #[error("the client relies on {option}={there} of the server it comes from; here it is {option}={here}")]
    Option {
        /// Its name.
        option: String,
        /// At the source.
        there: String,
        /// At this server.
        here: String,
    },
    /// The client was promised features in INIT.
    #[error("the client was promised {features:?}, which this server does not offer; see {options}")]
    Features {
        /// Those not to be had here.
        features: InitFlags,
        /// Options by which they are had.
        options: String,
    },
    /// As the state file has it.
    #[error(transparent)]
    Resume(ResumeError),
    /// Files were not found.
    #[error("{lost} files that the client knows or has open cannot be had here; the first: {first}")]
    Unfound {
        /// How many.
        lost: u64,
        /// Why the first one was not.
        first: String,
    },
    /// The bytes do not come, or go.
    #[error("the state cannot be transferred: {0}")]
    Io(#[from] io::Error),
}

/// What was moved away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Nodes that the client knows.
    pub nodes: u64,
    /// What it has open.
    pub open: u64,
}

/// Does ahead what [`save`] will have to, while the client goes on.
pub fn prepare<F: Migratable>(session: &Session<F>) {
    if session.has_client() {
        session.filesystem().sync_ahead();
    }
}

/// Writes down all that another server needs to go on with the client, after what the client changed was made stable.
///
/// To be called when no request is under way. The session stays as it is: should the client not go, it goes on.
pub fn save<F: Migratable>(
    session: &Session<F>,
    by: FindBy,
    into: &mut dyn Write,
) -> Result<Moved, MigrationError> {
    let mut out = Sink { into: io::BufWriter::new(into), moved: Moved::default() };
    out.into.write_all(&MAGIC)?;
    out.into.write_all(&VERSION.to_le_bytes())?;
    if let Some((init, answer)) = session.greeting() {
        let filesystem = session.filesystem();
        filesystem.hand_over().map_err(MigrationError::Stays)?;
        out.put(&Item::Agreed { init, answer })?;
        for term in filesystem.terms() {
            out.put(&Item::Term(term))?;
        }
        out.put_nodes(filesystem, by)?;
    }
    let moved = out.moved;
    out.put(&Item::End(moved))?;
    out.into.flush()?;
    Ok(moved)
}

/// Reads what [`save`] wrote, and goes on with its client. After an error there is no client.
pub fn load<F: Migratable>(
    session: &Arc<Session<F>>,
    unfound: Unfound,
    from: &mut dyn Read,
) -> Result<Option<Restored>, MigrationError> {
    let loaded = take_in(session, unfound, &mut io::BufReader::new(from));
    if loaded.is_err() {
        session.forget_client();
        // What was made room for and not filled is free again.
        session.filesystem().restored(false);
    }
    loaded
}

struct Sink<'a> {
    into: io::BufWriter<&'a mut dyn Write>,
    moved: Moved,
}

impl Sink<'_> {
    fn put(&mut self, item: &Item) -> io::Result<()> {
        let body = item.encode();
        self.into.write_all(&(body.len() as u32).to_le_bytes())?;
        self.into.write_all(&sum(&body).to_le_bytes())?;
        self.into.write_all(&body)
    }

    fn put_nodes<F: Migratable>(&mut self, filesystem: &F, by: FindBy) -> Result<(), MigrationError> {
        let (known, open) = (filesystem.known_nodes(), filesystem.open_files());
        let numbers = known.iter().map(|(node, _)| node.0).chain(open.iter().map(|open| open.handle.0));
        if let Some(most) = numbers.map(table_number).max().filter(|number| *number >= NODES_MAX) {
            return Err(MigrationError::TooMany(most));
        }
        let nodes: Vec<_> = known.iter().map(|(node, _)| *node).collect();
        let descriptions = filesystem.describe_all(&nodes, by);
        for ((node, lookups), description) in known.into_iter().zip(descriptions) {
            self.put(&Item::Knows(Known { node, lookups, description }))?;
            self.moved.nodes += 1;
        }
        for opened in open {
            self.put(&Item::HasOpen(opened))?;
            self.moved.open += 1;
        }
        Ok(())
    }
}

/// What a table has to have room for: ids have a generation above this.
fn table_number(id: u64) -> u64 {
    id & u64::from(u32::MAX)
}

fn take_in<F: Migratable>(
    session: &Arc<Session<F>>,
    unfound: Unfound,
    from: &mut dyn Read,
) -> Result<Option<Restored>, MigrationError> {
    if read_array(from)? != MAGIC {
        return Err(MigrationError::Foreign);
    }
    match u64::from_le_bytes(read_array(from)?) {
        VERSION => {}
        other => return Err(MigrationError::Version(other)),
    }
    let mut arrival = None;
    loop {
        match (read_item(from)?, &mut arrival) {
            (Item::Agreed { init, answer }, None) => {
                session.take_over(&init, &answer).map_err(|error| explain(session.filesystem(), error))?;
                arrival = Some(Arrival::new(session.filesystem()));
            }
            (Item::End(moved), arrival) => {
                let told = arrival.as_ref().map_or(Moved::default(), |arrival| arrival.moved);
                if told != moved {
                    return Err(MigrationError::Damaged("some of it is missing"));
                }
                if from.read(&mut [0])? != 0 {
                    return Err(MigrationError::Damaged("there is more behind its end"));
                }
                return arrival.take().map(|arrival| arrival.finish(unfound)).transpose();
            }
            (_, None) => return Err(MigrationError::Damaged("it does not begin with INIT")),
            (item, Some(arrival)) => arrival.take(item)?,
        }
    }
}

fn explain<F: Migratable>(filesystem: &F, error: ResumeError) -> MigrationError {
    match error {
        ResumeError::Lacks(features) => {
            MigrationError::Features { features, options: filesystem.options_for(features) }
        }
        other => MigrationError::Resume(other),
    }
}

/// What has come so far.
struct Arrival<'a, F> {
    filesystem: &'a F,
    terms: Vec<Term>,
    moved: Moved,
    restored: Restored,
    first_lost: Option<String>,
}

impl<'a, F: Migratable> Arrival<'a, F> {
    fn new(filesystem: &'a F) -> Arrival<'a, F> {
        let terms = filesystem.terms();
        Arrival {
            filesystem,
            terms,
            moved: Moved::default(),
            restored: Restored::default(),
            first_lost: None,
        }
    }

    fn take(&mut self, item: Item) -> Result<(), MigrationError> {
        match item {
            Item::Term(term) => self.compare(term),
            Item::Knows(Known { node, lookups, description }) => {
                self.moved.nodes += 1;
                if table_number(node.0) >= NODES_MAX {
                    return Err(MigrationError::Damaged("a node has a number that is too high"));
                }
                self.note(self.filesystem.take_over(node, lookups, &description));
                Ok(())
            }
            Item::HasOpen(OpenedBy { handle, node, flags, directory }) => {
                self.moved.open += 1;
                if table_number(handle.0) >= NODES_MAX {
                    return Err(MigrationError::Damaged("an open file has a number that is too high"));
                }
                let opened = self.filesystem.restore_open(handle, node, flags, directory);
                self.note(opened.map_err(|errno| format!("an open file of node {:#x}: {errno}", node.0)));
                Ok(())
            }
            Item::Agreed { .. } | Item::End(_) => Err(MigrationError::Damaged("it begins twice")),
        }
    }

    fn compare(&self, Term { option, value }: Term) -> Result<(), MigrationError> {
        let here = self.terms.iter().find(|term| term.option == option).map(|term| term.value.clone());
        match here {
            Some(here) if here == value => Ok(()),
            here => Err(MigrationError::Option { option, there: value, here: here.unwrap_or_default() }),
        }
    }

    fn note(&mut self, found: Result<(), String>) {
        let Err(why) = found else { return self.restored.found += 1 };
        self.restored.lost += 1;
        if self.restored.lost <= COMPLAINTS_MAX {
            tracing::warn!("migration: {why}");
        }
        self.first_lost.get_or_insert(why);
    }

    fn finish(self, unfound: Unfound) -> Result<Restored, MigrationError> {
        if let (Some(first), Unfound::Abort) = (self.first_lost, unfound) {
            return Err(MigrationError::Unfound { lost: self.restored.lost, first });
        }
        self.filesystem.restored(false);
        Ok(self.restored)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Item {
    Agreed { init: Vec<u8>, answer: Vec<u8> },
    Term(Term),
    Knows(Known),
    HasOpen(OpenedBy),
    End(Moved),
}

impl Item {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        match self {
            Item::Agreed { init, answer } => {
                out.number(1);
                out.bytes(init);
                out.bytes(answer);
            }
            Item::Term(Term { option, value }) => {
                out.number(2);
                out.bytes(option.as_bytes());
                out.bytes(value.as_bytes());
            }
            Item::Knows(known) => {
                out.number(3);
                out.known(known);
            }
            Item::HasOpen(opened) => {
                out.number(4);
                out.opened(opened);
            }
            Item::End(Moved { nodes, open }) => {
                out.number(5);
                out.number(*nodes);
                out.number(*open);
            }
        }
        out.0
    }

    fn decode(body: &[u8]) -> Option<Item> {
        let mut from = Reader(body);
        let text = |bytes| String::from_utf8(bytes).ok();
        let item = match from.number()? {
            1 => Item::Agreed { init: from.bytes()?, answer: from.bytes()? },
            2 => Item::Term(Term { option: text(from.bytes()?)?, value: text(from.bytes()?)? }),
            3 => Item::Knows(from.known()?),
            4 => Item::HasOpen(from.opened()?),
            5 => Item::End(Moved { nodes: from.number()?, open: from.number()? }),
            _ => return None,
        };
        from.0.is_empty().then_some(item)
    }
}

fn read_item(from: &mut dyn Read) -> Result<Item, MigrationError> {
    let length = u32::from_le_bytes(read_array(from)?) as usize;
    let said = u64::from_le_bytes(read_array(from)?);
    if length > RECORD_MAX {
        return Err(MigrationError::Damaged("a record is too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).map_err(cut_off)?;
    if sum(&body) != said {
        return Err(MigrationError::Damaged("the sum of a record is wrong"));
    }
    Item::decode(&body).ok_or(MigrationError::Damaged("a record means nothing"))
}

fn read_array<const N: usize>(from: &mut dyn Read) -> Result<[u8; N], MigrationError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(cut_off)?;
    Ok(bytes)
}

fn cut_off(error: io::Error) -> MigrationError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => MigrationError::Damaged("it ends too soon"),
        _ => MigrationError::Io(error),
    }
}

impl<F: FileSystem> Session<F> {
    /// The state that moves is that of a client; whether there is one.
    pub fn has_client(&self) -> bool {
        self.dialect().is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use ashore_wire::FileHandle;

    use super::*;

    #[test]
    fn what_is_told_comes_back_and_nothing_else_does() {
        let known = Known { node: NodeId(1 << 33 | 40), lookups: 7, description: vec![3; 8000] };
        let opened = OpenedBy { handle: FileHandle(9), node: NodeId(40), flags: 2, directory: true };
        let term = Term { option: "--xattr".into(), value: "true".into() };
        let items = [
            Item::Agreed { init: vec![1; 104], answer: vec![2; 64] },
            Item::Term(term),
            Item::Knows(known),
            Item::HasOpen(opened),
            Item::End(Moved { nodes: 1, open: 1 }),
        ];
        for item in items {
            let mut into = Vec::new();
            let sink: &mut dyn Write = &mut into;
            let mut out = Sink { into: io::BufWriter::new(sink), moved: Moved::default() };
            out.put(&item).unwrap();
            drop(out);
            assert_eq!(read_item(&mut &into[..]).unwrap(), item);
            for length in 0..into.len().min(200) {
                let cut = read_item(&mut &into[..length]);
                assert!(matches!(cut, Err(MigrationError::Damaged("it ends too soon"))));
            }
            for at in (0..into.len()).step_by(1 + into.len() / 100) {
                for bit in 0..8 {
                    let mut changed = into.clone();
                    changed[at] ^= 1 << bit;
                    assert!(read_item(&mut &changed[..]).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
    }
}
