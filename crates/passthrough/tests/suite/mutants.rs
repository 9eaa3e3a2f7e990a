//! Deliberate bugs of this crate, and the test that must catch each.
//!
//! Only a build with `--cfg mutants` has the bugs: `cargo xtask test mutants-passthrough`.

use crate::trials::{self, Trial};

const TRIALS: &[Trial] = &[
    ("9", "BegunRoundShared", "syncing::a_thousand_syncs_from_sixteen_threads_are_all_answered"),
    ("10", "OnlyRootSynced", "mounts::a_sync_of_the_root_covers_every_host_file_system_that_was_changed"),
    ("11", "DataOnly", "scope::exactly_what_was_changed_is_synced"),
    ("12", "UnsupportedIsSuccess", "syncing::a_host_that_cannot_sync_is_no_success"),
    ("13", "ErrorSwallowed", "syncing::the_error_of_a_host_sync_is_the_answer"),
    ("14", "FreshDescriptor", "mounts::an_error_that_another_process_was_told_first_reaches_the_client"),
    ("15", "OneCountForAll", "syncing::each_client_of_a_host_file_system_hears_of_an_error_once"),
    ("16", "ToldLookedUpLate", "syncing::of_two_syncs_that_overlap_both_hear_of_the_one_error"),
    ("19", "NoFlush", "scope::all_of_it_is_there_after_a_power_cut"),
    ("20", "OneInodeSynced", "syncing::the_host_is_synced_once_for_what_changed_and_not_again"),
    ("24", "DirectoriesSkipped", "scope::exactly_what_was_changed_is_synced"),
    ("28", "RestartForgets", "scope::the_first_sync_covers_what_an_earlier_server_left_behind"),
    ("28", "RestartForgets", "syncing::the_host_is_synced_once_for_what_changed_and_not_again"),
    ("29", "OtherFileSynced", "scope::an_fsync_is_of_the_file_that_was_opened_whatever_has_its_name_now"),
    ("31", "WriteNotStable", "syncing::a_single_write_that_asks_to_be_stable_is_in_every_cache_mode"),
    ("32", "NamelessFails", "scope::exactly_what_was_changed_is_synced"),
    ("33", "GapsLeft", "mounts::after_a_commit_that_failed_no_sync_and_no_fsync_succeeds"),
    ("33", "GapsLeft", "mounts::a_sync_of_what_has_become_read_only_is_no_success"),
    ("-", "EpochIgnored", "scope::exactly_what_was_changed_is_synced"),
    ("-", "EpochIgnored", "scope::a_sync_that_succeeds_covers_every_change_before_it"),
    ("-", "FailedForgotten", "scope::an_error_is_told_to_the_sync_and_to_the_files_own_fsync"),
];

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    trials::each_is_caught(TRIALS);
}

/// Every bug of the crate stands in the table, and its test passes without it.
#[test]
fn the_table_is_complete_and_its_tests_pass_without_a_bug() {
    trials::are_complete_and_pass_without_a_bug(TRIALS, include_str!("../../src/mutant.rs"));
}
