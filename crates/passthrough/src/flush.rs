//! The last step of a sync of XFS: that the disk's own cache is flushed.
//!
//! syncfs(2) of XFS writes the data and then forces the log (Linux 6.18). The log force flushes the disk, but does so only if
//! there is something to write to the log. So this loses data although both syncs succeed:
//!
//! ```text
//!   sync 1   data written |                | log force: takes the times of the write along, flushes
//!   guest                 | overwrites     |
//!   sync 2                                 | data written | log force: nothing to do, no flush
//!                                                         power cut: the overwritten data was in the disk's cache only
//! ```
//!
//! Recorded power cuts show it within a few hundred states. fsync(2) of a regular file does not have that hole: if the log force
//! was for nothing, it flushes the disk itself, whichever file it is. So a sync of XFS is followed by an fsync of one.
//! ext4 and btrfs flush in their own syncfs(2).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, fdatasync, fstat, fstatfs, openat};
use rustix::io;

const XFS: u32 = 0x5846_5342;

/// What it takes to flush the disk below one host file system.
#[derive(Debug, Default)]
pub(crate) struct DiskFlush {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unknown,
    /// Its syncfs(2) flushes.
    NotNeeded,
    /// The host file system is XFS; a file of it without a name, or `None` if what it is synced by is a file itself.
    Needed(Option<OwnedFd>),
    /// No file could be had, and that was said.
    Refused,
}

impl DiskFlush {
    /// To be called when syncfs(2) by this descriptor has succeeded.
    pub(crate) fn after_sync(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        if matches!(*state, State::Unknown | State::Refused) {
            *state = State::of(descriptor, matches!(*state, State::Refused));
        }
        match &*state {
            State::Needed(file) => fdatasync(file.as_ref().map_or(descriptor, AsFd::as_fd)),
            State::Unknown | State::NotNeeded | State::Refused => Ok(()),
        }
    }
}

impl State {
    fn of(descriptor: BorrowedFd<'_>, was_refused: bool) -> State {
        let is_xfs = fstatfs(descriptor).is_ok_and(|numbers| numbers.f_type as u32 == XFS);
        let is_file = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_xfs {
            return State::NotNeeded;
        }
        if fstat(descriptor).is_ok_and(is_file) {
            return State::Needed(None);
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(descriptor, ".", flags, Mode::empty()) {
            Ok(file) => State::Needed(Some(file)),
            // Nothing was changed there by us.
            Err(io::Errno::ROFS) => State::NotNeeded,
            Err(error) => {
                if !was_refused {
                    tracing::warn!(
                        "no temporary file can be made on an XFS that is shared ({error}), so that its disk cannot be told to \
                         flush: data that was overwritten in place may not be stable after a sync. Let the server write there"
                    );
                }
                State::Refused
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_syncfs_flushes_no_file_is_made() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let directory = std::fs::File::open(folder.path()).unwrap();
        let flush = DiskFlush::default();
        flush.after_sync(directory.as_fd()).unwrap();
        assert!(matches!(*flush.state.lock(), State::NotNeeded));
    }
}
