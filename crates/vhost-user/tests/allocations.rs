//! A request costs no memory from the heap, once its queue has seen one like it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsFd;

use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, Payload, ReplyBody, RequestQueue, TransferMode};

mod driver;
use driver::*;

struct Counting;

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

// SAFETY: everything is left to the system's allocator; counting touches a cell of the thread and nothing else.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller vouches for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches for.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller vouches for.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A chain of `pages` pages of data behind (or before) the headers, as Linux makes them for READ and WRITE.
fn put_pages(driver: &Driver, first: u16, pages: u16, opcode: u32) {
    let flags = if opcode == READ { WRITE } else { 0 };
    let head = request(opcode, 1, &[0; 40]);
    driver.put_request(first, &head, 16);
    let (header, data) = (first + 1, first + 2);
    let page = |index: u16, next| Descriptor {
        address: driver.place(data + index),
        len: 4096,
        flags: flags | NEXT,
        next,
    };
    let room =
        |flags| Descriptor { address: driver.place(header), len: 16, flags: WRITE | flags, next: data };
    let start = if opcode == READ { header } else { data };
    let readable =
        Descriptor { address: driver.place(first), len: head.len() as u32, flags: NEXT, next: start };
    driver.set_descriptor(first, readable);
    for index in 0..pages {
        let last = index + 1 == pages;
        let descriptor = page(index, if last { header } else { data + index + 1 });
        let descriptor = match (last, opcode) {
            (true, READ) => Descriptor { flags: WRITE, ..descriptor },
            _ => descriptor,
        };
        driver.set_descriptor(data + index, descriptor);
    }
    driver.set_descriptor(header, room(if opcode == READ { NEXT } else { 0 }));
}

#[test]
fn requests_allocate_nothing_in_the_steady_state() {
    let (mut driver, mut queue, other) = Driver::detached(1024, true, 0);
    driver.put_request(0, &request(GETATTR, 1, &[0; 16]), 120);
    driver.put_request(2, &request(1, 1, b"a name that is looked up\0"), 144);
    driver.put_request(4, &request(FORGET, 1, &[0; 8]), 0);
    put_pages(&driver, 10, 256, WRITE_OPCODE);
    put_pages(&driver, 300, 256, READ);
    let file = tempfile::tempfile().unwrap();
    let mut counted = 0;
    for round in 0..1000 {
        let heads = [0, 2, 4, 10, 300];
        heads.iter().for_each(|head| driver.make_available(*head));
        let before = ALLOCATIONS.with(Cell::get);
        for _ in heads {
            let mut exchange = queue.next().unwrap();
            let (_, bulk) = exchange.parts();
            let mut len = OUT_HEADER;
            if Payload::len(bulk) > 0 {
                let all = bulk.write_to(file.as_fd(), 0, usize::MAX, TransferMode::default()).unwrap();
                assert_eq!(all, 1 << 20);
            } else if bulk.room().is_some_and(|room| room >= 1 << 20) {
                len += bulk.read_from(file.as_fd(), 0, 1 << 20, TransferMode::default()).unwrap() as u32;
            }
            exchange.finish(OutHeader { len, error: 0, unique: 1 });
        }
        if round >= 1 {
            counted += ALLOCATIONS.with(Cell::get) - before;
        }
        let used: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
        assert_eq!(used, [(0, 16), (2, 16), (4, 0), (10, 16), (300, 16 + (1 << 20))]);
    }
    assert_eq!(counted, 0, "allocations in 4995 requests");
    assert_eq!(other.counters().malformed, 0);
}
