//! What a host that fails does to the promises of docs/semantics.md, by each door to a share: our client with write-back and
//! without a cache, and the two kinds of mount on this machine. On ext4 and XFS, on a disk that fails what it is told to.
//!
//! Needs root, `/dev/fuse` and loop devices. The table "When the host fails" in docs/semantics.md is what is looked at here.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, Client};
use ashore_dev_fuse::MountOptions;
use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::guest::Server;
use ashore_testkit::guest::workload::render;
use ashore_testkit::mounted::{Mounted, QUEUES};
use ashore_testkit::power_cut::{Disk, Kind, Scenario, Stage, connect};
use rustix::fs::syncfs;
use rustix::process::Signal;

const KINDS: [Kind; 2] = [Kind::Ext4, Kind::Xfs];
const LENGTH: usize = 64 << 10;
const NEVER_ENDS: u32 = u32::MAX;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// How a client comes to the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    WriteBack,
    Uncached,
    FuseBlock,
    /// As the one before, with the data read and written by the kernel itself.
    KernelIo,
    Fuse,
}

/// Those that a sync passes.
const SYNCED: [Door; 4] = [Door::WriteBack, Door::Uncached, Door::FuseBlock, Door::KernelIo];

/// A client that has come through a door.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
enum Guest {
    Client(Client, Server),
    Mount(Mounted<Passthrough>),
}

/// An open file.
#[allow(clippy::large_enum_variant, reason = "there are few at a time")]
enum Open {
    Client(ashore_client::File),
    Mount(fs::File),
}

impl Door {
    fn enter(self, root: &Path) -> Guest {
        match self {
            Door::WriteBack => client(root, CacheMode::WriteBack, &["--writeback"]),
            Door::Uncached => client(root, CacheMode::None, &[]),
            Door::FuseBlock => mount(root, true, false),
            Door::KernelIo => mount(root, true, true),
            Door::Fuse => mount(root, false, false),
        }
    }
}

fn client(root: &Path, cache: CacheMode, arguments: &[&str]) -> Guest {
    let builder = Server::builder(root).queues(2);
    let server = arguments.iter().fold(builder, |builder, argument| builder.arg(argument)).start().unwrap();
    Guest::Client(connect(&server, cache).unwrap(), server)
}

fn mount(root: &Path, syncs: bool, kernel_io: bool) -> Guest {
    let share = Options { kernel_io, ..Options::new(root) };
    let session = Session::new(Passthrough::new(share).unwrap(), Limits::default());
    let options = MountOptions::new().deliver_syncs(syncs).write_back_barrier(syncs);
    let mounted = Mounted::new(session, &options, QUEUES);
    mounted.session().filesystem().give_files_to(Arc::new(mounted.mount().backing_files()));
    Guest::Mount(mounted)
}

impl Guest {
    fn create(&self, name: &str) -> io::Result<Open> {
        match self {
            Guest::Client(client, _) => {
                let options = ashore_client::OpenOptions::new().read(true).write(true).create(true);
                client.open_with(name, &options).map(Open::Client)
            }
            Guest::Mount(mounted) => {
                let mut options = fs::File::options();
                options.read(true).write(true).create(true).truncate(false);
                options.open(mounted.path().join(name)).map(Open::Mount)
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Guest::Client(client, _) => client.sync(),
            Guest::Mount(mounted) => Ok(syncfs(fs::File::open(mounted.path())?)?),
        }
    }
}

impl Open {
    fn write(&self, step: u32, length: usize, offset: u64) -> io::Result<()> {
        let data = render(1, 0, step, offset, length);
        match self {
            Open::Client(file) => file.write_all_at(&data, offset),
            Open::Mount(file) => file.write_all_at(&data, offset),
        }
    }

    fn fsync(&self) -> io::Result<()> {
        match self {
            Open::Client(file) => file.sync_all(),
            Open::Mount(file) => file.sync_all(),
        }
    }
}

fn stage(kind: Kind) -> Stage {
    Stage::new(&Scenario { hold: Duration::ZERO, ..Scenario::new(kind, 1) }).unwrap()
}

/// The number of the error, which must be one.
#[track_caller]
fn error(result: io::Result<()>) -> i32 {
    result.expect_err("this must fail").raw_os_error().expect("an error of the host has a number")
}

/// Runs it for each of these doors, on each file system.
fn each(doors: &[Door], case: impl Fn(Door, &Stage)) {
    for kind in KINDS {
        for door in doors {
            eprintln!("{door:?} on {}", kind.name());
            case(*door, &stage(kind));
        }
    }
}

/// A file with one stable version, and then another that the disk does not take.
fn lose_a_write(guest: &Guest, disk: &Disk) -> Open {
    let file = guest.create("file").unwrap();
    file.write(1, LENGTH, 0).unwrap();
    guest.sync().unwrap();
    disk.fail_data_writes(NEVER_ENDS);
    file.write(2, LENGTH, 0).unwrap();
    file
}

/// P2: if an earlier change could not be made stable, the sync fails with that error. It tells once; what comes later is stable.
#[test]
fn a_write_that_the_disk_fails_makes_the_sync_fail_once() {
    each(&SYNCED, |door, stage| {
        let (guest, disk) = (door.enter(stage.root()), stage.disk());
        let file = lose_a_write(&guest, disk);
        assert_eq!(error(guest.sync()), EIO);
        assert!(disk.failed() > 0);
        disk.fail_data_writes(0);
        file.write(3, LENGTH, 0).unwrap();
        guest.sync().unwrap();
        assert_eq!(error(file.fsync()), EIO, "whoever has the file open is told too");
        // An fsync that failed may be told of by the next sync; but not for ever.
        _ = guest.sync();
        guest.sync().unwrap();
        file.fsync().unwrap();
    });
}

/// The same for a disk that has no room, as one that is promised more than there is.
#[test]
fn a_disk_without_room_makes_the_sync_fail_once() {
    each(&SYNCED, |door, stage| {
        let (guest, disk) = (door.enter(stage.root()), stage.disk());
        disk.is_full();
        let file = lose_a_write(&guest, disk);
        let told = error(guest.sync());
        assert!(told == ENOSPC || told == EIO, "{told}");
        disk.fail_data_writes(0);
        file.write(3, LENGTH, 0).unwrap();
        guest.sync().unwrap();
    });
}

/// fsync(2) keeps its promise by every door, also by the one that syncs do not reach.
#[test]
fn a_write_that_the_disk_fails_makes_the_fsync_fail() {
    each(&[Door::WriteBack, Door::Uncached, Door::FuseBlock, Door::Fuse], |door, stage| {
        let (guest, disk) = (door.enter(stage.root()), stage.disk());
        let file = guest.create("file").unwrap();
        file.write(1, LENGTH, 0).unwrap();
        file.fsync().unwrap();
        disk.fail_data_writes(NEVER_ENDS);
        file.write(2, LENGTH, 0).unwrap();
        assert_eq!(error(file.fsync()), EIO);
        disk.fail_data_writes(0);
        file.write(3, LENGTH, 0).unwrap();
        file.fsync().unwrap();
    });
}

/// Syncs do not reach a plain mount, as is said at its start: one succeeds whatever becomes of the data.
#[test]
fn a_sync_of_a_plain_mount_says_nothing_of_a_disk_that_fails() {
    each(&[Door::Fuse], |door, stage| {
        let (guest, disk) = (door.enter(stage.root()), stage.disk());
        let file = guest.create("file").unwrap();
        file.write(1, LENGTH, 0).unwrap();
        file.fsync().unwrap();
        disk.fail_data_writes(NEVER_ENDS);
        file.write(2, LENGTH, 0).unwrap();
        guest.sync().unwrap();
        assert_eq!(disk.failed(), 0, "nothing was sent to the disk");
        assert_eq!(error(file.fsync()), EIO);
        disk.fail_data_writes(0);
    });
}

/// P2: each client connection hears of it at least once, whoever synced first.
#[test]
fn a_second_client_that_has_changed_the_file_system_hears_of_a_lost_write_too() {
    each(&SYNCED, |door, stage| {
        let (guest, other, disk) =
            (door.enter(stage.root()), Door::Uncached.enter(stage.root()), stage.disk());
        let mine = other.create("of the other").unwrap();
        mine.write(1, LENGTH, 0).unwrap();
        other.sync().unwrap();
        let _file = lose_a_write(&guest, disk);
        mine.write(2, LENGTH, 0).unwrap();
        assert_eq!(error(guest.sync()), EIO);
        disk.fail_data_writes(0);
        assert_eq!(error(other.sync()), EIO, "a server of its own, and told by nobody else");
        other.sync().unwrap();
        guest.sync().unwrap();
    });
}

/// A flush that fails, or what the file system writes for itself, is the end of its journal: it stops, and so says every sync
/// that has anything to make stable.
fn stops(door: Door, stage: &Stage, fail: impl Fn(&Disk)) {
    let (guest, disk) = (door.enter(stage.root()), stage.disk());
    let file = guest.create("file").unwrap();
    file.write(1, LENGTH, 0).unwrap();
    guest.sync().unwrap();
    guest.create("another").unwrap().write(1, LENGTH, 0).unwrap();
    fail(disk);
    let told = error(guest.sync());
    assert!([EIO, EROFS].contains(&told), "{told}");
    assert!(disk.failed() > 0);
    let later = guest.create("later").and_then(|file| file.write(1, LENGTH, 0)).and_then(|()| guest.sync());
    assert!([EIO, EROFS].contains(&error(later)), "no sync covers what came after");
}

#[test]
fn a_flush_that_fails_makes_the_sync_fail_and_later_ones_too() {
    each(&SYNCED, |door, stage| stops(door, stage, |disk| disk.fail_flushes(NEVER_ENDS)));
}

#[test]
fn metadata_that_the_disk_fails_makes_the_sync_fail_and_later_ones_too() {
    each(&SYNCED, |door, stage| stops(door, stage, |disk| disk.fail_other_writes(NEVER_ENDS)));
}

/// Aim: when a commit of ext4's journal has failed, no later sync or fsync succeeds, whoever was told of it first. Method: a
/// process of the host is told, and nothing is changed after that; then ext4 itself says that all is well (Linux 6.18).
#[test]
fn after_a_flush_that_failed_nobody_is_told_that_all_is_well() {
    let shares_own = |root: &Path| client(root, CacheMode::None, &["--sync-scope", "share"]);
    let doors = SYNCED.map(Some).into_iter().chain([None]);
    for (door, synced_before) in doors.flat_map(|door| [(door, true), (door, false)]) {
        let stage = stage(Kind::Ext4);
        let guest = door.map_or_else(|| shares_own(stage.root()), |door| door.enter(stage.root()));
        let file = guest.create("file").unwrap();
        if synced_before {
            guest.sync().unwrap();
        }
        guest.create("another").unwrap();
        stage.disk().fail_flushes(1);
        let host = fs::File::open(stage.root()).unwrap();
        assert!(syncfs(&host).is_err(), "the host's own process is told");
        assert!(syncfs(&host).is_ok(), "told once: no longer so, and nothing need be done about it");
        for _ in 0..3 {
            let told = error(guest.sync());
            assert!([EIO, EROFS].contains(&told), "{door:?}: {told}");
        }
        let told = error(file.fsync());
        assert!([EIO, EROFS].contains(&told), "{door:?}: {told}");
    }
}

/// The same with an fsync, which is told before any sync is.
#[test]
fn after_a_flush_that_failed_no_fsync_succeeds() {
    for door in SYNCED {
        let stage = stage(Kind::Ext4);
        let guest = door.enter(stage.root());
        let file = guest.create("file").unwrap();
        stage.disk().fail_flushes(1);
        assert!(syncfs(fs::File::open(stage.root()).unwrap()).is_err());
        for _ in 0..3 {
            let told = error(file.fsync());
            assert!([EIO, EROFS].contains(&told), "{door:?}: {told}");
        }
    }
}

/// A file system that is full says so when it is written to, or at the sync if the client held the data: no change that a sync
/// covered is lost by it, and with room it goes on.
#[test]
fn a_full_file_system_fails_the_write_or_the_sync_and_goes_on_when_there_is_room() {
    each(&SYNCED, |door, stage| {
        let guest = door.enter(stage.root());
        let kept = guest.create("kept").unwrap();
        kept.write(1, LENGTH, 0).unwrap();
        guest.sync().unwrap();
        let file = guest.create("file").unwrap();
        let ballast = stage.root().join("ballast");
        fill(&ballast);
        let written = file.write(2, 1 << 20, 0);
        assert!(door == Door::WriteBack || written.is_err(), "nobody held the data");
        assert_eq!(error(written.and_then(|()| guest.sync())), ENOSPC);
        let room = fs::metadata(&ballast).unwrap().len() / 2;
        fs::remove_file(&ballast).unwrap();
        await_room(stage.root(), room);
        file.write(3, LENGTH, 0).unwrap();
        guest.sync().unwrap();
        assert_eq!(fs::read(stage.root().join("kept")).unwrap(), render(1, 0, 1, 0, LENGTH));
        assert_eq!(fs::read(stage.root().join("file")).unwrap()[..LENGTH], render(1, 0, 3, 0, LENGTH));
    });
}

/// Takes all the room there is, to the last block.
fn fill(path: &Path) {
    let file = fs::File::create(path).unwrap();
    let mut offset = 0;
    for length in [1 << 20, 4096] {
        while file.write_all_at(&vec![1; length], offset).is_ok() {
            offset += length as u64;
        }
    }
    // What is delayed is given its place, so that nothing comes free later.
    _ = file.sync_all();
}

/// What was removed comes free when the journal has been committed (ext4), and when a thread of the kernel has come to it (XFS).
fn await_room(root: &Path, bytes: u64) {
    let begun = Instant::now();
    loop {
        rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
        let space = rustix::fs::statvfs(root).unwrap();
        if space.f_bavail * space.f_frsize >= bytes {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{} blocks are free", space.f_bavail);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that is killed: the sync of its client fails, for nobody carried it out. What was acknowledged, the host has; and the
/// first sync of the next server covers it.
#[test]
fn a_killed_server_makes_the_sync_fail_and_the_next_one_covers_what_it_had_acknowledged() {
    each(&[Door::Uncached, Door::WriteBack], |door, stage| {
        let Guest::Client(client, server) = door.enter(stage.root()) else { panic!("a door with a server") };
        let options = ashore_client::OpenOptions::new().write(true).create(true).direct(true);
        let file = client.open_with("file", &options).unwrap();
        file.write_all_at(&render(1, 0, 1, 0, LENGTH), 0).unwrap();
        server.signal(Signal::KILL);
        client.sync().expect_err("nobody carried it out");
        drop((file, client, server));
        let next = door.enter(stage.root());
        let synced_from = stage.disk().entries();
        next.sync().unwrap();
        assert!(stage.disk().entries() > synced_from, "there was something to make stable");
        assert_eq!(fs::read(stage.root().join("file")).unwrap(), render(1, 0, 1, 0, LENGTH));
    });
}
