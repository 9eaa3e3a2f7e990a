//! Our server on a socket, in the test's own process: its file system can be wrapped, its host syncs counted and held.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use ashore_server::{FileSystem, Metrics, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Ended, Listener, StopHandle};
use ashore_wire::Opcode;
use ashore_wire::abi::InHeader;
use ashore_wire::seam::{Exchange, RequestQueue};
use tempfile::TempDir;
use zerocopy::FromBytes;

/// A session behind a vhost-user socket. Dropped, it stops and makes its last call.
pub struct InProcess<F: FileSystem> {
    session: Arc<Session<F>>,
    metrics: Arc<Metrics>,
    stop: StopHandle,
    serving: Option<JoinHandle<()>>,
    folder: TempDir,
}

impl<F: FileSystem> InProcess<F> {
    /// Serves one VMM after the other, each with so many request queues.
    pub fn serve(session: Arc<Session<F>>, request_queues: u16) -> io::Result<InProcess<F>> {
        InProcess::start(session, request_queues, Duration::ZERO)
    }

    /// Serves with one request queue, whose thread takes so long over each WRITE.
    pub fn serve_with_slow_writes(session: Arc<Session<F>>, delay: Duration) -> io::Result<InProcess<F>> {
        InProcess::start(session, 1, delay)
    }

    fn start(session: Arc<Session<F>>, request_queues: u16, delay: Duration) -> io::Result<InProcess<F>> {
        let folder = tempfile::tempdir()?;
        let listener = Listener::bind(socket(folder.path())).map_err(io::Error::other)?;
        let metrics = Arc::new(Metrics::new(usize::from(request_queues) + 1, None));
        let (for_queues, counts) = (Arc::clone(&session), Arc::clone(&metrics));
        let options = DeviceOptions { request_queues, ..DeviceOptions::default() };
        let device = Device::new(options, move |number, queue| {
            Worker::new(Arc::clone(&for_queues))
                .run(SlowWrites { queue: counts.observe(number.0.into(), queue), delay });
        })
        .map_err(io::Error::other)?;
        let stop = device.stop_handle();
        let for_end = Arc::clone(&session);
        let serving = thread::Builder::new().name("in-process".into()).spawn(move || {
            // A VMM that leaves, or talks nonsense, ends its own connection only.
            while !matches!(device.serve(&listener), Ok(Ended::Stopped)) {
                _ = for_end.end();
            }
        });
        Ok(InProcess { session, metrics, stop, serving: Some(serving?), folder })
    }

    /// Where VMMs and clients connect.
    pub fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// What was asked for, counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What is served.
    pub fn session(&self) -> &Arc<Session<F>> {
        &self.session
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

impl<F: FileSystem> Drop for InProcess<F> {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.serving.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || thread::panicking(), "the server panicked");
        _ = self.session.end();
    }
}

struct SlowWrites<Q> {
    queue: Q,
    delay: Duration,
}

impl<Q: RequestQueue> RequestQueue for SlowWrites<Q> {
    type Exchange = Q::Exchange;

    fn next(&mut self) -> Option<Q::Exchange> {
        let mut exchange = self.queue.next()?;
        if !self.delay.is_zero() && opcode(exchange.parts().0) == Some(Opcode::Write) {
            sleep(self.delay);
        }
        Some(exchange)
    }
}

fn opcode(head: &[u8]) -> Option<Opcode> {
    let (header, _) = InHeader::read_from_prefix(head).ok()?;
    Opcode::from_raw(header.opcode)
}
