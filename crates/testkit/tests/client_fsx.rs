//! Random operations on a file through the client, each compared with a model in plain memory.
//!
//! The server answers in shuffled order, the cache is smaller than the file, another thread syncs all the time and
//! one starts writeback. `ASHORE_FSX_OPERATIONS` sets how many operations a seed has (100,000 in CI),
//! `ASHORE_FSX_SEED` plays one seed only.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use ashore_client::toy::Toy;
use ashore_client::{CacheMode, Options};
use ashore_passthrough::Passthrough;
use ashore_server::{Limits, Session};
use ashore_testkit::fsx::{PAGES, Random, compare, number, options};
use ashore_testkit::scripted::{Scripted, all, served};
use ashore_wire::Opcode;
use ashore_wire::flags::OpenReplyFlags;

fn play(cache: CacheMode, seed: u64, operations: u64) {
    let mut toy = Toy::default();
    if seed.is_multiple_of(2) {
        toy.open_flags = OpenReplyFlags::empty();
        toy.valid_seconds = 0;
    }
    let server = Scripted::new(toy, PAGES);
    server.shuffle(seed);
    if seed.is_multiple_of(3) {
        server.delay(all(Opcode::Write), Duration::from_micros(100));
    }
    if seed % 3 == 1 {
        server.shorten(all(Opcode::Write), 30_000);
    }
    let client = server.connect(options(cache));
    compare(cache, seed, operations, &client, &|| server.content("f"));
}

fn seeds(cache: CacheMode) {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000);
    match number("ASHORE_FSX_SEED") {
        Some(seed) => play(cache, seed, operations),
        None => (1..=4).for_each(|seed| play(cache, seed, operations)),
    }
}

/// Our own server on a real directory, two queues whose requests overtake each other.
#[test]
fn random_operations_on_our_server_and_a_host_directory() {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000) / 5;
    for cache in [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack] {
        let directory = tempfile::tempdir().unwrap();
        let mut share = ashore_passthrough::Options::new(directory.path());
        share.writeback = true;
        let share = Passthrough::new(share).unwrap();
        let session = Session::new(share, Limits::default());
        let client = served::connect(&session, 2, PAGES, options(cache));
        assert_eq!(client.cache_mode(), cache);
        let path = directory.path().join("f");
        compare(cache, 77, operations, &client, &|| std::fs::read(&path).unwrap());
    }
}

#[test]
fn random_operations_without_a_cache() {
    seeds(CacheMode::None);
}

#[test]
fn random_operations_through_a_write_through_cache() {
    seeds(CacheMode::WriteThrough);
}

#[test]
fn random_operations_through_a_write_back_cache() {
    seeds(CacheMode::WriteBack);
}

/// Aim: what many threads write to places of their own is all there. Method: each has its own records in one file,
/// rewrites them at random and reads them back, while others sync.
#[test]
fn many_threads_in_one_file_keep_their_own_records() {
    for cache in [CacheMode::WriteThrough, CacheMode::WriteBack] {
        let server = Scripted::new(Toy::default(), PAGES);
        server.shuffle(7);
        let client = server.connect(Options { cache, ..Options::default() });
        let file = Arc::new(client.create("f").unwrap());
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (file, client) = (Arc::clone(&file), client.clone());
                scope.spawn(move || {
                    let mut random = Random::new(thread + 99);
                    let mut mine = [0u8; 64];
                    for round in 0..3000 {
                        let record = random.below(64);
                        let value = random.roll() as u8 | 1;
                        file.write_all_at(&[value; 3000], (record * 4 + thread) * 3000).unwrap();
                        mine[record as usize] = value;
                        let record = random.below(64);
                        let mut back = [0; 3000];
                        let read = file.read_at(&mut back, (record * 4 + thread) * 3000).unwrap();
                        assert!(back[..read].iter().all(|byte| *byte == mine[record as usize]));
                        if round % 100 == 0 {
                            client.sync().unwrap();
                        }
                    }
                });
            }
        });
    }
}
