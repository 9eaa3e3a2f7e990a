//! A look below the server: what of its files is still only in the host's memory.
//!
//! `cachestat(2)` says how many pages of a file are dirty or under way to the disk, and needs no privilege for one's own
//! files. A page that is neither has been handed to the disk. It does not show whether the disk was told to flush
//! its own cache, nor whether names and other metadata were written; [`crate::disk`] shows those, as root.

use std::fs::File;
use std::io;
use std::iter::Sum;
use std::ops::Add;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::{cachestat, cachestat_of};

const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Pages of files that the disk does not have yet.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Unsafe {
    /// Pages.
    pub(crate) pages: u64,
}

impl Unsafe {
    /// Whether the disk has all.
    pub(crate) fn is_none(self) -> bool {
        self.pages == 0
    }

    /// As text: "3.5 MiB".
    pub(crate) fn size(self) -> String {
        crate::report::size(self.pages * 4096)
    }
}

impl Add for Unsafe {
    type Output = Unsafe;
    fn add(self, other: Unsafe) -> Unsafe {
        Unsafe { pages: self.pages + other.pages }
    }
}

impl Sum for Unsafe {
    fn sum<I: Iterator<Item = Unsafe>>(all: I) -> Unsafe {
        all.fold(Unsafe::default(), Add::add)
    }
}

/// A file of the share, seen from the host.
#[derive(Debug)]
pub(crate) struct Below {
    path: PathBuf,
    file: File,
}

impl Below {
    /// Opens it without changing anything.
    pub(crate) fn open(path: &Path) -> io::Result<Below> {
        Ok(Below { path: path.to_owned(), file: File::open(path)? })
    }

    /// Through a descriptor that is there. To open a file of a FUSE file system has the kernel write out what it holds of it,
    /// so there a look by opening would find nothing, ever.
    pub(crate) fn through(path: &Path, file: &File) -> io::Result<Below> {
        Ok(Below { path: path.to_owned(), file: file.try_clone()? })
    }

    /// What of it the disk does not have.
    pub(crate) fn look(&self) -> io::Result<Unsafe> {
        let stat = cachestat(&self.file)?;
        Ok(Unsafe { pages: stat.dirty + stat.writeback })
    }

    /// What of a part of it the disk does not have.
    pub(crate) fn look_at(&self, offset: u64, length: u64) -> io::Result<Unsafe> {
        let stat = cachestat_of(&self.file, offset, length)?;
        Ok(Unsafe { pages: stat.dirty + stat.writeback })
    }

    /// Bytes that the host knows of.
    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Where it is on the host.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What of several files the disk does not have.
pub(crate) fn look(files: &[Below]) -> io::Result<Unsafe> {
    files.iter().map(Below::look).sum()
}

/// Looks until the disk has all, or for so long; the last look is returned.
pub(crate) fn look_until_safe(files: &[Below], patience: Duration) -> io::Result<Unsafe> {
    let begun = Instant::now();
    loop {
        let seen = look(files)?;
        if seen.is_none() || begun.elapsed() >= patience {
            return Ok(seen);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
