//! A client goes on at another server: what is synced for that, what is told, and what is found again.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ashore_passthrough::HostFileSystems;
use ashore_server::{FileSystem, FindBy, Migratable, Recoverable};
use ashore_wire::{Errno, NodeId};
use rustix::io::Errno as HostErrno;
use tempfile::TempDir;

use crate::harness::{MODES, Mounted, RDWR, ROOT, Share, caller};

const BY_PATH: FindBy = FindBy::Path { verify: false };
const FILES: usize = 200;

/// Moves all that a client knows; says what was not found.
fn move_over(source: &Share, destination: &Share, by: FindBy) -> Vec<String> {
    let known = source.fs.known_nodes();
    let nodes: Vec<NodeId> = known.iter().map(|(node, _)| *node).collect();
    let descriptions = source.fs.describe_all(&nodes, by);
    let moved = known.iter().zip(&descriptions);
    let moved = moved.map(|((node, lookups), told)| destination.fs.take_over(*node, *lookups, told));
    let lost = moved.filter_map(Result::err).collect();
    for opened in source.fs.open_files() {
        let _ = destination.fs.restore_open(opened.handle, opened.node, opened.flags, opened.directory);
    }
    destination.fs.restored(false);
    lost
}

/// A server of the same directory.
fn another(share: &Share) -> Share {
    let hosts = HostFileSystems::with_sync_call(|_, _| Ok(()));
    Share::over(Arc::clone(&share.directory), &hosts, |_| {})
}

/// Aim: P6, also for what no sync of the client asked for.
#[test]
fn what_was_changed_is_synced_before_the_client_leaves_for_another_server() {
    let share = Share::new();
    share.fs.syncfs(ROOT).unwrap();
    let before = share.synced();
    share.put(ROOT, "file", b"changed");
    share.fs.hand_over().unwrap();
    assert!(share.synced() > before, "no host file system was synced");
}

/// Aim: the guest stands still for as short as can be, and no error is lost for that. Method: of two syncs ahead, the second fails.
#[test]
fn what_is_synced_ahead_takes_no_error_from_the_client() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let hosts = HostFileSystems::with_sync_call(move |_, _| match counted.fetch_add(1, Ordering::SeqCst) {
        1 => Err(HostErrno::IO),
        _ => Ok(()),
    });
    let share = Share::over(Arc::new(TempDir::new().unwrap()), &hosts, |_| {});
    share.put(ROOT, "file", b"changed");
    share.fs.sync_ahead();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    share.fs.sync_ahead();
    assert_eq!(
        calls.load(Ordering::SeqCst),
        2,
        "it counts as changed until the client has been told of a sync"
    );
    assert!(share.fs.hand_over().is_err());
    assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EIO), "the client hears of it");
    share.fs.hand_over().unwrap();
}

/// Aim: an error is told to the client, and not to the VMM alone.
#[test]
fn a_sync_that_fails_keeps_the_client_and_is_told_to_it_at_its_next_sync() {
    let outcomes = Mutex::new(VecDeque::from([HostErrno::IO]));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let hosts = HostFileSystems::with_sync_call(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        outcomes.lock().unwrap().pop_front().map_or(Ok(()), Err)
    });
    let share = Share::over(Arc::new(TempDir::new().unwrap()), &hosts, |_| {});
    share.put(ROOT, "file", b"changed");
    for _ in 0..2 {
        let said = share.fs.hand_over().unwrap_err();
        assert!(said.contains("cannot be made stable"), "{said}");
    }
    assert_eq!(share.fs.syncfs(ROOT), Err(Errno::EIO), "the client hears of it");
    assert_eq!(share.fs.syncfs(ROOT), Ok(()), "once");
    share.fs.hand_over().unwrap();
    assert!(calls.load(Ordering::SeqCst) > 1);
}

/// Aim: node ids stay what they are, though files have other numbers where they are copied to. Method: so many that most
/// of them belong elsewhere in the tables of the other server.
#[test]
fn ids_are_kept_where_files_have_other_numbers() {
    for mode in MODES {
        let source = Share::holding(mode);
        let made: Vec<_> = (0..FILES)
            .map(|number| source.put(ROOT, &format!("file{number}"), &number.to_le_bytes()))
            .collect();
        drop(made);
        let nodes: Vec<_> = (0..FILES).map(|number| source.node(ROOT, &format!("file{number}"))).collect();
        let copy = TempDir::new().unwrap();
        let from = format!("{}/.", source.directory.path().display());
        assert!(Command::new("cp").arg("-a").arg(from).arg(copy.path()).status().unwrap().success());
        let hosts = HostFileSystems::with_sync_call(|_, _| Ok(()));
        let there = Share::over(Arc::new(copy), &hosts, |options| options.inode_file_handles = mode);
        assert_eq!(move_over(&source, &there, BY_PATH), Vec::<String>::new());
        for (number, node) in nodes.iter().enumerate() {
            let name = format!("file{number}");
            assert_eq!(there.node(ROOT, &name), *node, "{name}, held by {mode:?}");
            there.open(*node, RDWR).unwrap();
        }
        // Lookups are those of both servers together: those that moved, and the one above.
        let moved: Vec<_> = source.fs.known_nodes();
        for (node, lookups) in moved {
            there.fs.forget(node, lookups);
            assert!(there.fs.getattr(&caller(), node, None).is_ok(), "one lookup is left");
            there.fs.forget(node, 1);
            assert_eq!(there.fs.getattr(&caller(), node, None).unwrap_err(), Errno::ESTALE);
        }
        let anew = there.node(ROOT, "file0");
        assert!(!nodes.contains(&anew), "an id is not given out twice");
    }
}

/// Aim: a file whose path the host's kernel does not have is looked for in the share. Method: of two names, that one is removed
/// by which the file was found.
#[test]
fn a_file_by_another_name_is_found_in_the_share() {
    for mode in MODES {
        let source = Share::holding(mode);
        let file = source.put(ROOT, "file", b"1");
        std::fs::create_dir_all(source.path("some/where")).unwrap();
        std::fs::hard_link(source.path("file"), source.path("some/where/else")).unwrap();
        std::fs::remove_file(source.path("file")).unwrap();
        let destination = another(&source);
        assert_eq!(move_over(&source, &destination, BY_PATH), Vec::<String>::new(), "held by {mode:?}");
        let opened = destination.open(file, RDWR).unwrap();
        destination.write(file, opened.handle, 0, b"2").unwrap();
        assert_eq!(std::fs::read(source.path("some/where/else")).unwrap(), b"2");
    }
}

/// Aim: files on other file systems below the share move too, in both modes.
#[test]
fn what_is_mounted_below_the_share_is_found_and_changed_there() {
    for by in [BY_PATH, FindBy::Path { verify: true }, FindBy::Handle] {
        let source = Share::new();
        std::fs::create_dir(source.path("mounted")).unwrap();
        let _mounted = Mounted::tmpfs(&source.path("mounted"), "size=1m");
        let mounted = source.node(ROOT, "mounted");
        let file = source.put(mounted, "file", b"1");
        let open = source.open(file, RDWR).unwrap();
        let destination = another(&source);
        assert_eq!(move_over(&source, &destination, by), Vec::<String>::new(), "{by:?}");
        destination.write(file, open.handle, 1, b"2").unwrap();
        assert_eq!(std::fs::read(source.path("mounted/file")).unwrap(), b"12", "{by:?}");
        assert_eq!(destination.node(mounted, "file"), file, "{by:?}");
        source.fs.destroy();
        destination.fs.destroy();
    }
}

/// Aim: what nobody can reach any more holds nobody up; what is open and cannot be found does.
#[test]
fn what_has_no_name_left_is_told_from_what_is_missing() {
    let source = Share::new();
    source.mkdir(ROOT, "directory").unwrap();
    let directory = source.node(ROOT, "directory");
    source.put(directory, "kept", b"1");
    source.put(directory, "gone", b"2");
    let (kept, gone) = (source.node(directory, "kept"), source.node(directory, "gone"));
    let open = source.create(directory, "open").unwrap();
    source.unlink(directory, "gone").unwrap();
    source.unlink(directory, "open").unwrap();
    let lost = move_over(&source, &another(&source), BY_PATH);
    assert_eq!(lost.len(), 1, "the one that is open: {lost:?}");
    let by_handle = another(&source);
    assert_eq!(move_over(&source, &by_handle, FindBy::Handle), Vec::<String>::new());
    assert!(by_handle.fs.getattr(&caller(), kept, None).is_ok());
    assert_eq!(by_handle.fs.getattr(&caller(), gone, None).unwrap_err(), Errno::ESTALE);
    assert!(by_handle.fs.getattr(&caller(), NodeId(open.entry.node), None).is_ok());
}

#[test]
fn a_path_that_leads_to_another_file_is_found_out_if_handles_are_verified() {
    let verified = FindBy::Path { verify: true };
    let source = Share::new();
    source.put(ROOT, "file", b"1");
    let known = source.fs.known_nodes();
    let nodes: Vec<_> = known.iter().map(|(node, _)| *node).collect();
    let told = [BY_PATH, verified].map(|by| source.fs.describe_all(&nodes, by));
    // Between the source's look and the destination's.
    std::fs::write(source.path("other"), "2").unwrap();
    std::fs::rename(source.path("other"), source.path("file")).unwrap();
    let take = |told: &Vec<Vec<u8>>| another(&source).fs.take_over(nodes[0], 1, &told[0]);
    assert_eq!(take(&told[0]), Ok(()));
    assert!(take(&told[1]).unwrap_err().contains("is another file here"));
    std::os::unix::fs::symlink("/etc/passwd", source.path("link")).unwrap();
    std::fs::rename(source.path("link"), source.path("file")).unwrap();
    assert!(take(&told[0]).unwrap_err().contains("another kind of file"));
}

/// Aim: nothing that a stream says leads out of the share.
#[test]
fn a_path_never_leads_out_of_the_share() {
    let share = Share::new();
    std::os::unix::fs::symlink("/etc", share.path("link")).unwrap();
    std::fs::create_dir(share.path("directory")).unwrap();
    let node = NodeId(1 << 33 | 16);
    let say = |kind: u32, path: &str| [b"P", &kind.to_le_bytes()[..], &[0; 5], path.as_bytes()].concat();
    for path in ["link/passwd", "/etc/passwd", "../etc/passwd", "directory/../../etc/passwd", "a\0b"] {
        let taken = share.fs.take_over(node, 1, &say(libc::S_IFREG, path));
        assert!(taken.unwrap_err().contains("cannot be opened"), "{path}");
    }
    assert_eq!(share.fs.take_over(node, 1, &say(libc::S_IFLNK, "link")), Ok(()), "a link itself is a file");
}
