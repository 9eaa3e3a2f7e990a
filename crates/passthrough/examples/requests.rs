//! Makes many requests of one kind, to be watched: `strace -fc` shows the system calls of each, and the time printed is
//! that of one request without a transport.
//!
//! ```text
//! cargo run --release -p ashore-passthrough --example requests -- lookup 10000 [never]
//! strace -c target/release/examples/requests lookup 10000
//! ```

#![allow(missing_docs, reason = "an example")]

#[path = "../tests/suite/harness.rs"]
#[allow(dead_code, reason = "this program needs part of it")]
mod harness;

use std::time::Instant;

use ashore_passthrough::InodeFileHandles;
use ashore_server::{FileSystem, Read, Write};
use ashore_wire::flags::WriteFlags;
use ashore_wire::{DirentBuffer, NodeId};
use harness::{Bytes, RDWR, ROOT, Share, caller};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().expect("which kind of request");
    let count: usize = arguments.next().expect("how many").parse().expect("a number");
    let never = arguments.next().is_some_and(|word| word == "never");
    let mode = if never { InodeFileHandles::Never } else { InodeFileHandles::Prefer };
    let share = Share::holding(mode);
    let directory = NodeId(share.mkdir(ROOT, "d").expect("an empty share").node);
    let node = share.put(directory, "f", &[7; 4096]);
    let names = if matches!(kind.as_str(), "new" | "plus" | "walk") { count } else { 0 };
    for number in 0..names {
        std::fs::write(share.path(&format!("d/n{number}")), b"").expect("a file");
    }
    let handle = share.open(node, RDWR).expect("it was made").handle;
    let mut memory = Bytes(vec![7; 4096]);
    eprintln!("--- begin");
    let start = Instant::now();
    match kind.as_str() {
        "nothing" => {}
        "lookup" => (0..count).for_each(|_| assert!(share.lookup(directory, "f").is_ok())),
        "missing" => (0..count).for_each(|_| assert!(share.lookup(directory, "missing").is_err())),
        "new" => {
            (0..count).for_each(|number| assert!(share.lookup(directory, &format!("n{number}")).is_ok()))
        }
        "getattr" => (0..count).for_each(|_| assert!(share.getattr(node).is_ok())),
        "read" => (0..count).for_each(|_| {
            let read = Read { handle, offset: 0, size: 4096, may_wait: false };
            assert_eq!(share.fs.read(node, &read, &mut memory), Ok(4096));
        }),
        "write" => (0..count).for_each(|_| {
            let write = Write { handle, offset: 0, size: 4096, write_flags: WriteFlags::empty(), flags: 0 };
            assert_eq!(share.fs.write(&caller(), node, &write, &mut memory), Ok(4096));
        }),
        "open" => (0..count).for_each(|_| {
            let opened = share.open(node, RDWR).expect("it is there");
            share.release(node, opened.handle);
        }),
        "create" => (0..count).for_each(|_| {
            let node = share.put(directory, "made", b"x");
            share.unlink(directory, "made").expect("it was made");
            share.fs.forget(node, 1);
        }),
        "plus" | "walk" => {
            let handle = share.fs.opendir(&caller(), directory, 0).expect("a directory").handle;
            let passes = if kind == "walk" { 1 } else { 2 };
            for _ in 0..passes {
                list(&share, directory, handle);
            }
        }
        "sync" => (0..count).for_each(|number| {
            share.write(node, handle, number as u64, b"x").expect("a write");
            share.fs.syncfs(ROOT).expect("a sync");
        }),
        other => panic!("{other} is not a kind of request"),
    }
    let elapsed = start.elapsed();
    eprintln!("--- end");
    println!("{kind} {count}: {} ns each", elapsed.as_nanos() / count.max(1) as u128);
}

fn list(share: &Share, directory: NodeId, handle: ashore_wire::FileHandle) {
    let (mut names, mut offset) = (DirentBuffer::default(), 0);
    loop {
        names.reset(64 << 10);
        share.fs.readdirplus(&caller(), directory, handle, offset, &mut names).expect("a directory");
        if names.is_empty() {
            return;
        }
        offset = last_offset(names.as_bytes());
    }
}

/// Where to go on after the last name of a reply.
fn last_offset(mut rest: &[u8]) -> u64 {
    let mut offset = 0;
    while rest.len() > 152 {
        offset = u64::from_ne_bytes(rest[136..144].try_into().expect("8 bytes"));
        let length = u32::from_ne_bytes(rest[144..148].try_into().expect("4 bytes")) as usize;
        rest = &rest[(152 + length).next_multiple_of(8)..];
    }
    offset
}
