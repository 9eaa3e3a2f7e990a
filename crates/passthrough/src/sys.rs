//! The system calls that have no safe wrapper: file handles, directory entries into a buffer of ours, extended
//! attributes relative to a directory, the beginning of write-back, and locks of open file descriptions. All `unsafe`
//! of this crate is here.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

/// Bytes of the longest file handle (`MAX_HANDLE_SZ`).
pub(crate) const HANDLE_MAX: usize = 128;

/// A file handle as the kernel fills it in: `struct file_handle`, with room for the longest.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; HANDLE_MAX],
}

impl RawHandle {
    /// A handle from its parts. `bytes` came from [`RawHandle::bytes`], so they fit.
    pub(crate) fn new(kind: i32, bytes: &[u8]) -> RawHandle {
        let mut handle = RawHandle { length: bytes.len() as u32, kind, bytes: [0; HANDLE_MAX] };
        handle.bytes[..bytes.len()].copy_from_slice(bytes);
        handle
    }

    /// A handle from parts that were kept elsewhere. `None` if there are more bytes than a handle has.
    pub(crate) fn checked(kind: i32, bytes: &[u8]) -> Option<RawHandle> {
        (bytes.len() <= HANDLE_MAX).then(|| RawHandle::new(kind, bytes))
    }

    /// How the file system reads its bytes.
    pub(crate) fn kind(&self) -> i32 {
        self.kind
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..(self.length as usize).min(HANDLE_MAX)]
    }
}

/// The handle of `name` in `directory`, a symbolic link not followed; of `directory` itself if `name` is empty.
pub(crate) fn name_to_handle(directory: BorrowedFd<'_>, name: &CStr) -> Result<RawHandle> {
    let mut handle = RawHandle { length: HANDLE_MAX as u32, kind: 0, bytes: [0; HANDLE_MAX] };
    let mut mount_id = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: there is no safe wrapper. The descriptor is borrowed and so open, the name ends in NUL, and the kernel
    // writes at most `length` bytes behind the two words of `RawHandle`, which has its layout and that much room.
    let outcome = unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            name.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount_id,
            flags,
        )
    };
    check(outcome.into()).map(|_| handle)
}

/// Opens the file that `handle` names, on the file system that `mount` is on.
pub(crate) fn open_by_handle(mount: BorrowedFd<'_>, handle: &RawHandle, flags: OFlags) -> Result<OwnedFd> {
    let mut handle = *handle;
    let flags = (flags | OFlags::CLOEXEC).bits() as libc::c_int;
    // SAFETY: there is no safe wrapper. The descriptor is borrowed and so open; the kernel reads `length` bytes behind
    // the two words of `RawHandle`, which `RawHandle::new` and the kernel itself keep within its room.
    let outcome = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    let descriptor = check(outcome.into())?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as libc::c_int) })
}

/// Fills `buffer` with entries of `directory` from its current position, as getdents64(2) lays them out. Returns how
/// many bytes; 0 at the end.
pub(crate) fn read_directory(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: rustix's wrapper keeps its place in a structure that borrows the buffer, and our place has to outlive a
    // request. The descriptor is borrowed and so open, and the kernel writes at most `buffer.len()` bytes.
    let outcome = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    check(outcome).map(|length| length as usize)
}

/// Closes a duplicate of `file` and says how that went: some file systems report a failed write no earlier.
pub(crate) fn close_duplicate(file: BorrowedFd<'_>) -> Result<()> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(file, 0)?;
    // SAFETY: closing by hand is the only way to learn of the error. The descriptor was ours alone and is given up
    // here, so nothing uses or closes its number again.
    let outcome = unsafe { libc::close(duplicate.into_raw_fd()) };
    check(outcome.into()).map(|_| ())
}

// Numbers of the system calls of Linux 6.13, the same on all architectures; the libc crate does not have them.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args`.
#[repr(C, align(8))]
struct XattrArguments {
    value: u64,
    size: u32,
    flags: u32,
}

/// Value of the extended attribute `name` of the file at `path` below `directory`, links followed.
pub(crate) fn getxattr_at(
    directory: BorrowedFd<'_>,
    path: &CStr,
    name: &CStr,
    buffer: &mut [u8],
) -> Result<usize> {
    let arguments = XattrArguments { value: buffer.as_mut_ptr() as u64, size: buffer.len() as u32, flags: 0 };
    // SAFETY: there is no safe wrapper. The strings end in NUL; the kernel writes at most `size` bytes to `value`,
    // which is `buffer`, borrowed for us alone.
    let outcome = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            directory.as_raw_fd(),
            path.as_ptr(),
            0,
            name.as_ptr(),
            &raw const arguments,
            size_of::<XattrArguments>(),
        )
    };
    check(outcome).map(|length| length as usize)
}

/// Sets an extended attribute; as [`getxattr_at`].
pub(crate) fn setxattr_at(
    directory: BorrowedFd<'_>,
    path: &CStr,
    name: &CStr,
    value: &[u8],
    flags: u32,
) -> Result<()> {
    let arguments = XattrArguments { value: value.as_ptr() as u64, size: value.len() as u32, flags };
    // SAFETY: there is no safe wrapper. The strings end in NUL; the kernel reads `size` bytes of `value`.
    let outcome = unsafe {
        libc::syscall(
            SYS_SETXATTRAT,
            directory.as_raw_fd(),
            path.as_ptr(),
            0,
            name.as_ptr(),
            &raw const arguments,
            size_of::<XattrArguments>(),
        )
    };
    check(outcome).map(|_| ())
}

/// Names of all extended attributes; as [`getxattr_at`].
pub(crate) fn listxattr_at(directory: BorrowedFd<'_>, path: &CStr, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: there is no safe wrapper. The path ends in NUL; the kernel writes at most `buffer.len()` bytes.
    let outcome = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            directory.as_raw_fd(),
            path.as_ptr(),
            0,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    check(outcome).map(|length| length as usize)
}

/// Removes an extended attribute; as [`getxattr_at`].
pub(crate) fn removexattr_at(directory: BorrowedFd<'_>, path: &CStr, name: &CStr) -> Result<()> {
    // SAFETY: there is no safe wrapper. The strings end in NUL, and nothing is written to our memory.
    let outcome =
        unsafe { libc::syscall(SYS_REMOVEXATTRAT, directory.as_raw_fd(), path.as_ptr(), 0, name.as_ptr()) };
    check(outcome).map(|_| ())
}

/// Has the host begin to write all data of a file, without waiting for it: a hint, whose failure tells nothing.
///
/// Without its flags to wait, sync_file_range(2) does not look at the file's errors, so fsync(2) is still told of them.
pub(crate) fn begin_writeback(file: BorrowedFd<'_>) {
    // SAFETY: there is no safe wrapper. The descriptor is borrowed and so open; no memory of ours is touched.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

fn check(outcome: libc::c_long) -> Result<libc::c_long> {
    if outcome >= 0 {
        return Ok(outcome);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// A range of a file, both ends included, with `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RangeLock {
    pub(crate) start: u64,
    /// `i64::MAX`: to the end of the file, however far that is.
    pub(crate) end: u64,
    pub(crate) kind: u32,
}

impl RangeLock {
    fn to_host(self) -> libc::flock {
        // A length of 0 is how the host says "to the end of the file"; `end` is at most `i64::MAX`.
        let length = if self.end == i64::MAX as u64 { 0 } else { self.end - self.start + 1 };
        libc::flock {
            l_type: self.kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.start as libc::off_t,
            l_len: length as libc::off_t,
            l_pid: 0,
        }
    }
}

/// Locks or unlocks a range for the open file description behind `file`. With `wait` it blocks, until a signal comes.
pub(crate) fn lock_range(file: BorrowedFd<'_>, lock: RangeLock, wait: bool) -> Result<()> {
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    let wanted = lock.to_host();
    // SAFETY: there is no safe wrapper for locks of open file descriptions. The descriptor is borrowed and so open, and
    // the kernel reads one `flock` that lives until the call returns.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const wanted) };
    check(outcome.into()).map(|_| ())
}

/// The first lock of somebody else that stands in the way of `lock`.
pub(crate) fn range_lock_in_the_way(file: BorrowedFd<'_>, lock: RangeLock) -> Result<Option<RangeLock>> {
    let mut found = lock.to_host();
    // SAFETY: as above; the kernel writes to the same `flock`, which is borrowed for it alone.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut found) };
    check(outcome.into())?;
    if i32::from(found.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let start = found.l_start as u64;
    let end = if found.l_len == 0 { i64::MAX as u64 } else { start + found.l_len as u64 - 1 };
    Ok(Some(RangeLock { start, end, kind: found.l_type as u32 }))
}

/// Makes a system call return EINTR that one thread is blocked in.
///
/// By SIGURG, which processes ignore unless they care: one that comes too late does nothing.
#[derive(Clone, Copy)]
pub(crate) struct ThreadSignal {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl ThreadSignal {
    /// For the thread that calls this.
    pub(crate) fn for_this_thread() -> ThreadSignal {
        static HANDLER: std::sync::Once = std::sync::Once::new();
        extern "C" fn just_return(_: libc::c_int) {}
        HANDLER.call_once(|| {
            // SAFETY: `sigaction` is plain data, for which zeros are valid: no flags, so blocked calls are not begun
            // anew, and an empty mask. The handler touches nothing, so it may run at any point of any thread.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = just_return as extern "C" fn(libc::c_int) as libc::sighandler_t;
                libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut());
            }
        });
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        ThreadSignal { process: rustix::process::getpid().as_raw_nonzero().get(), thread }
    }

    /// To be called while the thread lives: the number of one that has ended may be another's.
    pub(crate) fn send(self) {
        // SAFETY: the call takes three numbers. The signal has a handler, see above, which does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, libc::SIGURG) };
    }
}

/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`, as the client sends them.
pub(crate) const GET_FLAGS: u32 = rustix::ioctl::opcode::read::<libc::c_long>(b'f', 1);
pub(crate) const SET_FLAGS: u32 = rustix::ioctl::opcode::write::<libc::c_long>(b'f', 2);
/// Bytes of `struct fsxattr`.
pub(crate) const X_ATTRIBUTES_SIZE: usize = 28;
/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
pub(crate) const GET_X_ATTRIBUTES: u32 = rustix::ioctl::opcode::read::<[u8; X_ATTRIBUTES_SIZE]>(b'X', 31);
pub(crate) const SET_X_ATTRIBUTES: u32 = rustix::ioctl::opcode::write::<[u8; X_ATTRIBUTES_SIZE]>(b'X', 32);

/// `struct fsxattr` where the kernel may look for it.
#[repr(C, align(8))]
struct XAttributes([u8; X_ATTRIBUTES_SIZE]);

/// Flags, extent size and project of an inode: a `struct fsxattr`.
pub(crate) fn x_attributes(file: BorrowedFd<'_>) -> Result<[u8; X_ATTRIBUTES_SIZE]> {
    let mut attributes = XAttributes([0; X_ATTRIBUTES_SIZE]);
    // SAFETY: there is no safe wrapper. The descriptor is borrowed and so open; the kernel writes as many bytes as the
    // number says, which is made from the size of the buffer, and any bytes are valid in it.
    let outcome =
        unsafe { libc::ioctl(file.as_raw_fd(), GET_X_ATTRIBUTES as libc::Ioctl, &raw mut attributes) };
    check(outcome.into()).map(|_| attributes.0)
}

/// Sets what [`x_attributes`] reads.
pub(crate) fn set_x_attributes(file: BorrowedFd<'_>, attributes: &[u8; X_ATTRIBUTES_SIZE]) -> Result<()> {
    let attributes = XAttributes(*attributes);
    // SAFETY: as above; the kernel only reads.
    let outcome =
        unsafe { libc::ioctl(file.as_raw_fd(), SET_X_ATTRIBUTES as libc::Ioctl, &raw const attributes) };
    check(outcome.into()).map(|_| ())
}
