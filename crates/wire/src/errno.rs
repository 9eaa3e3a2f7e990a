//! Error numbers as they stand in a reply: Linux's, in the numbering of x86-64 and aarch64.
//!
//! A wire type, not the host's `errno`: the number crosses to another kernel. Everything that fails in a file
//! system becomes one of these, once, near where it is known.

use std::{fmt, io};

/// A Linux error number, between 1 and 4095 (the range the kernel client accepts: `fs/fuse/dev.c`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($value);)*
        }

        fn name(errno: Errno) -> Option<&'static str> {
            match errno { $(Errno::$name => Some(stringify!($name)),)* _ => None }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1,
    /// No such file or directory.
    ENOENT = 2,
    /// Interrupted.
    EINTR = 4,
    /// Input/output error.
    EIO = 5,
    /// No such device or address (a hole sought past the end).
    ENXIO = 6,
    /// Argument list too long.
    E2BIG = 7,
    /// Bad file handle.
    EBADF = 9,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory.
    ENOMEM = 12,
    /// Permission denied.
    EACCES = 13,
    /// Busy.
    EBUSY = 16,
    /// File exists.
    EEXIST = 17,
    /// Crosses a host file system.
    EXDEV = 18,
    /// No such device.
    ENODEV = 19,
    /// Not a directory.
    ENOTDIR = 20,
    /// Is a directory.
    EISDIR = 21,
    /// Invalid argument; also the answer to a request that breaks the protocol.
    EINVAL = 22,
    /// Too many open files in the system.
    ENFILE = 23,
    /// Too many open files.
    EMFILE = 24,
    /// Not a terminal (unknown ioctl).
    ENOTTY = 25,
    /// File too large.
    EFBIG = 27,
    /// No space left on the host file system.
    ENOSPC = 28,
    /// Illegal seek.
    ESPIPE = 29,
    /// Read-only file system.
    EROFS = 30,
    /// Too many links.
    EMLINK = 31,
    /// Result too large for the buffer given.
    ERANGE = 34,
    /// A deadlock would come of it.
    EDEADLK = 35,
    /// Name too long.
    ENAMETOOLONG = 36,
    /// No more locks.
    ENOLCK = 37,
    /// The operation is not implemented.
    ENOSYS = 38,
    /// Directory not empty.
    ENOTEMPTY = 39,
    /// Too many symbolic links.
    ELOOP = 40,
    /// No such attribute.
    ENODATA = 61,
    /// Protocol error.
    EPROTO = 71,
    /// Value too large for its type.
    EOVERFLOW = 75,
    /// Not supported.
    EOPNOTSUPP = 95,
    /// Not connected.
    ENOTCONN = 107,
    /// Timed out.
    ETIMEDOUT = 110,
    /// Stale file handle.
    ESTALE = 116,
    /// Quota exceeded.
    EDQUOT = 122,
}

impl Errno {
    /// The error with this number; one outside 1..=4095, which no kernel knows, becomes EIO.
    pub fn from_raw(number: i32) -> Errno {
        match u16::try_from(number) {
            Ok(value @ 1..=4095) => Errno(value),
            _ => Errno::EIO,
        }
    }

    /// The positive number.
    pub fn raw(self) -> i32 {
        i32::from(self.0)
    }
}

impl From<io::Error> for Errno {
    /// The number the host gave; an error that is not the host's own (a file ended early, say) is EIO.
    fn from(error: io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

impl From<&Errno> for Errno {
    fn from(errno: &Errno) -> Errno {
        *errno
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(*self) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_outside_the_kernels_range_becomes_eio() {
        for number in [0, -1, 4096, i32::MIN, i32::MAX] {
            assert_eq!(Errno::from_raw(number), Errno::EIO);
        }
        assert_eq!(Errno::from_raw(4095).raw(), 4095);
    }

    #[test]
    fn an_error_keeps_its_number_through_io_error() {
        assert_eq!(Errno::from(io::Error::from(Errno::ENOSPC)), Errno::ENOSPC);
        assert_eq!(Errno::from(io::Error::other("not the host's")), Errno::EIO);
    }
}
