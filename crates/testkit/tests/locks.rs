//! Locks through sockets: two servers of one directory, as two virtual machines have them, and raw requests.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ashore_passthrough::{LockScope, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::in_process::InProcess;
use ashore_vhost_user::driver::{Call, LINUX_FLAGS, LinkOptions, RawConnection, RawError, Sent};
use ashore_wire::abi::{FileLock, LkIn};
use ashore_wire::flags::{InitFlags, LK_FLOCK};
use ashore_wire::{Errno, FileHandle, LockOwner, NodeId};
use tempfile::TempDir;

/// How long something that must not happen is given to happen.
const A_WHILE: Duration = Duration::from_millis(150);
const FINITE: Duration = Duration::from_secs(20);
/// `F_RDLCK`, `F_WRLCK`, `F_UNLCK` and `O_RDWR` of fcntl.h.
const READ: u32 = 0;
const WRITE: u32 = 1;
const UNLOCK: u32 = 2;
const O_RDWR: u32 = 2;
const TO_THE_END: u64 = i64::MAX as u64;

/// A virtual machine: a server of its own, and a file it has open.
struct Machine {
    raw: RawConnection,
    node: NodeId,
    handle: FileHandle,
    server: InProcess<Passthrough>,
}

impl Machine {
    fn start(directory: &Path) -> Machine {
        let options =
            Options { posix_lock: LockScope::Host, flock: LockScope::Host, ..Options::new(directory) };
        let session = Session::new(Passthrough::new(options).unwrap(), Limits::default());
        let server = InProcess::serve(session, 1).unwrap();
        let raw =
            RawConnection::connect(server.socket(), LinkOptions::default()).unwrap().with_patience(FINITE);
        let agreed = raw.init(LINUX_FLAGS).unwrap();
        let locks = InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS;
        assert!(InitFlags::from_bits_retain(agreed.flags.into()).contains(locks));
        let node = NodeId(raw.lookup(NodeId::ROOT, b"f").unwrap().nodeid);
        let handle = raw.open(node, O_RDWR).unwrap();
        Machine { raw, node, handle, server }
    }

    fn request(&self, kind: u32, owner: u64, lk_flags: u32) -> LkIn {
        let lk = FileLock { start: 0, end: TO_THE_END, kind, pid: 1 };
        LkIn { fh: self.handle.0, owner, lk, lk_flags, ..Default::default() }
    }

    fn lock(&self, kind: u32, owner: u64, lk_flags: u32) -> Result<(), RawError> {
        self.raw.call(Call::setlk(self.node, &self.request(kind, owner, lk_flags), false)).map(drop)
    }

    fn wait_for_lock(&self, owner: u64, lk_flags: u32) -> Sent {
        self.raw.send(Call::setlk(self.node, &self.request(WRITE, owner, lk_flags), true)).unwrap()
    }

    fn still_waits(&self, sent: &Sent) {
        let begun = Instant::now();
        while begun.elapsed() < A_WHILE {
            assert!(!self.raw.is_done(sent), "it did not wait");
            self.raw.getattr(self.node).expect("a request behind one that waits is served");
            sleep(Duration::from_millis(5));
        }
    }

    fn lock_owners(&self) -> usize {
        self.server.session().filesystem().lock_owners()
    }
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), b"x").unwrap();
    directory
}

const KINDS: [u32; 2] = [0, LK_FLOCK];

#[test]
fn who_waits_for_a_lock_gets_it_when_it_is_free_and_holds_up_nobody_meanwhile() {
    let directory = directory();
    let (one, other) = (Machine::start(directory.path()), Machine::start(directory.path()));
    for kind in KINDS {
        one.lock(WRITE, 1, kind).unwrap();
        let waiting = other.wait_for_lock(1, kind);
        other.still_waits(&waiting);
        one.lock(UNLOCK, 1, kind).unwrap();
        other.raw.wait(waiting).unwrap();
        assert_eq!(one.lock(READ, 1, kind), Err(RawError::Errno(Errno::EAGAIN)));
        other.lock(UNLOCK, 1, kind).unwrap();
    }
    assert_eq!((one.lock_owners(), other.lock_owners()), (0, 0));
}

#[test]
fn who_waits_for_a_lock_can_be_interrupted_and_does_not_get_it_later() {
    let directory = directory();
    let (one, other) = (Machine::start(directory.path()), Machine::start(directory.path()));
    for kind in KINDS {
        one.lock(WRITE, 1, kind).unwrap();
        let waiting = other.wait_for_lock(1, kind);
        other.still_waits(&waiting);
        other.raw.tell(Call::interrupt(waiting.id())).unwrap();
        assert_eq!(other.raw.wait(waiting), Err(RawError::Errno(Errno::EINTR)));
        one.lock(UNLOCK, 1, kind).unwrap();
        one.lock(WRITE, 1, kind).unwrap();
        one.lock(UNLOCK, 1, kind).unwrap();
    }
}

#[test]
fn a_machine_that_is_gone_holds_no_lock_and_waits_for_none() {
    let directory = directory();
    let (one, other) = (Machine::start(directory.path()), Machine::start(directory.path()));
    for kind in KINDS {
        one.lock(WRITE, 1, kind).unwrap();
        let gone = Machine::start(directory.path());
        let waiting = gone.wait_for_lock(2, kind);
        gone.still_waits(&waiting);
        let Machine { raw, server, .. } = gone;
        // As when the VMM is killed: no FLUSH, no RELEASE, no DESTROY.
        drop(raw);
        drop(server);
        one.lock(UNLOCK, 1, kind).unwrap();
        other.lock(WRITE, 1, kind).unwrap();

        // And one that held a lock when it was killed.
        let waiting = one.wait_for_lock(1, kind);
        one.still_waits(&waiting);
        if kind == LK_FLOCK {
            let Machine { raw, server, .. } = other;
            drop(raw);
            one.raw.wait(waiting).unwrap();
            drop(server);
            return;
        }
        other.raw.call(Call::flush(other.node, other.handle, LockOwner(1))).unwrap();
        one.raw.wait(waiting).unwrap();
        one.lock(UNLOCK, 1, kind).unwrap();
    }
}

#[test]
fn so_many_wait_and_no_more_and_all_get_it_in_the_end() {
    let directory = directory();
    let (one, other) = (Machine::start(directory.path()), Arc::new(Machine::start(directory.path())));
    one.lock(WRITE, 1, 0).unwrap();
    let waiting: Vec<Sent> = (0..64).map(|owner| other.wait_for_lock(owner, 0)).collect();
    let one_more = other.wait_for_lock(64, 0);
    assert_eq!(other.raw.wait(one_more), Err(RawError::Errno(Errno::ENOLCK)));
    other.still_waits(&waiting[63]);
    one.lock(UNLOCK, 1, 0).unwrap();
    // Whoever gets it gives it on.
    let mut left: Vec<(u64, Sent)> = (0..).zip(waiting).collect();
    while !left.is_empty() {
        let sent: Vec<usize> = (0..left.len()).filter(|at| other.raw.is_done(&left[*at].1)).collect();
        for at in sent.into_iter().rev() {
            let (owner, sent) = left.swap_remove(at);
            other.raw.wait(sent).unwrap();
            other.lock(UNLOCK, owner, 0).unwrap();
        }
        sleep(Duration::from_millis(1));
    }
    assert_eq!(other.lock_owners(), 0);
}
