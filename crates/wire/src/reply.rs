//! Values become the bytes of a reply here, once.

use zerocopy::IntoBytes;

use crate::abi::*;
use crate::errno::Errno;
use crate::ids::RequestId;
use crate::seam::{NoRoom, ReplyBody};

/// The body of a successful reply.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// Nothing but the header.
    Empty,
    /// LOOKUP, SYMLINK, MKNOD, MKDIR, LINK.
    Entry(&'a EntryOut),
    /// GETATTR, SETATTR.
    Attr(&'a AttrOut),
    /// STATX.
    Statx(&'a StatxOut),
    /// OPEN, OPENDIR.
    Open(&'a OpenOut),
    /// CREATE, TMPFILE.
    Created(&'a EntryOut, &'a OpenOut),
    /// WRITE, and COPY_FILE_RANGE: how many bytes.
    Written(u32),
    /// COPY_FILE_RANGE_64: how many bytes.
    Copied(u64),
    /// STATFS.
    Statfs(&'a StatfsOut),
    /// GETXATTR and LISTXATTR with a size of zero: how many bytes there would be.
    XattrSize(u32),
    /// LSEEK: the offset found.
    Offset(u64),
    /// GETLK.
    Lock(&'a LkOut),
    /// IOCTL: its result, then its data.
    Ioctl(&'a IoctlOut, &'a [u8]),
    /// INIT.
    Init(&'a InitOut),
    /// READLINK, GETXATTR, LISTXATTR, READDIR, READDIRPLUS: bytes as they are.
    Bytes(&'a [u8]),
    /// READ: so many bytes stand in the body already.
    InPlace(usize),
}

impl Reply<'_> {
    /// Puts the reply into `body` and returns the header that goes with it. Fails, if it does not fit.
    pub fn encode(&self, id: RequestId, body: &mut dyn ReplyBody) -> Result<OutHeader, NoRoom> {
        let written = WriteOut { size: 0, padding: 0 };
        let length = match self {
            Reply::Empty => 0,
            Reply::Entry(entry) => fill(body, &[entry.as_bytes()])?,
            Reply::Attr(attributes) => fill(body, &[attributes.as_bytes()])?,
            Reply::Statx(attributes) => fill(body, &[attributes.as_bytes()])?,
            Reply::Open(open) => fill(body, &[open.as_bytes()])?,
            Reply::Created(entry, open) => fill(body, &[entry.as_bytes(), open.as_bytes()])?,
            Reply::Written(size) => fill(body, &[WriteOut { size: *size, ..written }.as_bytes()])?,
            Reply::Copied(bytes) => fill(body, &[CopyFileRangeOut { bytes_copied: *bytes }.as_bytes()])?,
            Reply::Statfs(statfs) => fill(body, &[statfs.as_bytes()])?,
            Reply::XattrSize(size) => fill(body, &[GetxattrOut { size: *size, padding: 0 }.as_bytes()])?,
            Reply::Offset(offset) => fill(body, &[LseekOut { offset: *offset }.as_bytes()])?,
            Reply::Lock(lock) => fill(body, &[lock.as_bytes()])?,
            Reply::Ioctl(result, data) => fill(body, &[result.as_bytes(), data])?,
            Reply::Init(init) => fill(body, &[init.as_bytes()])?,
            Reply::Bytes(bytes) => fill(body, &[bytes])?,
            Reply::InPlace(length) if body.room().is_some_and(|room| *length <= room) => *length,
            Reply::InPlace(_) => return Err(NoRoom),
        };
        Ok(OutHeader { len: (OUT_HEADER_SIZE + length) as u32, error: 0, unique: id.0 })
    }
}

/// The header of a reply that is an error: there is nothing else in it.
pub fn error_header(id: RequestId, errno: Errno) -> OutHeader {
    OutHeader { len: OUT_HEADER_SIZE as u32, error: -errno.raw(), unique: id.0 }
}

fn fill(body: &mut dyn ReplyBody, parts: &[&[u8]]) -> Result<usize, NoRoom> {
    let length = parts.iter().map(|part| part.len()).sum();
    if body.room().is_none_or(|room| room < length) {
        return Err(NoRoom);
    }
    let mut position = 0;
    for part in parts {
        body.fill(position, part)?;
        position += part.len();
    }
    Ok(length)
}

/// The names of a READDIR or READDIRPLUS reply, collected until the room the client gave is used up.
#[derive(Debug, Default)]
pub struct DirentBuffer {
    bytes: Vec<u8>,
    room: usize,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// The inode's number on the host.
    pub ino: u64,
    /// Where to go on reading after this name.
    pub next_offset: u64,
    /// The kind of file, as in `d_type` (`DT_DIR` is 4, `DT_REG` 8).
    pub kind: u32,
    /// The name, without NUL.
    pub name: &'a [u8],
}

impl DirentBuffer {
    /// Empties the buffer, which keeps its memory, and gives it this much room.
    pub fn reset(&mut self, room: usize) {
        self.bytes.clear();
        self.room = room;
    }

    /// The reply so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether no name has been taken.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a name of this length would still fit.
    pub fn has_room_for(&self, name_length: usize, plus: bool) -> bool {
        let head = if plus { size_of::<Direntplus>() } else { size_of::<crate::abi::Dirent>() };
        self.bytes.len() + (head + name_length).next_multiple_of(8) <= self.room
    }

    /// Adds a name; `false` if it does not fit and was left out.
    pub fn push(&mut self, dirent: Dirent<'_>) -> bool {
        let fits = self.has_room_for(dirent.name.len(), false);
        if fits {
            self.put(&[dirent_head(&dirent).as_bytes(), dirent.name]);
        }
        fits
    }

    /// Adds a name with its entry; `false` if it does not fit and was left out.
    pub fn push_plus(&mut self, dirent: Dirent<'_>, entry: &EntryOut) -> bool {
        let fits = self.has_room_for(dirent.name.len(), true);
        if fits {
            let head = Direntplus { entry_out: *entry, dirent: dirent_head(&dirent) };
            self.put(&[head.as_bytes(), dirent.name]);
        }
        fits
    }

    fn put(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

fn dirent_head(dirent: &Dirent<'_>) -> crate::abi::Dirent {
    crate::abi::Dirent {
        ino: dirent.ino,
        off: dirent.next_offset,
        namelen: dirent.name.len() as u32,
        kind: dirent.kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::os::fd::BorrowedFd;

    use crate::seam::TransferMode;

    struct Room(Vec<u8>);

    impl ReplyBody for Room {
        fn room(&self) -> Option<usize> {
            Some(self.0.len())
        }
        fn fill(&mut self, position: usize, bytes: &[u8]) -> Result<(), NoRoom> {
            let place = self.0.get_mut(position..position + bytes.len()).ok_or(NoRoom)?;
            place.copy_from_slice(bytes);
            Ok(())
        }
        fn read_from(&mut self, _: BorrowedFd<'_>, _: u64, _: usize, _: TransferMode) -> io::Result<usize> {
            unreachable!("no file in this test")
        }
    }

    #[test]
    fn the_header_counts_exactly_the_bytes_of_the_body() {
        let mut room = Room(vec![0; 4096]);
        let created = Reply::Created(&EntryOut { nodeid: 3, ..Default::default() }, &OpenOut::default());
        let header = created.encode(RequestId(9), &mut room).unwrap();
        assert_eq!((header.len, header.error, header.unique), (16 + 128 + 16, 0, 9));
        assert_eq!(room.0[0], 3);
        let header = Reply::Empty.encode(RequestId(9), &mut room).unwrap();
        assert_eq!(header.len, 16);
    }

    #[test]
    fn a_reply_that_does_not_fit_leaves_the_body_alone() {
        let mut room = Room(vec![0xee; 100]);
        let entry = EntryOut::default();
        assert_eq!(Reply::Entry(&entry).encode(RequestId(1), &mut room).unwrap_err(), NoRoom);
        assert!(room.0.iter().all(|byte| *byte == 0xee));
        assert!(Reply::InPlace(101).encode(RequestId(1), &mut room).is_err());
        assert_eq!(Reply::InPlace(100).encode(RequestId(1), &mut room).unwrap().len, 116);
    }

    #[test]
    fn names_are_padded_to_eight_bytes_and_stop_at_the_room() {
        let mut names = DirentBuffer::default();
        names.reset(80);
        let dirent = |name| Dirent { ino: 1, next_offset: 2, kind: 8, name };
        assert!(names.push(dirent(b"a")));
        assert_eq!(names.as_bytes().len(), 32);
        assert!(names.push(dirent(b"twelve bytes")));
        assert!(!names.push(dirent(b"b")), "72 of 80 bytes are used");
        assert_eq!(names.as_bytes().len(), 72);
    }
}
