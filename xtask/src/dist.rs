//! `cargo xtask dist`: what users install. One static program, and what belongs to it, as an archive and as a Debian package.
//!
//! ```text
//!   bin/ashore                          lib/ashore/virtiofsd        the same program, under the name libvirt's arguments are for
//!   lib/systemd/system/ashore@.*        socket and service          share/qemu/vhost-user/60-ashore.json
//!   share/man/...                       share/doc/ashore/...        completions, where each shell looks for them
//! ```
//!
//! Both are the same from one commit, whenever and wherever they are built: times are the commit's.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::setup;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where a tree is to be unpacked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `/usr`, by dpkg.
    Debian,
    /// `/usr/local`, by hand.
    Local,
}

pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure_packagers()?;
    let dist = ashore_guest::target_dir()?.join("dist");
    // What an earlier version left must not be taken for this one's.
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("clearing {}", dist.display()))?;
    }
    fs::create_dir_all(&dist)?;
    let program = static_program()?;
    let epoch = commit_time()?;
    for made in [archive(&dist, &program, &epoch)?, package(&dist, &program, &epoch)?] {
        println!("{}", made.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The program, with no library that it would need where it runs.
fn static_program() -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-musl");
    setup::ensure_target(&target)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "ashore",
        "--bin",
        "ashore",
        "--target",
        &target,
    ]);
    let folder = ashore_guest::target_dir()?;
    run_program(cargo.current_dir(workspace()).arg("--target-dir").arg(&folder))?;
    Ok(folder.join(target).join("release/ashore"))
}

/// An archive to unpack below `/usr/local`.
fn archive(dist: &Path, program: &Path, epoch: &str) -> Result<PathBuf> {
    let name = format!("ashore-{VERSION}-{ARCH}-linux");
    let tree = dist.join(&name);
    lay_out(&tree, &tree, program, Place::Local)?;
    let made = dist.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=go=rX,u+rw"]);
    tar.arg(format!("--mtime=@{epoch}")).arg("-czf").arg(&made).arg("-C").arg(dist).arg(&name);
    run_program(&mut tar)?;
    Ok(made)
}

/// A package for dpkg.
fn package(dist: &Path, program: &Path, epoch: &str) -> Result<PathBuf> {
    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        other => {
            bail!("Debian's name for the architecture {other} is not known here: add it to xtask/src/dist.rs")
        }
    };
    let tree = dist.join("deb");
    lay_out(&tree.join("usr"), &tree, program, Place::Debian)?;
    let control = fs::read_to_string(packaging("control"))?
        .replace("@VERSION@", VERSION)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", &(bytes_in(&tree)? / 1024).to_string());
    write(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    let script = fs::read(packaging("maintainer-script"))?;
    for name in ["postinst", "postrm"] {
        write(&tree.join("DEBIAN").join(name), &script, 0o755)?;
    }
    let made = dist.join(format!("ashore_{VERSION}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&made);
    run_program(dpkg.env("SOURCE_DATE_EPOCH", epoch).stdout(std::process::Stdio::null()))?;
    Ok(made)
}

/// All files, below `prefix`.
fn lay_out(prefix: &Path, tree: &Path, program: &Path, place: Place) -> Result<()> {
    let at = |path: &str| prefix.join(path);
    fs::create_dir_all(at("bin"))?;
    // Names of functions stay, for whoever reports where it failed; lines, which are most of it, go.
    run_program(Command::new("strip").args(["--strip-debug", "-o"]).arg(at("bin/ashore")).arg(program))?;
    link("../../bin/ashore", &at("lib/ashore/virtiofsd"))?;
    for unit in ["ashore@.service", "ashore@.socket"] {
        copy_text(unit, &at("lib/systemd/system").join(unit), place)?;
    }
    copy_text("60-ashore.json", &at("share/qemu/vhost-user/60-ashore.json"), place)?;
    manual(prefix, place)?;
    let documents = match place {
        // mount(8) looks for its helpers in /sbin alone, which is /usr/sbin.
        Place::Debian => {
            link("../bin/ashore", &at("sbin/mount.ashore"))?;
            write(&at("share/doc/ashore/copyright"), copyright()?.as_bytes(), 0o644)?;
            &[("CHANGELOG.md", "changelog")][..]
        }
        Place::Local => &[
            ("README.md", "README.md"),
            ("CHANGELOG.md", "CHANGELOG.md"),
            ("LICENSE-MIT", "LICENSE-MIT"),
            ("LICENSE-APACHE", "LICENSE-APACHE"),
        ],
    };
    for (source, name) in documents {
        let content = fs::read(workspace().join(source))?;
        write(&at("share/doc/ashore").join(name), &content, 0o644)?;
    }
    if place == Place::Debian {
        compress(&at("share/doc/ashore/changelog"))?;
    }
    only_the_owner_writes(tree)
}

/// Man pages and completions, as the program that is packed writes them.
fn manual(prefix: &Path, place: Place) -> Result<()> {
    let written = tempfile::tempdir()?;
    run_program(Command::new(prefix.join("bin/ashore")).arg("manual").arg(written.path()))?;
    for section in ["man1", "man7"] {
        for page in fs::read_dir(written.path().join(section))? {
            let page = page?;
            let path = prefix.join("share/man").join(section).join(page.file_name());
            write(&path, &fs::read(page.path())?, 0o644)?;
            compress(&path)?;
        }
    }
    let zsh = match place {
        Place::Debian => "share/zsh/vendor-completions/_ashore",
        Place::Local => "share/zsh/site-functions/_ashore",
    };
    for (name, path) in [
        ("ashore.bash", "share/bash-completion/completions/ashore"),
        ("ashore.fish", "share/fish/vendor_completions.d/ashore.fish"),
        ("_ashore", zsh),
    ] {
        write(&prefix.join(path), &fs::read(written.path().join("completions").join(name))?, 0o644)?;
    }
    Ok(())
}

/// A file of `packaging`, which speaks of `/usr`.
fn copy_text(name: &str, path: &Path, place: Place) -> Result<()> {
    let text = fs::read_to_string(packaging(name)).with_context(|| format!("reading packaging/{name}"))?;
    let text = if place == Place::Local { text.replace("/usr/", "/usr/local/") } else { text };
    write(path, text.as_bytes(), 0o644)
}

fn copyright() -> Result<String> {
    let mit = fs::read_to_string(workspace().join("LICENSE-MIT"))?;
    Ok(format!(
        "Ashore is under one of two licences, as you like: the Apache License, version 2.0, which is in\n\
         /usr/share/common-licenses/Apache-2.0, or this one:\n\n{mit}"
    ))
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let written = fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| fs::write(path, content));
    written
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("writing {}", path.display()))
}

fn link(target: &str, path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    symlink(target, path).with_context(|| format!("making {}", path.display()))
}

fn compress(path: &Path) -> Result<()> {
    run_program(Command::new("gzip").args(["-9", "--no-name"]).arg(path))
}

/// Whatever the mask of whoever builds it.
fn only_the_owner_writes(tree: &Path) -> Result<()> {
    run_program(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(tree))
}

fn bytes_in(tree: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let about = entry.metadata()?;
        sum += if about.is_dir() { bytes_in(&entry.path())? } else { about.len() };
    }
    Ok(sum)
}

/// Seconds since 1970 of the commit that is built.
fn commit_time() -> Result<String> {
    let mut git = Command::new("git");
    let output = git.args(["log", "-1", "--format=%ct"]).current_dir(workspace()).output();
    let output = output.context("cannot run git: the time of the commit is that of the files")?;
    if !output.status.success() {
        bail!("git does not know the commit: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run_program(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn packaging(name: &str) -> PathBuf {
    workspace().join("packaging").join(name)
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
