//! The server over a file system in memory: what any transport and any file system may rely on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ashore_server::{Limits, Session};
use ashore_testkit::loopback::{Loopback, request};
use ashore_testkit::memory_fs::MemoryFs;
use ashore_wire::abi::*;
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, Opcode};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

fn served() -> (Arc<Session<MemoryFs>>, Loopback) {
    let session = Session::new(MemoryFs::default(), Limits::default());
    let client = Loopback::start(&session);
    (session, client)
}

fn entry(reply: &[u8]) -> EntryOut {
    EntryOut::read_from_prefix(reply).unwrap().0
}

fn create(client: &Loopback, name: &[u8]) -> (u64, u64) {
    let arguments = CreateIn { flags: 2, mode: 0o644, ..Default::default() };
    let reply = client.call(Opcode::Create, 1, &[arguments.as_bytes(), name]).unwrap();
    (entry(&reply).nodeid, OpenOut::read_from_prefix(&reply[128..]).unwrap().0.fh)
}

#[test]
fn a_file_is_made_written_read_and_removed() {
    let (session, client) = served();
    client.init(InitFlags::all());
    let (node, fh) = create(&client, b"file\0");
    let data = vec![7u8; 10_000];
    let write = WriteIn { fh, offset: 100, size: 10_000, ..Default::default() };
    let reply = client.call(Opcode::Write, node, &[write.as_bytes(), &data]).unwrap();
    assert_eq!(WriteOut::read_from_bytes(&reply).unwrap().size, 10_000);
    let read = ReadIn { fh, offset: 99, size: 4, ..Default::default() };
    assert_eq!(client.call(Opcode::Read, node, &[read.as_bytes()]).unwrap(), [0, 7, 7, 7]);
    assert_eq!(client.call(Opcode::Syncfs, 1, &[&[0; 8]]).unwrap(), [0; 0]);
    client.call(Opcode::Unlink, 1, &[b"file\0"]).unwrap();
    assert_eq!(client.call(Opcode::Lookup, 1, &[b"file\0"]), Err(Errno::ENOENT));
    let attr = client.call(Opcode::Getattr, node, &[GetattrIn::default().as_bytes()]).unwrap();
    assert_eq!(AttrOut::read_from_bytes(&attr).unwrap().attr.size, 10_100, "it is still open");
    client.call(Opcode::Release, node, &[ReleaseIn { fh, ..Default::default() }.as_bytes()]).unwrap();
    let forget = ForgetIn { nlookup: 1 };
    assert!(client.submit(&request(Opcode::Forget, node, &[forget.as_bytes()]), 0).wait().is_none());
    assert_eq!((session.filesystem().inodes(), session.filesystem().handles()), (0, 0));
}

#[test]
fn before_init_everything_else_is_refused() {
    let (_session, client) = served();
    assert_eq!(client.call(Opcode::Lookup, 1, &[b"a\0"]), Err(Errno::ENOTCONN));
    assert_eq!(client.call(Opcode::Syncfs, 1, &[&[0; 8]]), Err(Errno::ENOTCONN), "never success");
}

#[test]
fn destroy_syncs_and_forgets() {
    let (session, client) = served();
    client.init(InitFlags::all());
    create(&client, b"file\0");
    client.call(Opcode::Destroy, 0, &[]).unwrap();
    assert_eq!(session.filesystem().syncs.load(Ordering::SeqCst), 1);
    assert_eq!((session.filesystem().looked_up(), session.filesystem().handles()), (0, 0));
    assert_eq!(client.call(Opcode::Getattr, 1, &[&[0; 16]]), Err(Errno::ENOTCONN));
    client.init(InitFlags::all());
    assert!(client.call(Opcode::Lookup, 1, &[b"file\0"]).is_ok());
}

#[test]
fn a_guest_that_is_reset_begins_anew_after_a_sync() {
    let (session, client) = served();
    client.init(InitFlags::all());
    create(&client, b"file\0");
    client.init(InitFlags::all());
    assert_eq!(session.filesystem().syncs.load(Ordering::SeqCst), 1);
    assert_eq!((session.filesystem().looked_up(), session.filesystem().handles()), (0, 0));
}

#[test]
fn an_answer_without_room_is_not_half_done() {
    let (session, client) = served();
    client.init(InitFlags::all());
    let mkdir = request(Opcode::Mkdir, 1, &[MkdirIn::default().as_bytes(), b"dir\0"]);
    assert!(client.submit(&mkdir, 8).wait().is_none(), "no room for a header: not done");
    assert_eq!(session.filesystem().inodes(), 0);
    let reply = client.submit(&mkdir, 16 + 64).wait().unwrap();
    assert_eq!(reply, Err(Errno::ERANGE), "no room for the entry: not counted as looked up");
    assert_eq!(session.filesystem().looked_up(), 0);
}

#[test]
fn names_come_in_pieces_and_each_once() {
    let (session, client) = served();
    client.init(InitFlags::all());
    for number in 0..500 {
        let name = format!("name-{number:03}\0");
        client.call(Opcode::Mkdir, 1, &[MkdirIn::default().as_bytes(), name.as_bytes()]).unwrap();
    }
    let opened = client.call(Opcode::Opendir, 1, &[OpenIn::default().as_bytes()]).unwrap();
    let fh = OpenOut::read_from_bytes(&opened).unwrap().fh;
    let (mut seen, mut offset) = (0, 0);
    loop {
        let read = ReadIn { fh, offset, size: 4096, ..Default::default() };
        let reply = client.call(Opcode::Readdirplus, 1, &[read.as_bytes()]).unwrap();
        if reply.is_empty() {
            break;
        }
        assert!(reply.len() <= 4096);
        let mut rest = &reply[..];
        while let Ok((head, _)) = Direntplus::read_from_prefix(rest) {
            (seen, offset) = (seen + 1, head.dirent.off);
            rest = &rest[(152 + head.dirent.namelen as usize).next_multiple_of(8)..];
        }
    }
    assert_eq!((seen, session.filesystem().looked_up()), (500, 500));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Aim: no message whatever makes the server panic, leak or leave a client waiting. Method: a million messages
    /// in all, with opcodes mostly known and lengths mostly right; each must be answered or given back.
    #[test]
    fn a_million_random_messages_are_all_answered(seed: u64) {
        let (session, client) = served();
        client.init(InitFlags::all());
        let mut random = Random(seed | 1);
        let mut pending = Vec::new();
        for _ in 0..5_000 {
            let room = [0, 8, 16, 24, 200, 5000][random.below(6)];
            pending.push(client.submit(&random.message(), room));
        }
        for reply in pending {
            let _ = reply.wait();
        }
        client.init(InitFlags::all());
        prop_assert_eq!((session.filesystem().looked_up(), session.filesystem().handles()), (0, 0));
    }
}

/// A small generator (xorshift64), so that one seed is a whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Mostly small numbers, so that nodes and handles that exist are hit.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.next() % 4096,
            _ => self.next() % 8,
        }
    }

    fn message(&mut self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..5 + self.below(20)).flat_map(|_| self.number().to_ne_bytes()).collect();
        // Names: a letter, its NUL, somewhere in the arguments.
        let position = bytes.len() - 8;
        bytes[position..position + 4].copy_from_slice(&[b'a' + self.below(4) as u8, 0, b'b', 0]);
        let length = bytes.len() as u32;
        // DESTROY would end the session for all that follows.
        let opcode = match self.below(56) as u32 {
            38 => 50,
            opcode => opcode,
        };
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        if self.below(10) > 0 {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[36..40].copy_from_slice(&[0; 4]);
        }
        bytes.truncate(bytes.len() - self.below(3));
        bytes
    }
}
