//! P6: leaving is a sync too.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::below::{Below, look_until_safe};
use crate::line::Line;
use crate::report::{Seen, size};
use crate::ward::Ward;

/// How long after the last word a server may take to make everything stable. The host by itself leaves dirty pages alone
/// for longer (30 s, unless set otherwise).
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: usize = 3;
const BYTES: usize = 4 << 20;

pub(crate) fn destroy(ward: &mut Ward) -> Result<Seen> {
    leave(ward, "DESTROY", |ward| {
        let (line, server) = ward.take_line()?;
        let below = dirty(&line)?;
        line.raw.destroy().context("DESTROY")?;
        // It was answered: there is nothing to wait for.
        let left = look_until_safe(&below.files, Duration::ZERO)?;
        remove(&below.files);
        drop((line, server));
        Ok((below.pages, left.pages))
    })
}

pub(crate) fn disconnect(ward: &mut Ward) -> Result<Seen> {
    leave(ward, "the connection had ended", |ward| {
        let (line, server) = ward.take_line()?;
        let below = dirty(&line)?;
        drop(line);
        let left = look_until_safe(&below.files, PATIENCE)?;
        remove(&below.files);
        drop(server);
        Ok((below.pages, left.pages))
    })
}

pub(crate) fn sigterm(ward: &mut Ward) -> Result<Seen> {
    ward.recipe()?;
    leave(ward, "it had ended", |ward| {
        let (line, server) = ward.take_line()?;
        let mut server = server.context("it was started by us")?;
        let below = dirty(&line)?;
        server.signal(Signal::TERM);
        server.wait(PATIENCE * 4).context("the server did not end within 20 s of SIGTERM")?;
        let left = look_until_safe(&below.files, Duration::ZERO)?;
        remove(&below.files);
        Ok((below.pages, left.pages))
    })
}

/// Pages that were only in memory before somebody left, and after. One try that leaves some is enough; that there are none
/// may be the work of somebody else's sync of the same disk, so it has to be seen each time.
fn leave(ward: &mut Ward, what: &str, try_once: impl Fn(&mut Ward) -> Result<(u64, u64)>) -> Result<Seen> {
    let mut clean = None;
    for _ in 0..TRIES {
        let (before, after) = try_once(ward)?;
        let (dirty, left) = (size(before * 4096), size(after * 4096));
        if after > 0 {
            return Ok(Seen::broken(format!("{left} of {dirty} were still only in memory after {what}")));
        }
        if before > 0 {
            clean = Some(format!("{dirty} were only in memory before, nothing after"));
        }
    }
    Ok(match clean {
        Some(seen) => Seen::kept(seen),
        None => Seen::unknown("the host wrote the pages to the disk by itself, in each of 3 tries"),
    })
}

struct Dirty {
    files: Vec<Below>,
    pages: u64,
}

fn dirty(line: &Line) -> Result<Dirty> {
    let file = line.new_file("leaving")?;
    let files = vec![line.below(&file).inspect_err(|_| line.clean_up())?];
    line.fill(&file, BYTES).context("WRITE")?;
    let pages = crate::below::look(&files)?.pages;
    Ok(Dirty { files, pages })
}

/// The connection that made them is gone.
fn remove(files: &[Below]) {
    for file in files {
        _ = std::fs::remove_file(file.path());
        if let Some(folder) = file.path().parent() {
            _ = std::fs::remove_dir_all(folder);
        }
    }
}
