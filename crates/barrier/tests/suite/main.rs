//! One suite for both barriers, under three schedulers: loom (all schedules, weak memory), shuttle (random schedules and
//! PCT), and real threads (also under Miri).
//!
//! ```text
//!     RUSTFLAGS="--cfg loom"    cargo test --release -p ashore-barrier --test suite
//!     RUSTFLAGS="--cfg shuttle" cargo test --release -p ashore-barrier --test suite
//!                               cargo test           -p ashore-barrier --test suite
//! ```
//!
//! Add `--cfg mutants` to the first two for the table of deliberate bugs and the tests that catch them.

#[cfg(loom)]
mod loom;
#[cfg(all(mutants, any(loom, shuttle)))]
mod mutants;
mod oracle;
mod runtime;
mod scenarios;
#[cfg(shuttle)]
mod shuttle;
mod subject;
#[cfg(not(any(loom, shuttle)))]
mod threads;
