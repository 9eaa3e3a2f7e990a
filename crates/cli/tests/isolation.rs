//! A server that isolates itself, seen from outside.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod running;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use running::Running;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Chown, dac_override, fowner, fsetid, setgid, setuid, mknod and setfcap; and dac_read_search, for file handles.
const NEEDED: u64 = 0x8800_00db;
const BY_HANDLE: u64 = NEEDED | 1 << 2;
const NOBODY: u32 = 65534;

/// A share with a file in it, in a directory that everybody may enter, and the program, which anybody may start.
struct World {
    place: TempDir,
}

impl World {
    fn new() -> World {
        assert!(
            rustix::process::geteuid().is_root(),
            "run this test as root: servers of root and of others are looked at"
        );
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o777)).unwrap();
        fs::create_dir(place.path().join("share")).unwrap();
        fs::write(place.path().join("share/file"), "from the host").unwrap();
        // By another process: a file that this one had open for writing could not be started while a child of another test
        // has it open still.
        let copied =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_ashore")).arg(place.path().join("ashore")).status();
        assert!(copied.unwrap().success());
        World { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn serve(&self, more: &[&str]) -> Running {
        self.serve_by(Command::new(self.path("ashore")), more)
    }

    fn serve_by(&self, mut command: Command, more: &[&str]) -> Running {
        command.args(["serve", "--keep-listening", "--socket-path"]).arg(self.path("socket"));
        command.arg("--shared-dir").arg(self.path("share")).args(more).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(command)
    }

    /// A file goes in and comes out again.
    fn is_served(&self) {
        let client = |arguments: &[&str]| {
            let mut command = Command::new(self.path("ashore"));
            command.arg(arguments[0]).arg("--socket").arg(self.path("socket")).args(&arguments[1..]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        client(&["cp", self.path("share/file").to_str().unwrap(), ":copy"]);
        assert_eq!(client(&["cat", "copy"]), b"from the host");
        client(&["sync"]);
    }
}

/// Mounts below a directory that other namespaces get, as they do on hosts with systemd; unmounted with all below.
struct Mounts(PathBuf);

impl Mounts {
    fn shared(directory: &Path) -> Mounts {
        mount_bind(directory, directory).unwrap();
        mount_change(directory, MountPropagationFlags::SHARED).unwrap();
        Mounts(directory.to_owned())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// What the kernel says of the server: the child of the process that was started.
struct Server(PathBuf);

impl Server {
    fn of(running: &Running) -> Server {
        let process = PathBuf::from(format!("/proc/{}", running.id()));
        let children = fs::read_to_string(process.join(format!("task/{}/children", running.id()))).unwrap();
        let children: Vec<_> = children.split_whitespace().collect();
        assert_eq!(children.len(), 1, "one process stays outside, and one serves");
        Server(Path::new("/proc").join(children[0]))
    }

    fn process(&self) -> Pid {
        Pid::from_raw(self.0.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
    }

    fn field(&self, name: &str) -> String {
        let status = fs::read_to_string(self.0.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().to_owned()
    }

    fn capabilities(&self, which: &str) -> u64 {
        u64::from_str_radix(&self.field(which), 16).unwrap()
    }

    fn sees(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.join("root")).unwrap();
        names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn has_ended(&self) -> bool {
        let begun = Instant::now();
        while self.0.exists() {
            if begun.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn namespaces(process: &Path) -> Vec<PathBuf> {
    ["mnt", "pid", "net", "user"].map(|name| fs::read_link(process.join("ns").join(name)).unwrap()).into()
}

/// In the sandbox the working directory is another.
#[test]
fn a_share_and_a_socket_may_be_named_relatively() {
    let world = World::new();
    let mut command = Command::new(world.path("ashore"));
    command.args(["serve", "--shared-dir", "share", "--socket-path", "socket"]).current_dir(world.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = Running::start(command);
    let client = ashore_client::Client::connect(world.path("socket")).unwrap();
    assert_eq!(client.read("file").unwrap(), b"from the host");
    client.unmount().unwrap();
    assert_eq!(server.ended().0, Some(0));
}

#[test]
fn by_default_it_sees_its_share_alone_and_may_do_little() {
    let world = World::new();
    let running = world.serve(&[]);
    let server = Server::of(&running);
    assert_eq!(server.sees(), ["file"]);
    assert_eq!((server.field("Seccomp"), server.field("NoNewPrivs")), ("2".into(), "1".into()));
    let capabilities = ["CapEff", "CapPrm", "CapBnd"].map(|set| server.capabilities(set));
    assert_eq!(capabilities, [BY_HANDLE; 3]);
    assert_eq!(server.field("NSpid").split_whitespace().last(), Some("1"));
    let (own, others) = (namespaces(&server.0), namespaces(Path::new("/proc/self")));
    assert!((0..3).all(|kind| own[kind] != others[kind]), "{own:?}");
    world.is_served();

    running.signal(Signal::TERM);
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("SIGTERM: ending after a last sync"), "{said}");
    assert!(!world.path("socket").exists(), "the process outside takes it away");
}

#[test]
fn without_handles_it_may_do_even_less_and_what_is_mounted_below_later_is_served() {
    let world = World::new();
    fs::create_dir(world.path("share/below")).unwrap();
    let _shared = Mounts::shared(&world.path("share"));
    let running = world.serve(&["--inode-file-handles=never", "--modcaps=-mknod"]);
    let server = Server::of(&running);
    assert_eq!(server.capabilities("CapEff"), NEEDED & !(1 << 27));
    world.is_served();
    let below = world.path("share/below");
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(below.join("later"), "mounted").unwrap();
    let read = Command::new(world.path("ashore"))
        .args(["cat", "--socket"])
        .arg(world.path("socket"))
        .arg("below/later")
        .output()
        .unwrap();
    assert_eq!(read.stdout, b"mounted", "{}", String::from_utf8_lossy(&read.stderr));
}

#[test]
fn in_a_new_root_alone_it_sees_its_share_too() {
    let world = World::new();
    let running = world.serve(&["--sandbox=chroot"]);
    let server = Server::of(&running);
    assert_eq!(server.sees(), ["file"]);
    assert_eq!(namespaces(&server.0), namespaces(Path::new("/proc/self")));
    world.is_served();
}

#[test]
fn somebody_who_is_not_root_has_the_same_sandbox_and_owns_what_is_made() {
    let world = World::new();
    chown(world.path("share"), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    let nobody = NOBODY.to_string();
    command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]).arg(world.path("ashore"));
    let running = world.serve_by(command, &[]);
    let server = Server::of(&running);
    assert_eq!(server.sees(), ["file"]);
    assert_ne!(namespaces(&server.0)[3], namespaces(Path::new("/proc/self"))[3]);
    assert_eq!(server.field("Seccomp"), "2");
    world.is_served();
    assert_eq!(fs::metadata(world.path("share/copy")).unwrap().uid(), NOBODY);
}

#[test]
fn with_maps_the_guests_root_is_somebody_else_on_the_host() {
    let world = World::new();
    chown(world.path("share"), Some(100_000), Some(200_000)).unwrap();
    let running = world.serve(&["--uid-map", ":0:100000:65536:", "--gid-map", ":0:200000:65536:"]);
    let server = Server::of(&running);
    let uids = server.field("Uid");
    assert!(uids.split_whitespace().all(|uid| uid == "100000"), "{uids}");
    world.is_served();
    let copy = fs::metadata(world.path("share/copy")).unwrap();
    assert_eq!((copy.uid(), copy.gid()), (100_000, 200_000));
    drop(running);
    assert!(server.has_ended(), "with the process outside, whoever it is");
}

#[test]
fn whoever_kills_the_process_outside_ends_the_server() {
    let world = World::new();
    let running = world.serve(&[]);
    let server = Server::of(&running);
    running.signal(Signal::KILL);
    assert_eq!(running.ended().0, None);
    assert!(server.has_ended());
}

/// As service managers do.
#[test]
fn a_signal_to_both_processes_is_one() {
    let world = World::new();
    let running = world.serve(&[]);
    let server = Server::of(&running).process();
    running.signal(Signal::TERM);
    rustix::process::kill_process(server, Signal::TERM).unwrap();
    let (code, said) = running.ended();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_server_that_is_killed_is_told_of_by_the_process_outside() {
    let world = World::new();
    let running = world.serve(&[]);
    rustix::process::kill_process(Server::of(&running).process(), Signal::KILL).unwrap();
    let (code, said) = running.ended();
    assert_eq!(code, Some(1));
    assert!(said.contains("ended by SIGKILL (9) without a last sync"), "{said}");
    assert!(!world.path("socket").exists());
}

#[test]
fn a_file_of_metrics_is_written_although_its_directory_is_out_of_sight() {
    let world = World::new();
    fs::create_dir(world.path("metrics")).unwrap();
    let file = world.path("metrics/ashore.prom");
    let running = world.serve(&["--metrics", file.to_str().unwrap()]);
    world.is_served();
    let text = fs::read_to_string(&file).unwrap();
    let descriptors = text.lines().find_map(|line| line.strip_prefix("ashore_open_descriptors ")).unwrap();
    assert!(descriptors.parse::<u64>().unwrap() > 5, "{descriptors}");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().0, Some(0));
    assert!(!file.exists(), "numbers of a server that is gone");
}

#[test]
fn a_single_file_cannot_be_the_root_and_it_is_said_what_to_do() {
    let world = World::new();
    let mut command = Command::new(world.path("ashore"));
    command.args(["serve", "--socket-path"]).arg(world.path("socket"));
    let output = command.arg("--shared-dir").arg(world.path("share/file")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("use --sandbox none"), "{said}");
}
