//! The one system call that no safe wrapper has: cachestat(2), Linux 6.5.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The number of the system call, the same on all of Linux's platforms but alpha; libc has it for few of them.
const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of a file in the page cache; the kernel's `struct cachestat`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct CacheStat {
    /// In memory.
    pub(crate) cached: u64,
    /// Changed, and not on their way to the disk.
    pub(crate) dirty: u64,
    /// On their way to the disk.
    pub(crate) writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The kernel's `struct cachestat_range`.
#[repr(C)]
struct Range {
    offset: u64,
    /// 0: to the end of the file.
    length: u64,
}

/// Asks what the page cache holds of a whole file. ENOSYS before Linux 6.5; EPERM if the file is not the caller's.
pub(crate) fn cachestat(file: impl AsFd) -> io::Result<CacheStat> {
    cachestat_of(file, 0, 0)
}

/// As [`cachestat`], of part of a file; a length of 0 means to its end.
pub(crate) fn cachestat_of(file: impl AsFd, offset: u64, length: u64) -> io::Result<CacheStat> {
    let descriptor = file.as_fd();
    let range = Range { offset, length };
    let mut stat = CacheStat::default();
    let no_flags: libc::c_uint = 0;
    // SAFETY: neither rustix nor libc wraps cachestat. The kernel reads one `Range` and writes one `CacheStat`, both of
    // the kernel's layout (`repr(C)`, u64 only) and alive until the call returns; the descriptor is borrowed as long.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, descriptor.as_raw_fd(), &raw const range, &raw mut stat, no_flags)
    };
    if result == 0 { Ok(stat) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_written_is_in_the_page_cache() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 5 * 4096]).unwrap();
        let stat = cachestat(&file).unwrap();
        assert_eq!(stat.cached, 5);
        assert!(stat.dirty + stat.writeback <= 5);
    }
}
