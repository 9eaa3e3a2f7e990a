//! File systems, transports and guests for tests.
//!
//! What a test needs of more than one of our crates lives here, and so do the tests themselves. Nothing depends on
//! this crate.

#![allow(clippy::unwrap_used, reason = "this is test code: a failed unwrap is the failed test")]

pub use ashore_guest as guest;

pub mod delayed;
pub mod fsx;
pub mod in_process;
pub mod loopback;
pub mod memory_fs;
pub mod mounted;
pub mod overtaking;
pub mod power_cut;
pub mod scripted;
pub mod share;
pub mod slow;
