//! What a sync that returned has promised, as one sector.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use super::operation::{DirectoryId, FileId};

/// Bytes of a mark on a disk.
pub const MARK_SIZE: usize = 512;
/// Threads whose floors fit into a mark.
pub const MAX_THREADS: u32 = 64;

const MAGIC: &[u8; 16] = b"ASHORE-POWER-CUT";
/// Direct I/O wants memory and lengths in multiples of what the disk below counts in.
const DIRECT_BLOCK: usize = 4096;

/// What was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that any thread had done.
    Everything,
    /// One file of the thread.
    File(FileId),
    /// The names in one directory of the thread.
    Directory(DirectoryId),
}

/// A sync returned to a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose it was.
    pub thread: u32,
    /// What it was of.
    pub scope: Scope,
    /// Whether it succeeded. One that failed promises nothing, and tells of what is lost.
    pub succeeded: bool,
    /// How many steps each thread had done before the sync was called.
    pub floors: Vec<u32>,
}

impl Mark {
    /// The mark as a sector; what is left of the sector is zeros.
    pub fn to_sector(&self) -> [u8; MARK_SIZE] {
        let (kind, subject) = match self.scope {
            Scope::Everything => (0, 0),
            Scope::File(file) => (1, file),
            Scope::Directory(directory) => (2, directory),
        };
        let head = [self.thread, kind, subject, u32::from(self.succeeded), self.floors.len() as u32];
        let mut sector = [0; MARK_SIZE];
        sector[..16].copy_from_slice(MAGIC);
        for (word, room) in head.iter().chain(&self.floors).zip(sector[16..].chunks_exact_mut(4)) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        sector
    }

    /// The mark that stands at the beginning of these bytes, if one does.
    pub fn from_sector(bytes: &[u8]) -> Option<Mark> {
        let words = bytes.strip_prefix(MAGIC)?.chunks_exact(4);
        let mut words = words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let (thread, kind, subject) = (words.next()?, words.next()?, words.next()?);
        let scope = match kind {
            0 => Scope::Everything,
            1 => Scope::File(subject),
            2 => Scope::Directory(subject),
            _ => return None,
        };
        let (succeeded, count) = (words.next()? != 0, words.next()?);
        let floors: Vec<_> = words.take(count.min(MAX_THREADS) as usize).collect();
        (floors.len() == count as usize).then_some(Mark { thread, scope, succeeded, floors })
    }
}

/// A disk that marks are written to, past every cache, so that they share one order with the data on the same disk.
#[derive(Debug)]
pub struct MarkerDisk {
    disk: File,
    /// Direct I/O needs memory that begins at a multiple of a block: a part of this does. Also keeps marks one at a time.
    memory: Mutex<Vec<u8>>,
}

impl MarkerDisk {
    /// Opens the disk.
    pub fn open(path: impl AsRef<Path>) -> io::Result<MarkerDisk> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let disk = OpenOptions::new().write(true).custom_flags(direct).open(path)?;
        Ok(MarkerDisk { disk, memory: Mutex::new(vec![0; 2 * DIRECT_BLOCK]) })
    }

    /// Writes a mark to the beginning of the disk, where the one before it was: what counts is that it is seen.
    pub fn write(&self, mark: &Mark) -> io::Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = memory.as_ptr().align_offset(DIRECT_BLOCK);
        let block = &mut memory[start..start + DIRECT_BLOCK];
        block[..MARK_SIZE].copy_from_slice(&mark.to_sector());
        self.disk.write_all_at(block, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_from_its_sector() {
        for scope in [Scope::Everything, Scope::File(7), Scope::Directory(3)] {
            let mark = Mark { thread: 2, scope, succeeded: true, floors: vec![1, 0, 500] };
            assert_eq!(Mark::from_sector(&mark.to_sector()), Some(mark));
        }
        assert_eq!(Mark::from_sector(&[0; MARK_SIZE]), None);
        assert_eq!(Mark::from_sector(b"ASHORE-POWER-CUT"), None);
    }
}
