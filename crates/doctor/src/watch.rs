//! What the threads of the server are doing in the host's kernel: whether they sync.
//!
//! `/proc/PID/task/*/syscall` shows the system call that a sleeping thread is in, to whoever may trace the process: its
//! user, or root. It is looked at again and again, so what is short is missed.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;

const LOOK_EVERY: Duration = Duration::from_micros(200);

/// The server's process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch(pub(crate) Pid);

/// A sync of the host by one of the server's threads, as far as it was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostSync {
    thread: u32,
    /// When it was first seen.
    pub(crate) from: Instant,
    /// When it was last seen.
    pub(crate) until: Instant,
}

impl Watch {
    /// The most threads that were seen in a sync of the host at once.
    pub(crate) fn most_at_once(self, over: &AtomicBool) -> usize {
        let (processes, mut most) = (self.processes(), 0);
        while !over.load(Ordering::Relaxed) {
            // Threads are looked at one after the other, and meanwhile one may end a sync and another begin. Who is seen
            // twice was there all the time between.
            let (first, second) = (processes.syncing(), processes.syncing());
            most = most.max(first.iter().filter(|thread| second.contains(thread)).count());
            std::thread::sleep(LOOK_EVERY);
        }
        most
    }

    /// Each sync of the host that was seen.
    pub(crate) fn syncs(self, over: &AtomicBool) -> Vec<HostSync> {
        let processes = self.processes();
        let mut seen: Vec<HostSync> = Vec::new();
        let mut before: Vec<u32> = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let (now, syncing) = (Instant::now(), processes.syncing());
            for thread in &syncing {
                let same = seen.iter_mut().rev().find(|sync| sync.thread == *thread);
                match same.filter(|_| before.contains(thread)) {
                    Some(sync) => sync.until = now,
                    None => seen.push(HostSync { thread: *thread, from: now, until: now }),
                }
            }
            before = syncing;
            std::thread::sleep(LOOK_EVERY);
        }
        seen
    }

    /// The process that listens, and those it has started: a server that isolates itself serves from one of these.
    fn processes(self) -> Processes {
        let mut all = vec![self.0.as_raw_pid().unsigned_abs()];
        let mut next = 0;
        while let Some(process) = all.get(next) {
            let children = tasks_of(*process)
                .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
            let children: Vec<u32> = children
                .flat_map(|all| all.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
                .collect();
            all.extend(children);
            next += 1;
        }
        Processes(all)
    }
}

/// Processes of a server at a moment.
struct Processes(Vec<u32>);

impl Processes {
    /// Threads that sync at this moment.
    fn syncing(&self) -> Vec<u32> {
        let syncing = |entry: fs::DirEntry| -> Option<u32> {
            let call = fs::read_to_string(entry.path().join("syscall")).ok()?;
            let number: libc::c_long = call.split(' ').next()?.parse().ok()?;
            let is_sync = [libc::SYS_syncfs, libc::SYS_fsync, libc::SYS_fdatasync].contains(&number);
            is_sync.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
        };
        self.0.iter().flat_map(|process| tasks_of(*process)).filter_map(syncing).collect()
    }
}

fn tasks_of(process: u32) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use std::io::Write;

    #[test]
    fn a_process_that_the_server_has_started_is_watched_too() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let Processes(all) = Watch(rustix::process::getpid()).processes();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all.contains(&child.id()) && all.contains(&std::process::id()), "{all:?}");
    }

    #[test]
    fn a_thread_that_syncs_is_seen() {
        let over = AtomicBool::new(false);
        let mut file = tempfile::tempfile_in(".").unwrap();
        let seen = std::thread::scope(|scope| {
            let watching = scope.spawn(|| Watch(rustix::process::getpid()).syncs(&over));
            for _ in 0..20 {
                file.write_all(&[1; 1 << 20]).unwrap();
                file.sync_all().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            watching.join().unwrap()
        });
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|sync| sync.from <= sync.until));
    }
}
