//! `ashore serve` as its user meets it: what it says when it is ready, when it ends, and when it was started wrongly.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ashore_vhost_user::driver::{LINUX_FLAGS, LinkOptions, RawConnection};
use ashore_wire::NodeId;
use running::Running;
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity};

const PATIENCE: Duration = Duration::from_secs(20);

fn ashore(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashore"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn serve(directory: &Path, socket: &Path, more: &[&str]) -> Command {
    let paths = [directory.to_str().unwrap(), socket.to_str().unwrap()];
    let mut command = ashore(&["serve", "--shared-dir", paths[0], "--socket-path", paths[1]]);
    command.args(more);
    command
}

/// Wrong use: exit code 1, nothing on standard output, and one sentence that names what is wrong and what to do.
fn fails_with(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty(), "nothing was ready");
    let said: Vec<_> = text.lines().filter(|line| line.starts_with("ashore: ")).collect();
    assert_eq!(said.len(), 1, "one sentence: {text}");
    for word in words {
        assert!(said[0].contains(word), "{:?} does not say {word:?}", said[0]);
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn one_line_says_that_it_is_ready_and_how_qemu_gets_there() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    let server =
        Running::start(serve(share.path(), &socket, &["--num-request-queues", "3", "--tag", "data"]));
    assert!(server.ready.ends_with('\n') && server.ready.lines().count() == 1);
    let path = format!("path={}", socket.display());
    for part in
        ["memory-backend-memfd", "share=on", &path, "tag=data,num-request-queues=3", "mount -t virtiofs data"]
    {
        assert!(server.ready.contains(part), "{:?} lacks {part:?}", server.ready);
    }
    assert!(socket.exists());
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600, "only its owner may connect");
}

#[test]
fn sigterm_and_sigint_end_it_after_a_last_sync() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let share = tempfile::tempdir().unwrap();
        let socket = share.path().join("socket");
        let server = Running::start(serve(share.path(), &socket, &[]));
        server.signal(signal);
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("all that was changed is stable"), "{log}");
        assert!(!socket.exists(), "the socket is removed");
    }
}

/// A disk that never answers: a file system that is frozen, with a write to it under way. Threads that wait for it cannot
/// be ended, not even by the kernel, so it is thawed before the exit code is looked at.
#[test]
fn sigterm_with_a_stuck_disk_says_in_time_that_the_last_sync_did_not_end() {
    let place = tempfile::tempdir().unwrap();
    let (image, share) = (place.path().join("image"), place.path().join("share"));
    std::fs::create_dir(&share).unwrap();
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}, as root: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (image, share) = (image.to_str().unwrap(), share.to_str().unwrap());
    run("mkfs.ext4", &["-q", image]);
    run("mount", &["-o", "loop", image, share]);
    let socket = place.path().join("socket");
    let server = Running::start(serve(Path::new(share), &socket, &["--last-call-timeout", "1"]));
    std::fs::write(place.path().join("source"), [7; 10_000]).unwrap();
    run("fsfreeze", &["--freeze", share]);
    let source = place.path().join("source");
    let mut client = ashore(&["cp", "--socket", socket.to_str().unwrap(), source.to_str().unwrap(), ":file"]);
    let mut client = client.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let still_running = client.try_wait().unwrap().is_none();
    server.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(2500));
    run("fsfreeze", &["--unfreeze", share]);
    let _ = client.wait();
    let (code, log) = server.ended();
    run("umount", &[share]);
    assert!(still_running, "the client waits for the disk");
    assert!(log.contains("the last sync did not end within 1s"), "{log}");
    assert_eq!(code, Some(1), "{log}");
}

#[test]
fn a_directory_that_is_missing_is_named() {
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    let output = serve(&missing, &place.path().join("socket"), &[]).output().unwrap();
    fails_with(&output, &["missing", "check that it exists"]);
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_is_replaced() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    fails_with(&serve(share.path(), &socket, &[]).output().unwrap(), &["in use", "choose another"]);
    drop(listener);
    // A child that another test is just starting may hold a copy of the listener until it runs its own program.
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "somebody still listens");
    }
    let server = Running::start(serve(share.path(), &socket, &[]));
    assert!(server.ready.contains("ready"));
}

#[test]
fn a_socket_path_that_cannot_be_says_why() {
    let share = tempfile::tempdir().unwrap();
    let long = share.path().join("x".repeat(120));
    fails_with(&serve(share.path(), &long, &[]).output().unwrap(), &["107", "shorter"]);
    let nowhere = share.path().join("missing").join("socket");
    fails_with(&serve(share.path(), &nowhere, &[]).output().unwrap(), &["directory does not exist"]);
    let file = share.path().join("file");
    std::fs::write(&file, "not a socket").unwrap();
    fails_with(&serve(share.path(), &file, &[]).output().unwrap(), &["not a socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not a socket");
}

#[test]
fn without_permission_it_says_so() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root: it becomes another user");
    let share = tempfile::tempdir().unwrap();
    std::fs::set_permissions(share.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // The program lies below directories that only root may enter, perhaps.
    let program = share.path().join("ashore");
    // By another process: what one of this process's tests starts while a copy is open would hold it open for writing.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_ashore")).arg(&program).status().unwrap().success());
    let socket = share.path().join("socket");
    let mut command = Command::new(&program);
    command.args(["serve", "--shared-dir", share.path().to_str().unwrap()]);
    command.args(["--socket-path", socket.to_str().unwrap()]).uid(65534).gid(65534);
    fails_with(&command.output().unwrap(), &["no permission"]);
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let share = tempfile::tempdir().unwrap();
    let directory = share.path().to_str().unwrap();
    let output = ashore(&["serve", "--shared-dir", directory, "--fd", "0"]).output().unwrap();
    fails_with(&output, &["not a listening Unix socket"]);
    let output = ashore(&["serve", "--shared-dir", directory, "--fd", "4711"]).output().unwrap();
    fails_with(&output, &["not a listening Unix socket"]);
}

#[test]
fn what_linux_would_refuse_as_tag_is_refused_here() {
    let share = tempfile::tempdir().unwrap();
    let tag = "t".repeat(37);
    let socket = share.path().join("socket");
    fails_with(&serve(share.path(), &socket, &["--tag", &tag]).output().unwrap(), &["36 bytes"]);
    let output = serve(share.path(), &socket, &["--num-request-queues", "65"]).output().unwrap();
    fails_with(&output, &["65", "between 1 and 64"]);
}

/// Aim: the threads of request queues are where they were told to be, in the default sandbox, and nobody else is tied. Method: the
/// third of three queues begins the list of two again; a sync has a thread started by a queue that is tied.
#[test]
fn each_queue_stays_on_its_processor_and_others_go_where_they_may() {
    let all = sched_getaffinity(None).unwrap();
    let processors: Vec<_> = (0..CpuSet::MAX_CPU).filter(|number| all.is_set(*number)).collect();
    let [first, second, ..] = processors[..] else { panic!("two processors are needed, not {processors:?}") };
    let share = tempfile::tempdir_in("/var/tmp").unwrap();
    let socket = share.path().join("socket");
    let list = format!("{second},{first}");
    let arguments = ["--num-request-queues", "3", "--queue-affinity", &list];
    let server = Running::start(serve(share.path(), &socket, &arguments));
    let raw = RawConnection::connect(&socket, LinkOptions { request_queues: 3, ..LinkOptions::default() });
    let raw = raw.unwrap().with_patience(PATIENCE);
    raw.init(LINUX_FLAGS).unwrap();
    raw.mkdir(NodeId::ROOT, b"changed").unwrap();
    raw.syncfs().unwrap();
    let everywhere = allowed_list(Path::new("/proc/self/status"));
    let (first, second) = (first.to_string(), second.to_string());
    let expected = [
        ("ashore-q0", &everywhere),
        ("ashore-q1", &second),
        ("ashore-q2", &first),
        ("ashore-q3", &second),
        ("ashore-sync", &everywhere),
        ("ashore", &everywhere),
    ];
    let begun = Instant::now();
    loop {
        let there = threads_and_processors(server.id());
        let is_there = |(name, list): &(&str, &String)| {
            let mut of_name = there.iter().filter(|thread| thread.0 == *name).peekable();
            of_name.peek().is_some() && of_name.all(|thread| thread.1 == **list)
        };
        if expected.iter().all(is_there) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{there:?} is not {expected:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Names and processors of the threads of a process and of those that it started.
fn threads_and_processors(process: u32) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return found };
    for task in tasks.map(|task| task.unwrap().path()) {
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        found.push((name.trim().to_owned(), allowed_list(&task.join("status"))));
        let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
        let children = children.split_whitespace().map(|child| child.parse().unwrap());
        found.extend(children.flat_map(threads_and_processors));
    }
    found
}

/// Empty if the thread has gone meanwhile.
fn allowed_list(status: &Path) -> String {
    let status = std::fs::read_to_string(status).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_processor_that_cannot_be_had_is_named_before_anything_is_served() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    let output = serve(share.path(), &socket, &["--queue-affinity", "0,1023"]).output().unwrap();
    let may = allowed_list(Path::new("/proc/self/status"));
    fails_with(&output, &["--queue-affinity", "processor 1023", &format!("it may use {may}")]);
    assert!(!socket.exists());
    for bad in ["", "one", "3-2"] {
        let output = serve(share.path(), &socket, &["--queue-affinity", bad]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in
        [&["serve"][..], &["serve", "--shared-dir", "/tmp"], &["serve", "--no-such-option"], &["sreve"]]
    {
        let output = ashore(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn an_option_that_is_not_needed_is_taken_with_a_hint() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    let server = Running::start(serve(share.path(), &socket, &["--thread-pool-size", "8"]));
    server.signal(Signal::TERM);
    let (code, log) = server.ended();
    assert_eq!(code, Some(0));
    assert!(log.contains("--num-request-queues"), "{log}");
}

/// Only this program stands for something: what a share on tmpfs promises.
#[test]
fn a_share_that_cannot_be_stable_is_warned_of_or_refused() {
    let Ok(share) = tempfile::tempdir_in("/dev/shm") else {
        panic!("/dev/shm is needed: mount a tmpfs there");
    };
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("socket");
    let server = Running::start(serve(share.path(), &socket, &[]));
    server.signal(Signal::TERM);
    let (code, log) = server.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("WARN") && log.contains("keeps files in memory"), "{log}");
    let output = serve(share.path(), &socket, &["--require-durable"]).output().unwrap();
    fails_with(&output, &["keeps files in memory", "--require-durable"]);
}

#[test]
fn metrics_are_told_on_a_socket_to_http_and_to_top_and_go_with_the_server() {
    let (share, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let metrics = run.path().join("metrics");
    let target = format!("unix:{}", metrics.display());
    let server = Running::start(serve(
        share.path(),
        &run.path().join("socket"),
        &["--metrics", &target, "--slow-ms", "5000"],
    ));

    let mut stream = UnixStream::connect(&metrics).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ashore\r\n\r\n").unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.0 200 OK\r\n"), "{told}");
    assert!(told.contains("\nashore_unsynced_bytes 0\n"), "{told}");
    assert!(told.contains("\nashore_sync_round_members_bucket{le=\"+Inf\"} 0\n"), "{told}");

    let top = ashore(&["top", &target, "--interval", "0.1", "--count", "1"]).output().unwrap();
    let table = String::from_utf8_lossy(&top.stdout);
    assert!(top.status.success() && table.contains("unsynced 0 B"), "{table}");

    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    assert!(!metrics.exists(), "a socket of a server that is gone");
    let top = ashore(&["top", metrics.to_str().unwrap()]).output().unwrap();
    fails_with(&top, &["cannot be read", "--metrics"]);
}

#[test]
fn metrics_in_a_file_are_there_when_the_server_is_ready() {
    let (share, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = run.path().join("ashore.prom");
    let more = ["--metrics", file.to_str().unwrap()];
    let server = Running::start(serve(share.path(), &run.path().join("socket"), &more));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("# TYPE ashore_requests_total counter"), "{text}");
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));

    let nowhere =
        serve(share.path(), &run.path().join("socket"), &["--metrics", "/nowhere/at/all"]).output().unwrap();
    fails_with(&nowhere, &["--metrics", "/nowhere/at/all"]);
}

#[test]
fn an_id_map_is_shown_as_a_table_and_options_that_contradict_each_other_end_the_start() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    let start = |more: &[&str]| serve(share.path(), &socket, more).output().unwrap();
    let shown = start(&[
        "--print-id-map",
        "--translate-uid",
        "map:0:100000:65536",
        "--translate-gid",
        "squash-host:5:6:7",
    ]);
    assert!(shown.status.success());
    let expected = [
        "users",
        "  guest 0 to 65535                 host 100000 to 165535",
        "  guest any other                  host, the same",
        "  host 100000 to 165535            guest 0 to 65535",
        "  host any other                   guest, the same",
        "groups",
        "  guest any                        host, the same",
        "  host 5 to 11                     guest 6, all of them",
        "  host any other                   guest, the same",
    ];
    assert_eq!(String::from_utf8(shown.stdout).unwrap().lines().collect::<Vec<_>>(), expected);
    assert!(!socket.exists(), "it is not served");

    let twice = ["--translate-uid", "map:0:1:2", "--translate-uid", "forbid-guest:1:1"];
    fails_with(&start(&twice), &["--translate-uid", "guest id 1", "not overlap"]);
    fails_with(
        &start(&["--posix-acl=auto", "--map", "me"]),
        &["--posix-acl", "translated", "leave one of them out"],
    );
    fails_with(
        &start(&["--posix-acl", "--xattrmap", ":map::user.x.:"]),
        &["--posix-acl", "--xattrmap", ":ok:all:"],
    );
}

#[test]
fn each_request_is_traced_with_its_time_where_that_is_asked_for() {
    let share = tempfile::tempdir().unwrap();
    let socket = share.path().join("socket");
    for (level, traced) in [("trace", true), ("debug", false)] {
        let server = Running::start(serve(share.path(), &socket, &["--log-level", level]));
        let synced = ashore(&["sync", "--socket", socket.to_str().unwrap()]).output().unwrap();
        assert!(synced.status.success());
        let (_, log) = server.ended();
        let traces = log.lines().any(|line| line.contains("opcode=GETATTR") && line.contains("time.busy="));
        assert_eq!(traces, traced, "{log}");
        assert_eq!(log.contains("shared_by=1"), traced, "{log}");
    }
}
