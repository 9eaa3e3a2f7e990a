//! What is told about files, directories and file systems.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashore_wire::abi::{Attr, Kstatfs};

/// The kind of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

impl FileType {
    fn from_mode(mode: u32) -> FileType {
        match mode & 0o170_000 {
            0o100_000 => FileType::File,
            0o040_000 => FileType::Directory,
            0o120_000 => FileType::Symlink,
            _ => FileType::Other,
        }
    }
}

/// Attributes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata(pub(crate) Attr);

impl Metadata {
    /// Bytes of the file.
    #[allow(clippy::len_without_is_empty, reason = "as std's Metadata")]
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// The kind of the file.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.0.mode)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == FileType::File
    }

    /// Permissions and kind, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        self.0.mode
    }

    /// Number on the host.
    pub fn ino(&self) -> u64 {
        self.0.ino
    }

    /// Names the file has.
    pub fn nlink(&self) -> u32 {
        self.0.nlink
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.0.uid
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.0.gid
    }

    /// Device number of a device file.
    pub fn rdev(&self) -> u32 {
        self.0.rdev
    }

    /// Blocks of 512 bytes that are allocated.
    pub fn blocks(&self) -> u64 {
        self.0.blocks
    }

    /// When the content was last changed.
    pub fn modified(&self) -> SystemTime {
        time(self.0.mtime, self.0.mtimensec)
    }

    /// When the content was last read, as far as the server keeps it.
    pub fn accessed(&self) -> SystemTime {
        time(self.0.atime, self.0.atimensec)
    }

    /// When content or attributes were last changed.
    pub fn changed(&self) -> SystemTime {
        time(self.0.ctime, self.0.ctimensec)
    }
}

/// Seconds are signed on the host and travel as unsigned.
fn time(seconds: u64, nanoseconds: u32) -> SystemTime {
    let whole = match i64::from_ne_bytes(seconds.to_ne_bytes()) {
        seconds @ 0.. => UNIX_EPOCH.checked_add(Duration::from_secs(seconds as u64)),
        seconds => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    let exact = whole.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())));
    exact.unwrap_or(UNIX_EPOCH)
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) kind: u32,
}

impl DirectoryEntry {
    /// The name.
    pub fn file_name(&self) -> OsString {
        OsStr::from_bytes(&self.name).to_owned()
    }

    /// Number of the inode on the host.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The kind of file, if the directory says so.
    pub fn file_type(&self) -> Option<FileType> {
        // DT_* are the upper bits of st_mode, moved down; DT_UNKNOWN is 0.
        (self.kind != 0).then(|| FileType::from_mode(self.kind << 12))
    }
}

/// Space and limits of the host file system a path is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystemStatus(pub(crate) Kstatfs);

impl FileSystemStatus {
    /// Bytes there are.
    pub fn total(&self) -> u64 {
        self.0.blocks.saturating_mul(self.0.frsize.into())
    }

    /// Bytes an ordinary user may still write.
    pub fn available(&self) -> u64 {
        self.0.bavail.saturating_mul(self.0.frsize.into())
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.0.bfree.saturating_mul(self.0.frsize.into())
    }

    /// Inodes there are.
    pub fn files(&self) -> u64 {
        self.0.files
    }

    /// Inodes that are free.
    pub fn files_free(&self) -> u64 {
        self.0.ffree
    }

    /// Bytes of the longest name.
    pub fn name_max(&self) -> u32 {
        self.0.namelen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_out_of_any_range_are_no_panic() {
        assert_eq!(time(u64::MAX, 0), UNIX_EPOCH - Duration::from_secs(1));
        time(i64::MAX as u64, u32::MAX);
        time(i64::MIN as u64, u32::MAX);
    }
}
