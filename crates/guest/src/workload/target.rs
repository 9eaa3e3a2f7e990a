//! Where the steps are done.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

use super::operation::Allocation;

/// A file system that a workload can run on, by paths below the place where all threads work.
pub trait Target: Sync {
    /// An open file.
    type File: Send;

    /// Makes a file and opens it to write.
    fn make_file(&self, path: &str) -> io::Result<Self::File>;
    /// Writes all the bytes at an offset.
    fn write(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Opens a file to append, writes all the bytes, and closes it.
    fn append(&self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file off or makes it longer.
    fn set_length(&self, file: &Self::File, length: u64) -> io::Result<()>;
    /// fallocate(2).
    fn allocate(&self, file: &Self::File, offset: u64, length: u64, how: Allocation) -> io::Result<()>;
    /// Changes permissions.
    fn set_mode(&self, file: &Self::File, mode: u32) -> io::Result<()>;
    /// Another name for a file.
    fn link(&self, existing: &str, new: &str) -> io::Result<()>;
    /// Another name instead of one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// A name of a file less.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Makes a directory.
    fn make_directory(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_directory(&self, path: &str) -> io::Result<()>;
    /// Makes a file stable.
    fn fsync(&self, file: &Self::File) -> io::Result<()>;
    /// Makes the names in a directory stable.
    fn fsync_directory(&self, path: &str) -> io::Result<()>;
    /// Makes everything stable.
    fn sync(&self) -> io::Result<()>;
}

impl Allocation {
    /// The flags of fallocate(2).
    pub fn flags(self) -> u32 {
        let flags = match self {
            Allocation::Extend => FallocateFlags::empty(),
            Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocation::Zero => FallocateFlags::ZERO_RANGE,
        };
        flags.bits()
    }
}

/// How everything is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncCall {
    /// syncfs(2) of the file system.
    Syncfs,
    /// sync(2), which says nothing of failure.
    Sync,
    /// Not at all, nor is any file or directory: a deliberate fault.
    None,
}

impl SyncCall {
    /// By its name: syncfs, sync or none.
    pub fn from_name(name: &str) -> io::Result<SyncCall> {
        match name {
            "syncfs" => Ok(SyncCall::Syncfs),
            "sync" => Ok(SyncCall::Sync),
            "none" => Ok(SyncCall::None),
            _ => Err(io::Error::other(format!("{name} is no way to sync; there are syncfs, sync and none"))),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            SyncCall::Syncfs => "syncfs",
            SyncCall::Sync => "sync",
            SyncCall::None => "none",
        }
    }
}

/// A directory of this machine.
#[derive(Debug)]
pub struct HostDirectory {
    root: PathBuf,
    sync: SyncCall,
}

impl HostDirectory {
    /// Works below `root`.
    pub fn new(root: impl Into<PathBuf>, sync: SyncCall) -> HostDirectory {
        HostDirectory { root: root.into(), sync }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Target for HostDirectory {
    type File = File;

    fn make_file(&self, path: &str) -> io::Result<File> {
        let file = File::create_new(self.at(path))?;
        // Whatever the mask of this process is.
        file.set_permissions(Permissions::from_mode(0o644))?;
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn append(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(self.at(path))?.write_all(bytes)
    }

    fn set_length(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn allocate(&self, file: &File, offset: u64, length: u64, how: Allocation) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(how.flags()), offset, length)?)
    }

    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(mode))
    }

    fn link(&self, existing: &str, new: &str) -> io::Result<()> {
        fs::hard_link(self.at(existing), self.at(new))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.at(path))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.at(path))
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        if self.sync == SyncCall::None { Ok(()) } else { file.sync_all() }
    }

    fn fsync_directory(&self, path: &str) -> io::Result<()> {
        if self.sync == SyncCall::None { Ok(()) } else { File::open(self.at(path))?.sync_all() }
    }

    fn sync(&self) -> io::Result<()> {
        match self.sync {
            SyncCall::Syncfs => Ok(rustix::fs::syncfs(File::open(&self.root)?)?),
            SyncCall::Sync => {
                rustix::fs::sync();
                Ok(())
            }
            SyncCall::None => Ok(()),
        }
    }
}
