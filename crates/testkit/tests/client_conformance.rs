//! What a client's sync has to do, case by case. The numbers are those of the list of conformance cases for clients;
//! the Linux kernel (since 6.18.21) fails 3, 4 and 5.
//!
//! Each case plays against a scripted server: it holds or fails chosen answers, and its journal shows what came before
//! what. Which mistake in the client each case catches stands beside it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, Cancel, Client, File, OpenOptions, Options, SyncOptions, SyncUnsupported};
use ashore_testkit::scripted::{Scripted, What, all};
use ashore_wire::{Errno, Opcode};

const PAGE: u64 = 4096;
/// Long enough for something that should not happen to happen.
const A_MOMENT: Duration = Duration::from_millis(80);

/// Nothing is written back unless a case asks for it.
fn quiet() -> Options {
    Options { writeback_age: Duration::from_secs(3600), ..Options::default() }
}

fn world() -> (Arc<Scripted>, Client) {
    Scripted::start(quiet())
}

/// A file that the server has as an empty one, and nothing in the journal.
fn file(server: &Scripted, client: &Client, name: &str) -> File {
    let file = client.create(name).unwrap();
    server.forget_journal();
    file
}

fn syncing(client: &Client) -> JoinHandle<io::Result<()>> {
    let client = client.clone();
    thread::spawn(move || client.sync())
}

/// The sync is still waiting after a moment.
fn assert_waits(sync: &JoinHandle<io::Result<()>>) {
    thread::sleep(A_MOMENT);
    assert!(!sync.is_finished(), "it should have waited");
}

fn errno(result: io::Result<()>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0)
}

/// Catches: SYNCFS sent before the data, or without it.
#[test]
fn c01_a_dirty_file_is_written_and_answered_before_syncfs_is_sent() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    f.write_all_at(b"data", 0).unwrap();
    client.sync().unwrap();
    server.journal().assert_all_before_syncfs(Opcode::Write, None);
    assert_eq!(server.journal().answered(Opcode::Syncfs), 1);
    assert_eq!(server.content("f"), b"data");
}

/// Catches: a sync that does not wait for the answers.
#[test]
fn c02_sync_takes_as_long_as_the_slowest_write() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    server.delay(all(Opcode::Write), Duration::from_millis(500));
    f.write_all_at(b"data", 0).unwrap();
    let start = Instant::now();
    client.sync().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    server.journal().assert_all_before_syncfs(Opcode::Write, None);
}

/// Catches: a page that is written again while its write is in flight, and taken for clean at the answer.
#[test]
fn c03_a_page_rewritten_in_flight_is_written_again_before_syncfs() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    let hold = server.hold(all(Opcode::Write).next(1));
    f.write_all_at(b"first", 0).unwrap();
    client.start_writeback();
    server.wait_for(Opcode::Write, 1);
    server.watch("f");
    f.write_all_at(b"again", 0).unwrap();
    let sync = syncing(&client);
    assert_waits(&sync);
    assert_eq!(
        server.journal().arrived(Opcode::Write),
        1,
        "two writes of one page could overtake each other"
    );
    hold.release();
    sync.join().unwrap().unwrap();
    assert_eq!(server.journal().answered(Opcode::Write), 2);
    server.journal().assert_all_before_syncfs(Opcode::Write, None);
    assert_eq!(server.stable(), b"again");
}

/// Catches: an inode skipped because too many writes of another one are in flight.
#[test]
fn c04_a_file_behind_forty_writes_of_another_is_written_before_syncfs() {
    let (server, client) = Scripted::start(Options { max_writebacks: 4, ..quiet() });
    let (f, g) = (file(&server, &client, "f"), file(&server, &client, "g"));
    server.delay(all(Opcode::Write).of(server.node("f")), Duration::from_millis(20));
    (0..40).for_each(|n| f.write_all_at(b"x", n * 2 * PAGE).unwrap());
    client.start_writeback();
    g.write_all_at(b"y", 0).unwrap();
    client.sync().unwrap();
    server.journal().assert_all_before_syncfs(Opcode::Write, Some(server.node("g")));
    server.journal().assert_all_before_syncfs(Opcode::Write, Some(server.node("f")));
    assert_eq!(server.content("g"), b"y");
}

/// Catches: a flush that is not waited for because it is stuck in another file's times.
#[test]
fn c05_a_slow_setattr_of_one_file_lets_no_write_of_another_be_left_out() {
    let (server, client) = world();
    let (f, g) = (file(&server, &client, "f"), file(&server, &client, "g"));
    server.delay(all(Opcode::Setattr).of(server.node("f")), Duration::from_millis(300));
    f.write_all_at(b"x", 0).unwrap();
    g.write_all_at(b"y", 0).unwrap();
    client.sync().unwrap();
    server.journal().assert_all_before_syncfs(Opcode::Write, Some(server.node("g")));
    server.journal().assert_all_before_syncfs(Opcode::Setattr, Some(server.node("f")));
}

/// Catches: a sync that waits until nothing at all is in flight, or flushes until nothing is dirty.
#[test]
fn c06_writers_that_go_on_for_ever_do_not_hold_up_a_sync() {
    let (server, client) = world();
    let (f, g) = (file(&server, &client, "f"), file(&server, &client, "g"));
    // A write that begins after the cut is never answered, and the sync returns all the same.
    let old = server.hold(all(Opcode::Write).of(server.node("f")));
    f.write_all_at(b"old", 0).unwrap();
    let sync = syncing(&client);
    server.wait_for(Opcode::Write, 1);
    thread::sleep(A_MOMENT);
    let newer = server.hold(all(Opcode::Write).of(server.node("g")));
    g.write_all_at(b"new", 0).unwrap();
    client.start_writeback();
    server.wait_for(Opcode::Write, 2);
    old.release();
    sync.join().unwrap().unwrap();
    assert_eq!(server.journal().answered(Opcode::Write), 1);
    newer.release();

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                g.write_all_at(&[7; 9000], n % 100 * 8192).unwrap();
            }
        });
        let start = Instant::now();
        (0..20).for_each(|_| client.sync().unwrap());
        stop.store(true, Ordering::Relaxed);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    });
}

/// Catches: a later sync that overtakes an earlier one's writes.
#[test]
fn c07_a_second_sync_waits_for_the_writes_of_the_first() {
    let (server, client) = world();
    let (f, g) = (file(&server, &client, "f"), file(&server, &client, "g"));
    let hold = server.hold(all(Opcode::Write).of(server.node("f")));
    f.write_all_at(b"slow", 0).unwrap();
    let a = syncing(&client);
    server.wait_for(Opcode::Write, 1);
    g.write_all_at(b"fast", 0).unwrap();
    let b = syncing(&client);
    assert_waits(&a);
    assert_waits(&b);
    assert_eq!(server.journal().arrived(Opcode::Syncfs), 0);
    hold.release();
    a.join().unwrap().unwrap();
    b.join().unwrap().unwrap();
    let journal = server.journal();
    let answered = journal.position(|entry| entry.opcode == Opcode::Write && entry.what == What::Answered(0));
    assert!(answered < journal.position(|entry| entry.opcode == Opcode::Syncfs));
    assert_eq!(server.content("g"), b"fast");
}

/// Catches: an error swallowed, told twice, or told to one handle only.
#[test]
fn c08_a_failed_write_is_told_once_to_each_handle() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    let (other, other_f) = (client.clone(), client.open("f").unwrap());
    server.fail(all(Opcode::Write).next(1), Errno::EIO);
    f.write_all_at(b"lost", 0).unwrap();
    assert_eq!(errno(client.sync()), 5);
    assert_eq!(server.journal().arrived(Opcode::Syncfs), 1, "SYNCFS is sent all the same");
    assert_eq!(errno(client.sync()), 0);
    assert_eq!(server.journal().arrived(Opcode::Syncfs), 2);
    assert_eq!(errno(client.clone().sync()), 0, "it was made after the error had been told");
    assert_eq!(errno(other.sync()), 5, "it was there before");
    assert_eq!(errno(other.sync()), 0);
    assert_eq!((errno(f.sync_all()), errno(f.sync_all())), (5, 0));
    assert_eq!((errno(other_f.sync_all()), errno(other_f.sync_all())), (5, 0));
    f.close().unwrap();

    // Two syncs that run at the same time are both told.
    let g = file(&server, &client, "g");
    server.fail(all(Opcode::Write).next(1), Errno::ENOSPC);
    let hold = server.hold(all(Opcode::Write));
    g.write_all_at(b"lost", 0).unwrap();
    let shared = Arc::new(client.clone());
    let both: Vec<_> = (0..2)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.sync())
        })
        .collect();
    server.wait_for(Opcode::Write, 1);
    assert_waits(&both[0]);
    hold.release();
    assert!(both.into_iter().all(|sync| errno(sync.join().unwrap()) == 28));
}

/// Catches: ENOSYS taken for success, SYNCFS tried again and again, the wait given up with it.
#[test]
fn c09_a_server_without_syncfs_is_reported_and_still_waited_for() {
    for (unsupported, works) in [(SyncUnsupported::Error, false), (SyncUnsupported::Success, true)] {
        let (server, client) = Scripted::start(Options { sync_unsupported: unsupported, ..quiet() });
        let f = file(&server, &client, "f");
        server.fail(all(Opcode::Syncfs), Errno::ENOSYS);
        let first = client.sync();
        assert_eq!(first.is_ok(), works, "{first:?}");
        if let Err(error) = first {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().contains("SYNCFS"), "{error}");
        }
        let hold = server.hold(all(Opcode::Write));
        f.write_all_at(b"data", 0).unwrap();
        let second = syncing(&client);
        server.wait_for(Opcode::Write, 1);
        assert_waits(&second);
        hold.release();
        assert_eq!(second.join().unwrap().is_ok(), works);
        assert_eq!(server.journal().arrived(Opcode::Syncfs), 1, "it is known after the first time");
    }
}

/// Catches: errors of SYNCFS that are swallowed, or that end the trying.
#[test]
fn c10_errors_of_syncfs_are_returned_as_they_are_and_the_next_sync_asks_again() {
    let (server, client) = world();
    for (n, error) in [Errno::EIO, Errno::ENOSPC, Errno::ENOMEM].into_iter().enumerate() {
        server.fail(all(Opcode::Syncfs).next(1), error);
        assert_eq!(errno(client.sync()), error.raw());
        assert_eq!(errno(client.sync()), 0);
        assert_eq!(server.journal().arrived(Opcode::Syncfs), 2 * (n + 1));
    }
}

/// Catches: success, or no answer at all, from a server that died.
#[test]
fn c11_a_server_that_dies_is_an_error_in_finite_time() {
    for (held, expected) in [(Opcode::Write, 107), (Opcode::Syncfs, 103)] {
        let (server, client) = world();
        let f = file(&server, &client, "f");
        let _hold = server.hold(all(held));
        f.write_all_at(b"data", 0).unwrap();
        let sync = syncing(&client);
        server.wait_for(held, 1);
        assert_waits(&sync);
        server.kill();
        assert_eq!(errno(sync.join().unwrap()), expected);
        assert_eq!(errno(client.sync()), 107);
        assert_ne!(errno(f.sync_all()), 0);
        assert_ne!(errno(f.write_all_at(b"more", 1 << 30).and_then(|()| f.sync_all())), 0);
    }
    // A server that answers nothing any more is given up.
    let patience = Options { request_timeout: Some(Duration::from_millis(200)), ..quiet() };
    let (server, client) = Scripted::start(patience);
    let _hold = server.hold(all(Opcode::Syncfs));
    assert_eq!(errno(client.sync()), 103);
}

/// Catches: a SYNCFS left out when nothing is dirty; buckets or requests left over.
#[test]
fn c12_with_nothing_to_write_syncfs_is_sent_and_nothing_is_left_over() {
    let (server, client) = world();
    (0..200).for_each(|_| client.sync().unwrap());
    let journal = server.journal();
    assert_eq!((journal.arrived(Opcode::Syncfs), journal.answered(Opcode::Syncfs)), (200, 200));
    assert_eq!(journal.arrived(Opcode::Write), 0);
}

/// Catches: a write that is cut away by a truncate and never leaves the barrier.
#[test]
fn c13_writes_cut_away_by_a_truncate_do_not_hang_a_sync() {
    let (server, client) = Scripted::start(Options { max_writebacks: 1, ..quiet() });
    let f = Arc::new(file(&server, &client, "f"));
    let hold = server.hold(all(Opcode::Write).next(1));
    (0..10).for_each(|n| f.write_all_at(b"x", n * 2 * PAGE).unwrap());
    let writeback = {
        let client = client.clone();
        thread::spawn(move || client.start_writeback())
    };
    server.wait_for(Opcode::Write, 1);
    let cut = {
        let f = Arc::clone(&f);
        thread::spawn(move || f.set_len(0))
    };
    let sync = syncing(&client);
    assert_waits(&sync);
    assert_eq!(server.journal().arrived(Opcode::Setattr), 0, "a truncate waits for the writes in flight");
    hold.release();
    cut.join().unwrap().unwrap();
    writeback.join().unwrap();
    sync.join().unwrap().unwrap();
    client.sync().unwrap();
    assert_eq!(f.metadata().unwrap().len(), 0);
    assert!(server.content("f").is_empty(), "{:?}", server.journal());
}

/// Catches: a SYNCFS for those who only want writing to begin.
#[test]
fn c14_starting_writeback_sends_no_syncfs() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    let _hold = server.hold(all(Opcode::Write));
    f.write_all_at(b"data", 0).unwrap();
    client.start_writeback();
    server.wait_for(Opcode::Write, 1);
    thread::sleep(A_MOMENT);
    assert_eq!(server.journal().arrived(Opcode::Syncfs), 0);
}

/// Catches: requests from a mount that must not change anything, or is gone.
#[test]
fn c15_a_read_only_or_unmounted_file_system_is_synced_without_a_request() {
    let (server, client) = Scripted::start(Options { read_only: true, ..quiet() });
    server.forget_journal();
    client.sync().unwrap();
    assert!(server.journal().entries().is_empty());
    assert_eq!(client.create("f").unwrap_err().raw_os_error(), Some(30));

    let (server, client) = world();
    let left = client.clone();
    client.unmount().unwrap();
    let journal = server.journal();
    assert_eq!(
        (journal.arrived(Opcode::Syncfs), journal.arrived(Opcode::Destroy)),
        (1, 1),
        "leaving is a sync too"
    );
    left.sync().unwrap();
    assert_eq!(server.journal().entries().len(), journal.entries().len());
}

/// Catches: a sync of the root's file system only.
#[test]
fn c16_every_superblock_gets_a_syncfs_with_its_own_root() {
    let (server, client) = world();
    client.create_dir("a").unwrap();
    client.create_dir("b").unwrap();
    server.toy.lock().mark_submount("a");
    server.toy.lock().mark_submount("b");
    let client = {
        drop(client);
        let toy = std::mem::take(&mut *server.toy.lock());
        let server_again = Scripted::new(toy, 256);
        let client = server_again.connect(quiet());
        client.write("a/f", b"x").unwrap();
        client.write("b/f", b"x").unwrap();
        server_again.forget_journal();
        client.sync().unwrap();
        let journal = server_again.journal();
        let mut roots: Vec<u64> = journal
            .entries()
            .iter()
            .filter(|entry| entry.opcode == Opcode::Syncfs && entry.what == What::Arrived)
            .map(|entry| entry.node)
            .collect();
        roots.sort_unstable();
        assert_eq!(roots, [1, server_again.node("a"), server_again.node("b")]);
        client
    };
    drop(client);
}

/// Catches: a cancelled caller that takes others with it, leaves something behind, or interrupts what was not sent.
#[test]
fn c17_a_cancelled_sync_leaves_the_others_alone() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    let hold = server.hold(all(Opcode::Write).next(1));
    f.write_all_at(b"data", 0).unwrap();
    let limit = SyncOptions { timeout: Some(Duration::from_millis(50)), cancel: None };
    let gave_up = client.sync_with(&limit).unwrap_err();
    assert_eq!(gave_up.kind(), io::ErrorKind::TimedOut);
    assert_eq!(server.journal().arrived(Opcode::Interrupt), 0, "its SYNCFS was never sent");
    let patient = syncing(&client);
    assert_waits(&patient);
    hold.release();
    patient.join().unwrap().unwrap();
    server.journal().assert_all_before_syncfs(Opcode::Write, None);

    server.forget_journal();
    let hold = server.hold(all(Opcode::Syncfs).next(1));
    let cancel = Cancel::default();
    let leader = {
        let (client, cancel) = (client.clone(), cancel.clone());
        thread::spawn(move || client.sync_with(&SyncOptions { timeout: None, cancel: Some(cancel) }))
    };
    server.wait_for(Opcode::Syncfs, 1);
    let patient = syncing(&client);
    assert_waits(&patient);
    cancel.cancel();
    assert_eq!(leader.join().unwrap().unwrap_err().kind(), io::ErrorKind::Interrupted);
    server.wait_for(Opcode::Interrupt, 1);
    let journal = server.journal();
    let syncfs = journal.entries().iter().find(|entry| entry.opcode == Opcode::Syncfs).unwrap();
    let interrupt = journal.entries().iter().find(|entry| entry.opcode == Opcode::Interrupt).unwrap();
    assert_eq!(interrupt.id, syncfs.id | 1);
    patient.join().unwrap().unwrap();
    hold.release();
    client.sync().unwrap();
}

/// Catches: changes other than writeback that do not enter the barrier.
#[test]
fn c18_all_changes_in_flight_are_waited_for() {
    type Change = fn(&Client);
    let changes: [(Opcode, CacheMode, Change); 13] = [
        (Opcode::Write, CacheMode::None, |client| open(client).write_all_at(b"x", 0).unwrap()),
        (Opcode::Write, CacheMode::WriteThrough, |client| open(client).write_all_at(b"x", 0).unwrap()),
        (Opcode::Write, CacheMode::WriteBack, |client| {
            let direct = OpenOptions::new().write(true).direct(true);
            client.open_with("f", &direct).unwrap().write_all_at(b"x", 0).unwrap();
        }),
        (Opcode::Setattr, CacheMode::WriteBack, |client| client.set_mode("f", 0o600).unwrap()),
        (Opcode::Setattr, CacheMode::WriteBack, |client| open(client).set_len(9).unwrap()),
        (Opcode::Fallocate, CacheMode::WriteBack, |client| open(client).allocate(0, 10, 0).unwrap()),
        (Opcode::CopyFileRange, CacheMode::WriteBack, |client| {
            open(client).copy_to(0, &open(client), 10, 5).map(|_| ()).unwrap();
        }),
        (Opcode::Create, CacheMode::WriteBack, |client| drop(client.create("new").unwrap())),
        (Opcode::Mkdir, CacheMode::WriteBack, |client| client.create_dir("new").unwrap()),
        (Opcode::Rename, CacheMode::WriteBack, |client| client.rename("f", "new").unwrap()),
        (Opcode::Unlink, CacheMode::WriteBack, |client| client.remove_file("f").unwrap()),
        (Opcode::Link, CacheMode::WriteBack, |client| client.hard_link("f", "new").unwrap()),
        (Opcode::Setxattr, CacheMode::WriteBack, |client| client.set_xattr("f", "user.a", b"b").unwrap()),
    ];
    for (opcode, cache, change) in changes {
        let (server, client) = Scripted::start(Options { cache, ..quiet() });
        client.write("f", b"content").unwrap();
        server.forget_journal();
        let hold = server.hold(all(opcode));
        let changing = {
            let client = client.clone();
            thread::spawn(move || change(&client))
        };
        server.wait_for(opcode, 1);
        let sync = syncing(&client);
        thread::sleep(A_MOMENT);
        assert!(!sync.is_finished(), "sync did not wait for {opcode} in mode {cache:?}");
        hold.release();
        sync.join().unwrap().unwrap();
        changing.join().unwrap();
    }
}

fn open(client: &Client) -> File {
    client.open_with("f", &OpenOptions::new().read(true).write(true)).unwrap()
}

/// Catches: times that are forgotten once the data was written.
#[test]
fn c19_times_without_data_are_sent_before_syncfs() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    f.write_all_at(b"data", 0).unwrap();
    client.start_writeback();
    server.wait_for(Opcode::Write, 1);
    while server.journal().answered(Opcode::Write) == 0 {
        thread::yield_now();
    }
    thread::sleep(A_MOMENT);
    server.forget_journal();
    client.sync().unwrap();
    server.journal().assert_all_before_syncfs(Opcode::Setattr, Some(server.node("f")));
    assert_eq!(server.journal().arrived(Opcode::Write), 0);
    let modified = f.metadata().unwrap().modified();
    let node = server.node("f");
    let on_server = server.toy.lock().nodes[&node].attr;
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!((since.as_secs(), since.subsec_nanos()), (on_server.mtime, on_server.mtimensec));
}

/// Aim: what was written before a sync was called is stable when it returns, whoever else syncs, and whether or not
/// the server has SYNCFS or dies. Method: three writers count up in a place of their own, three syncers note the
/// counts before they call, and compare with what the last SYNCFS found on the server. (Every interleaving of the
/// barrier itself is tried by its own models.)
#[test]
fn c20_three_writers_and_three_syncers_in_any_order() {
    for seed in 0..12 {
        let (server, client) = Scripted::start(Options { max_writebacks: 3, ..quiet() });
        let f = file(&server, &client, "f");
        server.watch("f");
        server.shuffle(seed + 1);
        server.delay(all(Opcode::Write), Duration::from_micros(200));
        if seed % 3 == 1 {
            server.fail(all(Opcode::Syncfs), Errno::ENOSYS);
        }
        let counts: [AtomicU64; 3] = Default::default();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (writer, count) in counts.iter().enumerate() {
                let (f, stop) = (&f, &stop);
                scope.spawn(move || {
                    for n in 1u64.. {
                        // Two writers share a page, the third has one of its own.
                        let place = [0, 8, PAGE + 16][writer];
                        if stop.load(Ordering::Relaxed) || f.write_all_at(&n.to_le_bytes(), place).is_err() {
                            break;
                        }
                        count.store(n, Ordering::Release);
                        if n % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
            let syncers: Vec<_> = (0..3)
                .map(|_| {
                    let (client, counts, server) = (client.clone(), &counts, &server);
                    scope.spawn(move || {
                        for _ in 0..20 {
                            let floors = counts.each_ref().map(|count| count.load(Ordering::Acquire));
                            let synced = client.sync();
                            match seed % 3 {
                                // Without SYNCFS nothing is stable, but all of it is there.
                                1 => assert!(synced.is_err()),
                                2 if synced.is_err() => return,
                                _ => synced.unwrap(),
                            }
                            let there = if seed % 3 == 1 { server.content("f") } else { server.stable() };
                            for (floor, place) in floors.into_iter().zip([0, 8, PAGE as usize + 16]) {
                                let bytes = there
                                    .get(place..place + 8)
                                    .map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
                                assert!(
                                    bytes >= floor,
                                    "seed {seed}: {bytes} at {place}, {floor} was synced"
                                );
                            }
                        }
                    })
                })
                .collect();
            if seed % 3 == 2 {
                thread::sleep(Duration::from_millis(15));
                server.kill();
            }
            let results: Vec<_> = syncers.into_iter().map(|syncer| syncer.join()).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(results.into_iter().all(|result| result.is_ok()));
        });
    }
}

/// Catches: a partly done write taken for done. Not in the list, but the same promise.
#[test]
fn a_short_write_is_finished_before_syncfs() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    let data: Vec<u8> = (0..40_000u32).map(|n| (n / 50) as u8).collect();
    server.shorten(all(Opcode::Write).next(1), 10_001);
    f.write_all_at(&data, 0).unwrap();
    server.watch("f");
    client.sync().unwrap();
    assert_eq!(server.journal().answered(Opcode::Write), 2);
    assert!(server.stable() == data);
}

/// Catches: a flush that looks twice, and loses a page whose first write is answered between its looks.
#[test]
fn a_page_rewritten_in_flight_is_never_lost_whenever_the_first_write_is_answered() {
    let (server, client) = world();
    let f = file(&server, &client, "f");
    server.watch("f");
    server.delay(all(Opcode::Write), Duration::from_micros(60));
    for n in 0..1500u64 {
        f.write_all_at(&(2 * n).to_le_bytes(), 0).unwrap();
        client.start_writeback();
        f.write_all_at(&(2 * n + 1).to_le_bytes(), 0).unwrap();
        // The answer comes somewhere between here and the end of the flush.
        (0..n % 97).for_each(|_| std::hint::spin_loop());
        client.sync().unwrap();
        assert_eq!(server.stable(), (2 * n + 1).to_le_bytes(), "round {n}");
    }
}

/// Catches: a cache that fills with dirty pages without a bound, and writers that wait for ever when the server dies.
#[test]
fn writers_wait_at_a_bound_and_fail_when_the_server_dies() {
    for dies in [false, true] {
        let server = Scripted::new(ashore_client::toy::Toy::default(), 256);
        let client = server.connect(quiet());
        let f = Arc::new(file(&server, &client, "f"));
        let hold = server.hold(all(Opcode::Write));
        let written = Arc::new(AtomicU64::new(0));
        let writer = {
            let (f, written) = (Arc::clone(&f), Arc::clone(&written));
            thread::spawn(move || {
                (0..1000).try_for_each(|n| {
                    written.store(n, Ordering::Relaxed);
                    f.write_all_at(&[1; PAGE as usize], n * PAGE)
                })
            })
        };
        thread::sleep(5 * A_MOMENT);
        assert!(!writer.is_finished());
        assert!(written.load(Ordering::Relaxed) <= 256, "no more than the cache holds");
        if dies {
            server.kill();
            assert_ne!(errno(writer.join().unwrap()), 0);
        } else {
            hold.release();
            writer.join().unwrap().unwrap();
            client.sync().unwrap();
            assert!(server.content("f") == vec![1; 1000 * PAGE as usize]);
        }
    }
}

/// Catches: O_SYNC and O_DSYNC that return before the server has done an FSYNC.
#[test]
fn a_write_to_a_synchronous_file_returns_after_fsync() {
    for options in [OpenOptions::new().write(true).sync(true), OpenOptions::new().write(true).data_sync(true)]
    {
        for cache in [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack] {
            let (server, client) = Scripted::start(Options { cache, ..quiet() });
            client.write("f", b"").unwrap();
            let f = client.open_with("f", &options).unwrap();
            server.forget_journal();
            f.write_all_at(b"data", 0).unwrap();
            let journal = server.journal();
            let done =
                |opcode| journal.position(|entry| entry.opcode == opcode && entry.what == What::Answered(0));
            assert!(
                done(Opcode::Write).is_some() && done(Opcode::Write) < done(Opcode::Fsync),
                "{journal:?}"
            );
            server.fail(all(Opcode::Fsync).next(1), Errno::EIO);
            assert_eq!(errno(f.write_all_at(b"data", 0)), 5);
        }
    }
}
