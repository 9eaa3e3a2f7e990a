//! Fetches guest kernels: Debian's packages, unpacked into the cache and never installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ashore_guest::kernel::{matches_version, numbers};
use ashore_guest::{Kernel, cache};

use crate::apt::Apt;

const PREFIX: &str = "linux-image-";

/// The newest kernel of this version, fetched if it is not in the cache.
pub(crate) fn ensure(version: &str) -> Result<Kernel> {
    if Kernel::find(version).is_err() {
        fetch(version)?;
    }
    Kernel::find(version)
}

fn fetch(version: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() && !Apt::System.has_lists()? {
        Apt::System.update()?;
    }
    if let Some(release) = newest(&Apt::System, version)?
        && unpack(&Apt::System, &release).is_ok()
    {
        return Ok(());
    }
    let apt = Apt::own()?;
    let release = newest(&apt, version)?.with_context(|| {
        format!(
            "Debian has no kernel {version} for amd64; these it has, each also with -full: {}",
            on_offer(&apt)
        )
    })?;
    unpack(&apt, &release)
}

fn newest(apt: &Apt, version: &str) -> Result<Option<String>> {
    let releases = releases(apt)?.into_iter().filter(|release| matches_version(release, version));
    Ok(releases.max_by_key(|release| numbers(release)))
}

fn releases(apt: &Apt) -> Result<Vec<String>> {
    let names = apt.search("^linux-image-[0-9].*-amd64$")?;
    let releases = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
    // A name such as `6.12-cloud-amd64` is a package without content that depends on the newest.
    Ok(releases.filter(|release| numbers(release).len() > 3).map(str::to_owned).collect())
}

fn on_offer(apt: &Apt) -> String {
    let mut releases = releases(apt).unwrap_or_default();
    releases.sort_by_key(|release| numbers(release));
    let mut series: Vec<String> = releases
        .iter()
        .map(|release| numbers(release)[..2].iter().map(u64::to_string).collect::<Vec<_>>().join("."))
        .collect();
    series.dedup();
    series.join(", ")
}

/// Unpacks beside the final place and renames, so that an interrupted run leaves no half kernel behind.
fn unpack(apt: &Apt, release: &str) -> Result<()> {
    eprintln!("fetching the guest kernel {release} ...");
    let kernels = cache::kernels()?;
    fs::create_dir_all(&kernels)?;
    let work = tempfile::Builder::new().prefix(".partial-").tempdir_in(&kernels)?;
    let (downloads, tree) = (work.path().join("downloads"), work.path().join("tree"));
    fs::create_dir(&downloads)?;
    fs::create_dir(&tree)?;
    apt.download(&packages(apt, release)?, &downloads)?;
    for entry in fs::read_dir(&downloads)? {
        extract(&entry?.path(), &tree)?;
    }
    put_image_into_boot(&tree, release)?;
    fs::rename(&tree, kernels.join(release)).context("moving the kernel to its place in the cache")
}

/// Kernels for Debian 14 have their image among the modules.
fn put_image_into_boot(tree: &Path, release: &str) -> Result<()> {
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    let among_modules = tree.join("usr/lib/modules").join(release).join("vmlinuz");
    if !image.exists() && among_modules.exists() {
        fs::create_dir_all(tree.join("boot"))?;
        fs::rename(among_modules, &image)?;
    }
    if !image.exists() {
        bail!(
            "the packages of kernel {release} hold no image of it where one was expected: please report this"
        );
    }
    Ok(())
}

/// Older kernels come in one package; newer ones have image and modules in packages of their own.
fn packages(apt: &Apt, release: &str) -> Result<Vec<String>> {
    let escaped = release.replace('.', r"\.").replace('+', r"\+");
    let names = apt.search(&format!("^linux-(image|binary|modules)-{escaped}$"))?;
    if names.is_empty() {
        bail!("the packages of kernel {release} have gone");
    }
    Ok(names)
}

fn extract(package: &Path, tree: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb").arg("--extract").arg(package).arg(tree).output();
    let output = output.context("cannot run dpkg-deb: this task needs a Debian system, or one like it")?;
    if !output.status.success() {
        bail!(
            "{} could not be unpacked: {}",
            package.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
