//! Raw requests of several threads over several queues, against our server: no answer goes to another's request, no
//! request is lost, and closing in the middle leaves nobody waiting.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ashore_passthrough::Passthrough;
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};
use ashore_vhost_user::driver::{
    Call, LINUX_FLAGS, LinkOptions, Pages, RawConnection, RawError, VhostUserLink,
};
use ashore_wire::NodeId;
use ashore_wire::link::Link;
use tempfile::TempDir;

const QUEUES: u16 = 4;
const THREADS: u32 = 4;
/// Pages of a thread: half to write from, half to read into.
const PAGES: u32 = 64;
const FINITE: Duration = Duration::from_secs(30);

struct Served {
    share: TempDir,
    elsewhere: TempDir,
    serving: Option<JoinHandle<()>>,
}

impl Served {
    fn start() -> Served {
        let (share, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = ashore_passthrough::Options::new(share.path());
        let session = Session::new(Passthrough::new(options).unwrap(), Limits::default());
        let queues = DeviceOptions { request_queues: QUEUES, ..Default::default() };
        let device =
            Device::new(queues, move |_, queue| Worker::new(Arc::clone(&session)).run(queue)).unwrap();
        let listener = Listener::bind(elsewhere.path().join("socket")).unwrap();
        let serving = std::thread::spawn(move || drop(device.serve(&listener)));
        Served { share, elsewhere, serving: Some(serving) }
    }

    fn socket(&self) -> PathBuf {
        self.elsewhere.path().join("socket")
    }

    fn connect(&self, poll_us: u32) -> (RawConnection, Arc<VhostUserLink>) {
        let options = LinkOptions { request_queues: QUEUES, poll_us, ..Default::default() };
        let link = Arc::new(VhostUserLink::connect(self.socket(), options).unwrap());
        assert_eq!(link.request_queues(), usize::from(QUEUES));
        let raw = RawConnection::over(Arc::clone(&link) as Arc<dyn Link>).with_patience(FINITE);
        raw.init(LINUX_FLAGS).unwrap();
        (raw, link)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let ended = self.serving.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// xorshift64*: enough to be surprising, and repeatable.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// Each thread writes random parts of its own file, with other requests beside, and reads them back.
#[test]
fn four_threads_on_four_queues_keep_their_requests_apart() {
    for poll_us in [0, 50] {
        let served = Served::start();
        let (raw, _link) = served.connect(poll_us);
        let raw = &raw;
        let expected: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || random_requests(raw, thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        raw.syncfs().unwrap();
        for (thread, expected) in expected.iter().enumerate() {
            let there = std::fs::read(served.share.path().join(format!("f{thread}"))).unwrap();
            assert!(there == *expected, "thread {thread}, looking for {poll_us} us");
        }
    }
}

fn random_requests(raw: &RawConnection, thread: u32) -> Vec<u8> {
    let mut dice = Dice(0x9e37_79b9 + u64::from(thread));
    let (entry, handle) = raw.create(NodeId::ROOT, format!("f{thread}").as_bytes()).unwrap();
    let (file, ours, back) = (NodeId(entry.nodeid), thread * PAGES, thread * PAGES + PAGES / 2);
    let mut contents: Vec<u8> = Vec::new();
    for _ in 0..2000 {
        let offset = dice.below(200_000) as usize;
        let bytes = 1 + dice.below(u64::from(PAGES / 2) * Pages::BYTES as u64) as usize;
        let data: Vec<u8> = (0..bytes).map(|at| (at as u64 ^ dice.0) as u8).collect();
        for (page, part) in (ours..).zip(data.chunks(Pages::BYTES)) {
            raw.link().write_page(page, 0, part);
        }
        let write = raw.send(Call::write(file, handle, offset as u64, Pages { first: ours, bytes })).unwrap();
        let others: Vec<_> = (0..dice.below(6)).map(|_| raw.send(Call::getattr(file)).unwrap()).collect();
        raw.wait(write).unwrap();
        contents.resize(contents.len().max(offset + bytes), 0);
        contents[offset..offset + bytes].copy_from_slice(&data);
        let read = raw.read(file, handle, offset as u64, Pages { first: back, bytes }).unwrap();
        assert_eq!(read, bytes);
        let mut there = vec![0; bytes];
        for (page, part) in (back..).zip(there.chunks_mut(Pages::BYTES)) {
            raw.link().read_page(page, 0, part);
        }
        assert!(there == data, "what was written is read");
        for other in others {
            raw.wait(other).unwrap();
        }
    }
    raw.release(file, handle).unwrap();
    contents
}

/// Aim: each request ends exactly once, with an answer or with the link. Method: threads send bursts larger than a ring
/// while another closes the link.
#[test]
fn closing_in_the_middle_ends_every_request() {
    for round in 0..20u64 {
        let served = Served::start();
        let (raw, link) = served.connect([0, 50][round as usize % 2]);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| bursts_until_closed(&raw));
            }
            std::thread::sleep(Duration::from_millis(round));
            link.close();
        });
        assert_eq!(raw.getattr(NodeId::ROOT).unwrap_err(), RawError::Closed);
    }
}

fn bursts_until_closed(raw: &RawConnection) {
    loop {
        let sent: Vec<_> = (0..200).map_while(|_| raw.send(Call::getattr(NodeId::ROOT)).ok()).collect();
        let closed = sent.len() < 200;
        for sent in sent {
            assert!(matches!(raw.wait(sent), Ok(_) | Err(RawError::Closed)));
        }
        if closed {
            return;
        }
    }
}
