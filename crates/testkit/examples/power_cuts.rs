//! As many power cuts as you have time for. Needs root.
//!
//! ```text
//! cargo run --package ashore-testkit --example power_cuts -- --states 20000
//! cargo run --package ashore-testkit --example power_cuts -- --way client-share --file-system xfs --seed 77
//! cargo run --package ashore-testkit --example power_cuts -- --replay FILE --position 512 --choice 7
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use ashore_testkit::power_cut::{Cut, Kind, Recording, Rung, Scenario, Way, replay_one};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Cuts the power of file systems under load, and looks what is left")]
struct Arguments {
    /// How many power cuts to make
    #[arg(long, default_value_t = 2100)]
    states: usize,
    /// The seed of the first recording; each after it has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Which way the work takes, all sound ones in turn if none is named
    #[arg(long, value_name = "NAME")]
    way: Vec<String>,
    /// Which file systems: ext4, xfs, btrfs; all if none is named
    #[arg(long, value_name = "NAME")]
    file_system: Vec<String>,
    /// Power cuts of each recording
    #[arg(long, default_value_t = 100)]
    each: usize,
    /// Steps of each of the threads of a recording
    #[arg(long, default_value_t = 150)]
    steps: u32,
    /// Recordings at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// A recording that was saved, to make one cut of it again
    #[arg(long, value_name = "FILE", requires_all = ["position", "choice"])]
    replay: Option<PathBuf>,
    /// Where in the log to cut
    #[arg(long)]
    position: Option<usize>,
    /// What became of writes that were not stable
    #[arg(long)]
    choice: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let (Some(path), Some(position), Some(choice)) =
        (&arguments.replay, arguments.position, arguments.choice)
    {
        print!("{}", replay_one(&Recording::load(path)?, Cut { position, choice })?);
        return Ok(ExitCode::SUCCESS);
    }
    let campaign = Campaign {
        ways: named(&arguments.way, &Way::SOUND, Way::from_name)?,
        kinds: named(&arguments.file_system, &Kind::ALL, Kind::from_name)?,
        next: AtomicU64::new(0),
        states: AtomicUsize::new(0),
        broken: AtomicUsize::new(0),
        arguments,
    };
    campaign.run()
}

/// The chosen ones, or all.
fn named<T: Copy>(names: &[String], all: &[T], find: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    names.iter().map(|name| find(name).with_context(|| format!("there is no {name}"))).collect()
}

struct Campaign {
    arguments: Arguments,
    ways: Vec<Way>,
    kinds: Vec<Kind>,
    /// Recordings that were begun.
    next: AtomicU64,
    states: AtomicUsize,
    broken: AtomicUsize,
}

impl Campaign {
    fn run(&self) -> Result<ExitCode> {
        let begun = Instant::now();
        thread::scope(|scope| {
            let start = |_| scope.spawn(|| self.record_and_cut());
            let jobs: Vec<_> = (0..self.arguments.jobs).map(start).collect();
            jobs.into_iter().try_for_each(|job| job.join().expect("a job does not panic"))
        })?;
        let (states, broken) = (self.states.load(Ordering::SeqCst), self.broken.load(Ordering::SeqCst));
        let recordings = self.next.load(Ordering::SeqCst);
        let seconds = begun.elapsed().as_secs_f64();
        println!("{recordings} recordings, {states} states, {broken} broken, {seconds:.0} s");
        Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn record_and_cut(&self) -> Result<()> {
        while self.states.fetch_add(self.arguments.each, Ordering::SeqCst) < self.arguments.states {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let way = self.ways[number as usize % self.ways.len()];
            let kind = self.kinds[number as usize / self.ways.len() % self.kinds.len()];
            let mut scenario = Scenario::new(kind, self.arguments.seed + number);
            scenario.plan.operations = self.arguments.steps;
            // Mounts of its own are a thread's, and of this one they would pile up.
            let climbed = thread::scope(|scope| {
                scope
                    .spawn(|| Rung::climb(way, &scenario, self.arguments.each))
                    .join()
                    .expect("it does not panic")
            });
            let rung = climbed?;
            println!("{rung}");
            self.broken.fetch_add(rung.report.broken.len(), Ordering::SeqCst);
        }
        self.states.fetch_sub(self.arguments.each, Ordering::SeqCst);
        Ok(())
    }
}
