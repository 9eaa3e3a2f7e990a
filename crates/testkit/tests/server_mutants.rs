//! Deliberate bugs of the server, and the test that must catch each. A test that catches none would be worth nothing.
//!
//! Only a build with `--cfg mutants` has the bugs: `cargo xtask test mutants-server`.

#![cfg(mutants)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

#[path = "server.rs"]
mod server;
#[path = "server_socket.rs"]
mod server_socket;
#[path = "server_sync.rs"]
mod server_sync;
#[path = "../../passthrough/tests/suite/trials.rs"]
mod trials;

use trials::Trial;

const TRIALS: &[Trial] = &[
    (
        "8",
        "AnsweredBeforeSynced",
        "server_sync::s01_a_sync_is_answered_after_the_host_was_synced_and_not_before",
    ),
    ("9", "RunningRoundJoined", "server_sync::s12_a_sync_shares_no_round_that_began_before_it_came"),
    ("12", "UnsupportedIsSuccess", "server_sync::a_file_system_that_cannot_sync_is_no_success"),
    ("13", "ErrorSwallowed", "server_sync::s02_the_error_of_a_sync_is_its_answer"),
    ("17", "LaterAwaited", "server_sync::a_sync_does_not_wait_for_a_write_that_comes_later"),
    ("25", "CarriedNotCounted", "server_sync::changes_that_other_threads_carry_on_are_waited_for_too"),
    (
        "26",
        "BacklogIgnored",
        "server_sync::s10_a_sync_waits_for_a_write_that_was_made_available_and_not_taken",
    ),
    ("26", "OtherQueuesIgnored", "server_sync::s03_a_sync_waits_for_a_write_that_another_queue_is_doing"),
    ("-", "LeavesUnsynced", "server::destroy_syncs_and_forgets"),
    (
        "8",
        "AnsweredBeforeSynced",
        "server_socket::s01_a_sync_is_answered_after_the_host_was_synced_and_not_before",
    ),
    ("26", "BacklogIgnored", "server_socket::s10_a_sync_on_a_fifth_queue_covers_64_writes_on_four"),
    ("26", "OtherQueuesIgnored", "server_socket::s10_a_sync_on_a_fifth_queue_covers_64_writes_on_four"),
];

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    trials::each_is_caught(TRIALS);
}

/// Every bug of the crate stands in the table, and its test passes without it.
#[test]
fn the_table_is_complete_and_its_tests_pass_without_a_bug() {
    trials::are_complete_and_pass_without_a_bug(TRIALS, include_str!("../../server/src/mutant.rs"));
}
