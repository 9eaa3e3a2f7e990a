//! Extended attributes, and what is told of a whole host file system: always asked for, never cached.

use std::sync::Arc;

use ashore_wire::abi::{GetxattrIn, GetxattrOut, Kstatfs, SetxattrIn, StatfsOut};
use ashore_wire::{Errno, Opcode};

use super::Mount;
use super::inodes::Inode;
use super::message::Outgoing;

/// Bytes of an extended attribute's value, or of the list of their names, at most (as on Linux).
const XATTR_MAX: usize = 64 << 10;

impl Mount {
    pub(crate) fn statfs(&self, inode: &Inode) -> Result<Kstatfs, Errno> {
        let request = Outgoing::new(Opcode::Statfs, inode.node).expect::<StatfsOut>();
        Ok(self.call(request)?.read::<StatfsOut>()?.st)
    }

    /// The value of an extended attribute.
    pub(crate) fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.xattr_bytes(Outgoing::new(Opcode::Getxattr, inode.node), Some(name))
    }

    /// The names of all extended attributes, each with its NUL.
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<Vec<u8>, Errno> {
        self.xattr_bytes(Outgoing::new(Opcode::Listxattr, inode.node), None)
    }

    fn xattr_bytes(&self, request: Outgoing, name: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        let request = request.with(&GetxattrIn { size: XATTR_MAX as u32, padding: 0 });
        let request = match name {
            Some(name) => request.name(name),
            None => request,
        };
        Ok(self.call(request.expect_bytes(XATTR_MAX).expect::<GetxattrOut>())?.body)
    }

    /// Sets an extended attribute; `flags` as in setxattr(2).
    pub(crate) fn set_xattr(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        if value.len() > XATTR_MAX {
            return Err(Errno::E2BIG);
        }
        let (request, size) = (Outgoing::new(Opcode::Setxattr, inode.node), value.len() as u32);
        let request = if self.agreed().setxattr_ext {
            request.with(&SetxattrIn { size, flags, ..Default::default() })
        } else {
            request.with(&[size, flags])
        };
        self.change_inode(inode, request.name(name).with(value)).map(drop)
    }

    pub(crate) fn remove_xattr(self: &Arc<Self>, inode: &Arc<Inode>, name: &[u8]) -> Result<(), Errno> {
        let request = Outgoing::new(Opcode::Removexattr, inode.node).name(name);
        self.change_inode(inode, request).map(drop)
    }
}
