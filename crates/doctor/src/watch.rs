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
    /// Threads that sync at this moment.
    fn syncing(self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.as_raw_pid()));
        let tasks = tasks.into_iter().flatten().flatten();
        let syncing = |entry: fs::DirEntry| -> Option<u32> {
            let call = fs::read_to_string(entry.path().join("syscall")).ok()?;
            let number: libc::c_long = call.split(' ').next()?.parse().ok()?;
            let is_sync = [libc::SYS_syncfs, libc::SYS_fsync, libc::SYS_fdatasync].contains(&number);
            is_sync.then(|| entry.file_name().to_str()?.parse().ok()).flatten()
        };
        tasks.filter_map(syncing).collect()
    }

    /// The most threads that were seen in a sync of the host at once.
    pub(crate) fn most_at_once(self, over: &AtomicBool) -> usize {
        let mut most = 0;
        while !over.load(Ordering::Relaxed) {
            // Threads are looked at one after the other, and meanwhile one may end a sync and another begin. Who is seen
            // twice was there all the time between.
            let (first, second) = (self.syncing(), self.syncing());
            most = most.max(first.iter().filter(|thread| second.contains(thread)).count());
            std::thread::sleep(LOOK_EVERY);
        }
        most
    }

    /// Each sync of the host that was seen.
    pub(crate) fn syncs(self, over: &AtomicBool) -> Vec<HostSync> {
        let mut seen: Vec<HostSync> = Vec::new();
        let mut before: Vec<u32> = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let (now, syncing) = (Instant::now(), self.syncing());
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use std::io::Write;

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
