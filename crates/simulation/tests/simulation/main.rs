//! Seeds of the simulation, and the bugs it must catch.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod cases;
#[cfg(mutants)]
#[path = "../../../passthrough/tests/suite/trials.rs"]
#[allow(dead_code, reason = "only one of its tests is wanted here")]
mod trials;

use std::thread;
use std::time::Instant;

use ashore_simulation::run::{Figures, bounded, run, run_bounded};

/// Threads that run seeds.
const SIDE_BY_SIDE: u64 = 2;
/// How many; a deliberate bug must show in fewer.
const SEEDS: u64 = if cfg!(mutants) { 20_000 } else { 200_000 };

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// `ASHORE_SEED` runs one seed, `ASHORE_SEEDS` so many in place of 200,000.
#[test]
#[cfg_attr(mutants, ignore = "a build with mutants is for mutants::")]
fn every_sync_that_succeeds_is_true() {
    if let Some(seed) = number("ASHORE_SEED") {
        println!("{:#?}", run(seed..seed + 1));
        return;
    }
    let (begun, share) = (Instant::now(), number("ASHORE_SEEDS").unwrap_or(SEEDS) / SIDE_BY_SIDE);
    let threads: Vec<_> =
        (0..SIDE_BY_SIDE).map(|one| thread::spawn(move || run(one * share..(one + 1) * share))).collect();
    let mut sum = Figures::default();
    threads.into_iter().for_each(|thread| sum.add(&thread.join().unwrap()));
    println!("{sum:#?}\nin {:?}", begun.elapsed());
    let faults = sum.faults.values().map(|(times, _)| times).sum::<u64>();
    println!("FIGURE seeds {}\nFIGURE crash-points {}\nFIGURE faults {faults}", sum.seeds, sum.crash_points);
    assert_eq!(sum.faults.len(), 8, "every kind of fault was hit");
    for (fault, (_, seeds)) in &sum.faults {
        assert!(*seeds >= 100, "{fault:?} was hit in {seeds} seeds only");
    }
}

/// Aim: no short workload is overlooked by chance. `ASHORE_SEED` runs one, by its number.
#[test]
#[cfg_attr(mutants, ignore = "a build with mutants is for mutants::")]
fn every_short_workload_is_true() {
    if let Some(seed) = number("ASHORE_SEED") {
        run_bounded(seed..seed + 1);
        return;
    }
    let (all, begun) = (bounded(), Instant::now());
    let part = move |one| one * all / SIDE_BY_SIDE..(one + 1) * all / SIDE_BY_SIDE;
    let threads: Vec<_> =
        (0..SIDE_BY_SIDE).map(|one| thread::spawn(move || run_bounded(part(one)))).collect();
    let mut sum = Figures::default();
    threads.into_iter().for_each(|thread| sum.add(&thread.join().unwrap()));
    assert_eq!(sum.sessions, all);
    println!("{all} workloads of up to three operations, {} syncs, in {:?}", sum.syncs, begun.elapsed());
    println!("FIGURE short-workloads {all}");
}

/// The number as the project's list of mutants has it, the bug, the test.
#[cfg(mutants)]
const TRIALS: &[trials::Trial] = &[
    ("2", "SettledEarly", "every_sync_that_succeeds_is_true"),
    ("5", "OneTooMany", "every_sync_that_succeeds_is_true"),
    ("6", "ReturnsBeforeEmpty", "every_sync_that_succeeds_is_true"),
    ("7", "NothingAwaited", "every_sync_that_succeeds_is_true"),
    ("8", "AnsweredBeforeSynced", "every_sync_that_succeeds_is_true"),
    ("9", "RunningRoundJoined", "cases::s12_of_many_syncs_at_once_each_covers_what_came_before_it"),
    ("12", "UnsupportedIsSuccess", "every_sync_that_succeeds_is_true"),
    ("13", "ErrorSwallowed", "every_sync_that_succeeds_is_true"),
    ("17", "WaitsForLater", "cases::a_sync_ends_although_a_write_that_came_later_does_not"),
    ("17", "LaterAwaited", "cases::a_sync_ends_although_a_write_that_came_later_does_not"),
    ("21", "NothingFlushed", "every_sync_that_succeeds_is_true"),
    ("22", "RedirtiedIsClean", "every_sync_that_succeeds_is_true"),
    ("23", "WriteErrorForgotten", "every_sync_that_succeeds_is_true"),
    ("25", "CarriedNotCounted", "cases::s03_and_s10_a_sync_covers_all_that_was_made_available_before_it"),
    ("26", "BacklogIgnored", "cases::s03_and_s10_a_sync_covers_all_that_was_made_available_before_it"),
    ("26", "OtherQueuesIgnored", "cases::s03_and_s10_a_sync_covers_all_that_was_made_available_before_it"),
    ("-", "LeavesUnsynced", "cases::s08_destroy_is_a_sync"),
];

#[cfg(mutants)]
#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    trials::each_is_caught(TRIALS);
}
