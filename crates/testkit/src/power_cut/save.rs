//! A recording as a file, so that a state that breaks a promise can be looked at again.
//!
//! ```text
//!   magic | kind | seed threads operations late | steps | base: (offset, bytes)* | log: (tag, fields)*
//! ```
//!
//! Numbers are 64 bits, little endian; bytes and lists have their length before them.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ashore_guest::workload::{Mark, Plan};

use super::disk::Entry;
use super::mounts::{Image, Kind};
use super::replay::Recording;

const MAGIC: &[u8; 16] = b"ASHORE-RECORDING";
const BLOCK: usize = 4096;
/// No list and no write in a recording is longer; a larger number means that the file is none.
const LONGEST: u64 = 1 << 28;

impl Recording {
    /// Writes it to a file among the temporary ones, of some megabytes.
    pub fn save(&self, name: &str) -> Result<PathBuf> {
        let path = std::env::temp_dir().join(format!("ashore-power-cut-{name}.recording"));
        let mut out = BufWriter::new(File::create(&path)?);
        out.write_all(MAGIC)?;
        put_bytes(&mut out, self.kind.name().as_bytes())?;
        let Plan { seed, threads, clients, operations, floors_read_late } = self.plan;
        let numbers = [seed, threads.into(), clients.into(), operations.into(), floors_read_late.into()];
        put_numbers(&mut out, &numbers)?;
        put_numbers(&mut out, &[self.steps.len() as u64])?;
        put_numbers(&mut out, &self.steps.iter().map(|steps| u64::from(*steps)).collect::<Vec<_>>())?;
        self.put_base(&mut out)?;
        put_numbers(&mut out, &[self.log.len() as u64])?;
        self.log.iter().try_for_each(|entry| put_entry(&mut out, entry))?;
        out.flush()?;
        Ok(path)
    }

    /// Reads one that was saved.
    pub fn load(path: &Path) -> Result<Recording> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        read(&mut BufReader::new(file)).with_context(|| format!("{} is no recording", path.display()))
    }

    /// The blocks that are not all zeros.
    fn put_base(&self, out: &mut impl Write) -> Result<()> {
        let base = fs::read(self.base.path())?;
        put_numbers(out, &[base.len() as u64])?;
        for (number, block) in base.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                put_numbers(out, &[(number * BLOCK) as u64])?;
                put_bytes(out, block)?;
            }
        }
        Ok(put_numbers(out, &[u64::MAX])?)
    }
}

fn put_entry(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    match entry {
        Entry::Write { offset, data, arrived } => {
            put_numbers(out, &[0, *offset, *arrived as u64])?;
            put_bytes(out, data)
        }
        Entry::Flush { covers } => put_numbers(out, &[1, *covers as u64]),
        Entry::Mark(mark) => {
            put_numbers(out, &[2])?;
            put_bytes(out, &mark.to_sector())
        }
        Entry::Lost { data } => {
            put_numbers(out, &[3])?;
            put_bytes(out, data)
        }
    }
}

fn put_numbers(out: &mut impl Write, numbers: &[u64]) -> io::Result<()> {
    numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
}

fn put_bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    put_numbers(out, &[bytes.len() as u64])?;
    out.write_all(bytes)
}

fn read(input: &mut impl Read) -> Result<Recording> {
    let mut magic = [0; 16];
    input.read_exact(&mut magic)?;
    if &magic != MAGIC {
        bail!("it begins otherwise");
    }
    let name = String::from_utf8(bytes(input)?)?;
    let kind = Kind::from_name(&name).with_context(|| format!("there is no file system {name}"))?;
    let (seed, threads, clients, operations) = (number(input)?, small(input)?, small(input)?, small(input)?);
    let plan = Plan { seed, threads, clients, operations, floors_read_late: number(input)? != 0 };
    let count = length(input)?;
    let steps = (0..count).map(|_| small(input)).collect::<Result<Vec<_>>>()?;
    let base = Image::new(number(input)?)?;
    let file = base.open()?;
    loop {
        match number(input)? {
            u64::MAX => break,
            offset => file.write_all_at(&bytes(input)?, offset)?,
        }
    }
    let count = length(input)?;
    let log = (0..count).map(|_| entry(input)).collect::<Result<Vec<_>>>()?;
    Ok(Recording { kind, plan, base, log, steps })
}

fn entry(input: &mut impl Read) -> Result<Entry> {
    Ok(match number(input)? {
        0 => {
            let (offset, arrived) = (number(input)?, number(input)? as usize);
            Entry::Write { offset, data: bytes(input)?.into(), arrived }
        }
        1 => Entry::Flush { covers: number(input)? as usize },
        2 => Entry::Mark(Mark::from_sector(&bytes(input)?).context("a mark that is none")?),
        3 => Entry::Lost { data: bytes(input)?.into() },
        tag => bail!("there is no entry of kind {tag}"),
    })
}

fn number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn small(input: &mut impl Read) -> Result<u32> {
    Ok(u32::try_from(number(input)?)?)
}

fn length(input: &mut impl Read) -> Result<u64> {
    let length = number(input)?;
    if length > LONGEST {
        bail!("a length of {length}");
    }
    Ok(length)
}

fn bytes(input: &mut impl Read) -> Result<Vec<u8>> {
    let length = length(input)?;
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        bail!("it ends early");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use ashore_guest::workload::Scope;

    use super::*;

    #[test]
    fn a_recording_comes_back_from_its_file() {
        let base = Image::new(1 << 20).unwrap();
        base.open().unwrap().write_all_at(b"something", 70_000).unwrap();
        let mark = Mark { thread: 1, scope: Scope::File(3), succeeded: true, floors: vec![4, 5] };
        let log = vec![
            Entry::Write { offset: 4096, data: vec![1; 512].into(), arrived: 0 },
            Entry::Flush { covers: 1 },
            Entry::Mark(mark),
            Entry::Lost { data: vec![2; 512].into() },
        ];
        let plan = Plan { seed: 9, threads: 2, operations: 7, clients: 1, floors_read_late: true };
        let recording = Recording { kind: Kind::Xfs, plan, base, log, steps: vec![7, 6] };
        let path = recording.save("unit-test").unwrap();
        let again = Recording::load(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!((again.kind, again.plan, &again.steps), (Kind::Xfs, plan, &recording.steps));
        assert_eq!(format!("{:?}", again.log), format!("{:?}", recording.log));
        assert_eq!(fs::read(again.base.path()).unwrap(), fs::read(recording.base.path()).unwrap());
    }

    #[test]
    fn a_file_that_is_no_recording_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [&MAGIC[..], &[255; 64]].concat()).unwrap();
        let error = format!("{:#}", Recording::load(file.path()).unwrap_err());
        assert!(error.contains("is no recording"), "{error}");
    }
}
