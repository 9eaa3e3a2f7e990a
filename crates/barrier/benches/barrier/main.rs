//! What a ticket costs, what a cut costs, and how long a wake-up takes. Side by side, in one run, with a plot at the end.
//!
//! `cargo bench -p ashore-barrier` takes about a minute and a half, and writes `crates/barrier/benchmark.svg`. Look at
//! ratios; the times are those of the machine.
#![allow(clippy::unwrap_used, reason = "in a measurement, a failed unwrap ends it")]

#[cfg(not(any(loom, shuttle)))]
mod measure;
#[cfg(not(any(loom, shuttle)))]
mod plot;
#[cfg(not(any(loom, shuttle)))]
mod subjects;

#[cfg(not(any(loom, shuttle)))]
fn main() {
    measure::main();
}

#[cfg(any(loom, shuttle))]
fn main() {}
