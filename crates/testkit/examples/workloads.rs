//! What people do with a file system, in a real guest: git, a C build, a Rust build, and stress-ng. What comes out is held
//! against the same on the host's file system directly.
//!
//!     cargo xtask setup --clean-root
//!     cargo run --release -p ashore-testkit --example workloads -- ROOT [git] [build] [cargo] [stress] [locks] [deadlock]
//!
//! ROOT is a Debian of its own on the host, made if it is not there: it is shared, and everything runs in it, programs and
//! libraries included. The host's Rust toolchain is a second share, read-only. Needs root. Results: `docs/workloads.md`.

#![allow(clippy::unwrap_used, reason = "an example")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ashore_testkit::guest::{Guest, Server, Share, cache};

const PATIENCE: Duration = Duration::from_secs(3600);

/// The repository that is cloned is this one, the program that is built is Lua, and that in Rust is [`PROGRAM`].
const PREPARE: &str = "
    mount -t proc proc \"$1/proc\"
    cp /etc/resolv.conf \"$1/etc/\"
    sed 's/^deb /deb-src /' \"$1/etc/apt/sources.list\" > \"$1/etc/apt/sources.list.d/source.list\"
    DEBIAN_FRONTEND=noninteractive chroot \"$1\" sh -euc '
        apt-get update
        apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev make stress-ng
        cd /srv && apt-get source --download-only lua5.4
        mkdir lua && tar -C lua --strip-components=1 -xf lua5.4_*.orig.tar.*'
    mkdir -p \"$1/opt/rust\" \"$1/srv/program/src\" && cd \"$1/srv/program\"
    printf '%s' \"$3\" > Cargo.toml && printf '%s' \"$4\" > src/main.rs
    mkdir .cargo && cargo vendor > .cargo/config.toml
    git clone --quiet --bare \"$2\" \"$1/srv/repository.git\"
";
/// Crates that are used everywhere; some have a program of their own that is built and run first.
const MANIFEST: &str = "
[package]
name = \"program\"
edition = \"2021\"
[dependencies]
cfg-if = \"1\"
itoa = \"1\"
libc = \"0.2\"
memchr = \"2\"
parking_lot_core = \"0.9\"
[workspace]
";
const PROGRAM: &str = "
fn main() {
    let text = itoa::Buffer::new().format(u64::MAX).to_owned();
    let sevens = memchr::memchr_iter(b'7', text.as_bytes()).count();
    println!(\"{text} has {sevens} sevens, and a deadlock is error {}\", libc::EDEADLK);
    assert!(parking_lot_core::SpinWait::new().spin());
}
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
/// Built; found to be up to date; and, one source touched, built again as far as that goes. Then it runs.
const CARGO: &str = "
    export PATH=/opt/rust/bin:$PATH CARGO_HOME=/tmp/cargo CARGO_TARGET_DIR=target
    cp -r /srv/program /tmp/program && cd /tmp/program
    build() { cargo build --offline --release --jobs 2 2>&1 | sed 's/ target(s) in .*//' | sort; }
    build && echo again && build && touch src/main.rs && echo touched && build
    target/release/program && cd .. && rm -r program
";
/// Each stressor of a class for three seconds, one after the other: two minutes and a half.
const STRESS: &str = "
    names=$(stress-ng --class filesystem? | sed 's/.*: //')
";
/// Those that lock, of that class too, on a server whose locks are the host's. Without lockf: it waits for a process that waits
/// for its lock, and sends it a signal, which Linux does not pass on over virtio-fs.
const LOCKS: &str = "
    names='flock locka lockofd'
";
/// Each has a byte and waits for the other's: who comes second is told of it and gives up, and the first goes on.
const DEADLOCK: &str = "
    perl -e '
        use Fcntl qw(:DEFAULT :seek);
        sub take { fcntl(FILE, F_SETLKW, pack(q(ssx4qqlx4), F_WRLCK, SEEK_SET, @_, 1, 0)) ? 1 : print qq($!\\n) }
        sysopen(FILE, q(/tmp/circle), O_RDWR | O_CREAT) && pipe(READY, TELL);
        if (fork) { take(0); sysread(READY, $_, 1); sleep 2; take(1); close(FILE); wait }
        else { take(1); syswrite(TELL, 1); sleep 1; take(0) && print qq(and the other goes on\\n) }
    '
    rm /tmp/circle
";
const STRESSORS: &str = "
    mkdir -p /tmp/stress && cd /tmp/stress
    for name in $names; do
        echo \"stressor $name\" && code=0
        timeout --kill-after=5 60 stress-ng --$name 2 --timeout 3s --verify >../log 2>&1 || code=$?
        grep -E ': (fail|error):' ../log || true
        echo \"code $code\"
    done
    cd .. && rm -rf stress log || true
";

const LOCKS_OF_THE_HOST: &[&str] = &["--posix-lock", "--flock"];

struct Workload {
    name: &'static str,
    script: String,
    /// Of our server.
    options: &'static [&'static str],
    /// What came out on the host and in the guest: is it good?
    judge: fn(&str, &str) -> bool,
}

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
    let mut good = true;
    for workload in
        workloads().iter().filter(|it| wanted.is_empty() || wanted.iter().any(|name| name == it.name))
    {
        println!("== {}", workload.name);
        let on_host = timed("host", || on_host(root, workload));
        let in_guest = timed("guest", || in_a_guest(root, workload));
        good &= (workload.judge)(&on_host, &in_guest);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn workloads() -> [Workload; 6] {
    let stress = |names: &str| names.to_owned() + STRESSORS;
    [
        Workload { name: "git", script: GIT.into(), options: &[], judge: same },
        Workload { name: "build", script: BUILD.into(), options: &[], judge: same },
        Workload { name: "cargo", script: CARGO.into(), options: &[], judge: same },
        Workload { name: "stress", script: stress(STRESS), options: &[], judge: no_other_failures },
        Workload {
            name: "locks",
            script: stress(LOCKS),
            options: LOCKS_OF_THE_HOST,
            judge: no_other_failures,
        },
        Workload { name: "deadlock", script: DEADLOCK.into(), options: LOCKS_OF_THE_HOST, judge: same },
    ]
}

fn prepare(root: &Path) {
    let clean = cache::clean_root().unwrap();
    assert!(clean.exists(), "run `cargo xtask setup --clean-root` first");
    if !root.exists() {
        assert!(Command::new("cp").arg("-a").args([&clean, root]).status().unwrap().success());
    }
    let mut command = in_name_space(PREPARE);
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let status = command.arg(root).args([repository, MANIFEST, PROGRAM]).status().unwrap();
    assert!(status.success(), "{} could not be made ready", root.display());
}

/// A name space takes its mounts and processes along when it ends.
fn in_name_space(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
    command.args(["sh", "-euc", script, "-"]);
    command
}

/// The Rust toolchain in use.
fn toolchain() -> PathBuf {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    fs::canonicalize(String::from_utf8(output.stdout).unwrap().trim_end()).unwrap()
}

fn on_host(root: &Path, workload: &Workload) -> String {
    const INTO: &str =
        "mount -t proc proc \"$1/proc\"; mount --rbind /dev \"$1/dev\"; mount -t sysfs sysfs \"$1/sys\"
        mount --bind -o ro \"$3\" \"$1/opt/rust\"; exec chroot \"$1\" sh -euc \"$2\"";
    let output = in_name_space(INTO).arg(root).arg(&workload.script).arg(toolchain()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "on the host: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn in_a_guest(root: &Path, workload: &Workload) -> String {
    fs::write(root.join("srv/script"), &workload.script).unwrap();
    let server = Server::builder(root).queues(2).arg("--xattr");
    let server = workload.options.iter().fold(server, |server, option| server.arg(option)).start().unwrap();
    let rust = Server::builder(toolchain()).arg("--readonly").start().unwrap();
    let guest = Guest::builder()
        .memory_mib(2048)
        .share(Share::new(server.socket()).queues(2))
        .share(Share::new(rust.socket()).tag("rust"))
        .boot()
        .unwrap();
    let into = "mount -t proc proc /mnt/share/proc && mount --rbind /dev /mnt/share/dev \
        && mount -t sysfs sysfs /mnt/share/sys && mount --bind /mnt/rust /mnt/share/opt/rust \
        && chroot /mnt/share /bin/sh -eu /srv/script";
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

/// Each stressor ends in the guest as on the host, and complains of nothing that it does not complain of there.
fn no_other_failures(on_host: &str, in_guest: &str) -> bool {
    let (host, guest) = (outcomes(on_host), outcomes(in_guest));
    let succeeded = |outcomes: &BTreeMap<_, Outcome>| outcomes.values().filter(|it| it.code == "0").count();
    println!("{} of {} stressors succeeded in the guest", succeeded(&guest), guest.len());
    println!("{} of {} on the host", succeeded(&host), host.len());
    let mut good = !guest.is_empty() && host.keys().eq(guest.keys());
    for (name, outcome) in &guest {
        let expected = host.get(name).cloned().unwrap_or_default();
        let new: Vec<_> = outcome.complaints.difference(&expected.complaints).collect();
        if (outcome.code != "0" && outcome.code != expected.code) || !new.is_empty() {
            good = false;
            println!("FAILED: {name}: code {} (on the host {}) {new:#?}", outcome.code, expected.code);
        } else if outcome.code != "0" {
            println!("{name}: code {}, as on the host {:#?}", outcome.code, outcome.complaints);
        }
    }
    good
}

#[derive(Clone, Default)]
struct Outcome {
    /// The exit code of stress-ng: 2 for a failure, 3 for want of something, 4 for what there is not here.
    code: String,
    /// Without numbers: they are of processes, sizes and places.
    complaints: BTreeSet<String>,
}

/// By the name of the stressor.
fn outcomes(text: &str) -> BTreeMap<&str, Outcome> {
    let mut all = BTreeMap::<_, Outcome>::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(next) = line.strip_prefix("stressor ") {
            name = next;
        } else if let Some(code) = line.strip_prefix("code ") {
            code.clone_into(&mut all.entry(name).or_default().code);
        } else if let Some((_, complaint)) = line.split_once("] ") {
            let complaint = complaint.chars().filter(|character| !character.is_ascii_digit()).collect();
            all.entry(name).or_default().complaints.insert(complaint);
        }
    }
    all
}
