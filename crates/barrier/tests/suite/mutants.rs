//! Deliberate bugs, and the test that must catch each. A test that catches none of them would be worth nothing.
//!
//! Each bug is switched on by the environment in a process of its own, which runs the one test and has to fail. A bug
//! that makes a model panic in the middle of an execution cannot be caught in-process.

use std::env::current_exe;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A run that takes longer is taken for a wait without end.
const LIMIT: Duration = Duration::from_secs(100);

struct Trial {
    /// As the project's list of mutants numbers it.
    number: &'static str,
    bug: &'static str,
    test: &'static str,
}

const fn trial(number: &'static str, bug: &'static str, test: &'static str) -> Trial {
    Trial { number, bug, test }
}

#[cfg(loom)]
const CHECKER: &str = "loom";
#[cfg(shuttle)]
const CHECKER: &str = "shuttle";
#[cfg(not(any(loom, shuttle)))]
const CHECKER: &str = "threads";

/// What loom must catch: everything.
#[cfg(loom)]
const TRIALS: &[Trial] = &[
    trial("1", "AncestorIgnored", "bucket_syncs_overlap_over_a_slow_write"),
    trial("1", "AncestorIgnored", "shipped_4_buckets_syncs_overlap_over_a_slow_write"),
    trial("2", "SettledEarly", "bucket_complete_1_writer_1_write_1_sync"),
    trial("2", "SettledEarly", "shipped_complete_1_writer_1_write_1_sync"),
    trial("2", "ResultAfterSettle", "bucket_complete_1_writer_1_write_1_sync"),
    trial("2", "ResultAfterSettle", "shipped_complete_1_writer_1_write_1_sync"),
    trial("3", "DeadBucketEntered", "bucket_2_writers_2_writes_2_syncs"),
    trial("3", "DeadBucketEntered", "shipped_2_writers_2_writes_2_syncs"),
    trial("4", "SwapAfterWait", "bucket_later_writes_are_not_waited_for"),
    trial("4", "SwapAfterWait", "shipped_later_writes_are_not_waited_for"),
    trial("5", "OneTooMany", "bucket_complete_1_writer_1_write_1_sync"),
    trial("5", "OneTooMany", "shipped_complete_1_writer_1_write_1_sync"),
    trial("6", "ReturnsBeforeEmpty", "bucket_complete_1_writer_1_write_1_sync"),
    trial("6", "ReturnsBeforeEmpty", "shipped_complete_1_writer_1_write_1_sync"),
    trial("17", "WaitsForLater", "bucket_later_writes_are_not_waited_for"),
    trial("17", "WaitsForLater", "shipped_later_writes_are_not_waited_for"),
    trial("30", "NoLightFence", "shipped_complete_1_writer_1_write_1_sync"),
    trial("30", "NoLightFence", "a_fence_pair_per_thread_is_enough_complete"),
    trial("30", "NoHeavyFence", "shipped_complete_1_writer_1_write_1_sync"),
    trial("30", "NoHeavyFence", "a_fence_pair_per_thread_is_enough_complete"),
    trial("-", "EnteredReadFirst", "shipped_2_writers_2_writes_2_syncs"),
    trial("-", "OldCutShared", "bucket_syncs_overlap_over_a_slow_write"),
    trial("-", "OldCutShared", "shipped_syncs_overlap_over_a_slow_write"),
    trial("-", "ResultNotPublished", "bucket_complete_1_writer_1_write_1_sync"),
    trial("-", "ResultNotPublished", "shipped_complete_1_writer_1_write_1_sync"),
    trial("-", "SettleNotRecounted", "shipped_complete_1_writer_1_write_1_sync"),
    trial("-", "TakeBackNotRecounted", "shipped_complete_1_writer_2_writes_1_sync"),
];

/// What shuttle must catch too. Missing are those that need weak memory, and number 3, which random schedules hardly
/// ever reach.
#[cfg(shuttle)]
const TRIALS: &[Trial] = &[
    trial("1", "AncestorIgnored", "bucket_3_writers_3_writes_3_syncs"),
    trial("1", "AncestorIgnored", "shipped_4_buckets_3_writers_3_writes_4_syncs"),
    trial("2", "SettledEarly", "bucket_3_writers_3_writes_3_syncs"),
    trial("2", "SettledEarly", "shipped_3_writers_3_writes_3_syncs"),
    trial("2", "ResultAfterSettle", "bucket_3_writers_3_writes_3_syncs"),
    trial("2", "ResultAfterSettle", "shipped_3_writers_3_writes_3_syncs"),
    trial("4", "SwapAfterWait", "bucket_later_writes_are_not_waited_for"),
    trial("4", "SwapAfterWait", "shipped_later_writes_are_not_waited_for"),
    trial("5", "OneTooMany", "bucket_3_writers_3_writes_3_syncs"),
    trial("5", "OneTooMany", "shipped_3_writers_3_writes_3_syncs"),
    trial("6", "ReturnsBeforeEmpty", "bucket_3_writers_3_writes_3_syncs"),
    trial("6", "ReturnsBeforeEmpty", "shipped_3_writers_3_writes_3_syncs"),
    trial("17", "WaitsForLater", "bucket_later_writes_are_not_waited_for"),
    trial("17", "WaitsForLater", "shipped_later_writes_are_not_waited_for"),
    trial("-", "OldCutShared", "bucket_3_writers_3_writes_3_syncs"),
    trial("-", "OldCutShared", "shipped_3_writers_3_writes_3_syncs"),
    trial("-", "SettleNotRecounted", "shipped_3_writers_3_writes_3_syncs"),
    trial("-", "TakeBackNotRecounted", "shipped_3_writers_3_writes_3_syncs"),
];

/// What the real machine must show: that its fences are needed, and do what the models take for granted.
#[cfg(not(any(loom, shuttle)))]
const TRIALS: &[Trial] = &[
    trial("30", "NoHeavyFence", "two_buckets::a_long_run"),
    trial("30", "NoHeavyFence", "eight_buckets::a_long_run"),
    trial("30", "NoLightFence", "full_fences::a_long_run"),
    trial("-", "SettleNotRecounted", "two_buckets::a_long_run"),
];

#[test]
fn every_mutant_is_caught_by_the_test_that_must() {
    if std::env::var_os("ASHORE_MUTANT").is_some() {
        return;
    }
    println!("{:>2}  {:<21} {:<7} {:<50} {:>7}  caught by", "#", "bug", "checker", "test", "time");
    let escaped = TRIALS.iter().filter(|trial| !trial.is_caught()).count();
    // For whoever counts them; see docs/testing.md.
    println!("FIGURE mutants-tried {}\nFIGURE mutants-escaped {escaped}", TRIALS.len());
    assert_eq!(escaped, 0, "mutants escaped");
}

impl Trial {
    fn is_caught(&self) -> bool {
        let start = Instant::now();
        let verdict = self.run();
        let (number, bug, test) = (self.number, self.bug, self.test);
        let (seconds, how) = (start.elapsed().as_secs_f64(), verdict.as_deref().unwrap_or("NOT CAUGHT"));
        println!("{number:>2}  {bug:<21} {CHECKER:<7} {test:<50} {seconds:>5.1} s  {how}");
        if verdict.is_some() {
            println!("CAUGHT {number} {bug} {CHECKER}::{test}");
        }
        verdict.is_some()
    }

    /// How the test failed, if it did.
    fn run(&self) -> Option<String> {
        let mut child = Command::new(current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("{CHECKER}::{}", self.test)])
            .env("ASHORE_MUTANT", self.bug)
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if !ends_in_time(&mut child) {
            child.kill().unwrap();
            child.wait().unwrap();
            return Some("the test does not end".to_owned());
        }
        let output = child.wait_with_output().unwrap();
        (!output.status.success()).then(|| reason(&String::from_utf8_lossy(&output.stderr)))
    }
}

fn ends_in_time(child: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        sleep(Duration::from_millis(5));
    }
    false
}

/// The line after the first "panicked at".
fn reason(stderr: &str) -> String {
    let mut lines = stderr.lines().skip_while(|line| !line.contains("panicked at"));
    let line = lines.nth(1).unwrap_or("crashed");
    line.chars().take(70).collect()
}
