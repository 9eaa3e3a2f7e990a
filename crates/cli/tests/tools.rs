//! `ashore ls`, `cat`, `stat`, `sync` and `cp`, end to end against `ashore serve`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn ashore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ashore"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A share, its server, and a directory that is not shared.
struct World {
    place: TempDir,
    server: Child,
}

fn world() -> World {
    world_with(&[])
}

fn world_with(more: &[&str]) -> World {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("share")).unwrap();
    fs::create_dir(place.path().join("here")).unwrap();
    let mut command = ashore();
    command.args(["serve", "--keep-listening", "--shared-dir"]).arg(place.path().join("share"));
    command.arg("--socket-path").arg(place.path().join("socket")).args(more);
    let mut server = command.stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.starts_with("ashore: ready"), "{ready}");
    World { place, server }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl World {
    fn share(&self, path: &str) -> PathBuf {
        self.place.path().join("share").join(path)
    }

    /// A tool, run in the directory that is not shared.
    fn command(&self, tool: &str, arguments: &[&str]) -> Command {
        let mut command = ashore();
        command.arg(tool).arg("--socket").arg(self.place.path().join("socket"));
        command.args(arguments).current_dir(self.here(""));
        command
    }

    fn here(&self, path: &str) -> PathBuf {
        self.place.path().join("here").join(path)
    }

    /// What a tool printed that succeeded, and said nothing else.
    fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.command(tool, arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{tool} {arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// One sentence on standard error that has these words, and exit code 1.
    fn fails(&self, tool: &str, arguments: &[&str], words: &[&str]) {
        fails_with(&self.command(tool, arguments).output().unwrap(), words);
    }
}

fn fails_with(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let said: Vec<_> = text.lines().filter(|line| line.starts_with("ashore: ")).collect();
    assert_eq!(said.len(), 1, "one sentence: {text}");
    for word in words {
        assert!(said[0].contains(word), "{:?} does not say {word:?}", said[0]);
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
}

#[test]
fn ls_lists_names_in_order() {
    let world = world();
    assert_eq!(world.run("ls", &[]), "");
    for name in ["b", "a", ".hidden", "with space"] {
        fs::write(world.share(name), name).unwrap();
    }
    fs::create_dir(world.share("dir")).unwrap();
    fs::write(world.share("dir/inside"), "").unwrap();
    assert_eq!(world.run("ls", &["/"]), ".hidden\na\nb\ndir\nwith space\n");
    assert_eq!(world.run("ls", &["dir"]), "inside\n");
    assert_eq!(world.run("ls", &["dir/inside"]), "dir/inside\n", "a file is the only one in its list");
    world.fails("ls", &["none"], &["cannot list none", "No such file"]);
}

#[test]
fn ls_tells_more_with_l() {
    let world = world();
    fs::write(world.share("file"), "12345").unwrap();
    fs::set_permissions(world.share("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    let day = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::open(world.share("file")).unwrap().set_modified(day).unwrap();
    symlink("file", world.share("link")).unwrap();
    let text = world.run("ls", &["-l"]);
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..2], ["-rwsr-x--x", "1"], "{text}");
    assert_eq!(lines[0][4..], ["5", "2001-09-09", "01:46:40", "file"], "{text}");
    assert_eq!((lines[1][0], &lines[1][7..]), ("lrwxrwxrwx", &["link", "->", "file"][..]), "{text}");
}

#[test]
fn cat_prints_a_file_as_it_is() {
    let world = world();
    let content = pattern((5 << 20) + 123);
    fs::write(world.share("large"), &content).unwrap();
    fs::write(world.share("empty"), "").unwrap();
    let output = world.command("cat", &["large"]).output().unwrap();
    assert!(output.status.success() && output.stdout == content);
    assert_eq!(world.run("cat", &["empty"]), "");
    world.fails("cat", &["none"], &["cannot read none", "No such file"]);
    world.fails("cat", &["/"], &["cannot read /", "directory"]);
}

/// As in `ashore cat ... | head`.
#[test]
fn cat_ends_quietly_when_nobody_reads_on() {
    let world = world();
    fs::write(world.share("large"), pattern(5 << 20)).unwrap();
    let mut child = world.command("cat", &["large"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn stat_tells_what_is_known() {
    let world = world();
    fs::write(world.share("file"), "12345").unwrap();
    fs::set_permissions(world.share("file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(world.share("file"), world.share("other")).unwrap();
    symlink("file", world.share("link")).unwrap();
    let text = world.run("stat", &["file"]);
    for part in ["regular file", "5 bytes", "0640 (-rw-r-----)", "2 names", "modified: 2"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let text = world.run("stat", &["link"]);
    assert!(text.contains("symbolic link") && text.contains("target:   file"), "{text}");
    assert!(world.run("stat", &["/"]).contains("directory"));
    world.fails("stat", &["none"], &["cannot look at none"]);
}

#[test]
fn sync_says_in_one_line_that_all_is_stable() {
    assert_eq!(world().run("sync", &[]), "all that was changed is stable\n");
    assert_eq!(world_with(&["--readonly"]).run("sync", &[]), "all that was changed is stable\n");
}

#[test]
fn cp_into_the_share_syncs_and_says_so() {
    for options in [&[][..], &["--writeback"]] {
        let world = world_with(options);
        let content = pattern((3 << 20) + 7);
        fs::write(world.here("file"), &content).unwrap();
        fs::set_permissions(world.here("file"), fs::Permissions::from_mode(0o751)).unwrap();
        let said = world.run("cp", &["file", ":copy"]);
        assert_eq!(said, "copied 1 files (3.00 MiB); all of it is stable\n");
        assert!(fs::read(world.share("copy")).unwrap() == content);
        assert_eq!(world.share("copy").metadata().unwrap().permissions().mode() & 0o777, 0o751);
        // Onto a longer file, and into a directory.
        fs::write(world.here("short"), "short").unwrap();
        world.run("cp", &["short", ":copy"]);
        assert_eq!(fs::read(world.share("copy")).unwrap(), b"short");
        world.run("cp", &["short", ":"]);
        assert_eq!(fs::read(world.share("short")).unwrap(), b"short");
    }
}

#[test]
fn cp_out_of_the_share() {
    let world = world();
    let content = pattern((3 << 20) + 7);
    fs::write(world.share("file"), &content).unwrap();
    assert_eq!(world.run("cp", &[":file", "copy"]), "copied 1 files (3.00 MiB)\n");
    assert!(fs::read(world.here("copy")).unwrap() == content);
    world.run("cp", &[":/file", "."]);
    assert!(fs::read(world.here("file")).unwrap() == content);
}

fn plant_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for index in 0..200 {
        fs::write(root.join(format!("deep/{index}")), pattern(index * 37)).unwrap();
    }
    fs::write(root.join("deep/er/and/deeper/last"), "found").unwrap();
    symlink("deep/er", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"no \xff unicode")), "x").unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o555)).unwrap();
}

fn assert_same(one: &Path, other: &Path) {
    let output = Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mode = |path: &Path| path.join("empty").metadata().unwrap().permissions().mode();
    assert_eq!(mode(one), mode(other));
}

#[test]
fn cp_r_takes_a_tree_there_and_back() {
    let world = world();
    plant_tree(&world.here("tree"));
    let said = world.run("cp", &["-r", "tree", ":"]);
    assert!(said.starts_with("copied 202 files"), "{said}");
    assert!(said.ends_with(", 6 directories, 2 links; all of it is stable\n"), "{said}");
    assert_same(&world.here("tree"), &world.share("tree"));
    world.run("cp", &["-r", ":tree", "back"]);
    assert_same(&world.here("tree"), &world.here("back"));
    world.fails("cp", &[":tree", "again"], &["is a directory", "-r"]);
}

#[test]
fn cp_leaves_out_what_cannot_be_copied_and_says_so() {
    let world = world();
    fs::create_dir(world.share("dir")).unwrap();
    fs::write(world.share("dir/file"), "x").unwrap();
    let _socket = UnixListener::bind(world.share("dir/socket")).unwrap();
    world.fails("cp", &["-r", ":dir", "dir"], &[":dir/socket", "left out"]);
    assert_eq!(fs::read(world.here("dir/file")).unwrap(), b"x");
}

/// A link that stands where a copy should go may lead out of the copy.
#[test]
fn cp_writes_through_no_link_on_this_machine() {
    let world = world();
    fs::create_dir_all(world.share("dir/sub")).unwrap();
    fs::write(world.share("dir/file"), "new").unwrap();
    fs::write(world.here("precious"), "old").unwrap();
    fs::create_dir_all(world.here("copy/dir")).unwrap();
    symlink("../../precious", world.here("copy/dir/file")).unwrap();
    world.fails("cp", &["-r", ":dir", "copy"], &["cannot make copy/dir/file"]);
    assert_eq!(fs::read(world.here("precious")).unwrap(), b"old");
}

#[test]
fn cp_between_two_places_of_one_side_is_wrong_use() {
    let world = world();
    for sides in [["a", "b"], [":a", ":b"]] {
        let output = world.command("cp", &sides).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("exactly one of SRC and DST"), "{text}");
    }
    let output = ashore().arg("ls").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "without a socket");
}

#[test]
fn cp_names_what_it_could_not_read_or_make() {
    let world = world();
    fs::write(world.here("file"), "x").unwrap();
    world.fails("cp", &["none", ":x"], &["there is no none", "check the path"]);
    world.fails("cp", &[":none", "x"], &["there is no :none", "check the path"]);
    world.fails("cp", &["file", ":none/x"], &["cannot make :none/x", "No such file"]);
    let readonly = world_with(&["--readonly"]);
    fs::write(readonly.here("file"), "x").unwrap();
    readonly.fails("cp", &["file", ":x"], &["cannot make :x", "Read-only"]);
}

#[test]
fn a_socket_that_nobody_serves_is_named() {
    let world = world();
    let abandoned = world.here("abandoned");
    drop(UnixListener::bind(&abandoned).unwrap());
    for socket in [world.here("none"), abandoned] {
        let output = ashore().arg("ls").arg("--socket").arg(&socket).output().unwrap();
        fails_with(&output, &["cannot connect", socket.to_str().unwrap(), "check that a server is running"]);
    }
    let silent = world.here("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let begun = Instant::now();
    let output = ashore().arg("sync").arg("--socket").arg(&silent).output().unwrap();
    fails_with(&output, &["did not answer", "virtual machine"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// kill -9 while a large copy runs: the tool ends, and never says that all is stable.
#[test]
fn a_server_that_is_killed_in_the_middle_of_a_copy_is_an_error() {
    for (round, option) in ["--no-writeback", "--writeback"].iter().cycle().take(6).enumerate() {
        let more = if *option == "--writeback" { &["--writeback"][..] } else { &[] };
        let mut world = world_with(more);
        fs::write(world.here("large"), pattern(96 << 20)).unwrap();
        let child = world.command("cp", &["large", ":large"]).spawn().unwrap();
        let begun = Instant::now();
        while !world.share("large").exists() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(round as u64));
        world.server.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "in finite time");
        fails_with(&output, &["large"]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("stable"));
    }
}
