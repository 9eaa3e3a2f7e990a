//! What the client keeps in its cache, and when it sends what it has there: seen by the requests that a scripted server gets.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::sync::Arc;
use std::time::Duration;

use ashore_client::toy::Toy;
use ashore_client::{Client, File, OpenOptions, Options};
use ashore_testkit::scripted::Scripted;
use ashore_wire::Opcode;

const PAGE: usize = 4096;
const CACHE_PAGES: usize = 1024;
const PIECE: usize = 64 * PAGE;
const SMALL: usize = CACHE_PAGES / 8 * PAGE;
const LARGE: usize = CACHE_PAGES * 4 * PAGE;

/// A client that sends nothing only because it is old.
fn start() -> (Arc<Scripted>, Client) {
    let server = Scripted::new(Toy::default(), CACHE_PAGES as u32);
    let client = server.connect(Options { writeback_age: Duration::from_secs(3600), ..Options::default() });
    (server, client)
}

fn made(client: &Client, name: &str) -> File {
    client.open_with(name, &OpenOptions::new().read(true).write(true).create(true)).unwrap()
}

fn write_in_order(file: &File, length: usize) {
    (0..length).step_by(PIECE).for_each(|offset| file.write_all_at(&[3; PIECE], offset as u64).unwrap());
}

fn read_in_order(file: &File, length: usize) {
    let mut buffer = [0; PIECE];
    (0..length).step_by(PIECE).for_each(|offset| file.read_exact_at(&mut buffer, offset as u64).unwrap());
}

/// READs that it takes to read the small file.
fn reads_for(server: &Scripted, small: &File) -> usize {
    server.forget_journal();
    read_in_order(small, SMALL);
    server.journal().arrived(Opcode::Read)
}

#[test]
fn a_file_larger_than_the_cache_that_is_read_in_order_leaves_the_rest_of_it_alone() {
    let (server, client) = start();
    let (small, large) = (made(&client, "small"), made(&client, "large"));
    large.set_len(LARGE as u64).unwrap();
    write_in_order(&small, SMALL);
    client.sync().unwrap();
    server.forget_journal();
    read_in_order(&large, LARGE);
    assert!(server.journal().arrived(Opcode::Read) > 0, "the server has a file of that size");
    assert_eq!(reads_for(&server, &small), 0);
}

#[test]
fn a_file_larger_than_the_cache_that_is_written_in_order_leaves_the_rest_of_it_alone() {
    let (server, client) = start();
    let (small, large) = (made(&client, "small"), made(&client, "large"));
    large.set_len(LARGE as u64).unwrap();
    write_in_order(&small, SMALL);
    client.sync().unwrap();
    write_in_order(&large, LARGE);
    assert_eq!(reads_for(&server, &small), 0);
    client.sync().unwrap();
    assert_eq!(server.content("large"), vec![3; LARGE]);
}

#[test]
fn what_is_written_over_in_the_cache_is_not_sent_until_it_is_old_too_much_or_synced() {
    let (server, client) = start();
    let file = made(&client, "file");
    let length = CACHE_PAGES / 16 * PAGE;
    write_in_order(&file, length);
    client.sync().unwrap();
    server.forget_journal();
    (0..8).for_each(|_| write_in_order(&file, length));
    assert_eq!(server.journal().arrived(Opcode::Write), 0);
    client.sync().unwrap();
    assert!(server.journal().arrived(Opcode::Write) > 0);
}
