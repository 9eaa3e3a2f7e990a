//! Names: finding, making, renaming and removing them.
//!
//! A name is one component, resolved from a descriptor of its parent by calls that follow no symbolic link, so nothing
//! that happens to the tree meanwhile leads out of it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ashore_server::{Caller, Created, Entry, Result};
use ashore_wire::flags::{AttrFlags, InitFlags, OpenRequestFlags};
use ashore_wire::{Errno, Name, NodeId};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno as HostErrno;

use crate::attributes::to_wire;
use crate::host::{DescriptorPath, FileIdentity, HostResult, HostStatx, statx_at, statx_of, told};
use crate::inodes::{Candidate, Key, Location, Recognised, SharedFd};
use crate::options::InodeFileHandles;
use crate::places::{Place, identity_of};
use crate::sync::Change;
use crate::{Inode, Passthrough, data, sys, xattr};

/// How often to look again when a name is given to other files all the time.
const ATTEMPTS: usize = 10;

/// One component, below its parent, and itself not a link.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);

/// LOOKUP. One system call if the inode is known, or missing; two more if it is new.
pub(crate) fn lookup(fs: &Passthrough, parent: NodeId, name: Name<'_>) -> Result<Entry> {
    let directory = fs.inode(parent)?;
    let timeout = fs.options.negative_timeout;
    match entry_at(fs, directory.fd(), directory.place, name.as_c_str()) {
        Err(Errno::ENOENT) if !timeout.is_zero() => Ok(Entry::negative(timeout)),
        found => found,
    }
}

/// The entry of `name`, counted as a lookup.
pub(crate) fn entry_at(
    fs: &Passthrough,
    directory: BorrowedFd<'_>,
    parent: &Place,
    name: &CStr,
) -> Result<Entry> {
    for _ in 0..ATTEMPTS {
        let stat = statx_at(directory, name).told()?;
        let identity = FileIdentity::of(&stat);
        let Some(place) = place_at(fs, directory, parent, name, &identity)? else { continue };
        let candidate = candidate(place, &identity);
        let node = match fs.inodes.recognise(&candidate) {
            Recognised::Known(node) => node,
            Recognised::Unknown => match location_at(fs, directory, place, name, &identity)? {
                Some((location, verified)) => fs.inodes.add(&candidate, location, verified),
                None => continue,
            },
        };
        return Ok(entry(fs, node, &stat, parent, place));
    }
    // The name went from file to file; the client is to look again.
    Err(Errno::ESTALE)
}

/// Where the file called `name` is. `None` if the name has gone to another file meanwhile.
fn place_at<'a>(
    fs: &'a Passthrough,
    directory: BorrowedFd<'_>,
    parent: &'a Place,
    name: &CStr,
    identity: &FileIdentity,
) -> Result<Option<&'a Place>> {
    if parent.holds(identity) {
        return Ok(Some(parent));
    }
    if let Some(place) = fs.places.known(identity) {
        return Ok(Some(place));
    }
    let file = open_path(directory, name)?;
    if identity_of(&file).told()? != *identity {
        return Ok(None);
    }
    Ok(Some(fs.places.enter(identity, file.as_fd())?))
}

/// How to open the file called `name` again, and whether that is known to be the right one. `None` if the name has gone
/// to another file meanwhile.
fn location_at(
    fs: &Passthrough,
    directory: BorrowedFd<'_>,
    place: &Place,
    name: &CStr,
    identity: &FileIdentity,
) -> Result<Option<(Location, bool)>> {
    if place.has_handles {
        match sys::name_to_handle(directory, name) {
            Ok(handle) => return Ok(Some((Location::by_handle(&handle), false))),
            Err(errno) if !lacks_handle(fs, errno) => return Err(told(errno)),
            Err(_) => {}
        }
    }
    let file = open_path(directory, name)?;
    let same = identity_of(&file).told()? == *identity;
    Ok(same.then(|| (Location::Descriptor(Arc::new(file)), true)))
}

/// Whether a file without a handle is to be held by a descriptor.
fn lacks_handle(fs: &Passthrough, errno: HostErrno) -> bool {
    let none = matches!(errno, HostErrno::OPNOTSUPP | HostErrno::OVERFLOW | HostErrno::NOSYS);
    none && fs.options.inode_file_handles != InodeFileHandles::Mandatory
}

fn open_path(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without NO_SYMLINKS, which would refuse to open a link itself; NOFOLLOW does not follow it.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve).told()
}

fn candidate(place: &Place, identity: &FileIdentity) -> Candidate {
    let key = Key { place: place.index, ino: identity.ino };
    Candidate { key, birth: identity.birth, kind: identity.kind }
}

fn entry(fs: &Passthrough, node: NodeId, stat: &HostStatx, parent: &Place, place: &Place) -> Entry {
    let mut attr = to_wire(fs, stat);
    let begins_here = place.index != parent.index && attr.mode & libc::S_IFMT == libc::S_IFDIR;
    if begins_here && fs.agreed(InitFlags::SUBMOUNTS) {
        attr.flags = AttrFlags::SUBMOUNT.bits();
        place.ledger.announce();
    }
    let timeout = fs.options.cache.timeout();
    Entry { node: node.0, generation: 0, attr, entry_timeout: timeout, attr_timeout: timeout }
}

/// SYMLINK.
pub(crate) fn symlink(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    name: Name<'_>,
    target: &CStr,
) -> Result<Entry> {
    make(fs, caller, parent, name, |directory| rustix::fs::symlinkat(target, directory, name.as_c_str()))
}

/// MKNOD.
pub(crate) fn mknod(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    name: Name<'_>,
    (mode, umask): (u32, u32),
    device: u32,
) -> Result<Entry> {
    let kind = rustix::fs::FileType::from_raw_mode(mode);
    let device = host_device(device);
    make(fs, caller, parent, name, |directory| {
        let mode = permissions(fs, directory, mode, umask);
        rustix::fs::mknodat(directory, name.as_c_str(), kind, mode, device)
    })
}

/// MKDIR.
pub(crate) fn mkdir(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    name: Name<'_>,
    (mode, umask): (u32, u32),
) -> Result<Entry> {
    make(fs, caller, parent, name, |directory| {
        rustix::fs::mkdirat(directory, name.as_c_str(), permissions(fs, directory, mode, umask))
    })
}

/// LINK.
pub(crate) fn link(fs: &Passthrough, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
    fs.refuse_if_readonly()?;
    let (file, directory) = (fs.inode(node)?, fs.inode(parent)?);
    let (counted, listed) = (Change::of(fs, &file), Change::of(fs, &directory));
    let path = DescriptorPath::of(file.fd());
    // Following the link of /proc leads to the file itself, a symbolic link included, and needs no privilege.
    let flags = AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(fs.places.descriptors(), path.as_c_str(), directory.fd(), name.as_c_str(), flags)
        .told()?;
    counted.mark();
    listed.settle(fs)?;
    entry_at(fs, directory.fd(), directory.place, name.as_c_str())
}

/// Makes something in `parent` that belongs to the caller.
fn make(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    name: Name<'_>,
    call: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
) -> Result<Entry> {
    fs.refuse_if_readonly()?;
    let directory = fs.inode(parent)?;
    let listed = Change::of(fs, &directory);
    let as_caller = fs.become_caller(caller)?;
    call(directory.fd()).told()?;
    drop(as_caller);
    listed.settle(fs)?;
    let entry = entry_at(fs, directory.fd(), directory.place, name.as_c_str())?;
    // Asked first, for to open what was made is a call that no other client needs.
    if fs.agreed(InitFlags::SECURITY_CTX) {
        let node = NodeId(entry.node);
        let labelled = fs.inode(node).and_then(|made| xattr::label(fs, made.fd(), caller));
        labelled.inspect_err(|_| unmake(fs, &directory, name, node))?;
    }
    Ok(entry)
}

/// What the client wanted to have a label and could not be given it must not stay.
fn unmake(fs: &Passthrough, directory: &Inode<'_>, name: Name<'_>, node: NodeId) {
    fs.inodes.forget(node, 1);
    for flags in [AtFlags::empty(), AtFlags::REMOVEDIR] {
        if rustix::fs::unlinkat(directory.fd(), name.as_c_str(), flags).is_ok() {
            return;
        }
    }
}

/// CREATE.
pub(crate) fn create(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    name: Name<'_>,
    (flags, mode, umask): (u32, u32, u32),
    open_flags: OpenRequestFlags,
) -> Result<Created> {
    fs.refuse_if_readonly()?;
    let directory = fs.inode(parent)?;
    let exclusively = data::host_flags(fs, flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let listed = Change::of(fs, &directory);
    let mode = permissions(fs, directory.fd(), mode, umask);
    let as_caller = fs.become_caller(caller)?;
    let exclusively = exclusively | OFlags::CLOEXEC;
    let made = rustix::fs::openat2(directory.fd(), name.as_c_str(), exclusively, mode, BENEATH);
    drop(as_caller);
    match made {
        Ok(file) => {
            listed.mark();
            let labelled = xattr::label(fs, file.as_fd(), caller);
            let made = labelled.and_then(|()| made_file(fs, &directory, file, false));
            made.inspect_err(|_| _ = rustix::fs::unlinkat(directory.fd(), name.as_c_str(), AtFlags::empty()))
        }
        Err(HostErrno::EXIST) if flags & libc::O_EXCL as u32 == 0 => {
            let entry = entry_at(fs, directory.fd(), directory.place, name.as_c_str())?;
            let opened = data::open(fs, NodeId(entry.node), flags, open_flags);
            let opened = opened.inspect_err(|_| _ = fs.inodes.forget(NodeId(entry.node), 1))?;
            Ok(Created { entry, opened })
        }
        Err(errno) => Err(told(errno)),
    }
}

/// TMPFILE.
pub(crate) fn tmpfile(
    fs: &Passthrough,
    caller: &Caller<'_>,
    parent: NodeId,
    flags: u32,
    (mode, umask): (u32, u32),
) -> Result<Created> {
    fs.refuse_if_readonly()?;
    let directory = fs.inode(parent)?;
    let excluded = if flags & libc::O_EXCL as u32 == 0 { OFlags::empty() } else { OFlags::EXCL };
    let flags = data::host_flags(fs, flags) | OFlags::TMPFILE | excluded | OFlags::CLOEXEC;
    let mode = permissions(fs, directory.fd(), mode, umask);
    let as_caller = fs.become_caller(caller)?;
    let made = rustix::fs::openat2(directory.fd(), c".", flags, mode, BENEATH);
    drop(as_caller);
    let file = made.told()?;
    xattr::label(fs, file.as_fd(), caller)?;
    made_file(fs, &directory, file, true)
}

/// The entry and handle of a file that has just been made and opened.
fn made_file(fs: &Passthrough, directory: &Inode<'_>, file: OwnedFd, nameless: bool) -> Result<Created> {
    let stat = statx_of(&file).told()?;
    let identity = FileIdentity::of(&stat);
    let place = if directory.place.holds(&identity) {
        directory.place
    } else {
        fs.places.enter(&identity, file.as_fd())?
    };
    fs.places.before_change(place, file.as_fd());
    let handle =
        if place.has_handles && !nameless { sys::name_to_handle(file.as_fd(), c"").ok() } else { None };
    let location = match handle {
        Some(handle) => Location::by_handle(&handle),
        // A file without a name is gone with its last descriptor, and the node may outlive the handle.
        None => Location::Descriptor(Arc::new(fs.places.reopen(file.as_fd(), OFlags::PATH).told()?)),
    };
    let node = fs.inodes.add(&candidate(place, &identity), location, true);
    let opened = data::changed_file(fs, node, place, file);
    let opened = opened.inspect_err(|_| _ = fs.inodes.forget(node, 1))?;
    Ok(Created { entry: entry(fs, node, &stat, directory.place, place), opened })
}

/// UNLINK and RMDIR.
pub(crate) fn remove(fs: &Passthrough, parent: NodeId, name: Name<'_>, flags: AtFlags) -> Result<()> {
    fs.refuse_if_readonly()?;
    let directory = fs.inode(parent)?;
    let listed = Change::of(fs, &directory);
    let victim = last_name(fs, &directory, name);
    rustix::fs::unlinkat(directory.fd(), name.as_c_str(), flags).told()?;
    hold(fs, victim);
    listed.settle(fs)
}

/// RENAME and RENAME2.
pub(crate) fn rename(
    fs: &Passthrough,
    (parent, name): (NodeId, Name<'_>),
    (new_parent, new_name): (NodeId, Name<'_>),
    flags: u32,
) -> Result<()> {
    fs.refuse_if_readonly()?;
    let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    let (from, to) = (fs.inode(parent)?, fs.inode(new_parent)?);
    let (left, entered) = (Change::of(fs, &from), Change::of(fs, &to));
    let replaces = !flags.intersects(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE);
    let victim = if replaces { last_name(fs, &to, new_name) } else { None };
    rustix::fs::renameat_with(from.fd(), name.as_c_str(), to.fd(), new_name.as_c_str(), flags).told()?;
    hold(fs, victim);
    left.mark();
    entered.settle(fs)
}

/// A node that is about to lose its last name, with a descriptor that will keep it.
///
/// The client may go on using the node until it forgets it, and the kernel frees the inode as soon as it has neither a
/// name nor a descriptor; its handle would then lead nowhere.
fn last_name(fs: &Passthrough, directory: &Inode<'_>, name: Name<'_>) -> Option<(NodeId, SharedFd)> {
    if !directory.place.has_handles {
        return None;
    }
    let stat = statx_at(directory.fd(), name.as_c_str()).ok()?;
    let identity = FileIdentity::of(&stat);
    if stat.stx_nlink > 1 && identity.kind != libc::S_IFDIR {
        return None;
    }
    let place = fs.places.known(&identity)?;
    let node = fs.inodes.node_of(&candidate(place, &identity))?;
    let inode = fs.inode(node).ok()?;
    Some((node, inode.shared_fd()))
}

fn hold(fs: &Passthrough, victim: Option<(NodeId, SharedFd)>) {
    if let Some((node, descriptor)) = victim {
        fs.inodes.hold(node, descriptor);
    }
}

/// READLINK.
pub(crate) fn readlink(fs: &Passthrough, node: NodeId) -> Result<Vec<u8>> {
    let inode = fs.inode(node)?;
    if inode.kind != libc::S_IFLNK {
        return Err(Errno::EINVAL);
    }
    rustix::fs::readlinkat(inode.fd(), c"", Vec::new()).told().map(|target| target.into_bytes())
}

/// Permissions of what is made in `directory`. A client that has access control lists leaves its umask to us, for it
/// does not count where the directory's default list says what is permitted.
fn permissions(fs: &Passthrough, directory: BorrowedFd<'_>, mode: u32, umask: u32) -> Mode {
    let masked = fs.agreed(InitFlags::DONT_MASK) && !xattr::has_default_acl(fs, directory);
    Mode::from_raw_mode(mode & 0o7777 & if masked { !umask } else { !0 })
}

/// A device number of the protocol: 12 bits of major, 20 of minor, in the order the kernel has had them since 2.6.
fn host_device(device: u32) -> rustix::fs::Dev {
    rustix::fs::makedev((device & 0xf_ff00) >> 8, device & 0xff | (device >> 12) & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_way_there_and_back() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let wire = crate::attributes::wire_device(major, minor);
            assert_eq!(host_device(wire), rustix::fs::makedev(major, minor));
        }
    }
}
