//! The state of a session on its way to another server: cut off anywhere, or changed anywhere, it is refused or understood, and
//! nothing panics; after a refusal there is no session.
//!
//! The seed is printed; `SEED` chooses another.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::fs;
use std::sync::Arc;

use ashore_passthrough::{HostFileSystems, Options, Passthrough};
use ashore_server::{FindBy, Limits, MigrationError, Session, Unfound, load, save};
use ashore_testkit::loopback::Loopback;
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, Opcode};
use tempfile::TempDir;

const ROUNDS: usize = 1500;
/// Before the first record: what it is, and its version.
const HEADER: usize = 16;
/// Before each record: its length, and its sum.
const FRAME: usize = 12;

struct World {
    share: TempDir,
    hosts: Arc<HostFileSystems>,
}

impl World {
    fn new() -> World {
        let share = tempfile::tempdir().unwrap();
        for name in ["one", "two", "three"] {
            fs::create_dir_all(share.path().join(name)).unwrap();
            fs::write(share.path().join(name).join("file"), name).unwrap();
        }
        World { share, hosts: HostFileSystems::with_sync_call(|_, _| Ok(())) }
    }

    fn session(&self) -> Arc<Session<Passthrough>> {
        let options = Options::new(self.share.path());
        let filesystem = Passthrough::with_hosts(options, Arc::clone(&self.hosts)).unwrap();
        Session::new(filesystem, Limits::default())
    }

    /// The state of a client that knows files and has some open.
    fn state(&self, by: FindBy) -> Vec<u8> {
        let session = self.session();
        let queue = Loopback::start(&session);
        queue.init(InitFlags::all());
        for name in [b"one\0".as_slice(), b"two\0", b"three\0"] {
            let body = queue.call(Opcode::Lookup, 1, &[name]).unwrap();
            let directory = u64::from_ne_bytes(body[..8].try_into().unwrap());
            let body = queue.call(Opcode::Lookup, directory, &[b"file\0"]).unwrap();
            let file = u64::from_ne_bytes(body[..8].try_into().unwrap());
            queue.call(Opcode::Open, file, &[&2u32.to_ne_bytes(), &[0; 4]]).unwrap();
            queue.call(Opcode::Opendir, directory, &[&[0; 8]]).unwrap();
        }
        drop(queue);
        let mut state = Vec::new();
        let moved = save(&session, by, &mut state).unwrap();
        assert_eq!((moved.nodes, moved.open), (6, 6));
        session.end().unwrap();
        state
    }

    fn load(
        &self,
        state: &[u8],
        unfound: Unfound,
    ) -> (Result<(), MigrationError>, Arc<Session<Passthrough>>) {
        let session = self.session();
        let loaded = load(&session, unfound, &mut &state[..]).map(drop);
        (loaded, session)
    }
}

/// As it stands before each record.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(0x9e37_79b9_7f4a_7c15, |sum, word| {
        (sum ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29)
    })
}

/// Where the bodies of the records are.
fn bodies(state: &[u8]) -> Vec<(usize, usize)> {
    let (mut bodies, mut at) = (Vec::new(), HEADER);
    while at < state.len() {
        let length = u32::from_le_bytes(state[at..at + 4].try_into().unwrap()) as usize;
        bodies.push((at + FRAME, length));
        at += FRAME + length;
    }
    bodies
}

#[test]
fn a_state_goes_on_elsewhere_and_cut_off_anywhere_it_does_not() {
    let world = World::new();
    for by in [FindBy::Path { verify: true }, FindBy::Handle] {
        let state = world.state(by);
        let (loaded, session) = world.load(&state, Unfound::Abort);
        loaded.unwrap();
        assert!(session.has_client());
        for length in 0..state.len() {
            let (loaded, session) = world.load(&state[..length], Unfound::TellTheClient);
            assert!(matches!(loaded, Err(MigrationError::Damaged(_))), "{length} of {} bytes", state.len());
            let queue = Loopback::start(&session);
            assert_eq!(queue.call(Opcode::Getattr, 1, &[&[0; 16]]), Err(Errno::ENOTCONN));
        }
        let longer = [&state[..], b"x"].concat();
        assert!(world.load(&longer, Unfound::Abort).0.is_err());
    }
}

#[test]
fn a_changed_state_is_refused_and_one_with_right_sums_is_refused_or_understood() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("SEED={seed}");
    let mut random: u64 = seed;
    let mut below = |end: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % end
    };
    let world = World::new();
    let states = [world.state(FindBy::Path { verify: true }), world.state(FindBy::Handle)];
    let mut understood = 0;
    for round in 0..ROUNDS {
        let mut state = states[round % 2].clone();
        let at = below(state.len());
        state[at] ^= 1 << below(8);
        assert!(world.load(&state, Unfound::TellTheClient).0.is_err(), "byte {at}");
        // Whoever wants to harm us gets the sums right.
        let mut state = states[round % 2].clone();
        let records = bodies(&state);
        for _ in 0..1 + below(3) {
            let (at, length) = records[below(records.len())];
            match below(4) {
                0 => state[at + below(length)..at + length].fill(0xff),
                _ => state[at + below(length)] = below(256) as u8,
            }
            let right = sum(&state[at..at + length]).to_le_bytes();
            state[at - 8..at].copy_from_slice(&right);
        }
        let (loaded, session) = world.load(&state, Unfound::TellTheClient);
        assert_eq!(loaded.is_ok(), session.has_client());
        understood += usize::from(loaded.is_ok());
        // Whatever came, it is no more than what the share has.
        assert!(session.filesystem().looked_up() <= 6 && session.filesystem().open_handles() <= 6);
        session.end().unwrap();
    }
    println!("{understood} of {ROUNDS} were understood");
    assert!(understood > 10, "the changes were not interesting");
}
