//! Argument lists of programs that start virtiofsd: the server starts with each, and a client reads through it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

const ASHORE: &str = env!("CARGO_BIN_EXE_ashore");

/// The program under virtiofsd's name, and a share with a file in it.
fn world() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("share")).unwrap();
    std::fs::write(place.path().join("share/file"), "from the host").unwrap();
    symlink(ASHORE, place.path().join("virtiofsd")).unwrap();
    place
}

fn virtiofsd(place: &Path, arguments: &str) -> Command {
    let mut command = Command::new(place.join("virtiofsd"));
    let text = arguments.replace("SHARE", place.join("share").to_str().unwrap());
    command.args(text.replace("SOCKET", place.join("socket").to_str().unwrap()).split_whitespace());
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(mut command: Command) -> Server {
    let mut server = Server(command.stderr(Stdio::null()).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.starts_with("ashore: ready"), "{command:?}: {ready}");
    server
}

fn reads_through(place: &Path) {
    let read = Command::new(ASHORE)
        .arg("cat")
        .arg("--socket")
        .arg(place.join("socket"))
        .arg("file")
        .output()
        .unwrap();
    assert_eq!(read.stdout, b"from the host", "{}", String::from_utf8_lossy(&read.stderr));
}

fn refused(place: &Path, arguments: &str) -> String {
    let Output { status, stderr, .. } = virtiofsd(place, arguments).output().unwrap();
    assert_eq!(status.code(), Some(1), "{arguments}");
    String::from_utf8(stderr).unwrap()
}

/// With the listening socket as standard input: 0 stands for the number that the manager would pass.
#[test]
fn argument_lists_of_managers_that_pass_a_socket_start_it_and_it_serves() {
    for arguments in [
        // libvirt, before and after it knew of options that stand alone.
        "--fd=0 -o source=SHARE,cache=always,xattr,no_flock,no_posix_lock",
        "--fd=0 --shared-dir SHARE --cache auto --xattr --thread-pool-size=16 -d",
        // Proxmox VE.
        "--fd=0 --shared-dir=SHARE --xattr --announce-submounts --allow-direct-io --cache=auto --writeback --syslog",
        // Kata Containers, older and newer.
        "--fd=0 -o source=SHARE -o cache=auto --syslog -o no_posix_lock -f --thread-pool-size=1",
        "--syslog --cache=auto --shared-dir=SHARE --fd=0 --thread-pool-size=1 --announce-submounts",
        // Each way of isolation, and what belongs to it.
        "--fd=0 --shared-dir=SHARE --sandbox=none --seccomp=none",
        "--fd=0 -o source=SHARE,sandbox=chroot,modcaps=+sys_admin:-mknod --seccomp=trap",
        "--fd=0 --shared-dir=SHARE --sandbox=namespace --seccomp=kill --modcaps=-mknod --rlimit-nofile=1024",
        // What a manager adds that migrates.
        "--fd=0 --shared-dir=SHARE --migration-mode=file-handles --migration-on-error=guest-error",
        "--fd=0 --shared-dir=SHARE --migration-mode find-paths --migration-verify-handles --migration-confirm-paths",
        // Incus and LXD.
        "--fd=0 --cache=never -o source=SHARE",
    ] {
        let place = world();
        let listener = UnixListener::bind(place.path().join("socket")).unwrap();
        let mut command = virtiofsd(place.path(), arguments);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        let _server = started(command);
        reads_through(place.path());
    }
}

#[test]
fn a_second_server_is_kept_from_the_path_and_the_first_writes_its_number_beside_it() {
    let place = world();
    let server =
        started(virtiofsd(place.path(), "--socket-path SOCKET --shared-dir SHARE --socket-group 4711"));
    let number = std::fs::read_to_string(place.path().join("socket.pid")).unwrap();
    assert_eq!(number, format!("{}\n", server.0.id()));
    let said = refused(place.path(), "--socket-path SOCKET --shared-dir SHARE");
    assert!(said.contains("in use by another server"), "{said}");
    if rustix::process::geteuid().is_root() {
        let socket = place.path().join("socket").metadata().unwrap();
        assert_eq!((socket.gid(), socket.mode() & 0o777), (4711, 0o660));
    }
    reads_through(place.path());
}

#[test]
fn isolation_that_cannot_be_is_refused_as_are_unknown_options() {
    let place = world();
    for (more, word) in [
        ("--sandbox none --uid-map :0:1:1:", "need --sandbox namespace"),
        ("-o modcaps=mknod", "begins neither with + nor with -"),
        ("-o bogus", "-o bogus"),
        ("-o cache=sometimes", "never, metadata, auto, always"),
    ] {
        let said = refused(place.path(), &format!("--socket-path SOCKET --shared-dir SHARE {more}"));
        assert!(said.contains(word), "{more}: {said}");
    }
}

#[test]
fn capabilities_are_json_and_need_no_other_option() {
    let place = world();
    let output = virtiofsd(place.path(), "--print-capabilities").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success()
            && text.contains("\"separate-options\"")
            && text.contains("\"migrate-precopy\""),
        "{text}"
    );
    let version = virtiofsd(place.path(), "--version").output().unwrap();
    assert!(version.status.success() && version.stdout.starts_with(b"ashore "));
}
