//! Deliberate bugs of client and server that must show after a power cut, each in the first states that are looked at.
//!
//! Only a build with `--cfg mutants` has the bugs: `cargo xtask test mutants-power-cuts`. A bug is switched on in a process of
//! its own, and in the server that this process starts.

#![cfg(mutants)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

#[path = "../../passthrough/tests/suite/trials.rs"]
#[allow(dead_code, reason = "the bugs of several crates are tried, and not all of one")]
mod trials;

use ashore_testkit::guest::Server;
use ashore_testkit::power_cut::{Kind, Scenario, Way};
use trials::Trial;

/// A bug must show in so many states.
const STATES: usize = 20;

fn keeps_every_promise(way: Way, kind: Kind) {
    let report = way.record(&Scenario::new(kind, 1)).and_then(|recording| recording.cut(STATES, 1));
    match report {
        Ok(report) => assert!(report.broken.is_empty(), "{} of {STATES} states broken", report.broken.len()),
        // What could not be tried has caught nothing.
        Err(error) if trials::is_trial() => eprintln!("{error:#}"),
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn every_promise_is_kept_through_our_client_on_ext4() {
    keeps_every_promise(Way::CLIENT, Kind::Ext4);
}

#[test]
fn every_promise_is_kept_through_our_client_on_xfs() {
    keeps_every_promise(Way::CLIENT, Kind::Xfs);
}

#[test]
fn every_promise_is_kept_when_only_the_shares_own_changes_are_synced() {
    keeps_every_promise(Way::CLIENT_SHARE, Kind::Ext4);
}

const ON_EXT4: &str = "every_promise_is_kept_through_our_client_on_ext4";
const ON_XFS: &str = "every_promise_is_kept_through_our_client_on_xfs";
const OF_SHARE: &str = "every_promise_is_kept_when_only_the_shares_own_changes_are_synced";

const TRIALS: &[Trial] = &[
    ("8", "AnsweredBeforeSynced", ON_EXT4),
    ("8", "AnsweredBeforeSynced", ON_XFS),
    ("19", "NoFlush", OF_SHARE),
    ("20", "OneInodeSynced", ON_XFS),
    ("21", "NothingFlushed", ON_EXT4),
    ("21", "NothingFlushed", ON_XFS),
];

/// The server with the bugs is built before the first trial: a trial has a time limit, and one that ends by it would pass for a
/// catch.
fn build_the_server() {
    Server::program().unwrap();
}

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    build_the_server();
    trials::each_is_caught(TRIALS);
}

#[test]
fn the_tests_pass_without_a_bug() {
    build_the_server();
    trials::pass_without_a_bug(TRIALS);
}
