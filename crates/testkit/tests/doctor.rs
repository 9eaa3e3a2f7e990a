//! `ashore doctor` finds what is wrong with a server, names it, and names nothing else.
//!
//! Servers are started by their command lines, as a user would have it: ours with one thing put wrong each
//! (`broken-server`), and virtiofsd. Some need root and fail without.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;

use ashore_doctor::{Check, DoctorArguments, Finding, Observer, Promise, Report, Verdict};
use ashore_testkit::guest::LoopImage;
use parking_lot::Mutex;

/// One at a time: the checks measure, and would measure each other.
static TURN: Mutex<()> = Mutex::new(());

struct Silent;

impl Observer for Silent {
    fn begins(&mut self, _: &Check) {}
    fn ended(&mut self, _: &Finding) {}
}

fn examine(command: &str, as_user: bool) -> Report {
    examine_on(None, command, as_user)
}

fn examine_on(scratch: Option<PathBuf>, command: &str, as_user: bool) -> Report {
    examine_only(&[], scratch, command, as_user)
}

/// All checks, if none is named.
fn examine_only(checks: &[&str], scratch: Option<PathBuf>, command: &str, as_user: bool) -> Report {
    let _turn = TURN.lock();
    let command = format!("{command} --shared-dir {{dir}} --socket-path {{socket}}");
    let only = checks.iter().map(|check| (*check).to_owned()).collect();
    let arguments = DoctorArguments { command: Some(command), scratch, as_user, only, ..Default::default() };
    ashore_doctor::run(&arguments, &mut Silent).unwrap()
}

fn broken_server(fault: &str) -> String {
    format!("{} {fault}", env!("CARGO_BIN_EXE_broken-server"))
}

fn ids(report: &Report, verdict: Verdict) -> Vec<&'static str> {
    let with_it = report.findings.iter().filter(|finding| finding.seen.verdict == verdict);
    with_it.map(|finding| finding.check.id).collect()
}

#[track_caller]
fn found(report: Report, broken: &[&str]) -> Report {
    assert_eq!(ids(&report, Verdict::Broken), broken, "{report}");
    assert_eq!(report.exit_code(), u8::from(!broken.is_empty()), "{report}");
    report
}

#[track_caller]
fn finds(fault: &str, broken: &[&str]) -> Report {
    found(examine(&broken_server(fault), true), broken)
}

/// Judged by how long things take: on a busy machine it may be missed that a server breaks one of them. It must not be
/// invented.
const BY_TIME: [&str; 3] = ["stall", "crowd", "shared-syncs"];

/// As [`finds`], on a disk of its own: nobody else's sync makes stable what this server does not.
#[track_caller]
fn finds_on_its_own_disk(fault: &str, broken: &[&str]) {
    let disk = LoopImage::ext4(2048).unwrap();
    found(examine_on(Some(disk.path().to_owned()), &broken_server(fault), true), broken);
}

#[track_caller]
fn finds_as_root(command: &str, broken: &[&str]) {
    // Of its own, so that nobody else's sync makes stable what this server does not.
    let disk = LoopImage::ext4(2048).unwrap();
    let report = examine_on(Some(disk.path().to_owned()), command, false);
    let found = ids(&report, Verdict::Broken);
    let invented: Vec<_> = found.iter().filter(|id| !broken.contains(id)).collect();
    let missed: Vec<_> = broken.iter().filter(|id| !found.contains(id) && !BY_TIME.contains(id)).collect();
    assert!(invented.is_empty() && missed.is_empty(), "invented {invented:?}, missed {missed:?}: {report}");
    let holds_up = ["stall", "crowd"];
    let expected = holds_up.iter().any(|id| broken.contains(id));
    // Where syncs are over too soon to tell, nobody is accused: it may take more than one go.
    let again = || {
        let scratch = Some(disk.path().to_owned());
        !ids(&examine_only(&holds_up, scratch, command, false), Verdict::Broken).is_empty()
    };
    let is_found = holds_up.iter().any(|id| found.contains(id)) || expected && (0..5).any(|_| again());
    assert_eq!(expected, is_found, "who waits for syncs: {report}");
    let unknown: Vec<_> =
        ids(&report, Verdict::Unknown).into_iter().filter(|id| !BY_TIME.contains(id)).collect();
    assert!(unknown.is_empty(), "not told: {unknown:?}: {report}");
}

#[test]
fn every_check_has_a_section_in_the_manual() {
    let manual =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/doctor.md")).unwrap();
    let sections: Vec<_> = manual.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let checks: Vec<_> = ashore_doctor::CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(sections, checks);
}

#[test]
fn a_sound_server_keeps_all_promises() {
    let report = finds("none", &[]);
    for promise in Promise::ALL {
        assert_eq!(report.verdict(promise), Verdict::Kept, "{report}");
    }
    assert_eq!(ids(&report, Verdict::Unknown), [] as [&str; 0], "{report}");
}

#[test]
fn syncfs_that_is_not_implemented() {
    let report = finds("syncfs-unknown", &["syncfs-known"]);
    assert_eq!(
        report.verdict(Promise::Bounded),
        Verdict::Unknown,
        "nothing is said of syncs that there are not"
    );
    assert!(report.to_string().replace("\n", " ").contains("takes ENOSYS for success"), "{report}");
}

#[test]
fn syncfs_that_is_answered_at_once() {
    let report = finds("syncfs-hollow", &["sync-clean"]);
    assert_eq!(
        report.verdict(Promise::Unobstructed),
        Verdict::Unknown,
        "who does nothing is in nobody's way"
    );
}

#[test]
fn syncfs_of_the_root_directory_only() {
    finds("syncfs-root-only", &["sync-clean"]);
}

#[test]
fn syncfs_that_overtakes_writes_of_other_queues() {
    finds("syncfs-overtakes", &["sync-queues"]);
}

#[test]
fn success_for_nodes_that_do_not_exist() {
    finds("syncfs-any-node", &["unknown-node"]);
}

#[test]
fn syncfs_that_waits_until_nobody_writes() {
    finds("syncfs-drains", &["endless-writers"]);
}

#[test]
fn syncs_on_the_threads_that_serve() {
    finds("syncfs-stalls", &["stall", "crowd"]);
}

#[test]
fn a_sync_of_the_host_for_each_of_many() {
    finds("syncfs-each", &["shared-syncs"]);
}

#[test]
fn a_neighbour_s_data_that_is_written_although_the_server_was_asked_not_to() {
    finds_on_its_own_disk("none --sync-scope share", &["neighbour"]);
}

#[test]
fn a_server_that_syncs_its_share_only_leaves_a_neighbour_s_data_alone() {
    let _turn = TURN.lock();
    let server = ashore_testkit::guest::Server::program().unwrap();
    let command = format!(
        "{} serve --sync-scope share --shared-dir {{dir}} --socket-path {{socket}}",
        server.display()
    );
    let only = vec!["neighbour".to_owned()];
    let disk = LoopImage::ext4(512).unwrap();
    let scratch = Some(disk.path().to_owned());
    let arguments = DoctorArguments { command: Some(command), only, scratch, ..Default::default() };
    let report = ashore_doctor::run(&arguments, &mut Silent).unwrap();
    assert_eq!(ids(&report, Verdict::Kept), ["neighbour"], "{report}");
    assert!(report.findings[0].seen.saw.contains("was left alone"), "{report}");
}

#[test]
fn fsync_that_is_answered_at_once() {
    finds("fsync-hollow", &["fsync-file"]);
}

#[test]
fn fsync_of_directories_that_fails() {
    finds("fsyncdir-bad", &["fsync-directory"]);
}

#[test]
fn data_sync_of_one_write_that_is_dropped() {
    finds("dsync-dropped", &["dsync-write"]);
}

#[test]
fn no_last_call() {
    finds_on_its_own_disk("no-last-call", &["destroy", "disconnect", "sigterm"]);
}

#[test]
fn write_back_without_a_word_about_guests_that_sync_too_early() {
    finds("early-sync", &["early-sync"]);
}

#[test]
fn a_sound_server_keeps_all_promises_on_disks_of_its_own() {
    finds_as_root(&broken_server("none"), &[]);
}

#[test]
fn an_error_that_is_swallowed() {
    finds_as_root(&broken_server("syncfs-swallows"), &["lost-write"]);
}

#[test]
fn an_error_that_is_told_once_for_all() {
    // Opening the file system anew covers only the one that is shared.
    finds_as_root(&broken_server("syncfs-freshly"), &["other-disks", "lost-write"]);
}

fn examine_with_disk(fault: &str, stands_on: &LoopImage, disk: PathBuf) -> anyhow::Result<Report> {
    let _turn = TURN.lock();
    let command = format!("{} --shared-dir {{dir}} --socket-path {{socket}}", broken_server(fault));
    let scratch = Some(stands_on.path().to_owned());
    let arguments = DoctorArguments {
        command: Some(command),
        scratch,
        disk: Some(disk),
        only: vec!["on-disk".to_owned()],
        ..Default::default()
    };
    ashore_doctor::run(&arguments, &mut Silent)
}

#[test]
fn on_the_disk_itself_is_found_what_was_synced_and_not_what_was_said_to_be() {
    let disk = LoopImage::ext4(256).unwrap();
    let device = disk.device().unwrap();
    for disk_name in [disk.image(), device] {
        let report = examine_with_disk("none", &disk, disk_name.clone()).unwrap();
        assert_eq!(ids(&report, Verdict::Kept), ["on-disk"], "{}: {report}", disk_name.display());
        let report = examine_with_disk("syncfs-hollow", &disk, disk_name.clone()).unwrap();
        assert_eq!(ids(&report, Verdict::Broken), ["on-disk"], "{}: {report}", disk_name.display());
    }
}

#[test]
fn another_disk_than_that_of_the_share_is_refused() {
    let (disk, other) = (LoopImage::ext4(64).unwrap(), LoopImage::ext4(64).unwrap());
    let error = examine_with_disk("none", &disk, other.image()).unwrap_err().to_string();
    assert!(error.contains("is not the disk of") && error.contains("findmnt"), "{error}");
}

#[test]
fn a_share_in_memory_is_not_called_durable() {
    let _turn = TURN.lock();
    let command = format!("{} --shared-dir {{dir}} --socket-path {{socket}}", broken_server("none"));
    let scratch = Some("/dev/shm".into());
    let only = ["backing", "sync-clean", "destroy"].map(str::to_owned).to_vec();
    let arguments = DoctorArguments { command: Some(command), scratch, only, ..Default::default() };
    let report = found(ashore_doctor::run(&arguments, &mut Silent).unwrap(), &["backing", "backing-said"]);
    assert_eq!(ids(&report, Verdict::Kept), [] as [&str; 0], "{report}");
}

mod with_virtiofsd {
    use super::*;

    /// What every virtiofsd breaks that has its default pool of no threads.
    const VIRTIOFSD: [&str; 8] =
        ["other-disks", "lost-write", "stall", "crowd", "shared-syncs", "destroy", "disconnect", "sigterm"];

    #[test]
    fn virtiofsd_breaks_what_was_measured() {
        finds_as_root(&virtiofsd(""), &VIRTIOFSD);
        finds_as_root(&virtiofsd("--no-announce-submounts"), &VIRTIOFSD);
    }

    #[test]
    fn virtiofsd_without_a_cache_drops_data_sync_of_a_write() {
        let broken = [&["dsync-write"], &VIRTIOFSD[..]].concat();
        finds_as_root(&virtiofsd("--cache=never"), &broken);
    }

    #[test]
    fn virtiofsd_with_write_back_says_nothing_of_guests_that_sync_too_early() {
        let (before, after) = VIRTIOFSD.split_at(5);
        finds_as_root(&virtiofsd("--writeback"), &[before, &["early-sync"], after].concat());
    }

    fn virtiofsd(options: &str) -> String {
        let program = ashore_testkit::guest::cache::peers().unwrap().join("bin/virtiofsd");
        assert!(program.exists(), "{} is missing: run `cargo xtask setup --peers`", program.display());
        format!("{} --sandbox none --seccomp none {options}", program.display())
    }
}
