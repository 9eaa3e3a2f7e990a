//! A file system mounted on this machine for a test, through `/dev/fuse`, and never left behind.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use ashore_dev_fuse::{FuseQueue, Mount, MountOptions, Transport, Unmounted};
use ashore_server::{FileSystem, Session, Worker};
use ashore_wire::seam::RequestQueue;
use tempfile::TempDir;

/// In the environment: every mount of the tests takes its requests through io_uring, or fails.
const IO_URING_VARIABLE: &str = "ASHORE_TEST_IO_URING";

/// Queues of a mount, unless a test wants another number.
pub const QUEUES: usize = 4;

/// A session behind a mount. Dropped, it is unmounted, whoever still uses it.
pub struct Mounted<F: FileSystem> {
    session: Arc<Session<F>>,
    mount: Option<Mount>,
    workers: Vec<JoinHandle<()>>,
    point: TempDir,
}

impl<F: FileSystem> Mounted<F> {
    /// Mounts on a new directory.
    ///
    /// Panics, with what to do, where that is not possible: it takes root and `/dev/fuse`.
    pub fn new(session: Arc<Session<F>>, options: &MountOptions, queues: usize) -> Mounted<F> {
        Mounted::with(session, options, queues, |queue| queue)
    }

    /// Mounts on a new directory, and puts something of the test between the kernel and each worker.
    pub fn with<Q: RequestQueue + 'static>(
        session: Arc<Session<F>>,
        options: &MountOptions,
        queues: usize,
        wrap: impl Fn(FuseQueue) -> Q,
    ) -> Mounted<F> {
        let point = tempfile::tempdir().expect("a directory to mount on");
        let options = match std::env::var_os(IO_URING_VARIABLE) {
            Some(_) => options.clone().transport(Transport::IoUring),
            None => options.clone(),
        };
        let (mount, queues) =
            options.mount(point.path(), queues).unwrap_or_else(|error| panic!("this test mounts: {error}"));
        let workers = queues
            .into_iter()
            .map(|queue| {
                let (worker, queue) = (Worker::new(Arc::clone(&session)), wrap(queue));
                std::thread::spawn(move || worker.run(queue))
            })
            .collect();
        Mounted { session, mount: Some(mount), workers, point }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// The session behind it.
    pub fn session(&self) -> &Arc<Session<F>> {
        &self.session
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("taken only when dropped")
    }

    /// Unmounts and waits until all queues have ended.
    pub fn unmount(mut self) -> std::io::Result<Unmounted> {
        let unmounted = self.mount().unmount()?;
        self.end();
        Ok(unmounted)
    }

    /// Waits until all queues have ended because somebody else unmounts.
    pub fn wait(mut self) {
        self.end_workers();
    }

    fn end(&mut self) {
        // Unmounts if need be, and ends the connection if the mount is in use.
        drop(self.mount.take());
        self.end_workers();
    }

    fn end_workers(&mut self) {
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl<F: FileSystem> Drop for Mounted<F> {
    fn drop(&mut self) {
        self.end();
        let _ = self.session.end();
    }
}
