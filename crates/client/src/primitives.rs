//! Where locks, atomics, threads and time come from: parking_lot and std, or the model's imitation of them.
//!
//! `--cfg shuttle` selects the model, in which `crates/simulation` runs this crate. It is a compiler flag and not a feature,
//! because a feature that somebody else switches on must never replace a real lock.

#[cfg(not(shuttle))]
mod source {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::collections::HashMap;
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread;
    pub(crate) use std::time::Instant;
}

#[cfg(shuttle)]
mod source {
    pub(crate) use ashore_barrier::model::{Condvar, HashMap, Instant, Mutex, MutexGuard, atomic, thread};
}

pub(crate) use source::{Condvar, HashMap, Instant, Mutex, MutexGuard, atomic, thread};
