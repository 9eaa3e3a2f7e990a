//! The shipped client and the shipped server, threads and all, over a simulated host, in one thread and from one seed.
//!
//! Everything is in a build with `--cfg shuttle` only; `docs/testing.md` says how to run it and how to replay a seed.
//!
//! ```text
//!   workers ──► Client ──► link: queues ──► server::Worker ──► Session ──► SimFs: volatile and durable
//!      └──────────── oracle: what a sync that succeeded promises ◄──────────────────┘
//! ```
#![cfg(shuttle)]
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "for tests")]
#![allow(clippy::unwrap_used, reason = "for tests: what is missing here is a mistake of the test")]

pub mod host;
pub mod link;
mod oracle;
pub mod raw;
pub mod run;
pub mod schedule;
mod workload;
