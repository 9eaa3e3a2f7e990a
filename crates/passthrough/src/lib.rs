//! A host directory as a file system.

#![deny(unsafe_code)]

mod options;

use ashore_server::{Attributes, Caller, Entry, FileSystem, Result};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, FileHandle, Name, NodeId};

pub use options::{CachePolicy, Durability, InodeFileHandles, Options, StartError};

/// A host directory as a file system.
#[derive(Debug)]
pub struct Passthrough {
    options: Options,
}

impl Passthrough {
    /// Opens the shared directory.
    pub fn new(options: Options) -> std::result::Result<Passthrough, StartError> {
        Ok(Passthrough { options })
    }
}

impl FileSystem for Passthrough {
    fn features(&self) -> InitFlags {
        self.options.features()
    }
    fn lookup(&self, _: &Caller<'_>, _: NodeId, _: Name<'_>) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }
    fn forget(&self, _: NodeId, _: u64) {}
    fn getattr(&self, _: &Caller<'_>, _: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        let _ = (self.options.cache.timeout(), self.options.cache.file_flags());
        let _ = self.options.cache.directory_flags();
        Err(Errno::ENOSYS)
    }
    fn fsync(&self, _: NodeId, _: FileHandle, _: bool) -> Result<()> {
        Err(Errno::EIO)
    }
    fn fsyncdir(&self, _: NodeId, _: FileHandle, _: bool) -> Result<()> {
        Err(Errno::EIO)
    }
    fn syncfs(&self, _: NodeId) -> Result<()> {
        Err(Errno::EIO)
    }
}
