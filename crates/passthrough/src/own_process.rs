//! /proc/self, kept open: a server that has given up its view of the host still needs a little of it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Result;
use rustix::mount::{OpenTreeFlags, open_tree};

/// Opened at the first use, which is when the first share is opened.
static DIRECTORY: OnceLock<OwnedFd> = OnceLock::new();

/// The table of descriptors, /proc/self/fd, by which a path descriptor is opened for good.
pub(crate) fn descriptors() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory()?, c"fd", flags, Mode::empty())
}

/// What is mounted, as this process sees it now; empty if that cannot be told.
pub(crate) fn mounts() -> String {
    let mut text = String::new();
    let opened = directory().and_then(|own| {
        rustix::fs::openat(own, c"mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    });
    if let Err(error) = opened.map_err(Into::into).and_then(|file| File::from(file).read_to_string(&mut text))
    {
        tracing::debug!("the mounts cannot be read: {error}");
    }
    text
}

/// How many descriptors this process has; 0 if that cannot be told.
pub(crate) fn open_descriptors() -> u64 {
    let count = || -> Result<u64> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let table = Dir::new(rustix::fs::openat(directory()?, c"fd", flags, Mode::empty())?)?;
        // "." and "..", and the one that it is read by, are none.
        Ok(table.flatten().count().saturating_sub(3) as u64)
    };
    count().unwrap_or(0)
}

fn directory() -> Result<BorrowedFd<'static>> {
    if let Some(directory) = DIRECTORY.get() {
        return Ok(directory.as_fd());
    }
    // Alone, if that is allowed: nothing else of /proc, such as settings of the whole host, can be reached from it then.
    let alone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open_tree(CWD, c"/proc/self", alone)
        .or_else(|_| rustix::fs::open(c"/proc/self", flags, Mode::empty()))?;
    Ok(DIRECTORY.get_or_init(|| opened).as_fd())
}
