//! The same work as system calls on the host: what no server can beat.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags, openat, statx, syncfs as sync_file_system};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::meter::{Meter, Sample};
use crate::rows::KIB_4;
use crate::scratch_in;
use crate::tree::{BIG_BYTES, MANY_NAMES, SMALL_FILES, SYNCS_AT_ONCE, WALK_DIRECTORIES, WALK_FILES};

/// Rounds that each thread makes before all meet again.
const SYNC_ROUNDS: u64 = 8;

/// The same files as a server's, on the host.
pub(crate) struct Native {
    small: File,
    small_file: File,
    big: File,
    many: File,
    walk: File,
    sync: Vec<File>,
    scratch: File,
    _folder: TempDir,
}

impl Native {
    /// Makes the files in a directory of their own below `parent`, which goes when this is dropped.
    pub(crate) fn prepare(parent: &Path) -> Result<Native> {
        let folder = scratch_in(parent)?;
        let root = folder.path();
        let directory = |name: &str| -> Result<File> {
            fs::create_dir(root.join(name))?;
            Ok(File::open(root.join(name))?)
        };
        let (small, many, walk) = (directory("small")?, directory("many")?, directory("walk")?);
        let (scratch, sync) = (directory("scratch")?, directory("sync")?);
        for number in 0..SMALL_FILES {
            fs::write(root.join(format!("small/{number}")), [0; KIB_4])?;
        }
        for number in 0..MANY_NAMES {
            File::create(root.join(format!("many/name-of-usual-length-{number:05}")))?;
        }
        for number in 0..WALK_DIRECTORIES {
            fs::create_dir(root.join(format!("walk/{number}")))?;
            for file in 0..WALK_FILES {
                File::create(root.join(format!("walk/{number}/f{file}")))?;
            }
        }
        let open = |path: String| {
            File::options().read(true).write(true).create(true).truncate(false).open(root.join(path))
        };
        let big = open("big".to_owned())?;
        big.write_all_at(&vec![1; BIG_BYTES as usize], 0)?;
        let files =
            (0..SYNCS_AT_ONCE).map(|number| open(format!("sync/{number}"))).collect::<Result<_, _>>()?;
        sync_file_system(&sync)?;
        let small_file = open("small/0".to_owned())?;
        Ok(Native { small, small_file, big, many, walk, sync: files, scratch, _folder: folder })
    }
}

/// By the file itself: `statx` with an empty path.
pub(crate) fn getattr(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        statx(&native.small_file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        Ok(1)
    })
}

/// By its name.
pub(crate) fn stat(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        statx(&native.small, c"0", AtFlags::empty(), StatxFlags::BASIC_STATS)?;
        Ok(1)
    })
}

/// A descriptor for the name, and its attributes.
pub(crate) fn lookup(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    let names: Vec<_> = (0..SMALL_FILES).map(|number| number.to_string()).collect();
    let mut next = 0;
    meter.run(|| {
        let found =
            openat(&native.small, names[next].as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        statx(&found, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        next = (next + 1) % names.len();
        Ok(1)
    })
}

pub(crate) fn lookup_missing(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| match openat(&native.small, c"no-such-name", OFlags::PATH, Mode::empty()) {
        Err(Errno::NOENT) => Ok(1),
        other => other.map(|_| 1).map_err(Into::into),
    })
}

pub(crate) fn open(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        openat(&native.small, c"0", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(1)
    })
}

pub(crate) fn read(native: &Native, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
    let (mut buffer, mut offset) = (vec![0; bytes], 0);
    meter.run(|| {
        native.big.read_exact_at(&mut buffer, offset)?;
        offset = (offset + bytes as u64) % BIG_BYTES;
        Ok(1)
    })
}

pub(crate) fn write(native: &Native, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
    let (buffer, mut offset) = (vec![1; bytes], 0);
    meter.run(|| {
        native.big.write_all_at(&buffer, offset)?;
        offset = (offset + bytes as u64) % BIG_BYTES;
        Ok(1)
    })
}

pub(crate) fn create(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    let (buffer, mut number) = ([1; KIB_4], 0u64);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    meter.run(|| {
        number += 1;
        let name = format!("new-{number}");
        let file = File::from(openat(&native.scratch, name.as_str(), flags, Mode::from_raw_mode(0o644))?);
        file.write_all_at(&buffer, 0)?;
        drop(file);
        rustix::fs::unlinkat(&native.scratch, name.as_str(), AtFlags::empty())?;
        Ok(1)
    })
}

/// Names and the attributes of each.
pub(crate) fn readdir(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| list(&native.many, &mut |_| Ok(())))
}

pub(crate) fn walk(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        let mut files = 0;
        list(&native.walk, &mut |name| {
            let inside = openat(&native.walk, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            files += list(&File::from(inside), &mut |_| Ok(()))?;
            Ok(())
        })?;
        Ok(files)
    })
}

fn list(directory: &File, each: &mut dyn FnMut(&std::ffi::CStr) -> Result<()>) -> Result<u64> {
    let again = openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = Vec::with_capacity(128 << 10);
    let mut entries = RawDir::new(&again, buffer.spare_capacity_mut());
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
        each(name)?;
        count += 1;
    }
    Ok(count)
}

pub(crate) fn syncfs(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| Ok(sync_file_system(&native.big).map(|()| 1)?))
}

/// A page that is dirty, and a sync of the file system.
pub(crate) fn write_and_sync(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        native.big.write_all_at(&[1; KIB_4], 0)?;
        Ok(sync_file_system(&native.big).map(|()| 1)?)
    })
}

/// Each of so many threads dirties its file and syncs.
pub(crate) fn many_syncs(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    let rounds = |file: &File| -> Result<()> {
        for _ in 0..SYNC_ROUNDS {
            file.write_all_at(&[1; KIB_4], 0)?;
            sync_file_system(file)?;
        }
        Ok(())
    };
    meter.run(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = native.sync.iter().map(|file| scope.spawn(move || rounds(file))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
        })?;
        Ok(SYNC_ROUNDS * SYNCS_AT_ONCE as u64)
    })
}

pub(crate) fn fsync(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    meter.run(|| {
        native.sync[0].write_all_at(&[1; KIB_4], 0)?;
        native.sync[0].sync_all()?;
        Ok(1)
    })
}

pub(crate) fn getattr_during_syncs(native: &Native, meter: &Meter<'_>) -> Result<Sample> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                sync_file_system(&native.big)?;
            }
            Ok(())
        });
        let sample = getattr(native, meter);
        over.store(true, Ordering::Relaxed);
        syncing.join().expect("the syncing thread does not panic")?;
        sample
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use std::time::Duration;

    use super::*;

    #[test]
    fn every_native_row_does_something() {
        let place = tempfile::tempdir().unwrap();
        let native = Native::prepare(place.path()).unwrap();
        let meter = Meter::new(Duration::from_millis(2), None);
        for row in crate::rows::ROWS {
            if let Some(measure) = row.native {
                assert!(measure(&native, &meter).unwrap().operations > 0, "{}", row.name);
            }
        }
        assert_eq!(list(&native.many, &mut |_| Ok(())).unwrap(), MANY_NAMES as u64);
    }
}
