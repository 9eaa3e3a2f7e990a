//! Random operations on a file through the client, each compared with a model in plain memory.
//!
//! The server answers in shuffled order, the cache is smaller than the file, another thread syncs all the time and
//! one starts writeback. `ASHORE_FSX_OPERATIONS` sets how many operations a seed has (100,000 in CI),
//! `ASHORE_FSX_SEED` plays one seed only.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashore_client::toy::Toy;
use ashore_client::{CacheMode, Client, File, OpenOptions, Options};
use ashore_passthrough::Passthrough;
use ashore_server::{Limits, Session, Worker};
use ashore_testkit::scripted::{Scripted, all, served};
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::Opcode;
use ashore_wire::flags::OpenReplyFlags;

/// Bytes of the file, at most.
const SIZE_MAX: u64 = 600_000;
/// Pages of the cache: a little less than half of the largest file.
const PAGES: u32 = 72;
/// fallocate(2): punch a hole, and keep the size.
const PUNCH: u32 = 0x3;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// A length that is mostly small, sometimes some pages, rarely many.
    fn length(&mut self) -> u64 {
        match self.below(10) {
            0..=5 => 1 + self.below(5000),
            6..=8 => 1 + self.below(30_000),
            _ => 1 + self.below(200_000),
        }
    }
}

struct Run {
    random: Random,
    model: Vec<u8>,
    client: Client,
    file: File,
    direct: File,
    append: File,
    step: usize,
    last: String,
}

impl Run {
    fn new(seed: u64, client: Client) -> Run {
        client.create("f").unwrap().close().unwrap();
        let open = |options: OpenOptions| client.open_with("f", &options).unwrap();
        let file = open(OpenOptions::new().read(true).write(true));
        let direct = open(OpenOptions::new().read(true).write(true).direct(true));
        let append = open(OpenOptions::new().append(true));
        let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Run { random, model: Vec::new(), client, file, direct, append, step: 0, last: String::new() }
    }

    fn step(&mut self) {
        self.step += 1;
        match self.random.below(100) {
            0..=34 => self.write(false),
            35..=64 => self.read(false),
            65..=69 => self.write(true),
            70..=74 => self.read(true),
            75..=80 => self.append(),
            81..=87 => self.set_len(),
            88..=90 => self.punch(),
            91..=92 => self.copy(),
            93..=94 => self.reopen(),
            95..=97 => self.metadata(),
            98 => {
                self.last = "sync_all".into();
                self.file.sync_all().unwrap();
            }
            _ => self.client.start_writeback(),
        }
    }

    fn data(&mut self, length: u64) -> Vec<u8> {
        let tag = self.random.next();
        (0..length).map(|n| (tag >> (n % 7 * 8)) as u8 ^ n as u8).collect()
    }

    fn place(&mut self) -> u64 {
        self.random.below(self.model.len() as u64 + 20_000).min(SIZE_MAX - 1)
    }

    fn write(&mut self, direct: bool) {
        let offset = self.place();
        let length = self.random.length().min(SIZE_MAX - offset);
        let data = self.data(length);
        self.last = format!("write {offset}+{length} direct {direct}");
        let file = if direct { &self.direct } else { &self.file };
        file.write_all_at(&data, offset).unwrap();
        self.put(offset as usize, &data);
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset..end].copy_from_slice(data);
    }

    fn append(&mut self) {
        let length = self.random.length();
        if self.model.len() as u64 + length > SIZE_MAX {
            return;
        }
        let data = self.data(length);
        self.last = format!("append {length} at {}", self.model.len());
        (&self.append).write_all(&data).unwrap();
        self.put(self.model.len(), &data);
    }

    fn read(&mut self, direct: bool) {
        let offset = self.place();
        let mut buffer = vec![0xee; self.random.length() as usize];
        let file = if direct { &self.direct } else { &self.file };
        let read = file.read_at(&mut buffer, offset).unwrap();
        let start = self.model.len().min(offset as usize);
        let expected = &self.model[start..self.model.len().min(start + buffer.len())];
        assert_eq!(read, expected.len(), "step {} after {}: read at {offset}", self.step, self.last);
        if let Some(wrong) = (0..read).find(|at| buffer[*at] != expected[*at]) {
            panic!(
                "step {} after {}: byte {} (page {}) is {:#x}, not {:#x}; read {offset}+{read} direct {direct}, size {}",
                self.step,
                self.last,
                start + wrong,
                (start + wrong) / 4096,
                buffer[wrong],
                expected[wrong],
                self.model.len(),
            );
        }
    }

    fn set_len(&mut self) {
        let size = self.random.below(SIZE_MAX.min(self.model.len() as u64 + 50_000));
        self.last = format!("set_len {size} from {}", self.model.len());
        self.file.set_len(size).unwrap();
        self.model.resize(size as usize, 0);
    }

    fn punch(&mut self) {
        let offset = self.place();
        let length = self.random.length();
        self.last = format!("punch {offset}+{length}");
        self.file.allocate(offset, length, PUNCH).unwrap();
        let end = (offset + length).min(self.model.len() as u64) as usize;
        let start = (offset as usize).min(end);
        self.model[start..end].fill(0);
    }

    fn copy(&mut self) {
        let (from, to) = (self.place(), self.place());
        let length = self.random.length().min(SIZE_MAX - to).min(from.abs_diff(to));
        if length == 0 {
            return;
        }
        self.last = format!("copy {from}+{length} to {to}");
        let copied = self.file.copy_to(from, &self.file, to, length).unwrap() as usize;
        let end = self.model.len().min(from as usize + length as usize);
        let data = self.model[end.min(from as usize)..end].to_vec();
        assert_eq!(copied, data.len(), "step {}", self.step);
        if copied > 0 {
            self.put(to as usize, &data);
        }
    }

    fn reopen(&mut self) {
        self.last = "reopen".into();
        let options = OpenOptions::new().read(true).write(true);
        let again = self.client.open_with("f", &options).unwrap();
        std::mem::replace(&mut self.file, again).close().unwrap();
    }

    fn metadata(&mut self) {
        let size = self.client.metadata("f").unwrap().len();
        assert_eq!(size, self.model.len() as u64, "step {} after {}", self.step, self.last);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn play(cache: CacheMode, seed: u64, operations: u64) {
    let mut toy = Toy::default();
    if seed.is_multiple_of(2) {
        toy.open_flags = OpenReplyFlags::empty();
        toy.valid_seconds = 0;
    }
    let server = Scripted::new(toy, PAGES);
    server.shuffle(seed);
    if seed.is_multiple_of(3) {
        server.delay(all(Opcode::Write), Duration::from_micros(100));
    }
    if seed % 3 == 1 {
        server.shorten(all(Opcode::Write), 30_000);
    }
    let client = server.connect(options(cache));
    compare(cache, seed, operations, &client, &|| server.content("f"));
}

fn options(cache: CacheMode) -> Options {
    Options { cache, writeback_age: Duration::from_millis(300), max_writebacks: 8, ..Options::default() }
}

/// Plays one seed on this client; `content` is what the server has in the end.
fn compare(cache: CacheMode, seed: u64, operations: u64, client: &Client, content: &dyn Fn() -> Vec<u8>) {
    let (stop, syncs) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (client, stop, syncs) = (client.clone(), &stop, &syncs);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    client.sync().unwrap();
                    syncs.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
        }
        let mut run = Run::new(seed, client.clone());
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..operations).for_each(|_| run.step());
            run.client.sync().unwrap();
            assert!(content() == run.model, "the server has it as the model does");
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = played {
            eprintln!("failed: ASHORE_FSX_SEED={seed} ASHORE_FSX_OPERATIONS={operations}, mode {cache:?}");
            std::panic::resume_unwind(panic);
        }
    });
    let (seconds, syncs) = (start.elapsed().as_secs_f64(), syncs.load(Ordering::Relaxed));
    println!("{cache:?} seed {seed}: {operations} operations and {syncs} concurrent syncs in {seconds:.1} s");
}

fn seeds(cache: CacheMode) {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000);
    match number("ASHORE_FSX_SEED") {
        Some(seed) => play(cache, seed, operations),
        None => (1..=4).for_each(|seed| play(cache, seed, operations)),
    }
}

/// Our own server on a real directory, two queues whose requests overtake each other.
#[test]
fn random_operations_on_our_server_and_a_host_directory() {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000) / 5;
    for cache in [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack] {
        let directory = tempfile::tempdir().unwrap();
        let mut share = ashore_passthrough::Options::new(directory.path());
        share.writeback = true;
        let share = Passthrough::new(share).unwrap();
        let session = Session::new(share, Limits::default());
        let client = served::connect(&session, 2, PAGES, options(cache));
        assert_eq!(client.cache_mode(), cache);
        let path = directory.path().join("f");
        compare(cache, 77, operations, &client, &|| std::fs::read(&path).unwrap());
    }
}

/// The same over a socket and two virtqueues.
#[test]
fn random_operations_over_vhost_user() {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000) / 10;
    for cache in [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack] {
        let directory = tempfile::tempdir().unwrap();
        let mut share = ashore_passthrough::Options::new(directory.path());
        share.writeback = true;
        let session = Session::new(Passthrough::new(share).unwrap(), Limits::default());
        let queues = DeviceOptions { request_queues: 2, ..Default::default() };
        let device =
            Device::new(queues, move |_, queue| Worker::new(Arc::clone(&session)).run(queue)).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let socket = elsewhere.path().join("socket");
        let listener = Listener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || drop(device.serve(&listener)));
        let link = LinkOptions { pages: PAGES, request_queues: 2, ..Default::default() };
        let client = Client::new(VhostUserLink::connect(&socket, link).unwrap(), options(cache)).unwrap();
        let path = directory.path().join("f");
        compare(cache, 78, operations, &client, &|| std::fs::read(&path).unwrap());
        drop(client);
        serving.join().unwrap();
    }
}

#[test]
fn random_operations_without_a_cache() {
    seeds(CacheMode::None);
}

#[test]
fn random_operations_through_a_write_through_cache() {
    seeds(CacheMode::WriteThrough);
}

#[test]
fn random_operations_through_a_write_back_cache() {
    seeds(CacheMode::WriteBack);
}

/// Aim: what many threads write to places of their own is all there. Method: each has its own records in one file,
/// rewrites them at random and reads them back, while others sync.
#[test]
fn many_threads_in_one_file_keep_their_own_records() {
    for cache in [CacheMode::WriteThrough, CacheMode::WriteBack] {
        let server = Scripted::new(Toy::default(), PAGES);
        server.shuffle(7);
        let client = server.connect(Options { cache, ..Options::default() });
        let file = Arc::new(client.create("f").unwrap());
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (file, client) = (Arc::clone(&file), client.clone());
                scope.spawn(move || {
                    let mut random = Random(thread + 99);
                    let mut mine = [0u8; 64];
                    for round in 0..3000 {
                        let record = random.below(64);
                        let value = random.next() as u8 | 1;
                        file.write_all_at(&[value; 3000], (record * 4 + thread) * 3000).unwrap();
                        mine[record as usize] = value;
                        let record = random.below(64);
                        let mut back = [0; 3000];
                        let read = file.read_at(&mut back, (record * 4 + thread) * 3000).unwrap();
                        assert!(back[..read].iter().all(|byte| *byte == mine[record as usize]));
                        if round % 100 == 0 {
                            client.sync().unwrap();
                        }
                    }
                });
            }
        });
    }
}
