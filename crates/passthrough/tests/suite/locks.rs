//! Locks: two clients, each with a session of its own, and processes of the host.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;

use ashore_passthrough::{HostFileSystems, LockScope};
use ashore_server::{FileSystem, Wait};
use ashore_wire::abi::{FileLock, LkIn};
use ashore_wire::flags::{InitFlags, LK_FLOCK};
use ashore_wire::{Errno, FileHandle, LockOwner, NodeId};

use crate::harness::{RDWR, ROOT, Share, caller};

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;
const TO_THE_END: u64 = i64::MAX as u64;

/// One process of one client that has a file open.
struct Process<'a> {
    share: &'a Share,
    node: NodeId,
    handle: FileHandle,
    owner: u64,
}

impl Process<'_> {
    fn open(share: &Share, owner: u64) -> Process<'_> {
        let node = share.node(ROOT, "f");
        Process { share, node, handle: share.open(node, RDWR).unwrap().handle, owner }
    }

    fn request(&self, kind: u32, start: u64, end: u64, lk_flags: u32) -> LkIn {
        let lk = FileLock { start, end, kind, pid: self.owner as u32 + 100 };
        LkIn { fh: self.handle.0, owner: self.owner, lk, lk_flags, ..Default::default() }
    }

    fn lock(&self, kind: u32, start: u64, end: u64) -> Result<(), Errno> {
        self.share.fs.setlk(&caller(), self.node, &self.request(kind, start, end, 0), None)
    }

    fn await_lock(&self, kind: u32, start: u64, end: u64) -> Result<(), Errno> {
        let request = self.request(kind, start, end, 0);
        self.share.fs.setlk(&caller(), self.node, &request, Some(&Wait::default()))
    }

    fn flock(&self, kind: u32) -> Result<(), Errno> {
        self.share.fs.setlk(&caller(), self.node, &self.request(kind, 0, TO_THE_END, LK_FLOCK), None)
    }

    fn test(&self, kind: u32, start: u64, end: u64) -> FileLock {
        self.share.fs.getlk(&caller(), self.node, &self.request(kind, start, end, 0)).unwrap()
    }
}

/// Two clients of one directory with one file, who see each other's locks.
fn two_clients() -> [Share; 2] {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(directory.path().join("f"), b"0123456789").unwrap();
    let hosts = HostFileSystems::with_sync_call(|_, _| Ok(()));
    [(); 2].map(|()| {
        Share::over(Arc::clone(&directory), &hosts, |options| {
            (options.posix_lock, options.flock) = (LockScope::Host, LockScope::Host);
        })
    })
}

#[test]
fn a_lock_of_one_client_stands_in_the_way_of_another() {
    let [one, other] = two_clients();
    let (first, second) = (Process::open(&one, 1), Process::open(&other, 1));
    first.lock(WRITE, 10, 19).unwrap();
    assert_eq!(
        second.lock(WRITE, 15, TO_THE_END),
        Err(Errno::EAGAIN),
        "the same owner's number, another client"
    );
    assert_eq!(second.lock(READ, 0, 10), Err(Errno::EAGAIN));
    second.lock(WRITE, 20, TO_THE_END).unwrap();
    assert_eq!(first.lock(READ, 5, 25), Err(Errno::EAGAIN));
    first.lock(UNLOCK, 10, 14).unwrap();
    second.lock(READ, 0, 14).unwrap();
    // Readers do not stand in each other's way.
    first.lock(READ, 0, 4).unwrap();
    assert_eq!(first.lock(WRITE, 0, 4), Err(Errno::EAGAIN), "nor may one of them write");
}

#[test]
fn a_test_says_who_stands_in_the_way_as_far_as_the_client_knows_him() {
    let [one, other] = two_clients();
    let (first, sibling) = (Process::open(&one, 1), Process::open(&one, 2));
    let stranger = Process::open(&other, 3);
    assert_eq!(sibling.test(WRITE, 0, TO_THE_END).kind, UNLOCK);
    first.lock(WRITE, 10, 19).unwrap();
    let found = sibling.test(READ, 0, TO_THE_END);
    assert_eq!((found.start, found.end, found.kind, found.pid), (10, 19, WRITE, 101));
    assert_eq!(first.test(WRITE, 0, TO_THE_END).kind, UNLOCK, "one's own locks are not in one's way");
    let found = stranger.test(READ, 15, 15);
    assert_eq!(
        (found.start, found.end, found.kind, found.pid),
        (10, 19, WRITE, 0),
        "a process of another client"
    );
    first.lock(READ, 30, TO_THE_END).unwrap();
    assert_eq!(stranger.test(WRITE, 40, 40).end, TO_THE_END);
}

#[test]
fn a_flush_drops_the_posix_locks_of_its_owner_and_a_release_his_flock() {
    let [one, other] = two_clients();
    let (first, sibling, stranger) =
        (Process::open(&one, 1), Process::open(&one, 2), Process::open(&other, 1));
    first.lock(WRITE, 0, 9).unwrap();
    sibling.lock(WRITE, 20, 29).unwrap();
    first.flock(WRITE).unwrap();
    assert_eq!(one.fs.lock_owners(), 3);
    one.fs.flush(sibling.node, sibling.handle, LockOwner(2)).unwrap();
    assert_eq!(stranger.lock(WRITE, 0, 9), Err(Errno::EAGAIN), "another owner's flush");
    stranger.lock(WRITE, 20, 29).unwrap();
    one.fs.flush(first.node, first.handle, LockOwner(1)).unwrap();
    stranger.lock(WRITE, 0, 9).unwrap();
    assert_eq!(stranger.flock(READ), Err(Errno::EAGAIN), "a flush leaves flock alone");
    one.fs.release(first.node, first.handle, Some(LockOwner(1))).unwrap();
    stranger.flock(READ).unwrap();
    assert_eq!(one.fs.lock_owners(), 0, "no descriptor is kept for what holds nothing");
}

/// Method: each has a range and waits for the next one's. Whoever comes last closes the circle and is told so; who then
/// drops its own lock lets the others through, one after the other.
#[test]
fn of_those_who_wait_for_each_other_the_last_is_told_of_the_deadlock_and_the_others_get_their_locks() {
    let [one, _] = two_clients();
    for owners in 2..=5 {
        let told: Vec<Result<(), Errno>> = thread::scope(|scope| {
            let processes: Vec<_> = (0..owners).map(|owner| Process::open(&one, owner)).collect();
            for (at, process) in (0..).zip(&processes) {
                process.lock(WRITE, at * 10, at * 10 + 9).unwrap();
            }
            let waits = processes.into_iter().zip(0..).map(|(process, at): (_, u64)| {
                let next = (at + 1) % owners * 10;
                scope.spawn(move || {
                    let told = process.await_lock(READ, next + 9, next + 9);
                    process.lock(UNLOCK, 0, TO_THE_END).unwrap();
                    told
                })
            });
            let waits: Vec<_> = waits.collect();
            waits.into_iter().map(|wait| wait.join().unwrap()).collect()
        });
        assert_eq!(told.iter().filter(|told| **told == Err(Errno::EDEADLK)).count(), 1, "{told:?}");
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), told.len() - 1, "{told:?}");
    }
    assert_eq!(one.fs.lock_owners(), 0);
}

#[test]
fn two_readers_who_both_want_to_write_are_a_deadlock_and_who_only_waits_is_none() {
    let [one, _] = two_clients();
    let (first, second, third) = (Process::open(&one, 1), Process::open(&one, 2), Process::open(&one, 3));
    first.lock(READ, 0, 0).unwrap();
    second.lock(READ, 0, 0).unwrap();
    thread::scope(|scope| {
        let waits = [&first, &second].map(|process| {
            scope.spawn(move || {
                let told = process.await_lock(WRITE, 0, 0);
                process.lock(UNLOCK, 0, 0).unwrap();
                told
            })
        });
        third.lock(WRITE, 5, 5).unwrap();
        third.await_lock(WRITE, 0, 0).unwrap();
        third.lock(UNLOCK, 0, 9).unwrap();
        let told = waits.map(|wait| wait.join().unwrap());
        assert!(told.contains(&Ok(())) && told.contains(&Err(Errno::EDEADLK)), "{told:?}");
    });
}

#[test]
fn flock_is_shared_or_exclusive_and_changes_from_one_to_the_other() {
    let [one, other] = two_clients();
    let (first, second) = (Process::open(&one, 1), Process::open(&other, 1));
    first.flock(READ).unwrap();
    second.flock(READ).unwrap();
    assert_eq!(first.flock(WRITE), Err(Errno::EAGAIN));
    second.flock(UNLOCK).unwrap();
    first.flock(READ).unwrap();
    first.flock(WRITE).unwrap();
    assert_eq!(second.flock(READ), Err(Errno::EAGAIN));
    second.lock(WRITE, 0, TO_THE_END).unwrap();
}

#[test]
fn a_client_that_goes_takes_its_locks_along() {
    let [one, other] = two_clients();
    let (first, second) = (Process::open(&one, 1), Process::open(&other, 1));
    first.lock(WRITE, 0, TO_THE_END).unwrap();
    first.flock(WRITE).unwrap();
    assert_eq!(second.lock(READ, 0, 0), Err(Errno::EAGAIN));
    one.fs.destroy();
    second.lock(WRITE, 0, TO_THE_END).unwrap();
    second.flock(WRITE).unwrap();
    assert_eq!(one.fs.lock_owners(), 0);
}

#[test]
fn where_locks_are_not_shared_a_client_that_asks_is_told_so() {
    for scope in [LockScope::Guest, LockScope::Refuse] {
        let share = Share::with(|options| (options.posix_lock, options.flock) = (scope, scope));
        share.put(ROOT, "f", b"");
        let process = Process::open(&share, 1);
        assert_eq!(process.lock(WRITE, 0, 0), Err(Errno::ENOSYS));
        assert_eq!(process.flock(WRITE), Err(Errno::ENOSYS));
        let test = process.request(WRITE, 0, 0, 0);
        assert_eq!(share.fs.getlk(&caller(), process.node, &test), Err(Errno::ENOSYS));
        let asked = share.fs.features() & (InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS);
        assert_eq!(!asked.is_empty(), scope == LockScope::Refuse, "with Guest a client is not to ask");
    }
}

#[test]
fn nonsense_is_refused_and_many_locks_have_a_bound() {
    let [one, _] = two_clients();
    let process = Process::open(&one, 1);
    for (kind, start, end) in [(7, 0, 1), (WRITE, 2, 1), (WRITE, 0, u64::MAX), (READ, 1 << 63, 1 << 63)] {
        assert_eq!(process.lock(kind, start, end), Err(Errno::EINVAL));
    }
    let elsewhere = LkIn { fh: 77, ..process.request(WRITE, 0, 0, 0) };
    assert_eq!(one.fs.setlk(&caller(), process.node, &elsewhere, None), Err(Errno::EBADF));

    let owner = |owner| Process { owner, ..Process::open(&one, 1) };
    let refused = (0..2000).find(|number| owner(*number).lock(READ, 0, 0).is_err());
    assert_eq!(refused, Some(1024));
    assert_eq!(owner(1024).lock(READ, 0, 0), Err(Errno::ENOLCK));
    one.fs.flush(process.node, process.handle, LockOwner(5)).unwrap();
    owner(1024).lock(READ, 0, 0).unwrap();

    one.fs.destroy();
    let process = Process::open(&one, 1);
    let refused = (0..20_000).find(|number| process.lock(READ, number * 2, number * 2).is_err());
    assert_eq!(refused, Some(16 << 10));
    process.lock(UNLOCK, 0, TO_THE_END).unwrap();
    process.lock(READ, 0, 0).unwrap();
}

/// A process of the host that holds a lock until it is told to end.
struct HostProcess(Child, Option<ChildStdin>);

impl HostProcess {
    /// `call` is a method of Python's `fcntl`; it must not fail.
    fn that_locks(share: &Share, call: &str) -> HostProcess {
        HostProcess::that(share, call).expect("nobody else holds it")
    }

    /// `None` if the host refused the lock.
    fn that(share: &Share, call: &str) -> Option<HostProcess> {
        let code = format!(
            "from fcntl import *\nimport sys\nf = open(sys.argv[1], 'r+')\ntry: {call}\nexcept BlockingIOError: \
             sys.exit(0)\nprint('held', flush=True)\nsys.stdin.read()"
        );
        let mut child = Command::new("python3")
            .args(["-c", &code])
            .arg(share.path("f"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs python3, to lock from another process; install it");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stdin = child.stdin.take();
        let process = HostProcess(child, stdin);
        if line == "held\n" {
            return Some(process);
        }
        process.end();
        None
    }

    fn end(mut self) {
        drop(self.1.take().map(|mut stdin| stdin.flush()));
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn locks_of_the_hosts_processes_and_of_clients_stand_in_each_others_way() {
    let [one, _] = two_clients();
    let process = Process::open(&one, 1);
    let host = HostProcess::that_locks(&one, "lockf(f, LOCK_EX, 10, 0)");
    assert_eq!(process.lock(READ, 5, 5), Err(Errno::EAGAIN));
    let found = process.test(READ, 0, TO_THE_END);
    assert_eq!((found.start, found.end, found.kind, found.pid), (0, 9, WRITE, 0), "no process of the client");
    process.lock(WRITE, 10, 10).unwrap();
    host.end();
    process.lock(READ, 5, 5).unwrap();

    let host = HostProcess::that_locks(&one, "flock(f, LOCK_SH)");
    assert_eq!(process.flock(WRITE), Err(Errno::EAGAIN));
    process.flock(READ).unwrap();
    host.end();
    process.flock(WRITE).unwrap();
    assert!(HostProcess::that(&one, "flock(f, LOCK_SH | LOCK_NB)").is_none());
    assert!(HostProcess::that(&one, "lockf(f, LOCK_EX | LOCK_NB, 1, 5)").is_none());
    HostProcess::that(&one, "lockf(f, LOCK_EX | LOCK_NB, 1, 6)").unwrap().end();
}
