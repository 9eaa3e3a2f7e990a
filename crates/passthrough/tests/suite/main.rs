//! The file system driven through its trait, over real directories of the host.
//!
//! Tests that mount something need root, and fail without it: that they did not run must not look like success.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

mod disk;
mod escapes;
mod harness;
mod identity;
mod locks;
mod mounts;
mod moving;
#[cfg(mutants)]
mod mutants;
mod operations;
mod reading;
mod rights;
mod scope;
mod syncing;
#[cfg(mutants)]
mod trials;
