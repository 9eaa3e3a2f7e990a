//! Where the work is done: through our client, or with a sync that is deliberately wrong.

use std::io::{self, Write};

use ashore_client::{Client, File, OpenOptions};
use ashore_guest::workload::{Allocation, Target};

/// A share, mounted by our client.
#[derive(Debug)]
pub struct ClientTarget(pub Client);

impl Target for ClientTarget {
    type File = File;

    fn make_file(&self, path: &str) -> io::Result<File> {
        self.0.open_with(path, &OpenOptions::new().read(true).write(true).create_new(true))
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn append(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.0.open_with(path, &OpenOptions::new().append(true))?;
        file.write_all(bytes)?;
        file.close()
    }

    fn set_length(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn allocate(&self, file: &File, offset: u64, length: u64, how: Allocation) -> io::Result<()> {
        file.allocate(offset, length, how.flags())
    }

    fn set_mode(&self, file: &File, mode: u32) -> io::Result<()> {
        file.set_mode(mode)
    }

    fn link(&self, existing: &str, new: &str) -> io::Result<()> {
        self.0.hard_link(existing, new)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.0.remove_dir(path)
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn fsync_directory(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

/// Another target with another sync of everything, which is wrong: to show that power cuts find out.
pub struct OtherSync<T, F> {
    /// Where everything else goes.
    pub target: T,
    /// What is done to make everything stable.
    pub sync: F,
    /// Whether fsync of files and directories does anything.
    pub fsync: bool,
}

impl<T: Target, F: Fn() -> io::Result<()> + Sync> Target for OtherSync<T, F> {
    type File = T::File;

    fn make_file(&self, path: &str) -> io::Result<T::File> {
        self.target.make_file(path)
    }

    fn write(&self, file: &T::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.target.write(file, bytes, offset)
    }

    fn append(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.target.append(path, bytes)
    }

    fn set_length(&self, file: &T::File, length: u64) -> io::Result<()> {
        self.target.set_length(file, length)
    }

    fn allocate(&self, file: &T::File, offset: u64, length: u64, how: Allocation) -> io::Result<()> {
        self.target.allocate(file, offset, length, how)
    }

    fn set_mode(&self, file: &T::File, mode: u32) -> io::Result<()> {
        self.target.set_mode(file, mode)
    }

    fn link(&self, existing: &str, new: &str) -> io::Result<()> {
        self.target.link(existing, new)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.target.rename(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.target.unlink(path)
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        self.target.make_directory(path)
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.target.remove_directory(path)
    }

    fn fsync(&self, file: &T::File) -> io::Result<()> {
        if self.fsync { self.target.fsync(file) } else { Ok(()) }
    }

    fn fsync_directory(&self, path: &str) -> io::Result<()> {
        if self.fsync { self.target.fsync_directory(path) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        (self.sync)()
    }
}
