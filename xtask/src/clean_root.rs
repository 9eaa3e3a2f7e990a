//! A Debian with nothing of ours in it, for packages to be installed in: fetched once, and never written to by a test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ashore_guest::cache;

use crate::apt;

/// What the tests of a package look at it with: three shells with their completions, man, systemd's tools.
const PACKAGES: &str = "bash-completion,fish,jq,man-db,systemd,zsh";

/// Where it is; fetched, which takes one to two minutes, if it is not there. By root alone: it holds files of root.
pub(crate) fn ensure() -> Result<PathBuf> {
    let root = cache::clean_root()?;
    if root.exists() {
        return Ok(root);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("a clean Debian is missing; to fetch it run as root: cargo xtask setup --clean-root");
    }
    let part = root.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    eprintln!("fetching a clean Debian ...");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), cache::CLEAN_RELEASE]);
    let output = debootstrap.arg(&part).arg(apt::mirror()?).output().context("cannot run debootstrap")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "a clean Debian could not be fetched; debootstrap said:\n{}",
            lines[lines.len().saturating_sub(6)..].join("\n")
        );
    }
    fs::rename(&part, &root)?;
    Ok(root)
}
