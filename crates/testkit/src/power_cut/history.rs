//! What each thread's directory was after each of its steps, made again from the seed.

use std::collections::BTreeMap;

use ashore_guest::workload::{DirectoryId, FileId, Node, Operation, Plan, Script, Tree};

/// Something that changed from step to step: each value with the number of steps after which it was there first.
#[derive(Clone, Debug)]
pub(super) struct Timeline<T>(Vec<(u32, T)>);

impl<T: PartialEq> Timeline<T> {
    fn new(since: u32, value: T) -> Timeline<T> {
        Timeline(vec![(since, value)])
    }

    fn note(&mut self, since: u32, value: T) {
        if self.0.last().is_none_or(|(_, last)| *last != value) {
            self.0.push((since, value));
        }
    }

    /// The value after `floor` steps, and all that came later up to `ceiling`. Those before its beginning count as none.
    pub(super) fn between(&self, floor: u32, ceiling: u32) -> &[(u32, T)] {
        let start = self.0.partition_point(|(since, _)| *since <= floor).saturating_sub(1);
        let end = self.0.partition_point(|(since, _)| *since <= ceiling).max(start);
        &self.0[start..end]
    }
}

/// A file after some step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// All its bytes.
    pub(super) content: Vec<u8>,
    /// Its permissions.
    pub(super) mode: u32,
}

/// What one thread did.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// The steps.
    pub(super) operations: Vec<Operation>,
    /// What each name that there ever was led to.
    pub(super) names: BTreeMap<DirectoryId, BTreeMap<String, Timeline<Option<Node>>>>,
    /// Each file there ever was, from the step on that made it.
    pub(super) files: BTreeMap<FileId, Timeline<Version>>,
    /// Whether each thing there ever was could be found by some name.
    pub(super) named: BTreeMap<Node, Timeline<bool>>,
}

impl History {
    /// Makes the first `steps` steps of a thread again.
    pub(super) fn of(plan: &Plan, thread: u32, steps: u32) -> History {
        let mut script = Script::new(plan, thread);
        let mut history = History {
            operations: Vec::new(),
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            named: BTreeMap::new(),
        };
        for step in 0..steps {
            let Some(operation) = script.draw() else { break };
            let before = script.tree().clone();
            script.done(&operation);
            history.note(step + 1, &before, script.tree());
            history.operations.push(operation);
        }
        history
    }

    fn note(&mut self, since: u32, before: &Tree, after: &Tree) {
        for (directory, names) in after.directories() {
            self.note_names(since, *directory, before.directories().get(directory), names);
        }
        for directory in
            before.directories().keys().filter(|directory| !after.directories().contains_key(directory))
        {
            self.note_named(since, Node::Directory(*directory), false);
        }
        for (file, state) in after.files() {
            if before
                .files()
                .get(file)
                .is_some_and(|old| old.content == state.content && old.mode == state.mode)
            {
                continue;
            }
            let version = Version { content: state.content.clone(), mode: state.mode };
            match self.files.get_mut(file) {
                Some(timeline) => timeline.note(since, version),
                None => drop(self.files.insert(*file, Timeline::new(since, version))),
            }
            self.note_named(since, Node::File(*file), true);
        }
        for file in before.files().keys().filter(|file| !after.files().contains_key(file)) {
            self.note_named(since, Node::File(*file), false);
        }
    }

    fn note_names(
        &mut self,
        since: u32,
        directory: DirectoryId,
        before: Option<&BTreeMap<String, Node>>,
        after: &BTreeMap<String, Node>,
    ) {
        if before.is_none() {
            self.note_named(since, Node::Directory(directory), true);
        }
        if before == Some(after) {
            return;
        }
        let timelines = self.names.entry(directory).or_default();
        for (name, node) in after {
            let timeline = timelines.entry(name.clone()).or_insert_with(|| Timeline::new(0, None));
            timeline.note(since, Some(*node));
        }
        for (name, timeline) in timelines.iter_mut().filter(|(name, _)| !after.contains_key(*name)) {
            debug_assert!(!name.is_empty());
            timeline.note(since, None);
        }
    }

    fn note_named(&mut self, since: u32, node: Node, named: bool) {
        self.named.entry(node).or_insert_with(|| Timeline::new(0, false)).note(since, named);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_gives_the_value_at_the_floor_and_those_after_it() {
        let mut timeline = Timeline::new(0, 'a');
        timeline.note(3, 'b');
        timeline.note(4, 'b');
        timeline.note(7, 'c');
        assert_eq!(timeline.between(2, 2), [(0, 'a')]);
        assert_eq!(timeline.between(3, 6), [(3, 'b')]);
        assert_eq!(timeline.between(2, 9), [(0, 'a'), (3, 'b'), (7, 'c')]);
    }

    /// Aim: the history says of every step what the tree said. Method: both, step by step.
    #[test]
    fn at_every_step_the_history_is_the_tree() {
        let plan = Plan { seed: 3, threads: 1, operations: 400, clients: 1, floors_read_late: false };
        let history = History::of(&plan, 0, 400);
        let mut script = Script::new(&plan, 0);
        for step in 1..=400 {
            let operation = script.draw().unwrap();
            script.done(&operation);
            assert_eq!(history.operations[step as usize - 1], operation);
            for (directory, names) in &history.names {
                let now = script.tree().directories().get(directory);
                for (name, timeline) in names {
                    let node = now.and_then(|now| now.get(name)).copied();
                    // A directory that was removed was empty before.
                    assert_eq!(timeline.between(step, step)[0].1, node);
                }
            }
            for (file, state) in script.tree().files() {
                let version = &history.files[file].between(step, step)[0].1;
                assert!(version.content == state.content && version.mode == state.mode);
            }
            for (node, timeline) in &history.named {
                let there = match node {
                    Node::File(file) => script.tree().files().contains_key(file),
                    Node::Directory(directory) => script.tree().directories().contains_key(directory),
                };
                assert_eq!(timeline.between(step, step)[0].1, there);
            }
        }
    }
}
