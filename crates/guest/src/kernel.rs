//! Guest kernels that have been fetched: unpacked Debian packages in the cache, one folder for each release.
//!
//! ```text
//!   kernels/6.12.117+deb12-cloud-amd64/boot/vmlinuz-6.12.117+deb12-cloud-amd64
//!                                      lib/modules/6.12.117+deb12-cloud-amd64/...
//! ```
//!
//! Fetching them is the work of `cargo xtask setup`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;

/// The kernel that tests use unless they say otherwise. Its syncs are whole, and it is a version that is not maintained any more: the
/// newest of a maintained one changes from day to day, and 6.12.95 was found to crash while it boots without KVM, in 22 of 76 boots.
pub const DEFAULT_KERNEL: &str = "6.16";

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest fetched kernel of `version`, for example `6.12` or `6.19.10`.
    pub fn find(version: &str) -> Result<Self> {
        let folder = cache::kernels()?;
        Self::newest_in(&folder, version).with_context(|| {
            format!(
                "there is no guest kernel {version} in {}: run `cargo xtask setup --kernel {version}`",
                folder.display()
            )
        })
    }

    fn newest_in(folder: &Path, version: &str) -> Option<Self> {
        let names = fs::read_dir(folder).ok()?.flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|release| matches_version(release, version))
            .max_by_key(|release| numbers(release))
            .map(|release| Self { folder: folder.join(&release), release })
    }

    /// What `uname -r` says in a guest with this kernel.
    pub fn release(&self) -> &str {
        &self.release
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    pub(crate) fn modules(&self) -> PathBuf {
        let modules = Path::new("lib/modules").join(&self.release);
        let merged = self.folder.join("usr").join(&modules);
        if merged.exists() { merged } else { self.folder.join(modules) }
    }
}

/// The same with the drivers of every machine, 9p among them, for the guests that need one of these.
pub const FULL_KERNEL: &str = "6.16-full";

/// Whether a release such as `6.12.117+deb12-cloud-amd64` belongs to a version such as `6.12`; or
/// `6.12.117+deb12-amd64`, which is not for clouds, to `6.12-full`.
pub fn matches_version(release: &str, version: &str) -> bool {
    let (version, full) = version.strip_suffix("-full").map_or((version, false), |version| (version, true));
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_digit());
    release.strip_prefix(version).is_some_and(ends)
        && release.contains("-cloud-") != full
        && !release.contains("-rt-")
}

/// The numbers in a release, in order: good enough to tell newer from older.
pub fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_version_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for release in [
            "6.1.0-56-cloud-amd64",
            "6.12.95+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.101+deb12-amd64",
            "6.12.117+deb12-rt-amd64",
        ] {
            fs::create_dir(dir.path().join(release)).unwrap();
        }
        let release = |version| Kernel::newest_in(dir.path(), version).map(|kernel| kernel.release);
        assert_eq!(release("6.12").as_deref(), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(release("6.12.95").as_deref(), Some("6.12.95+deb12-cloud-amd64"));
        assert_eq!(release("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(release("6.12-full").as_deref(), Some("6.12.101+deb12-amd64"));
        assert_eq!(release("7.0"), None);
    }
}
