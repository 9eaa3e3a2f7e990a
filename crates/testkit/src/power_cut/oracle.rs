//! Whether what was found after a power cut is what had to be there.
//!
//! ```text
//!   steps of a thread    0 ............ floor ............ ceiling ......
//!                        must have       may have          cannot have
//!                        happened        happened, each    happened
//!                                        on its own
//! ```
//!
//! A name, a file's content and its permissions must be as they were at the floor, or as any later step made them. Bytes
//! may be of different steps: a write that no sync waited for may be there in part. A file or directory that was not
//! removed since must be found somewhere, so a rename leaves the old name or the new one, and never neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ashore_guest::workload::{DirectoryId, FileId, Node, SECTOR};

use super::history::{History, Version};
use super::knowledge::Knowledge;

/// What stands in a directory.
pub(super) type Found = BTreeMap<String, FoundNode>;

/// What was found under a name.
#[derive(Debug)]
pub(super) enum FoundNode {
    /// A file, with its bytes and permissions.
    File {
        /// Its bytes, or why they could not be read.
        content: Result<Vec<u8>, String>,
        /// Its permissions.
        mode: u32,
    },
    /// A directory.
    Directory(Found),
}

/// Reads all that is below a directory.
pub(super) fn look(directory: &Path) -> io::Result<Found> {
    let mut found = Found::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let node = if entry.file_type()?.is_dir() {
            FoundNode::Directory(look(&entry.path())?)
        } else {
            let content = fs::read(entry.path()).map_err(|error| error.to_string());
            FoundNode::File { content, mode: entry.metadata()?.permissions().mode() & 0o7777 }
        };
        found.insert(entry.file_name().to_string_lossy().into_owned(), node);
    }
    Ok(found)
}

/// What is wrong with what was found in the directory of a thread; nothing, if all promises were kept.
pub(super) fn judge(thread: u32, history: &History, known: &Knowledge, found: &Found) -> Vec<String> {
    let mut judge = Judge { thread, history, known, met: BTreeSet::new(), wrong: Vec::new() };
    judge.directory(0, found);
    judge.nothing_vanished();
    judge.wrong
}

struct Judge<'a> {
    thread: u32,
    history: &'a History,
    known: &'a Knowledge,
    /// What may be what was found.
    met: BTreeSet<Node>,
    wrong: Vec<String>,
}

impl Judge<'_> {
    fn floor(&self) -> u32 {
        self.known.floors[self.thread as usize]
    }

    fn ceiling(&self) -> u32 {
        self.known.ceilings[self.thread as usize]
    }

    fn wrong(&mut self, directory: DirectoryId, name: &str, what: &str) {
        let (thread, floor) = (self.thread, self.floor());
        self.wrong.push(format!("thread {thread}, directory {directory}, {name} (floor {floor}): {what}"));
    }

    fn directory(&mut self, directory: DirectoryId, found: &Found) {
        let synced = self.known.directories.get(&(self.thread, directory)).copied().unwrap_or(0);
        let floor = self.floor().max(synced);
        let none = BTreeMap::new();
        let timelines = self.history.names.get(&directory).unwrap_or(&none);
        for (name, timeline) in timelines {
            let allowed = timeline.between(floor, self.ceiling());
            let allowed: Vec<Option<Node>> = allowed.iter().map(|(_, node)| *node).collect();
            self.name(directory, name, &allowed, found.get(name));
        }
        for name in found.keys().filter(|name| !timelines.contains_key(*name)) {
            self.wrong(directory, name, "was never made");
        }
    }

    fn name(
        &mut self,
        directory: DirectoryId,
        name: &str,
        allowed: &[Option<Node>],
        found: Option<&FoundNode>,
    ) {
        match found {
            None if allowed.contains(&None) => {}
            None => self.wrong(directory, name, &format!("is gone; it should be {allowed:?}")),
            Some(FoundNode::Directory(below)) => {
                let is_directory = |node: &Option<Node>| matches!(node, Some(Node::Directory(_)));
                match allowed.iter().copied().find(is_directory).flatten() {
                    Some(Node::Directory(number)) => {
                        if !self.met.insert(Node::Directory(number)) {
                            self.wrong(directory, name, "is a directory that stands in two places");
                        }
                        self.directory(number, below);
                    }
                    _ => self.wrong(directory, name, &format!("is a directory; it should be {allowed:?}")),
                }
            }
            Some(FoundNode::File { content, mode }) => self.file(directory, name, allowed, content, *mode),
        }
    }

    /// An empty or torn file may be one of several that had the name; one that fits is enough.
    fn file(
        &mut self,
        directory: DirectoryId,
        name: &str,
        allowed: &[Option<Node>],
        content: &Result<Vec<u8>, String>,
        mode: u32,
    ) {
        let mut objections = Vec::new();
        let mut fits = false;
        for node in allowed.iter().flatten() {
            let Node::File(file) = node else { continue };
            match self.objection(*file, content, mode) {
                None => {
                    self.met.insert(*node);
                    fits = true;
                }
                Some(objection) => objections.push(format!("as file {file}: {objection}")),
            }
        }
        if !fits && objections.is_empty() {
            self.wrong(directory, name, &format!("is a file; it should be {allowed:?}"));
        } else if !fits {
            self.wrong(directory, name, &objections.join("; "));
        }
    }

    fn objection(&self, file: FileId, content: &Result<Vec<u8>, String>, mode: u32) -> Option<String> {
        let timeline = self.history.files.get(&file)?;
        let synced = self.known.files.get(&(self.thread, file)).copied().unwrap_or(0);
        let versions = timeline.between(self.floor().max(synced), self.ceiling());
        if self.known.was_told_lost(self.thread, file) {
            return None;
        }
        let content = match content {
            Ok(content) => content,
            Err(error) => return Some(format!("cannot be read: {error}")),
        };
        if !versions.iter().any(|(_, version)| version.mode == mode) {
            return Some(format!("permissions are {mode:o}"));
        }
        let earlier = if self.known.stale_tails { timeline.between(0, self.ceiling()) } else { &[] };
        wrong_length(versions, content.len()).or_else(|| wrong_bytes(versions, earlier, content))
    }

    fn nothing_vanished(&mut self) {
        let (floor, ceiling) = (self.floor(), self.ceiling());
        for (node, timeline) in &self.history.named {
            let always_named = timeline.between(floor, ceiling).iter().all(|(_, named)| *named);
            if always_named && !self.met.contains(node) {
                self.wrong
                    .push(format!("thread {}: {node:?} (floor {floor}) has lost all its names", self.thread));
            }
        }
    }
}

/// A file may be of any length between the shortest and the longest: it grows in parts.
fn wrong_length(versions: &[(u32, Version)], length: usize) -> Option<String> {
    let lengths = versions.iter().map(|(_, version)| version.content.len());
    let (shortest, longest) = (lengths.clone().min()?, lengths.max()?);
    (length < shortest || length > longest)
        .then(|| format!("its length is {length}; it should be {shortest} to {longest}"))
}

/// What is behind the end of a version counts as zeros: that is what a longer file has there first. Behind the shortest of
/// them the bytes of `earlier` versions will do too.
fn wrong_bytes(versions: &[(u32, Version)], earlier: &[(u32, Version)], content: &[u8]) -> Option<String> {
    let shortest = versions.iter().map(|(_, version)| version.content.len()).min()?;
    for (number, sector) in content.chunks(SECTOR).enumerate() {
        let start = number * SECTOR;
        let at = |version: &Version, place: usize| version.content.get(start + place).copied().unwrap_or(0);
        let whole = |(_, version): &(u32, Version)| {
            (0..sector.len()).all(|place| at(version, place) == sector[place])
        };
        if versions.iter().any(whole) {
            continue;
        }
        let known = |place: &usize| {
            let stale = if start + place >= shortest { earlier } else { &[] };
            versions.iter().chain(stale).any(|(_, version)| at(version, *place) == sector[*place])
        };
        if let Some(place) = (0..sector.len()).find(|place| !known(place)) {
            let since: Vec<u32> = versions.iter().map(|(since, _)| *since).collect();
            return Some(format!(
                "byte {} of {} is of none of the versions {since:?}",
                start + place,
                content.len()
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use ashore_guest::workload::{HostDirectory, Plan, Progress, SyncCall, Target, run};

    use super::*;

    const PLAN: Plan = Plan { seed: 21, threads: 1, operations: 300, clients: 1, floors_read_late: false };

    fn known(floor: u32, ceiling: u32) -> Knowledge {
        Knowledge { floors: vec![floor], ceilings: vec![ceiling], ..Knowledge::default() }
    }

    /// A directory after the first `operations` steps.
    fn after(operations: u32) -> (Found, History) {
        let folder = tempfile::tempdir().unwrap();
        let target = HostDirectory::new(folder.path(), SyncCall::Syncfs);
        target.make_directory("t0").unwrap();
        let plan = Plan { operations, ..PLAN };
        let outcome = run(&plan, 0..1, &target, &Progress::new(&plan), &|_| Ok(()));
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        (look(&folder.path().join("t0")).unwrap(), History::of(&PLAN, 0, PLAN.operations))
    }

    #[test]
    fn what_all_steps_lead_to_is_right() {
        let (found, history) = after(200);
        assert_eq!(judge(0, &history, &known(200, 200), &found), Vec::<String>::new());
        assert_eq!(judge(0, &history, &known(150, 230), &found), Vec::<String>::new());
    }

    /// Aim: one step that is missing is seen. Method: the directory after n steps, judged with a floor one step higher;
    /// steps that change nothing of what is looked at (a sync, a permission that was so before) make no difference.
    #[test]
    fn a_step_too_few_is_seen() {
        let (mut seen, mut tried) = (0, 0);
        for steps in (100..130).step_by(2) {
            let (found, history) = after(steps);
            let operation = format!("{:?}", history.operations[steps as usize]);
            if ["Sync", "Fsync", "SetMode", "Allocate"].iter().any(|kind| operation.starts_with(kind)) {
                continue;
            }
            tried += 1;
            seen += usize::from(!judge(0, &history, &known(steps + 1, steps + 1), &found).is_empty());
        }
        assert!(tried > 5 && seen == tried, "{seen} of {tried}");
    }

    #[test]
    fn what_cannot_have_happened_yet_is_seen() {
        let (found, history) = after(200);
        assert!(!judge(0, &history, &known(150, 180), &found).is_empty());
    }

    #[test]
    fn a_changed_byte_and_changed_permissions_are_seen() {
        let (mut found, history) = after(200);
        let file = found.values_mut().find_map(|node| match node {
            FoundNode::File { content: Ok(content), mode } if !content.is_empty() => Some((content, mode)),
            _ => None,
        });
        let (content, mode) = file.expect("some file has content");
        let right = (content.clone(), *mode);
        *content.last_mut().unwrap() ^= 1;
        assert!(!judge(0, &history, &known(200, 200), &found).is_empty());
        let file = found.values_mut().find_map(|node| match node {
            FoundNode::File { content: Ok(content), mode } if !content.is_empty() => Some((content, mode)),
            _ => None,
        });
        let (content, mode) = file.expect("the same file");
        (*content, *mode) = (right.0, right.1 ^ 0o100);
        assert!(!judge(0, &history, &known(200, 200), &found).is_empty());
    }
}
