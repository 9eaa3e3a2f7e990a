//! How much of the hole of newer Linux guests the server closes: those that send SYNCFS before their data.
//!
//!     cargo run --release -p ashore-testkit --example early_sync -- [--runs N] KERNEL...
//!
//! For each kernel, each way to dirty files and each grace period it says in how many runs the disk image lacked blocks
//! when the guest's sync(2) or syncfs(2) had returned, and how many at worst. Needs root, QEMU and the kernels
//! (`cargo xtask setup --kernel KERNEL`).

#![allow(clippy::unwrap_used, reason = "a tool for developers: what fails is shown as it is")]

use std::io::{self, Write};
use std::time::Duration;

use ashore_passthrough::{HostFileSystems, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::guest::{Guest, LoopImage, Share};
use ashore_testkit::in_process::InProcess;

/// How files are dirtied and synced: a command of the agent with `PATH` and `SEED` in it, and what must be there then.
struct Case {
    name: &'static str,
    command: &'static str,
    blocks: usize,
    /// The blocks to be found are those of the seed and so many more.
    seed_offset: u64,
    delay: Duration,
}

const CASES: [Case; 6] = [
    Case::of("16 MiB by write, sync", "agent write PATH SEED 4096 sync", 4096, 0, 0),
    Case::of("16 MiB by mapping, sync", "agent write PATH SEED 4096 mmap-sync", 4096, 0, 0),
    Case::of("500 files of 16 KiB, sync", "agent write-many PATH SEED 500 4", 2000, 0, 0),
    Case::of("rewritten in flight, sync", "agent write PATH SEED 16 rewrite-sync", 16, 1, 50),
    Case::of("rewritten in flight, syncfs", "agent write PATH SEED 16 rewrite-syncfs", 16, 1, 50),
    Case::of("mapping rewritten in flight, sync", "agent write PATH SEED 16 rewrite-mmap-sync", 16, 1, 50),
];

impl Case {
    const fn of(
        name: &'static str,
        command: &'static str,
        blocks: usize,
        seed_offset: u64,
        delay_ms: u64,
    ) -> Case {
        Case { name, command, blocks, seed_offset, delay: Duration::from_millis(delay_ms) }
    }
}

fn main() {
    let mut kernels: Vec<String> = std::env::args().skip(1).collect();
    let mut runs = 5;
    if kernels.first().is_some_and(|argument| argument == "--runs") {
        runs = kernels.get(1).expect("--runs wants a number").parse().unwrap();
        kernels.drain(..2);
    }
    println!("| kernel | write-back cache | case | grace 0: short, worst | grace 20 ms: short, worst |");
    println!("|---|---|---|---|---|");
    for kernel in kernels {
        for writeback in [true, false] {
            for case in &CASES {
                let with_grace = |grace_ms| Measured::of(&kernel, case, writeback, grace_ms, runs);
                let (without, with) = (with_grace(0), with_grace(20));
                let cache = if writeback { "on" } else { "off" };
                println!("| {} | {cache} | {} | {without} | {with} |", without.release, case.name);
                io::stdout().flush().unwrap();
            }
        }
    }
}

/// How often blocks were missing.
struct Measured {
    release: String,
    runs: u64,
    short: u64,
    worst: usize,
    of: usize,
}

impl Measured {
    fn of(kernel: &str, case: &Case, writeback: bool, grace_ms: u64, runs: u64) -> Measured {
        let disk = LoopImage::ext4(512).unwrap();
        let options = Options { writeback, ..Options::new(disk.path()) };
        let passthrough = Passthrough::with_hosts(options, HostFileSystems::of_this_process()).unwrap();
        let limits = Limits { early_sync_grace: Duration::from_millis(grace_ms), ..Limits::default() };
        let server =
            InProcess::serve_with_slow_writes(Session::new(passthrough, limits), case.delay).unwrap();
        let guest =
            Guest::builder().kernel(kernel).cpus(2).share(Share::new(server.socket())).boot().unwrap();
        let release = guest.kernel_release().to_owned();
        let mut measured = Measured { release, runs, short: 0, worst: 0, of: case.blocks };
        for run in 0..runs {
            let seed = 0x5EED_1000 + 2 * run;
            let path = format!("/mnt/share/file{run}");
            let command = case.command.replace("PATH", &path).replace("SEED", &seed.to_string());
            guest.run(&command).unwrap().success().unwrap();
            let found = disk.count_blocks(seed + case.seed_offset).unwrap();
            let missing = case.blocks - found.min(case.blocks);
            measured.short += u64::from(missing > 0);
            measured.worst = measured.worst.max(missing);
        }
        measured
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Measured { runs, short, worst, of, .. } = self;
        match short {
            0 => write!(out, "0 of {runs}"),
            _ => write!(out, "**{short} of {runs}**, {worst} of {of}"),
        }
    }
}
