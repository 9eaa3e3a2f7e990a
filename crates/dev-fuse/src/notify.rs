//! What the server tells the kernel without having been asked.

use std::io::IoSlice;
use std::sync::Weak;

use ashore_wire::NodeId;
use ashore_wire::abi::{NotifyInvalInodeOut, NotifyRetrieveOut, OUT_HEADER_SIZE, OutHeader};
use rustix::io::{Errno, Result};
use zerocopy::IntoBytes;

use crate::device::Device;

/// `FUSE_NOTIFY_INVAL_INODE`.
const NOTIFY_INVAL_INODE: i32 = 2;

/// `FUSE_NOTIFY_RETRIEVE`.
const NOTIFY_RETRIEVE: i32 = 5;
/// The number of its answer. It goes among those of the kernel's requests: even as they are, and far from where they are.
const RETRIEVED: u64 = 1 << 62;

/// Tells the kernel to drop what it remembers. Does not keep the mount's connection alive.
#[derive(Clone, Debug)]
pub struct Notifier {
    device: Weak<Device>,
}

impl Notifier {
    pub(crate) fn new(device: Weak<Device>) -> Notifier {
        Notifier { device }
    }

    /// Makes the kernel write back what is dirty of this inode, wait for its WRITEs to be answered, and drop the pages; its
    /// attributes as well.
    ///
    /// It returns when all of that is done, so it must be called by a thread that answers no requests. An inode that the
    /// kernel does not know is no error. Fails with ENODEV when the mount is gone.
    pub fn invalidate_inode(&self, node: NodeId) -> Result<()> {
        let device = self.device.upgrade().ok_or(Errno::NODEV)?;
        let body = NotifyInvalInodeOut { ino: node.0, off: 0, len: 0 };
        let header = OutHeader {
            len: (OUT_HEADER_SIZE + size_of::<NotifyInvalInodeOut>()) as u32,
            error: NOTIFY_INVAL_INODE,
            unique: 0,
        };
        match device.write(&[IoSlice::new(header.as_bytes()), IoSlice::new(body.as_bytes())]) {
            Err(Errno::NOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Has the kernel send a NOTIFY_REPLY with nothing in it, from the processor that this thread runs on. It does so only for
    /// a file that it knows, and not for a directory.
    pub(crate) fn ask_for_a_message(&self, file: NodeId) -> Result<()> {
        let device = self.device.upgrade().ok_or(Errno::NODEV)?;
        let body = NotifyRetrieveOut { notify_unique: RETRIEVED, nodeid: file.0, ..Default::default() };
        let header = OutHeader {
            len: (OUT_HEADER_SIZE + size_of::<NotifyRetrieveOut>()) as u32,
            error: NOTIFY_RETRIEVE,
            unique: 0,
        };
        device.write(&[IoSlice::new(header.as_bytes()), IoSlice::new(body.as_bytes())])
    }
}
