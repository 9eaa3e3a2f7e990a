//! Random operations on one file through a client, each compared with a model in plain memory, while other threads
//! sync all the time. Named after fsx, which did it first.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, Client, File, OpenOptions, Options};

/// Bytes of the file, at most.
const SIZE_MAX: u64 = 600_000;
/// Pages of the cache: a little less than half of the largest file.
pub const PAGES: u32 = 72;
/// fallocate(2): punch a hole, and keep the size.
const PUNCH: u32 = 0x3;

/// xorshift64*: enough to be surprising, and repeatable.
pub struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number of 48 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit.max(1)
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
        let random = Random::new(seed);
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
        let tag = self.random.roll();
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

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Options under which a cache this small gets no rest.
pub fn options(cache: CacheMode) -> Options {
    Options { cache, writeback_age: Duration::from_millis(300), max_writebacks: 8, ..Options::default() }
}

/// Plays one seed on this client; `content` is what the server has in the end.
pub fn compare(cache: CacheMode, seed: u64, operations: u64, client: &Client, content: &dyn Fn() -> Vec<u8>) {
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
