//! A file system that is slow to write, and some writes more than others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use ashore_server::{Attributes, Caller, Created, Entry, FileSystem, Opened, Result, Write};
use ashore_wire::flags::{InitFlags, OpenRequestFlags};
use ashore_wire::init::Agreement;
use ashore_wire::seam::Payload;
use ashore_wire::{FileHandle, LockOwner, Name, NodeId};

/// Wraps a file system. What it passes on is what raw requests of tests need; the rest is ENOSYS.
pub struct Delayed<F> {
    inner: F,
    most: Duration,
    /// Drawn anew for each WRITE; the same seed gives the same delays, in some order.
    random: AtomicU64,
}

impl<F> Delayed<F> {
    /// Half of all WRITEs take up to `most` longer, before they are done.
    pub fn new(inner: F, most: Duration, seed: u64) -> Delayed<F> {
        Delayed { inner, most, random: AtomicU64::new(seed) }
    }

    /// The file system.
    pub fn inner(&self) -> &F {
        &self.inner
    }

    fn delay(&self) {
        let drawn = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (drawn ^ drawn >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32;
        if mixed.is_multiple_of(2) {
            sleep(self.most.mul_f64((mixed >> 1) as f64 / f64::from(u32::MAX >> 1)));
        }
    }
}

impl<F: FileSystem> FileSystem for Delayed<F> {
    fn write(
        &self,
        caller: &Caller<'_>,
        node: NodeId,
        write: &Write,
        payload: &mut dyn Payload,
    ) -> Result<usize> {
        self.delay();
        self.inner.write(caller, node, write, payload)
    }

    crate::delegate! {
        fn features(&self) -> InitFlags;
        fn init(&self, agreement: &Agreement);
        fn destroy(&self);
        fn lookup(&self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry>;
        fn forget(&self, node: NodeId, lookups: u64);
        fn getattr(
            &self, caller: &Caller<'_>, node: NodeId, handle: Option<FileHandle>
        ) -> Result<Attributes>;
        fn mkdir(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, mode: u32, umask: u32
        ) -> Result<Entry>;
        fn open(
            &self, caller: &Caller<'_>, node: NodeId, flags: u32, open_flags: OpenRequestFlags
        ) -> Result<Opened>;
        fn create(
            &self, caller: &Caller<'_>, parent: NodeId, name: Name<'_>, flags: u32, mode: u32,
            umask: u32, open_flags: OpenRequestFlags
        ) -> Result<Created>;
        fn release(&self, node: NodeId, handle: FileHandle, flock_owner: Option<LockOwner>) -> Result<()>;
        fn fsync(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()>;
        fn fsyncdir(&self, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()>;
        fn syncfs(&self, node: NodeId) -> Result<()>;
        fn last_call(&self) -> Result<()>;
    }
}
