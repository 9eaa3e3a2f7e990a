//! The conformance cases of a server, S1 to S12 of `docs/testing.md`, over a real socket: raw requests through shared
//! memory, a real host directory below, and a file system in an image file to look into.
//!
//! `server_sync.rs` has the same numbers in memory, where every step can be held.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ashore_passthrough::{HostCalls, HostFileSystems, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::delayed::Delayed;
use ashore_testkit::guest::{LoopImage, Server, SmallDisk, pattern};
use ashore_testkit::in_process::InProcess;
use ashore_testkit::overtaking;
use ashore_vhost_user::driver::{Call, LINUX_FLAGS, LinkOptions, RawConnection, RawError};
use ashore_wire::encode::RequestHead;
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, FileHandle, NodeId, Opcode};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno as HostErrno;
use rustix::process::Signal;

/// How long something that must not happen is given to happen.
const A_WHILE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(30);
const ROOT: NodeId = NodeId::ROOT;

/// The host, as far as it syncs: each syncfs is noted when it begins and ends, and goes as the test wants.
#[derive(Clone, Default)]
struct Host(Arc<HostState>);

#[derive(Default)]
struct HostState {
    /// Devices, when a syncfs of them began.
    begun: Mutex<Vec<u64>>,
    ended: Mutex<Vec<u64>>,
    held: Mutex<bool>,
    released: Condvar,
    fails: Mutex<Option<HostErrno>>,
}

impl Host {
    fn hold(&self) {
        *self.0.held.lock() = true;
    }

    fn release(&self) {
        *self.0.held.lock() = false;
        self.0.released.notify_all();
    }

    /// Devices synced since the last look.
    fn take(&self) -> Vec<u64> {
        let mut devices = std::mem::take(&mut *self.0.ended.lock());
        devices.sort_unstable();
        devices
    }

    fn await_begun(&self, count: usize) {
        let start = Instant::now();
        while self.0.begun.lock().len() < count {
            assert!(start.elapsed() < PATIENCE, "the host was never asked to sync");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl HostCalls for Host {
    fn syncfs(&self, device: u64, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.0.begun.lock().push(device);
        let mut held = self.0.held.lock();
        while *held {
            assert!(!self.0.released.wait_for(&mut held, PATIENCE).timed_out(), "never released");
        }
        drop(held);
        if let Some(errno) = self.0.fails.lock().take() {
            return Err(errno);
        }
        rustix::fs::syncfs(file)?;
        self.0.ended.lock().push(device);
        Ok(())
    }
}

/// A share of `directory` over a socket, with a client.
struct Rig {
    host: Host,
    /// The client goes first.
    raw: RawConnection,
    _server: InProcess<Passthrough>,
}

/// However the test ends, nothing is left waiting.
impl Drop for Rig {
    fn drop(&mut self) {
        self.host.release();
    }
}

impl Rig {
    fn new(directory: &Path) -> Rig {
        Rig::with(directory, 1, |_| {})
    }

    fn with(directory: &Path, queues: u16, change: impl FnOnce(&mut Options)) -> Rig {
        let host = Host::default();
        let hosts = HostFileSystems::with_calls(host.clone());
        let server = serve(directory, &hosts, queues, change);
        let raw = connect(&server.socket(), queues);
        Rig { host, raw, _server: server }
    }

    /// A new file, open, with this in it.
    fn put(&self, parent: NodeId, name: &[u8], content: &[u8]) -> (NodeId, FileHandle) {
        let (file, handle) = self.raw.create(parent, name).unwrap();
        self.raw.write_bytes(NodeId(file.nodeid), handle, 0, content).unwrap();
        (NodeId(file.nodeid), handle)
    }

    fn write_pattern(&self, name: &[u8], seed: u64, blocks: u64) {
        let (file, handle) = self.raw.create(ROOT, name).unwrap();
        for index in 0..blocks {
            let block = pattern::block(seed, index);
            self.raw.write_bytes(NodeId(file.nodeid), handle, index << 12, &block).unwrap();
        }
    }
}

fn serve(
    directory: &Path,
    hosts: &Arc<HostFileSystems>,
    queues: u16,
    change: impl FnOnce(&mut Options),
) -> InProcess<Passthrough> {
    let mut options = Options::new(directory);
    change(&mut options);
    let filesystem = Passthrough::with_hosts(options, Arc::clone(hosts)).unwrap();
    InProcess::serve(Session::new(filesystem, Limits::default()), queues).unwrap()
}

fn connect(socket: &Path, request_queues: u16) -> RawConnection {
    let raw = RawConnection::connect(socket, LinkOptions { request_queues, ..LinkOptions::default() });
    let raw = raw.unwrap().with_patience(PATIENCE);
    raw.init(LINUX_FLAGS | InitFlags::SUBMOUNTS).unwrap();
    raw
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

#[test]
fn s01_a_sync_is_answered_after_the_host_was_synced_and_not_before() {
    let disk = LoopImage::ext4(64).unwrap();
    let rig = Rig::new(disk.path());
    rig.raw.syncfs().unwrap();
    rig.host.take();
    rig.write_pattern(b"file", 1, 16);
    rig.host.hold();
    let sync = rig.raw.send(Call::syncfs(ROOT)).unwrap();
    rig.host.await_begun(2);
    thread::sleep(A_WHILE);
    assert!(!rig.raw.is_done(&sync), "answered before the host was done");
    assert!(rig.raw.getattr(ROOT).is_ok(), "and nobody else waits for it");
    rig.host.release();
    rig.raw.wait(sync).unwrap();
    assert_eq!(disk.count_blocks(1).unwrap(), 16, "blocks in the image at the answer");
    assert_eq!(rig.host.take(), [device(disk.path())], "once, and of the right file system");
    drop(rig);
}

#[test]
fn s02_the_error_of_the_host_is_the_answer_and_has_no_body() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(directory.path());
    for (host, errno) in [(HostErrno::IO, Errno::EIO), (HostErrno::NOSPC, Errno::ENOSPC)] {
        rig.put(ROOT, format!("{errno}").as_bytes(), b"x");
        *rig.host.0.fails.lock() = Some(host);
        assert_eq!(rig.raw.call(Call::syncfs(ROOT)), Err(RawError::Errno(errno)));
        assert_eq!(rig.raw.call(Call::syncfs(ROOT)).unwrap().body, [0; 0]);
    }
}

/// A WRITE that its queue is still doing, and a SYNCFS on another queue: ours waits, which is more than is asked.
#[test]
fn s03_a_sync_waits_for_a_write_that_another_queue_is_doing() {
    let disk = LoopImage::ext4(64).unwrap();
    let slow = Delayed::new(passthrough(disk.path()), Duration::from_millis(40), 3);
    let server = InProcess::serve(Session::new(slow, Limits::default()), 5).unwrap();
    let outcome = overtaking::run(&server.socket(), &disk.image(), 20).unwrap();
    assert_eq!((outcome.short, outcome.missing), (0, 0), "{outcome:?}");
    drop(server);
}

fn passthrough(directory: &Path) -> Passthrough {
    Passthrough::with_hosts(Options::new(directory), HostFileSystems::of_this_process()).unwrap()
}

#[test]
fn s04_a_sync_covers_exactly_the_file_systems_it_is_for() {
    for announced in [true, false] {
        let disk = LoopImage::ext4(64).unwrap();
        let below = LoopImage::ext4_at(64, &disk.path().join("below")).unwrap();
        let (outer, inner) = (device(disk.path()), device(below.path()));
        let both = if outer < inner { [outer, inner] } else { [inner, outer] };
        let rig = Rig::with(disk.path(), 1, |options| options.announce_submounts = announced);
        let mount = NodeId(rig.raw.lookup(ROOT, b"below").unwrap().nodeid);
        rig.raw.syncfs().unwrap();
        assert_eq!(rig.host.take(), both, "the first sync knows nothing yet");
        rig.put(ROOT, b"a", b"x");
        rig.put(mount, b"a", b"x");
        rig.raw.syncfs().unwrap();
        assert_eq!(rig.host.take(), both, "of the root, all that was changed");
        rig.put(ROOT, b"b", b"x");
        rig.put(mount, b"b", b"x");
        rig.raw.call(Call::syncfs(mount)).unwrap();
        if announced {
            assert_eq!(rig.host.take(), [inner], "of the mount, its own");
            rig.raw.syncfs().unwrap();
            assert_eq!(rig.host.take(), [outer], "and what it did not cover is owed still");
        } else {
            assert_eq!(rig.host.take(), both, "the client does not know that they are two");
        }
        rig.put(mount, b"c", b"x");
        rig.raw.syncfs().unwrap();
        assert_eq!(rig.host.take(), [inner]);
        drop(rig);
    }
}

#[test]
fn s05_a_sync_of_a_node_that_is_unknown_or_forgotten_fails() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(directory.path());
    assert_eq!(rig.raw.call(Call::syncfs(NodeId(4711))), Err(RawError::Errno(Errno::ESTALE)));
    let node = NodeId(rig.raw.mkdir(ROOT, b"d").unwrap().nodeid);
    rig.raw.call(Call::syncfs(node)).unwrap();
    rig.raw.forget(&[(node, 1)]).unwrap();
    // It goes another way than the SYNCFS.
    let start = Instant::now();
    while rig.raw.getattr(node).is_ok() {
        assert!(start.elapsed() < PATIENCE);
    }
    assert_eq!(rig.raw.call(Call::syncfs(node)), Err(RawError::Errno(Errno::ESTALE)));
}

#[test]
fn s06_a_longer_argument_that_is_not_zero_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(directory.path());
    for length in [8, 9, 16, 64] {
        let head = RequestHead::new(Opcode::Syncfs, ROOT).with(&vec![0xffu8; length][..]);
        assert_eq!(rig.raw.call(Call::new(head, 0)).unwrap().body, [0; 0]);
    }
}

/// The server is killed when it has answered, and the power is cut: the image is copied at that moment.
#[test]
fn s07_what_was_answered_before_a_sync_outlives_the_server_and_a_power_cut() {
    for scope in ["filesystem", "share"] {
        let disk = LoopImage::ext4(64).unwrap();
        let mut server = Server::builder(disk.path()).arg(&format!("--sync-scope={scope}")).start().unwrap();
        let raw = connect(&server.socket(), 1);
        raw.syncfs().unwrap();
        let directory = NodeId(raw.mkdir(ROOT, b"d").unwrap().nodeid);
        for number in 0..20u8 {
            let (file, handle) = raw.create(directory, format!("f{number}").as_bytes()).unwrap();
            raw.write_bytes(NodeId(file.nodeid), handle, 0, &vec![number; 5000]).unwrap();
        }
        raw.unlink(directory, b"f7").unwrap();
        raw.syncfs().unwrap();
        server.signal(Signal::KILL);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        run(Command::new("cp").arg("--sparse=always").arg(disk.image()).arg(&copy));
        assert!(!server.wait(PATIENCE).unwrap().success());

        let mount = folder.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&copy).arg(&mount));
        let found: Vec<_> = (0..20).map(|number| fs::read(mount.join(format!("d/f{number}")))).collect();
        run(Command::new("umount").arg(&mount));
        for (number, content) in found.into_iter().enumerate() {
            match number {
                7 => assert!(content.is_err(), "the removed file is there again"),
                _ => assert_eq!(content.unwrap(), vec![number as u8; 5000], "f{number}, scope {scope}"),
            }
        }
        drop((raw, server));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn s08_destroy_without_a_sync_makes_everything_stable_before_it_is_answered() {
    let disk = LoopImage::ext4(64).unwrap();
    let rig = Rig::with(disk.path(), 1, |options| options.writeback = true);
    rig.write_pattern(b"file", 8, 64);
    rig.raw.destroy().unwrap();
    assert_eq!(disk.count_blocks(8).unwrap(), 64, "blocks in the image at the answer to DESTROY");
    drop(rig);
}

/// The host's kernel tells each descriptor once, and another process asks first. Two clients share the host file system:
/// each is told once, whoever of them asks first.
#[test]
fn s09_an_error_that_another_process_was_told_of_is_told_to_each_client_once() {
    for scope in [ashore_passthrough::SyncScope::Filesystem, ashore_passthrough::SyncScope::Share] {
        let small = SmallDisk::new(48).unwrap();
        let disk = LoopImage::ext4_without_journal_on(&small, 128).unwrap();
        let hosts = HostFileSystems::with_calls(Host::default());
        let servers = [1, 2].map(|_| serve(disk.path(), &hosts, 1, |options| options.sync_scope = scope));
        let clients = servers.each_ref().map(|server| connect(&server.socket(), 1));
        for (number, client) in clients.iter().enumerate() {
            client.create(ROOT, format!("f{number}").as_bytes()).unwrap();
            client.syncfs().unwrap();
        }
        small.fill().unwrap();
        let neighbour = File::open(disk.path()).unwrap();
        for (number, client) in clients.iter().enumerate() {
            let file = client.lookup(ROOT, format!("f{number}").as_bytes()).unwrap();
            let handle = client.open(NodeId(file.nodeid), 2).unwrap();
            for index in 0..64 {
                client
                    .write_bytes(NodeId(file.nodeid), handle, index << 12, &pattern::block(9, index))
                    .unwrap();
            }
        }
        assert!(rustix::fs::syncfs(&neighbour).is_err(), "the disk below is full, so the writes are lost");
        for client in &clients {
            assert!(matches!(client.syncfs(), Err(RawError::Errno(_))), "lost, and nobody says so");
        }
        for client in &clients {
            assert_eq!(client.syncfs(), Ok(()), "told once");
        }
        drop((clients, servers));
    }
}

/// Aim: no order of WRITEs on four queues and a SYNCFS on a fifth leaves a WRITE behind. Method: nobody waits for an answer,
/// the server is slowed at random, and at the answer to the SYNCFS all 64 blocks are in the image. A thousand rounds.
#[test]
fn s10_a_sync_on_a_fifth_queue_covers_64_writes_on_four() {
    let disk = LoopImage::ext4(64).unwrap();
    let slow = Delayed::new(passthrough(disk.path()), Duration::from_millis(1), 10);
    let server = InProcess::serve(Session::new(slow, Limits::default()), 5).unwrap();
    let outcome = overtaking::run(&server.socket(), &disk.image(), 1000).unwrap();
    println!("{outcome:?}");
    assert_eq!((outcome.short, outcome.missing, outcome.queues), (0, 0, 5), "{outcome:?}");
    drop(server);
}

/// Less room than that a driver cannot ask for; `server_sync.rs` and the tests of the rings do.
#[test]
fn s11_an_answer_without_a_body_has_the_length_of_its_header() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::new(directory.path());
    for room in [0, 1, 4096] {
        let head = RequestHead::new(Opcode::Syncfs, ROOT).with(&[0u8; 8]);
        assert_eq!(rig.raw.call(Call::new(head, room)).unwrap().body, [0; 0]);
    }
}

#[test]
fn s12_a_thousand_syncs_at_once_are_all_answered_by_a_round_that_began_after_they_came() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(directory.path(), 8, |_| {});
    let (file, handle) = rig.put(ROOT, b"f", b"x");
    rig.host.hold();
    let first = rig.raw.send(Call::syncfs(ROOT)).unwrap();
    rig.host.await_begun(1);
    // Changed after the first began: who comes now may not share it.
    rig.raw.write_bytes(file, handle, 0, b"y").unwrap();
    // A queue of this driver has room for 128 that wait; threads take queues in turn.
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope
                    .spawn(|| (0..125).map(|_| rig.raw.send(Call::syncfs(ROOT)).unwrap()).collect::<Vec<_>>())
            })
            .collect();
        let syncs: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        thread::sleep(A_WHILE);
        assert!(!syncs.iter().any(|sync| rig.raw.is_done(sync)));
        rig.host.release();
        rig.raw.wait(first).unwrap();
        syncs.into_iter().for_each(|sync| _ = rig.raw.wait(sync).unwrap());
    });
    let rounds = rig.host.take().len();
    // Two, and a few more if a queue was full, or one came too late for its round.
    assert!((2..=5).contains(&rounds), "{rounds} syncs of the host for 1001");
}

/// An endless writer on another queue does not hold a sync up.
#[test]
fn a_sync_returns_while_others_go_on_writing() {
    let disk = LoopImage::ext4(64).unwrap();
    let rig = Rig::with(disk.path(), 2, |_| {});
    let (file, handle) = rig.put(ROOT, b"f", b"x");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rig.raw.write_bytes(file, handle, 0, &[1; 4096]).unwrap();
            }
        });
        for _ in 0..20 {
            rig.raw.syncfs().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(rig);
}
