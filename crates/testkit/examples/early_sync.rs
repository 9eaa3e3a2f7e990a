//! How much of the hole of newer Linux guests the server closes: those that send SYNCFS before their data.
//!
//!     cargo run --release -p ashore-testkit --example early_sync -- KERNEL...
//!
//! For each kernel, each way to dirty a file and each grace period it says in how many runs the disk image lacked blocks
//! when the guest's sync(2) had returned, and how many at worst. Needs root, QEMU and the kernels (`cargo xtask setup
//! --kernel KERNEL`).

#![allow(clippy::unwrap_used, reason = "a tool for developers: what fails is shown as it is")]

use ashore_testkit::guest::{Guest, LoopImage, Server, Share};

const BLOCKS: usize = 4096;
const RUNS: u64 = 5;

fn main() {
    println!("| kernel | case | options | grace | runs short | blocks missing at worst, of {BLOCKS} |");
    println!("|---|---|---|---|---|---|");
    for kernel in std::env::args().skip(1) {
        for (case, options) in [("sync", "--writeback"), ("mmap-sync", "--writeback"), ("mmap-sync", "")] {
            for grace_ms in [0, 20] {
                let (short, worst) = measure(&kernel, case, options, grace_ms);
                println!("| {kernel} | {case} | {options} | {grace_ms} ms | {short} of {RUNS} | {worst} |");
            }
        }
    }
}

fn measure(kernel: &str, case: &str, options: &str, grace_ms: u32) -> (u64, usize) {
    let disk = LoopImage::ext4(512).unwrap();
    let mut server = Server::builder(disk.path()).arg("--early-sync-grace").arg(&grace_ms.to_string());
    if !options.is_empty() {
        server = server.arg(options);
    }
    let server = server.start().unwrap();
    let guest = Guest::builder().kernel(kernel).cpus(2).share(Share::new(server.socket())).boot().unwrap();
    let (mut short, mut worst) = (0, 0);
    for run in 0..RUNS {
        let seed = 0x5EED_1000 + run;
        let write = format!("agent write /mnt/share/file{run} {seed} {BLOCKS} {case}");
        guest.run(&write).unwrap().success().unwrap();
        let missing = BLOCKS - disk.count_blocks(seed).unwrap().min(BLOCKS);
        short += u64::from(missing > 0);
        worst = worst.max(missing);
    }
    drop(guest);
    (short, worst)
}
