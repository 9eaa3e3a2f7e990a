//! Deliberate bugs of the client, and the case that must catch each. The simulation tries some of them too.
//!
//! Only a build with `--cfg mutants` has the bugs: `cargo xtask test mutants-server`.

#![cfg(mutants)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

#[path = "client_conformance.rs"]
mod client_conformance;
#[path = "../../passthrough/tests/suite/trials.rs"]
#[allow(dead_code, reason = "two bugs have no test that catches them: docs/testing.md names them")]
mod trials;

use trials::Trial;

const TRIALS: &[Trial] = &[
    ("7", "NothingAwaited", "client_conformance::c02_sync_takes_as_long_as_the_slowest_write"),
    (
        "21",
        "NothingFlushed",
        "client_conformance::c01_a_dirty_file_is_written_and_answered_before_syncfs_is_sent",
    ),
    (
        "22",
        "RedirtiedIsClean",
        "client_conformance::c03_a_page_rewritten_in_flight_is_written_again_before_syncfs",
    ),
    ("23", "WriteErrorForgotten", "client_conformance::c08_a_failed_write_is_told_once_to_each_handle"),
    ("27", "CallerLeaves", "client_conformance::c18_all_changes_in_flight_are_waited_for"),
];

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    trials::each_is_caught(TRIALS);
}

#[test]
fn the_tests_pass_without_a_bug() {
    trials::pass_without_a_bug(TRIALS);
}
