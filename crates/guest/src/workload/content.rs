//! The bytes a step writes. Each follows from the seed, the thread, the step and its place in the file, so that a byte
//! tells which step it is from. Each sector begins with a word that says "data of a workload".

use super::mix;

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

const MAGIC: [u8; 8] = *b"ASHOREPC";

/// The bytes that step `step` of a thread writes at `offset` of a file.
pub fn render(seed: u64, thread: u32, step: u32, offset: u64, length: usize) -> Vec<u8> {
    let key = mix(seed ^ mix(u64::from(thread) << 32 | u64::from(step)));
    (offset..offset + length as u64)
        .map(|at| match at as usize % SECTOR {
            place @ 0..8 => MAGIC[place],
            _ => mix(key ^ (at / 8)).to_le_bytes()[at as usize % 8],
        })
        .collect()
}

/// Whether one of these sectors begins as those of files do; file systems' own sectors do not.
pub fn holds_data(sectors: &[u8]) -> bool {
    sectors.chunks(SECTOR).any(|sector| sector.starts_with(&MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_the_step_and_the_place() {
        let whole = render(1, 2, 3, 100, 5000);
        assert_eq!(render(1, 2, 3, 700, 50), whole[600..650]);
        assert_ne!(render(1, 2, 4, 600, 50), whole[500..550]);
        assert_ne!(render(1, 3, 3, 600, 50), whole[500..550]);
    }

    #[test]
    fn a_sector_of_a_file_is_known_as_one() {
        assert!(holds_data(&render(1, 2, 3, 4096, 600)));
        assert!(!holds_data(&[0; 4096]));
    }
}
