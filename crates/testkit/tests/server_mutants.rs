//! Deliberate bugs of the server, and the test that must catch each. A test that catches none would be worth nothing.
//!
//! Each bug is switched on by the environment in a process of its own, which runs the one test and has to fail. Only a
//! build with `--cfg mutants` has the bugs: `cargo xtask test mutants-server`.

#![cfg(mutants)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

#[path = "server.rs"]
mod server;
#[path = "server_socket.rs"]
mod server_socket;
#[path = "server_sync.rs"]
mod server_sync;

use std::env::current_exe;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run that takes longer is taken for a wait without end.
const LIMIT: Duration = Duration::from_secs(100);

/// The number as the project's list of mutants has it, the bug, the test.
const TRIALS: &[(&str, &str, &str)] = &[
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
    let source = include_str!("../../server/src/mutant.rs");
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
