//! Looks up many files, as `find` in a guest does with a large tree, and says what that costs the server.
//!
//!     cargo run --release -p ashore-passthrough --example many_inodes -- 1000000
//!
//! The files are made in a temporary directory (TMPDIR), which is removed afterwards.

#![allow(clippy::unwrap_used, reason = "an example")]

use std::ffi::CString;
use std::fs;
use std::time::Instant;

use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Caller, FileSystem};
use ashore_wire::{Name, NodeId};

const IN_ONE_DIRECTORY: usize = 1000;

fn main() {
    let count: usize = std::env::args().nth(1).map_or(100_000, |count| count.parse().unwrap());
    let share = tempfile::tempdir().unwrap();
    for number in 0..count {
        let directory = share.path().join(format!("d{}", number / IN_ONE_DIRECTORY));
        if number % IN_ONE_DIRECTORY == 0 {
            fs::create_dir(&directory).unwrap();
        }
        fs::write(directory.join(format!("f{number}")), b"").unwrap();
    }
    let fs = Passthrough::new(Options::new(share.path())).unwrap();
    let (memory, descriptors, begun) = (resident_bytes(), open_descriptors(), Instant::now());
    let mut parent = NodeId::ROOT;
    let mut nodes = Vec::with_capacity(count);
    let list = nodes.capacity() * size_of::<NodeId>();
    for number in 0..count {
        if number % IN_ONE_DIRECTORY == 0 {
            parent = lookup(&fs, NodeId::ROOT, &format!("d{}", number / IN_ONE_DIRECTORY));
        }
        nodes.push(lookup(&fs, parent, &format!("f{number}")));
    }
    let took = begun.elapsed();
    let each = (resident_bytes() - memory).saturating_sub(list) / fs.looked_up();
    println!("{} inodes looked up in {took:.1?}", fs.looked_up());
    println!("{each} bytes of memory for each");
    println!("{} descriptors for all of them", open_descriptors() - descriptors);
    let begun = Instant::now();
    nodes.iter().for_each(|node| _ = fs.getattr(&Caller::default(), *node, None).unwrap());
    println!(
        "attributes of each in {:.1?}, {} descriptors",
        begun.elapsed(),
        open_descriptors() - descriptors
    );
    nodes.iter().for_each(|node| fs.forget(*node, 1));
    println!("{} left when each file was forgotten", fs.looked_up());
}

fn lookup(fs: &Passthrough, parent: NodeId, name: &str) -> NodeId {
    let name = CString::new(name).unwrap();
    NodeId(fs.lookup(&Caller::default(), parent, Name::new(&name).unwrap()).unwrap().node)
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
