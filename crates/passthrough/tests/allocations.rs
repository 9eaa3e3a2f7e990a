//! READ, WRITE, GETATTR and a LOOKUP of a known inode allocate nothing.

#![allow(missing_docs, unsafe_code, reason = "a test that counts what the allocator is asked for")]

#[path = "suite/harness.rs"]
#[allow(dead_code, reason = "this program needs part of it")]
mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ashore_server::{FileSystem, Read, Write};
use ashore_wire::flags::WriteFlags;

use harness::{Bytes, MODES, RDWR, ROOT, Share, caller, with_name};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is; counting touches only a thread's own cell, which needs no
// allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(call: impl Fn()) -> usize {
    // Once to fill caches, then what every later request costs.
    call();
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| call());
    ALLOCATIONS.get() - before
}

#[test]
fn the_most_frequent_requests_allocate_nothing() {
    for mode in MODES {
        let share = Share::holding(mode);
        let directory = ashore_wire::NodeId(share.mkdir(ROOT, "d").unwrap().node);
        let node = share.put(directory, "f", &[7; 4096]);
        let handle = share.open(node, RDWR).unwrap().handle;
        let memory = std::cell::RefCell::new(Bytes(vec![7; 4096]));

        with_name("f", |name| {
            let lookup = || assert!(share.fs.lookup(&caller(), directory, name).is_ok());
            assert_eq!(allocations(lookup), 0, "{mode:?}: LOOKUP of a known inode");
        });
        with_name("missing", |name| {
            let lookup = || assert!(share.fs.lookup(&caller(), directory, name).is_err());
            assert_eq!(allocations(lookup), 0, "{mode:?}: LOOKUP of a missing name");
        });
        assert_eq!(allocations(|| assert!(share.getattr(node).is_ok())), 0, "{mode:?}: GETATTR");
        for may_wait in [false, true] {
            let read = || {
                let read = Read { handle, offset: 0, size: 4096, may_wait };
                assert_eq!(share.fs.read(node, &read, &mut *memory.borrow_mut()), Ok(4096));
            };
            assert_eq!(allocations(read), 0, "{mode:?}: READ");
        }
        let write = || {
            let write = Write { handle, offset: 0, size: 4096, write_flags: WriteFlags::CACHE, flags: 0 };
            assert_eq!(share.fs.write(&caller(), node, &write, &mut *memory.borrow_mut()), Ok(4096));
        };
        assert_eq!(allocations(write), 0, "{mode:?}: WRITE");
    }
}
