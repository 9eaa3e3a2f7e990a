//! A device and a VMM on the two ends of a socket, with the messages of a real one.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ashore_vhost_user::device::{
    Device, DeviceOptions, DeviceQueue, DeviceState, Ended, Listener, QueueIndex, RingExchange, ServeError,
    StateError, StopHandle, Tag,
};
use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, RequestQueue};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserProtocolFeatures as P,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

mod driver;
use driver::*;

const SOON: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(50);
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | LOG_ALL;
const LOG_ALL: u64 = 1 << 26;

type Served = JoinHandle<Result<Ended, ServeError>>;

/// A device with two request queues that answers everything, and the socket of its VMM.
fn device(
    handler: impl Fn(QueueIndex, DeviceQueue) + Send + Sync + 'static,
) -> (UnixStream, Served, StopHandle) {
    device_with(DeviceOptions::default(), handler)
}

fn device_with(
    options: DeviceOptions,
    handler: impl Fn(QueueIndex, DeviceQueue) + Send + Sync + 'static,
) -> (UnixStream, Served, StopHandle) {
    let options = DeviceOptions { request_queues: 2, tag: Some(Tag::new("share").unwrap()), ..options };
    let device = Device::new(options, handler).unwrap();
    let stop = device.stop_handle();
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, thread::spawn(move || device.serve_stream(theirs)), stop)
}

fn answer(mut exchange: RingExchange) {
    let unique = u64::from_ne_bytes(exchange.parts().0[8..16].try_into().unwrap());
    exchange.finish(OutHeader { len: OUT_HEADER, error: 0, unique });
}

fn answer_all(_: QueueIndex, mut queue: DeviceQueue) {
    while let Some(exchange) = queue.next() {
        answer(exchange);
    }
}

/// A VMM as far as it agrees on features.
fn greet(socket: UnixStream) -> Frontend {
    let mut vmm = Frontend::from_stream(socket, 3);
    vmm.set_owner().unwrap();
    assert_eq!(vmm.get_features().unwrap(), FEATURES);
    vmm.set_features(FEATURES).unwrap();
    let offered = vmm.get_protocol_features().unwrap();
    let always = P::MQ | P::REPLY_ACK | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE | P::CONFIG | P::LOG_SHMFD;
    assert_eq!(offered & !(P::INFLIGHT_SHMFD | P::DEVICE_STATE), always);
    vmm.set_protocol_features(offered).unwrap();
    vmm.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    vmm
}

fn region(memory: &Shared, guest_phys_addr: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr,
        memory_size: MEMORY_BYTES,
        userspace_addr: memory.address(),
        mmap_offset: 0,
        mmap_handle: memory.file.as_raw_fd(),
    }
}

fn event_of(fd: &std::os::fd::OwnedFd) -> EventFd {
    // SAFETY: the duplicate belongs to nobody else.
    unsafe { EventFd::from_raw_fd(fd.try_clone().unwrap().into_raw_fd()) }
}

fn start(vmm: &mut Frontend, index: usize, driver: &Driver) {
    let base = driver.memory.address();
    vmm.set_vring_num(index, driver.layout.size).unwrap();
    let data = VringConfigData {
        queue_max_size: driver.layout.size,
        queue_size: driver.layout.size,
        flags: 0,
        desc_table_addr: base + driver.layout.descriptors,
        used_ring_addr: base + driver.layout.used,
        avail_ring_addr: base + driver.layout.available,
        log_addr: None,
    };
    vmm.set_vring_addr(index, &data).unwrap();
    vmm.set_vring_base(index, driver.layout.base).unwrap();
    vmm.set_vring_call(index, &event_of(&driver.call)).unwrap();
    vmm.set_vring_kick(index, &event_of(&driver.kick)).unwrap();
    vmm.set_vring_enable(index, true).unwrap();
}

fn send(driver: &mut Driver, index: u16, id: u64) {
    driver.put_request(index, &request(GETATTR, id, &[]), 16);
    let old = driver.available;
    driver.make_available(index);
    driver.kick_since(old);
}

fn round_trip(driver: &mut Driver, id: u64) {
    send(driver, 0, id);
    assert_eq!(driver.wait_used(SOON), Some((0, 16)));
    assert_eq!(out_header(&driver.reply(0, 16)).2, id);
}

/// A VMM with memory and three rings in it, running.
fn running(socket: UnixStream) -> (Frontend, Arc<Shared>, Vec<Driver>) {
    let memory = Arc::new(Shared::new(MEMORY_BYTES));
    let mut vmm = greet(socket);
    vmm.set_mem_table(&[region(&memory, 0)]).unwrap();
    let offset = |index: u64| index * 65536;
    let mut drivers: Vec<_> =
        (0..3).map(|index| Driver::new(memory.clone(), layout(64, offset(index), true, 100))).collect();
    drivers.iter_mut().enumerate().for_each(|(index, driver)| start(&mut vmm, index, driver));
    (vmm, memory, drivers)
}

#[test]
fn a_vmm_shakes_hands_runs_its_queues_and_leaves() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, _memory, mut drivers) = running(socket);
    assert_eq!(vmm.get_queue_num().unwrap(), 3);
    assert_eq!(vmm.get_max_mem_slots().unwrap(), 509);
    let (_, config) = vmm.get_config(0, 44, VhostUserConfigFlags::empty(), &[0; 44]).unwrap();
    assert_eq!((&config[..6], &config[36..]), (&b"share\0"[..], &[2, 0, 0, 0, 0, 0, 0, 0][..]));
    for id in 0..1000 {
        round_trip(&mut drivers[(id % 3) as usize], id);
    }
    let base = vmm.get_vring_base(1).unwrap();
    assert_eq!(base, u32::from(drivers[1].available), "everything up to here has been answered");
    drop(vmm);
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
}

#[test]
fn a_queue_goes_on_where_it_was_stopped() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, _memory, mut drivers) = running(socket);
    let driver = &mut drivers[2];
    round_trip(driver, 1);
    for round in 0..20 {
        driver.layout.base = vmm.get_vring_base(2).unwrap() as u16;
        assert_eq!(driver.layout.base, driver.available);
        send(driver, 0, round);
        start(&mut vmm, 2, driver);
        assert_eq!(driver.wait_used(SOON), Some((0, 16)), "what was made available meanwhile is served");
        vmm.set_vring_enable(2, false).unwrap();
        send(driver, 0, round);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(driver.used(), None, "a disabled queue does nothing");
        vmm.set_vring_enable(2, true).unwrap();
        assert_eq!(driver.wait_used(SOON), Some((0, 16)));
    }
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn stopping_a_queue_waits_for_its_requests() {
    let (sender, receiver) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let (socket, served, _stop) = device(move |_, mut queue| {
        while let Some(exchange) = queue.next() {
            sender.lock().unwrap().send(exchange).unwrap();
        }
    });
    let (vmm, _memory, mut drivers) = running(socket);
    send(&mut drivers[1], 0, 1);
    let exchange: RingExchange = receiver.recv_timeout(SOON).unwrap();
    let answered = Arc::new(AtomicBool::new(false));
    let answered_too = answered.clone();
    let other = thread::spawn(move || {
        thread::sleep(MOMENT);
        answered_too.store(true, Ordering::SeqCst);
        answer(exchange);
    });
    vmm.get_vring_base(1).unwrap();
    assert!(answered.load(Ordering::SeqCst));
    assert_eq!(
        drivers[1].used(),
        Some((0, 16)),
        "the reply was there before the queue was reported as stopped"
    );
    other.join().unwrap();
    drop(vmm);
    served.join().unwrap().unwrap();
}

/// Aim: a queue that another server goes on with leaves nothing to it that a sync of this one had to wait for. Method: what is
/// available is far more than the device has taken when the VMM stops it.
#[test]
fn stopping_a_queue_is_answered_when_all_that_was_available_has_been_done() {
    for disable_first in [false, true] {
        let (socket, served, _stop) = device(|_, mut queue| {
            while let Some(exchange) = queue.next() {
                thread::sleep(Duration::from_millis(2));
                answer(exchange);
            }
        });
        let (mut vmm, _memory, mut drivers) = running(socket);
        (0..20).for_each(|index| send(&mut drivers[1], 2 * index, 1));
        if disable_first {
            vmm.set_vring_enable(1, false).unwrap();
        }
        let base = vmm.get_vring_base(1).unwrap();
        assert_eq!(base, u32::from(drivers[1].available));
        assert_eq!(std::iter::from_fn(|| drivers[1].used()).count(), 20);
        drop(vmm);
        served.join().unwrap().unwrap();
    }
}

/// A state that says no to what it is given, and gives what it is.
struct Picky;

impl DeviceState for Picky {
    fn save(&self, into: &mut dyn Write) -> Result<(), StateError> {
        Ok(into.write_all(b"state")?)
    }

    fn load(&self, from: &mut dyn Read) -> Result<(), StateError> {
        let mut state = Vec::new();
        from.read_to_end(&mut state)?;
        if state == b"state" { Ok(()) } else { Err("it is another's".into()) }
    }
}

/// Aim: a guest is never served without the state that should have come with it, nor is its state given away while it runs.
#[test]
fn queues_run_neither_while_the_state_moves_nor_without_it() {
    let device = Device::new(
        DeviceOptions {
            request_queues: 2,
            tag: Some(Tag::new("share").unwrap()),
            ..DeviceOptions::default()
        },
        answer_all,
    );
    let device = device.unwrap().with_state(Picky);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || device.serve_stream(theirs));
    let (vmm, _memory, mut drivers) = running(ours);
    let stopped = VhostTransferStatePhase::STOPPED;
    let save = |vmm: &Frontend| {
        let (mut from, into) = std::io::pipe().unwrap();
        vmm.set_device_state_fd(VhostTransferStateDirection::SAVE, stopped, into.into())?;
        let mut state = Vec::new();
        from.read_to_end(&mut state).unwrap();
        vmm.check_device_state().map(|()| state)
    };
    let load = |vmm: &Frontend, state: &[u8]| {
        let (from, mut into) = std::io::pipe().unwrap();
        vmm.set_device_state_fd(VhostTransferStateDirection::LOAD, stopped, from.into())?;
        into.write_all(state).unwrap();
        drop(into);
        vmm.check_device_state()
    };
    assert!(save(&vmm).is_err() && load(&vmm, b"state").is_err(), "queues run");
    round_trip(&mut drivers[1], 1);
    assert!(vmm.check_device_state().is_err(), "nothing has begun");
    for (index, driver) in drivers.iter_mut().enumerate() {
        driver.layout.base = vmm.get_vring_base(index).unwrap() as u16;
    }
    assert_eq!(save(&vmm).unwrap(), b"state");
    assert!(load(&vmm, b"nonsense").is_err());
    send(&mut drivers[1], 0, 2);
    assert!(vmm.set_vring_kick(1, &event_of(&drivers[1].kick)).is_err(), "there is no state to serve with");
    thread::sleep(MOMENT);
    assert_eq!(drivers[1].used(), None);
    load(&vmm, b"state").unwrap();
    vmm.set_vring_call(1, &event_of(&drivers[1].call)).unwrap();
    vmm.set_vring_kick(1, &event_of(&drivers[1].kick)).unwrap();
    assert_eq!(drivers[1].wait_used(SOON), Some((0, 16)), "what waited meanwhile is served");
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn disconnecting_in_the_middle_lets_requests_finish_and_ends_all_threads() {
    let running_handlers = Arc::new(AtomicUsize::new(0));
    let count = running_handlers.clone();
    let (socket, served, _stop) = device(move |_, mut queue| {
        count.fetch_add(1, Ordering::SeqCst);
        while let Some(exchange) = queue.next() {
            thread::sleep(Duration::from_millis(5));
            answer(exchange);
        }
        count.fetch_sub(1, Ordering::SeqCst);
    });
    let (vmm, _memory, mut drivers) = running(socket);
    for driver in &mut drivers {
        (0..8).for_each(|index| send(driver, 2 * index, 1));
    }
    thread::sleep(Duration::from_millis(7));
    drop(vmm);
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
    assert_eq!(running_handlers.load(Ordering::SeqCst), 0);
    let answered: usize = drivers.iter_mut().map(|driver| std::iter::from_fn(|| driver.used()).count()).sum();
    assert!((3..24).contains(&answered), "{answered} were taken, and those were answered");
}

#[test]
fn memory_comes_and_goes_while_queues_run() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, _memory, mut drivers) = running(socket);
    for round in 0..50 {
        let more = Shared::new(MEMORY_BYTES);
        let far = 1 << 40;
        let region = region(&more, far);
        vmm.add_mem_region(&region).unwrap();
        assert!(vmm.add_mem_region(&region).is_err(), "it is there already");
        let driver = &mut drivers[1];
        more.write(4096, &request(GETATTR, round, &[]));
        driver.set_descriptor(0, Descriptor { address: far + 4096, len: 40, flags: NEXT, next: 1 });
        driver.set_descriptor(
            1,
            Descriptor { address: far + MEMORY_BYTES - 16, len: 16, flags: WRITE, next: 0 },
        );
        let old = driver.available;
        driver.make_available(0);
        driver.kick_since(old);
        assert_eq!(driver.wait_used(SOON), Some((0, 16)));
        assert_eq!(out_header(&more.read(MEMORY_BYTES - 16, 16)), (16, 0, round));
        vmm.remove_mem_region(&region).unwrap();
        assert!(vmm.remove_mem_region(&region).is_err(), "it is gone already");
        let old = driver.available;
        driver.make_available(0);
        driver.kick_since(old);
        assert_eq!(driver.wait_used(SOON), Some((0, 0)), "and so is what it held");
        round_trip(&mut drivers[2], round);
    }
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn a_buffer_may_go_from_one_region_into_the_next() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, _memory, mut drivers) = running(socket);
    let more = Shared::new(MEMORY_BYTES);
    vmm.add_mem_region(&region(&more, MEMORY_BYTES)).unwrap();
    let driver = &mut drivers[1];
    let bytes = request(GETATTR, 4, &[]);
    driver.memory.write(MEMORY_BYTES - 13, &bytes[..13]);
    more.write(0, &bytes[13..]);
    driver.set_descriptor(0, Descriptor { address: MEMORY_BYTES - 13, len: 40, flags: NEXT, next: 1 });
    driver.set_descriptor(1, Descriptor { address: DATA, len: 16, flags: WRITE, next: 0 });
    let old = driver.available;
    driver.make_available(0);
    driver.kick_since(old);
    assert_eq!(driver.wait_used(SOON), Some((0, 16)));
    assert_eq!(out_header(&driver.memory.read(DATA, 16)), (16, 0, 4));
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn a_device_reset_stops_everything_and_lets_it_start_again() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, _memory, mut drivers) = running(socket);
    round_trip(&mut drivers[1], 1);
    vmm.reset_device().unwrap();
    send(&mut drivers[1], 0, 2);
    thread::sleep(MOMENT);
    assert_eq!(drivers[1].used(), None);
    vmm.set_features(FEATURES).unwrap();
    drivers[1].layout.base = drivers[1].available.wrapping_sub(1);
    start(&mut vmm, 1, &drivers[1]);
    assert_eq!(drivers[1].wait_used(SOON), Some((0, 16)));
    drop(vmm);
    served.join().unwrap().unwrap();
}

/// Aim: whoever keeps what guests changed is told when one is reset, after its last request. Method: a request that takes
/// a while is under way when the reset comes.
#[test]
fn a_reset_is_told_when_the_last_request_has_been_finished() {
    let finished = Arc::new(AtomicUsize::new(0));
    let (by_queue, by_reset) = (Arc::clone(&finished), Arc::clone(&finished));
    let (tell, told) = mpsc::channel();
    let tag = Some(Tag::new("share").unwrap());
    let options = DeviceOptions { request_queues: 2, tag, ..DeviceOptions::default() };
    let device = Device::new(options, move |_, mut queue: DeviceQueue| {
        while let Some(exchange) = queue.next() {
            thread::sleep(MOMENT);
            answer(exchange);
            by_queue.fetch_add(1, Ordering::SeqCst);
        }
    });
    let device = device.unwrap().on_reset(move || tell.send(by_reset.load(Ordering::SeqCst)).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || device.serve_stream(theirs));
    let (mut vmm, _memory, mut drivers) = running(ours);
    send(&mut drivers[1], 0, 1);
    thread::sleep(MOMENT / 4);
    vmm.reset_device().unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(1), "requests that were finished when the reset was told");
    drop(vmm);
    served.join().unwrap().unwrap();
}

/// Aim: a server that follows one that was killed takes what that had taken and not given back, in the same order, before
/// all else, and nothing that was given back. Method: the second one is given copies of the rings and of what is in flight,
/// made while the first one holds two of three requests.
#[test]
fn what_was_taken_by_a_server_that_was_killed_is_taken_again_by_the_next() {
    let keeping = DeviceOptions { keep_inflight: true, ..DeviceOptions::default() };
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let (socket, served, _stop) = device_with(keeping.clone(), move |_, mut queue| {
        let mut held = Vec::new();
        while let Some(mut exchange) = queue.next() {
            let unique = exchange.parts().0[8];
            if unique == 2 {
                answer(exchange);
            } else {
                held.push(exchange);
            }
            tell.lock().unwrap().send(unique).unwrap();
        }
    });
    let memory = Arc::new(Shared::new(MEMORY_BYTES));
    let mut vmm = greet(socket);
    vmm.set_mem_table(&[region(&memory, 0)]).unwrap();
    let (what, file) = vmm.get_inflight_fd(&VhostUserInflight::new(0, 0, 3, 64)).unwrap();
    vmm.set_inflight_fd(&what, file.as_raw_fd()).unwrap();
    let mut driver = Driver::new(memory.clone(), layout(64, 65536, true, 65533));
    start(&mut vmm, 1, &driver);
    for (index, id) in [(6, 1), (2, 2), (4, 3)] {
        send(&mut driver, index, id);
        assert_eq!(told.recv_timeout(SOON), Ok(id as u8));
    }
    assert_eq!(driver.wait_used(SOON), Some((2, 16)));
    let copy = Arc::new(Shared::new(MEMORY_BYTES));
    copy.write(0, &memory.read(0, 2 << 20));
    let mut kept = vec![0; what.mmap_size as usize];
    file.read_exact_at(&mut kept, 0).unwrap();
    drop(vmm);
    served.join().unwrap().unwrap();

    file.write_all_at(&kept, 0).unwrap();
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let (socket, served, _stop) = device_with(keeping, move |_, mut queue| {
        while let Some(mut exchange) = queue.next() {
            tell.lock().unwrap().send(exchange.parts().0[8]).unwrap();
            answer(exchange);
        }
    });
    driver.memory = copy.clone();
    // Made available while nobody served.
    send(&mut driver, 8, 4);
    let mut vmm = greet(socket);
    vmm.set_mem_table(&[region(&copy, 0)]).unwrap();
    vmm.set_inflight_fd(&what, file.as_raw_fd()).unwrap();
    start(&mut vmm, 1, &driver);
    for (head, id) in [(6, 1), (4, 3), (8, 4)] {
        assert_eq!(told.recv_timeout(SOON), Ok(id));
        assert_eq!(driver.wait_used(SOON), Some((head, 16)));
    }
    round_trip(&mut driver, 5);
    assert!(
        vmm.set_inflight_fd(&VhostUserInflight { mmap_size: 1 << 20, ..what }, file.as_raw_fd()).is_err()
    );
    assert_eq!(vmm.get_vring_base(1).unwrap(), u32::from(65533u16.wrapping_add(5)));
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_and_the_connection_lives() {
    let (socket, served, _stop) = device(answer_all);
    let (mut vmm, memory, mut drivers) = running(socket);
    vmm.get_vring_base(0).unwrap();
    assert!(vmm.set_features(FEATURES | 1 << 34).is_err());
    for size in [0, 3, 32769] {
        assert!(vmm.set_vring_num(0, size).is_err(), "{size} entries");
    }
    assert!(vmm.set_vring_num(1, 128).is_err(), "it is running");
    let data = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: memory.address() + MEMORY_BYTES - 16,
        used_ring_addr: memory.address(),
        avail_ring_addr: memory.address(),
        log_addr: None,
    };
    vmm.set_vring_addr(0, &data).unwrap();
    assert!(vmm.set_vring_kick(0, &event_of(&drivers[0].kick)).is_err(), "the ring is not in memory");
    let zero = VhostUserMemoryRegionInfo { memory_size: MEMORY_BYTES * 2, ..region(&memory, 1 << 41) };
    assert!(vmm.add_mem_region(&zero).is_err(), "the file is shorter than that");
    round_trip(&mut drivers[1], 1);
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn a_vmm_that_shares_no_memory_is_told_what_to_do() {
    let (socket, served, _stop) = device(answer_all);
    let vmm = greet(socket);
    vmm.set_features(FEATURES).unwrap();
    drop(vmm);
    let error = served.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("memory-backend-memfd"), "{error}");
    assert!(error.to_string().contains("share=on"), "{error}");
}

#[test]
fn a_vmm_whose_memory_is_a_copy_is_told_what_to_do() {
    // Method: the rings are in memory that the device has, and the driver writes to other memory.
    let (socket, served, _stop) = device(answer_all);
    let (vmm, _memory, mut drivers) = running(socket);
    drivers[1].memory = Arc::new(Shared::new(MEMORY_BYTES));
    for _ in 0..3 {
        send(&mut drivers[1], 0, 1);
        ring(&drivers[1].kick);
        thread::sleep(MOMENT);
    }
    drop(vmm);
    let error = served.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("share=on"), "{error}");
}

#[test]
fn a_vmm_that_only_asks_and_leaves_is_no_error() {
    let (socket, served, _stop) = device(answer_all);
    drop(greet(socket));
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
    let (socket, served, _stop) = device(answer_all);
    let vmm = Frontend::from_stream(socket, 3);
    vmm.set_owner().unwrap();
    vmm.get_features().unwrap();
    drop(vmm);
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
}

#[test]
fn garbage_on_the_socket_closes_the_connection() {
    // Method: random bytes, and messages with valid numbers and sizes but random bodies, a thousand connections.
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20);
    println!("SEED={seed}");
    let mut random = Random(seed);
    for round in 0..1000 {
        let (mut socket, served, _stop) = device(answer_all);
        for _ in 0..random.below(20) {
            let sensible = round % 2 == 0;
            let size = [0, 4, 8, 8, 8, 40, 40, 44, 256][random.below(9)];
            let mut message = Vec::new();
            message.extend((random.below(45) as u32).to_ne_bytes());
            message.extend(
                if sensible { 1u32 | (random.below(2) as u32) << 3 } else { random.next() as u32 }
                    .to_ne_bytes(),
            );
            message.extend(if sensible { size as u32 } else { random.below(5000) as u32 }.to_ne_bytes());
            let small = random.below(2) == 0;
            message
                .extend((0..size).map(|i| if small && i % 8 > 0 { 0 } else { random.next() as u8 & 0x1f }));
            if socket.write_all(&message).is_err() {
                break;
            }
        }
        drop(socket);
        let _ = served.join().expect("no panic");
    }
}

/// A small generator, so that a seed is all there is to a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e3779b97f4a7c15);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[test]
fn a_device_is_stopped_from_another_thread_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::bind(directory.path().join("socket")).unwrap();
    let device = Device::new(DeviceOptions::default(), answer_all).unwrap();
    let stop = device.stop_handle();
    let waiting = thread::spawn(move || device.serve(&listener));
    thread::sleep(MOMENT);
    stop.stop();
    assert_eq!(waiting.join().unwrap().unwrap(), Ended::Stopped);

    let (socket, served, stop) = device_again();
    let (_vmm, _memory, mut drivers) = running(socket);
    round_trip(&mut drivers[1], 1);
    stop.stop();
    assert_eq!(served.join().unwrap().unwrap(), Ended::Stopped);
}

fn device_again() -> (UnixStream, Served, StopHandle) {
    device(answer_all)
}

#[test]
fn one_vmm_after_another_connects_to_the_same_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let tag = Tag::new("t").ok();
    let options = DeviceOptions { request_queues: 2, tag, poll_us: 20, ..DeviceOptions::default() };
    let device = Device::new(options, answer_all).unwrap();
    let served = thread::spawn(move || {
        let ends = [0; 3].map(|_| device.serve(&listener).unwrap());
        (ends, device.counters())
    });
    for _ in 0..3 {
        let (_vmm, _memory, mut drivers) = running(UnixStream::connect(&path).unwrap());
        round_trip(&mut drivers[1], 1);
    }
    let (ends, counters) = served.join().unwrap();
    assert_eq!(ends, [Ended::Disconnected; 3]);
    assert_eq!((counters.len(), counters[1].requests, counters[2].requests), (3, 3, 0));
    assert!(!path.exists(), "the socket file is removed with its listener");
}

#[test]
fn a_mark_counts_what_waits_in_other_queues() {
    let (sender, receiver) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let (release, hold) = mpsc::channel::<()>();
    let hold = std::sync::Mutex::new(hold);
    let (socket, served, _stop) = device(move |index, mut queue| {
        while let Some(exchange) = queue.next() {
            if index.0 == 1 {
                sender.lock().unwrap().send(exchange.backlog()).unwrap();
            } else {
                hold.lock().unwrap().recv().unwrap();
            }
            answer(exchange);
        }
    });
    let (vmm, _memory, mut drivers) = running(socket);
    send(&mut drivers[2], 0, 1);
    send(&mut drivers[2], 2, 2);
    send(&mut drivers[1], 0, 3);
    let backlog = receiver.recv_timeout(SOON).unwrap();
    let mark = backlog.mark();
    send(&mut drivers[2], 4, 4);
    for _ in 0..2 {
        assert!(!mark.wait(MOMENT), "two requests wait in the other queue");
        release.send(()).unwrap();
    }
    assert!(mark.wait(SOON), "the third came after the mark");
    release.send(()).unwrap();
    drop(vmm);
    served.join().unwrap().unwrap();
}

/// One FORGET wakes the thread, and those behind it neither wake it nor wake the driver one by one.
#[test]
fn what_comes_by_hiprio_gathers_while_its_thread_naps() {
    const FORGETS: u16 = 30;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let hiprio_nap = Duration::from_millis(300);
    let tag = Tag::new("t").ok();
    let options = DeviceOptions { request_queues: 2, tag, hiprio_nap, ..DeviceOptions::default() };
    let device = Device::new(options, answer_all).unwrap();
    let served = thread::spawn(move || (device.serve(&listener).unwrap(), device.counters()));
    let (vmm, _memory, mut drivers) = running(UnixStream::connect(&path).unwrap());
    let begun = Instant::now();
    for id in 0..FORGETS {
        send(&mut drivers[0], 2 * id, id.into());
        // Each for itself, as from a guest that is slower than we are.
        thread::sleep(Duration::from_millis(2));
    }
    for _ in 0..FORGETS {
        assert!(drivers[0].wait_used(SOON).is_some(), "all are served, and the driver hears of it");
    }
    assert!(begun.elapsed() >= hiprio_nap);
    drop(vmm);
    let (_, counters) = served.join().unwrap();
    assert_eq!(counters[0].requests, u64::from(FORGETS));
    assert!(counters[0].wake_ups <= 3, "{}", counters[0]);
    assert!(counters[0].notifications <= 6, "{}", counters[0]);
}

#[test]
fn a_mark_does_not_wait_for_a_nap() {
    let (sender, receiver) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let options = DeviceOptions { hiprio_nap: SOON * 100, ..DeviceOptions::default() };
    let (socket, served, _stop) = device_with(options, move |index, mut queue| {
        while let Some(exchange) = queue.next() {
            if index.0 == 1 {
                sender.lock().unwrap().send(exchange.backlog()).unwrap();
            }
            answer(exchange);
        }
    });
    let (vmm, _memory, mut drivers) = running(socket);
    send(&mut drivers[0], 0, 1);
    let begun = Instant::now();
    while drivers[0].used().is_none() {
        assert!(begun.elapsed() < SOON, "the first is served at once");
    }
    thread::sleep(MOMENT);
    send(&mut drivers[0], 2, 2);
    assert!(drivers[0].wait_used(MOMENT).is_none(), "the second finds the thread napping");
    send(&mut drivers[1], 0, 3);
    let mark = receiver.recv_timeout(SOON).unwrap().mark();
    assert!(mark.wait(SOON), "who waits for the second ends the nap");
    drop(vmm);
    served.join().unwrap().unwrap();
}

#[test]
fn a_queues_thread_that_panics_does_not_take_the_device_along() {
    let (socket, served, _stop) = device(|index, mut queue| {
        while let Some(exchange) = queue.next() {
            assert_ne!(index.0, 1, "this panic is meant to be");
            answer(exchange);
        }
    });
    let (vmm, _memory, mut drivers) = running(socket);
    send(&mut drivers[1], 0, 9);
    assert_eq!(drivers[1].wait_used(SOON), Some((0, 16)));
    assert_eq!(out_header(&drivers[1].reply(0, 16)), (16, -5, 9), "the request it had is answered with EIO");
    round_trip(&mut drivers[2], 1);
    drop(vmm);
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
}

#[test]
fn the_frontend_may_map_any_file_it_likes() {
    // A region of a file that cannot be mapped is refused; nothing else happens.
    let (socket, served, _stop) = device(answer_all);
    let mut vmm = greet(socket);
    let null = File::open("/dev/null").unwrap();
    let info = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 4096,
        userspace_addr: 0x1000,
        mmap_offset: 0,
        mmap_handle: null.as_raw_fd(),
    };
    assert!(vmm.add_mem_region(&info).is_err());
    drop(vmm);
    assert_eq!(served.join().unwrap().unwrap(), Ended::Disconnected);
}
