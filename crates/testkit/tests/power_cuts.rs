//! What a sync promised is there after the power has gone: of file systems on a disk that records every write, cut off at
//! hundreds of places, through our client and server, through guests, with a server that is killed and a disk that fails.
//!
//! How it works stands in docs/testing.md and `ashore_testkit::power_cut`. Each test prints what it did; a state that
//! breaks a promise is saved, with the command that shows it again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod power_cuts {
    use std::fs::File;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use ashore_client::CacheMode;
    use ashore_testkit::guest::Server;
    use ashore_testkit::guest::workload::{HostDirectory, Outcome, Progress, SyncCall};
    use ashore_testkit::power_cut::{
        ClientTarget, Kind, OtherSync, Recording, Report, Rung, Scenario, Stage, Way, connect,
    };
    use rustix::process::Signal;

    /// Names another first seed, for a run that has not been before.
    const SEED_VARIABLE: &str = "ASHORE_POWER_CUT_SEED";
    /// As many times as many recordings, for a long run.
    const ROUNDS_VARIABLE: &str = "ASHORE_POWER_CUT_ROUNDS";
    const STATES: usize = 100;

    fn number(variable: &str) -> u64 {
        let named = std::env::var(variable).ok();
        named.map_or(1, |value| value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
    }

    fn first_seed() -> u64 {
        number(SEED_VARIABLE)
    }

    fn keeps_every_promise(way: Way, kind: Kind, recordings: u64) {
        for recording in 0..recordings * number(ROUNDS_VARIABLE) {
            let rung = Rung::climb(way, &Scenario::new(kind, first_seed() + recording), STATES).unwrap();
            println!("{rung}");
            figure(if way.has_guest() { "guest" } else { "native" }, &rung.report);
            assert!(rung.syncs > 40, "{rung}: too little was synced to say anything");
            assert!(rung.report.broken.is_empty(), "{rung}; what is wrong stands above");
        }
    }

    /// For whoever counts them; see docs/testing.md. One write, so that no other test's line comes between.
    fn figure(where_from: &str, report: &Report) {
        let (states, broken) = (report.states, report.broken.len());
        print!("\nFIGURE power-cut-states-{where_from} {states}\nFIGURE power-cut-states-broken {broken}\n");
    }

    mod without_a_server {
        use super::*;

        #[test]
        fn ext4_keeps_every_promise() {
            keeps_every_promise(Way::DIRECT, Kind::Ext4, 1);
        }

        #[test]
        fn xfs_keeps_every_promise() {
            keeps_every_promise(Way::DIRECT, Kind::Xfs, 1);
        }

        #[test]
        fn btrfs_keeps_every_promise() {
            keeps_every_promise(Way::DIRECT, Kind::Btrfs, 1);
        }
    }

    mod through_our_client {
        use super::*;

        #[test]
        fn every_promise_is_kept_on_ext4() {
            keeps_every_promise(Way::CLIENT, Kind::Ext4, 2);
        }

        #[test]
        fn every_promise_is_kept_on_xfs() {
            keeps_every_promise(Way::CLIENT, Kind::Xfs, 2);
        }

        #[test]
        fn every_promise_is_kept_on_btrfs() {
            keeps_every_promise(Way::CLIENT, Kind::Btrfs, 1);
        }

        #[test]
        fn every_promise_is_kept_without_a_cache() {
            keeps_every_promise(Way::CLIENT_UNCACHED, Kind::Ext4, 1);
            keeps_every_promise(Way::CLIENT_UNCACHED, Kind::Xfs, 1);
        }

        #[test]
        fn every_promise_is_kept_when_only_the_shares_own_changes_are_synced() {
            for kind in Kind::ALL {
                keeps_every_promise(Way::CLIENT_SHARE, kind, 1);
            }
        }
    }

    mod in_a_real_guest {
        use super::*;

        #[test]
        fn every_promise_is_kept_on_ext4() {
            keeps_every_promise(Way::GUEST, Kind::Ext4, 2);
        }

        #[test]
        fn every_promise_is_kept_on_xfs() {
            keeps_every_promise(Way::GUEST, Kind::Xfs, 2);
        }

        #[test]
        fn every_promise_is_kept_on_btrfs() {
            keeps_every_promise(Way::GUEST, Kind::Btrfs, 1);
        }

        /// sync(2) of a guest that writes back: sound for Linux before 6.18.21, 6.19.11 and 7.0, as the default guest is.
        #[test]
        fn every_promise_is_kept_when_the_guest_writes_back() {
            keeps_every_promise(Way::GUEST_WRITEBACK, Kind::Ext4, 1);
        }

        #[test]
        fn every_promise_is_kept_when_only_the_shares_own_changes_are_synced() {
            for kind in Kind::ALL {
                keeps_every_promise(Way::GUEST_SHARE, kind, 1);
            }
        }

        /// That its marks are not too kind: a guest that syncs nothing is found out.
        #[test]
        fn a_guest_that_does_not_sync_is_caught() {
            let recording = Way::GUEST_UNSYNCED.record(&Scenario::new(Kind::Ext4, first_seed())).unwrap();
            is_caught_as("7", "no sync in a guest", &recording);
        }
    }

    /// A deliberate fault must show in so many states.
    const CAUGHT_WITHIN: usize = 20;

    fn is_caught(fault: &str, recording: &Recording) {
        is_caught_as("-", fault, recording);
    }

    /// With its number, as the project's list of mutants has it.
    fn is_caught_as(number: &str, fault: &str, recording: &Recording) {
        let report = recording.cut(CAUGHT_WITHIN, recording.plan.seed).unwrap();
        let broken = report.broken.len();
        println!("{fault:36} {:5}: {broken} of {} states broken", recording.kind.name(), report.states);
        assert!(broken > 0, "{fault} on {:?} was not caught in {CAUGHT_WITHIN} states", recording.kind);
        print!("\nCAUGHT {number} {fault}, {}\n", recording.kind.name());
    }

    mod deliberate_faults {
        use super::*;

        /// The file systems whose faults must be caught.
        const KINDS: [Kind; 3] = Kind::ALL;

        /// Work straight on a file system with another sync.
        fn record(
            scenario: &Scenario,
            fsync: bool,
            sync: impl Fn(&Path) -> io::Result<()> + Sync,
        ) -> Recording {
            let stage = Stage::new(scenario).unwrap();
            let root = stage.root();
            File::create(root.join("anchor")).unwrap();
            let target = HostDirectory::new(root, SyncCall::Syncfs);
            let outcome = stage.work(&OtherSync { target, sync: || sync(root), fsync }).unwrap();
            stage.finish(&outcome)
        }

        fn syncfs(root: &Path) -> io::Result<()> {
            Ok(rustix::fs::syncfs(File::open(root)?)?)
        }

        #[test]
        fn no_sync_at_all_is_caught() {
            for kind in KINDS {
                let recording = record(&Scenario::new(kind, first_seed()), false, |_| Ok(()));
                is_caught_as("7", "no sync", &recording);
            }
        }

        #[test]
        fn a_sync_that_promises_what_was_done_while_it_ran_is_caught() {
            for kind in KINDS {
                let mut scenario = Scenario::new(kind, first_seed());
                scenario.plan.floors_read_late = true;
                is_caught_as("18", "floors read too late", &record(&scenario, true, syncfs));
            }
        }

        #[test]
        fn an_fsync_of_one_file_in_place_of_a_sync_is_caught() {
            for kind in KINDS {
                let one = |root: &Path| File::open(root.join("anchor"))?.sync_all();
                is_caught_as(
                    "20",
                    "fsync of one file",
                    &record(&Scenario::new(kind, first_seed()), true, one),
                );
            }
        }

        /// All data of all files is written to the disk, which is not told to keep it, nor are names.
        #[test]
        fn writing_data_back_without_a_flush_is_caught() {
            for kind in KINDS {
                let recording = record(&Scenario::new(kind, first_seed()), false, write_back);
                is_caught_as("19", "write-back (sync_file_range)", &recording);
            }
        }

        fn write_back(root: &Path) -> io::Result<()> {
            for file in files_below(root) {
                let call = ["-c", "sync_range -b -w -a 0 0"];
                // It may have been removed meanwhile.
                Command::new("xfs_io").args(call).arg(file).output()?;
            }
            Ok(())
        }

        fn files_below(folder: &Path) -> Vec<PathBuf> {
            let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
            let paths = entries.flatten().map(|entry| entry.path());
            paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
        }

        #[test]
        fn an_ext4_that_sends_no_flushes_is_caught() {
            let scenario = Scenario { mount_options: "nobarrier", ..Scenario::new(Kind::Ext4, first_seed()) };
            is_caught_as("19", "nobarrier", &record(&scenario, true, syncfs));
        }

        #[test]
        fn flushes_that_are_answered_and_not_done_are_caught() {
            for kind in KINDS {
                let scenario = Scenario { drop_flushes: true, ..Scenario::new(kind, first_seed()) };
                is_caught("flushes not done", &record(&scenario, true, syncfs));
            }
        }
    }

    mod a_server_that_is_killed {
        use super::*;

        /// Aim: a server that is killed takes nothing with it that it acknowledged, and its successor's syncs cover what it
        /// had been given. Method: half of the threads work until the server is killed, the others with the next server;
        /// with every sync of the second half those of the first half must be there as they were. The client has no cache,
        /// so what it was answered the host has.
        fn loses_nothing(kind: Kind, arguments: &[&str]) {
            let mut scenario = Scenario::new(kind, first_seed());
            scenario.plan.threads = 6;
            scenario.plan.operations = 400;
            let stage = Stage::new(&scenario).unwrap();
            let progress = Progress::new(&scenario.plan);
            let first = server(&stage, arguments);
            thread::scope(|scope| {
                let target = ClientTarget(connect(&first, CacheMode::None).unwrap());
                let (stage, progress) = (&stage, &progress);
                let work = scope.spawn(move || stage.work_until_error(&target, 0..3, progress));
                while progress.floors()[0] < 60 {
                    thread::sleep(Duration::from_millis(1));
                }
                first.signal(Signal::KILL);
                assert!(
                    !work.join().unwrap().errors.is_empty(),
                    "the work was over before the server was killed"
                );
            });
            let before = progress.floors();
            drop(first);

            let second = server(&stage, arguments);
            let progress = Progress::from(progress.floors());
            let target = ClientTarget(connect(&second, CacheMode::None).unwrap());
            let outcome = stage.work_until_error(&target, 3..6, &progress);
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
            drop(target);
            let recording = stage.finish(&Outcome { errors: Vec::new(), ..outcome });
            let report = recording.cut(STATES, first_seed()).unwrap();
            println!(
                "killed after {before:?} steps  {:5}: {} syncs, {} states, {} broken",
                kind.name(),
                recording.marks(),
                report.states,
                report.broken.len()
            );
            figure("native", &report);
            assert!(report.broken.is_empty(), "{:#?}", report.broken);
        }

        fn server(stage: &Stage, arguments: &[&str]) -> Server {
            let builder = Server::builder(stage.root()).queues(2);
            arguments.iter().fold(builder, |builder, argument| builder.arg(argument)).start().unwrap()
        }

        #[test]
        fn loses_nothing_on_ext4() {
            loses_nothing(Kind::Ext4, &[]);
        }

        #[test]
        fn loses_nothing_on_xfs() {
            loses_nothing(Kind::Xfs, &[]);
        }

        #[test]
        fn loses_nothing_when_only_the_shares_own_changes_are_synced() {
            loses_nothing(Kind::Ext4, &["--sync-scope", "share"]);
        }
    }

    mod a_disk_that_fails {
        use std::sync::mpsc::{RecvTimeoutError, channel};

        use super::*;

        /// What fails, and how often.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Fault {
            /// Writes of files' data, two at a time (EIO).
            Writes,
            /// The same, because the disk has no room (ENOSPC).
            NoRoom,
            /// One flush. File systems take that for the end of their journal, and stop.
            Flush,
        }

        const BURST: u32 = 2;
        const PAUSE: Duration = Duration::from_millis(25);

        /// Does `work` while the disk fails now and then; how often it did.
        fn with_failures<T>(stage: &Stage, fault: Fault, work: impl FnOnce() -> T) -> (T, u64) {
            let disk = stage.disk().clone();
            if fault == Fault::NoRoom {
                disk.is_full();
            }
            let (stop, stopped) = channel::<()>();
            let failures = thread::spawn(move || {
                let mut round = 0;
                while stopped.recv_timeout(PAUSE).is_err_and(|error| error == RecvTimeoutError::Timeout) {
                    round += 1;
                    match fault {
                        Fault::Writes | Fault::NoRoom => disk.fail_data_writes(BURST),
                        Fault::Flush if round == 4 => disk.fail_flushes(1),
                        Fault::Flush => {}
                    }
                }
                disk.fail_data_writes(0);
                disk.failed()
            });
            let done = work();
            drop(stop);
            (done, failures.join().unwrap())
        }

        fn server(stage: &Stage, arguments: &[&str]) -> Server {
            let builder = Server::builder(stage.root()).queues(2);
            arguments.iter().fold(builder, |builder, argument| builder.arg(argument)).start().unwrap()
        }

        fn judge(what: &str, recording: &Recording, failed: u64, errors: usize) {
            let told = recording.failed_marks();
            let report = recording.cut(STATES, first_seed()).unwrap();
            println!(
                "{what}, {:5}: {failed} failed, {told} syncs failed, {} succeeded, {errors} threads stopped; {} states, {} broken",
                recording.kind.name(),
                recording.marks(),
                report.states,
                report.broken.len()
            );
            figure("native", &report);
            print!("\nFIGURE host-errors {failed}\n");
            assert!(failed > 0, "nothing failed, so nothing was tried");
            assert!(told + errors > 0, "nobody was told");
            assert!(report.broken.is_empty(), "{:#?}", report.broken);
        }

        /// Aim: what was lost is never covered by a sync that succeeds, unless one has failed before and so told of it.
        fn is_never_covered_up(fault: Fault, kind: Kind, cache: CacheMode, arguments: &[&str]) {
            let stage = Stage::new(&Scenario::new(kind, first_seed())).unwrap();
            let server = server(&stage, arguments);
            let target = ClientTarget(connect(&server, cache).unwrap());
            let (outcome, failed) = with_failures(&stage, fault, || {
                let progress = Progress::new(&Scenario::new(kind, first_seed()).plan);
                stage.work_until_error(&target, 0..3, &progress)
            });
            drop(target);
            let errors = outcome.errors.len();
            let recording = stage.finish(&outcome);
            judge(&format!("{fault:?}, {cache:?} {arguments:?}"), &recording, failed, errors);
        }

        const WRITE_BACK: &[&str] = &["--writeback"];

        #[test]
        fn a_lost_write_is_never_covered_up() {
            for kind in Kind::ALL {
                is_never_covered_up(Fault::Writes, kind, CacheMode::WriteBack, WRITE_BACK);
            }
        }

        #[test]
        fn a_lost_write_is_never_covered_up_when_only_the_shares_own_changes_are_synced() {
            for kind in Kind::ALL {
                is_never_covered_up(Fault::Writes, kind, CacheMode::None, &["--sync-scope", "share"]);
            }
        }

        #[test]
        fn what_had_no_room_is_never_covered_up() {
            for kind in [Kind::Ext4, Kind::Xfs] {
                is_never_covered_up(Fault::NoRoom, kind, CacheMode::WriteBack, WRITE_BACK);
            }
        }

        /// Not on btrfs: after a flush that failed it has been found without what it had made stable before, without any server.
        #[test]
        fn a_flush_that_failed_is_never_covered_up() {
            for kind in [Kind::Ext4, Kind::Xfs] {
                is_never_covered_up(Fault::Flush, kind, CacheMode::WriteBack, WRITE_BACK);
                is_never_covered_up(Fault::Flush, kind, CacheMode::None, &[]);
            }
        }

        /// Aim: of two clients of one share each hears of what was lost, whoever synced first. Method: each has three threads
        /// and a server, and its syncs are held to what its own threads had done.
        #[test]
        fn a_second_client_hears_of_what_was_lost_too() {
            for kind in [Kind::Ext4, Kind::Xfs] {
                let mut scenario = Scenario::new(kind, first_seed());
                (scenario.plan.threads, scenario.plan.clients) = (6, 2);
                let stage = Stage::new(&scenario).unwrap();
                let servers = [(); 2].map(|()| server(&stage, &[]));
                let targets =
                    servers.each_ref().map(|server| ClientTarget(connect(server, CacheMode::None).unwrap()));
                let progress = Progress::new(&scenario.plan);
                let ((), failed) = with_failures(&stage, Fault::Writes, || {
                    thread::scope(|scope| {
                        let (stage, progress) = (&stage, &progress);
                        for (target, threads) in targets.iter().zip([0..3, 3..6]) {
                            scope.spawn(move || stage.work_until_error(target, threads, progress));
                        }
                    });
                });
                drop(targets);
                let all = Outcome { done: progress.floors(), errors: Vec::new() };
                assert_eq!(all.done, vec![scenario.plan.operations; 6], "nobody ended early");
                let recording = stage.finish(&all);
                judge("two clients", &recording, failed, 0);
            }
        }

        #[test]
        fn a_sync_that_keeps_the_error_to_itself_is_caught() {
            let stage = Stage::new(&Scenario::new(Kind::Ext4, first_seed())).unwrap();
            let server = server(&stage, &[]);
            let client = connect(&server, CacheMode::None).unwrap();
            let (outcome, _) = with_failures(&stage, Fault::Writes, || {
                let sync = || client.sync().or(Ok(()));
                let target = OtherSync { target: ClientTarget(client.clone()), sync, fsync: false };
                let progress = Progress::new(&Scenario::new(Kind::Ext4, first_seed()).plan);
                stage.work_until_error(&target, 0..3, &progress)
            });
            drop(client);
            is_caught_as("13", "error of a sync swallowed", &stage.finish(&outcome));
        }
    }
}
