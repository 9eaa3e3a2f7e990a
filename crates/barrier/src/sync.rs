//! Where this crate's atomics, locks and shared memory come from: std, or the model checker's imitation of it.
//!
//! `--cfg loom` and `--cfg shuttle` select the models. They are compiler flags and not features, because a feature
//! that somebody else switches on must never replace a real atomic.

#[cfg(loom)]
mod source {
    pub(crate) use loom::sync::atomic::{AtomicU64, fence};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[cfg(shuttle)]
mod source {
    pub(crate) use shuttle::sync::atomic::{AtomicU64, fence};
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}

#[cfg(not(any(loom, shuttle)))]
mod source {
    pub(crate) use std::sync::atomic::{AtomicU64, fence};
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
}

pub(crate) use source::{AtomicU64, Condvar, Mutex, MutexGuard, fence};

use std::sync::PoisonError;

/// Locks, whatever became of an earlier holder. Nothing that can panic runs under a lock of this crate except its own
/// assertions, and each critical section leaves the state whole before it asserts.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
