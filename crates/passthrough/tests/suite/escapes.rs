//! Races that try to lead out of the share.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ashore_server::FileSystem;
use ashore_wire::NodeId;
use ashore_wire::abi::SetattrIn;
use ashore_wire::flags::SetattrValid;
use rustix::fs::{AtFlags, RenameFlags, linkat, renameat_with, unlinkat};

use crate::harness::{MODES, RDWR, ROOT, Share, caller};

/// In each way to hold inodes; in all a hundred thousand.
const TRIES: usize = 50_000;
/// Of them, those during which the name must have changed hands. On a busy machine the two threads seldom run side by side,
/// and more tries are made until there were as many.
const HITS: usize = TRIES / 5;
const PIPE_TRIES: usize = 10_000;
const SECRET: &[u8] = b"a secret of the host";

/// Aim: nothing that happens to names while a request runs leads out of the share. Method: a thread gives one name in
/// turn to a file, a directory and links that lead outside, while requests go through it; counted are the tries during which
/// the name changed hands.
#[test]
fn no_race_of_links_and_renames_leads_outside() {
    for mode in MODES {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), SECRET).unwrap();
        let share = Share::holding(mode);
        let names = Names::new(&share, outside.path());
        let (mut tries, mut found, mut changed) = (0, 0, 0);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&names.stop);
            scope.spawn(|| names.swap_until_stopped());
            while tries < TRIES || changed < HITS {
                let before = names.swaps.load(Ordering::SeqCst);
                tries += 1;
                found += usize::from(try_to_escape(&share));
                if names.swaps.load(Ordering::SeqCst) != before {
                    changed += 1;
                } else {
                    std::thread::yield_now();
                }
            }
        });
        println!("{mode:?}: {tries} tries; {found} found something, the name changed hands during {changed}");
        assert!(found > tries / 2, "hardly a race: {found} tries found something");
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), SECRET);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made outside");
        let left = fs::metadata(outside.path().join("secret")).unwrap();
        assert_ne!(std::os::unix::fs::MetadataExt::mtime(&left), 12345);
    }
}

/// One name of the share, and what it is given to.
struct Names {
    directory: OwnedFd,
    stop: AtomicBool,
    /// How often it has changed hands.
    swaps: AtomicUsize,
}

/// Each is exchanged with what has the name, so that they go round.
const OTHERS: [&str; 4] = ["to-the-secret", "to-the-directory", "to-nothing", "directory"];

impl Names {
    fn new(share: &Share, outside: &Path) -> Names {
        fs::write(share.path("file"), b"inside").unwrap();
        fs::write(share.path("name"), b"inside").unwrap();
        fs::create_dir(share.path("directory")).unwrap();
        fs::write(share.path("directory/secret"), b"inside").unwrap();
        symlink(outside.join("secret"), share.path("to-the-secret")).unwrap();
        symlink(outside, share.path("to-the-directory")).unwrap();
        symlink(outside.join("new"), share.path("to-nothing")).unwrap();
        let directory = fs::File::open(share.path("")).unwrap().into();
        Names { directory, stop: AtomicBool::new(false), swaps: AtomicUsize::new(0) }
    }

    /// Once round, and the name is that of the file again; which is then taken away and replaced, so that for a moment there
    /// is none.
    fn swap_until_stopped(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            for other in OTHERS.iter().chain(OTHERS.iter().rev()) {
                self.rename(other, RenameFlags::EXCHANGE);
            }
            let at = &self.directory;
            let _ = linkat(at, "file", at, "fresh", AtFlags::empty());
            let _ = unlinkat(at, "name", AtFlags::empty());
            self.rename("fresh", RenameFlags::empty());
        }
    }

    fn rename(&self, other: &str, flags: RenameFlags) {
        // What a try has made under the name may stand in the way; the next time round it does not.
        if renameat_with(&self.directory, other, &self.directory, "name", flags).is_ok() {
            self.swaps.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Also if a try fails: the other thread would go on for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether there was anything under that name.
fn try_to_escape(share: &Share) -> bool {
    let Ok(entry) = share.lookup(ROOT, "name") else { return false };
    let node = NodeId(entry.node);
    let mut nodes = vec![node];
    if let Ok(opened) = share.open(node, RDWR) {
        let content = share.read(node, opened.handle, 0, 64).unwrap_or_default();
        assert!(!content.starts_with(SECRET), "read a file outside");
        share.release(node, opened.handle);
    }
    let times = SetattrIn { mtime: 12345, ..Default::default() };
    let _ = share.setattr(node, SetattrValid::MTIME, times);
    if let Ok(below) = share.lookup(node, "secret") {
        nodes.push(NodeId(below.node));
        assert_ne!(share.content(NodeId(below.node)).unwrap_or_default(), SECRET, "found a file outside");
    }
    if let Ok(created) = share.create(node, "made") {
        nodes.push(NodeId(created.entry.node));
        share.release(NodeId(created.entry.node), created.opened.handle);
        let _ = share.unlink(node, "made");
    }
    if let Ok(created) = share.create(ROOT, "name") {
        let node = NodeId(created.entry.node);
        nodes.push(node);
        let content = share.read(node, created.opened.handle, 0, 64).unwrap_or_default();
        assert!(!content.starts_with(SECRET), "created over a link");
        share.release(node, created.opened.handle);
    }
    if let Ok(target) = share.fs.readlink(&caller(), node) {
        assert!(!target.is_empty());
    }
    nodes.iter().for_each(|node| share.fs.forget(*node, 1));
    true
}

/// Aim: a client cannot make the server open a device or a pipe by swapping names between a lookup and an open.
#[test]
fn no_race_opens_a_pipe_or_a_device() {
    let share = Share::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pipe = share.path("pipe");
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::write(share.path("next"), b"");
                let _ = fs::rename(share.path("next"), share.path("name"));
                let _ = fs::hard_link(&pipe, share.path("next"));
                let _ = fs::rename(share.path("next"), share.path("name"));
            }
        });
        for _ in 0..PIPE_TRIES {
            let Ok(entry) = share.lookup(ROOT, "name") else { continue };
            let node = NodeId(entry.node);
            // Opening the pipe would wait for a writer for ever.
            if let Ok(opened) = share.open(node, 0) {
                assert_eq!(
                    share.fs.getattr(&caller(), node, Some(opened.handle)).unwrap().attr.mode,
                    0o100_666
                );
                share.release(node, opened.handle);
            }
            share.fs.forget(node, 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
