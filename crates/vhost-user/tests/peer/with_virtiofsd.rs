use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashore_vhost_user::driver::{
    Call, ConnectError, LINUX_FLAGS, LinkOptions, Pages, RawConnection, RawError, VhostUserLink,
};
use ashore_wire::encode::listed_names;
use ashore_wire::{Errno, NodeId};
use rustix::process::{Pid, Signal, kill_process};

/// Far more than anything here takes, and finite.
const FINITE: Duration = Duration::from_secs(20);

/// virtiofsd with a directory of its own.
struct Peer {
    child: Child,
    share: tempfile::TempDir,
    elsewhere: tempfile::TempDir,
}

impl Peer {
    fn start() -> Peer {
        let (share, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = Command::new(program());
        command.args(["--sandbox", "none", "--seccomp", "none", "--shared-dir"]).arg(share.path());
        command.arg("--socket-path").arg(elsewhere.path().join("socket"));
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let peer = Peer { child, share, elsewhere };
        // The name is there a little before anybody listens, and trying by connecting would use up its one connection.
        wait_until("virtiofsd listens", || {
            let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
            let socket = peer.socket().display().to_string();
            let listening = |line: &&str| line.ends_with(&socket) && line.contains(" 00010000 ");
            sockets.lines().any(|line| listening(&line))
        });
        peer
    }

    fn socket(&self) -> PathBuf {
        self.elsewhere.path().join("socket")
    }

    fn connect(&self, options: LinkOptions) -> RawConnection {
        let raw = RawConnection::connect(self.socket(), options).unwrap().with_patience(FINITE);
        raw.init(LINUX_FLAGS).unwrap();
        raw
    }

    /// Stops the server, each of its threads.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("virtiofsd stops", || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
                status.contains("State:\tT")
            })
        });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + FINITE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} in finite time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn program() -> PathBuf {
    let program = std::env::var_os("ASHORE_VIRTIOFSD").map_or_else(
        || {
            let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from);
            cache.join("ashore/peers/bin/virtiofsd")
        },
        PathBuf::from,
    );
    assert!(
        program.exists(),
        "{} is not there: run `cargo xtask setup --peers`, or `cargo xtask test peers`, which does; or set ASHORE_VIRTIOFSD to a virtiofsd",
        program.display()
    );
    program
}

#[test]
fn every_kind_of_call_does_what_it_says() {
    let peer = Peer::start();
    let raw = peer.connect(LinkOptions::default());
    let directory = NodeId(raw.mkdir(NodeId::ROOT, b"d").unwrap().nodeid);
    let (entry, handle) = raw.create(directory, b"f").unwrap();
    let file = NodeId(entry.nodeid);

    let pattern: Vec<u8> = (0..Pages::BYTES * 3).map(|at| (at / 7) as u8).collect();
    for (page, bytes) in pattern.chunks(Pages::BYTES).enumerate() {
        raw.link().write_page(page as u32, 0, bytes);
    }
    let from = Pages { first: 0, bytes: 10_000 };
    assert_eq!(raw.write(file, handle, 0, from).unwrap(), 10_000);
    assert_eq!(raw.write_bytes(file, handle, 10_000, b"tail").unwrap(), 4);
    raw.fsync(file, handle).unwrap();
    assert_eq!(raw.getattr(file).unwrap().attr.size, 10_004);
    let there = std::fs::read(peer.share.path().join("d/f")).unwrap();
    assert_eq!(there, [&pattern[..10_000], b"tail"].concat());

    let into = Pages { first: 8, bytes: 5 * Pages::BYTES };
    assert_eq!(
        raw.read(file, handle, 0, into).unwrap(),
        10_004,
        "the end of the file is the end of the answer"
    );
    let mut back = vec![0; 10_004];
    for (page, bytes) in back.chunks_mut(Pages::BYTES).enumerate() {
        raw.link().read_page(8 + page as u32, 0, bytes);
    }
    assert_eq!(back, there);
    assert_eq!(raw.read_bytes(file, handle, 9_998, 100).unwrap(), &there[9_998..]);
    raw.release(file, handle).unwrap();

    let handle = raw.opendir(directory).unwrap();
    let names = raw.readdirplus(directory, handle, 0).unwrap();
    let listed = listed_names(&names, true).map(|name| name.unwrap().name.to_vec());
    assert!(listed.into_iter().any(|name| name == b"f"));
    raw.releasedir(directory, handle).unwrap();

    raw.syncfs().unwrap();
    raw.unlink(directory, b"f").unwrap();
    assert_eq!(raw.lookup(directory, b"f").unwrap_err(), RawError::Errno(Errno::ENOENT));
    raw.forget(&[(file, 2)]).unwrap();
    raw.rmdir(NodeId::ROOT, b"d").unwrap();
    raw.destroy().unwrap();
}

#[test]
fn the_process_behind_the_socket_is_known() {
    let peer = Peer::start();
    let link = VhostUserLink::connect(peer.socket(), LinkOptions::default()).unwrap();
    assert_eq!(link.server_process().unwrap(), Pid::from_child(&peer.child));
    assert_eq!(link.request_queues(), 1);
}

#[test]
fn many_requests_are_answered_however_we_look_for_them() {
    for poll_us in [0, 5, 1000] {
        let peer = Peer::start();
        std::fs::write(peer.share.path().join("f"), [7; 4096]).unwrap();
        let raw = peer.connect(LinkOptions { poll_us, ..LinkOptions::default() });
        let file = NodeId(raw.lookup(NodeId::ROOT, b"f").unwrap().nodeid);
        // More at once than the ring has room for.
        let mut sent = Vec::new();
        let answered = raw.stream(&mut sent, 700, 3000, || Call::getattr(file)).unwrap();
        assert!((3000..3700).contains(&answered), "{answered}");
        assert_eq!(sent.len(), 700, "as many are on their way");
        for sent in sent {
            assert!(!raw.wait(sent).unwrap().body.is_empty());
        }
    }
}

/// Aim: no answer goes to another's request. Method: four threads with a file and pages each, random requests of
/// random sizes, several on their way; what is read must be what the thread has written.
#[test]
fn four_threads_keep_their_requests_apart() {
    let peer = Peer::start();
    let raw = Arc::new(peer.connect(LinkOptions { request_queues: 4, ..LinkOptions::default() }));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let raw = Arc::clone(&raw);
            scope.spawn(move || random_requests(&raw, thread, 3000));
        }
    });
    raw.syncfs().unwrap();
}

fn random_requests(raw: &RawConnection, thread: u32, rounds: u32) {
    const PAGES: u32 = 64;
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ u64::from(thread + 1);
    let mut below = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let (entry, handle) = raw.create(NodeId::ROOT, format!("f{thread}").as_bytes()).unwrap();
    let (file, first) = (NodeId(entry.nodeid), thread * 2 * PAGES);
    let mut contents = vec![0u8; PAGES as usize * Pages::BYTES];
    for _ in 0..rounds {
        let value = below(255) as u8 + 1;
        let page = below(u64::from(PAGES)) as u32;
        let bytes = 1 + below((u64::from(PAGES - page)) * Pages::BYTES as u64) as usize;
        let begin = page as usize * Pages::BYTES;
        contents[begin..begin + bytes].fill(value);
        for (at, part) in contents[begin..begin + bytes].chunks(Pages::BYTES).enumerate() {
            raw.link().write_page(first + page + at as u32, 0, part);
        }
        let from = Pages { first: first + page, bytes };
        let write = raw.send(Call::write(file, handle, begin as u64, from)).unwrap();
        let others = [raw.send(Call::getattr(file)).unwrap(), raw.send(Call::empty()).unwrap()];
        raw.wait(write).unwrap();
        let into = Pages { first: first + PAGES, bytes };
        assert_eq!(raw.read(file, handle, begin as u64, into).unwrap(), bytes);
        let mut page_back = vec![0; Pages::BYTES];
        let at = below(bytes as u64) as usize;
        raw.link().read_page(first + PAGES + (at / Pages::BYTES) as u32, 0, &mut page_back);
        assert_eq!(page_back[at % Pages::BYTES], value);
        for other in others {
            assert!(matches!(raw.wait(other), Ok(_) | Err(RawError::Errno(_))));
        }
    }
}

/// Aim: kill -9 leaves nobody waiting. Method: the server is stopped, so that the requests are on their way when it dies.
#[test]
fn requests_in_flight_end_when_the_server_is_killed() {
    let peer = Peer::start();
    let raw = peer.connect(LinkOptions::default());
    peer.stop();
    let sent: Vec<_> = (0..300).map(|_| raw.send(Call::syncfs(NodeId::ROOT)).unwrap()).collect();
    let begun = Instant::now();
    peer.signal(Signal::KILL);
    for sent in sent {
        assert_eq!(raw.wait(sent).unwrap_err(), RawError::Closed);
    }
    assert_eq!(raw.getattr(NodeId::ROOT).unwrap_err(), RawError::Closed);
    assert!(begun.elapsed() < FINITE / 2);
}

#[test]
fn a_stopped_server_is_waited_for_as_long_as_asked_and_may_go_on() {
    let peer = Peer::start();
    let raw = peer.connect(LinkOptions::default()).with_patience(Duration::from_millis(100));
    raw.getattr(NodeId::ROOT).unwrap();
    peer.stop();
    let patience = Duration::from_millis(100);
    assert_eq!(raw.getattr(NodeId::ROOT).unwrap_err(), RawError::NoAnswer(patience));
    peer.signal(Signal::CONT);
    let raw = raw.with_patience(FINITE);
    assert!(raw.getattr(NodeId::ROOT).is_ok(), "the late answer disturbs nobody");
}

#[test]
fn a_server_that_is_stopped_or_busy_is_given_up_when_connecting() {
    let peer = Peer::start();
    let options = LinkOptions { patience: Duration::from_millis(200), ..LinkOptions::default() };
    peer.stop();
    let stopped = VhostUserLink::connect(peer.socket(), options).err().unwrap();
    assert!(matches!(stopped, ConnectError::Silent { .. }), "{stopped}");
    peer.signal(Signal::CONT);
}

#[test]
fn closing_while_the_server_is_stopped_takes_finite_time() {
    let peer = Peer::start();
    let options = LinkOptions { patience: Duration::from_millis(200), ..LinkOptions::default() };
    let raw = peer.connect(options);
    peer.stop();
    let _sent = raw.send(Call::getattr(NodeId::ROOT)).unwrap();
    let begun = Instant::now();
    drop(raw);
    assert!(begun.elapsed() < FINITE / 2);
}

/// A link that is closed takes its queues back. virtiofsd looks for ever for requests that it had not taken by then.
#[test]
fn a_link_that_is_closed_behind_many_requests_leaves_none_that_was_not_taken() {
    for _ in 0..20 {
        let mut peer = Peer::start();
        let raw = peer.connect(LinkOptions::default());
        let (entry, _) = raw.create(NodeId::ROOT, b"f").unwrap();
        let file = NodeId(entry.nodeid);
        for _ in 0..300 {
            drop(raw.send(Call::getattr(file)).unwrap());
            raw.forget(&[(NodeId(99), 1)]).unwrap();
        }
        drop(raw);
        wait_until("virtiofsd ends", || peer.child.try_wait().unwrap().is_some());
    }
}
