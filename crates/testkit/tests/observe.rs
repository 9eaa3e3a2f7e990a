//! What a server counts of the requests it serves, seen from a client over a socket.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, Client};
use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Limits, OperationCounts, Session};
use ashore_testkit::in_process::InProcess;
use ashore_wire::Opcode;
use tempfile::TempDir;

fn server(folder: &TempDir, delay: Duration) -> InProcess<Passthrough> {
    let passthrough = Passthrough::new(Options::new(folder.path())).unwrap();
    InProcess::serve_with_slow_writes(Session::new(passthrough, Limits::default()), delay).unwrap()
}

fn connect(server: &InProcess<Passthrough>) -> Client {
    Client::options().cache(CacheMode::WriteThrough).connect(server.socket()).unwrap()
}

fn counts(server: &InProcess<Passthrough>, opcode: Opcode) -> Option<OperationCounts> {
    server.metrics().operations().into_iter().find(|counts| counts.opcode == opcode)
}

#[test]
fn every_request_is_counted_once_with_its_bytes_and_its_failure() {
    let folder = TempDir::new().unwrap();
    let server = server(&folder, Duration::ZERO);
    let client = connect(&server);
    let file = client.create("/file").unwrap();
    file.write_at(&[7; 10_000], 0).unwrap();
    assert!(client.open("/nowhere").is_err());

    let writes = counts(&server, Opcode::Write).unwrap();
    assert_eq!((writes.bytes_in, writes.failed, writes.in_flight()), (10_000, 0, 0));
    assert_eq!(writes.times.count(), writes.done);
    assert!(writes.times.sum > Duration::ZERO);
    assert_eq!(counts(&server, Opcode::Create).unwrap().done, 1);
    assert!(counts(&server, Opcode::Lookup).unwrap().failed >= 1, "a name that is not there is an error");
    assert!(counts(&server, Opcode::Symlink).is_none(), "nobody asked for one");
}

#[test]
fn bytes_are_unsynced_until_a_sync_that_came_after_them_succeeds() {
    let folder = TempDir::new().unwrap();
    let server = server(&folder, Duration::ZERO);
    let client = connect(&server);
    let file = client.create("/file").unwrap();
    file.write_at(&[7; 5000], 0).unwrap();
    assert_eq!(server.metrics().unsynced_bytes(), 5000);
    client.sync().unwrap();
    assert_eq!(server.metrics().unsynced_bytes(), 0);
    file.write_at(&[7; 3000], 0).unwrap();
    assert_eq!(server.metrics().unsynced_bytes(), 3000);
}

#[test]
fn a_sync_counts_what_it_waited_for_and_what_the_host_took() {
    let folder = TempDir::new().unwrap();
    let server = server(&folder, Duration::ZERO);
    let client = connect(&server);
    client.create("/file").unwrap().write_at(&[7; 5000], 0).unwrap();
    assert_eq!(server.session().sync_counts().syncs, 0);
    for round in 1..=3 {
        client.sync().unwrap();
        let counts = server.session().sync_counts();
        assert_eq!((counts.syncs, counts.sharing[0]), (round, round), "each alone in its round");
        assert_eq!((counts.barrier_waits.count(), counts.host_syncs.count()), (round, round));
        assert!(counts.host_syncs.sum > Duration::ZERO);
    }
}

#[test]
fn a_request_that_is_being_done_is_in_flight() {
    let folder = TempDir::new().unwrap();
    let server = server(&folder, Duration::from_millis(300));
    let client = connect(&server);
    let file = client.create("/file").unwrap();
    scope(|scope| {
        scope.spawn(|| file.write_at(b"slow", 0).unwrap());
        let start = Instant::now();
        while counts(&server, Opcode::Write).is_none_or(|writes| writes.in_flight() == 0) {
            assert!(start.elapsed() < Duration::from_secs(10), "the WRITE was never seen in flight");
            sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(counts(&server, Opcode::Write).unwrap().in_flight(), 0);
}
