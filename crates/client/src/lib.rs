//! A virtio-fs client in user space: a FUSE client with a page cache, and a `sync()` that means it.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! # let client = ashore_client::toy::client();
//! use std::io::{Read, Write};
//!
//! let mut file = client.create("notes.txt")?;
//! file.write_all(b"in the cache, and nowhere else yet\n")?;
//! client.sync()?; // on the server, and stable there; or an error
//!
//! let mut notes = String::new();
//! client.open("notes.txt")?.read_to_string(&mut notes)?;
//! assert_eq!(notes.lines().count(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What a successful sync says
//!
//! Everything that was changed through this connection before [`Client::sync`] was called is stable on the server: data
//! still in the cache, pages written to again while they were being written back, and every other change that was on
//! its way. Writers that go on meanwhile do not hold it up. A write that failed behind everybody's back is told to each
//! [`Client`] (each clone is a mount handle of its own) and to each open [`File`] once.
//!
//! # Which way a call goes
//!
//! ```text
//!   File::read_at, write_at          Client::sync, File::sync_all
//!        │                                   │
//!   read.rs, write.rs ── dirty pages ──► sync.rs: flush, cut, wait, SYNCFS
//!   direct.rs, change.rs, names.rs           │
//!        │                              writeback.rs: runs of pages
//!        └─────────────┬─────────────────────┘
//!               connection.rs: ids, tickets, answers
//!                      │
//!                  link::Link  ──►  a server
//! ```
//!
//! `core` is plain state without threads, clock or I/O, and most of it belongs to one inode; `shell` is everything else.
//! A cached read or write takes the lock of its inode and none besides.
//!
//! What carries requests is a [`link::Link`]: memory that the server can see too, which is the page cache, and a way to
//! send requests that name pages of it.
//!
//! # What it costs
//!
//! `cargo bench -p ashore-testkit --bench client` puts the client beside the host's own system calls, in turns: one thread,
//! the host's page cache warm, our server over its socket. On two processors shared with other work (23 November 2026),
//! medians of ratios, on tmpfs and on ext4:
//!
//! | | tmpfs | ext4 |
//! |---|---|---|
//! | `read_at` of 4 KiB from the cache, calls a second beside `pread` | 3.5 | 2.2 |
//! | `write_at` of 4 KiB to the cache, beside `pwrite` | 5.1 | 12.6 |
//! | reading 512 MiB in turn, 1 MiB at a time, nothing cached here | 0.54 | 0.26 |
//! | writing 512 MiB in turn and closing | 0.53 | 0.50 |
//! | a writer's speed while one syncs each second, beside without | 1.01 | 0.96 |
//!
//! What is not in the cache is copied twice, by the server into memory that both share and by us out of it, and a host
//! that reads from large pages into one small buffer is hard to follow. A sync that finds nothing dirty and 64 writes
//! in flight returns 19 to 21 µs after the last of them (median, a scripted server).
//!
//! # Features
//!
//! `vhost-user`, on by default, brings `Client::connect`: a link over the socket of a virtio-fs server. Without it this
//! crate knows no transport, and [`Client::new`] takes any other link.

#![forbid(unsafe_code)]

mod client;
#[cfg(feature = "vhost-user")]
mod connect;
mod core;
mod file;
pub mod link;
mod metadata;
mod mutant;
pub mod nodes;
mod options;
mod primitives;
mod shell;
#[doc(hidden)]
pub mod toy;

pub use client::{Client, SyncfsMissing};
#[cfg(feature = "vhost-user")]
pub use connect::{ConnectError, ConnectOptions};
pub use file::{File, OpenOptions};
pub use metadata::{DirectoryEntry, FileSystemStatus, FileType, Metadata};
pub use options::{CacheMode, Options, SyncOptions, SyncUnsupported};
pub use shell::patience::Cancel;
