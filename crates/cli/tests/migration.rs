//! A session moves from one `ashore serve` to another, as by the live migration of a virtual machine: our own driver is the VMM.
//! Both servers are as they are by default, in their sandboxes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ashore_vhost_user::driver::{
    Call, ConnectError, LINUX_FLAGS, LinkOptions, RawConnection, RawError, VhostUserLink,
};
use ashore_wire::abi::{LkIn, Rename2In};
use ashore_wire::encode::RequestHead;
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, FileHandle, NodeId, Opcode};
use running::Running;
use rustix::process::Signal;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const MOVES: usize = 24;
const WORKERS: usize = 3;
const O_RDWR: u32 = 2;

const BY_PATH: &[&str] = &["--migration-mode", "find-paths"];
const BY_HANDLE: &[&str] = &["--migration-mode", "file-handles"];

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("share")).unwrap();
        Place(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn share(&self) -> String {
        self.path("share")
    }

    /// A server of the share at this socket.
    fn serve(&self, socket: &str, arguments: &[&str]) -> Running {
        self.serve_directory("share", socket, arguments)
    }

    fn serve_directory(&self, share: &str, socket: &str, arguments: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashore"));
        command.args(["serve", "--shared-dir", &self.path(share), "--socket-path", &self.path(socket)]);
        command.args(["--num-request-queues", "2", "--log-level", "error"]).args(arguments);
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(command)
    }

    /// A guest of the server at this socket, and its way to another one.
    fn guest(&self, socket: &str) -> (RawConnection, Arc<VhostUserLink>) {
        let options = LinkOptions { pages: 64, request_queues: 2, ..LinkOptions::default() };
        let link = Arc::new(VhostUserLink::connect(self.path(socket), options).unwrap());
        let raw = RawConnection::over(Arc::clone(&link) as Arc<_>).with_patience(PATIENCE);
        let asked = InitFlags::SUBMOUNTS | InitFlags::HANDLE_KILLPRIV_V2 | InitFlags::POSIX_LOCKS;
        raw.init(LINUX_FLAGS | asked).unwrap();
        (raw, link)
    }
}

fn refused(moved: Result<usize, ConnectError>, what: &str) {
    match moved {
        Err(ConnectError::StateRefused { what: refused, .. }) => assert_eq!(refused, what),
        other => panic!("{other:?}"),
    }
}

/// Ends a server, and returns what it said.
fn said_by(server: Running) -> String {
    server.signal(Signal::TERM);
    server.ended().1
}

fn rename(parent: NodeId, from: &str, to: &str) -> Call {
    let arguments = Rename2In { newdir: parent.0, flags: 0, padding: 0 };
    let head = RequestHead::new(Opcode::Rename2, parent).with(&arguments);
    Call::new(head.name(from.as_bytes()).name(to.as_bytes()), 0)
}

/// Changes of all kinds, each answer as if nothing had moved. Returns the number of rounds.
fn work(raw: &RawConnection, worker: usize, stop: &AtomicBool, answers: &AtomicU64) -> u64 {
    let home = NodeId(raw.mkdir(NodeId::ROOT, format!("home{worker}").as_bytes()).unwrap().nodeid);
    let (data, open) = raw.create(home, b"data").unwrap();
    let data = NodeId(data.nodeid);
    let mut round = 0u64;
    while !stop.load(Ordering::SeqCst) {
        assert_eq!(raw.write_bytes(data, open, round * 8, &round.to_le_bytes()).unwrap(), 8);
        let [new, kept] = ["new".to_owned(), format!("kept{round}")];
        let (node, handle) = raw.create(home, new.as_bytes()).unwrap();
        let node = NodeId(node.nodeid);
        raw.write_bytes(node, handle, 0, new.as_bytes()).unwrap();
        raw.release(node, handle).unwrap();
        match round % 8 {
            0 => drop(raw.call(rename(home, &new, &kept)).unwrap()),
            _ => raw.unlink(home, new.as_bytes()).unwrap(),
        }
        let found = raw.lookup(home, kept.as_bytes());
        match round % 8 {
            0 => assert_eq!(found.unwrap().nodeid, node.0, "it is the same node as before"),
            _ => assert_eq!(found.unwrap_err(), RawError::Errno(Errno::ENOENT)),
        }
        raw.forget(&[(node, if round.is_multiple_of(8) { 2 } else { 1 })]).unwrap();
        assert_eq!(raw.read_bytes(data, open, round * 8, 8).unwrap(), round.to_le_bytes());
        if round.is_multiple_of(16) {
            raw.syncfs().unwrap();
        }
        round += 1;
        answers.fetch_add(1, Ordering::SeqCst);
    }
    raw.release(data, open).unwrap();
    round
}

fn check(share: &str, worker: usize, rounds: u64) {
    let home = Path::new(share).join(format!("home{worker}"));
    let data = fs::read(home.join("data")).unwrap();
    let numbers: Vec<u64> = data.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(numbers, (0..rounds).collect::<Vec<_>>());
    let names = fs::read_dir(&home).unwrap().count() as u64;
    assert_eq!(names, rounds.div_ceil(8) + 1, "each file that was kept, and the data");
}

fn moves_under_load(mode: &[&str]) {
    let place = Place::new();
    let arguments = [mode, &["--keep-listening"]].concat();
    let servers = [place.serve("one", &arguments), place.serve("two", &arguments)];
    let (raw, link) = place.guest("one");
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut pauses = Vec::new();
    let rounds: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (raw, stop, answers) = (&raw, &stop, &answers);
                scope.spawn(move || work(raw, worker, stop, answers))
            })
            .collect();
        for number in 0..MOVES {
            let before = answers.load(Ordering::SeqCst);
            let waiting = Instant::now();
            while answers.load(Ordering::SeqCst) < before + 20 && waiting.elapsed() < PATIENCE {
                thread::sleep(Duration::from_micros(500));
            }
            let begun = Instant::now();
            let to = place.path(if number % 2 == 0 { "two" } else { "one" });
            link.move_to(&to).unwrap();
            pauses.push(begun.elapsed());
            assert!(workers.iter().all(|worker| !worker.is_finished()), "move {number}: a worker gave up");
        }
        stop.store(true, Ordering::SeqCst);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    raw.syncfs().unwrap();
    for (worker, rounds) in rounds.iter().enumerate() {
        check(&place.share(), worker, *rounds);
    }
    pauses.sort();
    println!("{mode:?}: {MOVES} moves, {rounds:?} rounds, median pause {:?}", pauses[MOVES / 2]);
    drop((raw, link));
    servers.map(said_by).iter().for_each(|said| assert_eq!(said, ""));
}

#[test]
fn a_session_moves_under_load_by_path_and_every_answer_is_as_if_it_had_not() {
    moves_under_load(BY_PATH);
}

#[test]
fn a_session_moves_under_load_by_handle_and_every_answer_is_as_if_it_had_not() {
    moves_under_load(BY_HANDLE);
}

/// Files of each kind, open and not, looked up before.
fn known_files(place: &Place, raw: &RawConnection) -> (NodeId, FileHandle, NodeId, NodeId) {
    fs::create_dir_all(place.path("share/deep/er")).unwrap();
    fs::write(place.path("share/deep/er/file"), "content").unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("share/link")).unwrap();
    let deep = NodeId(raw.lookup(NodeId::ROOT, b"deep").unwrap().nodeid);
    let deeper = NodeId(raw.lookup(deep, b"er").unwrap().nodeid);
    let file = NodeId(raw.lookup(deeper, b"file").unwrap().nodeid);
    let link = NodeId(raw.lookup(NodeId::ROOT, b"link").unwrap().nodeid);
    let open = raw.open(file, O_RDWR).unwrap();
    (file, open, deeper, link)
}

/// Aim: what the host's processes renamed meanwhile is found where it is now, and what is open stays so.
#[test]
fn files_are_found_where_they_are_when_the_session_moves() {
    for mode in [BY_PATH, BY_HANDLE, &["--migration-verify-handles", "--migration-confirm-paths"]] {
        let place = Place::new();
        let (_source, _destination) = (place.serve("one", mode), place.serve("two", &[]));
        let (raw, link) = place.guest("one");
        let (file, open, deeper, symlink) = known_files(&place, &raw);
        fs::rename(place.path("share/deep"), place.path("share/moved")).unwrap();
        link.move_to(place.path("two")).unwrap();
        assert_eq!(raw.read_bytes(file, open, 0, 100).unwrap(), b"content");
        assert_eq!(raw.write_bytes(file, open, 7, b", more").unwrap(), 6);
        assert_eq!(raw.lookup(deeper, b"file").unwrap().nodeid, file.0);
        assert_eq!(
            raw.call(Call::new(RequestHead::new(Opcode::Readlink, symlink), 100)).unwrap().body,
            b"nowhere"
        );
        assert_eq!(fs::read_to_string(place.path("share/moved/er/file")).unwrap(), "content, more");
    }
}

/// Aim: a file that has no name any more, and is open, moves where it can be found, and is told of where it cannot.
#[test]
fn an_open_file_without_a_name_moves_by_handle_and_keeps_its_guest_if_it_cannot() {
    for (mode, on_error) in [(BY_HANDLE, "abort"), (BY_PATH, "abort"), (BY_PATH, "guest-error")] {
        let place = Place::new();
        let there = ["--migration-on-error", on_error, "--keep-listening"];
        let (_source, destination) = (place.serve("one", mode), place.serve("two", &there));
        let (raw, link) = place.guest("one");
        let (file, open, deeper, _) = known_files(&place, &raw);
        raw.unlink(deeper, b"file").unwrap();
        let moved = link.move_to(place.path("two"));
        let read = raw.read_bytes(file, open, 0, 100);
        match (mode, on_error) {
            (BY_HANDLE, _) => {
                moved.unwrap();
                assert_eq!(read.unwrap(), b"content");
            }
            (_, "abort") => {
                refused(moved, "load");
                assert_eq!(read.unwrap(), b"content", "the source goes on");
                raw.write_bytes(file, open, 0, b"C").unwrap();
                raw.release(file, open).unwrap();
                link.move_to(place.path("two")).expect("nobody has it open any more");
                raw.getattr(deeper).unwrap();
                drop((raw, link));
                let said = said_by(destination);
                assert!(said.contains("has no name left"), "{said}");
                continue;
            }
            _ => {
                moved.unwrap();
                assert_eq!(read, Err(RawError::Errno(Errno::EBADF)));
            }
        }
        assert!(raw.lookup(deeper, b"file").is_err());
        raw.syncfs().unwrap();
    }
}

/// Aim: a guest that was promised something does not go where it is not had. The message names the option.
#[test]
fn a_server_with_other_options_refuses_a_session_that_relies_on_them() {
    let cases: [(&[&str], &[&str], &str); 6] = [
        (&["--xattr"], &[], "--xattr"),
        (&[], &["--readonly"], "--readonly"),
        (&["--translate-uid", "map:0:1000:1"], &[], "--translate-uid"),
        (&["--killpriv-v2"], &[], "--killpriv-v2"),
        (&[], &["--no-announce-submounts"], "--announce-submounts"),
        (&["--posix-lock"], &[], "--posix-lock"),
    ];
    for (source, destination, option) in cases {
        let place = Place::new();
        let (_source, destination) = (place.serve("one", source), place.serve("two", destination));
        let (raw, link) = place.guest("one");
        let (file, open, ..) = known_files(&place, &raw);
        let moved = link.move_to(place.path("two"));
        assert!(moved.is_err(), "{option}");
        refused(moved, "load");
        assert_eq!(raw.read_bytes(file, open, 0, 100).unwrap(), b"content", "the source goes on");
        let said = destination.ended().1;
        assert!(said.contains(option), "{option}: {said}");
    }
}

/// Aim: locks of the host would be lost on the way, so a guest stays that holds some.
#[test]
fn a_session_with_locks_of_the_host_stays_until_they_are_dropped() {
    const OPTION: &[&str] = &["--posix-lock"];
    let place = Place::new();
    let there = [OPTION, &["--keep-listening"]].concat();
    let (source, _destination) = (place.serve("one", OPTION), place.serve("two", &there));
    let (raw, link) = place.guest("one");
    let (file, open, ..) = known_files(&place, &raw);
    let lock = |kind: i16| {
        let lock = ashore_wire::abi::FileLock { start: 0, end: 9, kind: kind as u32, pid: 1 };
        let arguments = LkIn { fh: open.0, owner: 7, lk: lock, ..Default::default() };
        raw.call(Call::new(RequestHead::new(Opcode::Setlk, file).with(&arguments), 0)).unwrap();
    };
    lock(1);
    refused(link.move_to(place.path("two")), "save");
    lock(2);
    link.move_to(place.path("two")).unwrap();
    lock(1);
    let said = source.ended().1;
    assert!(said.contains("hold locks of the host"), "{said}");
}

/// Aim: with find-paths the destination may share another copy of the files; with --migration-verify-handles it may not.
#[test]
fn another_copy_of_the_files_will_do_by_path_unless_handles_are_verified() {
    for verify in [false, true] {
        let place = Place::new();
        let source: &[&str] = if verify { &["--migration-verify-handles"] } else { &[] };
        let _source = place.serve("one", source);
        let (raw, link) = place.guest("one");
        let (file, open, deeper, _) = known_files(&place, &raw);
        let copied = Command::new("cp").args(["-a", &place.share(), &place.path("copy")]).status().unwrap();
        assert!(copied.success());
        fs::write(place.path("copy/deep/er/file"), "the copy").unwrap();
        let _destination = place.serve_directory("copy", "two", &[]);
        let moved = link.move_to(place.path("two"));
        let read = raw.read_bytes(file, open, 0, 100).unwrap();
        if verify {
            refused(moved, "load");
            assert_eq!(read, b"content");
        } else {
            moved.unwrap();
            assert_eq!(read, b"the copy");
            assert_eq!(
                raw.lookup(deeper, b"file").unwrap().nodeid,
                file.0,
                "found by name it is the same node"
            );
        }
    }
}

#[test]
fn a_guest_that_has_mounted_nothing_moves_too() {
    let place = Place::new();
    let (_source, _destination) = (place.serve("one", &[]), place.serve("two", &[]));
    let link = Arc::new(VhostUserLink::connect(place.path("one"), LinkOptions::default()).unwrap());
    let raw = RawConnection::over(Arc::clone(&link) as Arc<_>).with_patience(PATIENCE);
    link.move_to(place.path("two")).unwrap();
    raw.init(LINUX_FLAGS).unwrap();
    raw.getattr(NodeId::ROOT).unwrap();
}

/// Aim: the state file would not know of a client that came from elsewhere.
#[test]
fn a_server_with_a_state_file_neither_gives_a_session_nor_takes_one() {
    let place = Place::new();
    let state = place.path("state");
    let (_source, _destination) = (place.serve("one", &[]), place.serve("two", &["--state-file", &state]));
    let (raw, link) = place.guest("one");
    refused(link.move_to(place.path("two")), "load");
    raw.getattr(NodeId::ROOT).unwrap();
}
