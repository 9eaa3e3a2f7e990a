//! One suite for both barriers, under three schedulers: loom (all schedules, weak memory), shuttle (random schedules and
//! PCT), and real threads (also under Miri).
//!
//! ```text
//!     RUSTFLAGS="--cfg loom"    cargo test --release -p ashore-barrier --test suite
//!     RUSTFLAGS="--cfg shuttle" cargo test --release -p ashore-barrier --test suite
//!                               cargo test           -p ashore-barrier --test suite
//! ```
//!
//! Add `--cfg mutants` for the table of deliberate bugs and the tests that catch them.

#![allow(clippy::unwrap_used, reason = "in a test, a failed unwrap is the failure")]

#[cfg(loom)]
mod loom;
#[cfg(mutants)]
mod mutants;
mod oracle;
mod runtime;
mod scenarios;
#[cfg(shuttle)]
mod shuttle;
mod subject;
#[cfg(not(any(loom, shuttle)))]
mod threads;
