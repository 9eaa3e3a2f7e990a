//! What a program may expect of a file system, held against every assembly but the guest, which has
//! `guest_conformance`. The list is [`ashore_testkit::conformance`].
//!
//! Mounts take root and `/dev/fuse`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::path::Path;
use std::sync::Arc;

use ashore_client::{CacheMode, Client, Options as ClientOptions};
use ashore_dev_fuse::MountOptions;
use ashore_passthrough::{Options, Passthrough};
use ashore_remote::Remote;
use ashore_server::{FileSystem, Limits, Session};
use ashore_testkit::conformance::{Assembly, Directory, ThroughClient, tree};
use ashore_testkit::in_process::InProcess;
use ashore_testkit::memory_fs::MemoryFs;
use ashore_testkit::mounted::Mounted;
use ashore_testkit::scripted::served;
use ashore_testkit::share::{SharedDirectory, Whose};
use tempfile::TempDir;

const CACHE_MODES: [CacheMode; 3] = [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack];
/// Pages of the clients' caches: fewer than the largest file of the list has.
const PAGES: u32 = 2048;
const QUEUES: usize = 2;

/// Extended attributes of users need a file system that has them, which tmpfs is not everywhere.
fn host() -> TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn share(path: &Path, writeback: bool) -> Arc<Session<Passthrough>> {
    // So few descriptors that inodes are found again by handle.
    let options = Options { writeback, xattr: true, descriptor_bound: 4, ..Options::new(path) };
    Session::new(Passthrough::new(options).unwrap(), Limits::default())
}

fn without_a_transport<F: FileSystem>(session: &Arc<Session<F>>, cache: CacheMode) -> ThroughClient {
    let client = served::connect(session, QUEUES, PAGES, ClientOptions { cache, ..ClientOptions::default() });
    assert_eq!(client.cache_mode(), cache);
    ThroughClient::new(client)
}

/// The list is true of the kernel's own file system.
#[test]
fn a_directory_of_the_host() {
    let host = host();
    Assembly::new(Directory::new(host.path()), None).play().assert_conforms();
}

#[test]
fn a_file_system_in_memory_behind_server_and_client() {
    for cache in CACHE_MODES {
        let session = Session::new(MemoryFs::default(), Limits::default());
        Assembly::new(without_a_transport(&session, cache), None).play().assert_conforms();
    }
}

#[test]
fn a_host_directory_behind_server_and_client_without_a_transport() {
    for cache in CACHE_MODES {
        let host = host();
        let session = share(host.path(), true);
        let there = Directory::new(host.path());
        Assembly::new(without_a_transport(&session, cache), Some(there)).play().assert_conforms();
    }
}

fn over_a_socket(whose: Whose) {
    for cache in CACHE_MODES {
        let shared = SharedDirectory::new(whose);
        let mounted =
            shared.mount(Client::options().cache(cache).cache_bytes(u64::from(PAGES) as usize * 4096));
        let here = ThroughClient::new((*mounted).clone());
        Assembly::new(here, Some(Directory::new(shared.path()))).play().assert_conforms();
        mounted.leave();
    }
}

#[test]
fn our_server_over_a_socket() {
    over_a_socket(Whose::Ashore);
}

mod with_virtiofsd {
    #[test]
    fn virtiofsd_over_a_socket() {
        super::over_a_socket(super::Whose::Virtiofsd);
    }
}

/// As root mounts: syncs are passed on, and bring along what the kernel holds.
fn for_root() -> MountOptions {
    MountOptions::new().deliver_syncs(true).write_back_barrier(true)
}

fn mounted<F: FileSystem>(session: Arc<Session<F>>, host: &Path) {
    let mounted = Mounted::new(session, &for_root(), QUEUES);
    let assembly = Assembly::new(Directory::new(mounted.path()), Some(Directory::new(host)));
    assembly.play().assert_conforms();
    mounted.unmount().unwrap();
}

#[test]
fn a_mount() {
    let host = host();
    mounted(share(host.path(), false), host.path());
}

#[test]
fn a_mount_with_the_kernels_write_back_cache() {
    let host = host();
    mounted(share(host.path(), true), host.path());
}

#[test]
fn a_mount_of_a_server_behind_a_socket() {
    let host = host();
    let server = InProcess::serve(share(host.path(), true), 2).unwrap();
    let client = Client::options().cache_bytes(PAGES as usize * 4096).connect(server.socket()).unwrap();
    mounted(Session::new(Remote::new(client), Limits::default()), host.path());
}

/// What the list leaves behind is the same tree, name by name and byte by byte, wherever it was played.
#[test]
fn the_same_tree_is_left_on_a_host_directory_behind_the_server_and_on_a_plain_one() {
    let (plain, shared) = (host(), host());
    let reference = Directory::new(plain.path());
    Assembly::new(Directory::new(plain.path()), None).play().assert_conforms();
    let session = share(shared.path(), true);
    let here = without_a_transport(&session, CacheMode::WriteBack);
    Assembly::new(here, None).play().assert_conforms();
    let (reference, left) = (tree(&reference).unwrap(), tree(&Directory::new(shared.path())).unwrap());
    assert!(reference.lines().count() > 100, "{reference}");
    assert_eq!(reference, left);
}
