//! P5: whatever weakens the other promises is said aloud.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ashore_vhost_user::driver::{Call, RawError};
use ashore_wire::flags::{InitFlags, WriteFlags};
use ashore_wire::{Errno, NodeId};

use crate::line::READ_WRITE;
use crate::place::Firmness;
use crate::report::Seen;
use crate::ward::Ward;

const SILENT: &str = "what the server prints is not to be seen from here; see --command";

pub(crate) fn backing_said(ward: &mut Ward) -> Result<Seen> {
    let place = ward.stands_on()?;
    let why = match place.firmness() {
        Firmness::Firm => return Ok(Seen::kept("there is nothing to be said")),
        Firmness::Doubtful(why) | Firmness::Weak(why) => why,
    };
    ward.line()?;
    let log = ward.log().context(SILENT)?;
    let said = log.lines().find(|line| is_warning(line) && line.contains(&place.kind));
    Ok(match said {
        Some(said) => Seen::kept(format!("the server said: {}", said.trim())),
        None => Seen::broken(format!("{}: {why}; the server said nothing of it", place.words())),
    })
}

/// Lines about weakness, whatever words a server has for it.
fn is_warning(line: &str) -> bool {
    let line = line.to_lowercase();
    ["warn", "error", "stable", "durable", "volatile"].iter().any(|word| line.contains(word))
}

pub(crate) fn early_sync(ward: &mut Ward) -> Result<Seen> {
    const BYTES: usize = 60 << 10;
    /// How long after the SYNCFS the data comes.
    const LATE: Duration = Duration::from_millis(5);
    /// Data that comes later than this no server need wait for.
    const TOO_LATE: Duration = Duration::from_millis(14);
    const TRIES: usize = 10;
    const ENOUGH: usize = 3;
    let line = ward.line()?;
    if !line.has_agreed(InitFlags::WRITEBACK_CACHE) {
        return Ok(Seen::kept("the server does not grant write-back caching"));
    }
    let line = ward.syncing_line()?;
    let file = line.new_file("early")?;
    let below = line.below(&file)?;
    let written = |bytes| line.flagged_write(&file, bytes, READ_WRITE, WriteFlags::CACHE);
    let (mut in_time, mut allowed_for) = (0, 0);
    for _ in 0..TRIES {
        let begun = Instant::now();
        // Guests like these write from their cache, and have done so before.
        line.raw.call(written(BYTES / 2))?;
        let sync = line.raw.send(Call::syncfs(NodeId::ROOT))?;
        std::thread::sleep(LATE);
        let was_over = line.raw.is_done(&sync);
        let late = line.raw.send(written(BYTES))?;
        let is_in_time = begun.elapsed() < TOO_LATE;
        line.raw.wait(sync)?;
        let left = below.look()?;
        line.raw.wait(late)?;
        in_time += usize::from(is_in_time);
        allowed_for += usize::from(is_in_time && !was_over && left.is_none());
    }
    if in_time < ENOUGH {
        return Ok(Seen::unknown("the machine is too busy to send data just after a SYNCFS"));
    }
    if allowed_for == in_time {
        return Ok(Seen::kept("write-back is granted, and a sync waits for data that comes just after it"));
    }
    let log = ward.log().context(SILENT)?;
    Ok(match log.lines().find(|line| line.contains("writeback") && is_warning(line)) {
        Some(said) => Seen::kept(format!("the server said: {}", said.trim())),
        None => Seen::broken(
            "write-back caching is granted; data sent just after the SYNCFS was not stable with it",
        ),
    })
}

pub(crate) fn flush(ward: &mut Ward) -> Result<Seen> {
    let line = ward.line()?;
    let file = line.new_file("flush")?;
    let below = line.below(&file);
    line.fill(&file, 64 << 10).context("WRITE")?;
    match line.flush(&file) {
        Ok(()) | Err(RawError::Errno(Errno::ENOSYS)) => {}
        Err(RawError::Errno(errno)) => return Ok(Seen::broken(format!("FLUSH failed: {errno}"))),
        Err(error) => return Err(error.into()),
    }
    Ok(if below?.look()?.is_none() {
        Seen::kept("FLUSH makes a file stable")
    } else {
        Seen::kept("FLUSH makes nothing stable, nor does Linux ask it to").with_note(
            "Windows guests (viofs) send FLUSH and nothing else for FlushFileBuffers, and with this server that makes \
             nothing stable. For such guests: ashore serve --flush=fsync.",
        )
    })
}
