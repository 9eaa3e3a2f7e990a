//! Directories in parts, and reads that must not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use ashore_server::FileSystem;
use ashore_wire::abi::{Dirent, Direntplus};
use ashore_wire::{DirentBuffer, Errno, FileHandle, NodeId};

use crate::harness::{MODES, ROOT, Share, caller};

/// Names of a reply with their next offsets and nodes, `.` and `..` too.
fn parse(names: &DirentBuffer, plus: bool) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    let mut rest = names.as_bytes();
    let number = |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    while !rest.is_empty() {
        let before = if plus { size_of::<Direntplus>() - size_of::<Dirent>() } else { 0 };
        let node = if plus { number(rest, 0) } else { 0 };
        let length = u32::from_ne_bytes(rest[before + 16..before + 20].try_into().unwrap()) as usize;
        let start = before + size_of::<Dirent>();
        let name = String::from_utf8(rest[start..start + length].to_vec()).unwrap();
        found.push((name, number(rest, before + 8), node));
        rest = &rest[(start + length).next_multiple_of(8)..];
    }
    found
}

struct Listing<'a> {
    share: &'a Share,
    handle: FileHandle,
    plus: bool,
}

impl Listing<'_> {
    fn part(&self, offset: u64, room: usize) -> Vec<(String, u64, u64)> {
        let mut names = DirentBuffer::default();
        names.reset(room);
        let fs = &self.share.fs;
        let read = if self.plus {
            fs.readdirplus(&caller(), ROOT, self.handle, offset, &mut names)
        } else {
            fs.readdir(&caller(), ROOT, self.handle, offset, &mut names)
        };
        read.unwrap();
        parse(&names, self.plus)
    }

    fn all(&self, room: usize) -> Vec<(String, u64, u64)> {
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let part = self.part(offset, room);
            let Some(last) = part.last() else { return found };
            offset = last.1;
            found.extend(part);
        }
    }
}

#[test]
fn every_name_comes_once_in_parts_of_any_size_and_no_lookup_is_lost() {
    for mode in MODES {
        let share = Share::holding(mode);
        let expected: BTreeSet<String> = (0..1500).map(|number| format!("name-{number:05}")).collect();
        expected.iter().for_each(|name| fs::write(share.path(name), b"").unwrap());
        for (plus, room) in [(false, 4096), (true, 4096), (false, 300), (true, 300), (true, 1 << 17)] {
            let handle = share.fs.opendir(&caller(), ROOT, 0).unwrap().handle;
            let found = Listing { share: &share, handle, plus }.all(room);
            let names: BTreeSet<_> = found.iter().map(|(name, ..)| name.clone()).collect();
            assert_eq!(found.len(), 1502, "plus {plus}, {room} bytes of room");
            assert!(names.is_superset(&expected) && names.contains("..") && names.contains("."));
            let mut lookups = BTreeMap::new();
            for (name, _, node) in &found {
                assert_eq!(*node != 0, plus && !name.starts_with('.'), "{name}");
                *lookups.entry(*node).or_insert(0) += 1;
            }
            assert_eq!(share.fs.looked_up(), if plus { 1500 } else { 0 });
            lookups.iter().for_each(|(node, count)| share.fs.forget(NodeId(*node), *count));
            assert_eq!(share.fs.looked_up(), 0, "what reached the client is all that was counted");
            share.fs.releasedir(ROOT, handle).unwrap();
        }
    }
}

#[test]
fn a_directory_can_be_read_from_any_place_and_again_from_the_start() {
    let share = Share::new();
    (0..100).for_each(|number| fs::write(share.path(&number.to_string()), b"").unwrap());
    let handle = share.fs.opendir(&caller(), ROOT, 0).unwrap().handle;
    let listing = Listing { share: &share, handle, plus: false };
    let found = listing.all(4096);
    for place in [90, 3, 50, 0] {
        let rest: Vec<_> = listing.part(found[place].1, 1 << 16);
        assert_eq!(rest, found[place + 1..]);
    }
    fs::write(share.path("late"), b"").unwrap();
    let again = listing.all(4096);
    assert!(again.iter().any(|(name, ..)| name == "late"), "reading from the start reads anew");
    assert_eq!(
        share.fs.readdir(&caller(), ROOT, FileHandle(999), 0, &mut DirentBuffer::default()),
        Err(Errno::EBADF)
    );
}

#[test]
fn a_name_that_vanishes_while_it_is_listed_is_left_out() {
    let share = Share::new();
    (0..50).for_each(|number| fs::write(share.path(&number.to_string()), b"").unwrap());
    let handle = share.fs.opendir(&caller(), ROOT, 0).unwrap().handle;
    let listing = Listing { share: &share, handle, plus: true };
    let first = listing.part(0, 600);
    (0..50).for_each(|number| fs::remove_file(share.path(&number.to_string())).unwrap());
    let offset = first.last().unwrap().1;
    assert!(listing.part(offset, 1 << 16).iter().all(|(name, ..)| name == "." || name == ".."));
}

#[test]
fn many_threads_may_read_one_open_directory() {
    let share = Share::new();
    (0..300).for_each(|number| fs::write(share.path(&number.to_string()), b"").unwrap());
    let handle = share.fs.opendir(&caller(), ROOT, 0).unwrap().handle;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = Listing { share: &share, handle, plus: true }.all(1000);
                let names: BTreeSet<_> = found.iter().map(|(name, ..)| name.clone()).collect();
                assert_eq!((found.len(), names.len()), (302, 302));
            });
        }
    });
}

/// Aim: a read that may not wait is either whole or comes back with EAGAIN; a short one would be the end of the file.
#[test]
fn a_read_that_may_not_wait_is_whole_or_not_at_all() {
    let share = Share::new();
    let content: Vec<u8> = (0..1 << 20).map(|number: u32| (number / 4096) as u8).collect();
    fs::write(share.path("f"), &content).unwrap();
    let node = share.node(ROOT, "f");
    let opened = share.open(node, 0).unwrap();
    let read = |offset, size| share.read_if(node, opened.handle, offset, size, false);
    assert_eq!(read(0, 1 << 20).unwrap(), content, "all of it is in memory");
    assert_eq!(read((1 << 20) - 100, 4096).unwrap().len(), 100, "short at the end");
    assert_eq!(read(1 << 20, 4096).unwrap().len(), 0);
    assert_eq!(read(1 << 30, 4096).unwrap().len(), 0);

    let file = fs::File::open(share.path("f")).unwrap();
    file.sync_all().unwrap();
    let drop_all = |length| {
        rustix::fs::fadvise(&file, 0, std::num::NonZeroU64::new(length), rustix::fs::Advice::DontNeed)
            .unwrap();
    };
    drop_all(1 << 20);
    match read(0, 1 << 16) {
        Err(Errno::EAGAIN) => {}
        Ok(found) => assert_eq!(found, content[..1 << 16], "this file system never had to wait"),
        Err(errno) => panic!("{errno}"),
    }
    assert_eq!(
        share.read(node, opened.handle, 0, 1 << 20).unwrap(),
        content,
        "with leave to wait it is whole"
    );
    // Half of it in memory: never a short answer.
    drop_all(1 << 19);
    for offset in (0..1 << 20).step_by(1 << 16) {
        match read(offset, 1 << 17) {
            Ok(found) => assert_eq!(found.len() as u64, (1 << 17).min((1 << 20) - offset)),
            Err(errno) => assert_eq!(errno, Errno::EAGAIN),
        }
    }
}
