//! Deliberate bugs of this crate, and the test that must catch each.
//!
//! Each bug is switched on by the environment in a process of its own, which runs the one test and has to fail. Only a
//! build with `--cfg mutants` has the bugs: `cargo xtask test mutants-passthrough`.

use std::env::current_exe;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run that takes longer is taken for a wait without end.
const LIMIT: Duration = Duration::from_secs(100);

/// The number as the project's list of mutants has it, the bug, the test.
const TRIALS: &[(&str, &str, &str)] = &[
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
    ("31", "WriteNotStable", "syncing::a_single_write_that_asks_to_be_stable_is_in_every_cache_mode"),
    ("32", "NamelessFails", "scope::exactly_what_was_changed_is_synced"),
    ("-", "EpochIgnored", "scope::exactly_what_was_changed_is_synced"),
    ("-", "EpochIgnored", "scope::a_sync_that_succeeds_covers_every_change_before_it"),
    ("-", "FailedForgotten", "scope::an_error_is_told_to_the_sync_and_to_the_files_own_fsync"),
];

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    if std::env::var_os("ASHORE_MUTANT").is_some() {
        return;
    }
    println!("{:>2}  {:<21} {:<85} {:>7}  caught by", "#", "bug", "test", "time");
    let escaped = TRIALS.iter().filter(|(number, bug, test)| !is_caught(number, bug, test)).count();
    assert_eq!(escaped, 0, "mutants escaped");
}

/// Every bug of the crate stands in the table, and its test passes without it.
#[test]
fn the_table_is_complete_and_its_tests_pass_without_a_bug() {
    if std::env::var_os("ASHORE_MUTANT").is_some() {
        return;
    }
    let source = include_str!("../../src/mutant.rs");
    let (_, bugs) = source.split_once("pub(crate) enum Mutant {").unwrap();
    let (bugs, _) = bugs.split_once('}').unwrap();
    for bug in bugs.lines().filter_map(|line| line.trim().strip_suffix(',')) {
        assert!(TRIALS.iter().any(|trial| trial.1 == bug), "no test is known to catch {bug}");
    }
    for (_, _, test) in TRIALS {
        assert_eq!(run("", test), None, "{test} fails without a bug");
    }
}

fn is_caught(number: &str, bug: &str, test: &str) -> bool {
    let start = Instant::now();
    let verdict = run(bug, test);
    let (seconds, how) = (start.elapsed().as_secs_f64(), verdict.as_deref().unwrap_or("NOT CAUGHT"));
    println!("{number:>2}  {bug:<21} {test:<85} {seconds:>5.1} s  {how}");
    verdict.is_some()
}

/// How the test failed, if it did.
fn run(bug: &str, test: &str) -> Option<String> {
    let mut command = Command::new(current_exe().unwrap());
    command.args(["--exact", "--nocapture", test]).env("RUST_BACKTRACE", "0");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !bug.is_empty() {
        command.env("ASHORE_MUTANT", bug);
    }
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return Some("the test does not end".to_owned());
        }
        sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("running 1 test"), "there is no test {test}");
    (!output.status.success()).then(|| reason(&String::from_utf8_lossy(&output.stderr)))
}

/// The line after the first "panicked at".
fn reason(stderr: &str) -> String {
    let mut lines = stderr.lines().skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).unwrap_or("crashed").chars().take(70).collect()
}
