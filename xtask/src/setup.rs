//! Brings a machine to the point where the other tasks work. Quick and silent where nothing is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ashore_guest::{DEFAULT_KERNEL, cache};

use crate::apt::Apt;
use crate::{clean_root, kernels};

/// A program, and the package that brings it.
const TOOLS: [(&str, &str); 12] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("losetup", "mount"),
    ("fusermount3", "fuse3"),
    ("git", "git"),
    ("xz", "xz-utils"),
    ("man", "man-db"),
    ("groff", "groff"),
    ("sqlite3", "sqlite3"),
];

/// What packages are made with.
const PACKAGERS: [(&str, &str); 4] =
    [("dpkg-deb", "dpkg"), ("tar", "tar"), ("gzip", "gzip"), ("strip", "binutils")];

const PEER: &str = "virtiofsd";
const PEER_VERSION: &str = "1.14.0";
const PEER_LIBRARIES: [(&str, &str); 2] =
    [("/usr/include/cap-ng.h", "libcap-ng-dev"), ("/usr/include/seccomp.h", "libseccomp-dev")];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Guest kernel to fetch, for example 6.12, 6.19.10 or 7.2; may be given several times
    #[arg(long, value_name = "VERSION", default_value = DEFAULT_KERNEL)]
    kernel: Vec<String>,
    /// Build virtiofsd too, to compare with
    #[arg(long)]
    peers: bool,
    /// Fetch a clean Debian too, to try our package in
    #[arg(long)]
    clean_root: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure_tools()?;
    for version in &options.kernel {
        let kernel = kernels::ensure(version)?;
        println!("guest kernel {}", kernel.release());
    }
    if options.peers {
        println!("{}", ensure_peer()?.display());
    }
    if options.clean_root {
        println!("{}", ensure_clean_root()?.display());
    }
    println!("everything is in place");
    Ok(())
}

/// What a guest needs, and nothing said if it is all there.
pub(crate) fn ensure(kernel: &str) -> Result<()> {
    ensure_tools()?;
    kernels::ensure(kernel).map(drop)
}

fn ensure_tools() -> Result<()> {
    ensure_programs(&TOOLS)
}

/// What packages are made with.
pub(crate) fn ensure_packagers() -> Result<()> {
    ensure_programs(&PACKAGERS)
}

/// A Debian that packages are tried in.
pub(crate) fn ensure_clean_root() -> Result<PathBuf> {
    ensure_programs(&[("debootstrap", "debootstrap")])?;
    clean_root::ensure()
}

/// Rust's own library for another target.
pub(crate) fn ensure_target(target: &str) -> Result<()> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    let output = output.context("cannot start rustc: is it in PATH?")?;
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists() {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", target]).status();
    if !added.context("cannot start rustup, which is to fetch Rust's library for musl")?.success() {
        bail!("Rust's library for {target} could not be fetched: see what rustup says");
    }
    Ok(())
}

/// Programs, each with the package that brings it.
pub(crate) fn ensure_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| find_program(program).is_none());
    install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

/// virtiofsd; built, which takes one to two minutes, if it is not there.
pub(crate) fn ensure_peer() -> Result<PathBuf> {
    let root = cache::peers()?;
    let program = root.join("bin").join(PEER);
    if !program.exists() {
        let missing = PEER_LIBRARIES.iter().filter(|(header, _)| !Path::new(header).exists());
        install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())?;
        eprintln!("building {PEER} {PEER_VERSION} ...");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", PEER, "--version", PEER_VERSION, "--locked", "--root"]).arg(&root);
        if !cargo.status().context("cannot start cargo: is it in PATH?")?.success() {
            bail!("{PEER} could not be built");
        }
    }
    Ok(program)
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "some packages are missing; to install them run: sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        );
    }
    Apt::install(packages)
}

/// Also in the folders for administrators, which are not in everybody's `PATH`.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}
