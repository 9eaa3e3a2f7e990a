//! The system calls that have no safe wrapper: five ioctls, each on one kind of descriptor.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// `FUSE_DEV_IOC_CLONE`: makes `new`, freshly opened, one more descriptor of the session of `session`.
pub(crate) fn clone_session(new: BorrowedFd<'_>, session: BorrowedFd<'_>) -> Result<()> {
    let number = session.as_raw_fd() as u32;
    let call = Call { opcode: opcode::read::<u32>(229, 0), argument: Argument::Pointer(number) };
    // SAFETY: the kernel reads four bytes, the descriptor's number, from memory that lives in `call`, and writes none.
    // Both descriptors are borrowed, so they are open for as long as it takes.
    unsafe { ioctl(new, call) }.map(drop)
}

/// `FUSE_DEV_IOC_BACKING_OPEN` (Linux 6.9): gives the session a file to read and write itself, which it numbers.
pub(crate) fn open_backing(session: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let map = BackingMap { file: file.as_raw_fd(), flags: 0, padding: 0 };
    let call = Call { opcode: opcode::write::<BackingMap>(229, 1), argument: Argument::Pointer(map) };
    // SAFETY: the kernel copies a `struct fuse_backing_map` from memory that lives in `call`; `BackingMap` has its layout, and
    // nothing is written to it. Both descriptors are borrowed, so they are open for as long as it takes.
    unsafe { ioctl(session, call) }.map(|id| id as u32)
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`: the session may let go of such a file, when it is not open there any more.
pub(crate) fn close_backing(session: BorrowedFd<'_>, id: u32) -> Result<()> {
    let call = Call { opcode: opcode::write::<u32>(229, 2), argument: Argument::Pointer(id) };
    // SAFETY: the kernel reads four bytes from memory that lives in `call`, and writes none.
    unsafe { ioctl(session, call) }.map(drop)
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    file: i32,
    flags: u32,
    padding: u64,
}

/// `LOOP_CTL_GET_FREE`: the number of a loop device that nobody uses.
pub(crate) fn free_loop_device(control: impl AsFd) -> Result<u32> {
    let call: Call<u32> = Call { opcode: 0x4c82, argument: Argument::None };
    // SAFETY: this call takes no argument and answers with a number; no memory of ours is involved.
    unsafe { ioctl(control, call) }.map(|number| number as u32)
}

/// `LOOP_CONFIGURE`: puts the loop device on a file.
pub(crate) fn configure_loop(device: impl AsFd, config: LoopConfig) -> Result<()> {
    let call = Call { opcode: 0x4c0a, argument: Argument::Pointer(config) };
    // SAFETY: the kernel copies a `struct loop_config` from memory that lives in `call`; `LoopConfig` has its size (a
    // constant below insists) and its layout, and nothing is written to it.
    unsafe { ioctl(device, call) }.map(drop)
}

/// `struct loop_config`, with `struct loop_info64` in its place.
#[repr(C)]
pub(crate) struct LoopConfig {
    pub(crate) file: u32,
    pub(crate) block_size: u32,
    /// `lo_device`, `lo_inode`, `lo_rdevice`, `lo_offset`, `lo_sizelimit`.
    pub(crate) places: [u64; 5],
    /// `lo_number`, `lo_encrypt_type`, `lo_encrypt_key_size`.
    pub(crate) numbers: [u32; 3],
    pub(crate) flags: u32,
    pub(crate) file_name: [u8; 64],
    /// `lo_crypt_name`, `lo_encrypt_key`.
    pub(crate) unused: [u8; 96],
    /// `lo_init`, and the reserved words of `loop_config`.
    pub(crate) reserved: [u64; 10],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LO_FLAGS_AUTOCLEAR`: the device lets go of its file with its last user.
pub(crate) const LOOP_AUTOCLEAR: u32 = 4;

enum Argument<T> {
    None,
    Pointer(T),
}

struct Call<T> {
    opcode: Opcode,
    argument: Argument<T>,
}

// SAFETY: `as_ptr` points to what the callers above say their call reads, or is null where it takes nothing; the output is
// the return value alone. None of the calls writes to our memory.
unsafe impl<T> Ioctl for Call<T> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        match &mut self.argument {
            Argument::None => std::ptr::null_mut(),
            Argument::Pointer(value) => std::ptr::from_mut(value).cast(),
        }
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(out)
    }
}
