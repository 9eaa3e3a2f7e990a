//! The client against a back end that speaks vhost-user as it should, perhaps even agrees to a mount, and then writes
//! what it likes into the used rings and the memory it was given. Whatever it writes, the client gets an error, in
//! finite time.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ashore_client::{Client, Options};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::abi::{Attr, AttrOut, InitOut, OutHeader};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::IntoBytes;

const FINITE: Duration = Duration::from_secs(30);
/// VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC; no protocol features, so that hardly a message has an answer.
const FEATURES: u64 = 1 << 32 | 1 << 28;
const GUEST_BASE: u64 = 1 << 32;

/// What a dishonest back end does to a queue, again and again.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Any entry, any index.
    Anything,
    /// Entries that might be true: known descriptors, lengths that could be, one more at a time.
    LikelyEntries,
    /// The same, and garbage where answers are expected.
    LikelyEntriesAndAnswers,
    /// An index that runs backwards.
    Backwards,
}

/// The memory and queues of a client, seen from the other end: written with pwrite, so that nothing is mapped.
#[derive(Default)]
struct Grip {
    memory: Option<File>,
    base: u64,
    bytes: u64,
    /// Descriptors, available ring and used ring of each queue, as offsets.
    rings: [[u64; 3]; 2],
    calls: [Option<File>; 2],
}

/// xorshift64*: enough to be surprising, and repeatable.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// Follows the messages until both queues have been handed over.
fn shake_hands(socket: &mut UnixStream) -> Grip {
    let mut grip = Grip::default();
    loop {
        let (request, body, fds) = receive(socket);
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let index = || usize::from(body[0]);
        let mut file = fds.into_iter().map(File::from);
        match request {
            1 => reply(socket, request, &FEATURES.to_le_bytes()),
            5 => {
                (grip.memory, grip.bytes, grip.base) = (file.next(), number(16), number(24));
            }
            9 => {
                let [descriptors, used, available] = [8, 16, 24].map(|at| number(at) - grip.base);
                grip.rings[index()] = [descriptors, available, used];
            }
            13 => grip.calls[index()] = file.next(),
            12 if index() == 1 => return grip,
            _ => {}
        }
    }
}

fn receive(socket: &mut UnixStream) -> (u32, Vec<u8>, Vec<OwnedFd>) {
    let mut head = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&*socket, &mut [IoSliceMut::new(&mut head)], &mut ancillary, RecvFlags::WAITALL).unwrap();
    assert_eq!(received.bytes, 12, "the client goes before it has handed over its queues");
    let fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let fds = fds.collect();
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    socket.read_exact(&mut body).unwrap();
    (word(0), body, fds)
}

fn reply(socket: &mut UnixStream, request: u32, body: &[u8]) {
    // Version 1, and the flag of a reply.
    for word in [request, 1 | 4, body.len() as u32] {
        socket.write_all(&word.to_le_bytes()).unwrap();
    }
    socket.write_all(body).unwrap();
}

impl Grip {
    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.as_ref().unwrap().write_all_at(bytes, at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.as_ref().unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn number<const N: usize>(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.read::<N>(at));
        u64::from_le_bytes(bytes)
    }

    fn call(&self, queue: usize) {
        // It fails only when the counter is full, and then the client has been called often enough.
        let _ = self.calls[queue].as_ref().unwrap().write(&1u64.to_ne_bytes());
    }

    /// Waits until so many requests were made available.
    fn wait_for_requests(&self, count: u64) {
        for _ in 0..1000 {
            if self.number::<2>(self.rings[1][1] + 2) >= count {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("the client sends no request {count}");
    }

    /// Answers the first two requests as they should be: INIT, and what the root is like.
    fn accept_mount(&self) {
        let init =
            InitOut { major: 7, minor: 38, max_write: 1 << 20, max_background: 16, ..Default::default() };
        self.answer(0, init.as_bytes());
        let attr = Attr { ino: 1, mode: 0o040_755, nlink: 2, ..Default::default() };
        self.answer(1, AttrOut { attr, ..Default::default() }.as_bytes());
    }

    /// Answers the request that was made available so many others after the first.
    fn answer(&self, at: u16, body: &[u8]) {
        self.wait_for_requests(u64::from(at) + 1);
        let [descriptors, available, used] = self.rings[1];
        let slot = self.number::<2>(available + 4 + 2 * u64::from(at));
        let table = self.number::<8>(descriptors + 16 * slot) - GUEST_BASE;
        let [head, room] = [table, table + 16].map(|part| self.number::<8>(part) - GUEST_BASE);
        let len = (size_of::<OutHeader>() + body.len()) as u32;
        let header = OutHeader { len, error: 0, unique: self.number::<8>(head + 8) };
        self.write(room, header.as_bytes());
        self.write(room + size_of::<OutHeader>() as u64, body);
        self.complete(1, at, slot as u32, len);
        self.write(used + 2, &(at + 1).to_le_bytes());
        self.call(1);
    }

    fn complete(&self, queue: usize, at: u16, descriptor: u32, length: u32) {
        let entry = self.rings[queue][2] + 4 + 8 * u64::from(at % 128);
        self.write(entry, &descriptor.to_le_bytes());
        self.write(entry + 4, &length.to_le_bytes());
    }

    /// One lie to each queue.
    fn lie(&self, lie: Lie, dice: &mut Dice) {
        for queue in 0..2 {
            let used = self.rings[queue][2];
            let index = self.number::<2>(used + 2) as u16;
            let next = match lie {
                Lie::Anything => {
                    (0..128).for_each(|at| self.complete(queue, at, dice.roll() as u32, dice.roll() as u32));
                    dice.roll() as u16
                }
                Lie::LikelyEntries | Lie::LikelyEntriesAndAnswers => {
                    if matches!(lie, Lie::LikelyEntriesAndAnswers) {
                        self.spoil(dice);
                    }
                    self.complete(queue, index, dice.below(129) as u32, dice.below(200) as u32);
                    index.wrapping_add(1)
                }
                Lie::Backwards => index.wrapping_sub(1),
            };
            self.write(used + 2, &next.to_le_bytes());
            self.call(queue);
        }
    }

    /// Garbage in the memory, wherever the tables of the ring lead and anywhere else.
    fn spoil(&self, dice: &mut Dice) {
        let garbage: Vec<u8> = (0..64).flat_map(|_| dice.roll().to_le_bytes()).collect();
        let slot = dice.below(128);
        let table = self.number::<8>(self.rings[1][0] + 16 * slot).wrapping_sub(GUEST_BASE);
        if table < self.bytes - 64 {
            let answer = self.number::<8>(table + 16).wrapping_sub(GUEST_BASE);
            self.write(answer.min(self.bytes - 512), &garbage);
        }
        self.write(dice.below(self.bytes - 512), &garbage);
    }
}

/// Plays the back end for one client; ends when the client hangs up.
fn hostile(mut socket: UnixStream, lie: Lie, accepts: bool, mut dice: Dice) {
    let grip = shake_hands(&mut socket);
    if accepts {
        grip.accept_mount();
        // The client is at work before the first lie.
        grip.wait_for_requests(3);
    }
    socket.set_nonblocking(true).unwrap();
    // A message that is left unanswered is read all the same: the end of the stream is what we wait for.
    while !matches!(socket.read(&mut [0; 256]), Ok(0)) {
        grip.lie(lie, &mut dice);
        thread::sleep(Duration::from_micros(dice.below(300)));
    }
}

/// Mounts and works until something fails, which has to happen.
fn works_until_an_error(link: VhostUserLink) -> std::io::Error {
    // A client that hangs would be saved by these, and is not to be.
    let (connect_timeout, request_timeout) = (2 * FINITE, None);
    let options = Options { connect_timeout, request_timeout, ..Options::default() };
    let client = match Client::new(link, options) {
        Ok(client) => client,
        Err(error) => return error,
    };
    loop {
        let worked = client
            .write("file", &[7; 9000])
            .and_then(|()| client.read("file").map(drop))
            .and_then(|()| client.read_dir("/").map(drop))
            .and_then(|()| client.sync());
        if worked.is_err() {
            let synced = client.sync();
            return synced.and(worked).unwrap_err();
        }
    }
}

fn survive(lie: Lie, accepts: bool) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for seed in 1..=10 {
        let (done, result) = mpsc::channel();
        let path = path.clone();
        let client = thread::spawn(move || {
            let patience = Duration::from_millis(100);
            let options = LinkOptions { pages: 64, patience, ..LinkOptions::default() };
            let link = VhostUserLink::connect(&path, options).unwrap();
            done.send(works_until_an_error(link))
        });
        let (socket, _) = listener.accept().unwrap();
        let back_end = thread::spawn(move || hostile(socket, lie, accepts, Dice(seed * 7919)));
        let error = result.recv_timeout(FINITE);
        let error =
            error.unwrap_or_else(|_| panic!("hangs or has panicked: {lie:?}, {accepts}, seed {seed}"));
        assert!(!error.to_string().is_empty());
        client.join().unwrap().unwrap();
        back_end.join().unwrap();
    }
}

#[test]
fn lies_instead_of_a_mount() {
    for lie in [Lie::Anything, Lie::LikelyEntries, Lie::LikelyEntriesAndAnswers, Lie::Backwards] {
        survive(lie, false);
    }
}

#[test]
fn lies_after_the_mount() {
    for lie in [Lie::Anything, Lie::LikelyEntries, Lie::LikelyEntriesAndAnswers, Lie::Backwards] {
        survive(lie, true);
    }
}
