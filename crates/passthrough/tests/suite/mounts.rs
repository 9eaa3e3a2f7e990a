//! Other file systems below the share: mounted, bind-mounted as directories and as single files, also late.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use ashore_passthrough::{HostFileSystems, Options, SyncScope};
use ashore_server::FileSystem;
use ashore_wire::flags::{AttrFlags, InitFlags};
use ashore_wire::{Errno, NodeId};
use tempfile::TempDir;

use crate::harness::{MODES, Mounted, RDWR, ROOT, Share, init_without};

/// A host that notes which devices are synced.
fn noting_host() -> (Arc<HostFileSystems>, Arc<Mutex<Vec<u64>>>) {
    let synced = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&synced);
    let hosts = HostFileSystems::with_sync_call(move |device, _| {
        noted.lock().unwrap().push(device);
        Ok(())
    });
    (hosts, synced)
}

fn take(synced: &Mutex<Vec<u64>>) -> Vec<u64> {
    let mut devices = std::mem::take(&mut *synced.lock().unwrap());
    devices.sort_unstable();
    devices
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

fn sorted(mut devices: Vec<u64>) -> Vec<u64> {
    devices.sort_unstable();
    devices
}

#[test]
fn a_sync_of_the_root_covers_every_host_file_system_that_was_changed() {
    for mode in MODES {
        let directory = Arc::new(TempDir::new().unwrap());
        let elsewhere = TempDir::new_in("/dev/shm").unwrap();
        fs::write(elsewhere.path().join("file"), b"").unwrap();
        let (hosts, synced) = noting_host();
        let share = Share::over(directory, &hosts, |options| options.inode_file_handles = mode);
        for name in ["tmp", "late"] {
            fs::create_dir(share.path(name)).unwrap();
        }
        fs::write(share.path("bindfile"), b"").unwrap();
        let _tmp = Mounted::tmpfs(&share.path("tmp"), "size=1m");
        let _bind = Mounted::bind(&elsewhere.path().join("file"), &share.path("bindfile"));
        let (root, tmp, file) =
            (device(&share.path("")), device(&share.path("tmp")), device(&share.path("bindfile")));
        assert!(root != tmp && tmp != file && root != file);

        let submount = share.lookup(ROOT, "tmp").unwrap();
        assert_eq!(submount.attr.flags, AttrFlags::SUBMOUNT.bits(), "announced");
        let submount = NodeId(submount.node);
        let bound = share.lookup(ROOT, "bindfile").unwrap();
        assert_eq!(bound.attr.flags, 0, "a file is nothing a client could mount");
        let bound = NodeId(bound.node);
        share.fs.syncfs(ROOT).unwrap();
        assert_eq!(take(&synced), sorted(vec![root, tmp, file]), "all start as changed");

        share.put(submount, "f", b"x");
        share.fs.syncfs(ROOT).unwrap();
        assert_eq!(take(&synced), [tmp], "exactly what was changed");
        let opened = share.open(bound, RDWR).unwrap();
        share.write(bound, opened.handle, 0, b"through the bind mount").unwrap();
        share.put(ROOT, "f", b"x");
        share.put(submount, "g", b"x");
        share.fs.syncfs(submount).unwrap();
        assert_eq!(
            take(&synced),
            sorted(vec![tmp, file]),
            "its own and all that the client does not know of"
        );

        // Mounted while the share is in use.
        let _late = Mounted::tmpfs(&share.path("late"), "size=1m");
        let late_device = device(&share.path("late"));
        let late = share.node(ROOT, "late");
        share.fs.syncfs(ROOT).unwrap();
        assert_eq!(take(&synced), sorted(vec![root, late_device]), "the root's own was owed still");
        share.put(late, "f", b"x");
        share.put(submount, "h", b"x");
        share.fs.syncfs(submount).unwrap();
        assert_eq!(take(&synced), [tmp], "the client mounts the other, and syncs it itself");
        share.fs.last_call().unwrap();
        assert_eq!(take(&synced), sorted(vec![root, tmp, file, late_device]));
    }
}

#[test]
fn without_announcement_the_root_answers_for_all() {
    let (hosts, synced) = noting_host();
    let share = Share::over(Arc::new(TempDir::new().unwrap()), &hosts, |_| {});
    init_without(&share.fs, InitFlags::SUBMOUNTS);
    fs::create_dir(share.path("tmp")).unwrap();
    let _tmp = Mounted::tmpfs(&share.path("tmp"), "size=1m");
    let submount = share.lookup(ROOT, "tmp").unwrap();
    assert_eq!(submount.attr.flags, 0);
    share.fs.syncfs(ROOT).unwrap();
    take(&synced);
    share.put(NodeId(submount.node), "f", b"x");
    share.fs.syncfs(ROOT).unwrap();
    assert_eq!(take(&synced), [device(&share.path("tmp"))]);
}

#[test]
fn two_mounts_of_one_file_system_are_synced_once() {
    let (hosts, synced) = noting_host();
    let share = Share::over(Arc::new(TempDir::new().unwrap()), &hosts, |_| {});
    for name in ["a", "b"] {
        fs::create_dir(share.path(name)).unwrap();
    }
    let _bind = Mounted::bind(&share.path("a"), &share.path("b"));
    let (a, b) = (share.node(ROOT, "a"), share.node(ROOT, "b"));
    assert_ne!(a, b, "other mounts, other inodes, as the incumbent has it");
    share.put(b, "f", b"x");
    assert_eq!(share.lookup(a, "f").unwrap().attr.size, 1);
    share.fs.syncfs(ROOT).unwrap();
    assert_eq!(take(&synced), [device(&share.path(""))]);
}

#[test]
fn a_place_that_cannot_be_stable_is_refused_where_that_is_required() {
    let (hosts, _) = noting_host();
    let share =
        Share::over(Arc::new(TempDir::new().unwrap()), &hosts, |options| options.require_durable = true);
    fs::create_dir(share.path("tmp")).unwrap();
    let _tmp = Mounted::tmpfs(&share.path("tmp"), "size=1m");
    assert_eq!(share.lookup(ROOT, "tmp").unwrap_err(), Errno::EPERM);
    assert_eq!(share.fs.looked_up(), 0);
}

#[test]
fn the_host_file_systems_of_a_share_can_be_listed() {
    let share = Share::new();
    fs::create_dir(share.path("tmp")).unwrap();
    let _tmp = Mounted::tmpfs(&share.path("tmp"), "size=1m");
    share.node(ROOT, "tmp");
    let found = share.fs.host_file_systems();
    assert_eq!(found.len(), 2);
    let backing = found[1].backing.as_ref().unwrap();
    assert_eq!(backing.kind, "tmpfs");
    assert_eq!(backing.mount_point, share.path("tmp").to_str().unwrap());
    share.fs.syncfs(ROOT).unwrap();
    let found = share.fs.host_file_systems();
    assert!(found.iter().all(|host| (host.syncs, host.failures, host.unsynced) == (1, 0, false)));
}

/// An ext4 in a sparse file on a tmpfs too small for it: once that is full, what is written to places that are new fails.
struct OnMemory {
    // In this order they are unmounted.
    _ext4: Mounted,
    _tmpfs: Mounted,
    directory: Arc<TempDir>,
    memory: TempDir,
}

impl OnMemory {
    fn new(features: &str) -> OnMemory {
        crate::harness::need_root("to mount");
        let memory = TempDir::new().unwrap();
        let tmpfs = Mounted::tmpfs(memory.path(), "size=12m");
        let image = memory.path().join("image");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-O", features, "-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(&image)
            .status();
        assert!(made.unwrap().success(), "mkfs.ext4 failed");
        let directory = Arc::new(TempDir::new().unwrap());
        let ext4 = Mounted::image(&image, directory.path());
        OnMemory { _ext4: ext4, _tmpfs: tmpfs, directory, memory }
    }

    fn fill(&self) {
        let _ = fs::write(self.memory.path().join("filler"), vec![0xff; 12 << 20]);
    }
}

/// Aim: a write-back error that the kernel told another process of the host first reaches the client all the same, by
/// sync and by fsync. Method: an ext4 without a journal, whose data cannot be written back.
#[test]
fn an_error_that_another_process_was_told_first_reaches_the_client() {
    let ext4 = OnMemory::new("^has_journal");
    let directory = Arc::clone(&ext4.directory);
    let hosts = HostFileSystems::with_sync_call(|_, file| rustix::fs::syncfs(file));
    let share = Share::over(Arc::clone(&directory), &hosts, |_| {});
    let sound = Share::over(Arc::clone(&directory), &hosts, |_| {});
    let other_process = fs::File::open(directory.path()).unwrap();
    let created = share.create(ROOT, "f").unwrap();
    let node = NodeId(created.entry.node);
    assert_eq!((share.fs.syncfs(ROOT), sound.fs.syncfs(ROOT)), (Ok(()), Ok(())));

    ext4.fill();
    let mut data = vec![0x5a; 1 << 20];
    for (number, byte) in data.iter_mut().enumerate() {
        *byte = number as u8;
    }
    for offset in 0..4 {
        share.write(node, created.opened.handle, offset << 20, &data).unwrap();
    }
    let told = rustix::fs::syncfs(&other_process);
    assert!(told.is_err(), "the other process was not told, so this test shows nothing");
    assert!(share.fs.syncfs(ROOT).is_err(), "the client was not told");
    assert!(sound.fs.syncfs(ROOT).is_err(), "nor was the second client of the same file system");
    assert_eq!(sound.fs.syncfs(ROOT), Ok(()), "and once only");
    assert!(share.fs.fsync(node, created.opened.handle, false).is_err(), "an fsync of the file says so too");
    assert_eq!(share.fs.fsync(node, created.opened.handle, false), Ok(()), "once");
    assert!(share.fs.syncfs(ROOT).is_err(), "what an fsync told one process, the next sync tells who asks");
    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
    // The mounts are undone in the reverse order: the ext4 first.
}

/// Aim: nobody is told that all is well after a commit of the journal has failed. Method: a process of the host is told of it, and
/// nothing is changed after that; then ext4 says that all is well to whoever syncs next (Linux 6.18).
#[test]
fn after_a_commit_that_failed_no_sync_and_no_fsync_succeeds() {
    for synced_by in [|_: &mut Options| {}, |options: &mut Options| options.sync_scope = SyncScope::Share] {
        let ext4 = OnMemory::new("has_journal");
        let hosts = HostFileSystems::with_sync_call(|_, file| rustix::fs::syncfs(file));
        let share = Share::over(Arc::clone(&ext4.directory), &hosts, synced_by);
        let other_process = fs::File::open(ext4.directory.path()).unwrap();
        let created = share.create(ROOT, "f").unwrap();
        assert_eq!(share.fs.syncfs(ROOT), Ok(()));
        ext4.fill();
        share.mkdir(ROOT, "lost").unwrap();
        assert!(
            rustix::fs::syncfs(&other_process).is_err(),
            "the commit did not fail, so this test shows nothing"
        );
        for _ in 0..3 {
            assert!(share.fs.syncfs(ROOT).is_err());
            assert!(share.fs.fsync(NodeId(created.entry.node), created.opened.handle, false).is_err());
        }
    }
}

/// Before Linux 6.15 ext4 becomes read-only when it has failed, as btrfs does to this day; then syncfs(2) does nothing.
#[test]
fn a_sync_of_what_has_become_read_only_is_no_success() {
    let (hosts, _) = noting_host();
    let directory = Arc::new(TempDir::new().unwrap());
    let _tmpfs = Mounted::tmpfs(directory.path(), "size=1m");
    let share = Share::over(Arc::clone(&directory), &hosts, |_| {});
    share.mkdir(ROOT, "d").unwrap();
    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
    share.mkdir(ROOT, "e").unwrap();
    rustix::mount::mount_remount(directory.path(), rustix::mount::MountFlags::RDONLY, c"").unwrap();
    assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EROFS));
}

/// What cannot be changed has nothing to lose.
#[test]
fn a_share_that_was_read_only_from_the_start_is_synced_with_success() {
    let ext4 = OnMemory::new("has_journal");
    rustix::mount::mount_remount(ext4.directory.path(), rustix::mount::MountFlags::RDONLY, c"").unwrap();
    let hosts = HostFileSystems::with_sync_call(|_, file| rustix::fs::syncfs(file));
    let share = Share::over(Arc::clone(&ext4.directory), &hosts, |_| {});
    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
    assert_eq!(share.fs.last_call(), Ok(()));
}
