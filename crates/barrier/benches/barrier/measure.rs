//! The measurements.

use std::env;
use std::hint::black_box;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier as Start, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ashore_barrier::bucket::BucketBarrier;
use ashore_barrier::{Barrier, Cut};
use criterion::Criterion;
use rustix::time::{ClockId, clock_gettime};

use crate::plot::{Bar, Panel, write};
use crate::subjects::{Pair, SharedAtomic, ThreadLocals, full_fences};

/// Threads for the pairs. Eight are more than the processors of the machines that this runs on in CI.
const THREADS: [usize; 3] = [1, 2, 8];

/// Threads that have entered once and are still alive.
const REGISTERED: [usize; 3] = [1, 16, 256];

pub(crate) fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1500))
        .without_plots()
        .configure_from_args();
    let panels = [pairs(&mut criterion), cuts(&mut criterion), wake_ups(&mut criterion)];
    criterion.final_summary();
    // `cargo test` runs this too, each measurement once. Nothing to be plotted then.
    if env::args().any(|argument| argument == "--bench") {
        report(&panels[0]);
        write(&panels);
    }
}

fn pairs(criterion: &mut Criterion) -> Panel {
    let mut panel = Panel::new("enter + settle, processor time each");
    for threads in THREADS {
        let mut bars = Vec::new();
        let mut add = |name: &'static str, subject: Box<dyn Fn(u64) -> Duration>| {
            bars.push(Bar {
                name,
                nanoseconds: measure(criterion, &format!("pair/{threads}/{name}"), subject),
            });
        };
        add("two thread-local increments", by_threads(threads, ThreadLocals));
        add("Barrier", by_threads(threads, Barrier::new()));
        add("Barrier, full fences", by_threads(threads, full_fences()));
        add("one shared atomic", by_threads(threads, SharedAtomic::default()));
        add("bucket (2021)", by_threads(threads, BucketBarrier::new()));
        add("RwLock, read side", by_threads(threads, RwLock::new(())));
        let plural = if threads == 1 { "" } else { "s" };
        panel.group(format!("{threads} thread{plural}"), bars);
    }
    panel
}

/// What one iteration takes: the median of the samples, without the short ones of the warm-up.
fn measure(criterion: &mut Criterion, name: &str, mut run: impl FnMut(u64) -> Duration) -> f64 {
    let mut samples = Vec::new();
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let time = run(iterations);
            samples.push((iterations, time.as_nanos() as f64 / iterations as f64));
            time
        });
    });
    let longest = samples.iter().map(|sample| sample.0).max().unwrap_or(0);
    samples.retain(|sample| sample.0 >= longest / 2);
    samples.sort_by(|one, other| one.1.total_cmp(&other.1));
    samples.get(samples.len() / 2).map_or(0.0, |sample| sample.1)
}

/// Every thread does all the iterations. The result is processor time, by the kernel's account: threads that wait for
/// a processor do not look slow for it.
fn by_threads<P: Pair + 'static>(threads: usize, subject: P) -> Box<dyn Fn(u64) -> Duration> {
    Box::new(move |iterations| {
        let start = Start::new(threads);
        let total: Duration = thread::scope(|scope| {
            let work = || {
                start.wait();
                let began = processor_time();
                for _ in 0..iterations {
                    black_box(&subject).pair();
                }
                processor_time() - began
            };
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            others.into_iter().map(|thread| thread.join().unwrap()).sum::<Duration>() + own
        });
        total / threads as u32
    })
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cuts(criterion: &mut Criterion) -> Panel {
    let mut panel = Panel::new("cut + wait, nothing outstanding");
    for registered in REGISTERED {
        let barrier = Arc::new(Barrier::new());
        let full = Arc::new(full_fences());
        let crowd = Crowd::new(registered, &[&barrier, &full]);
        let bucket = BucketBarrier::new();
        let bars = vec![
            timed(criterion, registered, "Barrier", || barrier.cut()),
            timed(criterion, registered, "Barrier, full fences", || full.cut()),
            timed(criterion, registered, "bucket (2021)", || bucket.cut()),
        ];
        drop(crowd);
        let plural = if registered == 1 { "" } else { "s" };
        panel.group(format!("{registered} thread{plural} registered"), bars);
    }
    panel
}

fn timed(criterion: &mut Criterion, registered: usize, name: &'static str, cut: impl Fn() -> Cut) -> Bar {
    let run = |iterations| {
        let start = Instant::now();
        for _ in 0..iterations {
            cut().wait().unwrap();
        }
        start.elapsed()
    };
    Bar { name, nanoseconds: measure(criterion, &format!("cut/{registered}/{name}"), run) }
}

/// Threads that have used the barriers and sleep until they are dismissed.
struct Crowd {
    dismiss: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn new(size: usize, barriers: &[&Arc<Barrier>]) -> Self {
        let (mut dismiss, mut threads) = (Vec::new(), Vec::new());
        let registered = Arc::new(Start::new(size + 1));
        for _ in 0..size {
            let (sender, dismissed) = channel::<()>();
            let barriers: Vec<Arc<Barrier>> = barriers.iter().map(|barrier| Arc::clone(barrier)).collect();
            let registered = registered.clone();
            dismiss.push(sender);
            threads.push(thread::spawn(move || {
                barriers.iter().for_each(|barrier| drop(barrier.enter()));
                registered.wait();
                let _ = dismissed.recv();
            }));
        }
        registered.wait();
        Self { dismiss, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.dismiss.clear();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn wake_ups(criterion: &mut Criterion) -> Panel {
    let mut panel = Panel::new("from the last settle to the wake-up");
    let barrier = Barrier::new();
    let by_callback = measure(criterion, "wake-up/callback", |iterations| {
        (0..iterations).map(|_| until_callback(&barrier)).sum()
    });
    let (cuts, wait) = channel::<Cut>();
    let (woken, times) = channel();
    let sleeper = thread::spawn(move || {
        for cut in wait {
            cut.wait().unwrap();
            woken.send(Instant::now()).unwrap();
        }
    });
    let asleep = measure(criterion, "wake-up/thread", |iterations| {
        (0..iterations).map(|_| until_woken(&barrier, &cuts, &times)).sum()
    });
    drop(cuts);
    sleeper.join().unwrap();
    let bars = vec![
        Bar { name: "Barrier, callback", nanoseconds: by_callback },
        Bar { name: "Barrier, sleeping thread", nanoseconds: asleep },
    ];
    panel.group("one ticket outstanding".to_owned(), bars);
    panel
}

fn until_callback(barrier: &Barrier) -> Duration {
    let ticket = barrier.enter();
    let (called, time) = channel();
    barrier.cut().on_settled(move |_| called.send(Instant::now()).unwrap());
    let start = Instant::now();
    drop(ticket);
    time.recv().unwrap() - start
}

fn until_woken(barrier: &Barrier, cuts: &Sender<Cut>, times: &Receiver<Instant>) -> Duration {
    let ticket = barrier.enter();
    cuts.send(barrier.cut()).unwrap();
    // Long enough for the other thread to fall asleep.
    thread::sleep(Duration::from_micros(200));
    let start = Instant::now();
    drop(ticket);
    times.recv().unwrap() - start
}

/// The ratios that are promised, from this run.
fn report(pairs: &Panel) {
    println!("\n| threads | two increments | Barrier | bucket | Barrier : increments | bucket : Barrier |");
    println!("|---|---|---|---|---|---|");
    for (group, threads) in THREADS.iter().enumerate() {
        let time = |name| pairs.find(group, name);
        let (limit, ours, bucket) =
            (time("two thread-local increments"), time("Barrier"), time("bucket (2021)"));
        let (cost, gain) = (ours / limit, bucket / ours);
        println!("| {threads} | {limit:.2} ns | {ours:.2} ns | {bucket:.1} ns | {cost:.1} | {gain:.1} |");
    }
    let (one, two) = (pairs.find(0, "Barrier"), pairs.find(1, "Barrier"));
    println!("\nBarrier, two threads : one thread, for each: {:.2}", two / one);
}
