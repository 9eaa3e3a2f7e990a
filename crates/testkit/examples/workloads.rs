//! What people do with a file system, in a real guest: git, a C build, and stress-ng, whose failures are held against those on
//! the host's file system directly.
//!
//!     cargo xtask setup --clean-root
//!     cargo run --release -p ashore-testkit --example workloads -- ROOT [git] [build] [stress]
//!
//! ROOT is a Debian of its own on the host, made if it is not there: it is shared, and everything runs in it, programs and
//! libraries included. Needs root.

#![allow(clippy::unwrap_used, reason = "an example")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ashore_testkit::guest::{Guest, Server, Share, cache};

const PATIENCE: Duration = Duration::from_secs(3600);

/// The repository that is cloned is this one, and the program that is built is Lua.
const PREPARE: &str = "
    mount -t proc proc \"$1/proc\"
    cp /etc/resolv.conf \"$1/etc/\"
    sed 's/^deb /deb-src /' \"$1/etc/apt/sources.list\" > \"$1/etc/apt/sources.list.d/source.list\"
    DEBIAN_FRONTEND=noninteractive chroot \"$1\" sh -euc '
        apt-get update
        apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev make stress-ng
        cd /srv && apt-get source --download-only lua5.4
        mkdir lua && tar -C lua --strip-components=1 -xf lua5.4_*.orig.tar.*'
    git clone --quiet --bare \"$2\" \"$1/srv/repository.git\"
";
const GIT: &str = "
    cd /tmp && git config --global safe.directory '*'
    git clone --quiet --no-local /srv/repository.git clone && cd clone
    test -z \"$(git status --porcelain)\" && git fsck --strict --no-dangling
    echo changed >> README.md && git -c user.name=a -c user.email=b commit --quiet -am changed && git gc --quiet
    test -z \"$(git status --porcelain)\" && git fsck --strict --no-dangling
    git diff --stat HEAD~1 | tail -n 1 && cd .. && rm -r clone
";
const BUILD: &str = "
    cp -r /srv/lua /tmp/lua && cd /tmp/lua
    make -j2 posix >/dev/null
    src/lua -e 'print(_VERSION, 2^53 | 0)' && cd .. && rm -r lua
";
/// Each stressor for three seconds, one after the other: two minutes and a half.
const STRESS: &str = "
    mkdir -p /tmp/stress && cd /tmp/stress
    stress-ng --class filesystem --sequential 2 --timeout 3s --verify 2>&1 || true
    cd / && rm -rf /tmp/stress
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(root) = arguments.next() else {
        eprintln!("name a directory for a Debian of its own, of 1 GB");
        return ExitCode::from(2);
    };
    let (root, wanted) = (Path::new(&root), arguments.collect::<Vec<_>>());
    if !root.join("srv/repository.git").exists() {
        prepare(root);
    }
    let all = [("git", GIT), ("build", BUILD), ("stress", STRESS)];
    let chosen = all.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|it| it == name));
    let mut good = true;
    for (name, script) in chosen {
        println!("== {name}");
        let on_host = timed("host", || on_host(root, script));
        let in_guest = timed("guest", || in_a_guest(root, script));
        good &= if *name == "stress" {
            no_other_failures(&on_host, &in_guest)
        } else {
            same(&on_host, &in_guest)
        };
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(root: &Path) {
    let clean = cache::clean_root().unwrap();
    assert!(clean.exists(), "run `cargo xtask setup --clean-root` first");
    if !root.exists() {
        assert!(Command::new("cp").arg("-a").args([&clean, root]).status().unwrap().success());
    }
    let mut command = in_name_space(PREPARE);
    let status = command.arg(root).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).status().unwrap();
    assert!(status.success(), "{} could not be made ready", root.display());
}

/// A name space takes its mounts and processes along when it ends.
fn in_name_space(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
    command.args(["sh", "-euc", script, "-"]);
    command
}

fn on_host(root: &Path, script: &str) -> String {
    const INTO: &str =
        "mount -t proc proc \"$1/proc\"; mount --rbind /dev \"$1/dev\"; exec chroot \"$1\" sh -euc \"$2\"";
    let output = in_name_space(INTO).arg(root).arg(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "on the host: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn in_a_guest(root: &Path, script: &str) -> String {
    fs::write(root.join("srv/script"), script).unwrap();
    let server = Server::builder(root).queues(2).arg("--xattr").start().unwrap();
    let share = Share::new(server.socket()).queues(2);
    let guest = Guest::builder().memory_mib(2048).share(share).boot().unwrap();
    let into = "mount -t proc proc /mnt/share/proc && mount --rbind /dev /mnt/share/dev \
        && mount -t sysfs sysfs /mnt/share/sys && chroot /mnt/share /bin/sh -eu /srv/script";
    let output = guest.spawn(into).unwrap().wait_for(PATIENCE).unwrap();
    let text = output.success();
    text.unwrap_or_else(|error| {
        panic!("{error:#}\nthe server says:\n{}\nthe guest:\n{}", server.log(), guest.console())
    })
}

fn timed(place: &str, work: impl FnOnce() -> String) -> String {
    let begun = Instant::now();
    let output = work();
    println!("{place:6} {:.1} s", begun.elapsed().as_secs_f64());
    output
}

fn same(on_host: &str, in_guest: &str) -> bool {
    print!("{in_guest}");
    if on_host != in_guest {
        println!("FAILED: the host says otherwise:\n{on_host}");
    }
    on_host == in_guest
}

/// Stressors that fail in the guest fail on the host too.
fn no_other_failures(on_host: &str, in_guest: &str) -> bool {
    let passed = in_guest.lines().find(|line| line.contains("passed: ")).unwrap_or("nothing passed");
    println!("{passed}");
    let (host, guest) = (failures(on_host), failures(in_guest));
    println!("failures on the host: {host:?}, in the guest: {guest:?}");
    for line in in_guest.lines().filter(|line| line.contains(": fail:")) {
        println!("{line}");
    }
    guest.is_subset(&host) && in_guest.contains("passed: ")
}

/// Names of stressors, from `stress-ng: fail:  [17] stress-chmod: ...`.
fn failures(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter_map(|line| line.split_once(": fail:").map(|(_, rest)| rest));
    lines.filter_map(|rest| rest.split_whitespace().nth(1)).map(|name| name.trim_end_matches(':')).collect()
}
