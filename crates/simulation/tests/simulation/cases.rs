//! The server's cases S1 to S12 under many schedules, by a client that waits for nothing. S9, an error that another process
//! was told first, is a matter of `passthrough`, which is not simulated; S7, a crash after the answer, is in all of them: what
//! they look at is what would be found after a crash at the moment of the answer.

use std::sync::Arc;
use std::time::Duration;

use ashore_barrier::model::{Instant, thread::sleep};
use ashore_client::{Client, Options};
use ashore_server::{Limits, Session};
use ashore_simulation::host::{Cell, HIDDEN, SUBMOUNT, SimFs, Temper};
use ashore_simulation::link::SimLink;
use ashore_simulation::raw::RawClient;
use ashore_simulation::run::each;
use ashore_simulation::schedule::Dice;
use ashore_wire::encode::RequestHead;
use ashore_wire::{Errno, NodeId, Opcode};

const ROOT: u64 = 1;

/// `ASHORE_SEED`, or a thousand.
fn seeds() -> std::ops::Range<u64> {
    match std::env::var("ASHORE_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => 0..1000,
    }
}

/// Runs a case under each seed, with one to four queues.
fn case(name: &str, temper: Temper, body: impl Fn(&RawClient, &SimFs, &mut Dice) + Send + Sync + 'static) {
    case_over(1, name, temper, body);
}

/// Runs a case under each seed, with so many queues at least, and up to three more.
fn case_over(
    queues: usize,
    name: &str,
    temper: Temper,
    body: impl Fn(&RawClient, &SimFs, &mut Dice) + Send + Sync + 'static,
) {
    each(seeds(), name, move |seed| {
        let mut dice = Dice::new(seed ^ 0xca5e);
        let host = SimFs::new(seed, temper);
        let limits = Limits { early_sync_grace: Duration::ZERO, ..Limits::default() };
        let session = Session::new(host.clone(), limits);
        let client = RawClient::connect(&session, queues + dice.below(4) as usize);
        body(&client, &host, &mut dice);
        client.close();
        _ = session.end();
        drop(Arc::try_unwrap(session).ok());
    });
}

fn syncs(host: &SimFs) -> [u64; 3] {
    host.host(|host| host.syncs)
}

#[test]
fn s01_what_was_answered_is_stable_when_the_sync_is_and_each_host_file_system_is_synced_once() {
    case("s01", Temper::default(), |client, host, _| {
        let file = client.create(ROOT, "file");
        client.wait(client.write(file, 0, 77)).body.unwrap();
        let answer = client.wait(client.syncfs(ROOT));
        assert!(answer.body.unwrap().is_empty());
        assert_eq!(answer.durable.get(&Cell::Page(file.0, 0)), Some(&77));
        assert!(answer.durable.contains_key(&Cell::Name(ROOT, b"file".to_vec())));
        assert_eq!(syncs(host), [1, 0, 1]);
    });
}

#[test]
fn s02_the_error_of_a_sync_is_its_answer() {
    case("s02", Temper { hardening_fails: 1, ..Temper::default() }, |client, _, _| {
        client.create(ROOT, "file");
        assert_eq!(client.wait(client.syncfs(ROOT)).body, Err(Errno::EIO));
    });
}

#[test]
fn s03_and_s10_a_sync_covers_all_that_was_made_available_before_it() {
    case("s10", Temper::default(), |client, _, dice| {
        let file = client.create(ROOT, "file");
        let writes: Vec<_> =
            (0..1 + dice.below(8)).map(|page| client.write(file, page, 100 + page)).collect();
        let allocated = client.allocate(file, 20);
        let sync = client.syncfs(ROOT);
        let later = client.write(file, 30, 200);
        let answer = client.wait(sync);
        answer.body.unwrap();
        for page in 0..writes.len() as u64 {
            assert_eq!(answer.durable.get(&Cell::Page(file.0, page)), Some(&(100 + page)), "page {page}");
        }
        assert!(answer.durable.contains_key(&Cell::Size(file.0)), "the FALLOCATE");
        for sent in writes.into_iter().chain([allocated, later]) {
            client.wait(sent).body.unwrap();
        }
    });
}

#[test]
fn s04_a_sync_of_a_mount_that_is_announced_covers_it_and_one_of_the_root_all_others() {
    case("s04", Temper::default(), |client, host, _| {
        let files = [ROOT, SUBMOUNT, HIDDEN].map(|parent| client.create(parent, "file").0);
        let name = |parent| Cell::Name(parent, b"file".to_vec());
        let durable = client.wait(client.syncfs(ROOT)).durable;
        assert!(durable.contains_key(&name(ROOT)) && durable.contains_key(&name(HIDDEN)), "{files:?}");
        assert_eq!(syncs(host), [1, 0, 1]);
        let durable = client.wait(client.syncfs(SUBMOUNT)).durable;
        assert!(durable.contains_key(&name(SUBMOUNT)));
        assert_eq!(syncs(host), [1, 1, 1]);
    });
}

#[test]
fn s05_a_node_that_is_not_there_is_an_error() {
    case("s05", Temper::default(), |client, host, _| {
        assert_eq!(client.wait(client.syncfs(12345)).body, Err(Errno::ESTALE));
        assert_eq!(syncs(host), [0; 3]);
    });
}

#[test]
fn s06_a_longer_argument_that_is_not_zero_is_accepted() {
    case("s06", Temper::default(), |client, _, _| {
        let head = RequestHead::new(Opcode::Syncfs, NodeId(ROOT)).with(&[7u64, 7]);
        assert!(client.call(head, &[]).body.is_ok());
    });
}

#[test]
fn s08_destroy_is_a_sync() {
    case("s08", Temper::default(), |client, _, _| {
        let file = client.create(ROOT, "file");
        let write = client.write(file, 0, 77);
        let answer = client.call(RequestHead::new(Opcode::Destroy, NodeId(0)), &[]);
        answer.body.unwrap();
        assert_eq!(answer.durable.get(&Cell::Page(file.0, 0)), Some(&77), "made available before it");
        client.wait(write).body.unwrap();
    });
}

#[test]
fn s11_a_sync_without_room_for_its_answer_breaks_nothing() {
    case("s11", Temper::default(), |client, _, _| {
        client.send_without_room(RequestHead::new(Opcode::Syncfs, NodeId(ROOT)).with(&[0u64]));
        assert!(client.wait(client.syncfs(ROOT)).body.is_ok());
    });
}

#[test]
fn s12_of_many_syncs_at_once_each_covers_what_came_before_it() {
    const SYNCS: u64 = 24;
    case("s12", Temper::default(), |client, host, _| {
        let file = client.create(ROOT, "file");
        let sent: Vec<_> = (0..SYNCS)
            .map(|number| (client.write(file, number, 100 + number), client.syncfs(ROOT)))
            .collect();
        for (number, (write, sync)) in (0..).zip(sent) {
            let answer = client.wait(sync);
            answer.body.unwrap();
            for page in 0..=number {
                let durable = answer.durable.get(&Cell::Page(file.0, page));
                assert_eq!(durable, Some(&(100 + page)), "page {page} after sync {number}");
            }
            client.wait(write).body.unwrap();
        }
        assert!(syncs(host)[0] <= SYNCS);
    });
}

/// The bound of the promise: what comes later is not waited for, though it never ends. Method: time passes only when
/// everybody waits, so after a sleep all that was sent has been taken; but for what is behind the earlier write in its queue,
/// so the sync is in another.
#[test]
fn a_sync_ends_although_a_write_that_came_later_does_not() {
    const EARLIER: u64 = 100;
    const LATER: u64 = 200;
    case_over(2, "later", Temper::default(), |client, host, _| {
        let file = client.create(ROOT, "file");
        host.host(|host| host.frozen.extend([EARLIER, LATER]));
        let earlier = client.write(file, 0, EARLIER);
        let sync = client.syncfs(ROOT);
        sleep(Duration::from_secs(1));
        let later = client.write(file, 1, LATER);
        sleep(Duration::from_secs(1));
        host.host(|host| host.frozen.remove(&EARLIER));
        let answer = client.wait(sync);
        answer.body.unwrap();
        assert_eq!(answer.durable.get(&Cell::Page(file.0, 0)), Some(&EARLIER));
        host.host(|host| host.frozen.clear());
        for sent in [earlier, later] {
            client.wait(sent).body.unwrap();
        }
    });
}

/// Method: time passes only when everybody waits. A writer whose pages are sent only at the next look of the client's thread behind
/// the scenes lets it pass.
#[test]
fn a_writer_that_is_held_up_goes_on_as_soon_as_the_server_has_answered() {
    const FILE_PAGES: u64 = 2;
    each(seeds(), "held up", |seed| {
        let host = SimFs::new(seed, Temper::default());
        let limits = Limits { early_sync_grace: Duration::ZERO, ..Limits::default() };
        let session = Session::new(host, limits);
        // One dirty page is enough to be written back, and two hold a writer up.
        let options =
            Options { background_percent: 1, dirty_percent: 1, request_timeout: None, ..Options::default() };
        let client = Client::new(SimLink::new(Arc::clone(&session), 2), options).unwrap();
        let file = client.create("file").unwrap();
        let begun = Instant::now();
        for write in 0..32 {
            file.write_all_at(&[1; 4096], write % FILE_PAGES * 4096).unwrap();
        }
        assert_eq!(Instant::now() - begun, Duration::ZERO);
        drop(file);
        client.unmount().unwrap();
        _ = session.end();
    });
}
