//! apt, on the system's own package lists or on lists of ours beside them.
//!
//! Guest kernels come from releases of Debian that the system knows nothing of. For them apt runs on a configuration
//! below our cache; the system's apt stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ashore_guest::cache;

const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);
const FRESH: Duration = Duration::from_secs(24 * 3600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where apt looks for packages.
pub(crate) enum Apt {
    /// The system's sources.
    System,
    /// Releases of Debian that have other kernels, with lists and sources in this folder.
    Own(PathBuf),
}

impl Apt {
    /// The configuration of our own; its lists are fetched if they are not of today.
    pub(crate) fn own() -> Result<Self> {
        let folder = cache::dir()?.join("apt");
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        fs::write(folder.join("sources.list"), own_sources(&mirror()?))?;
        let apt = Self::Own(folder.clone());
        let stamp = folder.join("updated");
        if !is_fresh(&stamp) {
            apt.update()?;
            fs::write(stamp, "")?;
        }
        Ok(apt)
    }

    /// Whether any list has been fetched: a new container comes without. A search would not tell, since it finds what is
    /// installed too.
    pub(crate) fn has_lists(&self) -> Result<bool> {
        let output = self.command("apt-get", &["indextargets", "--format", "$(FILENAME)"]).output();
        let output = output.context("cannot run apt-get: this task needs a Debian system, or one like it")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().any(|file| Path::new(file).exists()))
    }

    pub(crate) fn update(&self) -> Result<()> {
        eprintln!("fetching package lists ...");
        retry(|| self.command("apt-get", &["update"]), "package lists could not be fetched")
    }

    /// Installs packages on the system. Lists that are missing or too old are the usual reason for a failure, so there
    /// is a second attempt with new ones.
    pub(crate) fn install(packages: &[&str]) -> Result<()> {
        let system = Self::System;
        eprintln!("installing {} ...", packages.join(", "));
        let install = || {
            let mut command = system.command("apt-get", &["install", "-y", "--no-install-recommends"]);
            command.args(packages);
            command
        };
        if system.has_lists()? && install().output()?.status.success() {
            return Ok(());
        }
        system.update()?;
        retry(install, &format!("{} could not be installed", packages.join(", ")))
    }

    /// Names of packages that match a regular expression.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let output = self.command("apt-cache", &["search", "--names-only", pattern]).output();
        let output =
            output.context("cannot run apt-cache: this task needs a Debian system, or one like it")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect())
    }

    /// Downloads packages into a folder, without installing them.
    pub(crate) fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let download = || {
            let mut command = self.command("apt-get", &["download"]);
            command.args(packages).current_dir(folder);
            command
        };
        retry(download, &format!("{} could not be downloaded", packages.join(", ")))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command.args(["-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"]);
        // Our folders are not readable for apt's own user, and what it fetches is checked by signature anyway.
        command.args(["-o", "APT::Sandbox::User="]);
        if let Self::Own(folder) = self {
            let setting = |name: &str, path: &str| format!("{name}={}", folder.join(path).display());
            command.args(["-o", &setting("Dir::Etc::sourcelist", "sources.list")]);
            command.args(["-o", "Dir::Etc::sourceparts=-"]);
            command.args(["-o", &setting("Dir::State::lists", "lists")]);
            command.args(["-o", &setting("Dir::Cache", "cache")]);
            command.args(["-o", "Acquire::Languages=none"]);
            command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        }
        command.args(arguments);
        command
    }
}

/// Debian's mirror as the system knows it: whoever set up this machine knows which one it can reach.
///
/// Asked for is what an update would fetch. That is answered without lists too, and whatever form the sources have.
pub(crate) fn mirror() -> Result<String> {
    let output = Command::new("apt-get").args(["update", "--print-uris"]).output();
    let output = output.context("cannot run apt-get: this task needs a Debian system, or one like it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mirror = text.lines().find_map(mirror_in);
    mirror.context("no source of Debian packages is configured in /etc/apt: add one first")
}

/// From `'http://deb.debian.org/debian/dists/bookworm/InRelease' ...`, but not from the security archive, whose releases
/// have other names, nor from anybody else's.
fn mirror_in(line: &str) -> Option<String> {
    let (mirror, _) = line.strip_prefix('\'')?.split_once("/dists/")?;
    mirror.ends_with("/debian").then(|| mirror.to_owned())
}

fn own_sources(mirror: &str) -> String {
    let options = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    ["bookworm", "bookworm-backports", "trixie-backports", "sid"]
        .map(|release| format!("deb {options}{mirror} {release} main\n"))
        .concat()
}

fn is_fresh(stamp: &Path) -> bool {
    let modified = stamp.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < FRESH))
}

/// Networks hiccup. What fails three times is wrong, and then apt's own last words are shown.
fn retry(command: impl Fn() -> Command, failure: &str) -> Result<()> {
    for attempt in 1.. {
        let output = command()
            .output()
            .context("cannot run apt-get: this task needs a Debian system, or one like it")?;
        if output.status.success() {
            return Ok(());
        }
        if attempt == ATTEMPTS {
            bail!("{failure}; apt said:\n{}", last_words(&output));
        }
        eprintln!("that failed, trying again in {PAUSE:?} ...");
        sleep(PAUSE);
    }
    Ok(())
}

fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_and_other_archives_are_not_taken_for_it() {
        let mirror = |uri: &str| mirror_in(&format!("'{uri}/dists/some/InRelease' some_InRelease 0"));
        assert_eq!(mirror("http://deb.debian.org/debian").as_deref(), Some("http://deb.debian.org/debian"));
        assert_eq!(
            mirror("https://mirror.example/pub/debian").as_deref(),
            Some("https://mirror.example/pub/debian")
        );
        assert_eq!(mirror("http://deb.debian.org/debian-security"), None);
        assert_eq!(mirror("https://deb.nodesource.com/node_20.x"), None);
    }
}
