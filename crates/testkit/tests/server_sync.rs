//! SYNCFS at the server, whatever the transport and the file system: what it waits for, and what it must not.
//!
//! Names that begin with `s` and a number are the conformance cases of that number in `docs/testing.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ashore_server::{Limits, Session};
use ashore_testkit::loopback::{Loopback, request};
use ashore_testkit::memory_fs::{MemoryFs, Moment};
use ashore_wire::abi::*;
use ashore_wire::flags::{InitFlags, WriteFlags};
use ashore_wire::{Errno, NodeId, Opcode};
use parking_lot::{Condvar, Mutex};
use zerocopy::{FromBytes, IntoBytes};

/// How long something that must not happen is given to happen.
const A_WHILE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(20);

/// Holds the moments it is told to hold, and remembers all.
#[derive(Default)]
struct Script {
    held: Mutex<Vec<Moment>>,
    changed: Condvar,
    seen: Mutex<Vec<Moment>>,
    sync_fails: AtomicBool,
    /// What a sync that fails says.
    sync_error: Mutex<Option<Errno>>,
}

impl Script {
    fn hold(&self, moment: Moment) {
        self.held.lock().push(moment);
    }

    fn release(&self, moment: Moment) {
        self.held.lock().retain(|held| *held != moment);
        self.changed.notify_all();
    }

    fn meet(&self, moment: Moment) -> Result<(), Errno> {
        self.seen.lock().push(moment);
        let mut held = self.held.lock();
        while held.contains(&moment) {
            assert!(!self.changed.wait_for(&mut held, PATIENCE).timed_out(), "{moment:?} was never released");
        }
        match moment {
            Moment::Sync(_) if self.sync_fails.load(Ordering::SeqCst) => {
                Err(self.sync_error.lock().unwrap_or(Errno::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn saw(&self, moment: Moment) -> bool {
        self.seen.lock().contains(&moment)
    }

    fn await_moment(&self, moment: Moment) {
        let begun = Instant::now();
        while !self.saw(moment) {
            assert!(begun.elapsed() < PATIENCE, "{moment:?} never came");
            sleep(Duration::from_millis(1));
        }
    }
}

const SYNC: Moment = Moment::Sync(NodeId::ROOT);

struct Served {
    script: Arc<Script>,
    session: Arc<Session<MemoryFs>>,
    queues: Vec<Loopback>,
    fh: u64,
    node: u64,
}

fn served() -> Served {
    let script = Arc::new(Script::default());
    let hook = Arc::clone(&script);
    let session = Session::new(MemoryFs::with_hook(move |moment| hook.meet(moment)), Limits::default());
    let queues = Loopback::start_queues(&session, 4);
    queues[0].init(InitFlags::all());
    let arguments = CreateIn { flags: 2, mode: 0o644, ..Default::default() };
    let reply = queues[0].call(Opcode::Create, 1, &[arguments.as_bytes(), b"file\0"]).unwrap();
    let node = EntryOut::read_from_prefix(&reply).unwrap().0.nodeid;
    let fh = OpenOut::read_from_prefix(&reply[128..]).unwrap().0.fh;
    Served { script, session, queues, fh, node }
}

impl Served {
    fn write(&self, offset: u64) -> Vec<u8> {
        let arguments = WriteIn { fh: self.fh, offset, size: 4, ..Default::default() };
        request(Opcode::Write, self.node, &[arguments.as_bytes(), b"data"])
    }

    fn fallocate(&self) -> Vec<u8> {
        let arguments = FallocateIn { fh: self.fh, length: 4096, ..Default::default() };
        request(Opcode::Fallocate, self.node, &[arguments.as_bytes()])
    }

    fn fsync(&self) -> Vec<u8> {
        request(Opcode::Fsync, self.node, &[FsyncIn { fh: self.fh, ..Default::default() }.as_bytes()])
    }
}

fn syncfs() -> Vec<u8> {
    request(Opcode::Syncfs, 1, &[&[0; 8]])
}

fn getattr() -> Vec<u8> {
    request(Opcode::Getattr, 1, &[GetattrIn::default().as_bytes()])
}

#[test]
fn s01_a_sync_is_answered_after_the_host_was_synced_and_not_before() {
    let served = served();
    assert!(served.queues[1].submit(&served.write(0), 4096).wait().unwrap().is_ok());
    served.script.hold(SYNC);
    let sync = served.queues[0].submit(&syncfs(), 16);
    served.script.await_moment(SYNC);
    assert!(sync.stays_out(A_WHILE), "answered before the file system was done");
    served.script.release(SYNC);
    assert_eq!(sync.wait(), Some(Ok(vec![])));
    assert_eq!(served.session.filesystem().syncs.load(Ordering::SeqCst), 1);
}

#[test]
fn a_file_system_that_cannot_sync_is_no_success() {
    for errno in [Errno::ENOSYS, Errno::EOPNOTSUPP] {
        let served = served();
        served.script.sync_fails.store(true, Ordering::SeqCst);
        *served.script.sync_error.lock() = Some(errno);
        assert_eq!(served.queues[0].submit(&syncfs(), 16).wait(), Some(Err(errno)));
    }
}

#[test]
fn s02_the_error_of_a_sync_is_its_answer() {
    let served = served();
    served.script.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(served.queues[0].submit(&syncfs(), 16).wait(), Some(Err(Errno::ENOSPC)));
}

#[test]
fn s03_a_sync_waits_for_a_write_that_another_queue_is_doing() {
    let served = served();
    served.script.hold(Moment::Write(0));
    let write = served.queues[1].submit(&served.write(0), 4096);
    served.script.await_moment(Moment::Write(0));
    let sync = served.queues[2].submit(&syncfs(), 16);
    sleep(A_WHILE);
    assert!(!served.script.saw(SYNC), "the sync went out before the write was done");
    let other = served.queues[2].submit(&getattr(), 4096).wait();
    assert!(other.is_some_and(|reply| reply.is_ok()), "the sync's own queue goes on");
    served.script.release(Moment::Write(0));
    assert_eq!(sync.wait(), Some(Ok(vec![])));
    assert!(write.wait().unwrap().is_ok());
    let seen = served.script.seen.lock().clone();
    let position = |moment| seen.iter().position(|seen| *seen == moment);
    assert!(position(Moment::Written(0)) < position(SYNC), "{seen:?}");
}

#[test]
fn s05_a_sync_of_a_node_that_is_not_there_fails() {
    let served = served();
    let sync = request(Opcode::Syncfs, 4711, &[&[0; 8]]);
    assert_eq!(served.queues[0].submit(&sync, 16).wait(), Some(Err(Errno::ESTALE)));
}

#[test]
fn s06_a_longer_argument_that_is_not_zero_is_accepted() {
    let served = served();
    let sync = request(Opcode::Syncfs, 1, &[&[0xff; 32]]);
    assert_eq!(served.queues[0].submit(&sync, 16).wait(), Some(Ok(vec![])));
}

#[test]
fn s10_a_sync_waits_for_a_write_that_was_made_available_and_not_taken() {
    let served = served();
    served.script.hold(Moment::Lookup);
    // The thread of queue 1 is busy with a request that is no change; a write waits behind it.
    let lookup = served.queues[1].submit(&request(Opcode::Lookup, 1, &[b"file\0"]), 4096);
    served.script.await_moment(Moment::Lookup);
    let write = served.queues[1].submit(&served.write(7), 4096);
    let sync = served.queues[2].submit(&syncfs(), 16);
    sleep(A_WHILE);
    assert!(!served.script.saw(SYNC), "the sync went out before a write that was made available earlier");
    served.script.release(Moment::Lookup);
    assert_eq!(sync.wait(), Some(Ok(vec![])));
    assert!(lookup.wait().is_some() && write.wait().is_some());
    let seen = served.script.seen.lock().clone();
    let position = |moment| seen.iter().position(|seen| *seen == moment);
    assert!(position(Moment::Written(7)) < position(SYNC), "{seen:?}");
}

#[test]
fn s11_a_sync_without_room_for_its_answer_is_given_back() {
    let served = served();
    assert!(served.queues[0].submit(&syncfs(), 0).wait().is_none());
    assert!(served.queues[0].submit(&syncfs(), 15).wait().is_none());
    assert_eq!(served.queues[0].submit(&syncfs(), 16).wait(), Some(Ok(vec![])));
}

#[test]
fn s12_a_thousand_syncs_at_once_are_all_answered_and_share_rounds() {
    let served = served();
    served.script.hold(SYNC);
    let first = served.queues[0].submit(&syncfs(), 16);
    served.script.await_moment(SYNC);
    let pending: Vec<_> = (0..1000).map(|number| served.queues[number % 4].submit(&syncfs(), 16)).collect();
    for queue in &served.queues {
        assert!(queue.submit(&getattr(), 4096).wait().is_some_and(|reply| reply.is_ok()), "no queue waits");
    }
    let before = served.session.filesystem().syncs.load(Ordering::SeqCst);
    served.script.release(SYNC);
    assert_eq!(first.wait(), Some(Ok(vec![])));
    assert!(pending.into_iter().all(|sync| sync.wait() == Some(Ok(vec![]))));
    assert_eq!(
        served.session.filesystem().syncs.load(Ordering::SeqCst),
        before + 1,
        "one more round was enough"
    );
}

#[test]
fn s12_a_sync_shares_no_round_that_began_before_it_came() {
    let served = served();
    served.script.hold(SYNC);
    let first = served.queues[0].submit(&syncfs(), 16);
    served.script.await_moment(SYNC);
    assert!(served.queues[1].submit(&served.write(0), 4096).wait().unwrap().is_ok());
    let second = served.queues[2].submit(&syncfs(), 16);
    assert!(served.queues[2].submit(&getattr(), 4096).wait().is_some(), "it has been taken");
    served.script.release(SYNC);
    assert_eq!((first.wait(), second.wait()), (Some(Ok(vec![])), Some(Ok(vec![]))));
    let seen = served.script.seen.lock().clone();
    let last = |moment| seen.iter().rposition(|seen| *seen == moment);
    assert!(last(Moment::Written(0)) < last(SYNC), "no sync began after the write: {seen:?}");
}

#[test]
fn a_sync_does_not_wait_for_a_write_that_comes_later() {
    let served = served();
    served.script.hold(Moment::Write(0));
    served.script.hold(Moment::Write(8));
    let earlier = served.queues[1].submit(&served.write(0), 4096);
    served.script.await_moment(Moment::Write(0));
    let sync = served.queues[2].submit(&syncfs(), 16);
    // Time for the cut to be made: a write that enters before is the slack that promise P3 allows.
    sleep(A_WHILE);
    let later = served.queues[3].submit(&served.write(8), 4096);
    served.script.await_moment(Moment::Write(8));
    served.script.release(Moment::Write(0));
    let begun = Instant::now();
    assert_eq!(sync.wait(), Some(Ok(vec![])), "while the later write is still held");
    // Held for ever it is given up after a while, which is no reason for the sync to be answered.
    assert!(begun.elapsed() < PATIENCE / 2, "the sync waited for the later write");
    assert!(!served.script.saw(Moment::Written(8)));
    served.script.release(Moment::Write(8));
    assert!(earlier.wait().is_some() && later.wait().is_some());
}

#[test]
fn changes_that_other_threads_carry_on_are_waited_for_too() {
    let served = served();
    served.script.hold(Moment::Fallocate);
    let allocation = served.queues[1].submit(&served.fallocate(), 4096);
    served.script.await_moment(Moment::Fallocate);
    let sync = served.queues[1].submit(&syncfs(), 16);
    let fsync = served.queues[1].submit(&served.fsync(), 16);
    sleep(A_WHILE);
    assert!(!served.script.saw(SYNC) && !served.script.saw(Moment::Fsync));
    served.script.release(Moment::Fallocate);
    assert_eq!(sync.wait(), Some(Ok(vec![])));
    assert_eq!(fsync.wait(), Some(Ok(vec![])));
    assert_eq!(allocation.wait(), Some(Ok(vec![])));
    let seen = served.script.seen.lock().clone();
    let position = |moment| seen.iter().position(|seen| *seen == moment);
    assert!(position(Moment::Allocated) < position(SYNC), "{seen:?}");
}

#[test]
fn syncs_that_fill_their_pool_do_not_keep_out_the_changes_they_wait_for() {
    let served = served();
    served.script.hold(Moment::Fallocate);
    let allocations: Vec<_> = (0..64).map(|_| served.queues[1].submit(&served.fallocate(), 4096)).collect();
    served.script.await_moment(Moment::Fallocate);
    let fsyncs: Vec<_> = (0..200).map(|_| served.queues[2].submit(&served.fsync(), 16)).collect();
    sleep(A_WHILE);
    served.script.release(Moment::Fallocate);
    assert!(allocations.into_iter().all(|reply| reply.wait() == Some(Ok(vec![]))));
    assert!(fsyncs.into_iter().all(|reply| reply.wait() == Some(Ok(vec![]))));
}

#[test]
fn unmounting_waits_for_changes_under_way_and_syncs_after_them() {
    let served = served();
    served.script.hold(Moment::Fallocate);
    let allocation = served.queues[1].submit(&served.fallocate(), 4096);
    served.script.await_moment(Moment::Fallocate);
    let destroy = served.queues[0].submit(&request(Opcode::Destroy, 0, &[]), 16);
    sleep(A_WHILE);
    assert!(!served.script.saw(SYNC));
    served.script.release(Moment::Fallocate);
    assert_eq!(destroy.wait(), Some(Ok(vec![])));
    assert!(served.script.saw(SYNC) && allocation.wait().is_some());
}

/// Aim: only a client that may send data after its SYNCFS is held back for it. Method: a grace far longer than anything
/// else; the same request with and without the word that says that nothing is still to come.
#[test]
fn a_client_that_waits_for_its_own_write_back_is_not_held_back_for_that_of_others() {
    let limits = Limits { early_sync_grace: Duration::from_secs(2), ..Limits::default() };
    let session = Session::new(MemoryFs::default(), limits);
    let queue = Loopback::start(&session);
    queue.init(InitFlags::all());
    let arguments = CreateIn { flags: 2, mode: 0o644, ..Default::default() };
    let reply = queue.call(Opcode::Create, 1, &[arguments.as_bytes(), b"file\0"]).unwrap();
    let node = EntryOut::read_from_prefix(&reply).unwrap().0.nodeid;
    let fh = OpenOut::read_from_prefix(&reply[128..]).unwrap().0.fh;
    let cached = WriteIn { fh, size: 4, write_flags: WriteFlags::CACHE.bits(), ..Default::default() };
    queue.call(Opcode::Write, node, &[cached.as_bytes(), b"data"]).unwrap();
    let held = queue.submit(&syncfs(), 4096);
    assert!(held.stays_out(A_WHILE));
    assert!(held.wait().unwrap().is_ok());
    let complete = SyncfsIn { padding: SYNCFS_COMPLETE };
    let begun = Instant::now();
    queue.call(Opcode::Syncfs, 1, &[complete.as_bytes()]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Aim: where all is to be durable, a guest that sends SYNCFS before its data is told so; one that does not is not.
#[test]
fn a_sync_that_data_from_the_cache_follows_is_refused_where_all_is_to_be_durable() {
    for refuse_early_syncs in [true, false] {
        let limits =
            Limits { early_sync_grace: Duration::from_millis(300), refuse_early_syncs, ..Limits::default() };
        let session = Session::new(MemoryFs::default(), limits);
        let queues = Loopback::start_queues(&session, 2);
        queues[0].init(InitFlags::all());
        let arguments = CreateIn { flags: 2, mode: 0o644, ..Default::default() };
        let reply = queues[0].call(Opcode::Create, 1, &[arguments.as_bytes(), b"file\0"]).unwrap();
        let node = EntryOut::read_from_prefix(&reply).unwrap().0.nodeid;
        let fh = OpenOut::read_from_prefix(&reply[128..]).unwrap().0.fh;
        let cached = WriteIn { fh, size: 4, write_flags: WriteFlags::CACHE.bits(), ..Default::default() };
        let write = || queues[1].call(Opcode::Write, node, &[cached.as_bytes(), b"data"]).unwrap();
        write();
        let sound = queues[0].submit(&syncfs(), 16);
        assert_eq!(sound.wait(), Some(Ok(vec![])), "all its data came first");
        let early = queues[0].submit(&syncfs(), 16);
        sleep(Duration::from_millis(50));
        write();
        let expected = if refuse_early_syncs { Err(Errno::EIO) } else { Ok(vec![]) };
        assert_eq!(early.wait(), Some(expected));
        assert_eq!(session.filesystem().syncs.load(Ordering::SeqCst), 2, "synced all the same");
    }
}

#[test]
fn a_reset_of_the_machine_is_a_last_sync_and_forgets_the_client() {
    let served = served();
    served.session.reset(PATIENCE);
    assert_eq!(served.session.filesystem().syncs.load(Ordering::SeqCst), 1);
    assert_eq!((served.session.filesystem().looked_up(), served.session.filesystem().handles()), (0, 0));
    served.session.reset(PATIENCE);
    assert_eq!(served.session.filesystem().syncs.load(Ordering::SeqCst), 1, "nobody is there any more");
    assert_eq!(served.queues[0].call(Opcode::Getattr, 1, &[&[0; 16]]), Err(Errno::ENOTCONN));
}

/// Aim: a disk that does not answer keeps no machine from starting again, and what comes late does no harm to it.
#[test]
fn a_reset_waits_for_its_last_sync_no_longer_than_it_is_told() {
    let served = served();
    served.script.hold(SYNC);
    let begun = Instant::now();
    served.session.reset(A_WHILE);
    assert!((A_WHILE..PATIENCE / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    served.queues[0].init(InitFlags::all());
    served.queues[0].call(Opcode::Lookup, 1, &[b"file\0"]).unwrap();
    served.script.release(SYNC);
    sleep(A_WHILE);
    assert_eq!(served.session.filesystem().looked_up(), 1, "the next client keeps what it has");
}
