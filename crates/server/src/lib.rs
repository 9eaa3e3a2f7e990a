//! The server: a [`FileSystem`] on one side, the exchanges of any transport on the other.
//!
//! ```text
//!   transport ──► RequestQueue::next ──► Worker::run ──► Session::handle ──► FileSystem
//!       ▲                                                      │                 │
//!       └───────────── Exchange::finish ◄── Reply::encode ◄────┴──── a value ◄───┘
//! ```
//!
//! A transport runs one [`Worker`] for each queue. The worker takes a request, the [`Session`] parses it, calls
//! the one method of the file system that it is for, and turns the value returned into a reply. What may wait
//! for the disk, a sync above all, is carried on by other threads, so that the queue goes on.
//!
//! This crate knows no transport and no system call.

#![forbid(unsafe_code)]

mod dispatch;
mod early;
mod filesystem;
mod histogram;
mod mutant;
mod observe;
mod offload;
mod primitives;
mod recovery;
mod session;
mod sync;
mod sync_counts;
mod wait;
mod worker;

pub use filesystem::{
    Attributes, Caller, Created, Entry, FileSystem, Lock, Opened, Read, Result, SetAttributes, Write,
};
pub use histogram::{TIME_BUCKETS, Times};
pub use observe::{Metrics, Observed, ObservedExchange, OperationCounts};
pub use recovery::{
    FindBy, Identity, Journal, JournalError, Look, Migratable, MigrationError, Moved, NODES_MAX, OpenedBy,
    RecordedExchange, Recoverable, Recovering, Restored, Term, Unfound, load, prepare, save,
};
pub use session::{Limits, ResumeError, Session};
pub use sync_counts::{SHARING_BUCKETS, SyncCounts};
pub use wait::Wait;
pub use worker::Worker;
