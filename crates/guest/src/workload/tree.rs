//! What the steps of one thread lead to: the one definition of right.

use std::collections::BTreeMap;

use super::content::render;
use super::operation::{Allocation, DirectoryId, FileId, Operation, Place};

/// Permissions of a new file.
const FIRST_MODE: u32 = 0o644;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A file.
    File(FileId),
    /// A directory.
    Directory(DirectoryId),
}

/// A file as it is after some steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// All its bytes.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Where it can be found.
    pub names: Vec<Place>,
}

/// The directory of one thread after some of its steps.
#[derive(Clone, Debug)]
pub struct Tree {
    seed: u64,
    thread: u32,
    /// Each directory by its number, with its names; those that were removed are not there.
    directories: BTreeMap<DirectoryId, BTreeMap<String, Node>>,
    /// Where each directory stands, but the first.
    parents: BTreeMap<DirectoryId, Place>,
    /// Each file that has a name.
    files: BTreeMap<FileId, FileState>,
}

impl Tree {
    /// The empty directory a thread begins with.
    pub fn new(seed: u64, thread: u32) -> Tree {
        let directories = BTreeMap::from([(0, BTreeMap::new())]);
        Tree { seed, thread, directories, parents: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// The directories there are, and the names in each.
    pub fn directories(&self) -> &BTreeMap<DirectoryId, BTreeMap<String, Node>> {
        &self.directories
    }

    /// The files that have a name.
    pub fn files(&self) -> &BTreeMap<FileId, FileState> {
        &self.files
    }

    /// Where a directory stands; `None` for the first, and for those that are gone.
    pub fn parent(&self, directory: DirectoryId) -> Option<&Place> {
        self.parents.get(&directory)
    }

    /// What a name leads to.
    pub fn node(&self, at: &Place) -> Option<Node> {
        self.directories.get(&at.directory)?.get(&at.name).copied()
    }

    /// The path of a directory, from the place where all threads work.
    pub fn directory_path(&self, directory: DirectoryId) -> String {
        match self.parents.get(&directory) {
            Some(place) => self.path(place),
            None => super::Plan::directory(self.thread),
        }
    }

    /// The path of a name, from the place where all threads work.
    pub fn path(&self, at: &Place) -> String {
        format!("{}/{}", self.directory_path(at.directory), at.name)
    }

    /// Does step number `step`. It must be one that a [`Script`](super::Script) made for this state.
    pub fn apply(&mut self, step: u32, operation: &Operation) {
        match operation {
            Operation::MakeFile { file, at } => {
                let state = FileState { content: Vec::new(), mode: FIRST_MODE, names: Vec::new() };
                self.files.insert(*file, state);
                self.put(at, Node::File(*file));
            }
            Operation::Write { file, offset, length } => self.write(step, *file, *offset, *length),
            Operation::Append { file, length, .. } => {
                let end = self.files.get(file).map_or(0, |state| state.content.len() as u64);
                self.write(step, *file, end, *length);
            }
            Operation::SetLength { file, length } => self.content(*file).resize(*length as usize, 0),
            Operation::Allocate { file, offset, length, how } => {
                allocate(self.content(*file), *offset as usize, *length as usize, *how);
            }
            Operation::SetMode { file, mode } => self.file(*file).mode = *mode,
            Operation::Link { existing, new } => {
                let node = self.node(existing).expect("a script links what is there");
                self.put(new, node);
            }
            Operation::Rename { from, to } => {
                let node = self.take(from);
                if self.node(to).is_some() {
                    self.take(to);
                }
                self.put(to, node);
            }
            Operation::Unlink { at } => self.remove(at),
            Operation::MakeDirectory { directory, at } => {
                self.directories.insert(*directory, BTreeMap::new());
                self.put(at, Node::Directory(*directory));
            }
            Operation::RemoveDirectory { at } => self.remove(at),
            Operation::Fsync { .. } | Operation::FsyncDirectory { .. } | Operation::Sync => {}
        }
        self.files.retain(|_, state| !state.names.is_empty());
    }

    fn file(&mut self, file: FileId) -> &mut FileState {
        self.files.get_mut(&file).expect("a script names files that are there")
    }

    fn content(&mut self, file: FileId) -> &mut Vec<u8> {
        &mut self.file(file).content
    }

    fn write(&mut self, step: u32, file: FileId, offset: u64, length: u64) {
        let bytes = render(self.seed, self.thread, step, offset, length as usize);
        let content = self.content(file);
        let (start, end) = (offset as usize, (offset + length) as usize);
        content.resize(content.len().max(end), 0);
        content[start..end].copy_from_slice(&bytes);
    }

    fn put(&mut self, at: &Place, node: Node) {
        match node {
            Node::File(file) => self.file(file).names.push(at.clone()),
            Node::Directory(directory) => {
                self.parents.insert(directory, at.clone());
            }
        }
        self.directories.entry(at.directory).or_default().insert(at.name.clone(), node);
    }

    /// Takes a name away from what it leads to, which stays.
    fn take(&mut self, at: &Place) -> Node {
        let names =
            self.directories.get_mut(&at.directory).expect("a script names directories that are there");
        let node = names.remove(&at.name).expect("a script names what is there");
        match node {
            Node::File(file) => self.file(file).names.retain(|name| name != at),
            Node::Directory(directory) => {
                self.parents.remove(&directory);
            }
        }
        node
    }

    fn remove(&mut self, at: &Place) {
        if let Node::Directory(directory) = self.take(at) {
            self.directories.remove(&directory);
        }
    }
}

fn allocate(content: &mut Vec<u8>, offset: usize, length: usize, how: Allocation) {
    let end = offset + length;
    if matches!(how, Allocation::Extend | Allocation::Zero) {
        content.resize(content.len().max(end), 0);
    }
    if matches!(how, Allocation::Punch | Allocation::Zero) {
        let (start, end) = (offset.min(content.len()), end.min(content.len()));
        content[start..end].fill(0);
    }
}
