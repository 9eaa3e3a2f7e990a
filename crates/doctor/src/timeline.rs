//! One sync among writers, drawn: what it waited for, what it did not, and what it missed.
//!
//! Writers on every queue write without a pause, each piece of data to a place of its own. In their midst a SYNCFS is
//! sent: that is the cut. At the moment of its answer the host's page cache is asked for each earlier change, and what of it
//! is still only in memory was missed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ashore_vhost_user::driver::RawError;
use parking_lot::Mutex;

use crate::below::Below;
use crate::line::Line;
use crate::svg::draw;
use crate::ward::{Ward, on_threads};

/// Lanes of writers.
const WRITERS: usize = 4;
/// Bytes of one change.
const CHANGE_BYTES: usize = 1 << 20;
/// So that a change is a bar and not a hair, and the disk not full.
const PAUSE: Duration = Duration::from_micros(400);
const CHANGES_OF_A_WRITER: usize = 240;
/// Writers go before the cut, and go on after the answer, for so long.
const BEFORE: Duration = Duration::from_millis(25);
const AFTER: Duration = Duration::from_millis(10);

/// What was recorded, in time since the beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    /// In words: who was examined.
    pub(crate) subject: String,
    /// Names of the lanes of writers.
    pub(crate) lanes: Vec<String>,
    /// In the order in which they entered.
    pub(crate) changes: Vec<Change>,
    /// The SYNCFS, from the cut to its answer.
    pub(crate) sync: Bar,
    /// Syncs of the host, as far as they were seen.
    pub(crate) host_syncs: Vec<Bar>,
}

/// From when till when.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Bar {
    /// Since the beginning.
    pub(crate) from: Duration,
    /// Since the beginning.
    pub(crate) until: Duration,
}

/// One WRITE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    /// Who wrote.
    pub(crate) lane: usize,
    /// From when it was sent till when it was answered.
    pub(crate) bar: Bar,
    /// Where in the lane's file.
    offset: u64,
    /// It was earlier than the sync, and not on the disk when that had succeeded.
    pub(crate) missed: bool,
}

/// What a change was to the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Settled before the cut: to be made stable, not to be waited for.
    Covered,
    /// Under way at the cut.
    AwaitedFor,
    /// Entered after the cut.
    Later,
    /// Entered after the cut, and then took most of the time that the sync took.
    HeldUp,
    /// Earlier, and not stable when the sync had succeeded; or not even settled.
    Missed,
}

impl Recording {
    /// What a change was to the sync.
    pub(crate) fn role(&self, change: &Change) -> Role {
        match change.bar {
            bar if bar.from >= self.sync.from => self.later_role(bar),
            _ if change.missed => Role::Missed,
            bar if bar.until <= self.sync.from => Role::Covered,
            _ => Role::AwaitedFor,
        }
    }

    fn later_role(&self, bar: Bar) -> Role {
        /// So many times as long as a change usually takes here and now: that is no chance.
        const FAR_MORE: u32 = 8;
        let (sync, took) = (self.sync.until - self.sync.from, bar.until.saturating_sub(bar.from));
        let held_up = bar.from < self.sync.until && took > sync / 2 && took > self.usual() * FAR_MORE;
        if held_up { Role::HeldUp } else { Role::Later }
    }

    /// How long a change takes that has nothing to do with the sync: the middle one of those before it.
    fn usual(&self) -> Duration {
        let before = self.changes.iter().filter(|change| change.bar.until < self.sync.from);
        let mut times: Vec<_> = before.map(|change| change.bar.until - change.bar.from).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    /// How many changes had this role.
    pub(crate) fn count(&self, role: Role) -> usize {
        self.changes.iter().filter(|change| self.role(change) == role).count()
    }
}

/// Records one sync of the ward's server and draws it.
pub(crate) fn write(ward: &mut Ward, file: &Path) -> Result<()> {
    let subject = ward.subject();
    if ward.syncfs_is_unknown {
        bail!("the server does not understand SYNCFS");
    }
    let line = ward.line()?;
    let recording = Recording { subject, ..record(line)? };
    std::fs::write(file, draw(&recording)).with_context(|| format!("cannot write {}", file.display()))
}

fn record(line: &Line) -> Result<Recording> {
    let begun = Instant::now();
    let documents =
        (0..WRITERS).map(|lane| line.new_file(&format!("lane{lane}"))).collect::<Result<Vec<_>>>()?;
    let below = line.all_below(&documents)?;
    let (over, changes) = (&AtomicBool::new(false), &Mutex::new(Vec::<Change>::new()));
    let (sync, host_syncs) = thread::scope(|scope| -> Result<_> {
        let writers = scope.spawn(|| {
            on_threads(line, WRITERS, |lane, raw| -> Result<(), RawError> {
                for offset in (0..CHANGES_OF_A_WRITER).map(|index| (index * CHANGE_BYTES) as u64) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let index = enter(changes, begun, lane, offset);
                    raw.call(line.write_call(&documents[lane], offset, CHANGE_BYTES))?;
                    changes.lock()[index].bar.until = begun.elapsed();
                    sleep(PAUSE);
                }
                Ok(())
            })
        });
        let watcher = line.server.map(|server| scope.spawn(move || server.syncs(over)));
        sleep(BEFORE);
        let from = begun.elapsed();
        let synced = line.raw.syncfs();
        let sync = Bar { from, until: begun.elapsed() };
        let missed = note_missed(changes, &below, sync);
        sleep(AFTER);
        over.store(true, Ordering::Relaxed);
        let written = writers.join().expect("writers do not panic");
        let host_syncs = watcher.map_or_else(Vec::new, |watcher| watcher.join().expect("it does not panic"));
        synced.context("SYNCFS")?;
        missed?;
        written.into_iter().collect::<Result<Vec<_>, _>>().context("WRITE")?;
        let since = |moment: Instant| moment.saturating_duration_since(begun);
        let bars = host_syncs.iter().map(|sync| Bar { from: since(sync.from), until: since(sync.until) });
        Ok((sync, bars.collect()))
    })?;
    let lanes = (0..WRITERS).map(|lane| format!("queue {}, writer {}", lane % line.queues + 1, lane + 1));
    let changes = std::mem::take(&mut *changes.lock());
    Ok(Recording { subject: String::new(), lanes: lanes.collect(), changes, sync, host_syncs })
}

/// Notes that a change is about to be sent.
fn enter(changes: &Mutex<Vec<Change>>, begun: Instant, lane: usize, offset: u64) -> usize {
    let mut changes = changes.lock();
    let now = begun.elapsed();
    changes.push(Change { lane, bar: Bar { from: now, until: Duration::MAX }, offset, missed: false });
    changes.len() - 1
}

/// Looks at once, since the host goes on writing.
fn note_missed(changes: &Mutex<Vec<Change>>, below: &[Below], sync: Bar) -> Result<()> {
    for change in changes.lock().iter_mut().filter(|change| change.bar.from < sync.from) {
        let end = change.offset + CHANGE_BYTES as u64;
        let file = &below[change.lane];
        let is_there = file.length()? >= end && file.look_at(change.offset, CHANGE_BYTES as u64)?.is_none();
        change.missed = !is_there;
    }
    Ok(())
}
