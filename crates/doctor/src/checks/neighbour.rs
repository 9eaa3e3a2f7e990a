//! P4: who pays for what others have dirty on the same disk of the host.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::line::{Document, Line};
use crate::report::{Seen, size};
use crate::sys::cachestat;
use crate::ward::Ward;

/// What the neighbour has dirty.
const DIRTY: usize = 64 << 20;
/// Most of the tries decide: anybody on this host may sync meanwhile.
const TRIES: usize = 3;

/// One sync beside a neighbour.
struct Sync {
    took: Duration,
    /// Pages of the neighbour's that only the host's memory had, before and after.
    before: u64,
    after: u64,
}

impl Sync {
    fn has_flushed_the_neighbour(&self) -> bool {
        self.after < self.before / 2
    }

    fn ms(&self) -> f64 {
        self.took.as_secs_f64() * 1000.0
    }
}

pub(crate) fn neighbour(ward: &mut Ward) -> Result<Seen> {
    let asked = ward.was_asked_to_sync_its_share_only();
    let line = ward.syncing_line()?;
    let file = line.new_file("own")?;
    let foreign = tempfile::NamedTempFile::new_in(line.on_host(&line.folder().1)?);
    let foreign = foreign.context("a neighbour's file cannot be made in the shared directory")?;
    // A server's first sync may cover what one before it has left.
    line.raw.syncfs().context("SYNCFS")?;
    let alone = sync_beside(line, &file, foreign.as_file(), 0)?;
    let syncs: Vec<Sync> =
        (0..TRIES).map(|_| sync_beside(line, &file, foreign.as_file(), DIRTY)).collect::<Result<_>>()?;
    let slowest = syncs.iter().max_by_key(|sync| sync.took).context("something was measured")?;
    let numbers = format!(
        "beside {} of a neighbour's a sync of 4 KiB took {:.1} ms, and {:.1} ms without",
        size(DIRTY as u64),
        slowest.ms(),
        alone.ms()
    );
    if syncs.iter().any(|sync| sync.before == 0) {
        return Ok(Seen::unknown("the host wrote the neighbour's pages to the disk before anybody asked"));
    }
    let flushed = syncs.iter().filter(|sync| sync.has_flushed_the_neighbour()).count();
    Ok(match () {
        () if flushed <= TRIES / 2 => Seen::kept(format!("{numbers}; the neighbour's data was left alone")),
        () if asked => Seen::broken(format!("{numbers}; the neighbour's data was written first")),
        () => Seen::kept(format!("{numbers}; nobody has asked the server to leave a neighbour's data alone"))
            .with_note(format!(
                "a guest's sync writes what others have dirty on the same file system of the host too: {numbers}. Where \
                 guests share one, `ashore serve --sync-scope share` has each pay for its own only."
            )),
    })
}

fn sync_beside(line: &Line, own: &Document, foreign: &File, dirty: usize) -> Result<Sync> {
    let piece = vec![0x5A; 1 << 20];
    for offset in (0..dirty).step_by(piece.len()) {
        foreign.write_all_at(&piece, offset as u64).context("the neighbour's file")?;
    }
    line.fill(own, 4096).context("WRITE")?;
    let pages = || cachestat(foreign).map(|pages| pages.dirty + pages.writeback);
    let before = pages().context("looking at the page cache (cachestat, Linux 6.5)")?;
    let begun = Instant::now();
    line.raw.syncfs().context("SYNCFS")?;
    Ok(Sync { took: begun.elapsed(), before, after: pages()? })
}
