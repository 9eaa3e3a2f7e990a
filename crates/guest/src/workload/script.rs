//! The steps of one thread, made one after another from its seed.

use super::operation::{Allocation, DirectoryId, FileId, Operation, Place};
use super::tree::{Node, Tree};
use super::{Dice, Plan};

/// Bytes of the longest file.
const LONGEST: u64 = 48 << 10;
/// Bytes of the longest write.
const LONGEST_WRITE: u64 = 12 << 10;
const MOST_FILES: usize = 12;
const FEWEST_FILES: usize = 3;
const MOST_DIRECTORIES: usize = 6;
/// Names of files in a directory; few, so that they are used again.
const SLOTS: u64 = 5;
/// How many draws for a step that is possible now, before a sync is done instead.
const DRAWS: usize = 64;

/// The steps of one thread.
#[derive(Clone, Debug)]
pub struct Script {
    dice: Dice,
    tree: Tree,
    step: u32,
    steps: u32,
    next_directory: DirectoryId,
}

impl Script {
    /// The steps of thread `thread` of a plan.
    pub fn new(plan: &Plan, thread: u32) -> Script {
        let dice = Dice::new(super::mix(plan.seed ^ (u64::from(thread) + 1)));
        let tree = Tree::new(plan.seed, thread);
        Script { dice, tree, step: 0, steps: plan.operations, next_directory: 1 }
    }

    /// The state before the next step.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The next step, without doing it.
    pub fn draw(&mut self) -> Option<Operation> {
        if self.step == self.steps {
            return None;
        }
        let drawn = (0..DRAWS).find_map(|_| self.attempt());
        Some(drawn.unwrap_or(Operation::Sync))
    }

    /// The step that was drawn is done.
    pub fn done(&mut self, operation: &Operation) {
        if let Operation::MakeDirectory { directory, .. } = operation {
            self.next_directory = directory + 1;
        }
        self.tree.apply(self.step, operation);
        self.step += 1;
    }

    fn attempt(&mut self) -> Option<Operation> {
        if self.tree.files().len() < FEWEST_FILES {
            return self.make_file();
        }
        match self.dice.below(100) {
            0..30 => self.write(),
            30..38 => self.append(),
            38..43 => self.set_length(),
            43..49 => self.allocate(),
            49..57 => self.make_file(),
            57..65 => self.rename_file(),
            65..69 => self.link(),
            69..74 => self.unlink(),
            74..78 => self.make_directory(),
            78..80 => self.remove_directory(),
            80..82 => self.rename_directory(),
            82..85 => self.set_mode(),
            85..88 => Some(Operation::Fsync { file: self.any_file()? }),
            88..90 => Some(Operation::FsyncDirectory { directory: self.any_directory()? }),
            _ => Some(Operation::Sync),
        }
    }

    fn any_file(&mut self) -> Option<FileId> {
        let files: Vec<_> = self.tree.files().keys().copied().collect();
        self.dice.pick(&files).copied()
    }

    fn any_directory(&mut self) -> Option<DirectoryId> {
        let directories: Vec<_> = self.tree.directories().keys().copied().collect();
        self.dice.pick(&directories).copied()
    }

    /// One of the names that a file has.
    fn name_of(&mut self, file: FileId) -> Option<Place> {
        let state = self.tree.files().get(&file)?;
        self.dice.pick(&state.names).cloned()
    }

    fn any_slot(&mut self) -> Option<Place> {
        let directory = self.any_directory()?;
        Some(Place { directory, name: format!("f{}", self.dice.below(SLOTS)) })
    }

    fn free_slot(&mut self) -> Option<Place> {
        self.any_slot().filter(|slot| self.tree.node(slot).is_none())
    }

    fn length(&self, file: FileId) -> u64 {
        self.tree.files().get(&file).map_or(0, |state| state.content.len() as u64)
    }

    fn write(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        let (offset, length) = self.range(file);
        Some(Operation::Write { file, offset, length })
    }

    /// A part of a file, or a little beyond; as often on whole blocks as not.
    fn range(&mut self, file: FileId) -> (u64, u64) {
        let reach = (self.length(file) + 8192).min(LONGEST - 1);
        let (offset, length) = (self.dice.below(reach), 1 + self.dice.below(LONGEST_WRITE));
        let (offset, length) = if self.dice.percent(50) {
            (offset & !4095, length.next_multiple_of(4096))
        } else {
            (offset, length)
        };
        (offset, length.min(LONGEST - offset))
    }

    fn append(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        let at = self.name_of(file)?;
        let length = (1 + self.dice.below(6000)).min(LONGEST - self.length(file));
        (length > 0).then_some(Operation::Append { file, at, length })
    }

    fn set_length(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        let length = self.dice.below((self.length(file) + 6000).min(LONGEST));
        Some(Operation::SetLength { file, length })
    }

    fn allocate(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        let (offset, length) = self.range(file);
        let how = [Allocation::Extend, Allocation::KeepSize, Allocation::Punch, Allocation::Zero];
        let how = *self.dice.pick(&how)?;
        Some(Operation::Allocate { file, offset, length, how })
    }

    fn make_file(&mut self) -> Option<Operation> {
        let room = self.tree.files().len() < MOST_FILES;
        let at = self.free_slot()?;
        room.then_some(Operation::MakeFile { file: self.step, at })
    }

    /// Replaces another file now and then. Of two names of one file rename(2) does nothing, so that is not drawn.
    fn rename_file(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        let (from, to) = (self.name_of(file)?, self.any_slot()?);
        (self.tree.node(&to) != Some(Node::File(file))).then_some(Operation::Rename { from, to })
    }

    fn link(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        Some(Operation::Link { existing: self.name_of(file)?, new: self.free_slot()? })
    }

    fn unlink(&mut self) -> Option<Operation> {
        let file = self.any_file()?;
        Some(Operation::Unlink { at: self.name_of(file)? })
    }

    fn make_directory(&mut self) -> Option<Operation> {
        let room = self.tree.directories().len() < MOST_DIRECTORIES;
        let directory = self.next_directory;
        let at = Place { directory: self.any_directory()?, name: format!("d{directory}") };
        room.then_some(Operation::MakeDirectory { directory, at })
    }

    fn remove_directory(&mut self) -> Option<Operation> {
        let directory = self.any_directory()?;
        let at = self.tree.parent(directory)?.clone();
        self.tree.directories().get(&directory)?.is_empty().then_some(Operation::RemoveDirectory { at })
    }

    /// To another directory, which is not below it. It keeps its name, so a name says which directory it is of.
    fn rename_directory(&mut self) -> Option<Operation> {
        let (directory, parent) = (self.any_directory()?, self.any_directory()?);
        let from = self.tree.parent(directory)?.clone();
        let mut above = Some(parent);
        while let Some(next) = above {
            if next == directory {
                return None;
            }
            above = self.tree.parent(next).map(|place| place.directory);
        }
        let to = Place { directory: parent, name: from.name.clone() };
        (from != to).then_some(Operation::Rename { from, to })
    }

    fn set_mode(&mut self) -> Option<Operation> {
        let mode = *self.dice.pick(&[0o600, 0o640, 0o644, 0o660, 0o700, 0o755])?;
        Some(Operation::SetMode { file: self.any_file()?, mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 5, threads: 1, operations: 2000, clients: 1, floors_read_late: false };

    fn all(mut script: Script) -> Vec<Operation> {
        let mut operations = Vec::new();
        while let Some(operation) = script.draw() {
            script.done(&operation);
            operations.push(operation);
        }
        operations
    }

    #[test]
    fn one_seed_gives_one_script_and_another_seed_another() {
        let operations = all(Script::new(&PLAN, 0));
        assert_eq!(operations.len(), 2000);
        assert_eq!(all(Script::new(&PLAN, 0)), operations);
        assert_ne!(all(Script::new(&PLAN, 1)), operations);
        assert_ne!(all(Script::new(&Plan { seed: 6, ..PLAN }, 0)), operations);
    }

    #[test]
    fn every_kind_of_step_comes() {
        let operations = all(Script::new(&PLAN, 0));
        let kinds: std::collections::HashSet<_> = operations.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 14);
        let replacing =
            |pair: &Operation| matches!(pair, Operation::Rename { to, .. } if to.name.starts_with('f'));
        assert!(operations.iter().any(replacing));
    }
}
