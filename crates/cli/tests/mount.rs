//! `ashore mount` as its user meets it. Needs root and /dev/fuse, and fusermount3 for the one who is not root.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use running::Running;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const ASHORE: &str = env!("CARGO_BIN_EXE_ashore");
const PATIENCE: Duration = Duration::from_secs(20);
/// In the environment: requests of every mount come through io_uring, or it fails.
const IO_URING_VARIABLE: &str = "ASHORE_TEST_IO_URING";
/// nobody, as on Debian.
const NOBODY: u32 = 65534;

/// A directory, a mount point, and nothing left of a mount when the test ends, however it does.
struct Place {
    source: TempDir,
    point: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { source: tempfile::tempdir_in("/var/tmp").unwrap(), point: tempfile::tempdir().unwrap() }
    }

    fn for_everybody() -> Place {
        let place = Place::new();
        for folder in [place.source.path(), place.point.path()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
            std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        place
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(ASHORE);
        command.arg("mount");
        if std::env::var_os(IO_URING_VARIABLE).is_some() {
            command.args(["--io-uring", "always"]);
        }
        command.args(more).args([self.source.path(), self.point.path()]).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, more: &[&str]) -> Running {
        Running::start(self.command(more))
    }

    /// Type and options of the mount, if there is one.
    fn entry(&self) -> Option<(String, String)> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = self.point.path().to_str().unwrap();
        let mut lines = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.find(|words| words[1] == point).map(|words| (words[2].to_owned(), words[3].to_owned()))
    }

    /// What is mounted.
    fn device(&self) -> String {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = self.point.path().to_str().unwrap();
        let line = table.lines().find(|line| line.split(' ').nth(1) == Some(point)).unwrap();
        line.split(' ').next().unwrap().to_owned()
    }

    fn here(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }

    fn there(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.entry().is_some() {
            let _ = unmount(self.point.path(), UnmountFlags::DETACH);
        }
    }
}

/// Whether a loop device is one of ours, in use.
fn is_in_use(device: &str) -> bool {
    let file = format!("/sys/block/{}/loop/backing_file", device.trim_start_matches("/dev/"));
    fs::read_to_string(file).is_ok_and(|file| file.contains("ashore-fuseblk"))
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn sigterm_unmounts_and_all_is_there() {
    let place = Place::new();
    let running = place.start(&[]);
    assert!(running.ready.starts_with("ashore: ready, "), "{}", running.ready);
    fs::write(place.here("file"), b"kept").unwrap();
    assert_eq!(fs::read(place.there("file")).unwrap(), b"kept");
    running.signal(Signal::TERM);
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("all that was changed is stable"), "{said}");
    assert_eq!(place.entry(), None);
    assert_eq!(fs::read(place.there("file")).unwrap(), b"kept");
}

/// Aim: that a name is not there is remembered as long as asked and no longer, and what is made through the mount is there at once.
#[test]
fn missing_names_are_remembered_where_asked() {
    for (more, remembered) in [(&[][..], false), (&["--negative-timeout", "3600"], true)] {
        let place = Place::new();
        let running = place.start(more);
        for name in ["by-others", "by-us"] {
            assert!(!place.here(name).exists());
        }
        fs::write(place.there("by-others"), b"").unwrap();
        fs::write(place.here("by-us"), b"").unwrap();
        assert_eq!(place.here("by-others").exists(), !remembered);
        assert!(place.here("by-us").exists() && place.there("by-us").exists());
        running.signal(Signal::TERM);
        assert_eq!(running.ended().0, Some(0));
    }
}

#[test]
fn umount_ends_it_too() {
    let place = Place::new();
    let running = place.start(&[]);
    assert!(Command::new("umount").arg(place.point.path()).status().unwrap().success());
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_mount_in_use_is_gone_after_sigterm_and_its_users_get_errors_in_the_end() {
    let place = Place::new();
    let running = place.start(&["--busy-timeout", "1"]);
    let file = File::create_new(place.here("file")).unwrap();
    running.signal(Signal::TERM);
    eventually("the mount goes out of sight", || place.entry().is_none());
    file.write_all_at(b"in time", 0).unwrap();
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is in use"), "{said}");
    assert_eq!(fs::read(place.there("file")).unwrap(), b"in time");
    assert!(file.sync_all().is_err());
}

#[test]
fn what_the_kernel_holds_of_a_mount_in_use_arrives_before_its_end() {
    let place = Place::new();
    let running = place.start(&["--writeback", "--busy-timeout", "1"]);
    let file = File::create_new(place.here("file")).unwrap();
    file.write_all_at(b"in the kernel's cache", 0).unwrap();
    running.signal(Signal::TERM);
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(place.there("file")).unwrap(), b"in the kernel's cache");
}

/// Whichever way the kernel has it, it is said; and who asks for more than the kernel offers is told what to do.
#[test]
fn how_requests_come_is_said_and_io_uring_is_refused_where_the_kernel_does_not_offer_it() {
    let parameter = "/sys/module/fuse/parameters/enable_uring";
    let offered = fs::read_to_string(parameter).is_ok_and(|value| value.trim() == "Y");
    let place = Place::new();
    let mut command = Command::new(ASHORE);
    command.args(["mount", "--io-uring", if offered { "always" } else { "auto" }]);
    command.args([place.source.path(), place.point.path()]).env_remove("RUST_LOG").stdin(Stdio::null());
    let running = Running::start({
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    });
    fs::write(place.here("file"), b"either way").unwrap();
    running.signal(Signal::TERM);
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    let line = said.lines().find(|line| line.contains("FUSE over io_uring")).expect(&said);
    assert_eq!(line.contains("queues, one for each processor"), offered, "{line}");
    assert_eq!(line.contains("requests are read from /dev/fuse"), !offered, "{line}");
    if !offered {
        let mut refused = Command::new(ASHORE);
        refused.args(["mount", "--io-uring", "always"]).args([place.source.path(), place.point.path()]);
        let refused = refused.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(&format!("echo Y > {parameter}")), "{said}");
        assert_eq!(place.entry(), None);
    }
}

/// Through io_uring each queue's thread is tied to its processor.
#[test]
fn what_takes_long_is_not_tied_to_the_processor_of_the_queue_it_came_by() {
    let place = Place::new();
    let running = place.start(&[]);
    fs::File::create(place.here("file")).unwrap().sync_all().unwrap();
    let tasks = PathBuf::from(format!("/proc/{}/task", running.id()));
    let allowed = |thread: &Path| {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap().to_owned()
    };
    let threads: Vec<_> = fs::read_dir(&tasks).unwrap().map(|thread| thread.unwrap().path()).collect();
    let name = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).unwrap();
    let ones = |prefix: &str| threads.iter().filter(|thread| name(thread).starts_with(prefix)).count();
    assert!(ones("ashore-sync") > 0, "the fsync was carried on by a thread of its own");
    let first = tasks.join(running.id().to_string());
    for thread in threads.iter().filter(|thread| name(thread).starts_with("ashore-sync")) {
        assert_eq!(allowed(thread), allowed(&first));
    }
}

/// A sync of a mount whose server is stopped, on its way.
fn sync_of_a_stopped_server(place: &Place, running: &Running) -> Child {
    fs::write(place.here("file"), b"before").unwrap();
    running.signal(Signal::STOP);
    let mut sync = Command::new("sync");
    sync.arg("--file-system").arg(place.point.path()).stderr(Stdio::null()).spawn().unwrap()
}

/// K5: nobody can say what the server would have answered. The kernel bounds this wait only if it is told to
/// (fs.fuse.default_request_timeout, 0 on most machines: for ever).
#[test]
fn a_sync_waits_for_a_server_that_is_stopped_and_then_has_its_answer() {
    let place = Place::new();
    let running = place.start(&[]);
    let mut sync = sync_of_a_stopped_server(&place, &running);
    std::thread::sleep(Duration::from_millis(500));
    assert!(sync.try_wait().unwrap().is_none(), "a sync that nobody answered has returned");
    running.signal(Signal::CONT);
    assert!(sync.wait().unwrap().success());
    assert_eq!(fs::read(place.there("file")).unwrap(), b"before");
}

#[test]
fn a_sync_under_way_fails_when_the_server_is_killed() {
    let place = Place::new();
    let running = place.start(&[]);
    let mut sync = sync_of_a_stopped_server(&place, &running);
    std::thread::sleep(Duration::from_millis(200));
    running.signal(Signal::KILL);
    assert!(!sync.wait().unwrap().success(), "success of a sync that nobody has carried out");
}

#[test]
fn kill_leaves_a_mount_that_the_next_one_names_or_takes_away_and_no_loop_device() {
    let place = Place::new();
    let running = place.start(&[]);
    fs::write(place.here("file"), b"acknowledged").unwrap();
    running.signal(Signal::KILL);
    assert_eq!(running.ended().0, None);
    // The kernel lets go of a ring a moment after the process is gone: who asks in between is told that the connection was ended.
    let error = || fs::metadata(place.point.path()).unwrap_err().raw_os_error();
    assert!(matches!(error(), Some(103 | 107)));
    eventually("the mount is known to be dead", || error() == Some(107));
    let refused = place.command(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("umount -l {}", place.point.path().display())), "{said}");
    let running = place.start(&["--recover"]);
    assert_eq!(fs::read(place.here("file")).unwrap(), b"acknowledged");
    running.signal(Signal::INT);
    assert_eq!(running.ended().0, Some(0));
    assert_eq!(place.entry(), None);
}

#[test]
fn sync_is_asked_for_where_the_kernel_passes_it_on_and_the_loop_device_goes_away() {
    let place = Place::new();
    let running = place.start(&["--require-durable"]);
    let device = place.device();
    assert_eq!(place.entry().unwrap().0, "fuseblk.ashore");
    assert!(is_in_use(&device), "{device}");
    running.signal(Signal::KILL);
    let _ = running.ended();
    unmount(place.point.path(), UnmountFlags::DETACH).unwrap();
    eventually("the loop device goes with the mount", || !is_in_use(&device));
}

#[test]
fn a_mount_that_sync_does_not_reach_says_so_and_is_refused_where_that_matters() {
    let place = Place::new();
    let running = place.start(&["--fsync-only"]);
    assert_eq!(place.entry().unwrap().0, "fuse.ashore");
    running.signal(Signal::TERM);
    let (_, said) = running.ended();
    assert!(said.contains("sync(2) does not reach us"), "{said}");

    let place = Place::for_everybody();
    let mut command = place.command(&["--require-durable"]);
    let refused = command.uid(NOBODY).gid(NOBODY).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("only fsync(2) would make changes stable"), "{said}");
}

/// In a mount namespace of its own, with a /dev/fuse that is open to everybody, as it is wherever udev runs.
#[test]
fn who_is_not_root_mounts_with_fusermount3() {
    let place = Place::for_everybody();
    let node = place.there(".device");
    let script = r#"set -e
        mknod -m 666 "$NODE" c 10 229; mount --bind "$NODE" /dev/fuse; rm "$NODE"
        setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec '
            "$ASHORE" mount --background "$SOURCE" "$POINT"
            grep -q "$POINT fuse.ashore" /proc/mounts
            echo mine > "$POINT/file"; cat "$POINT/file"
            fusermount3 -u "$POINT"'
        ! cat "$POINT/file""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .env_remove("RUST_LOG")
        .env("ASHORE", ASHORE)
        .env("NODE", node);
    command.env("SOURCE", place.source.path()).env("POINT", place.point.path());
    let done = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "mine\n", "{said}");
    assert!(said.contains("sync(2) does not reach us"), "{said}");
    assert_eq!(fs::read(place.there("file")).unwrap(), b"mine\n");
}

#[test]
fn mount_runs_it_by_the_name_of_a_helper_and_it_goes_on_in_the_background() {
    let place = Place::new();
    let helper = place.point.path().with_extension("bin");
    fs::create_dir(&helper).unwrap();
    let program = helper.join("mount.ashore");
    symlink(ASHORE, &program).unwrap();
    let mut command = Command::new(&program);
    command.args([place.source.path(), place.point.path()]).args(["-n", "-o", "rw,noexec,nofail"]);
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    fs::remove_dir_all(&helper).unwrap();
    assert!(done.success());
    assert!(place.entry().unwrap().1.contains("noexec"));
    fs::write(place.here("file"), b"x").unwrap();
    assert!(Command::new("umount").arg(place.point.path()).status().unwrap().success());
    assert_eq!(fs::read(place.there("file")).unwrap(), b"x");
}

#[test]
fn wrong_use_is_named_in_one_sentence() {
    let place = Place::new();
    let fails = |source: &Path, point: &Path, more: &[&str], words: &str| {
        let output = Command::new(ASHORE).arg("mount").args(more).args([source, point]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{said}");
    };
    let (source, point) = (place.source.path(), place.point.path());
    fails(source, &point.join("missing"), &[], "mkdir -p");
    fails(&source.join("missing"), point, &[], "check that it exists");
    fails(source, source, &[], "a mount cannot serve itself");
    fails(source, point, &["-o", "writeback,fsync_only"], "--writeback needs sync(2) to reach us");
    fails(source, point, &["-o", "sparkle"], "there is no such option");
}

/// A server in a process of its own, and the mount of what it serves.
struct Shared {
    place: Place,
    server: Child,
    socket: PathBuf,
    /// Of the socket, and of what servers leave beside it.
    _folder: TempDir,
}

impl Shared {
    fn by_ashore(more: &[&str]) -> Shared {
        Shared::by(Command::new(ASHORE).arg("serve").args(more))
    }

    fn by(server: &mut Command) -> Shared {
        let place = Place::new();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        server.arg("--shared-dir").arg(place.source.path()).arg("--socket-path").arg(&socket);
        let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Listening, and not only there: made with another name or listened on later, according to the server.
        eventually("the server listens", || is_listened_on(&socket));
        Shared { place, server, socket, _folder: folder }
    }

    fn mount(&self, more: &[&str]) -> Running {
        let mut command = Command::new(ASHORE);
        command.args(["mount", "--socket"]).arg(&self.socket).arg(self.place.point.path()).args(more);
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(command)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The kernel's list of sockets says who listens, without our connecting: a server takes one client only.
fn is_listened_on(socket: &Path) -> bool {
    let list = fs::read_to_string("/proc/net/unix").unwrap();
    let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.any(|words| words.get(7) == socket.to_str().as_ref() && words[3] == "00010000")
}

fn use_share(shared: &Shared) {
    let place = &shared.place;
    let content: Vec<u8> = (0..3_000_017u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    fs::write(place.here("large"), &content).unwrap();
    assert!(fs::read(place.there("large")).unwrap() == content);
    fs::write(place.there("from below"), &content).unwrap();
    assert!(fs::read(place.here("from below")).unwrap() == content);
    fs::create_dir(place.here("folder")).unwrap();
    for number in 0..500 {
        fs::write(place.here(&format!("folder/{number}")), number.to_string()).unwrap();
    }
    assert_eq!(fs::read_dir(place.here("folder")).unwrap().count(), 500);
    fs::rename(place.here("folder/7"), place.here("seven")).unwrap();
    assert_eq!(fs::read(place.there("seven")).unwrap(), b"7");
    symlink("seven", place.here("link")).unwrap();
    assert_eq!(fs::read(place.here("link")).unwrap(), b"7");
    let file = File::options().write(true).open(place.here("seven")).unwrap();
    file.write_all_at(b"eight", 0).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    assert_eq!(fs::read(place.there("seven")).unwrap(), b"eight");
    fs::remove_dir_all(place.here("folder")).unwrap();
    assert!(!place.there("folder").exists());
    assert_eq!(fs::metadata(place.here("missing")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

fn a_share_is_used_and_unmounted(shared: &Shared, more: &[&str]) {
    let running = shared.mount(more);
    use_share(shared);
    running.signal(Signal::TERM);
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("ERROR"), "{said}");
    assert_eq!(shared.place.entry(), None);
}

#[test]
fn the_share_of_a_server_is_mounted_through_its_socket() {
    a_share_is_used_and_unmounted(&Shared::by_ashore(&["--num-request-queues", "2"]), &[]);
    a_share_is_used_and_unmounted(&Shared::by_ashore(&["--writeback"]), &[]);
    a_share_is_used_and_unmounted(&Shared::by_ashore(&[]), &["--fsync-only"]);
}

#[test]
fn the_share_of_a_server_is_mounted_through_its_socket_as_it_is() {
    a_share_is_used_and_unmounted(&Shared::by_ashore(&["--num-request-queues", "2"]), &["--relay"]);
    a_share_is_used_and_unmounted(&Shared::by_ashore(&["--writeback"]), &["--relay", "--writeback"]);
}

#[test]
fn who_waits_for_a_lock_through_a_relay_can_be_interrupted() {
    let shared = Shared::by_ashore(&["--flock"]);
    let running = shared.mount(&["--relay"]);
    let held = File::create_new(shared.place.there("file")).unwrap();
    held.lock().unwrap();
    let mut waiting = Command::new("flock").arg(shared.place.here("file")).arg("true").spawn().unwrap();
    let (inode, status) = (held.metadata().unwrap().ino(), format!("/proc/{}/status", waiting.id()));
    eventually("it waits for the lock", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|lock| lock.contains("-> FLOCK") && lock.contains(&format!(":{inode} ")))
    });
    kill_process(Pid::from_child(&waiting), Signal::KILL).unwrap();
    eventually("it has ended", || fs::read_to_string(&status).unwrap().contains("zombie"));
    waiting.wait().unwrap();
    drop(held);
    running.signal(Signal::TERM);
    assert_eq!(running.ended().0, Some(0));
}

#[test]
fn what_is_written_waits_in_the_cache_of_the_client_until_somebody_syncs() {
    let shared = Shared::by_ashore(&["--writeback"]);
    let running = shared.mount(&["-o", "allow_other"]);
    let (here, there) = (shared.place.here("file"), shared.place.there("file"));
    let file = File::create_new(&here).unwrap();
    file.write_all_at(b"not sent", 0).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().len(), 0, "it waits on this side");
    assert_eq!(fs::read(&here).unwrap(), b"not sent", "where it is known");
    rustix::fs::syncfs(&file).unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"not sent");
    file.write_all_at(b"and sent", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"and sent");
    file.write_all_at(b"at close", 0).unwrap();
    drop(file);
    assert_eq!(fs::read(&there).unwrap(), b"at close");
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(shared.place.here(""), mode).unwrap();
    let by_nobody = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "touch"])
        .arg(shared.place.here("nobody's"))
        .status();
    assert!(by_nobody.unwrap().success());
    assert_eq!(fs::metadata(shared.place.there("nobody's")).unwrap().uid(), NOBODY);
    running.signal(Signal::TERM);
    assert_eq!(running.ended().0, Some(0));
}

#[test]
fn a_server_that_dies_takes_the_mount_with_it_and_its_users_get_errors() {
    for relay in [&[][..], &["--relay"]] {
        a_server_dies(relay);
    }
}

fn a_server_dies(more: &[&str]) {
    let mut shared = Shared::by_ashore(&[]);
    let running = shared.mount(more);
    let file = File::create_new(shared.place.here("file")).unwrap();
    shared.server.kill().unwrap();
    let (_, said) = running.ended();
    assert!(said.contains("the server has gone"), "{said}");
    assert!(file.sync_all().is_err());
    assert_eq!(shared.place.entry(), None);
}

mod with_virtiofsd {
    use super::*;

    #[test]
    fn its_share_is_mounted_through_its_socket() {
        let home = std::env::var_os("HOME").unwrap();
        let program = Path::new(&home).join(".cache/ashore/peers/bin/virtiofsd");
        assert!(program.exists(), "build it first: cargo xtask setup --peers");
        let mut server = Command::new(&program);
        a_share_is_used_and_unmounted(
            &Shared::by(server.args(["--sandbox", "none", "--seccomp", "none"])),
            &[],
        );
        let mut server = Command::new(&program);
        a_share_is_used_and_unmounted(
            &Shared::by(server.args(["--sandbox", "none", "--seccomp", "none"])),
            &["--relay"],
        );
    }
}
