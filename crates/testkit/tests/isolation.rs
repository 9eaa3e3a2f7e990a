//! What a server that was taken over can still get at. The program `compromised` isolates itself as `ashore serve` does.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// It ends by SIGSYS.
const FILTERED: &str = "ended by signal 31";

/// Needs a seccomp filter or a namespace to be refused.
const BEYOND_FILES: [&str; 3] = ["network", "kill", "program"];
const FILES: [&str; 3] = ["secret", "climb", "root"];

struct Attempts {
    share: tempfile::TempDir,
    listener: TcpListener,
    /// Run by this program, if any.
    by: Vec<&'static str>,
}

impl Attempts {
    fn by(by: &[&'static str]) -> Attempts {
        assert!(
            rustix::process::geteuid().is_root(),
            "run this test as root: it isolates servers of root and of others"
        );
        let share = tempfile::tempdir().unwrap();
        fs::set_permissions(share.path(), PermissionsExt::from_mode(0o777)).unwrap();
        // By another process: a file that this one had open for writing could not be started while a child of another test
        // has it open still.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_compromised")).arg(share.path()).status();
        assert!(copied.unwrap().success());
        Attempts { share, listener: TcpListener::bind("127.0.0.1:0").unwrap(), by: by.into() }
    }

    fn said(&self, sandbox: &str, seccomp: &str, attempt: &str) -> String {
        let mut words = self.by.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        words.push(self.share.path().join("compromised").into());
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args([sandbox, seccomp])
            .arg(self.share.path())
            .arg(self.listener.local_addr().unwrap().port().to_string())
            .arg(attempt)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(!said.is_empty(), "{attempt}: {}", String::from_utf8_lossy(&output.stderr));
        said
    }

    fn all_refused(&self, sandbox: &str, attempts: &[&str]) {
        for attempt in attempts {
            let said = self.said(sandbox, "none", attempt);
            assert!(said.starts_with("refused: "), "{sandbox}, {attempt}: {said}");
        }
    }
}

#[test]
fn without_any_isolation_each_attempt_succeeds() {
    let attempts = Attempts::by(&[]);
    for attempt in ["secret", "network", "processes", "kill", "program"] {
        let said = attempts.said("none", "none", attempt);
        assert!(said.starts_with("got "), "{attempt}: {said}");
    }
}

#[test]
fn namespaces_alone_keep_files_network_processes_and_mounts_away() {
    let attempts = Attempts::by(&[]);
    attempts.all_refused("namespace", &FILES);
    attempts.all_refused("namespace", &BEYOND_FILES);
    attempts.all_refused("namespace", &["processes", "mount"]);
}

#[test]
fn a_new_root_alone_keeps_files_and_programs_away() {
    let attempts = Attempts::by(&[]);
    attempts.all_refused("chroot", &FILES);
    attempts.all_refused("chroot", &["processes", "mount", "program"]);
}

#[test]
fn of_somebody_who_is_not_root_namespaces_are_as_good() {
    let attempts = Attempts::by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    attempts.all_refused("namespace", &FILES);
    attempts.all_refused("namespace", &BEYOND_FILES);
    attempts.all_refused("namespace", &["processes", "mount"]);
}

#[test]
fn the_filter_ends_a_server_that_reaches_beyond_files_whatever_it_sees() {
    let attempts = Attempts::by(&[]);
    for attempt in BEYOND_FILES.iter().chain(&["mount"]) {
        // Without a sandbox nobody stays outside to tell: it just ends.
        assert_eq!(attempts.said("namespace", "kill", attempt), FILTERED, "{attempt}");
        assert_eq!(attempts.said("chroot", "kill", attempt), FILTERED, "{attempt}");
    }
}
