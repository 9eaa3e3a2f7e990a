//! IOCTL: flags of inodes, as chattr(1), lsattr(1) and xfs_io(8) read and set them. Anything else is ENOTTY.
//!
//! The protocol carries an ioctl as a number and plain bytes, in and out; a call whose argument names a descriptor or
//! memory of the caller means nothing here. So a clone (FICLONE) cannot come this way, and Linux does not send one:
//! a guest that wants shared extents uses copy_file_range(2), which the host does by reference where it can.

use ashore_server::Result;
use ashore_wire::abi::IoctlIn;
use ashore_wire::{Errno, FileHandle, NodeId};
use rustix::fs::IFlags;

use crate::Passthrough;
use crate::data::written;
use crate::host::HostResult;
use crate::sys;

/// `FS_XFLAG_PROJINHERIT`.
const X_PROJECT_INHERIT: u32 = 0x200;
/// Where in `struct fsxattr` the flags are, and the project's id.
const X_FLAGS: std::ops::Range<usize> = 0..4;
const X_PROJECT: std::ops::Range<usize> = 12..16;

/// IOCTL; the bytes to answer with go into `output`.
pub(crate) fn ioctl(
    fs: &Passthrough,
    node: NodeId,
    arguments: &IoctlIn,
    input: &[u8],
    output: &mut Vec<u8>,
) -> Result<i32> {
    let file = fs.handles.find(FileHandle(arguments.fh), node)?;
    match arguments.cmd {
        sys::GET_FLAGS => {
            let flags = rustix::fs::ioctl_getflags(file.descriptor()).told()?;
            output.extend_from_slice(&flags.bits().to_ne_bytes());
        }
        sys::SET_FLAGS => {
            fs.refuse_if_readonly()?;
            let wanted = IFlags::from_bits_retain(u32::from_ne_bytes(first(input)?));
            let current = rustix::fs::ioctl_getflags(file.descriptor()).told()?;
            keeps_project(!(wanted ^ current).contains(IFlags::PROJECT_INHERIT))?;
            rustix::fs::ioctl_setflags(file.descriptor(), wanted).told()?;
            written(fs, &file)?;
        }
        sys::GET_X_ATTRIBUTES => {
            output.extend_from_slice(&sys::x_attributes(file.descriptor()).told()?);
        }
        sys::SET_X_ATTRIBUTES => {
            fs.refuse_if_readonly()?;
            let wanted: [u8; sys::X_ATTRIBUTES_SIZE] = first(input)?;
            let current = sys::x_attributes(file.descriptor()).told()?;
            keeps_project(
                wanted[X_PROJECT] == current[X_PROJECT]
                    && (word(&wanted) ^ word(&current)) & X_PROJECT_INHERIT == 0,
            )?;
            sys::set_x_attributes(file.descriptor(), &wanted).told()?;
            written(fs, &file)?;
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

/// Quotas of the host may go by project; a client must not leave the one its share is in.
fn keeps_project(keeps: bool) -> Result<()> {
    if keeps { Ok(()) } else { Err(Errno::EPERM) }
}

fn first<const SIZE: usize>(input: &[u8]) -> Result<[u8; SIZE]> {
    input.first_chunk().copied().ok_or(Errno::EINVAL)
}

fn word(attributes: &[u8; sys::X_ATTRIBUTES_SIZE]) -> u32 {
    u32::from_ne_bytes(attributes[X_FLAGS].try_into().expect("four bytes"))
}
