//! A block device to mount `fuseblk` from: a loop device on a page of anonymous memory.
//!
//! The kernel passes a sync on to a FUSE file system that is mounted on a block device, and trusts no other. Nothing is ever
//! read from this one or written to it. It goes away with its last user, which is the mount: also when this process is killed,
//! as soon as somebody unmounts what it left.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, ftruncate, makedev, memfd_create, mknodat, open};
use rustix::io::{Errno, Result};

use crate::sys::{self, LOOP_AUTOCLEAR, LoopConfig};

/// Bytes of the device.
const SIZE: u64 = 4096;
/// Bytes of its blocks; the kernel's FUSE client uses as much.
const BLOCK_SIZE: u32 = 512;
const LOOP_MAJOR: u32 = 7;
/// Others may take the device that was free a moment ago, but not for ever.
const ATTEMPTS: usize = 32;

/// A loop device that nobody else uses. Let go of when this and the mount are gone.
pub(crate) struct LoopDevice {
    path: String,
    _device: OwnedFd,
}

impl LoopDevice {
    pub(crate) fn new() -> Result<LoopDevice> {
        let memory = memfd_create("ashore-fuseblk", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, SIZE)?;
        let control = open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut last = Errno::BUSY;
        for _ in 0..ATTEMPTS {
            let number = sys::free_loop_device(&control)?;
            let (path, device) = open_device(number)?;
            match sys::configure_loop(&device, config(&memory)) {
                Ok(()) => return Ok(LoopDevice { path, _device: device }),
                Err(errno @ Errno::BUSY) => last = errno,
                Err(errno) => return Err(errno),
            }
        }
        Err(last)
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// Opens a loop device; makes its node first where nobody watches over `/dev`, as in a container.
fn open_device(number: u32) -> Result<(String, OwnedFd)> {
    let path = format!("/dev/loop{number}");
    let open = || open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = match open() {
        Err(Errno::NOENT) => {
            let mode = Mode::RUSR | Mode::WUSR;
            match mknodat(CWD, &path, FileType::BlockDevice, mode, makedev(LOOP_MAJOR, number)) {
                Ok(()) | Err(Errno::EXIST) => open()?,
                Err(errno) => return Err(errno),
            }
        }
        opened => opened?,
    };
    Ok((path, device))
}

fn config(memory: &OwnedFd) -> LoopConfig {
    let mut file_name = [0; 64];
    let name = b"ashore mount";
    file_name[..name.len()].copy_from_slice(name);
    LoopConfig {
        file: memory.as_raw_fd() as u32,
        block_size: BLOCK_SIZE,
        places: [0; 5],
        numbers: [0; 3],
        flags: LOOP_AUTOCLEAR,
        file_name,
        unused: [0; 96],
        reserved: [0; 10],
    }
}
