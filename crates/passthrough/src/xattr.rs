//! Extended attributes.
//!
//! They are reached by the path of a descriptor, so that nothing has to be opened for them: a link, a pipe or a
//! device has them too and must not be opened. Linux 6.13 takes such a path relative to /proc/self/fd; older kernels
//! are given it from the root, or from there as the working directory.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use ashore_server::{Caller, Result};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, NodeId};
use rustix::fs::{AtFlags, Mode, XattrFlags};

use crate::host::{DescriptorPath, HostResult, statx_of};
use crate::sync::Change;
use crate::{Inode, Passthrough, sys};

/// Access control lists are attributes to the host and more than that to a client, which has to know of them. Without
/// that agreement they are not shown.
pub(crate) const ACLS: [&CStr; 2] = [ACCESS_ACL, DEFAULT_ACL];
const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// Whether the host takes paths of attributes relative to a directory.
pub(crate) fn has_relative_calls(descriptors: BorrowedFd<'_>) -> bool {
    // An empty list of a path that is there; any other answer than ENOSYS will do. A sandbox may say EPERM.
    let path = DescriptorPath::of(descriptors);
    !matches!(
        sys::listxattr_at(descriptors, path.as_c_str(), &mut []),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM)
    )
}

/// `FUSE_SETXATTR_ACL_KILL_SGID`: the caller is not in the file's group, so the set-group-id bit goes.
const KILL_SGID: u32 = 1 << 0;
/// Names that are put together in a buffer of ours when they are not passed on as they are: as many bytes as the host has.
const LIST_MAX: usize = 64 << 10;

/// SETXATTR.
pub(crate) fn setxattr(
    fs: &Passthrough,
    node: NodeId,
    name: &CStr,
    value: &[u8],
    (flags, setxattr_flags): (u32, u32),
) -> Result<()> {
    let on_host = served(fs, name)?;
    let inode = fs.inode(node)?;
    fs.refuse_if_readonly()?;
    let change = Change::of(fs, &inode);
    set(fs, inode.fd(), &on_host, value, flags)?;
    if name == ACCESS_ACL && setxattr_flags & KILL_SGID != 0 {
        kill_sgid(fs, &inode)?;
    }
    change.settle(fs)
}

/// GETXATTR.
pub(crate) fn getxattr(fs: &Passthrough, node: NodeId, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    let name = served(fs, name)?;
    get(fs, fs.inode(node)?.fd(), &name, buffer).told()
}

/// LISTXATTR.
pub(crate) fn listxattr(fs: &Passthrough, node: NodeId, buffer: &mut [u8]) -> Result<usize> {
    refuse_if_not_served(fs)?;
    let inode = fs.inode(node)?;
    let Some(map) = &fs.options.xattr_map else {
        let length = list(fs, inode.fd(), buffer).told()?;
        // Only the length was asked for: that of names that are hidden may be in it, which does no harm.
        return if buffer.is_empty() || fs.agreed(InitFlags::POSIX_ACL) {
            Ok(length)
        } else {
            Ok(hide(&mut buffer[..length]))
        };
    };
    let mut on_host = vec![0; LIST_MAX];
    let length = list(fs, inode.fd(), &mut on_host).told()?;
    let mut names = Vec::with_capacity(length);
    for name in on_host[..length].split_inclusive(|byte| *byte == 0) {
        let Some(name) = map.to_client(name.strip_suffix(b"\0").unwrap_or(name)) else { continue };
        if fs.agreed(InitFlags::POSIX_ACL) || !ACLS.iter().any(|acl| acl.to_bytes() == name) {
            names.extend_from_slice(name);
            names.push(0);
        }
    }
    if !buffer.is_empty() {
        buffer.get_mut(..names.len()).ok_or(Errno::ERANGE)?.copy_from_slice(&names);
    }
    Ok(names.len())
}

/// REMOVEXATTR.
pub(crate) fn removexattr(fs: &Passthrough, node: NodeId, name: &CStr) -> Result<()> {
    let name = served(fs, name)?;
    let inode = fs.inode(node)?;
    fs.refuse_if_readonly()?;
    let change = Change::of(fs, &inode);
    let path = DescriptorPath::of(inode.fd());
    if fs.relative_xattrs {
        sys::removexattr_at(fs.places.descriptors(), path.as_c_str(), &name).told()?;
    } else {
        rustix::fs::removexattr(by_path(fs, &path).as_c_str(), &*name).told()?;
    }
    change.settle(fs)
}

/// Gives a file that was just made the security labels that the client wants it to have.
pub(crate) fn label(fs: &Passthrough, file: BorrowedFd<'_>, caller: &Caller<'_>) -> Result<()> {
    if !fs.agreed(InitFlags::SECURITY_CTX) {
        return Ok(());
    }
    for (name, value) in caller.extensions.labels().ok_or(Errno::EINVAL)? {
        set(fs, file, &served(fs, name)?, value, 0)?;
    }
    Ok(())
}

/// Whether what is made in this directory gets permissions from its default access control list, and no umask counts.
pub(crate) fn has_default_acl(fs: &Passthrough, directory: BorrowedFd<'_>) -> bool {
    get(fs, directory, DEFAULT_ACL, &mut []).is_ok()
}

/// Whether the host file system of this file has access control lists.
pub(crate) fn has_acls(fs: &Passthrough, file: BorrowedFd<'_>) -> bool {
    !matches!(get(fs, file, ACCESS_ACL, &mut []), Err(rustix::io::Errno::OPNOTSUPP))
}

/// The host's name of an attribute, if one of this name is served at all.
fn served<'a>(fs: &Passthrough, name: &'a CStr) -> Result<Cow<'a, CStr>> {
    refuse_if_not_served(fs)?;
    if ACLS.contains(&name) && !fs.agreed(InitFlags::POSIX_ACL) {
        return Err(Errno::EOPNOTSUPP);
    }
    fs.options.xattr_map.as_ref().map_or(Ok(Cow::Borrowed(name)), |map| map.to_host(name))
}

fn refuse_if_not_served(fs: &Passthrough) -> Result<()> {
    if fs.options.serves_xattrs() { Ok(()) } else { Err(Errno::ENOSYS) }
}

/// The host clears the bit only for a caller without privileges who is not in the group, and it sees the server.
fn kill_sgid(fs: &Passthrough, inode: &Inode<'_>) -> Result<()> {
    let mode = u32::from(statx_of(inode.fd()).told()?.stx_mode) & 0o7777;
    if mode & libc::S_ISGID == 0 {
        return Ok(());
    }
    let (path, mode) = (DescriptorPath::of(inode.fd()), Mode::from_raw_mode(mode & !libc::S_ISGID));
    rustix::fs::chmodat(fs.places.descriptors(), path.as_c_str(), mode, AtFlags::empty()).told()
}

fn set(fs: &Passthrough, file: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let path = DescriptorPath::of(file);
    if fs.relative_xattrs {
        return sys::setxattr_at(fs.places.descriptors(), path.as_c_str(), name, value, flags).told();
    }
    let flags = XattrFlags::from_bits_retain(flags);
    rustix::fs::setxattr(by_path(fs, &path).as_c_str(), name, value, flags).told()
}

fn get(fs: &Passthrough, file: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let path = DescriptorPath::of(file);
    if fs.relative_xattrs {
        return sys::getxattr_at(fs.places.descriptors(), path.as_c_str(), name, buffer);
    }
    let path = by_path(fs, &path);
    // An empty buffer asks how long the value is, which is a function of its own there.
    match buffer.is_empty() {
        true => rustix::fs::getxattr_query(path.as_c_str(), name),
        false => rustix::fs::getxattr(path.as_c_str(), name, buffer),
    }
}

fn list(fs: &Passthrough, file: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let path = DescriptorPath::of(file);
    if fs.relative_xattrs {
        return sys::listxattr_at(fs.places.descriptors(), path.as_c_str(), buffer);
    }
    let path = by_path(fs, &path);
    match buffer.is_empty() {
        true => rustix::fs::listxattr_query(path.as_c_str()),
        false => rustix::fs::listxattr(path.as_c_str(), buffer),
    }
}

/// A name of an open file that needs no directory beside it.
fn by_path(fs: &Passthrough, path: &DescriptorPath) -> CString {
    let here = fs.at_descriptors.load(Ordering::Relaxed);
    let mut text = if here { Vec::new() } else { b"/proc/self/fd/".to_vec() };
    text.extend_from_slice(path.as_c_str().to_bytes());
    CString::new(text).expect("digits have no NUL")
}

/// Takes hidden names out of a list; returns how long it is then.
fn hide(list: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(end) = list[from..].iter().position(|byte| *byte == 0) {
        let next = from + end + 1;
        let hidden = ACLS.iter().any(|name| name.to_bytes_with_nul() == &list[from..next]);
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
