//! A guest that writes anything anywhere: nothing panics, and what is taken is returned exactly once.
//!
//! A million states by default, from a seed that is printed; `SEED` and `STATES` choose others.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use ashore_vhost_user::device::{DeviceQueue, RingExchange, RingLayout};
use ashore_wire::Request;
use ashore_wire::abi::OutHeader;
use ashore_wire::seam::{Exchange, Payload, ReplyBody};

mod driver;
use driver::*;

const MEMORY: u64 = 1 << 16;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e3779b97f4a7c15);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn address(&mut self) -> u64 {
        match self.below(12) {
            0 => self.next(),
            1 => MEMORY - self.below(100),
            2 => u64::MAX - self.below(100),
            // In the middle of the ring itself: the device may be asked to read or write there.
            3 => self.below(4096),
            _ => 8192 + self.below(MEMORY - 16384),
        }
    }

    fn length(&mut self) -> u32 {
        match self.below(10) {
            0 => 0,
            1 => self.next() as u32,
            2 => u32::MAX,
            3 => 16 * self.below(20) as u32,
            4 => self.below(60_000) as u32,
            5 => 1,
            _ => 16 + self.below(100) as u32,
        }
    }

    /// Mostly what a sensible driver would write, so that walks get far.
    fn descriptor(&mut self, index: u16, size: u16) -> Descriptor {
        let flags = match self.below(16) {
            0 => self.next() as u16,
            1 | 2 => INDIRECT,
            3 => INDIRECT | NEXT,
            4..8 => NEXT,
            8..11 => WRITE | NEXT,
            11..14 => WRITE,
            _ => 0,
        };
        let next = if self.chance(6) { self.next() as u16 } else { (index + 1) % size };
        Descriptor { address: self.address(), len: self.length(), flags, next }
    }
}

fn layout_of(size: u16, random: &mut Random) -> RingLayout {
    RingLayout { event_idx: random.chance(2), ..layout(size, 0, false, random.next() as u16) }
}

/// Writes a state: descriptors in the ring and where indirect ones lead, requests that are more or less requests.
fn scribble(driver: &Driver, random: &mut Random) {
    let size = driver.layout.size;
    for index in 0..size {
        let descriptor = random.descriptor(index, size);
        driver.set_descriptor(index, descriptor);
        if descriptor.address < MEMORY - 4096 && descriptor.address > 8192 {
            if descriptor.flags & INDIRECT != 0 {
                (0..4).for_each(|entry| {
                    let inner = random.descriptor(entry, 4);
                    driver.memory.write(descriptor.address + 16 * u64::from(entry), &inner.bytes());
                });
            } else {
                let body = [random.next() as u8; 64];
                driver
                    .memory
                    .write(descriptor.address, &request(random.below(70) as u32, random.next(), &body));
            }
        }
    }
}

fn make_available(driver: &mut Driver, random: &mut Random) {
    match random.below(100) {
        0 => driver.memory.u16(driver.layout.available + 2).store(random.next() as u16, Ordering::Release),
        1 => driver.make_available(random.next() as u16),
        _ => (0..1 + random.below(u64::from(driver.layout.size))).for_each(|_| {
            let head = random.below(u64::from(driver.layout.size)) as u16;
            driver.make_available(head);
        }),
    }
}

/// Uses a request as a server would, and finishes it in one of the ways there are. The bytes then reported as
/// written.
fn use_up(mut exchange: RingExchange, random: &mut Random) -> u32 {
    let (head, bulk) = exchange.parts();
    assert!(head.len() >= 40);
    let parsed = Request::parse(head, Payload::len(bulk), Default::default());
    let _ = std::hint::black_box(parsed);
    let unique = Request::id_of(head).unwrap().0;
    let mut buffer = [0; 300];
    assert_eq!(bulk.copy_to(&mut buffer), Payload::len(bulk).min(300));
    let room = bulk.room();
    let fits = room.is_some_and(|room| room >= 100);
    let position = room.unwrap_or(0).saturating_sub(100);
    assert_eq!(bulk.fill(position, &[7; 100]).is_ok(), fits);
    match (random.below(8), room) {
        (0, Some(_)) => {
            drop(exchange);
            16
        }
        (1, _) => {
            exchange.finish_without_reply();
            0
        }
        (2, Some(room)) => {
            exchange.finish(OutHeader { len: (room as u32).saturating_add(17), error: 0, unique });
            16
        }
        (_, Some(room)) => {
            let len = 16 + random.below(room as u64 + 1) as u32;
            exchange.finish(OutHeader { len, error: 0, unique });
            len
        }
        (_, None) => {
            exchange.finish(OutHeader { len: 16, error: 0, unique });
            0
        }
    }
}

#[test]
fn any_state_of_memory_is_survived_and_every_request_taken_is_returned_once() {
    let (seed, states) = (number("SEED", 7), number("STATES", 1_000_000));
    println!("SEED={seed} STATES={states}");
    let mut random = Random(seed);
    let memory = std::sync::Arc::new(Shared::new(MEMORY));
    let (mut done, mut requests, mut malformed) = (0, 0, 0);
    while done < states {
        let size = 1 << random.below(6);
        let mut driver = Driver::new(memory.clone(), layout_of(size, &mut random));
        let file = memory.file.try_clone().unwrap();
        let (mut queue, other) = DeviceQueue::detached(file, MEMORY, driver.layout, None, None).unwrap();
        let mut returned: u64 = 0;
        for _ in 0..40 {
            done += 1;
            scribble(&driver, &mut random);
            make_available(&mut driver, &mut random);
            let mut held = Vec::new();
            while let Some(exchange) = queue.try_next() {
                match random.chance(3) {
                    true => held.push(exchange),
                    false => drop(use_up(exchange, &mut random)),
                }
            }
            while !held.is_empty() {
                let one = random.below(held.len() as u64) as usize;
                use_up(held.swap_remove(one), &mut random);
            }
            // The guest may have had the used index overwritten through a descriptor; the device's own count is
            // what it publishes next, so all that can be said is how many it counted.
            returned = other.counters().requests;
        }
        other.drain();
        assert_eq!(other.counters().requests, returned);
        requests += returned;
        malformed += other.counters().malformed;
    }
    println!("{done} states, {requests} requests of which {malformed} were malformed");
    assert!(requests > states / 2 && malformed > states / 10, "the states were not interesting");
}

#[test]
fn every_completion_names_a_taken_chain_and_the_bytes_written() {
    // As above, but no descriptor leads into the rings, so that what they say can be compared with a model.
    let seed = number("SEED", 8);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let memory = std::sync::Arc::new(Shared::new(MEMORY));
    let mut compared = 0;
    for _ in 0..2000 {
        let size = 2 << random.below(5);
        let mut driver = Driver::new(memory.clone(), layout_of(size, &mut random));
        let file = memory.file.try_clone().unwrap();
        let (mut queue, other) = DeviceQueue::detached(file, MEMORY, driver.layout, None, None).unwrap();
        for _ in 0..20 {
            scribble(&driver, &mut random);
            keep_off_the_rings(&driver, &mut random);
            let mut heads: Vec<u16> = (0..size).collect();
            heads.retain(|_| random.chance(2));
            heads.iter().for_each(|head| driver.make_available(*head));
            let mut expected: HashMap<u32, u32> = HashMap::new();
            let mut order = Vec::new();
            while let Some(exchange) = queue.try_next() {
                order.push(use_up(exchange, &mut random));
            }
            let used: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
            assert_eq!(used.len(), heads.len(), "each exactly once");
            used.iter().for_each(|(head, len)| *expected.entry(*head).or_default() += len);
            assert_eq!(expected.len(), heads.len());
            let mut taken = order.iter();
            for (head, len) in used {
                assert!(heads.contains(&(head as u16)));
                // Malformed ones are answered by the device itself: with an error, or nothing.
                if taken.as_slice().first() == Some(&len) {
                    taken.next();
                } else {
                    assert!(len == 0 || len == 16, "{len}");
                }
                compared += 1;
            }
            assert_eq!(taken.len(), 0, "what was reported is what was written, in order");
        }
        assert!(other.counters().requests > 0);
    }
    println!("{compared} completions compared");
}

/// Sends whatever would touch the rings elsewhere.
fn keep_off_the_rings(driver: &Driver, random: &mut Random) {
    for index in 0..driver.layout.size {
        let address = 8192 + random.below(MEMORY / 2);
        let len = random.below(400) as u32;
        let (flags, next) =
            ([0, NEXT, WRITE, WRITE | NEXT][random.below(4) as usize], random.below(40) as u16);
        driver.set_descriptor(index, Descriptor { address, len, flags, next });
        driver.memory.write(address, &request(random.below(70) as u32, random.next(), &[1; 64]));
    }
}
