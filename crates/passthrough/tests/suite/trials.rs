//! Trials of deliberate bugs: each is switched on by the environment in a process of its own, which runs the one test that
//! must catch it, and has to fail.

use std::env::{current_exe, var_os};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run that takes longer is taken for a wait without end.
const LIMIT: Duration = Duration::from_secs(100);
/// Names the bug.
const VARIABLE: &str = "ASHORE_MUTANT";

/// The number as the project's list of mutants has it, the bug, the test.
pub(crate) type Trial = (&'static str, &'static str, &'static str);

/// Fails if a bug is not caught by the test that must.
pub(crate) fn each_is_caught(trials: &[Trial]) {
    if var_os(VARIABLE).is_some() {
        return;
    }
    println!("{:>2}  {:<21} {:<85} {:>7}  caught by", "#", "bug", "test", "time");
    let escaped = trials.iter().filter(|(number, bug, test)| !is_caught(number, bug, test)).count();
    // For whoever counts them; see docs/testing.md.
    println!("FIGURE mutants-tried {}\nFIGURE mutants-escaped {escaped}", trials.len());
    assert_eq!(escaped, 0, "mutants escaped");
}

/// Fails if a bug of `source`, the crate's `mutant.rs`, has no trial, or if a test fails without a bug.
pub(crate) fn are_complete_and_pass_without_a_bug(trials: &[Trial], source: &str) {
    if var_os(VARIABLE).is_some() {
        return;
    }
    let (_, bugs) = source.split_once("pub(crate) enum Mutant {").unwrap();
    let (bugs, _) = bugs.split_once('}').unwrap();
    for bug in bugs.lines().filter_map(|line| line.trim().strip_suffix(',')) {
        assert!(trials.iter().any(|trial| trial.1 == bug), "no test is known to catch {bug}");
    }
    pass_without_a_bug(trials);
}

/// Fails if a test fails without a bug.
pub(crate) fn pass_without_a_bug(trials: &[Trial]) {
    if var_os(VARIABLE).is_some() {
        return;
    }
    for (_, _, test) in trials {
        assert_eq!(run("", test), None, "{test} fails without a bug");
    }
}

/// Whether a bug is switched on in this process.
#[allow(dead_code, reason = "most tests need not know")]
pub(crate) fn is_trial() -> bool {
    var_os(VARIABLE).is_some()
}

fn is_caught(number: &str, bug: &str, test: &str) -> bool {
    let start = Instant::now();
    let verdict = run(bug, test);
    let (seconds, how) = (start.elapsed().as_secs_f64(), verdict.as_deref().unwrap_or("NOT CAUGHT"));
    println!("{number:>2}  {bug:<21} {test:<85} {seconds:>5.1} s  {how}");
    if verdict.is_some() {
        println!("CAUGHT {number} {bug} {test}");
    }
    verdict.is_some()
}

/// How the test failed, if it did.
fn run(bug: &str, test: &str) -> Option<String> {
    let mut command = Command::new(current_exe().unwrap());
    command.args(["--exact", "--include-ignored", "--nocapture", test]).env("RUST_BACKTRACE", "0");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !bug.is_empty() {
        command.env(VARIABLE, bug);
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
