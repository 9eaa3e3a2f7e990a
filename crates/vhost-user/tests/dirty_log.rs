//! A VMM that copies a guest's memory by the log of changed pages alone finds, after any traffic, the very same memory.
//!
//! The seed is printed; `SEED` chooses another.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ashore_vhost_user::device::{
    Device, DeviceOptions, DeviceQueue, DeviceState, RingExchange, RingLayout, StateError,
};
use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, ReplyBody, RequestQueue, TransferMode};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

mod driver;
use driver::*;

const PAGE: u64 = 4096;
/// Where the guest's memory begins for the guest.
const GUEST: u64 = 5 << 30;
const LOG_ALL: u64 = 1 << 26;
const LOG_USED_RING: u32 = 1;
const RING_SIZE: u16 = 64;
/// What the guest writes lies before this, what the device writes behind it: a VMM knows of the guest's writes by other means.
const OF_DEVICE: u64 = 8 << 20;
const BUFFERS: u64 = OF_DEVICE + (1 << 20);
const LOG_BYTES: u64 = (GUEST + MEMORY_BYTES) / PAGE / 8;
const ROUNDS: usize = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e3779b97f4a7c15);
        (mixed ^ (mixed >> 29)) % end
    }
}

/// Writes somewhere in the room for the answer, by one of the ways there are, and finishes the request by one of them.
fn answer_somehow(mut exchange: RingExchange, file: &std::fs::File, random: &mut Random) {
    let (head, bulk) = exchange.parts();
    let unique = u64::from_ne_bytes(head[8..16].try_into().unwrap());
    let room = bulk.room().unwrap() as u64;
    if random.below(2) == 0 {
        let (at, len) = (random.below(room), random.below(room));
        let bytes = vec![random.below(256) as u8; len.min(room - at) as usize];
        bulk.fill(at as usize, &bytes).unwrap();
    }
    if random.below(2) == 0 {
        let (offset, len) = (random.below(1 << 16), random.below(room));
        bulk.read_from(file.as_fd(), offset, len as usize, TransferMode::default()).unwrap();
    }
    let (len, error) = if random.below(4) == 0 { (0, -5) } else { (random.below(room), 0) };
    match random.below(6) {
        0 => drop(exchange),
        1 => exchange.finish_without_reply(),
        _ => exchange.finish(OutHeader { len: OUT_HEADER + len as u32, error, unique }),
    }
}

/// Answers some on the queue's thread, and some on another one, later.
fn serve(queue: &mut DeviceQueue, seed: u64) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..1u32 << 15).flat_map(|word| (word as u16).to_le_bytes()).collect::<Vec<_>>())
        .unwrap();
    let (later, handed_over) = mpsc::channel::<RingExchange>();
    let other_file = file.try_clone().unwrap();
    let other = thread::spawn(move || {
        let mut random = Random(seed + 1);
        for exchange in handed_over {
            thread::sleep(Duration::from_micros(random.below(200)));
            answer_somehow(exchange, &other_file, &mut random);
        }
    });
    let mut random = Random(seed);
    while let Some(exchange) = queue.next() {
        match random.below(3) {
            0 => later.send(exchange).unwrap(),
            _ => answer_somehow(exchange, &file, &mut random),
        }
    }
    drop(later);
    other.join().unwrap();
}

fn layout_of(event_idx: bool) -> RingLayout {
    // A page ends in the middle of the completions, or between them and the event that the device asks for.
    let in_the_first_page = if event_idx { 4 + 8 * u64::from(RING_SIZE) } else { 128 };
    let used = OF_DEVICE + PAGE - in_the_first_page;
    RingLayout { size: RING_SIZE, descriptors: 0, available: 4096, used, event_idx, base: 0 }
}

/// The addresses of the ring, with or without its log.
fn addresses(driver: &Driver, logged: bool) -> VringConfigData {
    let base = driver.memory.address();
    VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: if logged { LOG_USED_RING } else { 0 },
        desc_table_addr: base + driver.layout.descriptors,
        used_ring_addr: base + driver.layout.used,
        avail_ring_addr: base + driver.layout.available,
        log_addr: logged.then_some(GUEST + driver.layout.used),
    }
}

fn event_of(fd: &std::os::fd::OwnedFd) -> EventFd {
    // SAFETY: the duplicate belongs to nobody else.
    unsafe { EventFd::from_raw_fd(fd.try_clone().unwrap().into_raw_fd()) }
}

fn connect(socket: UnixStream, driver: &Driver) -> (Frontend, u64) {
    let mut vmm = Frontend::from_stream(socket, 2);
    vmm.set_owner().unwrap();
    let offered = vmm.get_features().unwrap();
    assert_ne!(offered & LOG_ALL, 0);
    let event_idx = u64::from(driver.layout.event_idx) << 29;
    let features = offered & !LOG_ALL & !(1 << 29) | event_idx;
    vmm.set_features(features).unwrap();
    let protocol = vmm.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD));
    vmm.set_protocol_features(protocol).unwrap();
    vmm.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: GUEST,
        memory_size: MEMORY_BYTES,
        userspace_addr: driver.memory.address(),
        mmap_offset: 0,
        mmap_handle: driver.memory.file.as_raw_fd(),
    };
    vmm.set_mem_table(&[region]).unwrap();
    vmm.set_vring_num(1, RING_SIZE).unwrap();
    vmm.set_vring_addr(1, &addresses(driver, false)).unwrap();
    vmm.set_vring_base(1, 0).unwrap();
    vmm.set_vring_call(1, &event_of(&driver.call)).unwrap();
    vmm.set_vring_kick(1, &event_of(&driver.kick)).unwrap();
    vmm.set_vring_enable(1, true).unwrap();
    (vmm, features)
}

/// Keeps requests with room at random places on their way until told to stop; some are in flight then.
fn traffic(driver: &mut Driver, random: &mut Random, stop: &AtomicBool) -> u64 {
    let mut free: Vec<u16> = (0..RING_SIZE / 4).map(|slot| 4 * slot).collect();
    let mut requests = 0;
    while !stop.load(Ordering::SeqCst) {
        let old = driver.available;
        while random.below(8) > 0
            && let Some(head) = free.pop()
        {
            requests += 1;
            let request = request(READ, requests, &[0; 40]);
            let place = driver.place(head);
            driver.memory.write(place, &request);
            let readable =
                Descriptor { address: GUEST + place, len: request.len() as u32, flags: NEXT, next: head + 1 };
            driver.set_descriptor(head, readable);
            for piece in 1..4 {
                let address = GUEST + BUFFERS + random.below(MEMORY_BYTES - BUFFERS - (1 << 16));
                let most = [16, 200, 5000, 1 << 15][random.below(4) as usize];
                let len = OUT_HEADER + random.below(most) as u32;
                let (flags, next) = if piece < 3 { (WRITE | NEXT, head + piece + 1) } else { (WRITE, 0) };
                driver.set_descriptor(head + piece, Descriptor { address, len, flags, next });
            }
            driver.make_available(head);
        }
        driver.kick_since(old);
        // Now and then there is nothing to do, and the device asks to be notified.
        if random.below(20) == 0 {
            thread::sleep(Duration::from_micros(300));
        }
        if let Some((head, _)) = driver.used() {
            free.push(head as u16);
            free.extend(std::iter::from_fn(|| driver.used()).map(|(head, _)| head as u16));
        }
    }
    requests
}

/// What a VMM has copied so far.
struct Copy {
    pages: Vec<u8>,
    log: Shared,
    copied: u64,
}

impl Copy {
    fn of(memory: &Shared, log: Shared) -> Copy {
        Copy { pages: memory.read(0, MEMORY_BYTES as usize), log, copied: 0 }
    }

    /// Copies what is marked, and takes the marks away.
    fn follow(&mut self, memory: &Shared) {
        let first = GUEST / PAGE / 8;
        for byte in first..LOG_BYTES {
            let bits: &AtomicU8 = self.log.u8(byte);
            let bits = bits.swap(0, Ordering::SeqCst);
            for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                let at = (byte * 8 + bit) * PAGE - GUEST;
                self.pages[at as usize..(at + PAGE) as usize]
                    .copy_from_slice(&memory.read(at, PAGE as usize));
                self.copied += 1;
            }
        }
    }
}

fn migrate(seed: u64, event_idx: bool) {
    let options = DeviceOptions { request_queues: 1, ..DeviceOptions::default() };
    let device = Device::new(options, move |_, mut queue| serve(&mut queue, seed)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || device.serve_stream(theirs));
    let memory = Arc::new(Shared::new(MEMORY_BYTES));
    let mut driver = Driver::new(memory.clone(), layout_of(event_idx));
    let (vmm, features) = connect(ours, &driver);
    let with_log = addresses(&driver, true);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let requests = Arc::new(Mutex::new(0));
    let counted = requests.clone();
    let guest = thread::spawn(move || {
        *counted.lock().unwrap() = traffic(&mut driver, &mut Random(seed + 2), &stopped);
        driver
    });
    let mut random = Random(seed + 3);
    let mut wait = || thread::sleep(Duration::from_micros(random.below(2000)));
    wait();
    let log = Shared::new(LOG_BYTES);
    let region =
        VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle: log.file.as_raw_fd() };
    vmm.set_log_base(0, Some(region)).unwrap();
    wait();
    vmm.set_features(features | LOG_ALL).unwrap();
    wait();
    vmm.set_vring_addr(1, &with_log).unwrap();
    let mut copy = Copy::of(&memory, log);
    for _ in 0..ROUNDS {
        wait();
        copy.follow(&memory);
    }
    stop.store(true, Ordering::SeqCst);
    let driver = guest.join().unwrap();
    vmm.get_vring_base(1).unwrap();
    copy.follow(&memory);
    let now = memory.read(0, MEMORY_BYTES as usize);
    for (page, at) in (OF_DEVICE as usize..MEMORY_BYTES as usize).step_by(PAGE as usize).enumerate() {
        let range = at..at + PAGE as usize;
        let where_from = if page < 2 { "used ring" } else { "buffers" };
        assert!(
            copy.pages[range.clone()] == now[range],
            "page {page} ({where_from}) is not as it was copied"
        );
    }
    println!("{} requests, {} pages copied by the log", requests.lock().unwrap(), copy.copied);
    assert!(*requests.lock().unwrap() > 1000 && copy.copied > 1000);
    drop((vmm, driver));
    served.join().unwrap().unwrap();
}

#[test]
fn memory_copied_by_the_log_of_changed_pages_is_the_very_same() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("SEED={seed}");
    for round in 0..12 {
        migrate(seed + 10 * round, round % 2 == 0);
    }
}

/// Aim: who keeps something for the guest hears that it may move, once each time, and the VMM does not wait for that.
#[test]
fn the_state_is_prepared_when_logging_begins() {
    struct Prepared(Mutex<mpsc::Sender<()>>);
    impl DeviceState for Prepared {
        fn prepare(&self) {
            self.0.lock().unwrap().send(()).unwrap();
            thread::sleep(Duration::from_millis(200));
        }
        fn save(&self, _: &mut dyn Write) -> Result<(), StateError> {
            Ok(())
        }
        fn load(&self, _: &mut dyn Read) -> Result<(), StateError> {
            Ok(())
        }
    }
    let (tell, told) = mpsc::channel();
    let options = DeviceOptions { request_queues: 1, ..DeviceOptions::default() };
    let device = Device::new(options, move |_, mut queue| serve(&mut queue, 1)).unwrap();
    let device = device.with_state(Prepared(Mutex::new(tell)));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || device.serve_stream(theirs));
    let memory = Arc::new(Shared::new(MEMORY_BYTES));
    let driver = Driver::new(memory, layout_of(true));
    let (vmm, features) = connect(ours, &driver);
    let log = Shared::new(LOG_BYTES);
    let region =
        VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle: log.file.as_raw_fd() };
    vmm.set_log_base(0, Some(region)).unwrap();
    assert!(told.try_recv().is_err());
    for _ in 0..2 {
        vmm.set_features(features | LOG_ALL).unwrap();
        vmm.set_vring_addr(1, &addresses(&driver, true)).unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        vmm.set_features(features).unwrap();
        assert!(told.try_recv().is_err(), "once");
    }
    drop(vmm);
    served.join().unwrap().unwrap();
}

/// Aim: a VMM that ends a migration pays for it no longer, and one that has no log pays nothing.
#[test]
fn nothing_is_marked_after_the_log_was_switched_off() {
    let options = DeviceOptions { request_queues: 1, ..DeviceOptions::default() };
    let device = Device::new(options, move |_, mut queue| serve(&mut queue, 1)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || device.serve_stream(theirs));
    let memory = Arc::new(Shared::new(MEMORY_BYTES));
    let mut driver = Driver::new(memory.clone(), layout_of(true));
    let (vmm, features) = connect(ours, &driver);
    let log = Shared::new(LOG_BYTES);
    let region =
        VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle: log.file.as_raw_fd() };
    vmm.set_log_base(0, Some(region)).unwrap();
    let marked = || log.read(0, LOG_BYTES as usize).iter().any(|byte| *byte != 0);
    let send = |driver: &mut Driver| {
        let request = request(READ, 1, &[0; 40]);
        driver.memory.write(DATA, &request);
        let len = request.len() as u32;
        driver.set_descriptor(0, Descriptor { address: GUEST + DATA, len, flags: NEXT, next: 1 });
        let writable = Descriptor { address: GUEST + BUFFERS, len: 500, flags: WRITE, next: 0 };
        driver.set_descriptor(1, writable);
        let old = driver.available;
        driver.make_available(0);
        driver.kick_since(old);
        assert!(driver.wait_used(Duration::from_secs(20)).is_some());
    };
    send(&mut driver);
    assert!(!marked(), "a log alone is not yet a wish");
    vmm.set_features(features | LOG_ALL).unwrap();
    vmm.set_vring_addr(1, &addresses(&driver, true)).unwrap();
    send(&mut driver);
    assert!(marked());
    assert!(
        vmm.set_vring_addr(
            1,
            &VringConfigData { used_ring_addr: memory.address(), ..addresses(&driver, true) }
        )
        .is_err(),
        "a ring that runs cannot go elsewhere"
    );
    vmm.set_features(features).unwrap();
    vmm.set_vring_addr(1, &addresses(&driver, false)).unwrap();
    log.write(0, &vec![0; LOG_BYTES as usize]);
    send(&mut driver);
    vmm.get_vring_base(1).unwrap();
    assert!(!marked());
    drop(vmm);
    served.join().unwrap().unwrap();
}
