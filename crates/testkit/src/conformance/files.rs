//! A file system as a program sees it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

/// Mode bits that say what a file is.
pub(super) const KIND: u32 = 0o170_000;
/// A directory.
pub(super) const DIRECTORY: u32 = 0o040_000;
/// A regular file.
pub(super) const REGULAR: u32 = 0o100_000;
/// A symbolic link.
pub(super) const SYMLINK: u32 = 0o120_000;

/// lseek(2): the next data.
pub(super) const SEEK_DATA: u32 = 3;
/// lseek(2): the next hole.
pub(super) const SEEK_HOLE: u32 = 4;

/// A directory and all that is below it. Paths are relative to it, the empty one is the directory itself.
///
/// Methods are the system calls of their names, and fail with their error numbers. Who asks is root, without a umask.
#[allow(missing_docs, reason = "the system calls are documented")]
pub trait Files: Send + Sync {
    /// Makes a directory, and returns what is in it.
    fn make_within(self: Arc<Self>, name: &str) -> io::Result<Arc<dyn Files>>;
    /// What is in this directory, which somebody has made.
    fn within(self: Arc<Self>, name: &str) -> Arc<dyn Files>;

    fn open(&self, path: &OsStr, access: &Access) -> io::Result<Box<dyn OpenFile>>;
    /// Following symbolic links.
    fn attributes(&self, path: &str) -> io::Result<Attributes>;
    fn symlink_attributes(&self, path: &str) -> io::Result<Attributes>;
    /// In any order, without `.` and `..`.
    fn names(&self, path: &str) -> io::Result<Vec<OsString>>;
    /// Mode 0755.
    fn make_directory(&self, path: &str) -> io::Result<()>;
    fn remove_directory(&self, path: &str) -> io::Result<()>;
    fn remove_file(&self, path: &str) -> io::Result<()>;
    /// Flags of renameat2(2).
    fn rename(&self, from: &str, to: &str, flags: u32) -> io::Result<()>;
    fn hard_link(&self, existing: &str, new: &str) -> io::Result<()>;
    fn symlink(&self, target: &str, path: &str) -> io::Result<()>;
    fn read_link(&self, path: &str) -> io::Result<PathBuf>;
    /// Of a pipe, socket or device: `mode` says which.
    fn make_node(&self, path: &str, mode: u32, device: u32) -> io::Result<()>;
    fn set_mode(&self, path: &str, mode: u32) -> io::Result<()>;
    fn set_owner(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    fn set_times(&self, path: &str, accessed: SystemTime, modified: SystemTime) -> io::Result<()>;
    fn extended_attribute(&self, path: &str, name: &str) -> io::Result<Vec<u8>>;
    fn extended_attributes(&self, path: &str) -> io::Result<Vec<OsString>>;
    fn set_extended_attribute(&self, path: &str, name: &str, value: &[u8]) -> io::Result<()>;
    fn remove_extended_attribute(&self, path: &str, name: &str) -> io::Result<()>;
    /// copy_file_range(2) of so many bytes from an offset of one file to an offset of another.
    fn copy(&self, from: (&str, u64), to: (&str, u64), length: u64) -> io::Result<u64>;
    fn space(&self) -> io::Result<Space>;
    /// Of a directory: fsync(2).
    fn sync_directory(&self, path: &str) -> io::Result<()>;
    /// Of all that is below the root of the file system: syncfs(2).
    fn sync(&self) -> io::Result<()>;
}

/// What a file is opened for: flags of open(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, clippy::struct_excessive_bools, reason = "each is a flag of open(2)")]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    pub create: bool,
    pub create_new: bool,
    pub direct: bool,
    pub data_sync: bool,
}

impl Access {
    /// Nothing but reading.
    pub const READ: Access = Access {
        read: true,
        write: false,
        append: false,
        truncate: false,
        create: false,
        create_new: false,
        direct: false,
        data_sync: false,
    };
    /// Reading and writing a file that is there.
    pub const BOTH: Access = Access { write: true, ..Access::READ };
    /// Reading and writing a file that is made, or emptied.
    pub const CREATE: Access = Access { create: true, truncate: true, ..Access::BOTH };
}

/// A file that somebody has opened. It is closed when it is dropped.
#[allow(missing_docs, reason = "the system calls are documented")]
pub trait OpenFile: Send + Sync {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    fn set_size(&self, size: u64) -> io::Result<()>;
    fn attributes(&self) -> io::Result<Attributes>;
    /// fallocate(2), with its mode.
    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()>;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    fn seek(&self, offset: u64, whence: u32) -> io::Result<u64>;
    fn sync_all(&self) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

/// What stat(2) says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields of stat(2)")]
pub struct Attributes {
    /// The kind of file too.
    pub mode: u32,
    pub ino: u64,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub accessed: SystemTime,
    pub modified: SystemTime,
    pub changed: SystemTime,
}

impl Attributes {
    /// What kind of file it is: one of the bits of [`KIND`].
    pub fn kind(&self) -> u32 {
        self.mode & KIND
    }

    /// What may be done with it, and by whom.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// What statvfs(3) says, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Space {
    pub total: u64,
    pub free: u64,
    pub available: u64,
    /// Of a name, in bytes.
    pub longest_name: u64,
}

/// What is made of the methods of a trait, for cases.
impl dyn Files + '_ {
    /// A file opened, made or emptied.
    pub fn create(&self, path: impl AsRef<OsStr>) -> io::Result<Box<dyn OpenFile>> {
        self.open(path.as_ref(), &Access::CREATE)
    }

    /// All that is in a file.
    pub fn read(&self, path: impl AsRef<OsStr>) -> io::Result<Vec<u8>> {
        let file = self.open(path.as_ref(), &Access::READ)?;
        let (mut content, mut piece) = (Vec::new(), vec![0; 1 << 17]);
        loop {
            match file.read_at(&mut piece, content.len() as u64)? {
                0 => return Ok(content),
                length => content.extend_from_slice(&piece[..length]),
            }
        }
    }

    /// A file with this in it and nothing else.
    pub fn write(&self, path: impl AsRef<OsStr>, content: &[u8]) -> io::Result<()> {
        self.create(path)?.write_all_at(content, 0)
    }

    /// Whether somebody has this name.
    pub fn exists(&self, path: &str) -> bool {
        self.symlink_attributes(path).is_ok()
    }
}

impl dyn OpenFile + '_ {
    /// Writes until all is written.
    pub fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.write_at(data, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            (data, offset) = (&data[written..], offset + written as u64);
        }
        Ok(())
    }

    /// Reads until the buffer is full.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let length = self.read_at(buffer, offset)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (buffer, offset) = (&mut buffer[length..], offset + length as u64);
        }
        Ok(())
    }
}

/// The error number that a call must have failed with.
#[track_caller]
pub(super) fn errno<T>(result: io::Result<T>) -> Errno {
    let error = result.err().expect("it is refused");
    Errno::from_raw_os_error(error.raw_os_error().expect("an error number"))
}

/// A path below a directory. Joining an empty one would put a slash behind it, which follows symbolic links.
pub(super) fn below(base: &Path, path: &OsStr) -> PathBuf {
    if path.is_empty() { base.to_owned() } else { base.join(path) }
}
