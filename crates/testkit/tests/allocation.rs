//! The hot path allocates nothing: from the ring, through the server, to the host's system call and back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver as Answers, Sender, channel};
use std::time::Duration;

use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::Opcode;
use ashore_wire::abi::*;
use ashore_wire::link::{Completion, Link, Message, Receiver, Segment};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

/// Counts what the threads of the server's queues allocate.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is passed on to the system's allocator as it came; counting touches no memory of its own but an
// atomic and a flag without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is the system's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc`, so from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Inbox(Mutex<Sender<Completion>>);

impl Receiver for Inbox {
    fn completed(&self, completion: Completion) {
        let _ = self.0.lock().send(completion);
    }

    fn ended(&self) {}
}

struct Caller {
    link: VhostUserLink,
    answers: Answers<Completion>,
    next: Cell<u64>,
}

impl Caller {
    /// Sends a request and waits for its answer, whose fixed part is returned.
    fn call(&self, opcode: Opcode, node: u64, arguments: &[&[u8]], payload: usize, target: usize) -> Vec<u8> {
        let id = self.next.get() + 2;
        self.next.set(id);
        let length = size_of::<InHeader>() + arguments.iter().map(|part| part.len()).sum::<usize>() + payload;
        let header = InHeader {
            len: length as u32,
            opcode: opcode as u32,
            unique: id,
            nodeid: node,
            ..Default::default()
        };
        let head = [&[header.as_bytes()], arguments].concat().concat();
        let pages = |bytes: usize| match bytes {
            0 => Vec::new(),
            bytes => vec![Segment { page: 0, length: bytes as u32 }],
        };
        let reply_room = if target > 0 { 0 } else { 256 };
        let message =
            Message { id, head, payload: pages(payload), reply_room, target: pages(target), urgent: false };
        self.link.submit(message).unwrap();
        let completion = self.answers.recv_timeout(Duration::from_secs(20)).unwrap();
        let (header, body) = OutHeader::read_from_prefix(&completion.reply).unwrap();
        assert_eq!((header.unique, header.error), (id, 0), "{opcode}");
        body.to_vec()
    }
}

#[test]
fn read_write_getattr_and_a_lookup_of_what_is_known_allocate_nothing() {
    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("file"), vec![7; 8192]).unwrap();
    let socket = share.path().join("socket");
    let session = Session::new(Passthrough::new(Options::new(share.path())).unwrap(), Limits::default());
    let listener = Listener::bind(&socket).unwrap();
    let device = Device::new(DeviceOptions::default(), move |_, queue| {
        COUNTED.set(true);
        Worker::new(Arc::clone(&session)).run(queue);
        COUNTED.set(false);
    });
    let device = device.unwrap();
    let stop = device.stop_handle();
    let served = std::thread::spawn(move || device.serve(&listener));

    let link = VhostUserLink::connect(&socket, LinkOptions { pages: 16, ..Default::default() }).unwrap();
    let (sender, answers) = channel();
    link.start(Arc::new(Inbox(Mutex::new(sender))));
    let caller = Caller { link, answers, next: Cell::new(0) };
    let init = InitIn { major: 7, minor: 41, max_readahead: 1 << 20, ..Default::default() };
    caller.call(Opcode::Init, 0, &[init.as_bytes()], 0, 0);
    let entry = EntryOut::read_from_prefix(&caller.call(Opcode::Lookup, 1, &[b"file\0"], 0, 0)).unwrap().0;
    let open = OpenIn { flags: 2, open_flags: 0 };
    let opened = caller.call(Opcode::Open, entry.nodeid, &[open.as_bytes()], 0, 0);
    let fh = OpenOut::read_from_prefix(&opened).unwrap().0.fh;

    let round = || {
        let write = WriteIn { fh, size: 4096, ..Default::default() };
        caller.call(Opcode::Write, entry.nodeid, &[write.as_bytes()], 4096, 0);
        let read = ReadIn { fh, size: 4096, ..Default::default() };
        caller.call(Opcode::Read, entry.nodeid, &[read.as_bytes()], 0, 4096);
        caller.call(Opcode::Getattr, entry.nodeid, &[GetattrIn::default().as_bytes()], 0, 0);
        caller.call(Opcode::Lookup, 1, &[b"file\0"], 0, 0);
    };
    (0..50).for_each(|_| round());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "what the queues' threads allocate is counted");
    (0..500).for_each(|_| round());
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "allocations in 2000 requests");
    caller.link.close();
    stop.stop();
    served.join().unwrap().unwrap();
}
