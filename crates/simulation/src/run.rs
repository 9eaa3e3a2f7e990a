//! One seed: a workload, its host, and the oracle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ashore_barrier::model::{thread, time};
use ashore_client::{CacheMode, Client, File, OpenOptions, Options};
use ashore_server::{Limits, Session};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::host::{Cell, Fault, HIDDEN, SUBMOUNT, SimFs, Temper};
use crate::link::SimLink;
use crate::schedule::{self, Dice, Seeds};

const PAGE: u64 = 4096;
/// Longer than any execution lasts.
const NEVER: Duration = Duration::from_secs(u64::MAX);
const STACK: usize = 256 << 10;
const MOST_STEPS: usize = 1_000_000;

/// What was covered.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub seeds: u64,
    pub syncs: u64,
    pub errors_told: u64,
    pub crash_points: u64,
    /// By kind: how often, and in how many seeds.
    pub faults: BTreeMap<Fault, (u64, u64)>,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.seeds += other.seeds;
        self.syncs += other.syncs;
        self.errors_told += other.errors_told;
        self.crash_points += other.crash_points;
        for (fault, (times, seeds)) in &other.faults {
            let sum = self.faults.entry(*fault).or_default();
            (sum.0, sum.1) = (sum.0 + times, sum.1 + seeds);
        }
    }
}

/// Runs the random workload of each of these seeds.
pub fn run(seeds: Range<u64>) -> Figures {
    let figures = Arc::new(Mutex::new(Figures::default()));
    let sum = Arc::clone(&figures);
    each(seeds, "every_sync_that_succeeds_is_true", move |seed| one(seed, &sum));
    figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs `execution` under the schedule of each of these seeds. The first that fails panics with one line that says how to
/// run it again: the seed, and the test's name.
pub fn each(seeds: Range<u64>, test: &str, execution: impl Fn(u64) + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    let runner = Runner::new(Seeds::new(seeds), config);
    let execution = move || {
        let over = Arc::new(AtomicBool::new(false));
        let clock = clock(Arc::clone(&over));
        execution(schedule::seed());
        over.store(true, Ordering::Relaxed);
        clock.join().unwrap();
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runner.run(execution))) {
        let seed = schedule::seed();
        println!("{test}: seed {seed} failed; again: ASHORE_SEED={seed} cargo xtask test simulation");
        resume_unwind(panic);
    }
}

/// The thread that lets time pass, the first of an execution.
fn clock(over: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let ticks = move || {
        while !over.load(Ordering::Relaxed) {
            let alone = schedule::alone();
            let passed = alone && time::pass();
            thread::yield_now();
            assert!(
                passed || !alone || !schedule::alone() || over.load(Ordering::Relaxed),
                "L2: everybody waits for ever"
            );
        }
    };
    thread::Builder::new().name("clock".into()).spawn(ticks).unwrap()
}

#[derive(Default)]
struct Oracle {
    /// Versions whose calls have returned.
    floors: BTreeMap<Cell, u64>,
    /// File, first page cut off, and the version of the cut, which is newer than all that it cuts.
    cuts: Vec<(u64, u64, u64)>,
    syncs: u64,
    errors_told: u64,
}

impl Oracle {
    /// Whether a truncation that was called after this change has begun to take it away.
    fn is_cut(&self, cell: &Cell, version: u64) -> bool {
        let Cell::Page(node, page) = cell else { return false };
        self.cuts.iter().any(|(of, first, newer)| of == node && first <= page && *newer > version)
    }
}

struct World {
    host: SimFs,
    oracle: Mutex<Oracle>,
}

impl World {
    fn oracle<T>(&self, look: impl FnOnce(&mut Oracle) -> T) -> T {
        look(&mut self.oracle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn done(&self, cell: Cell, version: u64) {
        self.oracle(|oracle| {
            let floor = oracle.floors.entry(cell).or_default();
            *floor = version.max(*floor);
        });
    }

    /// The version that the host has now: for changes that are made there before the call returns.
    fn done_at_host(&self, cell: Cell) {
        let version = self.host.host(|host| host.volatile(&cell));
        self.done(cell, version);
    }

    /// A sync by one who was told of errors at these times before; scope says what it covers.
    fn sync(
        &self,
        told: &mut Vec<u64>,
        whole: bool,
        scope: impl Fn(&Cell) -> bool,
        call: impl FnOnce() -> std::io::Result<()>,
    ) {
        let floors: Vec<_> = self.oracle(|oracle| {
            oracle
                .floors
                .iter()
                .filter(|floor| scope(floor.0))
                .map(|(cell, version)| (cell.clone(), *version))
                .collect()
        });
        let called = self.host.host(|host| host.events);
        let outcome = call();
        self.oracle(|oracle| oracle.syncs += 1);
        self.host.host(|host| {
            host.events += 1;
            if let Err(error) = outcome {
                let excused = host.temper.sync_unsupported || !host.lost.is_empty();
                assert!(excused, "a sync failed though nothing was wrong: {error}");
                told.push(host.events);
                self.oracle(|oracle| oracle.errors_told += 1);
                return;
            }
            assert!(!whole || !host.temper.sync_unsupported, "D3: a sync that was not carried out succeeded");
            for (cell, version) in floors {
                let found = host.durable(&cell);
                if found >= version {
                    host.vouch(cell, version);
                    continue;
                }
                if self.oracle(|oracle| oracle.is_cut(&cell, version)) {
                    continue;
                }
                let excused = host.lost.iter().any(|(lost, newest, when)| {
                    *lost == cell
                        && *newest >= version
                        && told.iter().any(|told| when < told && *told <= called)
                });
                assert!(
                    excused,
                    "D1, D2: a sync succeeded; {cell:?} at version {version} is not durable ({found} is)"
                );
            }
            host.crash_point();
        });
    }
}

fn one(seed: u64, figures: &Mutex<Figures>) {
    let mut dice = Dice::new(seed ^ 0x00d1_ce00);
    let sometimes = |dice: &mut Dice, rate: u64| if dice.once_in(3) { rate } else { 0 };
    let temper = Temper {
        hardening_fails: sometimes(&mut dice, 8),
        write_fails: sometimes(&mut dice, 6),
        short_writes: sometimes(&mut dice, 2),
        hardens_early: sometimes(&mut dice, 3),
        sync_unsupported: dice.once_in(24),
        write_through: dice.once_in(12),
    };
    let host = SimFs::new(seed, temper);
    let limits = Limits { early_sync_grace: Duration::ZERO, max_write: 64 << 10, ..Limits::default() };
    let session = Session::new(host.clone(), limits);
    let link = SimLink::new(Arc::clone(&session), 1 + dice.below(3) as usize);
    let cache = [CacheMode::WriteBack, CacheMode::WriteBack, CacheMode::WriteThrough, CacheMode::None];
    let options = Options {
        cache: cache[dice.below(4) as usize],
        request_timeout: None,
        connect_timeout: NEVER,
        writeback_age: Duration::from_millis(500),
        max_writebacks: 1 + dice.below(4) as u16,
        caller: Some((0, 0)),
        ..Options::default()
    };
    let client = Client::new(link, options).expect("INIT does not fail here");
    let world = Arc::new(World { host, oracle: Mutex::default() });
    // All before anything is done: a handle hears of the errors that come after it.
    let clients: Vec<_> = (0..1 + dice.below(3)).map(|number| (number, client.clone())).collect();
    let workers: Vec<_> = clients
        .into_iter()
        .map(|(number, client)| {
            let (world, dice) = (Arc::clone(&world), Dice::new(dice.next()));
            thread::spawn(move || Worker { world, client, dice, number, told: Vec::new() }.work())
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    _ = client.unmount();
    _ = session.end();
    let mut sum = figures.lock().unwrap_or_else(PoisonError::into_inner);
    let (syncs, errors_told) = world.oracle(|oracle| (oracle.syncs, oracle.errors_told));
    world.host.host(|host| {
        let faults = host.faults.iter().map(|(fault, times)| (*fault, (*times, 1))).collect();
        sum.add(&Figures { seeds: 1, syncs, errors_told, crash_points: host.crash_points, faults });
    });
}

struct Worker {
    world: Arc<World>,
    client: Client,
    dice: Dice,
    number: u64,
    told: Vec<u64>,
}

impl Worker {
    fn work(mut self) {
        let (prefix, directory) =
            [("", 1), ("mounted/", SUBMOUNT), ("hidden/", HIDDEN)][self.dice.below(3) as usize];
        let name = |number: u64, second: bool| format!("{}{number}", if second { "g" } else { "f" });
        let mut second = false;
        let way = self.dice.below(6);
        let mut options = OpenOptions::new();
        options = options.read(true).write(true).create(true).direct(way == 0).data_sync(way == 1);
        let file =
            self.client.open_with(format!("{prefix}{}", name(self.number, false)), &options).expect("create");
        let directory_cell = |second| Cell::Name(directory, name(self.number, second).into_bytes());
        self.world.done_at_host(directory_cell(false));
        let number = self.number;
        let directory_cell = |second| Cell::Name(directory, name(number, second).into_bytes());
        let node = file.metadata().expect("an open file has attributes").ino();
        let mut file_told = Vec::new();
        let stable_writes = way == 1;
        for _ in 0..2 + self.dice.below(6) {
            match self.dice.below(12) {
                0..4 => {
                    let failed = self.write(&file, node).is_err();
                    // A write that syncs is told of whatever befell the file, as an fsync is.
                    if failed && stable_writes {
                        file_told.push(self.world.host.host(|host| host.tick()));
                    }
                }
                4 => self.resize(&file, node),
                5 if file.allocate(self.dice.below(6) * PAGE, PAGE, 0).is_ok() => {
                    self.world.done_at_host(Cell::Size(node))
                }
                6 => self.copy(&file, node),
                7 if file.set_mode(0o600).is_ok() => self.world.done_at_host(Cell::Mode(node)),
                8 => {
                    let (from, to) = (name(number, second), name(number, !second));
                    if self.client.rename(format!("{prefix}{from}"), format!("{prefix}{to}")).is_ok() {
                        self.world.done_at_host(directory_cell(second));
                        self.world.done_at_host(directory_cell(!second));
                        second = !second;
                    }
                }
                9 => {
                    let own = |cell: &Cell| matches!(cell, Cell::Page(of, _) | Cell::Size(of) | Cell::Mode(of) if *of == node);
                    self.world.sync(&mut file_told, false, own, || file.sync_all());
                }
                _ => self.world.sync(&mut self.told, true, |_| true, || self.client.sync()),
            }
        }
        self.world.sync(&mut self.told, true, |_| true, || self.client.sync());
        if self.dice.once_in(2)
            && self.client.remove_file(format!("{prefix}{}", name(number, second))).is_ok()
        {
            self.world.done_at_host(directory_cell(second));
        }
        drop(file);
        self.world.sync(&mut self.told, true, |_| true, || self.client.sync());
    }

    fn write(&mut self, file: &File, node: u64) -> std::io::Result<()> {
        let (first, count) = (self.dice.below(4), 1 + self.dice.below(3));
        let version = self.world.host.host(|host| host.version());
        let mut data = vec![0; (count * PAGE) as usize];
        data.chunks_mut(PAGE as usize).for_each(|page| page[..8].copy_from_slice(&version.to_ne_bytes()));
        file.write_all_at(&data, first * PAGE)?;
        (first..first + count).for_each(|page| self.world.done(Cell::Page(node, page), version));
        Ok(())
    }

    fn resize(&mut self, file: &File, node: u64) {
        let size = self.dice.below(5) * PAGE;
        let version = self.world.host.host(|host| host.version());
        // Before the call: a sync beside it may find the file cut or not.
        self.world.oracle(|oracle| oracle.cuts.push((node, size / PAGE, version)));
        if file.set_len(size).is_ok() {
            self.world.done_at_host(Cell::Size(node));
        }
    }

    fn copy(&mut self, file: &File, node: u64) {
        if file.copy_to(0, file, 8 * PAGE, PAGE).is_ok() {
            self.world.done_at_host(Cell::Page(node, 8));
        }
    }
}
