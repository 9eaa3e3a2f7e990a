//! Lookup counts, and inodes whose number went to another file.

use std::fs;

use ashore_server::FileSystem;
use ashore_wire::{Errno, NodeId};

use crate::harness::{MODES, ROOT, Share};

#[test]
fn a_node_is_valid_until_its_last_lookup_is_given_back() {
    for mode in MODES {
        let share = Share::holding(mode);
        let node = share.put(ROOT, "f", b"");
        assert_eq!(share.node(ROOT, "f"), node);
        assert_eq!(share.node(ROOT, "f"), node);
        share.fs.forget(node, 2);
        assert!(share.getattr(node).is_ok());
        share.fs.forget(node, 1);
        assert_eq!(share.getattr(node).unwrap_err(), Errno::ESTALE);
        let again = share.node(ROOT, "f");
        assert_ne!(again, node, "an id is not given out twice");
        assert_eq!(share.getattr(node).unwrap_err(), Errno::ESTALE);
        share.fs.forget(again, u64::MAX);
        assert_eq!(share.fs.looked_up(), 0);
        share.fs.forget(ROOT, u64::MAX);
        assert!(share.getattr(ROOT).is_ok(), "the root is valid always");
    }
}

#[test]
fn nothing_outlives_the_client() {
    for mode in MODES {
        let share = Share::holding(mode);
        let node = share.put(ROOT, "f", b"x");
        let opened = share.open(node, 0).unwrap();
        share.fs.destroy();
        assert_eq!((share.fs.looked_up(), share.fs.open_handles()), (0, 0));
        assert_eq!(share.getattr(node).unwrap_err(), Errno::ESTALE);
        assert_eq!(share.read(node, opened.handle, 0, 1).unwrap_err(), Errno::EBADF);
        assert_ne!(share.node(ROOT, "f"), node);
    }
}

/// Aim: a file that got the inode number of one the client still knows is never served as that one. Method: the host
/// replaces a file as fast as it can, within one tick of its clock, and the client looks; it may be told ESTALE, as
/// Linux then looks again, but never another file's content.
#[test]
fn a_number_that_the_host_gave_to_another_file_is_no_mistaken_identity() {
    for mode in MODES {
        let share = Share::holding(mode);
        let mut reused = 0;
        let mut last_ino = 0;
        for round in 0..500u32 {
            let content = format!("content {round}");
            let _ = fs::remove_file(share.path("f"));
            fs::write(share.path("f"), &content).unwrap();
            let entry = share.lookup(ROOT, "f").unwrap();
            reused += u32::from(entry.attr.ino == last_ino);
            last_ino = entry.attr.ino;
            let seen = match share.content(NodeId(entry.node)) {
                Err(Errno::ESTALE) => share.content(share.node(ROOT, "f")),
                seen => seen,
            };
            assert_eq!(String::from_utf8(seen.unwrap()).unwrap(), content);
        }
        println!("{mode:?}: {reused} numbers used again of 500");
    }
}

/// The same, where the client itself removes and makes.
#[test]
fn a_number_that_the_client_freed_itself_is_no_mistaken_identity() {
    for mode in MODES {
        let share = Share::holding(mode);
        for round in 0..500u32 {
            let content = format!("content {round}");
            let node = share.put(ROOT, "f", content.as_bytes());
            assert_eq!(share.node(ROOT, "f"), node);
            assert_eq!(share.content(node).unwrap(), content.as_bytes());
            share.unlink(ROOT, "f").unwrap();
            if round % 2 == 0 {
                share.fs.forget(node, 2);
            }
        }
        assert_eq!(share.fs.looked_up(), 250);
    }
}

#[test]
fn many_threads_that_look_up_the_same_names_share_their_nodes() {
    for mode in MODES {
        let share = Share::holding(mode);
        (0..64).for_each(|number| fs::write(share.path(&number.to_string()), b"").unwrap());
        let nodes: Vec<Vec<NodeId>> = std::thread::scope(|scope| {
            let look = || (0..64).map(|number| share.node(ROOT, &number.to_string())).collect::<Vec<_>>();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(look)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(nodes.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(share.fs.looked_up(), 64);
        nodes[0].iter().for_each(|node| share.fs.forget(*node, 8));
        assert_eq!(share.fs.looked_up(), 0);
    }
}
