//! What is known of Linux by its version.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// A version, as far as it says what a kernel does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Kernel {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Kernel {
    /// The one that runs.
    pub(crate) fn running() -> Result<Kernel> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel is this?")?;
        Kernel::parse(&release).with_context(|| format!("{} is no version of Linux", release.trim()))
    }

    fn parse(release: &str) -> Option<Kernel> {
        let plain = release.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?;
        let mut numbers = plain.split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Kernel { major, minor, patch: numbers.next().flatten().unwrap_or(0) })
    }

    /// Whether sync(2) reaches a virtio-fs server at all: Linux 5.14.
    pub(crate) fn sends_syncfs(self) -> bool {
        (self.major, self.minor) >= (5, 14)
    }

    /// Whether sync(2) of a FUSE file system returns before its dirty pages were sent: since commit 76f9377cd2ab, in
    /// 6.18.21, 6.19.11 and 7.0.
    pub(crate) fn syncs_too_early(self) -> bool {
        match (self.major, self.minor) {
            (6, 18) => self.patch >= 21,
            (6, 19) => self.patch >= 11,
            version => version >= (7, 0),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    fn kernel(release: &str) -> Kernel {
        Kernel::parse(release).unwrap()
    }

    #[test]
    fn kernels_that_sync_too_early_are_known() {
        for early in ["6.18.21", "6.18.44-fc", "6.19.11+deb14-cloud-amd64", "7.0.0", "7.2.13", "8.1"] {
            assert!(kernel(early).syncs_too_early(), "{early}");
        }
        for sound in ["5.10.0", "6.12.117", "6.17.99", "6.18.20", "6.19.10", "6.18-rc1"] {
            assert!(!kernel(sound).syncs_too_early(), "{sound}");
        }
    }

    #[test]
    fn syncfs_came_with_5_14() {
        assert!(!kernel("5.13.19").sends_syncfs() && kernel("5.14.0-1-amd64").sends_syncfs());
        assert!(Kernel::parse("not a version").is_none());
    }
}
