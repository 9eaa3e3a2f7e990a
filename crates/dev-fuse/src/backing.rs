//! Files that the kernel reads and writes itself (`FOPEN_PASSTHROUGH`, Linux 6.9).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use ashore_wire::seam::BackingFiles;

use crate::device::Device;
use crate::sys;

/// Gives the kernel of a mount files; the number that it gives each goes into the reply to an OPEN of it.
///
/// Needs CAP_SYS_ADMIN, and a file of a file system that stands on no other (not of overlayfs, for one).
#[derive(Clone, Debug)]
pub struct KernelFiles(pub(crate) Weak<Device>);

impl BackingFiles for KernelFiles {
    fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        Ok(sys::open_backing(self.device()?.fd(), file)?)
    }

    fn close(&self, id: u32) -> io::Result<()> {
        Ok(sys::close_backing(self.device()?.fd(), id)?)
    }
}

impl KernelFiles {
    fn device(&self) -> io::Result<Arc<Device>> {
        self.0.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
