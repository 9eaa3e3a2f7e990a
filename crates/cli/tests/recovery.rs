//! `ashore serve --state-file`: killed under load and started again, it goes on where it was. Nothing that was acknowledged
//! is lost, and nothing is done twice.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ashore_client::Client;
use ashore_vhost_user::driver::{Call, LINUX_FLAGS, LinkOptions, RawConnection};
use ashore_wire::abi::{Rename2In, WriteIn};
use ashore_wire::encode::RequestHead;
use ashore_wire::{FileHandle, NodeId, Opcode};
use running::Running;
use rustix::process::Signal;
use tempfile::TempDir;

const KILLS: usize = 100;
const WORKERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const O_APPEND: u32 = 0o2000;
const O_EXCL: u32 = 0o200;
const O_RDWR: u32 = 2;

struct Place {
    directory: TempDir,
    sandbox: &'static str,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("share")).unwrap();
        Place { directory, sandbox: "namespace" }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashore"));
        command.args(["serve", "--shared-dir", &self.path("share"), "--socket-path", &self.path("socket")]);
        command.args([
            "--state-file",
            &self.path("state"),
            "--sandbox",
            self.sandbox,
            "--num-request-queues",
            "2",
        ]);
        command.args(["--log-level", "error"]).env_remove("RUST_LOG").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn serve(&self) -> Running {
        Running::start(self.command())
    }

    fn share(&self) -> String {
        self.path("share")
    }
}

fn link() -> LinkOptions {
    LinkOptions { pages: 64, request_queues: 2, reconnect: Some(PATIENCE), ..LinkOptions::default() }
}

/// Kills the server with SIGKILL and waits until it is gone.
fn kill(server: Running) {
    server.signal(Signal::KILL);
    assert_eq!(server.ended().0, None, "it was killed");
}

fn rename(parent: NodeId, from: &str, to: &str, flags: u32) -> Call {
    let arguments = Rename2In { newdir: parent.0, flags, padding: 0 };
    let head = RequestHead::new(Opcode::Rename2, parent).with(&arguments);
    Call::new(head.name(from.as_bytes()).name(to.as_bytes()), 0)
}

fn append(node: NodeId, handle: FileHandle, bytes: &[u8]) -> Call {
    let size = bytes.len() as u32;
    let write = WriteIn { fh: handle.0, size, flags: O_APPEND, ..Default::default() };
    Call::new(RequestHead::new(Opcode::Write, node).with(&write).with(bytes), 8)
}

fn create_new(parent: NodeId, name: &str) -> Call {
    let create = ashore_wire::abi::CreateIn { flags: O_RDWR | O_EXCL, mode: 0o100_644, ..Default::default() };
    Call::new(RequestHead::new(Opcode::Create, parent).with(&create).name(name.as_bytes()), 128 + 16)
}

fn line(round: u64) -> String {
    format!("line {round} {}\n", "x".repeat((round % 97) as usize * 40))
}

/// Each request must be answered as it would be by a server that nobody kills; a change that was made twice, or lost, is
/// answered otherwise. Returns the number of rounds.
fn work(raw: &RawConnection, worker: usize, stop: &AtomicBool, answers: &AtomicU64) -> u64 {
    let call = |what: &str, call: Call| {
        let answer = raw.call(call).unwrap_or_else(|error| panic!("worker {worker}, {what}: {error}"));
        answers.fetch_add(1, Ordering::SeqCst);
        answer
    };
    let home = NodeId(raw.mkdir(NodeId::ROOT, format!("home{worker}").as_bytes()).unwrap().nodeid);
    let (log, log_open) = raw.create(home, b"log").unwrap();
    let (data, data_open) = raw.create(home, b"data").unwrap();
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        let text = line(round);
        let taken = call("append", append(NodeId(log.nodeid), log_open, text.as_bytes()));
        assert_eq!(taken.body[..4], (text.len() as u32).to_ne_bytes(), "a whole line");
        call("write", Call::write_bytes(NodeId(data.nodeid), data_open, round * 8, &round.to_le_bytes()));
        let [name, other, kept] = ["new", "other", &format!("kept{round}")].map(str::to_owned);
        let made = call("create", create_new(home, &name)).body;
        let node = NodeId(u64::from_ne_bytes(made[..8].try_into().unwrap()));
        let handle = FileHandle(u64::from_ne_bytes(made[128..136].try_into().unwrap()));
        call("write of the new", Call::write_bytes(node, handle, 0, text.as_bytes()));
        call("mkdir", Call::mkdir(home, other.as_bytes()));
        call("exchange", rename(home, &name, &other, 2));
        call("rmdir", Call::rmdir(home, name.as_bytes()));
        call("release", Call::release(node, handle));
        if round % 8 == 0 {
            call("rename", rename(home, &other, &kept, 1));
        } else {
            call("unlink", Call::unlink(home, other.as_bytes()));
        }
        raw.forget(&[(node, 1)]).unwrap();
        let read = raw.read_bytes(NodeId(data.nodeid), data_open, round * 8, 8).unwrap();
        assert_eq!(read, round.to_le_bytes());
        if round % 16 == 0 {
            raw.syncfs().unwrap();
        }
        round += 1;
    }
    raw.release(NodeId(data.nodeid), data_open).unwrap();
    round
}

fn check(share: &str, worker: usize, rounds: u64) {
    let home = Path::new(share).join(format!("home{worker}"));
    let expected: String = (0..rounds).map(line).collect();
    let log = fs::read_to_string(home.join("log")).unwrap();
    assert!(log == expected, "worker {worker}: each line once, in order");
    let data = fs::read(home.join("data")).unwrap();
    let numbers: Vec<u64> = data.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(numbers, (0..rounds).collect::<Vec<_>>());
    let mut names: Vec<_> =
        fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut wanted: Vec<_> = (0..rounds).step_by(8).map(|round| format!("kept{round}")).collect();
    wanted.extend(["data".to_owned(), "log".to_owned()]);
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
    for round in (0..rounds).step_by(8) {
        assert_eq!(fs::read_to_string(home.join(format!("kept{round}"))).unwrap(), line(round));
    }
}

#[test]
fn killed_a_hundred_times_under_load_it_loses_nothing_and_does_nothing_twice() {
    // One process, which is the one that is killed.
    let place = Place { sandbox: "none", ..Place::new() };
    let mut server = place.serve();
    let raw = RawConnection::connect(place.path("socket"), link()).unwrap().with_patience(PATIENCE);
    raw.init(LINUX_FLAGS).unwrap();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut waits = Vec::new();
    let (server, rounds): (Running, Vec<u64>) = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (raw, stop, answers) = (&raw, &stop, &answers);
                scope.spawn(move || work(raw, worker, stop, answers))
            })
            .collect();
        for kill_number in 0..KILLS {
            thread::sleep(Duration::from_millis(10 + (kill_number as u64 * 7) % 23));
            kill(server);
            let (before, begun) = (answers.load(Ordering::SeqCst), Instant::now());
            server = place.serve();
            while answers.load(Ordering::SeqCst) == before && begun.elapsed() < PATIENCE {
                thread::sleep(Duration::from_micros(200));
            }
            waits.push(begun.elapsed());
            assert!(
                workers.iter().all(|worker| !worker.is_finished()),
                "kill {kill_number}: a worker gave up"
            );
        }
        stop.store(true, Ordering::SeqCst);
        (server, workers.into_iter().map(|worker| worker.join().unwrap()).collect())
    });
    raw.syncfs().unwrap();
    for (worker, rounds) in rounds.iter().enumerate() {
        assert!(*rounds > KILLS as u64 / 10, "there was a load: {rounds}");
        check(&place.share(), worker, *rounds);
    }
    raw.destroy().unwrap();
    drop(raw);
    assert_eq!(server.ended().0, Some(0));
    waits.sort();
    println!(
        "{KILLS} kills, {} requests; from the start of the next server to the first reply: median {:?}, longest {:?}",
        answers.load(Ordering::SeqCst),
        waits[KILLS / 2],
        waits[KILLS - 1]
    );
}

#[test]
fn the_client_goes_on_and_its_sync_covers_what_was_acknowledged_before() {
    let place = Place::new();
    let mut server = place.serve();
    let client = Client::options().reconnect(PATIENCE).connect(place.path("socket")).unwrap();
    for round in 0..10u8 {
        let content = vec![round; 300_000];
        client.write(format!("file{round}"), &content).unwrap();
        kill(server);
        server = place.serve();
        client.sync().unwrap();
        assert!(fs::read(format!("{}/file{round}", place.share())).unwrap() == content);
    }
    client.unmount().unwrap();
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn ended_by_a_signal_it_is_followed_by_the_next_too_and_a_client_that_left_is_not() {
    let place = Place::new();
    let server = place.serve();
    let raw = RawConnection::connect(place.path("socket"), link()).unwrap().with_patience(PATIENCE);
    raw.init(LINUX_FLAGS).unwrap();
    let (entry, handle) = raw.create(NodeId::ROOT, b"file").unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    let server = place.serve();
    raw.write_bytes(NodeId(entry.nodeid), handle, 0, b"content").unwrap();
    raw.destroy().unwrap();
    drop(raw);
    assert_eq!(server.ended().0, Some(0));
    let _server = place.serve();
    let raw = RawConnection::connect(place.path("socket"), link()).unwrap().with_patience(PATIENCE);
    assert!(raw.getattr(NodeId(entry.nodeid)).is_err(), "nothing is left of the client before");
    raw.init(LINUX_FLAGS).unwrap();
    assert!(raw.getattr(NodeId(entry.nodeid)).is_err(), "nor for the next client");
    assert_eq!(fs::read(format!("{}/file", place.share())).unwrap(), b"content");
}

#[test]
fn a_file_that_is_something_else_and_locks_that_would_be_lost_are_refused() {
    let place = Place::new();
    let refused = |more: &[&str]| {
        let output = place.command().args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--flock"]).contains("--state-file cannot bring back locks"));
    assert!(refused(&["--inode-file-handles", "never"]).contains("--state-file needs file handles"));
    fs::write(place.path("state"), b"somebody's diary").unwrap();
    assert!(refused(&[]).contains("it is no state file"));
    assert_eq!(fs::read(place.path("state")).unwrap(), b"somebody's diary");
}
