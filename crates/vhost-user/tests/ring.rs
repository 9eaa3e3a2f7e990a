//! A ring and its requests, driven from the other side.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ashore_vhost_user::device::{Bulk, RingExchange};
use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, NoRoom, Payload, ReplyBody, RequestQueue, TransferMode};

mod driver;
use driver::*;

const SOON: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(50);

fn id(exchange: &mut RingExchange) -> u64 {
    u64::from_ne_bytes(exchange.parts().0[8..16].try_into().unwrap())
}

fn answer(mut exchange: RingExchange, body: &[u8]) {
    let unique = id(&mut exchange);
    exchange.parts().1.fill(0, body).unwrap();
    exchange.finish(OutHeader { len: OUT_HEADER + body.len() as u32, error: 0, unique });
}

#[test]
fn a_request_comes_out_and_its_reply_goes_back() {
    let (mut driver, mut queue, other) = Driver::detached(8, true, 0);
    driver.put_request(2, &request(GETATTR, 77, &[5; 16]), 200);
    driver.make_available(2);
    let mut exchange = queue.try_next().unwrap();
    let (head, bulk) = exchange.parts();
    assert_eq!(head, request(GETATTR, 77, &[5; 16]));
    assert_eq!(head.as_ptr().addr() % 8, 0, "structures in the head are looked at in place");
    assert_eq!((Payload::len(bulk), bulk.room()), (0, Some(184)));
    answer(exchange, b"the reply");
    assert_eq!(driver.used(), Some((2, 25)), "exactly what was written");
    let reply = driver.reply(2, 25);
    assert_eq!((out_header(&reply), &reply[16..]), ((25, 0, 77), &b"the reply"[..]));
    assert!(queue.try_next().is_none() && driver.used().is_none());
    assert_eq!(other.counters().requests, 1);
}

#[test]
fn where_descriptors_end_means_nothing() {
    // Method: the same WRITE in pieces of every size, directly and through an indirect table, gives the same.
    let arguments: Vec<u8> = (0..100).collect();
    let bytes = request(WRITE_OPCODE, 9, &arguments);
    for piece in [1, 2, 3, 7, 16, 39, 40, 41, 79, 80, 81, 140] {
        for indirect in [false, true] {
            let (mut driver, mut queue, _other) = Driver::detached(512, true, 0);
            put_in_pieces(&driver, &bytes, piece, 40, indirect);
            driver.make_available(0);
            let mut exchange = queue.try_next().unwrap();
            let (head, bulk) = exchange.parts();
            assert_eq!(head, &bytes[..80], "the head of a WRITE ends before its data");
            let mut data = [0; 100];
            assert_eq!((Payload::len(bulk), bulk.copy_to(&mut data)), (60, 60));
            assert_eq!(data[..60], bytes[80..]);
            assert_eq!(bulk.room(), Some(24));
            bulk.fill(3, b"abcdef").unwrap();
            assert_eq!(bulk.fill(20, b"abcdef"), Err(NoRoom));
            exchange.finish(OutHeader { len: 16 + 9, error: 0, unique: 9 });
            assert_eq!(driver.used(), Some((0, 25)));
            let reply = driver.memory.read(DATA + (1 << 16), 40);
            assert_eq!(
                (out_header(&reply), &reply[16..]),
                ((25, 0, 9), &b"\0\0\0abcdef\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..])
            );
        }
    }
}

/// A chain whose readable and writable bytes each follow each other in memory, cut into pieces.
fn put_in_pieces(driver: &Driver, readable: &[u8], piece: usize, room: usize, indirect: bool) {
    let (read_at, write_at, table) = (DATA, DATA + (1 << 16), DATA + (2 << 16) + 4);
    driver.memory.write(read_at, readable);
    let pieces = |at: u64, len: usize, flags| {
        (0..len).step_by(piece).map(move |offset| Descriptor {
            address: at + offset as u64,
            len: piece.min(len - offset) as u32,
            flags: flags | NEXT,
            next: 0,
        })
    };
    let mut chain: Vec<_> = pieces(read_at, readable.len(), 0).chain(pieces(write_at, room, WRITE)).collect();
    let last = chain.len() - 1;
    chain[last].flags &= !NEXT;
    for (index, descriptor) in chain.iter_mut().enumerate() {
        descriptor.next = index as u16 + 1;
        match indirect {
            true => driver.memory.write(table + 16 * index as u64, &descriptor.bytes()),
            false => driver.set_descriptor(index as u16, *descriptor),
        }
    }
    if indirect {
        let len = 16 * chain.len() as u32;
        driver.set_descriptor(0, Descriptor { address: table, len, flags: INDIRECT, next: 0 });
    }
}

#[test]
fn data_moves_between_a_file_and_guest_memory_as_it_stands() {
    let (mut driver, mut queue, _other) = Driver::detached(4, true, 0);
    let pattern: Vec<u8> = (0..3000u32).map(|i| (i * 7) as u8).collect();
    let mut arguments = vec![0; 40];
    arguments.extend_from_slice(&pattern);
    driver.put_request(0, &request(WRITE_OPCODE, 1, &arguments), 100);
    driver.make_available(0);
    let mut file = tempfile::tempfile().unwrap();
    let mut exchange = queue.try_next().unwrap();
    let bulk = exchange.parts().1;
    let plain = TransferMode::default();
    assert_eq!(bulk.write_to(file.as_fd(), 10, 2000, plain).unwrap(), 2000);
    let append = TransferMode { append: true, data_sync: true, ..plain };
    assert_eq!(bulk.write_to(file.as_fd(), 0, usize::MAX, append).unwrap(), 3000);
    let error = bulk.write_to(file.as_fd(), u64::MAX, 1, plain).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(22), "not the position of the descriptor");
    exchange.finish_without_reply();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, [&[0; 10], &pattern[..2000], &pattern[..]].concat());

    driver.put_request(2, &request(READ, 2, &[0; 40]), 1016);
    driver.make_available(2);
    let mut exchange = queue.try_next().unwrap();
    let bulk = exchange.parts().1;
    assert_eq!(
        bulk.read_from(file.as_fd(), 10, 1 << 20, plain).unwrap(),
        1000,
        "as much as there is room for"
    );
    assert_eq!(bulk.read_from(file.as_fd(), 5000, 500, plain).unwrap(), 10, "as much as there is");
    exchange.finish(OutHeader { len: 16 + 1000, error: 0, unique: 2 });
    assert_eq!(driver.reply(2, 1016)[16 + 10..], pattern[10..1000]);
}

#[test]
fn a_long_list_of_pieces_takes_several_calls_and_a_short_one_ends_it() {
    let (mut driver, mut queue, _other) = Driver::detached(4096, true, 0);
    let mut bytes = request(WRITE_OPCODE, 1, &[0; 40]);
    bytes.extend((0..3000u32).map(|i| (i % 251) as u8));
    put_in_pieces(&driver, &bytes, 1, 16, false);
    driver.make_available(0);
    let mut exchange = queue.try_next().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let bulk: &mut Bulk = exchange.parts().1;
    assert_eq!(bulk.write_to(file.as_fd(), 0, 2500, TransferMode::default()).unwrap(), 2500);
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, bytes[80..2580]);
}

#[test]
fn a_request_without_room_is_given_back_with_nothing_written() {
    let (mut driver, mut queue, _other) = Driver::detached(8, false, 0);
    for (index, room) in [(0, 0), (2, 15)] {
        driver.put_request(index, &request(FORGET, 5, &[0; 8]), room);
        driver.make_available(index);
        let mut exchange = queue.try_next().unwrap();
        assert_eq!(exchange.parts().1.room(), None);
        exchange.finish(OutHeader { len: 16, error: 0, unique: 5 });
        assert_eq!(driver.used(), Some((u32::from(index), 0)));
    }
}

#[test]
fn a_reply_longer_than_its_room_becomes_an_error() {
    let (mut driver, mut queue, _other) = Driver::detached(8, false, 0);
    driver.put_request(0, &request(GETATTR, 5, &[]), 20);
    for len in [21, 15, 0, u32::MAX] {
        driver.make_available(0);
        queue.try_next().unwrap().finish(OutHeader { len, error: 0, unique: 5 });
        assert_eq!(driver.used(), Some((0, 16)));
        assert_eq!(out_header(&driver.reply(0, 16)), (16, -5, 5));
    }
}

#[test]
fn a_dropped_exchange_is_answered_with_eio() {
    let (mut driver, mut queue, _other) = Driver::detached(8, true, 0);
    driver.put_request(0, &request(GETATTR, 31, &[]), 100);
    driver.make_available(0);
    drop(queue.try_next().unwrap());
    assert_eq!(driver.used(), Some((0, 16)));
    assert_eq!(out_header(&driver.reply(0, 16)), (16, -5, 31));
}

/// What a malformed chain gets: a reply with EIO, or nothing written.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Gets {
    Eio,
    Nothing,
}

#[test]
fn malformed_chains_are_answered_where_they_can_be_and_given_back_where_not() {
    let good = |next| Descriptor { address: DATA, len: 40, flags: NEXT, next };
    let room = |flags, next| Descriptor { address: DATA + 4096, len: 100, flags: WRITE | flags, next };
    let outside = MEMORY_BYTES - 8;
    let table = DATA + 8192;
    let indirect = |len| Descriptor { address: table, len, flags: INDIRECT, next: 0 };
    let d = Descriptor::default();
    let cases: Vec<(&str, Vec<Descriptor>, Gets)> = vec![
        ("a loop to itself", vec![good(1), room(NEXT, 1)], Gets::Eio),
        ("a loop of readable ones", vec![good(1), Descriptor { len: 1, ..good(0) }], Gets::Nothing),
        ("a successor that does not exist", vec![good(1), room(NEXT, 64)], Gets::Eio),
        ("readable after writable", vec![good(1), room(NEXT, 2), good(0)], Gets::Eio),
        ("nothing readable", vec![room(0, 0)], Gets::Nothing),
        ("writable first", vec![room(NEXT, 1), Descriptor { flags: 0, ..good(0) }], Gets::Nothing),
        ("empty", vec![d], Gets::Nothing),
        (
            "all of length zero",
            vec![Descriptor { len: 0, ..good(1) }, Descriptor { len: 0, ..room(0, 0) }],
            Gets::Nothing,
        ),
        ("half a header", vec![Descriptor { len: 39, ..good(1) }, room(0, 0)], Gets::Nothing),
        (
            "data outside of memory",
            vec![Descriptor { address: outside, ..good(1) }, room(0, 0)],
            Gets::Nothing,
        ),
        (
            "room outside of memory",
            vec![good(1), room(NEXT, 2), Descriptor { address: outside, ..room(0, 0) }],
            Gets::Eio,
        ),
        (
            "an address that wraps",
            vec![good(1), room(NEXT, 2), Descriptor { address: u64::MAX, ..room(0, 0) }],
            Gets::Eio,
        ),
        ("more bytes than a request may have", vec![good(1), room(NEXT, 2), room(0, 0)], Gets::Eio),
        ("an indirect table of no length", vec![good(1), room(NEXT, 2), indirect(0)], Gets::Eio),
        ("an indirect table of odd length", vec![good(1), room(NEXT, 2), indirect(17)], Gets::Eio),
        ("indirect in indirect", vec![good(1), room(NEXT, 2), indirect(16)], Gets::Eio),
        (
            "indirect with a successor",
            vec![good(1), room(NEXT, 2), Descriptor { flags: INDIRECT | NEXT, ..indirect(16) }],
            Gets::Eio,
        ),
        (
            "an indirect table outside",
            vec![good(1), room(NEXT, 2), Descriptor { address: outside, ..indirect(16) }],
            Gets::Eio,
        ),
        (
            "an indirect table at the end of all addresses",
            vec![good(1), room(NEXT, 2), Descriptor { address: u64::MAX - 7, ..indirect(64) }],
            Gets::Eio,
        ),
    ];
    for (what, chain, gets) in cases {
        let (mut driver, mut queue, other) = Driver::detached(64, true, 0);
        driver.memory.write(DATA, &request(GETATTR, 12, &[]));
        driver.memory.write(table, &indirect(16).bytes());
        for (index, descriptor) in chain.iter().enumerate() {
            driver.set_descriptor(index as u16, *descriptor);
        }
        driver.make_available(0);
        if what.starts_with("more bytes") {
            driver.set_descriptor(0, Descriptor { len: (1 << 20) + 4097, ..good(1) });
            driver.set_descriptor(1, room(0, 0));
        }
        let gets = if what.starts_with("more bytes") { Gets::Nothing } else { gets };
        assert!(queue.try_next().is_none(), "{what}");
        match gets {
            Gets::Nothing => assert_eq!(driver.used(), Some((0, 0)), "{what}"),
            Gets::Eio => {
                assert_eq!(driver.used(), Some((0, 16)), "{what}");
                assert_eq!(out_header(&driver.memory.read(DATA + 4096, 16)), (16, -5, 12), "{what}");
            }
        }
        assert_eq!((driver.used(), other.counters().malformed), (None, 1), "{what}");
        driver.put_request(0, &request(GETATTR, 13, &[]), 16);
        driver.make_available(0);
        answer(queue.try_next().expect("the queue goes on"), b"");
    }
}

#[test]
fn a_broken_ring_stops_its_queue() {
    type Breaks = fn(&mut Driver);
    let broken: [(&str, Breaks); 3] = [
        ("the index jumps", |driver| {
            driver.available = driver.available.wrapping_add(64);
            driver.make_available(0);
        }),
        ("a head that does not exist", |driver| driver.make_available(64)),
        ("more available than the ring can hold", |driver| (0..64).for_each(|_| driver.make_available(0))),
    ];
    for (what, break_it) in broken {
        let (mut driver, mut queue, _other) = Driver::detached(64, true, 0);
        driver.put_request(0, &request(GETATTR, 12, &[]), 100);
        driver.make_available(0);
        let held = queue.next().unwrap();
        break_it(&mut driver);
        let mut taken = Vec::new();
        while let Some(exchange) = queue.next() {
            taken.push(exchange);
        }
        assert!(taken.len() <= 63, "{what}: at most as many as the ring is long");
        assert!(queue.next().is_none(), "{what}: it stays stopped");
        answer(held, b"");
        assert_eq!(driver.used(), Some((0, 16)), "{what}: what was taken is still answered");
    }
}

#[test]
fn completions_of_the_queues_thread_are_announced_once_a_batch() {
    for event_idx in [false, true] {
        let (mut driver, mut queue, other) = Driver::detached(64, event_idx, 0);
        for index in 0..10 {
            driver.put_request(2 * index, &request(GETATTR, u64::from(index), &[]), 16);
            driver.make_available(2 * index);
        }
        let worker = thread::spawn(move || {
            while let Some(exchange) = queue.next() {
                answer(exchange, b"");
            }
        });
        for _ in 0..10 {
            driver.wait_used(SOON).unwrap();
        }
        assert!(other.counters().notifications <= 2, "event_idx {event_idx}: {:?}", other.counters());
        other.stop();
        worker.join().unwrap();
    }
}

#[test]
fn what_was_quick_is_announced_before_data_is_moved_and_all_before_what_is_slow() {
    const FSYNC: u32 = 20;
    let data = request(WRITE_OPCODE, 2, &[0; 60]);
    for (first, second, announced) in [
        (request(GETATTR, 1, &[]), data.clone(), true),
        (request(GETATTR, 1, &[]), request(GETATTR, 2, &[]), false),
        (data.clone(), data.clone(), false),
        (data.clone(), request(FSYNC, 2, &[0; 16]), true),
    ] {
        let (mut driver, mut queue, _other) = Driver::detached(8, true, 0);
        driver.put_request(0, &first, 100);
        driver.put_request(2, &second, 100);
        [0, 2].iter().for_each(|head| driver.make_available(*head));
        answer(queue.next().unwrap(), b"");
        let begin = Instant::now();
        let second = queue.next().unwrap();
        // A machine that stopped in between has used up the time a batch may take, and proves nothing.
        let prompt = begin.elapsed() < Duration::from_micros(20);
        assert!(!prompt || wait(&driver.call, Duration::ZERO) == announced);
        drop(second);
    }
}

#[test]
fn a_completion_from_another_thread_is_announced_at_once() {
    let (mut driver, mut queue, other) = Driver::detached(64, true, 0);
    driver.put_request(0, &request(GETATTR, 1, &[]), 16);
    driver.make_available(0);
    let (sender, receiver) = mpsc::channel::<RingExchange>();
    let worker = thread::spawn(move || {
        while let Some(exchange) = queue.next() {
            sender.send(exchange).unwrap();
        }
    });
    let exchange = receiver.recv_timeout(SOON).unwrap();
    thread::spawn(move || answer(exchange, b"")).join().unwrap();
    assert!(wait(&driver.call, SOON));
    assert_eq!(driver.used(), Some((0, 16)));
    other.stop();
    worker.join().unwrap();
}

#[test]
fn no_wake_up_is_lost_between_a_driver_and_a_device_that_sleep_all_the_time() {
    // Method: few requests at a time, so that both sides go to sleep and wake over and over; a lost kick or
    // notification shows as a wait that does not end. The index wraps around several times.
    for event_idx in [true, false] {
        let (mut driver, mut queue, other) = Driver::detached(16, event_idx, 65000);
        let worker = thread::spawn(move || {
            while let Some(exchange) = queue.next() {
                answer(exchange, b"");
            }
        });
        for index in 0..8 {
            driver.put_request(2 * index, &request(GETATTR, u64::from(index), &[]), 16);
        }
        let rounds = 40_000u32;
        for round in 0..rounds {
            let old = driver.available;
            let batch = 1 + (round.wrapping_mul(2654435761) >> 29) as u16;
            (0..batch).for_each(|index| driver.make_available(2 * index));
            driver.kick_since(old);
            let heads: HashSet<_> = (0..batch)
                .map(|_| {
                    driver.wait_used(SOON).unwrap_or_else(|| panic!("round {round}: a wake-up was lost"))
                })
                .map(|(head, len)| {
                    assert_eq!(len, 16);
                    head
                })
                .collect();
            assert_eq!(heads.len(), usize::from(batch));
        }
        other.stop();
        worker.join().unwrap();
        let counters = other.counters();
        assert!(driver.kicks <= counters.requests);
        println!("event_idx {event_idx}: {counters}; {} kicks in {rounds} rounds", driver.kicks);
    }
}

#[test]
fn a_guest_that_cannot_kick_is_served_all_the_same() {
    let memory = std::sync::Arc::new(Shared::new(MEMORY_BYTES));
    let mut driver = Driver::new(memory, layout(8, 0, true, 0));
    let file = driver.memory.file.try_clone().unwrap();
    let (mut queue, other) =
        ashore_vhost_user::device::DeviceQueue::detached(file, MEMORY_BYTES, driver.layout, None, None)
            .unwrap();
    let worker = thread::spawn(move || answer(queue.next().unwrap(), b""));
    thread::sleep(MOMENT);
    driver.put_request(0, &request(GETATTR, 1, &[]), 16);
    driver.make_available(0);
    worker.join().unwrap();
    assert_eq!(driver.used(), Some((0, 16)));
    drop(other);
}

#[test]
fn draining_waits_for_what_other_threads_still_have() {
    let (mut driver, mut queue, other) = Driver::detached(8, true, 0);
    driver.put_request(0, &request(GETATTR, 1, &[]), 16);
    driver.make_available(0);
    let exchange = queue.next().unwrap();
    driver.make_available(0);
    other.stop();
    assert!(queue.next().is_none(), "a stopped queue hands nothing out, though more is available");
    let begin = Instant::now();
    let finisher = thread::spawn(move || {
        thread::sleep(MOMENT);
        answer(exchange, b"");
    });
    other.drain();
    assert!(begin.elapsed() >= MOMENT);
    assert_eq!(driver.used(), Some((0, 16)));
    finisher.join().unwrap();
}

#[test]
fn an_exchange_may_be_finished_after_everything_else_is_gone() {
    let (mut driver, mut queue, other) = Driver::detached(8, true, 0);
    driver.put_request(0, &request(GETATTR, 1, &[]), 16);
    driver.make_available(0);
    let exchange = queue.next().unwrap();
    drop((queue, other));
    answer(exchange, b"");
    assert_eq!(driver.used(), Some((0, 16)));
}

#[test]
fn a_mark_is_passed_when_what_was_available_has_been_taken_and_its_taker_came_back() {
    let (mut driver, mut queue, other) = Driver::detached(8, true, 65535);
    let backlog = other.backlog();
    assert!(backlog.mark().passed(), "nothing waits");
    for index in [0, 2] {
        driver.put_request(index, &request(GETATTR, 1, &[]), 16);
        driver.make_available(index);
    }
    let mark = backlog.mark();
    driver.put_request(4, &request(GETATTR, 1, &[]), 16);
    driver.make_available(4);
    assert!(!mark.passed() && !mark.wait(MOMENT), "nothing was taken");
    let first = queue.next().unwrap();
    let second = queue.next().unwrap();
    assert!(!mark.passed(), "the thread has the second, and may not have counted it yet");
    let third = queue.next().unwrap();
    assert!(mark.passed() && mark.wait(Duration::ZERO), "whether finished or not is another matter");
    let later = backlog.mark();
    assert!(!later.passed());
    let waiter = thread::spawn(move || later.wait(SOON));
    thread::sleep(MOMENT);
    assert!(queue.try_next().is_none());
    assert!(waiter.join().unwrap(), "the waiter is woken");
    [first, second, third].into_iter().for_each(|exchange| answer(exchange, b""));
}

/// Being woken costs more than most requests, so who waits for a hundred is not woken by each.
#[test]
fn who_waits_for_a_mark_is_woken_when_all_of_it_has_been_passed() {
    const REQUESTS: u16 = 30;
    let (mut driver, mut queue, other) = Driver::detached(64, true, 0);
    for index in 0..REQUESTS {
        driver.put_request(2 * index, &request(GETATTR, index.into(), &[]), 16);
        driver.make_available(2 * index);
    }
    let mark = other.backlog().mark();
    let waiting = std::thread::spawn(move || {
        let before = sleeps_of_this_thread();
        assert!(mark.wait(SOON));
        sleeps_of_this_thread() - before
    });
    std::thread::sleep(MOMENT);
    for _ in 0..REQUESTS {
        assert!(queue.try_next().is_some());
        // Time enough to be woken, and to sleep again.
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(queue.try_next().is_none());
    let sleeps = waiting.join().unwrap();
    assert!((1..5).contains(&sleeps), "slept {sleeps} times");
}

fn sleeps_of_this_thread() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_queue_that_ends_has_passed_every_mark() {
    let (mut driver, queue, other) = Driver::detached(8, true, 0);
    driver.put_request(0, &request(GETATTR, 1, &[]), 16);
    driver.make_available(0);
    let mark = other.backlog().mark();
    let waiter = thread::spawn(move || mark.wait(SOON));
    thread::sleep(MOMENT);
    drop(queue);
    assert!(waiter.join().unwrap());
}

#[test]
fn marks_are_passed_under_load_and_never_too_early() {
    // Method: a driver keeps a ring full while another thread marks and waits. When a mark is passed, the number
    // of requests seen by the taker is at least what was available when the mark was made.
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let (mut driver, mut queue, other) = Driver::detached(64, true, 0);
    let (made, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (made_too, seen_too) = (made.clone(), seen.clone());
    let worker = thread::spawn(move || {
        while let Some(exchange) = queue.next() {
            seen_too.fetch_add(1, Ordering::SeqCst);
            answer(exchange, b"");
        }
    });
    let backlog = other.backlog();
    let marker = thread::spawn(move || {
        let mut marks = 0;
        while made.load(Ordering::SeqCst) < 300_000 {
            let before = made.load(Ordering::SeqCst);
            assert!(backlog.mark().wait(SOON), "mark {marks} was never passed");
            assert!(seen.load(Ordering::SeqCst) >= before, "mark {marks} was passed too early");
            marks += 1;
        }
        marks
    });
    (0..16).for_each(|index| driver.put_request(2 * index, &request(GETATTR, 1, &[]), 16));
    for _ in 0..300_000 / 16 {
        let old = driver.available;
        for index in 0..16 {
            driver.make_available(2 * index);
            made_too.fetch_add(1, Ordering::SeqCst);
        }
        driver.kick_since(old);
        (0..16).for_each(|_| assert!(driver.wait_used(SOON).is_some()));
    }
    println!("{} marks", marker.join().unwrap());
    other.stop();
    worker.join().unwrap();
}
