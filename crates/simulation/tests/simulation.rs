//! Rung 3: seeds of the simulation, and the bugs it must catch.
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
