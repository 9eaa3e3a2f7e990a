//! What happens when the barrier is not used as intended. Documented on the items concerned; nothing here is ever
//! undefined behaviour, and Miri runs all of it.
#![cfg(not(any(loom, shuttle)))]
#![allow(clippy::unwrap_used, reason = "in a test, a failed unwrap is the failure")]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake};
use std::thread;
use std::time::Duration;

use ashore_barrier::bucket::BucketBarrier;
use ashore_barrier::{Aborted, Barrier, Cut, Options, Ticket, WaitError};

const SOON: Duration = Duration::from_millis(10);

fn with_buckets(live_buckets: usize) -> Barrier {
    let mut options = Options::default();
    options.live_buckets = live_buckets;
    Barrier::with(&options)
}

#[test]
fn a_leaked_ticket_holds_up_all_later_cuts_until_the_abort() {
    let barrier = Barrier::new();
    let before = barrier.cut();
    std::mem::forget(barrier.enter());
    let cut = barrier.cut();
    assert_eq!(before.wait(), Ok(()));
    assert_eq!(cut.wait_timeout(SOON), Err(WaitError::TimedOut));
    assert_eq!(barrier.cut().wait_timeout(SOON), Err(WaitError::TimedOut));
    barrier.abort();
    assert_eq!(cut.wait(), Err(Aborted));
    assert_eq!(before.outcome(), Some(Ok(())), "what was over before the abort stays so");
    assert!(barrier.is_aborted());
}

#[test]
fn a_barrier_with_a_leaked_ticket_is_not_reused() {
    for _ in 0..3 {
        let barrier = with_buckets(4);
        assert!(barrier.cut().is_settled(), "a new barrier has nothing outstanding");
        std::mem::forget(barrier.enter());
    }
}

#[test]
fn a_thread_that_dies_settles_the_tickets_it_holds() {
    let barrier = Arc::new(Barrier::new());
    let (entered, wait) = channel();
    let theirs = barrier.clone();
    let dies = thread::spawn(move || {
        let _ticket = theirs.enter();
        entered.send(theirs.cut()).unwrap();
        panic!("this thread dies with a ticket");
    });
    let cut: Cut = wait.recv().unwrap();
    assert_eq!(cut.wait(), Ok(()));
    assert!(dies.join().is_err());
}

#[test]
fn tickets_may_be_entered_and_settled_while_a_thread_takes_itself_apart() {
    struct UsesBarrier(Arc<Barrier>, Option<Ticket>);
    impl Drop for UsesBarrier {
        fn drop(&mut self) {
            drop(self.1.take());
            drop(self.0.enter());
        }
    }
    thread_local! {
        static AT_THE_END: std::cell::RefCell<Option<UsesBarrier>> = const { std::cell::RefCell::new(None) };
    }
    let barrier = Arc::new(Barrier::new());
    let theirs = barrier.clone();
    // Set before the thread's first enter, so that this destructor runs after the barrier's own, or the reverse:
    // whichever comes first, both ways work.
    thread::spawn(move || {
        AT_THE_END.set(Some(UsesBarrier(theirs.clone(), None)));
        let ticket = theirs.enter();
        AT_THE_END.with_borrow_mut(|end| end.as_mut().unwrap().1 = Some(ticket));
    })
    .join()
    .unwrap();
    assert_eq!(barrier.cut().wait_timeout(Duration::from_secs(5)), Ok(()));
}

#[test]
fn tickets_and_cuts_outlive_the_barrier() {
    let barrier = Barrier::new();
    let ticket = barrier.enter();
    let cut = barrier.cut();
    drop(barrier);
    // Another barrier must not inherit the ticket.
    let others: Vec<Barrier> = (0..4).map(|_| Barrier::new()).collect();
    assert!(others.iter().all(|other| other.cut().is_settled()));
    assert_eq!(cut.wait_timeout(SOON), Err(WaitError::TimedOut));
    drop(ticket);
    assert_eq!(cut.wait(), Ok(()));
}

#[test]
fn a_callback_may_do_everything_with_its_barrier() {
    let barrier = Arc::new(Barrier::new());
    let (told, hear) = channel();
    let ticket = barrier.enter();
    let inner = barrier.clone();
    barrier.cut().on_settled(move |outcome| {
        assert_eq!(outcome, Ok(()));
        let _held = inner.enter();
        let deeper = told.clone();
        inner.cut().on_settled(move |outcome| deeper.send(outcome).unwrap());
        inner.abort();
        told.send(inner.cut().wait()).unwrap();
    });
    drop(ticket);
    assert_eq!(hear.recv().unwrap(), Err(Aborted));
    assert_eq!(hear.recv().unwrap(), Err(Aborted));
}

#[test]
fn a_callback_that_panics_takes_no_other_with_it() {
    let barrier = Barrier::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let ticket = barrier.enter();
    for number in 0..5 {
        let calls = calls.clone();
        barrier.cut().on_settled(move |_| {
            calls.fetch_add(1, SeqCst);
            assert!(number != 2, "this callback panics");
        });
    }
    let result = catch_unwind(AssertUnwindSafe(|| drop(ticket)));
    assert!(result.is_err(), "the panic reaches the one who settled");
    assert_eq!(calls.load(SeqCst), 5);
    assert!(barrier.cut().is_settled(), "and the barrier works on");
}

#[test]
fn an_abort_wakes_sleepers_callbacks_and_futures() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let barrier = Arc::new(Barrier::new());
    let ticket = barrier.enter();
    let theirs = barrier.cut();
    let sleeper = thread::spawn(move || theirs.wait());
    let (told, hear) = channel();
    barrier.cut().on_settled(move |outcome| told.send(outcome).unwrap());
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = count.clone().into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(barrier.cut());
    assert_eq!(future.as_mut().poll(&mut context), Poll::Pending);
    assert_eq!(future.as_mut().poll(&mut context), Poll::Pending);
    barrier.abort();
    assert_eq!(sleeper.join().unwrap(), Err(Aborted));
    assert_eq!(hear.recv().unwrap(), Err(Aborted));
    assert_eq!(count.0.load(SeqCst), 1, "polling again replaces the waker");
    assert_eq!(future.as_mut().poll(&mut context), Poll::Ready(Err(Aborted)));
    assert_eq!(barrier.cut().outcome(), Some(Err(Aborted)), "later ones fail at once");
    drop(ticket);
}

#[test]
fn with_eight_buckets_a_cut_waits_for_nothing_that_came_after_it_though_six_more_are_draining() {
    let barrier = Barrier::new();
    let mut steps: Vec<(Ticket, Cut)> = (0..7).map(|_| (barrier.enter(), barrier.cut())).collect();
    let last = barrier.enter();
    while !steps.is_empty() {
        let (ticket, cut) = steps.remove(0);
        assert!(!cut.is_settled());
        drop(ticket);
        assert_eq!(cut.wait(), Ok(()), "later tickets are still outstanding");
    }
    drop(last);
}

#[test]
fn cuts_for_which_there_is_no_bucket_share_one_that_is_made_later() {
    let barrier = with_buckets(2);
    let first_ticket = barrier.enter();
    let first = barrier.cut();
    let second_ticket = barrier.enter();
    let (second, third) = (barrier.cut(), barrier.cut());
    drop(first_ticket);
    assert_eq!(first.wait(), Ok(()));
    assert!(!second.is_settled() && !third.is_settled());
    let later = barrier.enter();
    drop(second_ticket);
    assert_eq!((second.wait(), third.wait()), (Ok(()), Ok(())));
    drop(later);
}

#[test]
fn thousands_of_threads_come_and_go_and_leave_nothing_behind() {
    let barrier = Arc::new(Barrier::new());
    let threads = if cfg!(miri) { 40 } else { 4000 };
    for _ in 0..threads / 20 {
        let generation: Vec<_> = (0..20)
            .map(|_| {
                let barrier = barrier.clone();
                thread::spawn(move || {
                    let ticket = barrier.enter();
                    drop(barrier.enter());
                    ticket
                })
            })
            .collect();
        let tickets: Vec<Ticket> = generation.into_iter().map(|thread| thread.join().unwrap()).collect();
        let cut = barrier.cut();
        assert!(!cut.is_settled());
        drop(tickets);
        assert_eq!(cut.wait(), Ok(()));
    }
}

#[test]
fn more_threads_than_slots_are_counted_all_the_same() {
    if cfg!(miri) {
        return;
    }
    let barrier = Barrier::new();
    let (everyone, cut_made) = (std::sync::Barrier::new(4201), std::sync::Barrier::new(4201));
    let work = || {
        let ticket = barrier.enter();
        everyone.wait();
        cut_made.wait();
        drop(ticket);
    };
    thread::scope(|scope| {
        for _ in 0..4200 {
            thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, work).unwrap();
        }
        everyone.wait();
        let cut = barrier.cut();
        assert!(!cut.is_settled());
        cut_made.wait();
        assert_eq!(cut.wait(), Ok(()));
    });
}

#[test]
fn barriers_come_and_go_and_their_memory_is_used_again() {
    for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
        let (barrier, bucket) = (with_buckets(8), BucketBarrier::new());
        let (ticket, other) = (barrier.enter(), bucket.enter());
        let (cut, other_cut) = (barrier.cut(), bucket.cut());
        drop((ticket, other));
        assert_eq!((cut.wait(), other_cut.wait()), (Ok(()), Ok(())));
    }
}
