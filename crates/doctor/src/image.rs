//! The disk below the shared file system, read past every cache above it: what is found there has left the host's memory.
//!
//! Blocks of the examination are made so that they cannot be mistaken, and the whole disk is searched for them, for nobody
//! but the file system knows where it put them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Partitions and small file-system blocks begin at multiples of this.
const SECTOR: usize = 512;
/// Bytes that are read at once.
const PIECE: usize = 4 << 20;
/// A larger disk is not searched: reading it would take longer than the host takes to write by itself.
const LARGEST: u64 = 64 << 30;

/// An image file or a block device.
pub(crate) struct Image {
    path: PathBuf,
    file: File,
    length: u64,
}

/// Blocks of one purpose, which are found again.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    seed: u64,
}

impl Image {
    /// Opens it. Fails if it is neither file nor block device, is larger than 64 GiB, or may not be read.
    pub(crate) fn open(path: &Path) -> Result<Image> {
        let name = path.display();
        let kind = std::fs::metadata(path).with_context(|| format!("--disk: cannot look at {name}"))?;
        let is_device = kind.file_type().is_block_device();
        if !is_device && !kind.is_file() {
            bail!("--disk: {name} is neither an image file nor a block device");
        }
        // A device has a cache of its own; an image file is the disk itself, cache and all.
        let flags = if is_device { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("--disk: {name} cannot be read; it may take root"))?;
        let length = rustix::fs::seek(&file, SeekFrom::End(0)).with_context(|| format!("--disk: {name}"))?;
        if length > LARGEST {
            bail!("--disk: {name} has {} GiB, and a disk of more than 64 GiB is not searched", length >> 30);
        }
        Ok(Image { path: path.to_owned(), file, length })
    }

    /// What was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many of the first `count` blocks of this pattern are on the disk now. Reads until all are found.
    pub(crate) fn count(&self, pattern: Pattern, count: usize) -> io::Result<usize> {
        // One piece, begun at a page, as O_DIRECT wants it, and the end of the piece before it, for what begins there.
        let mut space = vec![0; PIECE + 2 * BLOCK];
        let start = BLOCK + space.as_ptr().align_offset(BLOCK);
        let mut found = vec![false; count];
        let mut position = 0;
        while let Some(data) = self.next_data(position)? {
            let begin = data / PIECE as u64 * PIECE as u64;
            if begin != position {
                space[start - BLOCK..start].fill(0);
            }
            let read = self.read(&mut space[start..start + PIECE], begin)?;
            pattern.search(&space[start - BLOCK..start + read], &mut found);
            if read < PIECE || found.iter().all(|found| *found) {
                break;
            }
            space.copy_within(start + PIECE - BLOCK..start + PIECE, start - BLOCK);
            position = begin + PIECE as u64;
        }
        Ok(found.into_iter().filter(|found| *found).count())
    }

    fn read(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() && position + (read as u64) < self.length {
            match self.file.read_at(&mut buffer[read..], position + read as u64)? {
                0 => break,
                count => read += count,
            }
        }
        Ok(read)
    }

    /// Where the next data begins; holes of an image file are passed over.
    fn next_data(&self, position: u64) -> io::Result<Option<u64>> {
        if position >= self.length {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(position)) {
            Ok(data) => Ok(Some(data)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // Devices know no holes.
            Err(rustix::io::Errno::INVAL) => Ok(Some(position)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Pattern {
    /// One that was never there before.
    pub(crate) fn new() -> Pattern {
        use std::hash::{BuildHasher, RandomState};
        Pattern { seed: RandomState::new().hash_one(std::process::id()) }
    }

    /// So many blocks.
    pub(crate) fn blocks(self, count: usize) -> Vec<u8> {
        (0..count as u64).flat_map(|index| self.block(index)).collect()
    }

    /// Every block begins with seed and index, and goes on as follows from them.
    fn block(self, index: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut word = self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (number, bytes) in block.chunks_exact_mut(8).enumerate() {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let value = [self.seed, index].get(number).copied().unwrap_or(word);
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        block
    }

    fn search(self, bytes: &[u8], found: &mut [bool]) {
        let start = self.seed.to_le_bytes();
        for place in (0..(bytes.len() + 1).saturating_sub(BLOCK)).step_by(SECTOR) {
            let candidate = &bytes[place..place + BLOCK];
            if candidate[..8] != start {
                continue;
            }
            let index = u64::from_le_bytes(candidate[8..16].try_into().expect("eight bytes"));
            let Some(known) = usize::try_from(index).ok().and_then(|index| found.get_mut(index)) else {
                continue;
            };
            *known |= candidate == self.block(index);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn whole_blocks_are_found_wherever_a_sector_begins() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (pattern, other) = (Pattern::new(), Pattern::new());
        let blocks = pattern.blocks(4);
        let write = |bytes: &[u8], place: u64| file.as_file().write_all_at(bytes, place).unwrap();
        write(&blocks[..BLOCK], 512);
        // Across the border of two pieces, after a hole, and at the very end.
        write(&blocks[BLOCK..2 * BLOCK], 2 * PIECE as u64 - 1024);
        write(&blocks[2 * BLOCK..3 * BLOCK], 5 * PIECE as u64 + 4096);
        // All but its last byte.
        write(&blocks[3 * BLOCK..4 * BLOCK - 1], 32768);
        let image = Image::open(file.path()).unwrap();
        assert_eq!(image.count(pattern, 4).unwrap(), 3);
        assert_eq!(image.count(other, 4).unwrap(), 0);
    }

    #[test]
    fn what_is_no_disk_is_refused_in_words() {
        let refused = |path: &str| Image::open(Path::new(path)).err().unwrap().to_string();
        assert!(refused("/dev/null").contains("neither an image file nor a block device"));
        assert!(refused("/nonexistent").contains("/nonexistent"));
    }
}
