//! What the threads do. Each scenario is one execution; the scheduler runs it many times.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};

use ashore_barrier::{Aborted, Cut};

use crate::oracle::Oracle;
use crate::runtime::{AtomicBool, Gate, Mutex, thread};
use crate::subject::Subject;

struct Scene<S> {
    subject: S,
    oracle: Oracle,
}

impl<S: Subject> Scene<S> {
    fn new(writers: usize, writes: usize) -> Arc<Self> {
        S::start();
        Arc::new(Self { subject: S::make(), oracle: Oracle::new(writers, writes) })
    }

    fn spawn(self: &Arc<Self>, body: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let scene = self.clone();
        thread::spawn(move || body(&scene))
    }

    fn operation(&self, operation: usize) {
        self.oracle.operation(&self.subject, operation);
    }

    fn sync(&self) {
        self.oracle.sync(&self.subject);
    }

    /// Waits for the other threads, and checks that nothing is left behind.
    fn finish(&self, threads: Vec<thread::JoinHandle<()>>) {
        for thread in threads {
            thread.join().unwrap();
        }
        self.oracle.finish(&self.subject);
    }
}

/// Aim: B1, B3, B4, B5, B6, B8, B11. Method: writers write, and syncs overlap with them and with each other.
pub(crate) fn writers_and_syncs<S: Subject>(writers: usize, writes: usize, syncs: usize) {
    let scene = Scene::<S>::new(writers, writes);
    let mut threads = Vec::new();
    for writer in 0..writers {
        threads.push(scene.spawn(move |scene| {
            for write in 0..writes {
                scene.operation(writer * writes + write);
            }
        }));
    }
    for _ in 1..syncs {
        threads.push(scene.spawn(Scene::sync));
    }
    scene.sync();
    scene.finish(threads);
}

/// Aim: B3, and that a sync shares no cut that was made before it came. Method: one write is held by this thread while
/// two syncs and another write overlap.
pub(crate) fn syncs_overlap_over_a_slow_write<S: Subject>() {
    let scene = Scene::<S>::new(2, 1);
    let slow = scene.oracle.enter(&scene.subject, 0);
    let threads =
        vec![scene.spawn(Scene::sync), scene.spawn(|scene| scene.operation(1)), scene.spawn(Scene::sync)];
    scene.oracle.settle(slow, 0);
    scene.finish(threads);
}

/// Aim: B2. Method: a write that begins after the cut was made stays until the sync is over. If the sync waited for it,
/// both would wait for ever.
pub(crate) fn later_writes_are_not_waited_for<S: Subject>(writers: usize, writes: usize) {
    let scene = Scene::<S>::new(writers, writes);
    let (was_cut, over) = (Arc::new(AtomicBool::new(false)), Arc::new(Gate::new()));
    let mut threads = Vec::new();
    for writer in 0..writers {
        let (was_cut, over) = (was_cut.clone(), over.clone());
        threads.push(scene.spawn(move |scene| {
            for write in 0..writes {
                let operation = writer * writes + write;
                let is_later = was_cut.load(Acquire);
                let ticket = scene.oracle.enter(&scene.subject, operation);
                if is_later {
                    over.pass();
                }
                scene.oracle.settle(ticket, operation);
            }
        }));
    }
    let earlier = scene.oracle.earlier();
    let cut = scene.subject.cut();
    was_cut.store(true, Release);
    cut.wait().unwrap();
    scene.oracle.check(&earlier);
    over.open();
    scene.finish(threads);
}

/// Aim: slack, and B2 once more. Method: each write that gets its ticket asks whether a cut that it can see waits for it.
/// The first of a thread to see the cut may have been on its way in; for any other that would be wrong.
pub(crate) fn at_most_one_late_write_a_thread<S: Subject>(writers: usize, writes: usize) {
    let scene = Scene::<S>::new(writers, writes);
    let the_cut: Arc<Mutex<Option<Arc<Cut>>>> = Arc::new(Mutex::new(None));
    let mut threads = Vec::new();
    for writer in 0..writers {
        let the_cut = the_cut.clone();
        threads.push(scene.spawn(move |scene| {
            let (mut seen, mut late) = (false, 0);
            for write in 0..writes {
                let operation = writer * writes + write;
                let ticket = scene.oracle.enter(&scene.subject, operation);
                if let Some(cut) = the_cut.lock().unwrap().clone() {
                    let waited_for = scene.subject.is_earlier(&ticket, &cut);
                    assert!(!(waited_for && seen), "B2: {operation} began after the cut");
                    late += usize::from(waited_for);
                    seen = true;
                }
                scene.oracle.settle(ticket, operation);
            }
            assert!(late <= 1, "slack: {late} late writes on one thread");
        }));
    }
    let earlier = scene.oracle.earlier();
    let cut = Arc::new(scene.subject.cut());
    *the_cut.lock().unwrap() = Some(cut.clone());
    cut.wait().unwrap();
    scene.oracle.check(&earlier);
    drop(cut);
    scene.finish(threads);
}

/// Aim: a ticket may settle on another thread than it was entered on, in any order. Method: this thread enters two and
/// gives both away, a third thread writes, a sync overlaps.
pub(crate) fn tickets_settle_on_other_threads<S: Subject>() {
    let scene = Scene::<S>::new(2, 1);
    let first = scene.oracle.enter(&scene.subject, 0);
    let second = scene.oracle.enter(&scene.subject, 1);
    let threads = vec![
        scene.spawn(move |scene| scene.oracle.settle(second, 1)),
        scene.spawn(move |scene| scene.oracle.settle(first, 0)),
    ];
    scene.sync();
    scene.finish(threads);
}

/// Aim: B6 by callback, and cuts from inside one. Method: the callback of a cut makes another and adds a callback to it.
/// Nobody sleeps on the barrier. The gate is opened by the second callback, or never.
pub(crate) fn a_callback_may_cut_again<S: Subject>() {
    let scene = Scene::<S>::new(2, 1);
    let over = Arc::new(Gate::new());
    let ticket = scene.oracle.enter(&scene.subject, 0);
    let writer = scene.spawn(|scene| scene.operation(1));
    let settler = scene.spawn(move |scene| scene.oracle.settle(ticket, 0));
    let earlier = scene.oracle.earlier();
    let (in_callback, opener) = (scene.clone(), over.clone());
    scene.subject.cut().on_settled(move |outcome| {
        assert_eq!(outcome, Ok(()));
        in_callback.oracle.check(&earlier);
        let earlier = in_callback.oracle.earlier();
        let again = in_callback.subject.cut();
        again.on_settled(move |outcome| {
            assert_eq!(outcome, Ok(()));
            in_callback.oracle.check(&earlier);
            opener.open();
        });
    });
    over.pass();
    scene.finish(vec![writer, settler]);
}

/// Aim: B10. Method: a write stays until the sync has returned, so that only the abort can end the wait.
pub(crate) fn an_abort_ends_every_wait<S: Subject>() {
    let scene = Scene::<S>::new(1, 1);
    let ticket = scene.oracle.enter(&scene.subject, 0);
    let aborter = scene.spawn(|scene| scene.subject.abort());
    let told = Arc::new(AtomicUsize::new(0));
    let by_callback = told.clone();
    scene.subject.cut().on_settled(move |outcome| {
        assert_eq!(outcome, Err(Aborted));
        by_callback.fetch_add(1, SeqCst);
    });
    assert_eq!(scene.subject.cut().wait(), Err(Aborted));
    scene.oracle.settle(ticket, 0);
    aborter.join().unwrap();
    assert_eq!(told.load(SeqCst), 1, "the callback was told once");
    // Only a wait that begins after the abort is sure to fail: one may find nothing left to wait for before.
    let late = scene.oracle.enter(&scene.subject, 0);
    assert_eq!(scene.subject.cut().wait(), Err(Aborted));
    drop(late);
}

/// Aim: an abort and the last settle at the same time. Method: whichever is first, the wait ends, and if it ends well,
/// what was earlier has settled.
pub(crate) fn an_abort_races_with_the_last_settle<S: Subject>() {
    let scene = Scene::<S>::new(1, 1);
    let ticket = scene.oracle.enter(&scene.subject, 0);
    let earlier = scene.oracle.earlier();
    let cut = scene.subject.cut();
    let settler = scene.spawn(move |scene| scene.oracle.settle(ticket, 0));
    let aborter = scene.spawn(|scene| scene.subject.abort());
    let outcome = cut.wait();
    assert_eq!(cut.outcome(), Some(outcome), "an outcome, once known, stays");
    if outcome.is_ok() {
        scene.oracle.check(&earlier);
    }
    settler.join().unwrap();
    aborter.join().unwrap();
}

/// Aim: B9. Method: whether writes are counted is switched off in between, as a server's ENOSYS does; those who hold a
/// ticket settle it, those who have none do not.
pub(crate) fn counting_may_be_switched_off<S: Subject>() {
    let scene = Scene::<S>::new(1, 3);
    let counting = Arc::new(AtomicBool::new(true));
    let switch = counting.clone();
    let writer = scene.spawn(move |scene| {
        for operation in 0..3 {
            let ticket = switch.load(Acquire).then(|| scene.oracle.enter(&scene.subject, operation));
            scene.oracle.settle(ticket, operation);
        }
    });
    scene.sync();
    counting.store(false, Release);
    scene.sync();
    scene.finish(vec![writer]);
}

/// Aim: threads come and go, and each takes over what another left. Method: a generation of short-lived writers after
/// the other, more than there are slots, and a sync in each.
#[cfg_attr(loom, allow(dead_code))]
pub(crate) fn threads_come_and_go<S: Subject>(generations: usize) {
    let scene = Scene::<S>::new(generations * 2, 1);
    let mut threads = Vec::new();
    for generation in 0..generations {
        let first = generation * 2;
        threads.push(scene.spawn(move |scene| scene.operation(first)));
        threads.push(scene.spawn(move |scene| scene.operation(first + 1)));
        scene.sync();
        if generation % 2 == 1 {
            threads.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }
    scene.finish(threads);
}

/// Aim: the fences of the real machine. Method: writers that do nothing else, for a while, against syncs that do nothing
/// else. Each writer says how far it got, in relaxed variables of its own, and each sync compares.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn a_long_run<S: Subject>(milliseconds: u64) {
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::{Duration, Instant};

    #[repr(align(128))]
    #[derive(Default)]
    struct Progress {
        entered: AtomicUsize,
        recorded: AtomicUsize,
    }

    let (subject, progress) = (S::make(), <[Progress; 2]>::default());
    let end = Instant::now() + Duration::from_millis(milliseconds);
    std::thread::scope(|scope| {
        for mine in &progress {
            scope.spawn(|| {
                for write in 1.. {
                    let ticket = subject.enter();
                    mine.entered.store(write, Relaxed);
                    mine.recorded.store(write, Relaxed);
                    drop(ticket);
                    if write % 64 == 0 && Instant::now() > end {
                        return;
                    }
                }
            });
        }
        while Instant::now() < end {
            let entered: Vec<usize> = progress.iter().map(|theirs| theirs.entered.load(Relaxed)).collect();
            // A writer that panicked must fail the test, and not hang it.
            subject.cut().wait_timeout(Duration::from_secs(5)).unwrap();
            for (theirs, entered) in progress.iter().zip(entered) {
                assert!(theirs.recorded.load(Relaxed) >= entered, "B1, B11: a result is not there");
            }
        }
    });
}
