//! Namespaces, and the shared directory as root.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_bind_recursive, mount_change, open_tree,
    unmount,
};
use rustix::process::{Gid, Uid, chdir, chroot, getegid, geteuid, pivot_root};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::ids::{self, IdRange, MapWriter};
use crate::{IsolationError, failed, sys};

/// The next child is the first process of a namespace of its own; with a user namespace if it would not be allowed to make
/// others otherwise, or if users are to be mapped.
pub(crate) fn for_children(
    user_namespace: bool,
    uid_map: &[IdRange],
    gid_map: &[IdRange],
) -> Result<(), IsolationError> {
    let refused = |source| IsolationError::NoNamespaces { source };
    if !user_namespace {
        return sys::unshare(UnshareFlags::NEWPID).map_err(refused);
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if uid_map.is_empty() && gid_map.is_empty() {
        sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWPID).map_err(refused)?;
        return ids::map_own(uid, gid).map_err(failed("the user cannot be mapped into a namespace"));
    }
    let own = |id| vec![IdRange { inside: id, outside: id, count: 1 }];
    let or_own = |ranges: &[IdRange], id| if ranges.is_empty() { own(id) } else { ranges.to_vec() };
    let users = MapWriter::new("--uid-map", "newuidmap", &or_own(uid_map, uid))?;
    let groups = MapWriter::new("--gid-map", "newgidmap", &or_own(gid_map, gid))?;
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWPID).map_err(refused)?;
    users.write()?;
    groups.write()
}

/// The server, in its process namespace: its own mounts, with the share among them, and a network without anybody.
pub(crate) fn enter(shared_dir: &Path, user_namespace: bool) -> Result<(), IsolationError> {
    if user_namespace {
        become_root();
    }
    sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET)
        .map_err(|source| IsolationError::NoNamespaces { source })?;
    // What the host mounts below the share later comes here; nothing goes the other way.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(failed("mounts cannot be kept from the host's"))?;
    // Only a mount can become the root. What cannot be bound, a directory that is not there for one, is told of by the share,
    // which knows it better.
    if shared_dir.is_dir()
        && let Err(error) = mount_bind_recursive(shared_dir, shared_dir)
    {
        return Err(no_root(shared_dir, error));
    }
    Ok(())
}

/// Root of the namespace, if it has one: who has no number in it is nobody there.
fn become_root() {
    let has = |map: &str| {
        let text = fs::read_to_string(map).unwrap_or_default();
        text.lines().any(|line| line.split_whitespace().next() == Some("0"))
    };
    if has("/proc/self/uid_map") && has("/proc/self/gid_map") {
        let ids = set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
            .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
            .and_then(|()| set_thread_groups(&[]));
        if let Err(error) = ids {
            tracing::warn!("the server cannot be root in its user namespace: {error}");
        }
    }
}

/// The shared directory becomes the root of the mounts, and all others go.
pub(crate) fn make_root(shared_dir: &Path) -> Result<(), IsolationError> {
    chdir(shared_dir)
        // Both arguments the same: the old root lies on the new one then, from where it is taken away (pivot_root(2)).
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| chdir("/"))
        .map_err(|error| no_root(shared_dir, error))
}

pub(crate) fn change_root(shared_dir: &Path) -> Result<(), IsolationError> {
    chroot(shared_dir).and_then(|()| chdir("/")).map_err(|error| no_root(shared_dir, error))
}

fn no_root(shared_dir: &Path, error: rustix::io::Errno) -> IsolationError {
    IsolationError::NoRoot { path: shared_dir.to_owned(), source: error.into() }
}

/// A directory as the root of a mount that hangs nowhere: `..` does not lead out of it.
pub(crate) fn detached(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
