//! P1, seen on the disk that was named with --disk.

use std::fs::{self, File};
use std::io::Write;

use anyhow::{Context, Result, bail};

use crate::image::{BLOCK, Image, Pattern};
use crate::report::{Seen, size};
use crate::ward::Ward;

/// The check's name: it is carried out only if a disk was named.
pub(crate) const ON_DISK: &str = "on-disk";

/// 2 MiB.
const BLOCKS: usize = 512;
/// As many as go into one WRITE of the doctor's.
const BLOCKS_AT_ONCE: usize = 16;

/// Fails, saying so, if a disk was named and it is not the one below the share: then nothing would ever be found on it.
pub(crate) fn need_that_disk(ward: &Ward) -> Result<()> {
    let Some(path) = &ward.disk else { return Ok(()) };
    let image = Image::open(path)?;
    let directory =
        ward.directory().context("--disk needs to know where the shared directory is: add --dir")?;
    let pattern = Pattern::new();
    let marker = directory.join(format!(".ashore-doctor-{}-disk", std::process::id()));
    let written = File::create_new(&marker)
        .and_then(|mut file| file.write_all(&pattern.blocks(1)).and(file.sync_all()));
    let found = written.and_then(|()| image.count(pattern, 1));
    _ = fs::remove_file(&marker);
    let found = found.with_context(|| format!("--disk: cannot compare {}", image.path().display()))?;
    if found == 0 {
        bail!(
            "--disk: {} is not the disk of {}, or not as it lies there: what was written and fsynced in that directory is \
             not found on it. `findmnt --target {}` names the disk; one that is encrypted, compressed, or one of several \
             cannot be searched",
            image.path().display(),
            directory.display(),
            directory.display()
        );
    }
    Ok(())
}

pub(crate) fn on_disk(ward: &mut Ward) -> Result<Seen> {
    let image = Image::open(ward.disk.as_deref().context("no disk was named: add --disk")?)?;
    let line = ward.syncing_line()?;
    let pattern = Pattern::new();
    let file = line.new_file("on-disk")?;
    for (number, data) in pattern.blocks(BLOCKS).chunks(BLOCKS_AT_ONCE * BLOCK).enumerate() {
        let offset = (number * BLOCKS_AT_ONCE * BLOCK) as u64;
        line.raw.call(line.data_write(&file, offset, data)).context("WRITE")?;
    }
    let before = image.count(pattern, BLOCKS)?;
    line.raw.syncfs().context("SYNCFS")?;
    let after = image.count(pattern, BLOCKS)?;
    let words =
        format!("of {}, {} were on the disk before, {} after", bytes(BLOCKS), bytes(before), bytes(after));
    Ok(match () {
        () if after < BLOCKS => Seen::broken(words),
        () if before == BLOCKS => Seen::unknown("the host wrote the data to the disk before anybody asked"),
        () => Seen::kept(words),
    })
}

fn bytes(blocks: usize) -> String {
    size((blocks * BLOCK) as u64)
}
