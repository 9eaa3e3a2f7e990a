//! A virtio-fs client in user space.
#![forbid(unsafe_code)]

mod client;
mod core;
mod file;
pub mod link;
mod metadata;
mod options;
mod shell;
#[doc(hidden)]
pub mod toy;

pub use client::{Client, SyncfsMissing};
pub use file::{File, OpenOptions};
pub use metadata::{DirectoryEntry, FileSystemStatus, FileType, Metadata};
pub use options::{CacheMode, Options, SyncOptions, SyncUnsupported};
pub use shell::patience::Cancel;
