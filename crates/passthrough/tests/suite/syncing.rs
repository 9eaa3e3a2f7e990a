//! Syncs: what they cover, what they cost, and whether they tell the truth. The host's syncs are played by the tests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ashore_passthrough::{CachePolicy, Durability, HostFileSystems, Options, Passthrough};
use ashore_server::{FileSystem, Result, Write};
use ashore_wire::abi::SetattrIn;
use ashore_wire::flags::{InitFlags, SetattrValid, WriteFlags};
use ashore_wire::seam::{Payload, TransferMode};
use ashore_wire::{Errno, LockOwner, NodeId};
use rustix::io::Errno as HostErrno;
use tempfile::TempDir;

use crate::harness::{RDWR, ROOT, Share, caller, with_name};

const PATIENCE: Duration = Duration::from_secs(20);

/// A host whose next syncs end as told, and then succeed.
fn host(outcomes: impl IntoIterator<Item = HostErrno>) -> Arc<HostFileSystems> {
    let outcomes: Mutex<VecDeque<_>> = Mutex::new(outcomes.into_iter().collect());
    HostFileSystems::with_sync_call(move |_, _| outcomes.lock().unwrap().pop_front().map_or(Ok(()), Err))
}

fn share_of(hosts: &Arc<HostFileSystems>) -> Share {
    Share::over(Arc::new(TempDir::new().unwrap()), hosts, |_| {})
}

#[test]
fn the_error_of_a_host_sync_is_the_answer() {
    for (host_errno, errno) in
        [(HostErrno::IO, Errno::EIO), (HostErrno::NOSPC, Errno::ENOSPC), (HostErrno::DQUOT, Errno::EDQUOT)]
    {
        let share = share_of(&host([host_errno]));
        share.put(ROOT, "f", b"x");
        assert_eq!(share.fs.syncfs(ROOT), Err(errno));
        assert_eq!(share.fs.syncfs(ROOT), Ok(()), "told once");
    }
}

#[test]
fn a_host_that_cannot_sync_is_no_success() {
    for (host_errno, errno) in [
        (HostErrno::NOSYS, Errno::ENOSYS),
        (HostErrno::OPNOTSUPP, Errno::EOPNOTSUPP),
        (HostErrno::INVAL, Errno::EINVAL),
    ] {
        let share = share_of(&host([host_errno]));
        share.put(ROOT, "f", b"x");
        assert_eq!(share.fs.syncfs(ROOT), Err(errno));
    }
}

#[test]
fn an_interrupted_host_sync_is_called_again() {
    let share = share_of(&host([HostErrno::INTR, HostErrno::INTR, HostErrno::IO]));
    assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EIO));
}

#[test]
fn an_unknown_node_is_never_synced_with_success() {
    let share = Share::new();
    let node = share.put(ROOT, "f", b"x");
    assert_eq!(share.fs.syncfs(NodeId(12345)), Err(Errno::ESTALE));
    share.fs.forget(node, 1);
    assert_eq!(share.fs.syncfs(node), Err(Errno::ESTALE), "forgotten");
}

#[test]
fn the_host_is_synced_once_for_what_changed_and_not_again() {
    let share = Share::new();
    share.fs.syncfs(ROOT).unwrap();
    assert_eq!(share.synced(), 1, "a share starts as changed");
    share.fs.syncfs(ROOT).unwrap();
    share.getattr(ROOT).unwrap();
    share.fs.syncfs(ROOT).unwrap();
    assert_eq!(share.synced(), 1, "nothing was changed");
    let mut expected = 1;
    let mut check = |what: &str, change: &mut dyn FnMut()| {
        change();
        share.fs.syncfs(ROOT).unwrap();
        expected += 1;
        assert_eq!(share.synced(), expected, "after {what}");
    };
    check("a file made", &mut || _ = share.put(ROOT, "f", b"x"));
    let node = share.node(ROOT, "f");
    let opened = share.open(node, RDWR).unwrap();
    check("a write", &mut || _ = share.write(node, opened.handle, 0, b"y"));
    check("a failed write", &mut || _ = share.write(node, opened.handle, u64::MAX >> 1, b"y"));
    check("attributes", &mut || {
        let values = SetattrIn { mode: 0o600, ..Default::default() };
        share.setattr(node, SetattrValid::MODE, values).unwrap();
    });
    check("an attribute", &mut || share.fs.setxattr(&caller(), node, c"user.a", b"v", 0, 0).unwrap());
    check("an attribute removed", &mut || share.fs.removexattr(&caller(), node, c"user.a").unwrap());
    check("space", &mut || share.fs.fallocate(&caller(), node, opened.handle, 0, 8192, 0).unwrap());
    check("a link", &mut || {
        with_name("l", |name| share.fs.link(&caller(), node, ROOT, name)).unwrap();
    });
    check("a directory", &mut || _ = share.mkdir(ROOT, "d").unwrap());
    check("a symbolic link", &mut || {
        with_name("s", |name| share.fs.symlink(&caller(), ROOT, name, c"x")).unwrap();
    });
    check("a rename", &mut || share.rename((ROOT, "l"), (ROOT, "m"), 0).unwrap());
    check("an unlink", &mut || share.unlink(ROOT, "m").unwrap());
    check("a truncating open", &mut || _ = share.open(node, RDWR | libc::O_TRUNC as u32).unwrap());
    check("a file without a name", &mut || _ = share.fs.tmpfile(&caller(), ROOT, RDWR, 0o600, 0).unwrap());
}

/// A host whose first sync takes as long as the test wants.
struct SlowHost {
    hosts: Arc<HostFileSystems>,
    calls: Arc<AtomicUsize>,
    begun: mpsc::Receiver<()>,
    release: mpsc::Sender<rustix::io::Result<()>>,
}

fn slow_host() -> SlowHost {
    let calls = Arc::new(AtomicUsize::new(0));
    let (began, begun) = mpsc::channel();
    let (release, held) = mpsc::channel();
    let (counted, held) = (Arc::clone(&calls), Mutex::new(held));
    let hosts = HostFileSystems::with_sync_call(move |_, _| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => {
            began.send(()).unwrap();
            held.lock().unwrap().recv_timeout(PATIENCE).unwrap()
        }
        _ => Ok(()),
    });
    SlowHost { hosts, calls, begun, release }
}

/// Aim: n overlapping syncs of two clients cost two of the host. Method: the first is held until 16 threads have come.
/// Whether all had come by then is the scheduler's affair, so it may take several goes.
#[test]
fn sixteen_syncs_of_two_clients_cost_two_of_the_host() {
    let calls: Vec<_> = (0..10).map(|_| calls_of_seventeen_syncs()).take_while(|calls| *calls != 2).collect();
    assert!(calls.len() < 10, "never two: {calls:?}");
}

fn calls_of_seventeen_syncs() -> usize {
    let slow = slow_host();
    let shares = [share_of(&slow.hosts), share_of(&slow.hosts)];
    shares.iter().for_each(|share| _ = share.put(ROOT, "f", b"x"));
    thread::scope(|scope| {
        scope.spawn(|| shares[0].fs.syncfs(ROOT).unwrap());
        slow.begun.recv_timeout(PATIENCE).unwrap();
        shares.iter().for_each(|share| _ = share.put(ROOT, "late", b"x"));
        let threads: Vec<_> = shares
            .iter()
            .cycle()
            .take(16)
            .map(|share| scope.spawn(|| share.fs.syncfs(ROOT).unwrap()))
            .collect();
        thread::sleep(Duration::from_millis(100));
        assert!(
            threads.iter().all(|thread| !thread.is_finished()),
            "none shares a sync that began before it"
        );
        slow.release.send(Ok(())).unwrap();
    });
    slow.calls.load(Ordering::SeqCst)
}

/// Aim: a sync is not skipped because another, which is under way and may yet fail, took its mark.
#[test]
fn of_two_syncs_that_overlap_both_hear_of_the_one_error() {
    let slow = slow_host();
    let share = share_of(&slow.hosts);
    share.put(ROOT, "f", b"x");
    thread::scope(|scope| {
        let first = scope.spawn(|| share.fs.syncfs(ROOT));
        slow.begun.recv_timeout(PATIENCE).unwrap();
        let second = scope.spawn(|| share.fs.syncfs(ROOT));
        thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        slow.release.send(Err(HostErrno::IO)).unwrap();
        assert_eq!(first.join().unwrap(), Err(Errno::EIO));
        assert_eq!(second.join().unwrap(), Err(Errno::EIO), "called before the other was told");
    });
    assert_eq!(share.fs.syncfs(ROOT), Ok(()), "called after");
}

/// Aim: an error reaches each client once, whoever's sync met it.
#[test]
fn each_client_of_a_host_file_system_hears_of_an_error_once() {
    let hosts = host([HostErrno::IO]);
    let shares = [share_of(&hosts), share_of(&hosts), share_of(&hosts)];
    shares.iter().for_each(|share| _ = share.put(ROOT, "f", b"x"));
    for share in &shares {
        assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EIO));
    }
    let late = share_of(&hosts);
    for share in shares.iter().chain([&late]) {
        assert_eq!(share.fs.syncfs(ROOT), Ok(()), "once, and not to one that came later");
    }
}

#[test]
fn an_error_before_a_client_came_is_not_its_own() {
    let hosts = host([HostErrno::IO]);
    let share = share_of(&hosts);
    assert_eq!(share.fs.last_call(), Err(Errno::EIO));
    crate::harness::init_without(&share.fs, ashore_wire::flags::InitFlags::empty());
    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
}

#[test]
fn a_thousand_syncs_from_sixteen_threads_are_all_answered() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let hosts = HostFileSystems::with_sync_call(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(200));
        Ok(())
    });
    let share = share_of(&hosts);
    let node = share.put(ROOT, "f", b"x");
    let opened = share.open(node, RDWR).unwrap();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for number in 0..63u64 {
                    share.write(node, opened.handle, number, b"x").unwrap();
                    let before = calls.load(Ordering::SeqCst);
                    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
                    // One that began after the write; the one under way before may have begun earlier.
                    assert!(
                        calls.load(Ordering::SeqCst) > before,
                        "answered without a sync that began after it"
                    );
                }
            });
        }
    });
    let calls = calls.load(Ordering::SeqCst);
    println!("1008 syncs of 16 threads: {calls} of the host");
    assert!(calls < 700, "{calls}");
}

#[test]
fn a_stuck_disk_is_an_error_in_time_and_the_sync_stays_owed() {
    let slow = slow_host();
    let share = Share::over(Arc::new(TempDir::new().unwrap()), &slow.hosts, |options| {
        options.sync_timeout = Some(Duration::from_millis(50));
    });
    let start = Instant::now();
    assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EIO));
    assert!(start.elapsed() < Duration::from_secs(5));
    share.put(ROOT, "still", b"served");
    slow.release.send(Ok(())).unwrap();
    while share.fs.syncfs(ROOT).is_err() {
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(slow.calls.load(Ordering::SeqCst) >= 2, "the change after the stuck one was synced");
}

#[test]
fn the_last_call_syncs_what_no_sync_was_asked_for() {
    let share = Share::new();
    share.fs.syncfs(ROOT).unwrap();
    share.fs.last_call().unwrap();
    assert_eq!(share.synced(), 2, "whatever the mark says");
    let relaxed = Share::with(|options| options.durability = Durability::Relaxed);
    relaxed.put(ROOT, "f", b"x");
    relaxed.fs.last_call().unwrap();
    assert_eq!(relaxed.synced(), 0);
}

/// Notes how the data was to be written, and writes none.
#[derive(Default)]
struct Noted(Option<TransferMode>);

impl Payload for Noted {
    fn len(&self) -> usize {
        4096
    }
    fn write_to(&mut self, _: BorrowedFd<'_>, _: u64, len: usize, mode: TransferMode) -> io::Result<usize> {
        self.0 = Some(mode);
        Ok(len)
    }
    fn copy_to(&mut self, _: &mut [u8]) -> usize {
        0
    }
}

#[test]
fn a_single_write_that_asks_to_be_stable_is_in_every_cache_mode() {
    let (dsync, sync) = (libc::O_DSYNC as u32, libc::O_SYNC as u32);
    let modes = |durability, cache, flags| {
        let share = Share::with(|options| (options.durability, options.cache) = (durability, cache));
        let node = share.put(ROOT, "f", b"");
        let handle = share.open(node, RDWR).unwrap().handle;
        let mut noted = Noted::default();
        let write =
            Write { handle, offset: 0, size: 4096, write_flags: WriteFlags::empty(), flags: RDWR | flags };
        share.fs.write(&caller(), node, &write, &mut noted).unwrap();
        let mode = noted.0.unwrap();
        (mode.data_sync, mode.sync)
    };
    for cache in [CachePolicy::Never, CachePolicy::Metadata, CachePolicy::Auto, CachePolicy::Always] {
        assert_eq!(modes(Durability::OnSync, cache, 0), (false, false));
        assert_eq!(modes(Durability::OnSync, cache, dsync), (true, false));
        assert_eq!(modes(Durability::OnSync, cache, sync), (true, true));
        assert_eq!(modes(Durability::Strict, cache, 0), (true, true));
        assert_eq!(modes(Durability::Relaxed, cache, dsync), (false, false));
    }
}

#[test]
fn strict_syncs_before_each_change_is_acknowledged_and_grants_no_write_back() {
    let share = Share::with(|options| {
        options.durability = Durability::Strict;
        options.writeback = true;
    });
    assert!(!share.fs.features().contains(ashore_wire::flags::InitFlags::WRITEBACK_CACHE));
    let mut expected = 0;
    let mut check = |outcome: Result<()>| {
        outcome.unwrap();
        expected += 1;
        assert_eq!(share.synced(), expected);
    };
    check(share.mkdir(ROOT, "d").map(drop));
    check(share.create(ROOT, "f").map(drop));
    check(share.rename((ROOT, "f"), (ROOT, "g"), 0));
    check(share.setattr(share.node(ROOT, "g"), SetattrValid::MODE, SetattrIn::default()).map(drop));
    check(share.unlink(ROOT, "g"));
    let failing = Share::over(Arc::new(TempDir::new().unwrap()), &host([HostErrno::IO]), |options| {
        options.durability = Durability::Strict;
    });
    assert_eq!(failing.mkdir(ROOT, "d").unwrap_err(), Errno::EIO, "not stable, so not acknowledged");
    failing.mkdir(ROOT, "e").unwrap();
    assert_eq!(failing.fs.syncfs(ROOT), Err(Errno::EIO), "who syncs hears of it too");
    assert_eq!(failing.fs.syncfs(ROOT), Ok(()));
}

#[test]
fn what_is_required_to_be_durable_has_no_write_back_cache() {
    let granted = |require_durable| {
        let mut options = Options::new(std::env::temp_dir());
        (options.writeback, options.require_durable) = (true, require_durable);
        Passthrough::new(options).map(|fs| fs.features().contains(InitFlags::WRITEBACK_CACHE))
    };
    assert!(granted(false).unwrap());
    assert!(!granted(true).expect("temporary files stand on a disk"));
}

#[test]
fn a_flush_is_an_fsync_of_what_was_written_if_the_options_say_so() {
    let share = Share::with(|options| options.flush_fsync = true);
    let node = share.put(ROOT, "f", b"x");
    let opened = share.open(node, RDWR).unwrap();
    share.write(node, opened.handle, 0, b"y").unwrap();
    assert_eq!(share.fs.flush(node, opened.handle, LockOwner(0)), Ok(()));
    assert_eq!(share.fs.fsync(node, opened.handle, true), Ok(()));
    let directory = share.fs.opendir(&caller(), ROOT, 0).unwrap();
    assert_eq!(share.fs.fsyncdir(ROOT, directory.handle, false), Ok(()));
    assert_eq!(share.fs.fsyncdir(node, directory.handle, false), Err(Errno::EBADF));
}

#[test]
fn what_keeps_files_in_memory_is_warned_about_or_refused() {
    let memory = TempDir::new_in("/dev/shm").unwrap();
    let share = Passthrough::new(Options::new(memory.path())).unwrap();
    let found = share.host_file_systems();
    let backing = found[0].backing.as_ref().unwrap();
    assert_eq!((found.len(), backing.kind.as_str(), found[0].unsynced), (1, "tmpfs", true));
    assert!(backing.weakness.as_deref().unwrap().contains("memory"));
    let mut options = Options::new(memory.path());
    options.require_durable = true;
    let message = Passthrough::new(options).unwrap_err().to_string();
    assert!(message.contains("cannot be made stable") && message.contains("--require-durable"), "{message}");
}
