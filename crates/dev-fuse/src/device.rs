//! Descriptors of `/dev/fuse`.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ashore_wire::abi::{OUT_HEADER_SIZE, OutHeader};
use ashore_wire::reply::error_header;
use ashore_wire::{Errno, RequestId};
use rustix::fs::{Mode, OFlags};
use rustix::io;
use zerocopy::IntoBytes;

use crate::sys;

/// Where the kernel's FUSE client is talked to.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// One descriptor of a session. A reply goes through the descriptor its request came from.
#[derive(Debug)]
pub(crate) struct Device {
    fd: OwnedFd,
}

/// What reading a request came to.
pub(crate) enum Came {
    /// A request of so many bytes.
    Request(usize),
    /// Nothing yet: a signal, or a request whose caller gave up before it could be read.
    Again,
    /// The mount is gone.
    Ended,
    /// The descriptor does not wait for requests.
    WouldBlock,
    /// Something that should not happen.
    Failed(io::Errno),
}

impl Device {
    pub(crate) fn open() -> io::Result<OwnedFd> {
        rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }

    pub(crate) fn new(fd: OwnedFd) -> Device {
        Device { fd }
    }

    /// One more descriptor of the same session.
    pub(crate) fn try_clone(&self) -> io::Result<Device> {
        let fd = Device::open()?;
        sys::clone_session(fd.as_fd(), self.fd.as_fd())?;
        Ok(Device { fd })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Came {
        match io::read(&self.fd, buffer) {
            Ok(length) => Came::Request(length),
            Err(io::Errno::INTR | io::Errno::NOENT) => Came::Again,
            Err(io::Errno::AGAIN) => Came::WouldBlock,
            Err(io::Errno::NODEV | io::Errno::CONNABORTED) => Came::Ended,
            Err(errno) => Came::Failed(errno),
        }
    }

    /// Sends a reply in one call. The kernel has a caller waiting who gets EIO if it does not like the reply.
    pub(crate) fn reply(&self, header: OutHeader, body: &[u8]) {
        let body = &body[..(header.len as usize).saturating_sub(OUT_HEADER_SIZE).min(body.len())];
        match self.write(&[IoSlice::new(header.as_bytes()), IoSlice::new(body)]) {
            // ENOENT: its caller has gone. The others: so has the mount.
            Ok(()) | Err(io::Errno::NOENT | io::Errno::NODEV | io::Errno::CONNABORTED) => {}
            Err(errno) => {
                tracing::error!("the kernel did not take a reply of {} bytes: {errno}", header.len);
                let refusal = error_header(RequestId(header.unique), Errno::EIO);
                // If the kernel had recognised the request, it has answered EIO itself and knows this one no more.
                let _ = self.write(&[IoSlice::new(refusal.as_bytes())]);
            }
        }
    }

    /// Writes one message, whole: a reply or a notification.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::retry_on_intr(|| io::writev(&self.fd, pieces)).map(drop)
    }
}
