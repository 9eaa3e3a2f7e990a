//! Nodes and open files that outlive the process: how they are found again by the next one.
//!
//! A file handle leads to the same file as long as the file exists and its file system is mounted. So a node is told by its
//! handle and by what says that it is still the same file. Nodes on file systems mounted below the share are not restored,
//! for which of its mounts is meant the next process cannot know; nor is a file whose last name is gone, for no process held
//! it meanwhile, and the host has freed it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use ashore_server::{Look, Recoverable, Result};
use ashore_wire::{Errno, FileHandle, Name, NodeId};
use rustix::fs::OFlags;

use crate::Passthrough;
use crate::data::{host_flags, open_inode};
use crate::handles::OpenFile;
use crate::host::{FileIdentity, HostResult, statx_at};
use crate::inodes::{Candidate, Key, Location};
use crate::places::identity_of;
use crate::sys::{self, RawHandle};

/// Bytes of a description before the handle's own: inode number, birth, kind of file, kind of handle.
const FIXED: usize = 8 + 8 + 4 + 4;

impl Passthrough {
    /// Which directory is shared, for the next process to know whether it serves the same.
    pub fn share_identity(&self) -> Result<Vec<u8>> {
        let identity = identity_of(&self.root.descriptor).told()?;
        Ok(numbers(look_of(&identity)))
    }

    pub(crate) fn parse(&self, description: &[u8]) -> Option<(Candidate, Location)> {
        let (ino, rest) = description.split_first_chunk::<8>()?;
        let (birth, rest) = rest.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (handle_kind, handle) = rest.split_first_chunk::<4>()?;
        let key = Key { place: self.root.place, ino: u64::from_le_bytes(*ino) };
        let (birth, kind) = (u64::from_le_bytes(*birth), u32::from_le_bytes(*kind));
        let handle = RawHandle::checked(i32::from_le_bytes(*handle_kind), handle)?;
        Some((Candidate { key, birth, kind }, Location::by_handle(&handle)))
    }
}

impl Recoverable for Passthrough {
    fn describe(&self, node: NodeId) -> Option<Vec<u8>> {
        let (candidate, location) = self.inodes.located(node)?;
        if candidate.key.place != self.root.place {
            return None;
        }
        let handle = match &location {
            Location::Descriptor(descriptor) => sys::name_to_handle(descriptor.as_fd(), c"").ok()?,
            by_handle => by_handle.handle()?,
        };
        let mut description = Vec::with_capacity(FIXED + handle.bytes().len());
        description.extend_from_slice(&candidate.key.ino.to_le_bytes());
        description.extend_from_slice(&candidate.birth.to_le_bytes());
        description.extend_from_slice(&candidate.kind.to_le_bytes());
        description.extend_from_slice(&handle.kind().to_le_bytes());
        description.extend_from_slice(handle.bytes());
        Some(description)
    }

    /// Whether the file is still there comes out when it is used.
    fn restore_node(&self, node: NodeId, lookups: u64, description: &[u8]) -> Result<()> {
        self.inodes.note_restored(node);
        let (candidate, location) = self.parse(description).ok_or(Errno::ESTALE)?;
        self.inodes.restore(node, lookups, &candidate, location).then_some(()).ok_or(Errno::ESTALE)
    }

    fn restore_open(&self, handle: FileHandle, node: NodeId, flags: u32, directory: bool) -> Result<()> {
        self.handles.note_restored(handle);
        let kept = host_flags(self, flags) - OFlags::TRUNC;
        let file = if directory {
            let kept = (kept & OFlags::NOATIME) | OFlags::RDONLY | OFlags::DIRECTORY;
            let (descriptor, place) = open_inode(self, node, kept, libc::S_IFDIR)?;
            OpenFile::directory(node, place.index, descriptor)
        } else {
            let (descriptor, place) = open_inode(self, node, kept, libc::S_IFREG)?;
            self.places.before_change(place, descriptor.as_fd());
            let file = OpenFile::file(node, place.index, descriptor);
            // Whether it was, nobody knows any more.
            file.written.store(true, Ordering::Relaxed);
            file
        };
        self.handles.restore(handle, file);
        Ok(())
    }

    fn restored(&self, elsewhere: bool) {
        self.inodes.restored();
        self.handles.restored();
        if elsewhere {
            tracing::warn!(
                "the client came to file systems mounted below the share; all of the host is synced for that"
            );
            rustix::fs::sync();
        }
    }

    fn look(&self, parent: NodeId, name: Name<'_>) -> Result<Option<Look>> {
        let directory = self.inode(parent)?;
        match statx_at(directory.fd(), name.as_c_str()) {
            Ok(stat) => Ok(Some(look_of(&FileIdentity::of(&stat)))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(crate::host::told(errno)),
        }
    }

    fn look_node(&self, node: NodeId) -> Result<Look> {
        identity_of(self.inode(node)?.fd()).told().map(|identity| look_of(&identity))
    }

    fn size(&self, node: NodeId, handle: FileHandle) -> Result<u64> {
        let file = self.handles.find(handle, node)?;
        rustix::fs::fstat(file.descriptor()).told().map(|stat| stat.st_size as u64)
    }

    fn read_back(&self, node: NodeId, handle: FileHandle, offset: u64, into: &mut [u8]) -> Result<usize> {
        let file = self.handles.find(handle, node)?;
        let readable: OwnedFd = self.places.reopen(file.descriptor(), OFlags::RDONLY).told()?;
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(&readable, &mut into[done..], offset + done as u64).told()? {
                0 => break,
                came => done += came,
            }
        }
        Ok(done)
    }
}

fn look_of(identity: &FileIdentity) -> Look {
    [identity.device, identity.ino, identity.birth, u64::from(identity.kind)]
}

fn numbers(look: Look) -> Vec<u8> {
    look.iter().flat_map(|number| number.to_le_bytes()).collect()
}
