//! Races that try to lead out of the share.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ashore_server::FileSystem;
use ashore_wire::NodeId;
use ashore_wire::abi::SetattrIn;
use ashore_wire::flags::SetattrValid;

use crate::harness::{MODES, RDWR, ROOT, Share, caller};

const TRIES: usize = 10_000;
/// No longer than this on a busy machine.
const TIME: Duration = Duration::from_secs(20);
const SECRET: &[u8] = b"a secret of the host";

/// Aim: nothing that happens to names while a request runs leads out of the share. Method: a thread gives one name in
/// turn to a file, a directory and links that lead outside, while requests go through it.
#[test]
fn no_race_of_links_and_renames_leads_outside() {
    for mode in MODES {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), SECRET).unwrap();
        let share = Share::holding(mode);
        fs::write(share.path("file"), b"inside").unwrap();
        fs::create_dir(share.path("directory")).unwrap();
        fs::write(share.path("directory/secret"), b"inside").unwrap();
        let stop = AtomicBool::new(false);
        let mut reached = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let name = share.path("name");
                while !stop.load(Ordering::Relaxed) {
                    for (step, target) in
                        [share.path("file"), outside.path().join("secret"), outside.path().to_owned()]
                            .iter()
                            .enumerate()
                    {
                        let next = share.path("next");
                        let _ = fs::remove_file(&next);
                        if step == 0 {
                            fs::hard_link(target, &next).unwrap()
                        } else {
                            symlink(target, &next).unwrap()
                        }
                        let _ = fs::rename(&next, &name);
                    }
                    let _ = fs::remove_file(&name);
                    let _ = fs::rename(share.path("directory"), &name);
                    let _ = fs::rename(&name, share.path("directory"));
                }
            });
            let start = Instant::now();
            while reached < TRIES && start.elapsed() < TIME {
                reached += usize::from(try_to_escape(&share));
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{mode:?}: {reached} tries that found something under the name");
        assert!(reached > TRIES / 20, "hardly a race: {reached} tries found something");
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), SECRET);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made outside");
        let left = fs::metadata(outside.path().join("secret")).unwrap();
        assert_ne!(std::os::unix::fs::MetadataExt::mtime(&left), 12345);
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
        for _ in 0..TRIES {
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
