//! Where in the share a file is: its path, for another server to find it by.
//!
//! The host's kernel knows the path of an open file, as /proc/self/fd shows it. It may be out of date or no path at all, of a file
//! that was opened by handle for example, so it is walked, and believed if it leads to that file. Files whose path is not
//! found so are looked for in the whole share.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ashore_server::Result;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

use crate::Passthrough;
use crate::host::{DescriptorPath, FileIdentity, HostResult, statx_at};
use crate::places::identity_of;

/// Bytes of a path, as the host has it.
const PATH_MAX: usize = 4096;

/// Opens what a path, relative to the share, leads to. No link is followed, and nothing leads out of the share.
pub(crate) fn open_beneath(fs: &Passthrough, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(&fs.root.descriptor, path, flags, Mode::empty(), resolve).told()
}

/// The path of an open file, if it leads to that file.
pub(crate) fn path_of(fs: &Passthrough, file: BorrowedFd<'_>, identity: &FileIdentity) -> Option<Vec<u8>> {
    let (root, path) = (shown(fs, fs.root.descriptor.as_fd())?, shown(fs, file)?);
    let below = path.strip_prefix(root.strip_suffix(b"/").unwrap_or(&root))?.strip_prefix(b"/")?;
    let found = open_beneath(fs, below, OFlags::PATH).ok()?;
    (below.len() < PATH_MAX && is_same(&identity_of(&found).ok()?, identity)).then(|| below.to_vec())
}

/// What /proc shows of a descriptor.
fn shown(fs: &Passthrough, file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let link = DescriptorPath::of(file);
    rustix::fs::readlinkat(fs.places.descriptors(), link.as_c_str(), Vec::new())
        .ok()
        .map(|path| path.into_bytes())
}

/// Which mount it was reached by does not matter.
fn is_same(one: &FileIdentity, other: &FileIdentity) -> bool {
    let which = |identity: &FileIdentity| (identity.device, identity.ino, identity.birth, identity.kind);
    which(one) == which(other)
}

/// Looks for files in the whole share. Returns the paths of those that were found.
pub(crate) fn search(fs: &Passthrough, wanted: &[FileIdentity]) -> HashMap<usize, Vec<u8>> {
    let mut missing: HashMap<(u64, u64), usize> = HashMap::new();
    for (number, identity) in wanted.iter().enumerate() {
        missing.insert((identity.device, identity.ino), number);
    }
    let mut found = HashMap::new();
    let mut directories = vec![Vec::new()];
    while let Some(path) = directories.pop() {
        if missing.is_empty() {
            break;
        }
        // A directory that went meanwhile, or that nobody may read, has nothing for us.
        let Ok(directory) = open_beneath(fs, &path, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        let Ok(names) = Dir::read_from(&directory) else { continue };
        for name in names.filter_map(|name| name.ok()) {
            let name = name.file_name();
            let path = match path.is_empty() {
                true => name.to_bytes().to_vec(),
                false => [&path[..], b"/", name.to_bytes()].concat(),
            };
            let skipped = matches!(name.to_bytes(), b"." | b"..") || path.len() >= PATH_MAX;
            let Some(stat) = (!skipped).then(|| statx_at(directory.as_fd(), name).ok()).flatten() else {
                continue;
            };
            let identity = FileIdentity::of(&stat);
            let key = (identity.device, identity.ino);
            if let Some(number) =
                missing.get(&key).copied().filter(|number| is_same(&wanted[*number], &identity))
            {
                missing.remove(&key);
                found.insert(number, path.clone());
            }
            if identity.kind == libc::S_IFDIR {
                directories.push(path);
            }
        }
    }
    found
}
