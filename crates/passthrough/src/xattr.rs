//! Extended attributes.
//!
//! They are reached by the path of a descriptor, so that nothing has to be opened for them: a link, a pipe or a
//! device has them too and must not be opened. Linux 6.13 takes such a path relative to /proc/self/fd; older kernels
//! are given it from the root.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use ashore_server::Result;
use ashore_wire::{Errno, NodeId};
use rustix::fs::XattrFlags;

use crate::host::{DescriptorPath, HostResult};
use crate::sync::Change;
use crate::{Passthrough, sys};

/// Access control lists are attributes to the host and more than that to a client, which has to know of them. Without
/// that agreement they are not shown.
const HIDDEN: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Whether the host takes paths of attributes relative to a directory.
pub(crate) fn has_relative_calls(descriptors: BorrowedFd<'_>) -> bool {
    // An empty list of a path that is there; any other answer than ENOSYS will do. A sandbox may say EPERM.
    let path = DescriptorPath::of(descriptors);
    !matches!(
        sys::listxattr_at(descriptors, path.as_c_str(), &mut []),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM)
    )
}

/// SETXATTR.
pub(crate) fn setxattr(fs: &Passthrough, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let inode = fs.inode(served(fs, node, name)?)?;
    fs.refuse_if_readonly()?;
    let change = Change::of(fs, &inode);
    let path = DescriptorPath::of(inode.fd());
    if fs.relative_xattrs {
        sys::setxattr_at(fs.places.descriptors(), path.as_c_str(), name, value, flags).told()?;
    } else {
        let flags = XattrFlags::from_bits_retain(flags);
        rustix::fs::setxattr(absolute(&path).as_c_str(), name, value, flags).told()?;
    }
    change.settle(fs)
}

/// GETXATTR.
pub(crate) fn getxattr(fs: &Passthrough, node: NodeId, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    let inode = fs.inode(served(fs, node, name)?)?;
    let path = DescriptorPath::of(inode.fd());
    if fs.relative_xattrs {
        sys::getxattr_at(fs.places.descriptors(), path.as_c_str(), name, buffer).told()
    } else {
        rustix::fs::getxattr(absolute(&path).as_c_str(), name, buffer).told()
    }
}

/// LISTXATTR.
pub(crate) fn listxattr(fs: &Passthrough, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
    let inode = fs.inode(served(fs, node, c"")?)?;
    let path = DescriptorPath::of(inode.fd());
    let length = if fs.relative_xattrs {
        sys::listxattr_at(fs.places.descriptors(), path.as_c_str(), buffer).told()?
    } else {
        rustix::fs::listxattr(absolute(&path).as_c_str(), &mut *buffer).told()?
    };
    // Only the length was asked for: that of the names that are hidden may be in it, which does no harm.
    if buffer.is_empty() { Ok(length) } else { Ok(hide(&mut buffer[..length])) }
}

/// REMOVEXATTR.
pub(crate) fn removexattr(fs: &Passthrough, node: NodeId, name: &CStr) -> Result<()> {
    let inode = fs.inode(served(fs, node, name)?)?;
    fs.refuse_if_readonly()?;
    let change = Change::of(fs, &inode);
    let path = DescriptorPath::of(inode.fd());
    if fs.relative_xattrs {
        sys::removexattr_at(fs.places.descriptors(), path.as_c_str(), name).told()?;
    } else {
        rustix::fs::removexattr(absolute(&path).as_c_str(), name).told()?;
    }
    change.settle(fs)
}

/// The node, if the attribute of this name is served at all.
fn served(fs: &Passthrough, node: NodeId, name: &CStr) -> Result<NodeId> {
    if !fs.options.xattr {
        return Err(Errno::ENOSYS);
    }
    if HIDDEN.contains(&name) { Err(Errno::EOPNOTSUPP) } else { Ok(node) }
}

fn absolute(path: &DescriptorPath) -> CString {
    let mut text = b"/proc/self/fd/".to_vec();
    text.extend_from_slice(path.as_c_str().to_bytes());
    CString::new(text).expect("digits have no NUL")
}

/// Takes hidden names out of a list; returns how long it is then.
fn hide(list: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(end) = list[from..].iter().position(|byte| *byte == 0) {
        let next = from + end + 1;
        let hidden = HIDDEN.iter().any(|name| name.to_bytes_with_nul() == &list[from..next]);
        if !hidden {
            list.copy_within(from..next, to);
            to += next - from;
        }
        from = next;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_lose_hidden_names_only() {
        let mut list = *b"user.a\0system.posix_acl_access\0user.b\0system.posix_acl_default\0";
        let length = hide(&mut list);
        assert_eq!(&list[..length], b"user.a\0user.b\0");
        assert_eq!(hide(&mut []), 0);
    }
}
