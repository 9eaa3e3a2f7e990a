//! What the client's cache costs beside the host's own: ratios of medians, measured side by side in one run.
//!
//!     cargo bench -p ashore-testkit --bench client            # all of it; words behind -- choose rows
//!
//! One thread, the host's page cache warm, our server in this process behind its socket. Native calls and ours take
//! turns of a few dozen milliseconds, because a shared machine is faster in one second than in the next; each turn of ours
//! is divided by the native one next to it, and the median of these ratios counts.

#![allow(clippy::unwrap_used, reason = "a measurement that fails is none")]

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use ashore_client::link::{Closed, Link, Message, Receiver};
use ashore_client::toy::{Pages, Toy};
use ashore_client::{Client, Options};
use ashore_testkit::share::{Mounted, SharedDirectory, Whose};
use ashore_wire::Opcode;
use parking_lot::Mutex;

const KIB_4: usize = 4 << 10;
const MIB_1: usize = 1 << 20;
/// A file that is small beside the cache.
const SMALL: u64 = 16 << 20;
/// A file that fits in the cache, and not in a processor's.
const MEDIUM: u64 = 128 << 20;
/// A file larger than the cache, for sequential reading and writing.
const LARGE: u64 = 512 << 20;
const CACHE: usize = 256 << 20;
const ROOMY: usize = 2 << 30;
const TURNS: usize = 21;
const TURN: Duration = Duration::from_millis(40);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    type Measure = fn() -> String;
    let rows: [(&str, Measure); 9] = [
        ("read_at 4 KiB, cached", || cached("read")),
        ("write_at 4 KiB, cached", || cached("write")),
        ("read_at 1 MiB in order, cached", || cached_in_order("read")),
        ("write_at 1 MiB in order, cached", || cached_in_order("write")),
        ("read_at 1 MiB in order, from the server", || sequential("read")),
        ("write_at 1 MiB in order, and close", || sequential("write")),
        ("writers while one syncs each second", writers_beside_a_sync),
        ("sync, nothing dirty, 64 writes in flight", sync_behind_writes),
        ("sync, nothing to do", sync_of_nothing),
    ];
    for (name, measure) in rows {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            println!("{name:42} {}", measure());
        }
    }
}

fn share() -> (SharedDirectory, Mounted) {
    share_with_cache(CACHE)
}

fn share_with_cache(bytes: usize) -> (SharedDirectory, Mounted) {
    let share = SharedDirectory::new(Whose::Ashore);
    let client = share.mount(Client::options().cache_bytes(bytes).request_queues(1));
    (share, client)
}

fn host_file(share: &SharedDirectory, name: &str, bytes: u64) -> (PathBuf, fs::File) {
    let path = share.path().join(name);
    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    for offset in (0..bytes).step_by(MIB_1) {
        file.write_all_at(&vec![7; MIB_1], offset).unwrap();
    }
    (path, file)
}

/// Calls a second, over about the time of a turn.
fn rate(mut call: impl FnMut(u64)) -> f64 {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < TURN {
        (0..64).for_each(|step| call(count + step));
        count += 64;
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Turns of both; what is told of each turn is a speed.
fn compared(unit: &str, mut ours: impl FnMut() -> f64, mut native: impl FnMut() -> f64) -> String {
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        turns.push((ours(), native()));
    }
    let ratio = median(turns.iter().map(|(ours, native)| ours / native).collect());
    let ours = median(turns.iter().map(|(ours, _)| *ours).collect());
    let native = median(turns.iter().map(|(_, native)| *native).collect());
    format!("{ratio:5.2} times native   ({ours:.0} {unit}; native {native:.0})")
}

fn cached(what: &str) -> String {
    let (share, client) = share();
    let (_, native) = host_file(&share, "file", SMALL);
    let file = client.open_with("file", &ashore_client::OpenOptions::new().read(true).write(true)).unwrap();
    let mut all = vec![0; SMALL as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    let mut buffer = [1; KIB_4];
    let mut native_buffer = [1; KIB_4];
    // All pages, in an order that no read-ahead foresees.
    let place = |step: u64| step.wrapping_mul(2654435761) % (SMALL / KIB_4 as u64) * KIB_4 as u64;
    let result = match what {
        "read" => compared(
            "calls/s",
            || rate(|step| file.read_exact_at(&mut buffer, place(step)).unwrap()),
            || rate(|step| native.read_exact_at(&mut native_buffer, place(step)).unwrap()),
        ),
        _ => compared(
            "calls/s",
            || rate(|step| file.write_all_at(&buffer, place(step)).unwrap()),
            || rate(|step| native.write_all_at(&native_buffer, place(step)).unwrap()),
        ),
    };
    drop(file);
    client.leave();
    result
}

/// A file that is in the cache, as the native one is in the host's, and as there small enough that writing back does not
/// begin at once: below a tenth of the cache, or of memory.
fn cached_in_order(what: &str) -> String {
    let (share, client) = share_with_cache(ROOMY);
    let (_, native) = host_file(&share, "native", MEDIUM);
    let (_, _) = host_file(&share, "ours", MEDIUM);
    let file = client.open_with("ours", &ashore_client::OpenOptions::new().read(true).write(true)).unwrap();
    let mut buffer = vec![1; MIB_1];
    let mut native_buffer = vec![1; MIB_1];
    (0..MEDIUM).step_by(MIB_1).for_each(|offset| file.read_exact_at(&mut buffer, offset).unwrap());
    let place = |step: u64| step * MIB_1 as u64 % MEDIUM;
    let result = match what {
        "read" => compared(
            "MiB/s",
            || rate(|step| file.read_exact_at(&mut buffer, place(step)).unwrap()),
            || rate(|step| native.read_exact_at(&mut native_buffer, place(step)).unwrap()),
        ),
        _ => compared(
            "MiB/s",
            || rate(|step| file.write_all_at(&buffer, place(step)).unwrap()),
            || rate(|step| native.write_all_at(&native_buffer, place(step)).unwrap()),
        ),
    };
    drop(file);
    client.leave();
    result
}

fn sequential(what: &str) -> String {
    let (share, client) = share();
    let (_, native) = host_file(&share, "native", LARGE);
    host_file(&share, "ours", LARGE);
    let mut buffer = vec![1; MIB_1];
    let mut native_buffer = vec![1; MIB_1];
    let mib = |begun: Instant| LARGE as f64 / MIB_1 as f64 / begun.elapsed().as_secs_f64();
    let offsets = || (0..LARGE).step_by(MIB_1);
    let result = if what == "read" {
        let ours = || {
            // Opening drops what is cached.
            let file = client.open("ours").unwrap();
            let begun = Instant::now();
            offsets().for_each(|offset| file.read_exact_at(&mut buffer, offset).unwrap());
            mib(begun)
        };
        compared("MiB/s", ours, || {
            let begun = Instant::now();
            offsets().for_each(|offset| native.read_exact_at(&mut native_buffer, offset).unwrap());
            mib(begun)
        })
    } else {
        let ours = || {
            let file = client.open_with("ours", &ashore_client::OpenOptions::new().write(true)).unwrap();
            let begun = Instant::now();
            offsets().for_each(|offset| file.write_all_at(&buffer, offset).unwrap());
            // Closed, the server has all of it.
            file.close().unwrap();
            mib(begun)
        };
        compared("MiB/s", ours, || {
            let begun = Instant::now();
            offsets().for_each(|offset| native.write_all_at(&native_buffer, offset).unwrap());
            mib(begun)
        })
    };
    client.leave();
    result
}

/// The share in memory, so that no disk is measured.
fn writers_beside_a_sync() -> String {
    let (share, client) = share();
    host_file(&share, "file", SMALL);
    let file = client.open_with("file", &ashore_client::OpenOptions::new().read(true).write(true)).unwrap();
    let mut all = vec![0; SMALL as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    let count = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let mut ratios = Vec::new();
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        scope.spawn(|| {
            let buffer = [3; KIB_4];
            let mut step = 0u64;
            while !over.load(Ordering::Relaxed) {
                let place = step.wrapping_mul(2654435761) % (SMALL / KIB_4 as u64) * KIB_4 as u64;
                file.write_all_at(&buffer, place).unwrap();
                step += 1;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let writes_in = |time: Duration, sync: bool| {
            let (before, begun) = (count.load(Ordering::Relaxed), Instant::now());
            let mut took = Duration::ZERO;
            if sync {
                client.sync().unwrap();
                took = begun.elapsed();
            }
            thread::sleep(time.saturating_sub(begun.elapsed()));
            let writes = count.load(Ordering::Relaxed) - before;
            (writes as f64 / begun.elapsed().as_secs_f64(), took)
        };
        for _ in 0..9 {
            let (with, took) = writes_in(Duration::from_secs(1), true);
            let (without, _) = writes_in(Duration::from_secs(1), false);
            ratios.push(with / without);
            slowest = slowest.max(took);
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(file);
    client.leave();
    format!("{:5.2} of their speed without   (slowest sync {slowest:.1?})", median(ratios))
}

fn sync_behind_writes() -> String {
    const WRITES: usize = 64;
    let link = Arc::new(Held::default());
    let client = Client::with_link(Arc::clone(&link) as Arc<dyn Link>, Options::default()).unwrap();
    let files: Vec<_> = (0..WRITES).map(|number| client.create(number.to_string()).unwrap()).collect();
    let mut late = Vec::new();
    for _ in 0..201 {
        link.hold.store(true, Ordering::SeqCst);
        files.iter().for_each(|file| file.write_all_at(&[1; KIB_4], 0).unwrap());
        client.start_writeback();
        while link.held.lock().len() < WRITES {
            thread::yield_now();
        }
        // The times of files would be changes too, and are sent by a sync only.
        let syncing = client.clone();
        let sync = thread::spawn(move || {
            syncing.sync().unwrap();
            Instant::now()
        });
        thread::sleep(Duration::from_millis(2));
        assert!(!sync.is_finished(), "it waits for the writes");
        let last = link.release();
        late.push(sync.join().unwrap().saturating_duration_since(last).as_secs_f64() * 1e6);
    }
    late.sort_by(f64::total_cmp);
    format!("{:5.1} µs after the last of them (median; nine in ten below {:.1})", late[100], late[180])
}

fn sync_of_nothing() -> String {
    let (_share, client) = share();
    client.sync().unwrap();
    let took = (0..501).map(|_| {
        let begun = Instant::now();
        client.sync().unwrap();
        begun.elapsed().as_secs_f64() * 1e6
    });
    let median = median(took.collect());
    client.leave();
    format!("{median:5.1} µs over the socket")
}

/// A server that answers at once, but for WRITEs while it is told to hold them.
struct Held {
    toy: Mutex<Toy>,
    pages: Pages,
    receiver: OnceLock<Arc<dyn Receiver>>,
    hold: AtomicBool,
    held: Mutex<Vec<Message>>,
}

impl Default for Held {
    fn default() -> Held {
        Held {
            toy: Mutex::default(),
            pages: Pages::new(4096),
            receiver: OnceLock::new(),
            hold: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }
}

impl Held {
    fn answer(&self, message: &Message) {
        let reply = self.toy.lock().answer(&message.head, &self.pages.gather(&message.payload));
        if let (Some(reply), Some(receiver), true) = (reply, self.receiver.get(), message.id != 0) {
            receiver.completed(self.pages.deliver(message, reply));
        }
    }

    /// Answers what was held; says when the last answer was about to be given.
    fn release(&self) -> Instant {
        self.hold.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.held.lock());
        let mut last = Instant::now();
        for message in &held {
            last = Instant::now();
            self.answer(message);
        }
        last
    }
}

impl Link for Held {
    fn pages(&self) -> u32 {
        self.pages.len()
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        self.pages.read(page, offset, into);
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        self.pages.write(page, offset, from);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        self.pages.zero(page, range);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        assert!(self.receiver.set(receiver).is_ok(), "a link is started once");
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        let opcode = u32::from_ne_bytes(message.head[4..8].try_into().unwrap());
        if self.hold.load(Ordering::SeqCst) && opcode == Opcode::Write as u32 {
            self.held.lock().push(message);
        } else {
            self.answer(&message);
        }
        Ok(())
    }

    fn close(&self) {}
}
