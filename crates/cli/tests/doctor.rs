//! `ashore doctor` as a user runs it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

/// One at a time: the checks measure, and would measure each other.
static TURN: Mutex<()> = Mutex::new(());

fn doctor(arguments: &[&str]) -> Output {
    // A test that failed has nothing to do with the next one.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_ashore")).arg("doctor").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn our_own_server_keeps_all_six_promises() {
    let output = doctor(&["--as-user"]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", text(&output.stderr));
    assert!(table.contains("6 promises: 6 kept, 0 broken, 0 could not be told."), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn what_is_broken_is_exit_code_1_and_stands_in_the_json() {
    let output = doctor(&["--json", "--only", "backing", "--scratch", "/dev/shm"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let json = text(&output.stdout);
    assert!(json.contains(r#""check":"backing""#) && json.contains(r#""verdict":"broken""#), "{json}");
}

#[test]
fn what_cannot_be_told_is_exit_code_2() {
    assert_eq!(doctor(&["--only", "unknown-node"]).status.code(), Some(2));
}

#[test]
fn a_server_that_does_not_start_is_quoted() {
    let output = doctor(&["--command", "sh -c 'echo I cannot; exit 4' {socket} {dir}"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("I cannot"), "{}", text(&output.stderr));
}

#[test]
fn a_check_that_does_not_exist_is_answered_with_those_that_do() {
    let output = doctor(&["--only", "no-such-check"]);
    assert!(text(&output.stderr).contains("sync-clean"), "{}", text(&output.stderr));
}

#[test]
fn a_directory_is_examined_from_the_application_s_side_and_left_as_it_was() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let output = doctor(&["--path", directory.path().to_str().unwrap()]);
    assert!(
        text(&output.stdout).contains("nothing of it was examined"),
        "P2 and P6: {}",
        text(&output.stdout)
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_timeline_is_a_drawing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sync.svg");
    let output = doctor(&["--only", "syncfs-known", "--timeline", file.to_str().unwrap()]);
    let drawing = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert!(drawing.starts_with("<svg") && drawing.contains("missed none"), "{drawing}");
    assert!(drawing.contains("queue 2") && drawing.contains("class=\"covered\""), "{drawing}");
}
