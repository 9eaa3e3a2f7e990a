//! What a sync of this machine's kernel brings to a mount, with its write-back cache, and with and without our barrier.
//!
//! The three ways in which Linux 6.18.21, 6.19.11 and 7.0 return from a sync without having sent everything are played here.
//! Needs root, /dev/fuse, loop devices, and Linux 6.18.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ashore_dev_fuse::{MountOptions, SyncDelivery};
use ashore_passthrough::{HostFileSystems, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::mounted::{Mounted, QUEUES};
use ashore_testkit::slow::{Seen, Slowness};
use ashore_wire::Opcode;
use rustix::fs::{Advice, fadvise, sync, syncfs};
use tempfile::TempDir;

const PAGE: usize = 4096;

struct Rig {
    host: TempDir,
    slowness: Arc<Slowness>,
    mounted: Mounted<Passthrough>,
}

impl Rig {
    fn new(options: MountOptions, queues: usize) -> Rig {
        let host = tempfile::tempdir_in("/var/tmp").unwrap();
        let share = Options { writeback: true, ..Options::new(host.path()) };
        // As Linux has it unless told otherwise, and no time given to what comes late: only the barrier is looked at.
        let limits = Limits {
            max_background: 12,
            congestion_threshold: 9,
            early_sync_grace: Duration::ZERO,
            ..Default::default()
        };
        let session = Session::new(Passthrough::new(share).unwrap(), limits);
        let slowness = Arc::new(Slowness::default());
        let mounted = Mounted::with(session, &options, queues, |queue| slowness.queue(queue));
        Rig { host, slowness, mounted }
    }

    fn block(barrier: bool, queues: usize) -> Rig {
        assert_eq!(SyncDelivery::of_this_machine(), SyncDelivery::Possible, "this test needs it");
        Rig::new(MountOptions::new().deliver_syncs(true).write_back_barrier(barrier), queues)
    }

    fn create(&self, name: &str) -> File {
        File::options().read(true).write(true).create_new(true).open(self.mounted.path().join(name)).unwrap()
    }

    fn syncfs(&self) {
        syncfs(File::open(self.mounted.path()).unwrap()).unwrap();
    }

    /// Whether this has reached the server, at this moment.
    fn has(&self, name: &str, content: &[u8]) -> bool {
        fs::read(self.host.path().join(name)).unwrap().starts_with(content)
    }
}

/// Two files are dirty, and the times of the first take a second to be taken: sync(2) does not wait for the flusher, which waits
/// for the first file before it comes to the second.
fn sync_with_a_slow_setattr(rig: &Rig) -> bool {
    let (first, second) = (rig.create("first"), rig.create("second"));
    rig.slowness.delay(Opcode::Setattr, Duration::from_secs(1));
    first.write_all_at(&[1; PAGE], 0).unwrap();
    second.write_all_at(&[2; PAGE], 0).unwrap();
    sync();
    assert!(rig.slowness.count(Seen::Answered(Opcode::Syncfs)) > 0);
    rig.has("second", &[2; PAGE])
}

/// Forty pages of one file are more WRITEs than the kernel has under way at once, so its flusher leaves out the other file.
fn syncfs_while_the_kernel_is_congested(rig: &Rig) -> bool {
    let (busy, other) = (rig.create("busy"), rig.create("other"));
    rig.slowness.delay(Opcode::Write, Duration::from_millis(500));
    for page in 0..40 {
        busy.write_all_at(&[1; PAGE], 2 * page * PAGE as u64).unwrap();
    }
    other.write_all_at(&[2; PAGE], 0).unwrap();
    rig.syncfs();
    rig.has("other", &[2; PAGE])
}

/// A page is written again while its WRITE is under way: the flusher leaves it out.
fn syncfs_of_a_page_that_is_under_way(rig: &Rig) -> bool {
    let file = rig.create("file");
    rig.slowness.delay(Opcode::Write, Duration::from_millis(500));
    file.write_all_at(&[1; PAGE], 0).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    rig.slowness.wait_for(Seen::Came(Opcode::Write), 1);
    file.write_all_at(&[2; PAGE], 0).unwrap();
    rig.syncfs();
    rig.has("file", &[2; PAGE])
}

/// Whether all that was written had been received when the call returned.
type Case = fn(&Rig) -> bool;

const CASES: [(&str, Case); 3] = [
    ("sync(2) with a slow SETATTR", sync_with_a_slow_setattr),
    ("syncfs(2) while the kernel is congested", syncfs_while_the_kernel_is_congested),
    ("syncfs(2) of a page that is under way", syncfs_of_a_page_that_is_under_way),
];

#[test]
fn k1_with_the_barrier_everything_has_arrived_when_a_sync_returns() {
    for (name, case) in CASES {
        assert!(case(&Rig::block(true, QUEUES)), "{name}: something has not arrived");
    }
}

/// Documents what the barrier is for. Should this fail, then this kernel waits for its data again.
#[test]
fn k2_without_the_barrier_the_kernel_returns_before_everything_has_arrived() {
    for (name, case) in CASES {
        assert!(!case(&Rig::block(false, QUEUES)), "{name}: everything has arrived");
    }
}

#[test]
fn k3_one_thread_that_answers_is_enough_for_the_barrier() {
    for (name, case) in CASES {
        assert!(case(&Rig::block(true, 1)), "{name}: something has not arrived");
    }
}

#[test]
fn k4_a_plain_mount_is_never_told_of_a_sync() {
    let rig = Rig::new(MountOptions::new(), QUEUES);
    let file = rig.create("file");
    file.write_all_at(&[1; PAGE], 0).unwrap();
    rig.syncfs();
    sync();
    assert_eq!(rig.slowness.count(Seen::Came(Opcode::Syncfs)), 0);
    file.sync_all().unwrap();
    assert_eq!(rig.slowness.count(Seen::Came(Opcode::Fsync)), 1);
    assert!(rig.has("file", &[1; PAGE]));
}

#[test]
fn syncs_at_the_same_time_all_return_and_writers_go_on() {
    let rig = Rig::block(true, 2);
    let file = rig.create("file");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| rig.syncfs()));
        }
        for round in 0..2000u64 {
            file.write_all_at(&round.to_le_bytes(), (round % 64) * PAGE as u64).unwrap();
        }
    });
    rig.syncfs();
    assert!(rig.has("file", &1984u64.to_le_bytes()));
}

/// No WRITE says that something has changed. A file that is open for writing has to be taken for it, in a mapping too.
#[test]
fn what_the_kernel_writes_itself_is_covered_by_each_sync() {
    let (host, syncs) = (tempfile::tempdir_in("/var/tmp").unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&syncs);
    let hosts = HostFileSystems::with_sync_call(move |_, file| {
        counted.fetch_add(1, Ordering::SeqCst);
        syncfs(file)
    });
    let share = Options { kernel_io: true, ..Options::new(host.path()) };
    let session = Session::new(Passthrough::with_hosts(share, hosts).unwrap(), Limits::default());
    let options = MountOptions::new().deliver_syncs(true).write_back_barrier(true);
    let slowness = Arc::new(Slowness::default());
    let mounted = Mounted::with(session, &options, QUEUES, |queue| slowness.queue(queue));
    mounted.session().filesystem().give_files_to(Arc::new(mounted.mount().backing_files()));
    let syncs_of_one = || {
        let before = syncs.load(Ordering::SeqCst);
        syncfs(File::open(mounted.path()).unwrap()).unwrap();
        syncs.load(Ordering::SeqCst) - before
    };

    let path = mounted.path().join("file");
    // The kernel says that a file is closed when nobody waits for it any more.
    let closed = |files| slowness.wait_for(Seen::Answered(Opcode::Release), files);
    fs::write(&path, b"made").unwrap();
    closed(1);
    assert_eq!((syncs_of_one(), syncs_of_one()), (1, 0), "what is closed is synced once");
    let _reader = File::open(&path).unwrap();
    assert_eq!(syncs_of_one(), 0, "nothing is changed by a reader");
    let file = File::options().write(true).open(&path).unwrap();
    for round in 0..3u8 {
        file.write_all_at(&[round; PAGE], 0).unwrap();
        assert_eq!(fs::read(host.path().join("file")).unwrap(), [round; PAGE], "it is in the host's cache");
        assert_eq!(syncs_of_one(), 1);
    }
    file.write_all_at(b"last", 0).unwrap();
    drop(file);
    closed(2);
    assert_eq!((syncs_of_one(), syncs_of_one()), (1, 0));
    for opcode in [Opcode::Read, Opcode::Write] {
        assert_eq!(slowness.count(Seen::Came(opcode)), 0, "{opcode}");
    }
}
