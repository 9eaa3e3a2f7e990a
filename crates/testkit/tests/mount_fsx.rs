//! Random operations on a file of a mount, each compared with a model in plain memory, and what has arrived on the host with
//! it at each sync. Needs root, /dev/fuse, loop devices, and Linux 6.18.
//!
//! `ASHORE_FSX_OPERATIONS` sets how many operations a seed has, `ASHORE_FSX_SEED` plays one seed only.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use ashore_client::Client;
use ashore_dev_fuse::MountOptions;
use ashore_passthrough::{Options, Passthrough};
use ashore_remote::Remote;
use ashore_server::{FileSystem, Limits, Session};
use ashore_testkit::fsx::{self, Random, number};
use ashore_testkit::in_process::InProcess;
use ashore_testkit::mounted::Mounted;
use rustix::fs::{FallocateFlags, fallocate, syncfs};

/// Bytes the file has, at most.
const LONGEST: u64 = 300_000;

fn play<F: FileSystem>(
    options: &MountOptions,
    serve: impl Fn(&Path) -> Arc<Session<F>>,
    seed: u64,
    operations: u64,
) {
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let mounted = Mounted::new(serve(host.path()), options, 2);
    let (here, there) = (mounted.path().join("f"), host.path().join("f"));
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&here).unwrap();
    let (mut file, mut model, mut random) = (open(), Vec::<u8>::new(), Random::new(seed));
    for step in 0..operations {
        let at = || format!("seed {seed}, step {step}");
        let (offset, length) = (random.below(LONGEST), 1 + random.below(20_000));
        let end = (offset + length).min(LONGEST);
        match random.below(100) {
            0..40 => {
                let data: Vec<u8> = (offset..end).map(|at| (at ^ step) as u8).collect();
                file.write_all_at(&data, offset).unwrap();
                model.resize(model.len().max(end as usize), 0);
                model[offset as usize..end as usize].copy_from_slice(&data);
            }
            40..75 => {
                let mut data = vec![0; length as usize];
                let came = file.read_at(&mut data, offset).unwrap();
                let from = (offset as usize).min(model.len());
                let expected = &model[from..(from + length as usize).min(model.len())];
                assert!(data[..came] == *expected, "{}: read {came} at {offset}", at());
            }
            75..82 => {
                file.set_len(offset).unwrap();
                model.resize(offset as usize, 0);
            }
            82..86 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, flags, offset, end - offset).unwrap();
                let (from, to) = ((offset as usize).min(model.len()), (end as usize).min(model.len()));
                model[from..to].fill(0);
            }
            86..90 => {
                fallocate(&file, FallocateFlags::empty(), offset, end - offset).unwrap();
                model.resize(model.len().max(end as usize), 0);
            }
            90..93 => {
                file.sync_data().unwrap();
                assert!(fs::read(&there).unwrap() == model, "{}: after fsync", at());
            }
            93..96 => {
                syncfs(&file).unwrap();
                assert!(fs::read(&there).unwrap() == model, "{}: after syncfs", at());
            }
            96..98 => {
                drop(file);
                file = open();
                assert!(fs::read(&there).unwrap() == model, "{}: after close", at());
            }
            _ => assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "{}", at()),
        }
    }
    drop(file);
    mounted.unmount().unwrap();
    assert!(fs::read(&there).unwrap() == model, "seed {seed}: after unmounting");
}

fn seeds<F: FileSystem>(options: &MountOptions, serve: impl Fn(&Path) -> Arc<Session<F>>) {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(3_000);
    match number("ASHORE_FSX_SEED") {
        Some(seed) => play(options, serve, seed, operations),
        None => (1..=4).for_each(|seed| play(options, &serve, seed, operations)),
    }
}

/// As root mounts: syncs are passed on, and bring along what the kernel holds.
fn for_root() -> MountOptions {
    MountOptions::new().deliver_syncs(true).write_back_barrier(true)
}

fn directory(path: &Path, writeback: bool) -> Arc<Session<Passthrough>> {
    let share = Options { writeback, ..Options::new(path) };
    Session::new(Passthrough::new(share).unwrap(), Limits::default())
}

#[test]
fn random_operations_give_what_a_file_in_memory_gives() {
    seeds(&for_root(), |path| directory(path, false));
}

#[test]
fn random_operations_with_the_kernels_write_back_cache_do_too() {
    seeds(&for_root(), |path| directory(path, true));
}

/// By fusermount3, which nobody but root needs: this program runs the next test as nobody, in a mount namespace of its own with
/// a /dev/fuse that is open to everybody, as it is wherever udev runs.
#[test]
fn random_operations_of_who_is_not_root_do_too() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let script = r#"set -e
        mknod -m 666 "$NODE" c 10 229; mount --bind "$NODE" /dev/fuse; rm "$NODE"
        exec setpriv --reuid 65534 --regid 65534 --clear-groups "$PROGRAM" --exact --ignored played_as_nobody"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).env("NODE", folder.path().join("device"));
    let done = command.env("PROGRAM", std::env::current_exe().unwrap()).current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by the one before, as another user"]
fn played_as_nobody() {
    assert!(!rustix::process::geteuid().is_root());
    seeds(&MountOptions::new(), |path| directory(path, false));
}

/// With so little room that pages are evicted.
#[test]
fn random_operations_with_a_client_in_between_do_too() {
    let servers = Mutex::new(Vec::new());
    seeds(&for_root(), |path| {
        let server = InProcess::serve(directory(path, true), 2).unwrap();
        let client =
            Client::options().cache_bytes(fsx::PAGES as usize * 4096).connect(server.socket()).unwrap();
        servers.lock().unwrap().push(server);
        Session::new(Remote::new(client), Limits::default())
    });
}
