//! `ashore serve` under a service manager: a socket that was made for it, and what it says of itself.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use running::Running;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(20);
/// How often a sign of life is wanted.
const INTERVAL: Duration = Duration::from_millis(500);

/// What a service manager has: a socket to be told on, and one that its service is to serve.
struct Manager {
    place: tempfile::TempDir,
    told: UnixDatagram,
}

impl Manager {
    fn new() -> Manager {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("share")).unwrap();
        std::fs::write(place.path().join("share/file"), "served").unwrap();
        let told = UnixDatagram::bind(place.path().join("notify")).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { place, told }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn start(&self, more: &[&str], environment: &[(&str, String)]) -> Running {
        let listener = UnixListener::bind(self.path("socket")).unwrap();
        let mut command = ashore();
        command.args(["serve", "--fd", "0", "--shared-dir"]).arg(self.path("share")).args(more);
        command.env("NOTIFY_SOCKET", self.path("notify")).envs(environment.iter().cloned());
        command.stdin(OwnedFd::from(listener));
        Running::start(command)
    }

    /// The next thing it is told.
    fn hears(&self) -> String {
        let mut words = [0; 4096];
        let length = self.told.recv(&mut words).expect("it is told something");
        String::from_utf8(words[..length].to_vec()).unwrap()
    }
}

fn ashore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashore"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn cat(socket: &Path) -> String {
    let output = ashore().args(["cat", "--socket"]).arg(socket).arg("file").output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// In every sandbox, with system calls filtered: the manager's socket is not to be seen from inside.
#[test]
fn a_service_manager_hears_that_it_is_ready_that_it_is_alive_and_that_it_ends() {
    for sandbox in ["namespace", "chroot", "none"] {
        let manager = Manager::new();
        let wanted = [("WATCHDOG_USEC", INTERVAL.as_micros().to_string())];
        let server = manager.start(&["--sandbox", sandbox, "--keep-listening"], &wanted);
        let first = std::iter::repeat_with(|| manager.hears()).find(|words| words != "WATCHDOG=1").unwrap();
        assert!(first.starts_with("READY=1\nSTATUS=sharing /"), "{sandbox}: {first:?}");
        for _ in 0..4 {
            let begun = Instant::now();
            assert_eq!(manager.hears(), "WATCHDOG=1", "{sandbox}");
            assert!(
                begun.elapsed() < INTERVAL,
                "{sandbox}: it would be taken for dead: {:?}",
                begun.elapsed()
            );
        }
        assert_eq!(cat(&manager.path("socket")), "served", "{sandbox}");
        server.signal(Signal::TERM);
        let last = std::iter::repeat_with(|| manager.hears()).find(|words| words != "WATCHDOG=1").unwrap();
        assert!(last.starts_with("STOPPING=1\n"), "{sandbox}: {last:?}");
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{sandbox}: {log}");
        assert!(manager.path("socket").exists(), "{sandbox}: it is the manager's socket, who listens on");
    }
}

#[test]
fn signs_of_life_are_given_where_they_are_wanted_of_this_process() {
    let another = [("WATCHDOG_USEC", "100000".to_owned()), ("WATCHDOG_PID", "1".to_owned())];
    for environment in [&another[..], &[]] {
        let manager = Manager::new();
        let server = manager.start(&[], environment);
        assert!(manager.hears().starts_with("READY=1\n"));
        manager.told.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(manager.told.recv(&mut [0; 64]).is_err(), "it is told something that it did not ask for");
        drop(server);
    }
}

#[test]
fn a_service_manager_that_is_gone_is_no_reason_not_to_serve() {
    let manager = Manager::new();
    let nowhere = [("NOTIFY_SOCKET", manager.path("nowhere").display().to_string())];
    let server = manager.start(&[], &nowhere);
    assert_eq!(cat(&manager.path("socket")), "served");
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("NOTIFY_SOCKET") && log.contains("nowhere"), "{log}");
}
