//! A file system mounted on this machine: the transport over /dev/fuse from end to end. Needs root and /dev/fuse.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ashore_dev_fuse::{FuseExchange, FuseQueue, MountError, MountOptions, Unmounted};
use ashore_passthrough::{LockScope, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::mounted::{Mounted, QUEUES};
use ashore_wire::Opcode;
use ashore_wire::abi::InHeader;
use ashore_wire::seam::{Exchange, RequestQueue};
use rustix::fs::{FlockOperation, flock};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;
use zerocopy::FromBytes;

fn share() -> (TempDir, Arc<Session<Passthrough>>) {
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let options = Options { xattr: true, ..Options::new(host.path()) };
    let session = Session::new(Passthrough::new(options).unwrap(), Limits::default());
    (host, session)
}

fn mounted() -> (TempDir, Mounted<Passthrough>) {
    let (host, session) = share();
    let options = MountOptions::new().allow_other(true).default_permissions(true);
    (host, Mounted::new(session, &options, QUEUES))
}

fn is_mounted(path: &Path) -> bool {
    let path = path.to_str().unwrap();
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().any(|line| line.split(' ').nth(1) == Some(path))
}

#[test]
fn files_are_the_same_on_both_sides() {
    let (host, mounted) = mounted();
    let (here, there) = (mounted.path(), host.path());
    fs::write(here.join("file"), b"from the mount").unwrap();
    assert_eq!(fs::read(there.join("file")).unwrap(), b"from the mount");
    fs::write(there.join("other"), b"from the host").unwrap();
    assert_eq!(fs::read(here.join("other")).unwrap(), b"from the host");

    fs::create_dir(here.join("folder")).unwrap();
    fs::rename(here.join("file"), here.join("folder/moved")).unwrap();
    assert!(there.join("folder/moved").exists() && !there.join("file").exists());
    symlink("folder/moved", here.join("link")).unwrap();
    assert_eq!(fs::read_link(there.join("link")).unwrap(), PathBuf::from("folder/moved"));
    assert_eq!(fs::read(here.join("link")).unwrap(), b"from the mount");
    fs::hard_link(here.join("folder/moved"), here.join("second")).unwrap();
    assert_eq!(fs::metadata(here.join("second")).unwrap().nlink(), 2);
    fs::set_permissions(here.join("second"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(there.join("folder/moved")).unwrap().mode() & 0o7777, 0o640);

    let mut names: Vec<_> = fs::read_dir(here).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["folder", "link", "other", "second"]);
    fs::remove_file(here.join("second")).unwrap();
    fs::remove_file(here.join("folder/moved")).unwrap();
    fs::remove_dir(here.join("folder")).unwrap();
    assert!(!there.join("folder").exists());
}

#[test]
fn large_and_odd_reads_and_writes_arrive_whole() {
    let (host, mounted) = mounted();
    let content: Vec<u8> = (0..5_000_011u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = File::create_new(mounted.path().join("large")).unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(host.path().join("large")).unwrap() == content);
    // A fresh open, so that the kernel asks us rather than its cache.
    fs::write(host.path().join("host"), &content).unwrap();
    let mut file = File::open(mounted.path().join("host")).unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert!(back == content);
    file.seek(SeekFrom::Start(4095)).unwrap();
    let mut piece = vec![0; 100_003];
    file.read_exact(&mut piece).unwrap();
    assert!(piece == content[4095..4095 + 100_003]);
}

#[test]
fn many_threads_at_once_each_get_their_own_answers() {
    let (host, mounted) = mounted();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (here, there) = (mounted.path(), host.path());
            scope.spawn(move || {
                for round in 0..50u64 {
                    let name = format!("{thread}-{round}");
                    let content = vec![(thread * 50 + round) as u8; 1000 * (round as usize + 1)];
                    let file = File::create_new(here.join(&name)).unwrap();
                    file.write_all_at(&content, 0).unwrap();
                    if round % 8 == 0 {
                        file.sync_all().unwrap();
                    }
                    drop(file);
                    assert!(fs::read(here.join(&name)).unwrap() == content, "{name}");
                    assert!(fs::read(there.join(&name)).unwrap() == content, "{name}");
                    fs::remove_file(here.join(&name)).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
}

/// A queue whose thread is busy with each LOOKUP for a while.
struct Busy(FuseQueue);

impl RequestQueue for Busy {
    type Exchange = FuseExchange;

    fn next(&mut self) -> Option<FuseExchange> {
        let mut exchange = self.0.next()?;
        let (header, _) = InHeader::read_from_prefix(exchange.parts().0).unwrap();
        if header.opcode == Opcode::Lookup as u32 {
            std::thread::sleep(Duration::from_millis(300));
        }
        Some(exchange)
    }
}

fn stay_on_the_first_processor() {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).unwrap();
}

/// Through io_uring each keeps one of the few places that the kernel has for the requests of a processor. They come all at once,
/// while the thread that takes them is busy, so that most find no place; and behind them comes the request that ends their wait.
#[test]
fn many_that_wait_for_a_lock_are_not_in_the_way_of_the_one_that_frees_it() {
    const WAITING: usize = 40;
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let share = Options { flock: LockScope::Host, ..Options::new(host.path()) };
    let session = Session::new(Passthrough::new(share).unwrap(), Limits::default());
    let mounted = Mounted::with(session, &MountOptions::new(), QUEUES, Busy);
    let path = mounted.path().join("file");
    fs::write(&path, b"").unwrap();
    let holder = File::open(&path).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let (got, all_got) = std::sync::mpsc::channel();
    for _ in 0..WAITING {
        let (file, got) = (File::open(&path).unwrap(), got.clone());
        std::thread::spawn(move || {
            stay_on_the_first_processor();
            // A moment after the one that keeps the queue's thread busy.
            std::thread::sleep(Duration::from_millis(150));
            let locked = flock(&file, FlockOperation::LockExclusive);
            drop(file);
            let _ = got.send(locked);
        });
    }
    let freed = std::thread::spawn({
        let nowhere = mounted.path().join("nowhere");
        move || {
            stay_on_the_first_processor();
            std::thread::sleep(Duration::from_millis(50));
            assert!(fs::metadata(nowhere).is_err());
            // Until they all wait.
            std::thread::sleep(Duration::from_millis(300));
            flock(&holder, FlockOperation::Unlock)
        }
    });
    for _ in 0..WAITING {
        all_got.recv_timeout(Duration::from_secs(20)).expect("a lock is had when it is free").unwrap();
    }
    freed.join().unwrap().unwrap();
}

#[test]
fn unmounting_ends_the_queues_and_leaves_nothing() {
    let (host, mounted) = mounted();
    let path = mounted.path().to_owned();
    fs::write(path.join("file"), b"kept").unwrap();
    assert!(is_mounted(&path));
    assert_eq!(mounted.unmount().unwrap(), Unmounted::Completely);
    assert!(!is_mounted(&path));
    assert_eq!(fs::read(host.path().join("file")).unwrap(), b"kept");
}

#[test]
fn a_mount_in_use_goes_out_of_sight_and_serves_its_users_until_they_have_gone() {
    let (host, mounted) = mounted();
    let path = mounted.path().to_owned();
    let file = File::create_new(path.join("file")).unwrap();
    assert_eq!(mounted.mount().unmount().unwrap(), Unmounted::InUse);
    assert!(!is_mounted(&path));
    file.write_all_at(b"still here", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(host.path().join("file")).unwrap(), b"still here");
    drop(file);
    // Ends by itself, without the connection having to be cut.
    mounted.wait();
}

#[test]
fn a_mount_in_use_can_be_ended_and_its_users_get_errors() {
    let (_host, mounted) = mounted();
    let file = File::create_new(mounted.path().join("file")).unwrap();
    assert_eq!(mounted.mount().unmount().unwrap(), Unmounted::InUse);
    mounted.mount().abort().unwrap();
    let error = file.sync_all().unwrap_err();
    assert!([103, 107].contains(&error.raw_os_error().unwrap()), "{error}");
    mounted.wait();
}

#[test]
fn a_mount_that_somebody_else_unmounts_ends_in_order() {
    let (_host, mounted) = mounted();
    let path = mounted.path().to_owned();
    fs::write(path.join("file"), b"x").unwrap();
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    mounted.wait();
    assert!(!is_mounted(&path));
}

#[test]
fn a_dead_mount_is_named_with_what_to_do_and_taken_away_where_asked() {
    let (_host, session) = share();
    let point = tempfile::tempdir().unwrap();
    let options = MountOptions::new();
    let (mount, queues) = options.mount(point.path(), 1).unwrap();
    // What is left of a server that was killed: a mount without a single descriptor.
    drop(queues);
    assert_eq!(fs::metadata(point.path()).unwrap_err().raw_os_error(), Some(107));
    let refused = options.mount(point.path(), 1).unwrap_err();
    assert!(matches!(refused, MountError::Dead(_)), "{refused}");
    assert!(refused.to_string().contains(&format!("umount -l {}", point.path().display())), "{refused}");
    let (again, queues) = options.clone().recover(true).mount(point.path(), 1).unwrap();
    let worker = ashore_server::Worker::new(Arc::clone(&session));
    let worker = std::thread::spawn(move || worker.run(queues.into_iter().next().unwrap()));
    fs::write(point.path().join("file"), b"alive").unwrap();
    drop(mount);
    assert!(is_mounted(point.path()), "the one who died does not unmount his successor");
    drop(again);
    worker.join().unwrap();
    assert!(!is_mounted(point.path()));
}

#[test]
fn a_share_that_is_one_file_is_mounted_on_a_file() {
    let host = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let session = Session::new(Passthrough::new(Options::new(host.path())).unwrap(), Limits::default());
    let point = tempfile::NamedTempFile::new().unwrap();
    let (mount, queues) = MountOptions::new().mount(point.path(), 1).unwrap();
    let worker = ashore_server::Worker::new(session);
    let worker = std::thread::spawn(move || worker.run(queues.into_iter().next().unwrap()));
    fs::write(point.path(), b"through").unwrap();
    assert_eq!(fs::read(host.path()).unwrap(), b"through");
    drop(mount);
    worker.join().unwrap();
    assert_eq!(fs::read(point.path()).unwrap(), b"");
}

#[test]
fn what_is_mounted_read_only_refuses_changes() {
    let (host, session) = share();
    fs::write(host.path().join("file"), b"x").unwrap();
    let mounted = Mounted::new(session, &MountOptions::new().read_only(true), 1);
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"x");
    let error = fs::write(mounted.path().join("file"), b"y").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
}
