//! Where syncfs(2) and fsync(2) of the host promise less than they seem to, and what closes that.
//!
//! # XFS: a disk that is not flushed
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
//!
//! # ext4: a journal that has stopped
//!
//! If the disk fails a commit of ext4's journal, that is told to whoever waits for this commit. A sync or fsync that comes later
//! finds no commit to wait for, and succeeds, though what it covers is lost (Linux 6.18). That ends when the next change is tried:
//! only then ext4 sees that its journal has stopped, and fails everything. Older kernels make it read-only then, and
//! syncfs(2) of what is read-only does nothing and succeeds, on btrfs as well.
//!
//! So a sync is followed by a change that is tried and changes nothing: to remove an attribute that is not there, from what the file
//! system is synced by, [`NEVER_THERE`]. That begins a transaction, and so the next sync waits for a commit. It would anyway if
//! times, lengths or names have changed; if nothing but bytes have, it would only have flushed, and takes twice as long. No way was
//! found to look at the journal without one.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    FileType, Mode, OFlags, StatVfsMountFlags, fdatasync, fremovexattr, fstat, fstatfs, fstatvfs, openat,
};
use rustix::io;

const EXT4: u32 = 0xef53;
const OVERLAY: u32 = 0x794c_7630;
const XFS: u32 = 0x5846_5342;

/// The extended attribute that nobody has.
const NEVER_THERE: &CStr = c"user.ashore.never-there";

/// What closes the gaps of one host file system.
#[derive(Debug)]
pub(crate) struct Gaps {
    kind: Kind,
    /// Nothing can be lost where nothing could be changed.
    was_writable: bool,
    flush: Mutex<FlushBy>,
    /// It was said that a gap stays open.
    was_said: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It flushes only sometimes.
    Xfs,
    /// It may have stopped without knowing. So may what an overlay stands on.
    Ext4,
    Other,
}

/// A file whose fsync flushes.
#[derive(Debug, Default)]
enum FlushBy {
    /// There was no need for one yet, or none could be had.
    #[default]
    Unknown,
    /// One without a name.
    Temporary(OwnedFd),
    /// What the file system is synced by is a file itself.
    Itself,
}

impl Gaps {
    /// To be called before anything is changed on the file system of this descriptor.
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> Gaps {
        let kind = match fstatfs(descriptor).map(|numbers| numbers.f_type as u32) {
            Ok(XFS) => Kind::Xfs,
            Ok(EXT4 | OVERLAY) => Kind::Ext4,
            _ => Kind::Other,
        };
        let was_writable = !is_read_only(descriptor);
        Gaps { kind, was_writable, flush: Mutex::default(), was_said: AtomicBool::new(false) }
    }

    /// To be called when syncfs(2) by this descriptor has succeeded. Fails if that made nothing stable.
    pub(crate) fn after_sync(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match self.kind {
            Kind::Xfs if self.was_writable => self.flush(descriptor),
            _ => self.after_fsync(descriptor),
        }
    }

    /// To be called when fsync(2) of anything there has succeeded, with the descriptor that the file system is synced by. Fails
    /// if that made nothing stable.
    pub(crate) fn after_fsync(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match self.kind {
            _ if !self.was_writable => Ok(()),
            // It knows that it has stopped (EIO).
            Kind::Xfs => Ok(()),
            Kind::Ext4 => self.try_a_change(descriptor),
            Kind::Other if is_read_only(descriptor) => Err(io::Errno::ROFS),
            Kind::Other => Ok(()),
        }
    }

    fn flush(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut flush = self.flush.lock();
        if matches!(*flush, FlushBy::Unknown) {
            *flush = self.file_of(descriptor);
        }
        match &*flush {
            FlushBy::Temporary(file) => fdatasync(file),
            FlushBy::Itself => fdatasync(descriptor),
            FlushBy::Unknown => Ok(()),
        }
    }

    fn file_of(&self, descriptor: BorrowedFd<'_>) -> FlushBy {
        let is_file = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if fstat(descriptor).is_ok_and(is_file) {
            return FlushBy::Itself;
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(descriptor, ".", flags, Mode::empty()) {
            Ok(file) => FlushBy::Temporary(file),
            Err(error) => {
                if !self.was_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "no temporary file can be made on an XFS that is shared ({error}), so that its disk cannot be told to \
                         flush: data that was overwritten in place may not be stable after a sync. Let the server write there"
                    );
                }
                FlushBy::Unknown
            }
        }
    }

    fn try_a_change(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match fremovexattr(descriptor, NEVER_THERE) {
            Ok(()) | Err(io::Errno::NODATA) => {}
            Err(error @ (io::Errno::ROFS | io::Errno::IO)) => return Err(error),
            Err(error) => {
                if !self.was_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "no change can be tried on what is shared ({error}), so that a journal which has stopped is not seen: after \
                         a write of it has failed, a sync may succeed for nothing. Let the server write there"
                    );
                }
            }
        }
        Ok(())
    }
}

fn is_read_only(descriptor: BorrowedFd<'_>) -> bool {
    fstatvfs(descriptor).is_ok_and(|numbers| numbers.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn where_there_is_no_gap_no_file_is_made() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let directory = std::fs::File::open(folder.path()).unwrap();
        let gaps = Gaps::of(directory.as_fd());
        gaps.after_sync(directory.as_fd()).unwrap();
        gaps.after_fsync(directory.as_fd()).unwrap();
        assert!(matches!(*gaps.flush.lock(), FlushBy::Unknown));
    }
}
