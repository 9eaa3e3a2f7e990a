//! Seeds of the simulation, and the bugs it must catch.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::Instant;

use ashore_simulation::run::{Figures, run};

/// Threads that run seeds.
const SIDE_BY_SIDE: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// `ASHORE_SEED` runs one seed, `ASHORE_SEEDS` so many in place of 20,000.
#[test]
#[cfg_attr(mutants, ignore = "a build with mutants is for mutants::")]
fn every_sync_that_succeeds_is_true() {
    if let Some(seed) = number("ASHORE_SEED") {
        println!("{:#?}", run(seed..seed + 1));
        return;
    }
    let (begun, share) = (Instant::now(), number("ASHORE_SEEDS").unwrap_or(20_000) / SIDE_BY_SIDE);
    let threads: Vec<_> =
        (0..SIDE_BY_SIDE).map(|one| thread::spawn(move || run(one * share..(one + 1) * share))).collect();
    let mut sum = Figures::default();
    threads.into_iter().for_each(|thread| sum.add(&thread.join().unwrap()));
    println!("{sum:#?}\nin {:?}", begun.elapsed());
    assert_eq!(sum.faults.len(), 6, "every kind of fault was hit");
    for (fault, (_, seeds)) in &sum.faults {
        assert!(*seeds >= 100, "{fault:?} was hit in {seeds} seeds only");
    }
}

/// The deliberate bugs that it tells from none, and what each breaks.
#[cfg(mutants)]
const CAUGHT: [(&str, &str); 6] = [
    ("NothingAwaited", "D1"),
    ("NothingFlushed", "D1"),
    ("WriteErrorForgotten", "D2"),
    ("AnsweredBeforeSynced", "D1"),
    ("UnsupportedIsSuccess", "D3"),
    ("ErrorSwallowed", "D2"),
];

/// A bug is chosen for a whole process, so each gets one.
#[cfg(mutants)]
#[test]
fn every_mutant_is_caught() {
    let mut survived = Vec::new();
    for (mutant, clause) in CAUGHT {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "every_sync_that_succeeds_is_true"])
            .env("ASHORE_MUTANT", mutant)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stderr);
        let by = told.lines().find(|line| line.contains("D1") || line.contains("D3"));
        println!("{mutant:24} {clause:4} {}", by.unwrap_or("SURVIVED"));
        if run.status.success() || by.is_none() {
            survived.push(mutant);
        }
    }
    assert!(survived.is_empty(), "not caught: {survived:?}");
}
