//! Open directories: READDIR, and READDIRPLUS in one pass.
//!
//! Names come from the host in buffers larger than most replies. What a reply has no room for stays in the buffer, so
//! that the next request, which goes on where this one stopped, need not read it again. As with readdir(3), names
//! that come or go meanwhile may be shown or not; going back to the start reads anew.

use std::ffi::CStr;

use ashore_server::{Entry, Opened, Result};
use ashore_wire::reply::Dirent;
use ashore_wire::{DirentBuffer, Errno, FileHandle, NodeId};
use parking_lot::Mutex;
use rustix::fs::{OFlags, SeekFrom};

use crate::Passthrough;
use crate::data::{host_flags, open_inode};
use crate::handles::OpenFile;
use crate::host::HostResult;
use crate::names::entry_at;
use crate::sys;

/// Bytes of names read at a time.
const BUFFER: usize = 32 << 10;
/// Bytes before the name in an entry of getdents64(2): inode number, next offset, length, kind.
const HEAD: usize = 8 + 8 + 2 + 1;

/// Where an open directory is being read.
#[derive(Default)]
pub(crate) struct Position {
    /// The offset of the next name.
    offset: u64,
    /// Names that were read and not yet given: `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// OPENDIR.
pub(crate) fn opendir(fs: &Passthrough, node: NodeId, flags: u32) -> Result<Opened> {
    let kept = host_flags(fs, flags) & OFlags::NOATIME;
    let (directory, place) = open_inode(fs, node, kept | OFlags::RDONLY | OFlags::DIRECTORY, libc::S_IFDIR)?;
    let handle = fs.handles.add(OpenFile::directory(node, place.index, directory));
    Ok(Opened::new(handle, fs.options.cache.directory_flags()))
}

/// READDIR.
pub(crate) fn readdir(
    fs: &Passthrough,
    node: NodeId,
    handle: FileHandle,
    offset: u64,
    names: &mut DirentBuffer,
) -> Result<()> {
    let directory = fs.handles.find(handle, node)?;
    read_names(&directory, offset, |name| names.push(name.to_wire()))
}

/// READDIRPLUS. A name costs one system call if its inode is known and two if it is new; the directory itself is not
/// opened again.
pub(crate) fn readdirplus(
    fs: &Passthrough,
    node: NodeId,
    handle: FileHandle,
    offset: u64,
    names: &mut DirentBuffer,
) -> Result<()> {
    let directory = fs.handles.find(handle, node)?;
    let place = fs.places.at(directory.place);
    read_names(&directory, offset, |name| {
        // Before the lookup: one that is counted must reach the client, or it is never forgotten.
        if !names.has_room_for(name.name.count_bytes(), true) {
            return false;
        }
        let dots = matches!(name.name.to_bytes(), b"." | b"..");
        let entry =
            if dots { Err(Errno::EINVAL) } else { entry_at(fs, directory.descriptor(), place, name.name) };
        match entry {
            Err(Errno::ENOENT) => true,
            // Without an entry the client looks the name up when it needs it, and gets the error then.
            entry => names.push_plus(name.to_wire(), &entry.unwrap_or_else(|_| no_entry(name)).to_wire()),
        }
    })
}

fn no_entry(name: &HostName<'_>) -> Entry {
    let mut entry = Entry::default();
    entry.attr.ino = name.ino;
    entry.attr.mode = u32::from(name.kind) << 12;
    entry
}

/// Gives names from `offset` on to `take`, until it does not take one or there are no more.
fn read_names(directory: &OpenFile, offset: u64, mut take: impl FnMut(&HostName<'_>) -> bool) -> Result<()> {
    let position: &Mutex<Position> = directory.position.as_ref().ok_or(Errno::ENOTDIR)?;
    let mut position = position.lock();
    position.go_to(directory, offset)?;
    let mut taken_any = false;
    loop {
        if position.start == position.end {
            match position.fill(directory) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // What was found before is not lost; the error comes again with the next request.
                Err(_) if taken_any => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        let (name, length) =
            HostName::parse(&position.buffer[position.start..position.end]).ok_or(Errno::EIO)?;
        if !take(&name) {
            return Ok(());
        }
        position.offset = name.next_offset;
        position.start += length;
        taken_any = true;
    }
}

impl Position {
    fn go_to(&mut self, directory: &OpenFile, offset: u64) -> Result<()> {
        let untouched = offset == 0 && self.offset == 0 && self.end == 0;
        if untouched || offset != 0 && offset == self.offset {
            return Ok(());
        }
        rustix::fs::seek(directory.descriptor(), SeekFrom::Start(offset)).told()?;
        (self.offset, self.start, self.end) = (offset, 0, 0);
        Ok(())
    }

    fn fill(&mut self, directory: &OpenFile) -> Result<usize> {
        self.buffer.resize(BUFFER, 0);
        (self.start, self.end) = (0, 0);
        self.end = sys::read_directory(directory.descriptor(), &mut self.buffer).told()?;
        Ok(self.end)
    }
}

/// One name as the host gives it.
struct HostName<'a> {
    ino: u64,
    next_offset: u64,
    kind: u8,
    name: &'a CStr,
}

impl<'a> HostName<'a> {
    /// The first name in `bytes`, and how many of them it takes.
    fn parse(bytes: &'a [u8]) -> Option<(HostName<'a>, usize)> {
        let ino = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
        let next_offset = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
        let kind = *bytes.get(18)?;
        let name = CStr::from_bytes_until_nul(bytes.get(HEAD..length)?).ok()?;
        Some((HostName { ino, next_offset, kind, name }, length))
    }

    fn to_wire(&self) -> Dirent<'a> {
        Dirent {
            ino: self.ino,
            next_offset: self.next_offset,
            kind: self.kind.into(),
            name: self.name.to_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_nonsense_is_not() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&7u64.to_ne_bytes());
        bytes.extend_from_slice(&9u64.to_ne_bytes());
        bytes.extend_from_slice(&24u16.to_ne_bytes());
        bytes.extend_from_slice(b"\x08name\0");
        let (name, length) = HostName::parse(&bytes).unwrap();
        assert_eq!((name.ino, name.next_offset, name.kind, length), (7, 9, 8, 24));
        assert_eq!(name.name, c"name");
        for cut in 0..bytes.len() {
            assert!(HostName::parse(&bytes[..cut]).is_none());
        }
        bytes[16] = 3;
        assert!(HostName::parse(&bytes).is_none());
    }
}
