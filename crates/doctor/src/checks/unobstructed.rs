//! P4: nobody else waits because of a sync.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ashore_vhost_user::driver::{Call, RawConnection, RawError};
use ashore_wire::NodeId;

use crate::line::{Document, Line};
use crate::report::{Seen, size};
use crate::sys::cachestat;
use crate::ward::{Ward, on_each_queue};

/// How much is made dirty: as little as will keep the disk busy for long enough.
const DIRTY: [usize; 3] = [64 << 20, 256 << 20, 512 << 20];
/// A shorter sync tells nothing about who waited for it.
const LONG_ENOUGH: Duration = Duration::from_millis(80);
/// What a busy machine alone may cost one request.
const NOISE: Duration = Duration::from_millis(40);
/// So often is measured; most decide.
const TRIES: usize = 3;
/// Syncs at the same time.
const CROWD: usize = 16;

pub(crate) fn stall(ward: &mut Ward) -> Result<Seen> {
    others_during(ward.syncing_line()?, 1)
}

pub(crate) fn crowd(ward: &mut Ward) -> Result<Seen> {
    others_during(ward.syncing_line()?, CROWD)
}

/// What others saw while syncs ran.
#[derive(Clone, Copy, Debug)]
struct Others {
    /// How long the syncs took.
    syncs: Duration,
    /// How long the slowest other request took.
    slowest: Duration,
    /// How many of them were answered.
    answered: usize,
}

impl Others {
    fn were_held_up(self) -> bool {
        self.slowest > self.syncs / 2 && self.slowest > NOISE
    }
}

fn others_during(line: &Line, syncs: usize) -> Result<Seen> {
    let file = line.new_file(&format!("stall{syncs}"))?;
    let quiet = quiet_file(line, &format!("quiet{syncs}"))?;
    let mut seen = None;
    for bytes in DIRTY {
        let others = measure(line, &file, &quiet, bytes, syncs)?;
        seen = Some(others);
        if others.syncs < LONG_ENOUGH {
            continue;
        }
        let numbers = format!(
            "{} dirty, the {} {} ms; the slowest of {} other requests took {:.1} ms",
            size(bytes as u64),
            if syncs == 1 { "sync took".to_owned() } else { format!("{syncs} syncs took") },
            others.syncs.as_millis(),
            others.answered,
            others.slowest.as_secs_f64() * 1000.0,
        );
        // By chance, or because the machine is busy, anybody may be held up once, and somebody else's sync of the same
        // disk may leave nothing to do for ours: most of the tries decide.
        let mut held_up = usize::from(others.were_held_up());
        for _ in 1..TRIES {
            held_up += usize::from(measure(line, &file, &quiet, bytes, syncs)?.were_held_up());
        }
        if held_up <= TRIES / 2 {
            return Ok(Seen::kept(if held_up == 0 {
                numbers
            } else {
                format!("{numbers}, in one of {TRIES} tries")
            }));
        }
        let idle = others_meanwhile(line, &quiet, || {
            sleep(others.syncs);
            Ok(())
        })?;
        return Ok(if idle.slowest > others.slowest / 2 {
            Seen::unknown("the machine is too busy to tell: requests take as long without a sync")
        } else {
            Seen::broken(numbers)
        });
    }
    let others = seen.context("something was measured")?;
    Ok(if others.slowest < NOISE {
        Seen::kept(format!(
            "the disk is too fast to keep anybody waiting: the slowest of {} requests took {:.1} ms",
            others.answered,
            others.slowest.as_secs_f64() * 1000.0
        ))
    } else {
        Seen::unknown("syncs were over too soon to tell who waited for them")
    })
}

/// A file to read whose reading changes nothing any more: the first read of a file after a change notes the time, and
/// that waits for the journal of the host's file system, whoever serves.
fn quiet_file(line: &Line, name: &str) -> Result<Document> {
    let file = line.new_file(name)?;
    line.fill(&file, 4096)?;
    line.raw.fsync(file.node, file.handle)?;
    for _ in 0..2 {
        line.raw.read_bytes(file.node, file.handle, 0, 4096)?;
    }
    Ok(file)
}

/// Requests on every queue while syncs run behind so many dirty bytes.
fn measure(line: &Line, file: &Document, quiet: &Document, bytes: usize, syncs: usize) -> Result<Others> {
    let step = line.write_size();
    for offset in (0..bytes).step_by(step) {
        line.raw.call(line.write_call(file, offset as u64, step)).context("WRITE")?;
    }
    others_meanwhile(line, quiet, || {
        let asked = (0..syncs).map(|_| line.raw.send(Call::syncfs(NodeId::ROOT)));
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        asked.into_iter().try_for_each(|sent| line.raw.wait(sent).map(drop))
    })
}

/// Requests on every queue while something is done.
fn others_meanwhile(
    line: &Line,
    quiet: &Document,
    done: impl FnOnce() -> Result<(), RawError>,
) -> Result<Others> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probes =
            scope.spawn(|| on_each_queue(line, |_, raw| probe(raw, quiet, || over.load(Ordering::Relaxed))));
        sleep(Duration::from_millis(20));
        let begun = Instant::now();
        let result = done();
        let ended = Instant::now();
        over.store(true, Ordering::Relaxed);
        let probes = probes.join().expect("checks do not panic");
        result.context("SYNCFS")?;
        let times = probes.into_iter().collect::<Result<Vec<_>, RawError>>()?.concat();
        let during = times.iter().filter(|(from, until)| *until >= begun && *from <= ended);
        let slowest = during.clone().map(|(from, until)| *until - *from).max().unwrap_or_default();
        Ok(Others { syncs: ended - begun, slowest, answered: during.count() })
    })
}

/// Asks for attributes and for cached data again and again; when each request was sent and answered.
fn probe(
    raw: &RawConnection,
    file: &Document,
    over: impl Fn() -> bool,
) -> Result<Vec<(Instant, Instant)>, RawError> {
    /// So that the probing itself keeps no processor busy.
    const PAUSE: Duration = Duration::from_micros(300);
    let mut times = Vec::new();
    while !over() {
        for call in [Call::getattr(NodeId::ROOT), Call::read_bytes(file.node, file.handle, 0, 4096)] {
            let from = Instant::now();
            raw.call(call)?;
            times.push((from, Instant::now()));
        }
        sleep(PAUSE);
    }
    Ok(times)
}

pub(crate) fn shared_syncs(ward: &mut Ward) -> Result<Seen> {
    /// Counted until so many pairs were counted on a calm disk, or so many in all.
    const CALM_PAIRS: usize = 5;
    const MOST_PAIRS: usize = 30;
    /// A sync of the host cleans a page once or twice.
    const CALM: usize = 3;
    /// Threads that may seem to sync one host file system at the same time: one round that ends and one that begins, and
    /// what a look that is not of one instant adds.
    const FEW: usize = 4;
    let line = ward.syncing_line()?;
    let (document, changed) = (line.new_file("shared")?, line.new_file("changed")?);
    line.fill(&document, 4096)?;
    line.raw.fsync(document.node, document.handle)?;
    line.below(&document)?;
    let path = line.on_host(&document.path)?;
    let file = OpenOptions::new().write(true).open(&path);
    let file = file.with_context(|| format!("cannot write {} on the host", path.display()))?;
    let (mut calm, mut at_once) = (Vec::new(), 0);
    for _ in 0..MOST_PAIRS {
        let (one, _) = cleanings(line, &changed, &file, 1)?;
        let (many, threads) = cleanings(line, &changed, &file, CROWD)?;
        at_once = at_once.max(threads);
        // While others keep the disk busy the host cleans the page again and again by itself.
        if (1..=CALM).contains(&one) && many > 0 {
            calm.push((many, one));
        }
        if calm.len() == CALM_PAIRS {
            break;
        }
    }
    if at_once > FEW {
        let seen = format!("{at_once} threads of the server synced the host at once, for {CROWD} SYNCFS");
        return Ok(Seen::broken(seen));
    }
    // Somebody else's sync of the same file system cleans the page too: the least is nearest the truth.
    let Some((many, one)) = calm.iter().min() else {
        return Ok(Seen::unknown("the disk is too busy with others to count what one sync cleans"));
    };
    let seen =
        format!("a page was cleaned {one} times during one SYNCFS, {many} times during {CROWD} at once");
    Ok(match *many {
        // Two rounds, each of which may clean it twice, and one of somebody else.
        0..=5 => Seen::kept(seen).inferred(),
        many if many >= CROWD / 2 => Seen::broken(seen).inferred(),
        _ => Seen::unknown(format!("{seen}: too many to be shared, too few to be one for each")),
    })
}

/// How often a page that is dirtied again and again becomes clean while so many syncs run, and the most threads of the
/// server that were seen in a sync of the host at once.
fn cleanings(line: &Line, changed: &Document, file: &File, syncs: usize) -> Result<(usize, usize)> {
    let over = &AtomicBool::new(false);
    let (dirtied, wait) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let dirtier = scope.spawn(move || -> Result<usize> {
            let mut count = 0;
            loop {
                file.write_all_at(&[count as u8], 0)?;
                _ = dirtied.send(());
                while cachestat(file)?.dirty > 0 {
                    if over.load(Ordering::Relaxed) {
                        return Ok(count);
                    }
                    thread::yield_now();
                }
                count += 1;
            }
        });
        let watcher = line.server.map(|server| scope.spawn(move || server.most_at_once(over)));
        _ = wait.recv();
        let answers = change_and_sync(line, changed, syncs);
        over.store(true, Ordering::Relaxed);
        let count = dirtier.join().expect("checks do not panic");
        let threads = watcher.map_or(0, |watcher| watcher.join().expect("checks do not panic"));
        answers.context("SYNCFS")?;
        Ok((count?, threads))
    })
}

/// First a change, since a server may know that there is nothing to sync, and one that keeps the disk busy for longer than
/// it takes to send the syncs; then all of them at once, so that they overlap.
fn change_and_sync(line: &Line, changed: &Document, syncs: usize) -> Result<(), RawError> {
    const BYTES: usize = 8 << 20;
    line.fill(changed, BYTES)?;
    let sent = (0..syncs).map(|_| line.raw.send(Call::syncfs(NodeId::ROOT)));
    let sent = sent.collect::<Result<Vec<_>, _>>()?;
    sent.into_iter().try_for_each(|sent| line.raw.wait(sent).map(drop))
}
