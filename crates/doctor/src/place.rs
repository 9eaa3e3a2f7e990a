//! What a directory stands on, as far as this kernel tells.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// How deep to look: a loop device on a file on a loop device...
const DEEPEST: u32 = 4;

/// The mount that a directory is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The type, as mount(8) shows it.
    pub(crate) kind: String,
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// What is mounted there: a device, or whatever the file system calls its source.
    source: String,
    /// Options of the mount and of the file system.
    options: Vec<String>,
    /// Major and minor number.
    device: String,
}

/// How far what is written there can be stable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Firmness {
    /// Nothing known is against it.
    Firm,
    /// It depends on somebody else, for this reason.
    Doubtful(String),
    /// It cannot be, for this reason.
    Weak(String),
}

impl Place {
    /// Of a directory or a file.
    pub(crate) fn of(path: &Path) -> Result<Place> {
        let path = fs::canonicalize(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        Place::among(&mounts, &path)
            .with_context(|| format!("{} is on no mount of this process", path.display()))
    }

    /// The mount with the longest mount point above the path; of several at the same place the newest.
    fn among(mounts: &str, path: &Path) -> Option<Place> {
        let places = mounts.lines().filter_map(Place::parse);
        let above = places.filter(|place| path.starts_with(&place.mount_point));
        above.max_by_key(|place| place.mount_point.as_os_str().len())
    }

    fn parse(line: &str) -> Option<Place> {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let options = before.get(5)?.split(',').chain(after.get(2)?.split(','));
        Some(Place {
            kind: after.first()?.to_string(),
            mount_point: unescape(before.get(4)?).into(),
            source: unescape(after.get(1)?),
            options: options.map(str::to_owned).collect(),
            device: before.get(2)?.to_string(),
        })
    }

    fn option(&self, wanted: &str) -> Option<&str> {
        let value = |option: &'_ String| -> Option<usize> {
            let rest = option.strip_prefix(wanted)?;
            (rest.is_empty() || rest.starts_with('=')).then_some(option.len() - rest.len())
        };
        self.options
            .iter()
            .find_map(|option| value(option).map(|start| option[start..].trim_start_matches('=')))
    }

    /// How far what is written there can be stable.
    pub(crate) fn firmness(&self) -> Firmness {
        self.firmness_at(0)
    }

    fn firmness_at(&self, depth: u32) -> Firmness {
        let weak = |why: &str| Firmness::Weak(why.to_owned());
        let doubtful = |why: &str| Firmness::Doubtful(why.to_owned());
        match self.kind.as_str() {
            "tmpfs" | "ramfs" | "hugetlbfs" | "devtmpfs" => {
                return weak("it keeps files in memory, and loses them when the host loses power");
            }
            "overlay" if self.option("volatile").is_some() => {
                return weak("the overlay is mounted volatile, and ignores every sync");
            }
            "overlay" => return self.on_file(self.option("upperdir"), "its upper layer", depth),
            "nfs" | "nfs4" => {
                return doubtful("it is as stable as its NFS server, which may be exported async");
            }
            "9p" | "cifs" | "smb3" => {
                return doubtful("the kernel passes fsync(2) on to its server, and sync(2) not at all");
            }
            "virtiofs" => return doubtful("it is as stable as the virtio-fs server outside makes it"),
            kind if kind == "fuse" || kind.starts_with("fuse.") => {
                return doubtful("the kernel sends no sync(2) to a file system in user space, only fsync(2)");
            }
            _ => {}
        }
        if self.option("nobarrier").is_some() || self.option("barrier") == Some("0") {
            return weak("it is mounted without barriers, so its disk is never told to flush");
        }
        let backing = fs::read_to_string(format!("/sys/dev/block/{}/loop/backing_file", self.device));
        match backing {
            Ok(file) => self.on_file(Some(file.trim_end()), "its disk is a file", depth),
            Err(_) => Firmness::Firm,
        }
    }

    /// It stands on a file or directory of another file system.
    fn on_file(&self, path: Option<&str>, what: &str, depth: u32) -> Firmness {
        let below = path.and_then(|path| Place::of(Path::new(path)).ok()).filter(|_| depth < DEEPEST);
        let Some(below) = below else { return Firmness::Firm };
        let describe = |why: String| format!("{what} on {}: {why}", below.kind);
        match below.firmness_at(depth + 1) {
            Firmness::Firm => Firmness::Firm,
            Firmness::Doubtful(why) => Firmness::Doubtful(describe(why)),
            Firmness::Weak(why) => Firmness::Weak(describe(why)),
        }
    }

    /// As text: "ext4 at /srv".
    pub(crate) fn words(&self) -> String {
        format!("{} at {}", self.kind, self.mount_point.display())
    }

    /// What is mounted there, as mount(8) shows it.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
}

/// Mount points have blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => plain.push(char::from(code)),
            None => plain.push('\\'),
        }
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain + rest
}

/// A directory for files of the examination: one that can be stable if there is any.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| home.as_ref().map(|home| home.join(".cache")));
    let candidates =
        [cache, home, Some("/var/tmp".into()), std::env::current_dir().ok(), Some(std::env::temp_dir())];
    let mut fallback = None;
    for candidate in candidates.into_iter().flatten() {
        let Ok(made) = scratch_in(&candidate) else { continue };
        match Place::of(made.path()).map(|place| place.firmness()) {
            Ok(Firmness::Firm) => return Ok(made),
            _ => fallback = fallback.or(Some(made)),
        }
    }
    fallback.context("no directory can be made anywhere; name a writable one with --scratch DIR")
}

/// A directory for files of the examination, there.
pub(crate) fn scratch_in(parent: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("ashore-doctor-").tempdir_in(parent);
    made.with_context(|| {
        format!("no directory can be made in {}; name another with --scratch", parent.display())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    const MOUNTS: &str = "\
        20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        21 20 0:5 / /srv rw - ext4 /dev/sdb1 rw,nobarrier\n\
        22 21 0:6 / /srv/a\\040b rw - tmpfs none rw\n\
        23 20 0:7 / /over rw - overlay overlay rw,lowerdir=/l,upperdir=/nowhere,volatile\n\
        24 20 0:8 / /net rw - nfs4 host:/x rw\n";

    fn place(path: &str) -> Place {
        Place::among(MOUNTS, Path::new(path)).unwrap()
    }

    #[test]
    fn the_nearest_mount_above_is_found() {
        assert_eq!(place("/home/x").words(), "ext4 at /");
        assert_eq!(place("/srv/a").kind, "ext4");
        assert_eq!(place("/srv/a b/c").words(), "tmpfs at /srv/a b");
        assert_eq!(place("/srvx").mount_point, Path::new("/"));
        assert_eq!(place("/net").source(), "host:/x");
    }

    #[test]
    fn memory_volatile_overlays_and_missing_barriers_are_weak() {
        for weak in ["/srv", "/srv/a b", "/over"] {
            assert!(matches!(place(weak).firmness(), Firmness::Weak(_)), "{weak}");
        }
        assert!(matches!(place("/net").firmness(), Firmness::Doubtful(_)));
        assert_eq!(place("/").firmness(), Firmness::Firm);
    }

    #[test]
    fn options_are_whole_words() {
        assert_eq!(place("/over").option("upperdir"), Some("/nowhere"));
        assert_eq!(place("/over").option("upper"), None);
        assert_eq!(place("/srv").option("nobarrier"), Some(""));
    }
}
