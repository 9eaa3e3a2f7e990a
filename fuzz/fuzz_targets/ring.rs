//! Any bytes as guest memory: rings, descriptors and requests. Nothing panics, nothing outside is touched, and
//! every request taken is returned.
//!
//! ```text
//!     input:   [ size, flags, base lo, base hi ]  [ memory, repeated over what it is too short for ]
//! ```

#![no_main]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use ashore_vhost_user::device::{DeviceQueue, RingExchange, RingLayout};
use ashore_wire::Request;
use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, Payload, ReplyBody, TransferMode};
use libfuzzer_sys::fuzz_target;

const MEMORY: u64 = 16384;

fn memory() -> &'static File {
    static MEMORY_FILE: OnceLock<File> = OnceLock::new();
    MEMORY_FILE.get_or_init(|| {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, MEMORY).unwrap();
        File::from(fd)
    })
}

/// A file to move data to and from; its content does not matter.
fn file() -> &'static File {
    static DATA_FILE: OnceLock<File> = OnceLock::new();
    DATA_FILE.get_or_init(|| {
        let fd = rustix::fs::memfd_create("data", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 5000).unwrap();
        File::from(fd)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let [size, flags, low, high, content @ ..] = bytes else { return };
    let size = 1u16 << (size % 7);
    let entries = u64::from(size);
    let available = 16 * entries;
    let used = (available + 6 + 2 * entries).next_multiple_of(4);
    let layout = RingLayout {
        size,
        descriptors: 0,
        available,
        used,
        event_idx: flags & 1 != 0,
        base: u16::from_le_bytes([*low, *high]),
    };
    let mut image = vec![0; MEMORY as usize];
    for (index, byte) in image.iter_mut().enumerate().take(if content.is_empty() { 0 } else { usize::MAX }) {
        *byte = content[index % content.len()];
    }
    // Otherwise nearly no index would be near enough to the base for anything to be available.
    let near = layout.base.wrapping_add(u16::from(flags >> 1) % (size + 2)).to_le_bytes();
    image[available as usize + 2..available as usize + 4].copy_from_slice(&near);
    memory().write_all_at(&image, 0).unwrap();

    let shared = memory().try_clone().unwrap();
    let (mut queue, other) = DeviceQueue::detached(shared, MEMORY, layout, None, None).unwrap();
    let mut held = Vec::new();
    let mut turn = u64::from(flags >> 4);
    while let Some(exchange) = queue.try_next() {
        turn += 1;
        held.push(exchange);
        if turn % 3 == 0 {
            held.drain(..).for_each(|exchange| use_up(exchange, turn));
        }
        // Requests may write into the rings themselves and so make more of themselves for ever.
        if turn > 300 {
            break;
        }
    }
    held.into_iter().for_each(|exchange| use_up(exchange, turn));
    other.drain();
});

fn use_up(mut exchange: RingExchange, turn: u64) {
    let (head, bulk) = exchange.parts();
    let unique = Request::id_of(head).expect("what is handed out has a header").0;
    let _ = std::hint::black_box(Request::parse(head, Payload::len(bulk), Default::default()));
    let mut buffer = [0; 64];
    assert_eq!(bulk.copy_to(&mut buffer), Payload::len(bulk).min(64));
    let mode = TransferMode::default();
    let payload = Payload::len(bulk);
    if let Ok(done) = bulk.write_to(file().as_fd(), 100, 4000, mode) {
        assert!(done <= payload.min(4000));
    }
    let mut len = 16;
    if let Some(room) = bulk.room() {
        assert_eq!(bulk.fill(room.saturating_sub(8), &[1; 8]).is_ok(), room >= 8);
        len += bulk.read_from(file().as_fd(), 0, 3000, mode).unwrap_or(0) as u32;
        assert!(len as usize - 16 <= room.min(3000));
    }
    match turn % 4 {
        0 => exchange.finish_without_reply(),
        _ => exchange.finish(OutHeader { len, error: 0, unique }),
    }
}
