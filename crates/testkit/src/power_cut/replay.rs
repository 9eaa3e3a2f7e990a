//! Power cuts, made from a recording.
//!
//! ```text
//!   log  W0 W1 F(2) W2 M W3 W4 │ W5 F(..) ...           cut here; W5 had arrived and was not finished
//!        └─────┘    └────────┘   └┘
//!        stable     each of these, on its own: lost, there, or torn at a sector
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ashore_guest::workload::{Dice, Plan, SECTOR};

use super::disk::Entry;
use super::history::History;
use super::knowledge::{Knowledge, Owners};
use super::mounts::{Image, Kind, LoopMount, copy_sparse};
use super::oracle;

/// Entries behind the cut among which writes are looked for that had arrived before it.
const IN_FLIGHT_REACH: usize = 32;
/// States with something wrong after which no more are made.
const ENOUGH_BROKEN: usize = 5;

/// The choice by which every write that is not stable is lost.
const LOSE_ALL: u64 = 0;

/// What a disk was told, and what it held before.
#[derive(Debug)]
pub struct Recording {
    /// The file system on it.
    pub kind: Kind,
    /// Whose work it was.
    pub plan: Plan,
    /// The disk before the first entry.
    pub base: Image,
    /// Everything it finished. The first mark stands where the threads' directories were stable.
    pub log: Vec<Entry>,
    /// The steps each thread has done.
    pub steps: Vec<u32>,
}

/// One power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// How many entries of the log had happened.
    pub position: usize,
    /// What became of writes that were not stable follows from this.
    pub choice: u64,
}

/// A state that breaks a promise.
#[derive(Debug)]
pub struct Broken {
    /// How it came about.
    pub cut: Cut,
    /// What is wrong.
    pub wrong: Vec<String>,
}

/// What came of a number of power cuts.
#[derive(Debug, Default)]
pub struct Report {
    /// States that were made and looked at.
    pub states: usize,
    /// Those that break a promise.
    pub broken: Vec<Broken>,
    /// How long it took.
    pub time: Duration,
}

impl Recording {
    /// Makes `states` power cuts that follow from `seed`, and judges what each leaves. Ends early when enough are broken.
    pub fn cut(&self, states: usize, seed: u64) -> Result<Report> {
        self.replay(&self.cuts(states, seed))
    }

    /// Makes these power cuts, which must be in the order of their positions.
    pub fn replay(&self, cuts: &[Cut]) -> Result<Report> {
        let begun = Instant::now();
        let mut replayer = Replayer::new(self)?;
        let mut report = Report::default();
        for cut in cuts {
            let wrong = replayer.judge(*cut)?;
            report.states += 1;
            if !wrong.is_empty() {
                report.broken.push(Broken { cut: *cut, wrong });
            }
            if report.broken.len() >= ENOUGH_BROKEN {
                break;
            }
        }
        report.time = begun.elapsed();
        Ok(report)
    }

    /// How many syncs failed.
    pub fn failed_marks(&self) -> usize {
        self.log.iter().filter(|entry| matches!(entry, Entry::Mark(mark) if !mark.succeeded)).count()
    }

    /// How many syncs succeeded, the first mark left out, which is the rig's own.
    pub fn marks(&self) -> usize {
        let succeeded = |entry: &&Entry| matches!(entry, Entry::Mark(mark) if mark.succeeded);
        self.log.iter().filter(succeeded).count().saturating_sub(1)
    }

    /// Cuts are made just behind marks more often than elsewhere: what a sync has promised and not done is then not made up
    /// for by the next one. Four in ten lose, right behind a mark, everything that may be lost.
    fn cuts(&self, states: usize, seed: u64) -> Vec<Cut> {
        let is_mark = |position: &usize| matches!(self.log[*position], Entry::Mark(_));
        let marks: Vec<usize> = (0..self.log.len()).filter(is_mark).collect();
        let first = marks.first().map_or(self.log.len(), |first| first + 1);
        let mut dice = Dice::new(seed);
        let mut draw = || {
            let (position, choice) = match (dice.pick(&marks), dice.below(10)) {
                (Some(mark), 0..4) => (mark + 1, LOSE_ALL),
                (Some(mark), 4..7) => (mark + 1 + dice.below(3) as usize, dice.roll()),
                _ => (first + dice.below((self.log.len() + 1 - first) as u64) as usize, dice.roll()),
            };
            Cut { position: position.min(self.log.len()), choice }
        };
        let mut cuts: Vec<Cut> = (0..states).map(|_| draw()).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// Makes states one after another, each from what is stable by then.
struct Replayer<'a> {
    recording: &'a Recording,
    histories: Vec<History>,
    owners: Owners,
    /// What is stable at the position reached.
    stable: File,
    _stable_image: Image,
    /// Entries of the log that are in `stable`.
    applied: usize,
    scratch: Image,
}

impl<'a> Replayer<'a> {
    fn new(recording: &'a Recording) -> Result<Replayer<'a>> {
        let (stable_image, scratch) = (Image::new(0)?, Image::new(0)?);
        let stable = stable_image.open()?;
        copy_sparse(&recording.base.open()?, &stable)?;
        let history = |(thread, steps): (usize, &u32)| History::of(&recording.plan, thread as u32, steps + 1);
        let histories: Vec<_> = recording.steps.iter().enumerate().map(history).collect();
        let writes_failed = recording.log.iter().any(|entry| matches!(entry, Entry::Lost { .. }));
        let owners = if writes_failed { Owners::of(&histories) } else { Owners::default() };
        Ok(Replayer {
            recording,
            histories,
            owners,
            stable,
            _stable_image: stable_image,
            applied: 0,
            scratch,
        })
    }

    fn judge(&mut self, cut: Cut) -> Result<Vec<String>> {
        self.build(cut)?;
        let mount = match LoopMount::new(self.recording.kind, &self.scratch.path(), "") {
            Ok(mount) => mount,
            Err(error) => return Ok(vec![format!("the file system cannot be mounted: {error:#}")]),
        };
        let Recording { log, plan, steps, .. } = self.recording;
        let mut known = Knowledge::at(log, cut.position, (plan, steps), &self.owners);
        known.stale_tails = self.recording.kind == Kind::Btrfs;
        Ok(self.look(mount.path(), &known))
    }

    fn look(&self, root: &Path, known: &Knowledge) -> Vec<String> {
        let mut wrong = Vec::new();
        for (thread, history) in self.histories.iter().enumerate() {
            let directory = root.join(Plan::directory(thread as u32));
            match oracle::look(&directory) {
                Ok(found) => wrong.extend(oracle::judge(thread as u32, history, known, &found)),
                Err(error) => wrong.push(format!("the directory of thread {thread} cannot be read: {error}")),
            }
        }
        wrong
    }

    /// The disk after this cut, in `scratch`.
    fn build(&mut self, cut: Cut) -> Result<()> {
        let log = &self.recording.log;
        let covers = |entry: &Entry| if let Entry::Flush { covers } = entry { Some(*covers) } else { None };
        let stable = log[..cut.position].iter().filter_map(covers).max().unwrap_or(0);
        for entry in &log[self.applied.min(stable)..stable] {
            if let Entry::Write { offset, data, .. } = entry {
                self.stable.write_all_at(data, *offset)?;
            }
        }
        self.applied = self.applied.max(stable);
        let scratch = self.scratch.open()?;
        copy_sparse(&self.stable, &scratch).context("copying an image")?;
        let mut fates = Fates::new(cut.choice);
        let reach = log.len().min(cut.position + IN_FLIGHT_REACH);
        for (position, entry) in log.iter().enumerate().take(reach).skip(stable) {
            let Entry::Write { offset, data, arrived } = entry else { continue };
            if position < cut.position || *arrived <= cut.position {
                self.apply(&scratch, *offset, data, &mut fates)?;
            }
        }
        Ok(())
    }

    /// Writes what is left of a write that was not stable.
    fn apply(&self, scratch: &File, offset: u64, data: &[u8], fates: &mut Fates) -> Result<()> {
        let end = offset + data.len() as u64;
        let mut superblocks = self.recording.kind.superblocks().iter();
        let whole = superblocks.any(|(start, stop)| offset < *stop && end > *start);
        match fates.draw(whole) {
            Fate::Lost => {}
            Fate::Kept => scratch.write_all_at(data, offset)?,
            Fate::Torn => {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    if fates.dice.percent(50) {
                        scratch.write_all_at(sector, offset + (number * SECTOR) as u64)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What becomes of a write that was not stable.
enum Fate {
    Lost,
    Kept,
    Torn,
}

/// Draws fates; some cuts lose nearly everything, others nearly nothing.
struct Fates {
    dice: Dice,
    lost_percent: u64,
    torn_percent: u64,
}

impl Fates {
    fn new(choice: u64) -> Fates {
        let mut dice = Dice::new(choice);
        if choice == LOSE_ALL {
            return Fates { dice, lost_percent: 100, torn_percent: 0 };
        }
        let lost_percent = [100, 85, 50, 50, 15][dice.below(5) as usize];
        let torn_percent = [0, 20, 60][dice.below(3) as usize];
        Fates { dice, lost_percent, torn_percent }
    }

    fn draw(&mut self, whole: bool) -> Fate {
        match (self.dice.percent(self.lost_percent), self.dice.percent(self.torn_percent)) {
            (true, _) => Fate::Lost,
            (false, true) if !whole => Fate::Torn,
            _ => Fate::Kept,
        }
    }
}
