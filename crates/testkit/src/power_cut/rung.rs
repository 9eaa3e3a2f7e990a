//! One recording and its power cuts, and what is said of them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::disk::Entry;
use super::mounts::{Kind, enter_private_mounts};
use super::replay::{Recording, Report};
use super::stage::Scenario;
use super::way::Way;

/// What is wrong with a state is told in so many lines at most.
const LINES: usize = 6;

/// One recording and its power cuts.
#[derive(Debug)]
pub struct Rung {
    /// Which way the work took.
    pub way: &'static str,
    /// The file system.
    pub kind: Kind,
    /// The seed of the work and of the cuts.
    pub seed: u64,
    /// Entries of the log.
    pub entries: usize,
    /// Syncs that succeeded.
    pub syncs: usize,
    /// How long the recording took.
    pub recorded: Duration,
    /// The power cuts.
    pub report: Report,
}

impl Rung {
    /// Records and cuts. A recording that breaks a promise is saved.
    pub fn climb(way: Way, scenario: &Scenario, states: usize) -> Result<Rung> {
        let begun = Instant::now();
        let seed = scenario.plan.seed;
        let about = || format!("{} on {}, seed {seed}", way.name, scenario.kind.name());
        let recording = way.record(scenario).with_context(about)?;
        let recorded = begun.elapsed();
        let report = recording.cut(states, seed).with_context(about)?;
        let (entries, syncs) = (recording.log.len(), recording.marks());
        let rung = Rung { way: way.name, kind: recording.kind, seed, entries, syncs, recorded, report };
        if !rung.report.broken.is_empty() {
            let path = recording.save(&format!("{}-{}-{seed}", way.name, recording.kind.name()))?;
            println!("{}", rung.complaint(&path.display().to_string()));
        }
        Ok(rung)
    }

    /// What is wrong, and how to see it again.
    fn complaint(&self, saved: &str) -> String {
        let mut text = format!("power cut: {self}\n");
        for broken in &self.report.broken {
            let (position, choice) = (broken.cut.position, broken.cut.choice);
            let _ = writeln!(text, "  position {position}, choice {choice}:");
            for line in broken.wrong.iter().take(LINES) {
                let _ = writeln!(text, "    {line}");
            }
            let _ = writeln!(
                text,
                "    again: cargo run --package ashore-testkit --example power_cuts -- \
                 --replay {saved} --position {position} --choice {choice}"
            );
        }
        text
    }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:15} {:5} seed {:4}: {:4} syncs, {:5} entries in {:4.1} s; {:4} states in {:5.1} s, {} broken",
            self.way,
            self.kind.name(),
            self.seed,
            self.syncs,
            self.entries,
            self.recorded.as_secs_f64(),
            self.report.states,
            self.report.time.as_secs_f64(),
            self.report.broken.len()
        )
    }
}

/// Makes one cut of a saved recording again, and tells what is wrong and what led to it.
pub fn replay_one(recording: &Recording, cut: super::Cut) -> Result<String> {
    enter_private_mounts()?;
    let report = recording.replay(&[cut])?;
    let mut text = String::new();
    let around = cut.position.saturating_sub(12)..recording.log.len().min(cut.position + 4);
    for position in around {
        if position == cut.position {
            text += "  ---- power cut ----\n";
        }
        let _ = match &recording.log[position] {
            Entry::Write { offset, data, arrived } => {
                writeln!(text, "  {position}: write of {} at {offset}, arrived at {arrived}", data.len())
            }
            Entry::Flush { covers } => writeln!(text, "  {position}: flush of what was before {covers}"),
            Entry::Mark(mark) => writeln!(text, "  {position}: {mark:?}"),
            Entry::Lost { data } => writeln!(text, "  {position}: a write of {} failed", data.len()),
        };
    }
    for line in report.broken.iter().flat_map(|broken| &broken.wrong) {
        let _ = writeln!(text, "{line}");
    }
    let verdict = if report.broken.is_empty() { "every promise is kept" } else { "promises are broken" };
    let _ = writeln!(text, "{verdict}");
    Ok(text)
}
