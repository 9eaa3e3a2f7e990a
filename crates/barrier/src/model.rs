//! Locks, threads and time for models of the crates above this one: what they take from parking_lot and std, under
//! shuttle. Not part of the interface; only a build with `--cfg shuttle` has it.
//!
//! Time is virtual. It stands still while any thread can go on, unless the model wishes otherwise: the model runs
//! [`time::pass`] on a thread of its own and has its scheduler choose that one last.

#![allow(missing_docs, reason = "for models; shaped as parking_lot and std, which document it")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use shuttle::sync as shuttled;

pub use shuttle::sync::atomic;
pub use time::Instant;

/// A map whose order is the same in each execution.
pub type HashMap<K, V> =
    std::collections::HashMap<K, V, std::hash::BuildHasherDefault<std::collections::hash_map::DefaultHasher>>;

#[derive(Default)]
pub struct Mutex<T: ?Sized>(shuttled::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(shuttled::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, held: Some(self.held()) }
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> shuttled::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    held: Option<shuttled::MutexGuard<'a, T>>,
}

const HELD: &str = "a guard holds its lock except inside of its own methods";

impl<T: ?Sized> MutexGuard<'_, T> {
    pub fn bump(guard: &mut Self) {
        guard.held = None;
        shuttle::thread::yield_now();
        guard.held = Some(guard.mutex.held());
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

#[derive(Default)]
pub struct Condvar(Arc<shuttled::Condvar>);

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

/// Whether a wait ended because its time was over.
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub fn new() -> Condvar {
        Condvar::default()
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect(HELD);
        guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + timeout)
    }

    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        let alarm = time::Alarm::set(deadline, Arc::clone(&self.0));
        self.wait(guard);
        drop(alarm);
        WaitTimeoutResult(Instant::now() >= deadline)
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

pub mod thread {
    use super::{Condvar, Duration, Mutex};
    pub use shuttle::thread::{Builder, JoinHandle, spawn, yield_now};

    pub fn sleep(time: Duration) {
        let (lock, never) = (Mutex::new(()), Condvar::new());
        let until = super::Instant::now() + time;
        let mut guard = lock.lock();
        while super::Instant::now() < until {
            never.wait_until(&mut guard, until);
        }
    }
}

/// Virtual time. All threads of an execution are one thread of the host, and its thread-locals are theirs in common.
pub mod time {
    use std::cell::{Cell, RefCell};
    use std::ops::{Add, Sub};
    use std::sync::Arc;
    use std::time::Duration;

    thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static ALARMS: RefCell<Vec<(u64, Duration, Arc<shuttle::sync::Condvar>)>> = const { RefCell::new(Vec::new()) };
        static LAST: Cell<u64> = const { Cell::new(0) };
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    pub struct Instant(Duration);

    impl Instant {
        pub fn now() -> Instant {
            Instant(NOW.get())
        }

        pub fn elapsed(&self) -> Duration {
            NOW.get().saturating_sub(self.0)
        }

        pub fn checked_add(&self, time: Duration) -> Option<Instant> {
            self.0.checked_add(time).map(Instant)
        }

        pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Instant;
        fn add(self, time: Duration) -> Instant {
            Instant(self.0.saturating_add(time))
        }
    }

    impl Sub for Instant {
        type Output = Duration;
        fn sub(self, earlier: Instant) -> Duration {
            self.saturating_duration_since(earlier)
        }
    }

    /// An execution begins: it is no time at all.
    pub fn restart() {
        NOW.set(Duration::ZERO);
        ALARMS.take();
    }

    /// Lets time pass until the next thread that waits for it is due. False: none does.
    pub fn pass() -> bool {
        let due: Vec<_> = ALARMS.with_borrow(|alarms| {
            let next = alarms.iter().map(|alarm| alarm.1).min().unwrap_or_default();
            NOW.set(NOW.get().max(next));
            alarms.iter().filter(|alarm| alarm.1 <= NOW.get()).map(|alarm| Arc::clone(&alarm.2)).collect()
        });
        due.iter().for_each(|due| due.notify_all());
        !due.is_empty()
    }

    pub(super) struct Alarm(u64);

    impl Alarm {
        pub(super) fn set(due: Instant, wakes: Arc<shuttle::sync::Condvar>) -> Alarm {
            LAST.set(LAST.get() + 1);
            ALARMS.with_borrow_mut(|alarms| alarms.push((LAST.get(), due.0, wakes)));
            Alarm(LAST.get())
        }
    }

    impl Drop for Alarm {
        fn drop(&mut self) {
            ALARMS.with_borrow_mut(|alarms| alarms.retain(|alarm| alarm.0 != self.0));
        }
    }
}
