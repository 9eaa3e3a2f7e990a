//! A [`Disk`] as a file of this machine, by way of `/dev/fuse`.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use ashore_dev_fuse::{Mount, MountOptions};
use ashore_server::{Limits, Session, Worker};
use tempfile::TempDir;

use super::disk::Disk;
use super::mounts::unmount_patiently;
use super::one_file::{FILE_NAME, FlushesApart, OneFile};

/// Requests that can be under way at a time: as many writes can be held.
const QUEUES: usize = 8;

/// A disk that is a file, until this is dropped.
#[derive(Debug)]
pub(super) struct DiskMount {
    place: TempDir,
    mount: Option<Mount>,
    workers: Vec<JoinHandle<()>>,
}

impl DiskMount {
    /// Makes it one.
    pub(super) fn new(disk: &Arc<Disk>) -> Result<DiskMount> {
        let place = tempfile::Builder::new().prefix("ashore-power-").tempdir()?;
        // A disk knows nothing of syncs that come before their data.
        let limits = Limits { early_sync_grace: Duration::ZERO, ..Limits::default() };
        let session = Session::new(OneFile(Arc::clone(disk)), limits);
        let (mount, queues) = MountOptions::new().source("ashore-power-cut").mount(place.path(), QUEUES)?;
        let start = |queue| {
            let queue = FlushesApart { queue, disk: Arc::clone(disk) };
            let worker = Worker::new(Arc::clone(&session));
            thread::spawn(move || worker.run(queue))
        };
        Ok(DiskMount { workers: queues.into_iter().map(start).collect(), mount: Some(mount), place })
    }

    /// The file.
    pub(super) fn file(&self) -> PathBuf {
        self.place.path().join(FILE_NAME)
    }
}

impl Drop for DiskMount {
    fn drop(&mut self) {
        // The loop device on the file lets go of it a moment after its own mount has gone.
        unmount_patiently(self.place.path());
        drop(self.mount.take());
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
