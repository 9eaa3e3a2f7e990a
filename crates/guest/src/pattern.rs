//! Blocks that can be recognised wherever they end up, and counted in the image of a file system.
//!
//! Every 4 KiB block carries a magic word, a seed that belongs to one test, its index, and a filling that follows from
//! the two. A block counts only if all of it is there, so half a block on the disk is none.
//!
//! ```text
//!   0        16      24      32                        4096
//!   | magic  | seed  | index | filling from (seed, index) |
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;

/// Size of a block; file systems on the test images use the same, so blocks stay whole and aligned.
pub const BLOCK_SIZE: usize = 4096;

const MAGIC: &[u8; 16] = b"ASHORE-PATTERN-1";
const CHUNK: u64 = 1 << 20;

/// The block with this index.
pub fn block(seed: u64, index: u64) -> [u8; BLOCK_SIZE] {
    let mut block = [0; BLOCK_SIZE];
    block[..16].copy_from_slice(MAGIC);
    block[16..24].copy_from_slice(&seed.to_le_bytes());
    block[24..32].copy_from_slice(&index.to_le_bytes());
    let mut state = seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in block[32..].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    block
}

/// How many different blocks of `seed` stand whole in the file at `image`, for instance in a disk image.
///
/// Holes are skipped, so a large sparse image costs what it holds.
pub fn count_blocks(image: impl AsRef<Path>, seed: u64) -> io::Result<usize> {
    let found = places(&File::open(image)?, seed)?;
    Ok(found.into_iter().map(|(index, _)| index).collect::<HashSet<_>>().len())
}

/// The index and the position of each whole block of `seed` in a file.
pub fn places(file: &File, seed: u64) -> io::Result<Vec<(u64, u64)>> {
    let end = file.metadata()?.len();
    let mut found = Vec::new();
    let mut position = 0;
    while let Some(data) = next_data(file, position)? {
        position = data / CHUNK * CHUNK;
        let mut chunk = vec![0; CHUNK.min(end - position) as usize];
        file.read_exact_at(&mut chunk, position)?;
        let blocks = chunk.chunks_exact(BLOCK_SIZE).zip((position..).step_by(BLOCK_SIZE));
        found.extend(blocks.filter_map(|(bytes, place)| Some((index_of(bytes, seed)?, place))));
        position += CHUNK;
        if position >= end {
            break;
        }
    }
    Ok(found)
}

fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(position) => Ok(Some(position)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn index_of(bytes: &[u8], seed: u64) -> Option<u64> {
    if &bytes[..16] != MAGIC || bytes[16..24] != seed.to_le_bytes() {
        return None;
    }
    let index = u64::from_le_bytes(bytes[24..32].try_into().ok()?);
    (bytes == block(seed, index)).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_behind_holes_and_each_is_counted_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        for (place, index) in [(0, 0), (5000, 1), (5001, 1), (16383, 2)] {
            file.as_file().write_all_at(&block(7, index), place * BLOCK_SIZE as u64).unwrap();
        }
        assert_eq!(count_blocks(file.path(), 7).unwrap(), 3);
    }

    #[test]
    fn blocks_of_another_seed_and_torn_blocks_do_not_count() {
        let mut torn = block(7, 0);
        torn[4095] ^= 1;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&torn, 0).unwrap();
        file.as_file().write_all_at(&block(8, 0), BLOCK_SIZE as u64).unwrap();
        assert_eq!(count_blocks(file.path(), 7).unwrap(), 0);
        assert_eq!(count_blocks(file.path(), 8).unwrap(), 1);
    }

    #[test]
    fn an_empty_file_holds_no_block() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(count_blocks(file.path(), 7).unwrap(), 0);
    }
}
