//! How many descriptors a share uses, and what happens when there are no more. A program of its own: the limit is the
//! whole process's.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

#[path = "suite/harness.rs"]
#[allow(dead_code, reason = "this program needs part of it")]
mod harness;

use std::fs;
use std::sync::Mutex;

use ashore_passthrough::InodeFileHandles;
use ashore_server::FileSystem;
use ashore_wire::{DirentBuffer, Errno, NodeId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use harness::{ROOT, Share, caller, need_root};

/// The tests of this program count descriptors, so they run one after another.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn files(share: &Share, count: usize) {
    (0..count).for_each(|number| fs::write(share.path(&format!("f{number}")), b"x").unwrap());
}

#[test]
fn inodes_held_by_handle_use_a_bounded_number_of_descriptors() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    need_root("to use file handles");
    let share = Share::with(|options| options.descriptor_bound = 64);
    files(&share, 5000);
    let before = descriptors();
    let nodes: Vec<NodeId> = (0..5000).map(|number| share.node(ROOT, &format!("f{number}"))).collect();
    for node in &nodes {
        assert_eq!(share.getattr(*node).unwrap().attr.size, 1);
    }
    assert!(descriptors() <= before + 64, "{} descriptors for 5000 inodes", descriptors() - before);
    // Removed ones are held by descriptors, for their handles would lead nowhere; as many as the bound again.
    (0..5000).for_each(|number| share.unlink(ROOT, &format!("f{number}")).unwrap());
    assert!(descriptors() <= before + 128 + 16, "{} descriptors", descriptors() - before);
    assert!(nodes[..32].iter().all(|node| share.getattr(*node).is_ok()));
    nodes.iter().for_each(|node| share.fs.forget(*node, 1));
    assert!(descriptors() <= before + 1, "all closed: {} left", descriptors() - before);
}

#[test]
fn running_out_of_descriptors_is_an_error_to_the_client_and_passes() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let share = Share::holding(InodeFileHandles::Never);
    files(&share, 400);
    let limit = getrlimit(Resource::Nofile);
    let low = descriptors() as u64 + 50;
    setrlimit(Resource::Nofile, Rlimit { current: Some(low), maximum: limit.maximum }).unwrap();
    let outcomes: Vec<_> = (0..400).map(|number| share.lookup(ROOT, &format!("f{number}"))).collect();
    let found: Vec<NodeId> = outcomes.iter().flatten().map(|entry| NodeId(entry.node)).collect();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(Errno::EMFILE))).count();
    assert!(found.len() >= 40 && found.len() + refused == 400, "{} found, {refused} refused", found.len());
    assert_eq!(share.lookup(ROOT, "missing").unwrap_err(), Errno::ENOENT, "goes on serving");
    assert_eq!(share.node(ROOT, "f0"), found[0], "what is known is found without a descriptor");
    assert_eq!(share.getattr(found[0]).unwrap().attr.size, 1);
    assert_eq!(share.open(found[0], 0).unwrap_err(), Errno::EMFILE);
    assert_eq!(share.fs.syncfs(ROOT), Ok(()), "a sync needs no new descriptor");
    share.fs.forget(found[1], 1);
    let directory = share.fs.opendir(&caller(), ROOT, 0).unwrap().handle;
    let mut names = DirentBuffer::default();
    names.reset(1 << 20);
    share.fs.readdirplus(&caller(), ROOT, directory, 0, &mut names).unwrap();
    assert!(names.as_bytes().len() > 400 * 150, "names come, with an entry or without");
    share.fs.releasedir(ROOT, directory).unwrap();
    share.fs.destroy();
    assert!(share.lookup(ROOT, "f399").is_ok(), "and recovers");
    setrlimit(Resource::Nofile, limit).unwrap();
}
