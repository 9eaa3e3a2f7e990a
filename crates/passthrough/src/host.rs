//! What the host says, in the words of the protocol.

use ashore_server::Result;
use ashore_wire::Errno;
use rustix::fs::{AtFlags, StatxFlags};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Once;

pub(crate) use rustix::fs::Statx as HostStatx;

/// Ask for the mount id that is never used again (Linux 6.8). Older kernels ignore the bit.
const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The result of a system call as the client is told it.
pub(crate) trait HostResult<T> {
    /// The value, or the error number.
    fn told(self) -> Result<T>;
}

impl<T> HostResult<T> for rustix::io::Result<T> {
    fn told(self) -> Result<T> {
        self.map_err(told)
    }
}

/// A host's error number as the client is told it.
pub(crate) fn told(errno: rustix::io::Errno) -> Errno {
    static OUT_OF_DESCRIPTORS: Once = Once::new();
    if errno == rustix::io::Errno::MFILE {
        OUT_OF_DESCRIPTORS.call_once(|| {
            tracing::error!("out of descriptors; raise the limit on open files (ulimit -n, LimitNOFILE=)");
        });
    }
    Errno::from_raw(errno.raw_os_error())
}

/// All that an entry needs to know of a file: attributes, birth and mount.
fn everything() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID | STATX_MNT_ID_UNIQUE
}

/// Attributes of `name` in `directory`, a symbolic link not followed.
pub(crate) fn statx_at(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<HostStatx> {
    rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, everything())
}

/// Attributes of an open file; a path descriptor will do.
pub(crate) fn statx_of(file: impl AsFd) -> rustix::io::Result<HostStatx> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, everything())
}

/// Which file it is, and what could tell it from another that had the same number before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileIdentity {
    /// The device, as stat(2) has it.
    pub(crate) device: u64,
    /// The mount it was reached by.
    pub(crate) mount_id: u64,
    /// The inode's number.
    pub(crate) ino: u64,
    /// When it was made, in nanoseconds; 0 where the file system does not say.
    pub(crate) birth: u64,
    /// The kind of file: the bits of `S_IFMT`.
    pub(crate) kind: u32,
}

impl FileIdentity {
    /// From what statx(2) said.
    pub(crate) fn of(stat: &HostStatx) -> FileIdentity {
        let born = &stat.stx_btime;
        let birth = (born.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(born.tv_nsec.into());
        FileIdentity {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            mount_id: stat.stx_mnt_id,
            ino: stat.stx_ino,
            birth: if stat.stx_mask & StatxFlags::BTIME.bits() != 0 { birth } else { 0 },
            kind: u32::from(stat.stx_mode) & libc::S_IFMT,
        }
    }
}

/// A descriptor's number as a path relative to /proc/self/fd.
pub(crate) struct DescriptorPath([u8; 12]);

impl DescriptorPath {
    /// The path of this descriptor.
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> DescriptorPath {
        use std::os::fd::AsRawFd;
        let mut text = [0; 12];
        let mut number = descriptor.as_raw_fd().unsigned_abs();
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        for place in text[..digits].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
        DescriptorPath(text)
    }

    /// With its NUL.
    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).expect("a descriptor has at most 10 digits; zeros follow them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_becomes_its_number() {
        let file = tempfile::tempfile().unwrap();
        let path = DescriptorPath::of(file.as_fd());
        use std::os::fd::AsRawFd;
        assert_eq!(path.as_c_str().to_str().unwrap(), file.as_raw_fd().to_string());
    }

    #[test]
    fn a_file_is_the_same_by_name_and_by_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), b"x").unwrap();
        let parent = std::fs::File::open(directory.path()).unwrap();
        let file = std::fs::File::open(directory.path().join("a")).unwrap();
        let by_name = FileIdentity::of(&statx_at(parent.as_fd(), c"a").unwrap());
        assert_eq!(by_name, FileIdentity::of(&statx_of(&file).unwrap()));
        assert_eq!(by_name.kind, libc::S_IFREG);
    }
}
