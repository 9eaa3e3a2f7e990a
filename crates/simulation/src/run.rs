//! One seed: a host, servers and clients, and what they do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ashore_barrier::model::{thread, time};
use ashore_client::link::Link;
use ashore_client::{CacheMode, Client, Options};
use ashore_server::{Limits, Session};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::host::{Fault, SimFs, Temper};
use crate::link::SimLink;
use crate::oracle::Oracle;
use crate::schedule::{self, Dice, Seeds};
use crate::workload::{Operation, Way, Worker};

/// Longer than any execution lasts.
const NEVER: Duration = Duration::from_secs(u64::MAX);
const STACK: usize = 256 << 10;
const MOST_STEPS: usize = 1_000_000;

/// What was covered.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub seeds: u64,
    /// Servers that were started.
    pub sessions: u64,
    pub syncs: u64,
    pub errors_told: u64,
    pub crash_points: u64,
    /// By kind: how often, and in how many seeds.
    pub faults: BTreeMap<Fault, (u64, u64)>,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.seeds += other.seeds;
        self.sessions += other.sessions;
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

/// How many workloads [`run_bounded`] has: so many operations at most, in each cache mode, the file opened in each way.
pub fn bounded() -> u64 {
    let kinds = Operation::BOUNDED.len() as u64;
    (kinds + kinds.pow(2) + kinds.pow(3)) * (CACHES.len() * WAYS.len()) as u64
}

const CACHES: [CacheMode; 3] = [CacheMode::WriteBack, CacheMode::WriteThrough, CacheMode::None];
const WAYS: [Way; 3] = [Way::Cached, Way::Direct, Way::DataSync];

/// Runs these of all workloads of up to three operations: the operations, a sync, and the operations once more, with a crash
/// tried at each step.
pub fn run_bounded(workloads: Range<u64>) -> Figures {
    let figures = Arc::new(Mutex::new(Figures::default()));
    let sum = Arc::clone(&figures);
    each(workloads, "every_short_workload_is_true", move |number| {
        let (modes, ways, kinds) = (CACHES.len() as u64, WAYS.len() as u64, Operation::BOUNDED.len() as u64);
        let mode = Mode { cache: CACHES[(number % modes) as usize], writebacks: 2, queues: 2 };
        let way = WAYS[(number / modes % ways) as usize];
        let mut list = number / modes / ways;
        let mut length = 1;
        while list >= kinds.pow(length) {
            list -= kinds.pow(length);
            length += 1;
        }
        let operation = |place: u32| Operation::BOUNDED[(list / kinds.pow(place) % kinds) as usize];
        let operations: Vec<_> = (0..length).map(operation).collect();
        let host = SimFs::new(number, Temper::default());
        let server = Server::start(Oracle::new(host), mode);
        let oracle = Arc::clone(&server.oracle);
        let mut worker =
            Worker::new(oracle, server.client.clone(), 0, 0, way).expect("no connection is lost");
        for round in 0..2 {
            operations.iter().for_each(|operation| worker.perform(*operation));
            if round == 0 {
                worker.perform(Operation::Sync);
            }
        }
        drop(worker);
        server.end();
        count(&sum, [&*server.oracle]);
    });
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

/// How a client and its server are connected.
#[derive(Clone, Copy)]
struct Mode {
    cache: CacheMode,
    writebacks: u16,
    queues: usize,
}

/// A session, its client, and what the client is promised.
struct Server {
    oracle: Arc<Oracle>,
    session: Arc<Session<SimFs>>,
    link: Arc<SimLink>,
    client: Client,
}

impl Server {
    fn start(oracle: Oracle, mode: Mode) -> Server {
        let limits = Limits { early_sync_grace: Duration::ZERO, max_write: 64 << 10, ..Limits::default() };
        let session = Session::new(oracle.host.clone(), limits);
        let link = Arc::new(SimLink::new(Arc::clone(&session), mode.queues));
        let options = Options {
            cache: mode.cache,
            request_timeout: None,
            connect_timeout: NEVER,
            writeback_age: Duration::from_millis(500),
            max_writebacks: mode.writebacks,
            caller: Some((0, 0)),
            ..Options::default()
        };
        let client = Client::with_link(Arc::clone(&link) as Arc<dyn Link>, options);
        let client = client.expect("INIT does not fail here");
        Server { oracle: Arc::new(oracle), session, link, client }
    }

    /// The client leaves in good order.
    fn end(&self) {
        _ = self.client.clone().unmount();
        _ = self.session.end();
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
        sync_stale: if dice.once_in(12) { 4 } else { 0 },
        sync_unsupported: dice.once_in(24),
        write_through: dice.once_in(12),
        ordered: dice.once_in(3),
    };
    let host = SimFs::new(seed, temper);
    // In most executions one server with one client; in some two, and in some they are lost and others take their place.
    let servers = if dice.once_in(5) { 2 } else { 1 };
    let lives = if dice.once_in(6) { 2 } else { 1 };
    let mut before: Vec<Server> = Vec::new();
    for life in 0..lives {
        let lost: Vec<&Oracle> = before.iter().map(|server| &*server.oracle).collect();
        let now: Vec<Server> = (0..servers)
            .map(|number| {
                let fs = if life + number == 0 { host.clone() } else { host.another() };
                // Any one of them will do to cover what was acknowledged before.
                let lost = if number == 0 { &lost[..] } else { &[] };
                let mode = Mode {
                    cache: [CACHES[0], CACHES[0], CACHES[1], CACHES[2]][dice.below(4) as usize],
                    writebacks: 1 + dice.below(4) as u16,
                    queues: 1 + dice.below(3) as usize,
                };
                Server::start(Oracle::after(fs, lost), mode)
            })
            .collect();
        live(&now, &mut dice, life * 8, life + 1 < lives);
        count(figures, before.iter().map(|server| &*server.oracle));
        before = now;
    }
    before.iter().for_each(Server::end);
    count(figures, before.iter().map(|server| &*server.oracle));
    let mut sum = figures.lock().unwrap_or_else(PoisonError::into_inner);
    host.host(|host| {
        let faults = host.faults.iter().map(|(fault, times)| (*fault, (*times, 1))).collect();
        sum.add(&Figures { seeds: 1, crash_points: host.crash_points, faults, ..Figures::default() });
    });
}

/// Clients work, until their connections are lost or they are through.
fn live(servers: &[Server], dice: &mut Dice, first: u64, are_lost: bool) {
    // All handles before anything is done: each hears of the errors that come after it.
    let handles: Vec<Vec<Client>> = servers
        .iter()
        .map(|server| {
            let threads = 1 + dice.below(if servers.len() > 1 { 2 } else { 3 });
            (0..threads).map(|_| server.client.clone()).collect()
        })
        .collect();
    let mut threads = Vec::new();
    for ((place, server), clients) in (0..).zip(servers).zip(handles) {
        for (number, client) in (first + place * 4..).zip(clients) {
            let (oracle, mut dice) = (Arc::clone(&server.oracle), Dice::new(dice.next()));
            let (directory, way) = (dice.below(3) as usize, dice.below(6) as usize);
            let way = *[Way::Direct, Way::DataSync].get(way).unwrap_or(&Way::Cached);
            threads.push(thread::spawn(move || {
                if let Some(worker) = Worker::new(oracle, client, number, directory, way) {
                    worker.work(&mut dice);
                }
            }));
        }
        if are_lost {
            let (oracle, link, wait) =
                (Arc::clone(&server.oracle), Arc::clone(&server.link), dice.below(200));
            threads.push(thread::spawn(move || {
                (0..wait).for_each(|_| thread::yield_now());
                oracle.lose_connection(|| link.lose());
            }));
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Counts what happened on these connections.
fn count<'a>(figures: &Mutex<Figures>, connections: impl IntoIterator<Item = &'a Oracle>) {
    let mut sum = figures.lock().unwrap_or_else(PoisonError::into_inner);
    for oracle in connections {
        let (syncs, errors_told) = oracle.counts();
        sum.add(&Figures { sessions: 1, syncs, errors_told, ..Figures::default() });
    }
}
