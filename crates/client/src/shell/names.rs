//! Names: looking them up, making, renaming and removing them; opening what they lead to.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

use ashore_wire::abi::{
    AttrOut, CreateIn, EntryOut, LinkIn, MkdirIn, MknodIn, OpenIn, OpenOut, ReadIn, Rename2In,
};
use ashore_wire::encode::{ListedName, listed_names};
use ashore_wire::flags::{AttrFlags, OpenReplyFlags};
use ashore_wire::request::{LINK_TARGET_MAX, NAME_MAX};
use ashore_wire::{Errno, FileHandle, NodeId, Opcode};

use super::Mount;
use super::flusher::Chore;
use super::inodes::{Asked, Inode, OpenHandle};
use super::message::Outgoing;
use super::patience::Patience;
use super::read::ReadAhead;
use crate::core::inode::Moment;

/// Symbolic links followed on one path, at most (as on Linux).
const LINKS_FOLLOWED: usize = 40;
/// Bytes asked for in one READDIR.
const DIRECTORY_PIECE: usize = 32 << 10;

/// Open flags, in Linux's numbers on x86-64 and aarch64, which FUSE speaks.
pub(crate) mod open_flags {
    pub(crate) const ACCESS_MODE: u32 = 3;
    pub(crate) const READ_ONLY: u32 = 0;
    pub(crate) const EXCLUSIVE: u32 = 0o200;
    pub(crate) const CREATE: u32 = 0o100;
    pub(crate) const APPEND: u32 = 0o2_000;
    pub(crate) const DATA_SYNC: u32 = 0o10_000;
    pub(crate) const SYNC: u32 = 0o4_010_000;
    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) const DIRECT: u32 = 0o40_000;
    #[cfg(target_arch = "aarch64")]
    pub(crate) const DIRECT: u32 = 0o200_000;
    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) const DIRECTORY: u32 = 0o200_000;
    #[cfg(target_arch = "aarch64")]
    pub(crate) const DIRECTORY: u32 = 0o40_000;
}

/// A name in a directory, as READDIR tells it.
pub(crate) struct Listed {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) kind: u32,
}

/// A file that was opened.
pub(crate) struct OpenedFile {
    pub(crate) inode: Arc<Inode>,
    pub(crate) handle: Arc<OpenHandle>,
    pub(crate) flags: OpenReplyFlags,
}

impl Mount {
    /// The inode a path leads to. Paths begin at the root of the mount; `..` is resolved in the path itself.
    pub(crate) fn resolve(self: &Arc<Self>, path: &Path, follow: bool) -> Result<Arc<Inode>, Errno> {
        let mut links = LINKS_FOLLOWED;
        self.walk(path_names(path), follow, &mut links)
    }

    fn walk(
        self: &Arc<Self>,
        names: Vec<Vec<u8>>,
        follow: bool,
        links: &mut usize,
    ) -> Result<Arc<Inode>, Errno> {
        let mut trail = vec![self.root()];
        let mut left: Vec<Vec<u8>> = names.into_iter().rev().collect();
        while let Some(name) = left.pop() {
            if name == b".." {
                trail.truncate(trail.len().max(2) - 1);
                continue;
            }
            let here = trail.last().expect("the root is never taken off");
            check_directory(here)?;
            let inode = self.lookup(here, &name)?;
            if !inode.is_link() || (left.is_empty() && !follow) {
                trail.push(inode);
                continue;
            }
            *links = links.checked_sub(1).ok_or(Errno::ELOOP)?;
            let target = self.read_link(&inode)?;
            let target = Path::new(std::ffi::OsStr::from_bytes(&target));
            if target.is_absolute() {
                trail.truncate(1);
            }
            left.extend(path_names(target).into_iter().rev());
        }
        Ok(trail.pop().expect("the root is never taken off"))
    }

    /// The directory a path's last name is in, and that name.
    pub(crate) fn resolve_parent(self: &Arc<Self>, path: &Path) -> Result<(Arc<Inode>, Vec<u8>), Errno> {
        let mut names = path_names(path);
        let name = names.pop().filter(|name| name != b"..").ok_or(Errno::EINVAL)?;
        check_name(&name)?;
        let mut links = LINKS_FOLLOWED;
        let parent = self.walk(names, true, &mut links)?;
        check_directory(&parent)?;
        Ok((parent, name))
    }

    /// Where a file is to be made at a path that leads nowhere yet: behind a link that leads nowhere, if there is one.
    pub(crate) fn resolve_new(self: &Arc<Self>, path: &Path) -> Result<(Arc<Inode>, Vec<u8>), Errno> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_FOLLOWED {
            let (parent, name) = self.resolve_parent(&path)?;
            match self.lookup(&parent, &name) {
                Ok(inode) if inode.is_link() => {
                    let target = self.read_link(&inode)?;
                    path.pop();
                    path.push(std::ffi::OsStr::from_bytes(&target));
                }
                Ok(_) | Err(Errno::ENOENT) => return Ok((parent, name)),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::ELOOP)
    }

    /// Forgets the names a path is made of, because the server says that what one of them led to is no longer there.
    pub(crate) fn forget_path(&self, path: &Path) {
        let mut directory = NodeId::ROOT;
        for name in path_names(path) {
            let forgotten = self.names.lock().forget(directory.0, &name);
            match forgotten {
                Some(inode) if inode.is_directory() => directory = inode.node,
                // It goes on over a link, or up: which names were meant is not worth finding out.
                Some(inode) if inode.is_link() => return self.forget_names(),
                None if name == b".." => return self.forget_names(),
                _ => return,
            }
        }
    }

    fn forget_names(&self) {
        let forgotten = self.names.lock().forget_all();
        drop(forgotten);
    }

    /// Finds a name in a directory: in the cache, or by asking.
    pub(crate) fn lookup(self: &Arc<Self>, parent: &Arc<Inode>, name: &[u8]) -> Result<Arc<Inode>, Errno> {
        check_name(name)?;
        let known = self.names.lock().find(parent.node.0, name, self.now());
        if let Some(known) = known {
            return known.ok_or(Errno::ENOENT);
        }
        let before = self.names.lock().find(parent.node.0, name, Moment(0)).flatten();
        let asked = Asked::about(before);
        let request = Outgoing::new(Opcode::Lookup, parent.node).name(name).expect::<EntryOut>();
        match self.call(request).and_then(|answer| answer.read::<EntryOut>()) {
            Ok(entry) if entry.nodeid == 0 => {
                self.remember(
                    parent,
                    name,
                    None,
                    self.valid_until(entry.entry_valid, entry.entry_valid_nsec),
                );
                Err(Errno::ENOENT)
            }
            Ok(entry) => self.entered(parent, name, &entry, asked),
            Err(errno) => {
                if errno == Errno::ENOENT {
                    self.forget_name(parent, name);
                }
                Err(errno)
            }
        }
    }

    /// The server told an entry: its inode, remembered under its name.
    fn entered(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        entry: &EntryOut,
        asked: Asked,
    ) -> Result<Arc<Inode>, Errno> {
        let inode = self.inodes.of_entry(self, entry, asked)?;
        self.know_superblock(&inode, entry);
        let valid_until = self.valid_until(entry.entry_valid, entry.entry_valid_nsec);
        self.remember(parent, name, Some(Arc::clone(&inode)), valid_until);
        Ok(inode)
    }

    /// A directory that is the root of another host file system: it gets a SYNCFS of its own from now on.
    fn know_superblock(&self, inode: &Arc<Inode>, entry: &EntryOut) {
        if AttrFlags::from_bits_truncate(entry.attr.flags).contains(AttrFlags::SUBMOUNT) {
            let mut superblocks = self.superblocks.lock();
            if superblocks.iter().all(|known| known.node != inode.node) {
                superblocks.push(Arc::clone(inode));
            }
        }
    }

    fn remember(&self, parent: &Inode, name: &[u8], inode: Option<Arc<Inode>>, valid_until: Moment) {
        let dropped = self.names.lock().remember(parent.node.0, name, inode, valid_until);
        if !dropped.is_empty() {
            self.chores.push(Chore::Drop(dropped));
        }
    }

    fn forget_name(&self, parent: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        self.names.lock().forget(parent.node.0, name)
    }

    /// The target of a symbolic link.
    pub(crate) fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, Errno> {
        if !inode.is_link() {
            return Err(Errno::EINVAL);
        }
        let request = Outgoing::new(Opcode::Readlink, inode.node).expect_bytes(LINK_TARGET_MAX);
        Ok(self.call(request)?.body)
    }

    /// Opens an inode.
    pub(crate) fn open(self: &Arc<Self>, inode: &Arc<Inode>, flags: u32) -> Result<OpenedFile, Errno> {
        let directory = inode.is_directory();
        if self.options.read_only && flags & open_flags::ACCESS_MODE != open_flags::READ_ONLY {
            return Err(Errno::EROFS);
        }
        let opcode = if directory { Opcode::Opendir } else { Opcode::Open };
        let arguments = OpenIn { flags: self.flags_for_server(flags), open_flags: 0 };
        let request = Outgoing::new(opcode, inode.node).with(&arguments).expect::<OpenOut>();
        let out: OpenOut = match self.call(request) {
            // A server without OPENDIR serves directories without handles.
            Err(Errno::ENOSYS) if directory => OpenOut::default(),
            answer => answer?.read()?,
        };
        Ok(self.opened(inode, flags, &out, directory))
    }

    fn opened(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        flags: u32,
        out: &OpenOut,
        directory: bool,
    ) -> OpenedFile {
        let handle = Arc::new(OpenHandle {
            handle: FileHandle(out.fh),
            node: inode.node,
            flags: self.flags_for_server(flags),
            directory,
            read_ahead: ReadAhead::new(),
            mount: Arc::downgrade(self),
        });
        if !directory && flags & open_flags::ACCESS_MODE != open_flags::READ_ONLY {
            inode.lock().write_handles.push(Arc::clone(&handle));
        }
        let flags = OpenReplyFlags::from_bits_truncate(out.open_flags);
        OpenedFile { inode: Arc::clone(inode), handle, flags }
    }

    /// In write-back mode the end of the file is the client's to know: the server must not append by itself.
    fn flags_for_server(&self, flags: u32) -> u32 {
        let flags = flags & !(open_flags::CREATE | open_flags::EXCLUSIVE);
        if self.agreed().cache == crate::CacheMode::WriteBack { flags & !open_flags::APPEND } else { flags }
    }

    /// Makes a file and opens it.
    pub(crate) fn create(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        flags: u32,
        mode: u32,
    ) -> Result<OpenedFile, Errno> {
        let wire_flags =
            self.flags_for_server(flags) | (flags & (open_flags::CREATE | open_flags::EXCLUSIVE));
        let arguments = CreateIn { flags: wire_flags, mode: mode | 0o100_000, umask: 0, open_flags: 0 };
        let request = Outgoing::new(Opcode::Create, parent.node).with(&arguments).name(name);
        let answer = self.change(request.expect::<EntryOut>().expect::<OpenOut>())?;
        let (entry, out): (EntryOut, OpenOut) = answer.read_two()?;
        parent.lock().core.forget_attributes();
        let inode = self.entered(parent, name, &entry, Asked::default())?;
        Ok(self.opened(&inode, flags, &out, false))
    }

    /// A request that makes a name: its inode.
    fn make(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        request: Outgoing,
    ) -> Result<Arc<Inode>, Errno> {
        check_name(name)?;
        let entry: EntryOut = self.change(request.expect::<EntryOut>())?.read()?;
        parent.lock().core.forget_attributes();
        self.entered(parent, name, &entry, Asked::default())
    }

    pub(crate) fn make_directory(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        mode: u32,
    ) -> Result<Arc<Inode>, Errno> {
        let request = Outgoing::new(Opcode::Mkdir, parent.node).with(&MkdirIn { mode, umask: 0 }).name(name);
        self.make(parent, name, request)
    }

    pub(crate) fn make_node(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Arc<Inode>, Errno> {
        let arguments = MknodIn { mode, rdev, ..Default::default() };
        let request = Outgoing::new(Opcode::Mknod, parent.node).with(&arguments).name(name);
        self.make(parent, name, request)
    }

    pub(crate) fn make_symlink(
        self: &Arc<Self>,
        target: &[u8],
        parent: &Arc<Inode>,
        name: &[u8],
    ) -> Result<Arc<Inode>, Errno> {
        if target.contains(&0) || target.is_empty() || target.len() > LINK_TARGET_MAX {
            return Err(Errno::EINVAL);
        }
        let request = Outgoing::new(Opcode::Symlink, parent.node).name(name).name(target);
        self.make(parent, name, request)
    }

    pub(crate) fn make_link(
        self: &Arc<Self>,
        existing: &Arc<Inode>,
        parent: &Arc<Inode>,
        name: &[u8],
    ) -> Result<Arc<Inode>, Errno> {
        let request =
            Outgoing::new(Opcode::Link, parent.node).with(&LinkIn { oldnodeid: existing.node.0 }).name(name);
        let inode = self.make(parent, name, request)?;
        existing.lock().core.forget_attributes();
        Ok(inode)
    }

    /// Removes a name: UNLINK or RMDIR.
    pub(crate) fn remove(
        self: &Arc<Self>,
        parent: &Arc<Inode>,
        name: &[u8],
        opcode: Opcode,
    ) -> Result<(), Errno> {
        self.change(Outgoing::new(opcode, parent.node).name(name))?;
        parent.lock().core.forget_attributes();
        if let Some(inode) = self.forget_name(parent, name) {
            inode.lock().core.forget_attributes();
        }
        Ok(())
    }

    pub(crate) fn rename(
        self: &Arc<Self>,
        (old_parent, old_name): (&Arc<Inode>, &[u8]),
        (new_parent, new_name): (&Arc<Inode>, &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        let arguments = Rename2In { newdir: new_parent.node.0, flags, padding: 0 };
        let request = if flags == 0 {
            Outgoing::new(Opcode::Rename, old_parent.node).with(&arguments.newdir)
        } else {
            Outgoing::new(Opcode::Rename2, old_parent.node).with(&arguments)
        };
        self.change(request.name(old_name).name(new_name))?;
        for (parent, name) in [(old_parent, old_name), (new_parent, new_name)] {
            parent.lock().core.forget_attributes();
            if let Some(inode) = self.forget_name(parent, name) {
                inode.lock().core.forget_attributes();
            }
        }
        Ok(())
    }

    /// All names in an open directory, `.` and `..` left out.
    pub(crate) fn list(&self, handle: &OpenHandle) -> Result<Vec<Listed>, Errno> {
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let size = DIRECTORY_PIECE as u32;
            let read = ReadIn { fh: handle.handle.0, offset, size, ..Default::default() };
            let request =
                Outgoing::new(Opcode::Readdir, handle.node).with(&read).expect_bytes(DIRECTORY_PIECE);
            let body = self.call(request)?.body;
            if body.is_empty() {
                return Ok(names);
            }
            let mut next = offset;
            for listed in listed_names(&body, false) {
                let ListedName { name, dirent, .. } = listed.map_err(|_| Errno::EIO)?;
                next = dirent.off;
                if name != b"." && name != b".." {
                    names.push(Listed { name: name.to_vec(), ino: dirent.ino, kind: dirent.kind });
                }
            }
            if next == offset {
                return Err(Errno::EIO);
            }
            offset = next;
        }
    }

    /// The root of the mount.
    pub(crate) fn root(&self) -> Arc<Inode> {
        Arc::clone(&self.superblocks.lock()[0])
    }

    /// Makes the root known, whose attributes nobody has told yet.
    pub(crate) fn make_root(self: &Arc<Self>, patience: &Patience) -> Result<(), Errno> {
        let arguments = ashore_wire::abi::GetattrIn::default();
        let request = Outgoing::new(Opcode::Getattr, NodeId::ROOT).with(&arguments).expect::<AttrOut>();
        let reply = self.ask(request, None, |answer| answer?.read::<AttrOut>());
        let out = self.wait_reply(reply, patience)??;
        let entry = EntryOut {
            nodeid: NodeId::ROOT.0,
            attr: out.attr,
            attr_valid: out.attr_valid,
            attr_valid_nsec: out.attr_valid_nsec,
            ..Default::default()
        };
        let root = self.inodes.of_entry(self, &entry, Asked::default())?;
        self.superblocks.lock().push(root);
        Ok(())
    }
}

/// The names of a path, `.` left out.
fn path_names(path: &Path) -> Vec<Vec<u8>> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes().to_vec()),
        Component::ParentDir => Some(b"..".to_vec()),
        _ => None,
    });
    names.collect()
}

fn check_directory(inode: &Inode) -> Result<(), Errno> {
    if inode.is_directory() { Ok(()) } else { Err(Errno::ENOTDIR) }
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_the_root_and_keep_their_dots_for_later() {
        assert_eq!(path_names(Path::new("/a/./b/../c")), [&b"a"[..], b"b", b"..", b"c"]);
        assert!(path_names(Path::new("/")).is_empty());
    }
}
