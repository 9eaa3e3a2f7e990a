//! The files that a server is measured with, made through the server itself: it may share any directory.
//!
//! ```text
//!     ashore-bench/ small/    a few files of 4 KiB
//!                   big       one to read and to write
//!                   many/     names, nothing in them
//!                   walk/     directories with files, nothing in them
//!                   sync/     files to dirty
//!                   scratch/  where files come and go
//!                   complete-* made when the part of that name is
//! ```

use anyhow::{Context, Result};
use ashore_vhost_user::driver::{Call, Pages, RawConnection, RawError};
use ashore_wire::encode::listed_names;
use ashore_wire::{Errno, FileHandle, NodeId};

pub(crate) const SMALL_FILES: usize = 64;
pub(crate) const BIG_BYTES: u64 = 16 << 20;
pub(crate) const MANY_NAMES: usize = 10_000;
pub(crate) const WALK_DIRECTORIES: usize = 200;
pub(crate) const WALK_FILES: usize = 100;
pub(crate) const SYNCS_AT_ONCE: usize = 8;

const NAME: &[u8] = b"ashore-bench";
const READ_WRITE: u32 = 2;
/// Requests on their way while files are made and removed.
const DEPTH: usize = 64;

/// A file, open to read and write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) node: NodeId,
    pub(crate) handle: FileHandle,
}

/// Which of the parts with many files are needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) many: bool,
    pub(crate) walk: bool,
}

/// The files.
pub(crate) struct Tree {
    root: NodeId,
    pub(crate) small: NodeId,
    pub(crate) small_names: Vec<String>,
    pub(crate) small_file: NodeId,
    pub(crate) big: Opened,
    pub(crate) many: NodeId,
    pub(crate) walk: NodeId,
    pub(crate) sync: Vec<Opened>,
    pub(crate) scratch: NodeId,
}

impl Tree {
    /// Makes what is not there yet, and leaves nothing dirty. The parts with many files are made if rows need them.
    pub(crate) fn prepare(raw: &RawConnection, needs: Needs) -> Result<Tree> {
        let root = directory(raw, NodeId::ROOT, NAME)?;
        let small = directory(raw, root, b"small")?;
        let small_names: Vec<String> = numbered("f", SMALL_FILES).collect();
        let (many, walk) = (directory(raw, root, b"many")?, directory(raw, root, b"walk")?);
        let sync = directory(raw, root, b"sync")?;
        once(raw, root, "complete-small", || {
            make_files(raw, small, small_names.iter().cloned())?;
            make_files(raw, sync, numbered("f", SYNCS_AT_ONCE))?;
            make_files(raw, root, std::iter::once("big".to_owned()))
        })?;
        if needs.many {
            once(raw, root, "complete-many", || {
                make_files(raw, many, numbered("name-of-usual-length-", MANY_NAMES))
            })?;
        }
        if needs.walk {
            once(raw, root, "complete-walk", || make_walk(raw, walk))?;
        }
        let opened = |parent, name: &str| -> Result<Opened> {
            let node = NodeId(raw.lookup(parent, name.as_bytes())?.nodeid);
            Ok(Opened { node, handle: raw.open(node, READ_WRITE)? })
        };
        let tree = Tree {
            root,
            small,
            small_file: NodeId(raw.lookup(small, small_names[0].as_bytes())?.nodeid),
            small_names,
            big: opened(root, "big")?,
            many,
            walk,
            sync: numbered("f", SYNCS_AT_ONCE).map(|name| opened(sync, &name)).collect::<Result<_>>()?,
            scratch: directory(raw, root, b"scratch")?,
        };
        tree.fill(raw)?;
        raw.syncfs().or_else(unless_unknown)?;
        Ok(tree)
    }

    fn fill(&self, raw: &RawConnection) -> Result<()> {
        const STEP: usize = 128 << 10;
        let from = Pages { first: 0, bytes: STEP };
        for offset in (0..BIG_BYTES).step_by(STEP) {
            raw.write(self.big.node, self.big.handle, offset, from).context("filling a file")?;
        }
        Ok(())
    }

    /// Closes the files, and removes them unless they are to be kept.
    pub(crate) fn close(self, raw: &RawConnection, keep: bool) -> Result<()> {
        for file in self.sync.iter().chain([&self.big]) {
            raw.release(file.node, file.handle)?;
        }
        if !keep {
            remove_all(raw, self.root)?;
            raw.rmdir(NodeId::ROOT, NAME)?;
        }
        Ok(())
    }
}

/// Makes a part unless its marker says that it is there, and the marker.
fn once(raw: &RawConnection, root: NodeId, marker: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    if raw.lookup(root, marker.as_bytes()).is_err() {
        make()?;
        make_files(raw, root, std::iter::once(marker.to_owned()))?;
    }
    Ok(())
}

fn make_walk(raw: &RawConnection, walk: NodeId) -> Result<()> {
    for name in numbered("d", WALK_DIRECTORIES) {
        let directory = directory(raw, walk, name.as_bytes())?;
        make_files(raw, directory, numbered("f", WALK_FILES))?;
        raw.forget(&[(directory, 1)])?;
    }
    Ok(())
}

/// A server without SYNCFS leaves its rows empty, and is measured all the same.
fn unless_unknown(error: RawError) -> Result<(), RawError> {
    if error == RawError::Errno(Errno::ENOSYS) { Ok(()) } else { Err(error) }
}

fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    let prefix = prefix.to_owned();
    (0..count).map(move |number| format!("{prefix}{number:05}"))
}

fn directory(raw: &RawConnection, parent: NodeId, name: &[u8]) -> Result<NodeId> {
    let entry = match raw.mkdir(parent, name) {
        Err(RawError::Errno(Errno::EEXIST)) => raw.lookup(parent, name),
        made => made,
    };
    Ok(NodeId(entry.with_context(|| format!("directory {}", String::from_utf8_lossy(name)))?.nodeid))
}

fn make_files(raw: &RawConnection, parent: NodeId, names: impl Iterator<Item = String>) -> Result<()> {
    let mut made = Vec::new();
    many_at_once(raw, names.map(|name| Call::mknod(parent, name.as_bytes())), |answer| match answer {
        Err(RawError::Errno(Errno::EEXIST)) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(body) => {
            let (entry, _) = ashore_wire::encode::take::<ashore_wire::abi::EntryOut>(&body)?;
            made.push((NodeId(entry.nodeid), 1));
            Ok(())
        }
    })?;
    Ok(raw.forget(&made)?)
}

fn remove_all(raw: &RawConnection, directory: NodeId) -> Result<()> {
    let mut files = Vec::new();
    let mut forgotten = Vec::new();
    for listed in list(raw, directory)? {
        if listed.is_directory {
            remove_all(raw, listed.node)?;
            raw.rmdir(directory, &listed.name)?;
        } else {
            files.push(Call::unlink(directory, &listed.name));
        }
        forgotten.push((listed.node, 1));
    }
    many_at_once(raw, files.into_iter(), |answer| Ok(answer.map(drop)?))?;
    Ok(raw.forget(&forgotten)?)
}

/// A name in a directory, its inode looked up once.
pub(crate) struct Listed {
    pub(crate) node: NodeId,
    pub(crate) name: Vec<u8>,
    pub(crate) is_directory: bool,
}

/// All names but `.` and `..`, by READDIRPLUS.
pub(crate) fn list(raw: &RawConnection, directory: NodeId) -> Result<Vec<Listed>> {
    const DIRECTORY_KIND: u32 = 4;
    let handle = raw.opendir(directory)?;
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let body = raw.readdirplus(directory, handle, offset)?;
        if body.is_empty() {
            break;
        }
        for listed in listed_names(&body, true) {
            let listed = listed?;
            offset = listed.dirent.off;
            if let (Some(entry), false) = (listed.entry, matches!(listed.name, b"." | b"..")) {
                let is_directory = listed.dirent.kind == DIRECTORY_KIND;
                all.push(Listed { node: NodeId(entry.nodeid), name: listed.name.to_vec(), is_directory });
            }
        }
    }
    raw.releasedir(directory, handle)?;
    Ok(all)
}

fn many_at_once(
    raw: &RawConnection,
    calls: impl Iterator<Item = Call>,
    mut answered: impl FnMut(Result<Vec<u8>, RawError>) -> Result<()>,
) -> Result<()> {
    let mut calls = calls.peekable();
    while calls.peek().is_some() {
        let sent: Vec<_> = calls.by_ref().take(DEPTH).map(|call| raw.send(call)).collect::<Result<_, _>>()?;
        for sent in sent {
            answered(raw.wait(sent).map(|answer| answer.body))?;
        }
    }
    Ok(())
}
