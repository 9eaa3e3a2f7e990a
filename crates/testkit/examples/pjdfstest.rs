//! POSIX as pjdfstest checks it, in a real guest over our server, and on the host's file system directly: no test fails
//! that passes there.
//!
//!     cargo install pjdfstest
//!     cargo run --release -p ashore-testkit --example pjdfstest -- [PATTERN...]
//!
//! Options of the server may follow a `--`. With `--mount` as its first argument there is no guest: the tests run on
//! `ashore mount`, and the options are those of that. Needs root, for tests that act for other users.

#![allow(clippy::unwrap_used, reason = "an example")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use ashore_testkit::guest::{Guest, Server, Share};

const CONFIGURATION: &str = "
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
secondary_fs = \"/dev/shm\"
[dummy_auth]
entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]
";
/// In a guest the share may be made read-only. Here that would be the host's file system.
const REMOUNTED: &str = "
[settings]
allow_remount = true
";
const USERS: &str =
    "root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nbin:x:2:2::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
const GROUPS: &str = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nnogroup:x:65534:\n";
const PATIENCE: Duration = Duration::from_secs(1800);

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let by_mount = arguments.first().is_some_and(|first| first == "--mount");
    arguments.drain(..usize::from(by_mount));
    let split = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let patterns = arguments[..split].join(" ");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let configuration = write("configuration", CONFIGURATION);

    let direct = folder.path().join("direct");
    fs::create_dir(&direct).unwrap();
    let on_host = results(&on_host(&configuration, &direct, &patterns));

    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let options = arguments.get(split + 1..).unwrap_or_default();
    let (place, output) = if by_mount {
        on_a_mount(&shared, &folder.path().join("point"), options, &configuration, &patterns)
    } else {
        let files = [(write("passwd", USERS), "/users"), (write("group", GROUPS), "/groups")];
        let configurations = [configuration, write("remounted", &format!("{CONFIGURATION}{REMOUNTED}"))];
        in_a_guest(&shared, options, configurations, files, &patterns)
    };
    let seen = results(&output);
    println!("{}: {}", place, counts(&seen));
    println!("on the host's file system: {}", counts(&on_host));
    if seen.is_empty() {
        println!("{output}");
        return ExitCode::FAILURE;
    }
    let mut worse = false;
    for (name, result) in &on_host {
        let here = seen.get(name).map_or("not run", String::as_str);
        if here != "ok" && here != result {
            worse |= here != "skipped";
            println!("{name}: {here}, and {result} on the host's file system{}", reason(&output, name));
        }
    }
    if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Where it was, in words, and what was said.
fn in_a_guest(
    shared: &Path,
    options: &[String],
    [configuration, remounted]: [PathBuf; 2],
    [users, groups]: [(PathBuf, &str); 2],
    patterns: &str,
) -> (String, String) {
    let server = options.iter().fold(Server::builder(shared), |server, option| server.arg(option));
    let server = server.start().unwrap();
    let guest = Guest::builder()
        .share(Share::new(server.socket()))
        .program("pjdfstest")
        .file(configuration, "/configuration")
        .file(remounted, "/remounted")
        .file(users.0, users.1)
        .file(groups.0, groups.1)
        .boot()
        .unwrap();
    const READY: &str = "mv /users /etc/passwd && mv /groups /etc/group && ln -sf /proc/mounts /etc/mtab && mkdir -p /dev/shm";
    guest.run(READY).unwrap().success().unwrap();
    let mut command = format!("pjdfstest -c /configuration -p /mnt/share {patterns}");
    if patterns.is_empty() {
        // In a process of its own: one of the other tests leaves a file open for writing.
        command += "; pjdfstest -c /remounted -p /mnt/share erofs";
    }
    let output = guest.spawn(&command).unwrap().wait_for(PATIENCE).unwrap();
    (format!("in a guest with Linux {}", guest.kernel_release()), output.stdout + &output.stderr)
}

/// As [`in_a_guest`], on a mount of this machine.
fn on_a_mount(
    shared: &Path,
    point: &Path,
    options: &[String],
    configuration: &Path,
    patterns: &str,
) -> (String, String) {
    fs::create_dir(point).unwrap();
    // For other users, as the tests have it, and with their groups.
    let more = ["--allow-other", "--background"];
    let mut mount = Command::new(Server::program().unwrap());
    let mounted = mount.arg("mount").args(more).args(options).args([shared, point]).status().unwrap();
    assert!(mounted.success(), "ashore mount failed");
    let output = on_host(configuration, point, patterns);
    assert!(Command::new("umount").arg(point).status().unwrap().success());
    ("on ashore mount".to_owned(), output)
}

fn on_host(configuration: &Path, directory: &Path, patterns: &str) -> String {
    let output = Command::new("pjdfstest")
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(directory)
        .args(patterns.split_whitespace())
        .output()
        .expect("pjdfstest is needed: cargo install pjdfstest");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a test said for itself, if anything.
fn reason(output: &str, name: &str) -> String {
    let lines = output.lines().skip_while(|line| !line.starts_with(name)).skip(1);
    lines.take_while(|line| line.starts_with('\t')).map(|line| format!("\n{line}")).collect()
}

/// How many went how.
fn counts(results: &BTreeMap<String, String>) -> String {
    let mut counts = BTreeMap::new();
    for result in results.values() {
        *counts.entry(result).or_insert(0) += 1;
    }
    let counts = counts.into_iter().map(|(result, count)| format!("{count} {result}"));
    counts.collect::<Vec<String>>().join(", ")
}

/// The tests and how each went: lines of a name and a word.
fn results(output: &str) -> BTreeMap<String, String> {
    let words = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words[..] {
            [name, result] if name.contains("::") => Some((name.to_owned(), result.to_owned())),
            _ => None,
        })
        .collect()
}
