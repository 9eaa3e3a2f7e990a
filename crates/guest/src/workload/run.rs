//! The threads of a workload, and the marks of their syncs.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use super::Plan;
use super::content::render;
use super::mark::{Mark, Scope};
use super::operation::{FileId, Operation};
use super::script::Script;
use super::target::Target;

/// How often a change that fails with EIO or ENOSPC is tried again.
const ATTEMPTS: u32 = 8;

/// How far each thread is. Others may look on.
#[derive(Debug)]
pub struct Progress {
    done: Vec<AtomicU32>,
    stop: AtomicBool,
}

impl Progress {
    /// Nothing is done yet.
    pub fn new(plan: &Plan) -> Progress {
        Progress::from(vec![0; plan.threads as usize])
    }

    /// So many steps of each thread are done already.
    pub fn from(done: Vec<u32>) -> Progress {
        Progress { done: done.into_iter().map(AtomicU32::new).collect(), stop: AtomicBool::new(false) }
    }

    /// The steps that each thread has done.
    pub fn floors(&self) -> Vec<u32> {
        self.done.iter().map(|done| done.load(Ordering::SeqCst)).collect()
    }

    /// Has the threads end after the step they are in.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// How the threads ended.
#[derive(Debug)]
pub struct Outcome {
    /// The steps that each thread has done. One more may have been begun.
    pub done: Vec<u32>,
    /// Why threads ended early, if any did.
    pub errors: Vec<String>,
}

/// Runs some threads of a plan to their ends. `acknowledge` is called on the thread whose sync has returned, before its next step.
///
/// A sync that fails with EIO or ENOSPC is acknowledged as such, and its thread goes on. Any other error ends the thread, and then
/// all do: what comes after depends on it.
pub fn run<T: Target>(
    plan: &Plan,
    threads: Range<u32>,
    target: &T,
    progress: &Progress,
    acknowledge: &(dyn Fn(Mark) -> io::Result<()> + Sync),
) -> Outcome {
    let errors = thread::scope(|scope| {
        let start = |thread| {
            let worker = Worker { plan, thread, target, progress, acknowledge, files: HashMap::new() };
            scope.spawn(move || worker.run())
        };
        let threads: Vec<_> = threads.map(start).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or(Err("it panicked".into())));
        ended.filter_map(Result::err).collect()
    });
    Outcome { done: progress.floors(), errors }
}

struct Worker<'a, T: Target> {
    plan: &'a Plan,
    thread: u32,
    target: &'a T,
    progress: &'a Progress,
    acknowledge: &'a (dyn Fn(Mark) -> io::Result<()> + Sync),
    /// Files stay open, so that their data can stay in a cache.
    files: HashMap<FileId, T::File>,
}

impl<T: Target> Worker<'_, T> {
    fn run(mut self) -> Result<(), String> {
        let mut script = Script::new(self.plan, self.thread);
        let mut step = 0;
        while let Some(operation) = script.draw() {
            if self.progress.stop.load(Ordering::SeqCst) {
                break;
            }
            if let Err(error) = self.step(step, &script, &operation) {
                self.progress.stop();
                return Err(format!("thread {}, step {step}, {operation:?}: {error}", self.thread));
            }
            script.done(&operation);
            step += 1;
            self.progress.done[self.thread as usize].store(step, Ordering::SeqCst);
            self.files.retain(|file, _| script.tree().files().contains_key(file));
        }
        Ok(())
    }

    fn step(&mut self, step: u32, script: &Script, operation: &Operation) -> io::Result<()> {
        let scope = match operation {
            Operation::Fsync { file } => Scope::File(*file),
            Operation::FsyncDirectory { directory } => Scope::Directory(*directory),
            Operation::Sync => Scope::Everything,
            _ => return self.change(step, script, operation),
        };
        let before = self.progress.floors();
        let synced = self.perform(step, script, operation);
        let floors = if self.plan.floors_read_late { self.progress.floors() } else { before };
        if let Err(error) = &synced
            && !tells_of_loss(error)
        {
            return synced;
        }
        (self.acknowledge)(Mark { thread: self.thread, scope, succeeded: synced.is_ok(), floors })
    }

    /// File systems first write back what is in the way of some changes, and if that fails (EIO) so does the change. It is
    /// tried again: no more than so many writes fail in a row. Appending is not, since it was done; its close said EIO.
    fn change(&mut self, step: u32, script: &Script, operation: &Operation) -> io::Result<()> {
        let mut outcome = self.perform(step, script, operation);
        for _ in 0..ATTEMPTS {
            match (&outcome, operation) {
                (Err(error), Operation::Append { file, .. }) if tells_of_loss(error) => {
                    return self.tell_loss(Scope::File(*file));
                }
                (Err(error), _) if tells_of_loss(error) => outcome = self.perform(step, script, operation),
                _ => break,
            }
        }
        outcome
    }

    fn tell_loss(&self, scope: Scope) -> io::Result<()> {
        let floors = self.progress.floors();
        (self.acknowledge)(Mark { thread: self.thread, scope, succeeded: false, floors })
    }

    fn perform(&mut self, step: u32, script: &Script, operation: &Operation) -> io::Result<()> {
        let (target, tree) = (self.target, script.tree());
        let content = |offset, length| render(self.plan.seed, self.thread, step, offset, length as usize);
        match operation {
            Operation::MakeFile { file, at } => {
                self.files.insert(*file, target.make_file(&tree.path(at))?);
                Ok(())
            }
            Operation::Write { file, offset, length } => {
                target.write(&self.files[file], &content(*offset, *length), *offset)
            }
            Operation::Append { file, at, length } => {
                let end = tree.files()[file].content.len() as u64;
                target.append(&tree.path(at), &content(end, *length))
            }
            Operation::SetLength { file, length } => target.set_length(&self.files[file], *length),
            Operation::Allocate { file, offset, length, how } => {
                target.allocate(&self.files[file], *offset, *length, *how)
            }
            Operation::SetMode { file, mode } => target.set_mode(&self.files[file], *mode),
            Operation::Link { existing, new } => target.link(&tree.path(existing), &tree.path(new)),
            Operation::Rename { from, to } => target.rename(&tree.path(from), &tree.path(to)),
            Operation::Unlink { at } => target.unlink(&tree.path(at)),
            Operation::MakeDirectory { at, .. } => target.make_directory(&tree.path(at)),
            Operation::RemoveDirectory { at } => target.remove_directory(&tree.path(at)),
            Operation::Fsync { file } => target.fsync(&self.files[file]),
            Operation::FsyncDirectory { directory } => {
                target.fsync_directory(&tree.directory_path(*directory))
            }
            Operation::Sync => target.sync(),
        }
    }
}

/// EIO or ENOSPC, and not that the server has gone.
fn tells_of_loss(error: &io::Error) -> bool {
    [rustix::io::Errno::IO, rustix::io::Errno::NOSPC]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Mutex;

    use super::super::target::{HostDirectory, SyncCall};
    use super::super::tree::Node;
    use super::*;

    const PLAN: Plan = Plan { seed: 11, threads: 2, operations: 300, clients: 1, floors_read_late: false };

    /// The tree in words: each path with what is there.
    fn expected(script: &Script) -> BTreeMap<String, Vec<u8>> {
        let tree = script.tree();
        let mut found = BTreeMap::new();
        for (directory, names) in tree.directories() {
            for (name, node) in names {
                let path = format!("{}/{name}", tree.directory_path(*directory));
                let content = match node {
                    Node::File(file) => tree.files()[file].content.clone(),
                    Node::Directory(_) => b"directory".to_vec(),
                };
                found.insert(path, content);
            }
        }
        found
    }

    fn observed(root: &Path, path: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(root.join(path)).unwrap() {
            let path = format!("{path}/{}", entry.unwrap().file_name().into_string().unwrap());
            if root.join(&path).is_dir() {
                observed(root, &path, found);
                found.insert(path, b"directory".to_vec());
            } else {
                let content = std::fs::read(root.join(&path)).unwrap();
                found.insert(path, content);
            }
        }
    }

    #[test]
    fn a_directory_ends_as_the_tree_does() {
        let folder = tempfile::tempdir().unwrap();
        let target = HostDirectory::new(folder.path(), SyncCall::Syncfs);
        for thread in 0..PLAN.threads {
            target.make_directory(&Plan::directory(thread)).unwrap();
        }
        let marks = Mutex::new(Vec::new());
        let outcome = run(&PLAN, 0..PLAN.threads, &target, &Progress::new(&PLAN), &|mark| {
            marks.lock().unwrap().push(mark);
            Ok(())
        });
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        assert_eq!(outcome.done, [300, 300]);
        assert!(marks.lock().unwrap().len() > 40);
        for thread in 0..PLAN.threads {
            let mut script = Script::new(&PLAN, thread);
            while let Some(operation) = script.draw() {
                script.done(&operation);
            }
            let mut found = BTreeMap::new();
            observed(folder.path(), &Plan::directory(thread), &mut found);
            assert!(found == expected(&script), "thread {thread}");
        }
    }
}
