//! A device and its connection to a VMM, one at a time.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use ashore_wire::seam::Backlog;
use parking_lot::Mutex;
use vhost::vhost_user::{BackendReqHandler, Error as MessageError};

use super::backlog::DeviceBacklog;
use super::connection::Connection;
use super::counters::{Counters, QueueCounters};
use super::fds::{self, Readiness, Wake};
use super::listener::Listener;
use super::options::{DeviceOptions, OptionsError};
use super::queue::DeviceQueue;
use super::state::{DeviceState, Transfers};
use super::vring::Surroundings;
use super::{QueueIndex, ring};

/// How long a VMM may take between starting its device and sharing memory before we say what is probably wrong.
const MEMORY_EXPECTED_WITHIN: Duration = Duration::from_secs(5);

/// What to say where requests cannot be seen.
pub(crate) const NO_SHARED_MEMORY: &str = "the VMM shares no memory: start QEMU with \
     -object memory-backend-memfd,id=mem,size=<RAM>,share=on -numa node,memdev=mem \
     (cloud-hypervisor: --memory shared=on)";

/// A virtio-fs device that VMMs connect to.
pub struct Device {
    options: DeviceOptions,
    surroundings: Surroundings,
    counters: Vec<Arc<Counters>>,
    state: Option<Arc<dyn DeviceState>>,
    stop: Arc<Stop>,
}

/// Why [`Device::serve`] returned without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The VMM has disconnected.
    Disconnected,
    /// A [`StopHandle`] was used.
    Stopped,
}

/// Why a connection ended, or none came about.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The VMM did not share the guest's memory.
    #[error("{NO_SHARED_MEMORY}")]
    NoSharedMemory,
    /// What the VMM said was not vhost-user; its connection was closed.
    #[error("the VMM sent a message that is not understood ({0}); its connection is closed")]
    Protocol(String),
    /// A system call failed.
    #[error("waiting for a VMM failed: {0}")]
    Io(#[from] io::Error),
}

impl Device {
    /// Makes a device. Every queue that a VMM starts gets a thread of its own, which runs `handler` until the
    /// queue is stopped: that is, until [`RequestQueue::next`](ashore_wire::seam::RequestQueue::next) says `None`.
    pub fn new(
        options: DeviceOptions,
        handler: impl Fn(QueueIndex, DeviceQueue) + Send + Sync + 'static,
    ) -> Result<Device, DeviceError> {
        options.check()?;
        let counters = (0..options.queues()).map(|_| Arc::default()).collect();
        let surroundings = Surroundings {
            handler: Arc::new(handler),
            backlog: Arc::new(DeviceBacklog::default()),
            poll_us: options.poll_us,
            hiprio_nap: options.hiprio_nap,
            on_reset: Arc::new(|| {}),
            empty_handed: Arc::default(),
        };
        let stop = Arc::new(Stop::new()?);
        Ok(Device { options, surroundings, counters, state: None, stop })
    }

    /// Calls `on_reset` whenever a VMM resets the device (VHOST_USER_RESET_DEVICE): a guest that reboots or crashes takes no
    /// leave. Every request that was taken has been finished by then, and no queue runs; the VMM waits for the call to
    /// return.
    pub fn on_reset(mut self, on_reset: impl Fn() + Send + Sync + 'static) -> Device {
        self.surroundings.on_reset = Arc::new(on_reset);
        self
    }

    /// Offers VMMs to move what is kept for a guest to another server, and from one (DEVICE_STATE): live migration.
    pub fn with_state(mut self, state: impl DeviceState + 'static) -> Device {
        self.state = Some(Arc::new(state));
        self
    }

    /// Waits for a VMM and serves it until it leaves. When this returns, every request that was taken has been
    /// finished and no thread of the device is left; the caller may sync, and call again for the next VMM.
    pub fn serve(&self, listener: &Listener) -> Result<Ended, ServeError> {
        match self.accept(listener)? {
            Some(stream) => self.serve_stream(stream),
            None => Ok(Ended::Stopped),
        }
    }

    /// Serves a VMM that is connected already. See [`Device::serve`].
    pub fn serve_stream(&self, stream: UnixStream) -> Result<Ended, ServeError> {
        stream.set_nonblocking(false)?;
        if !self.stop.watch(&stream)? {
            return Ok(Ended::Stopped);
        }
        tracing::debug!("a VMM has connected");
        let transfers = Transfers::of(self.state.clone());
        let connection =
            Connection::new(self.options.clone(), self.surroundings.clone(), &self.counters, transfers);
        // The standard library's lock, because `vhost` wants it. Nobody else takes it while messages are followed.
        let connection = Arc::new(StdMutex::new(connection));
        let (before, empty_handed) = (self.requests(), &self.surroundings.empty_handed);
        empty_handed.store(false, Ordering::Relaxed);
        let result = follow_messages(&stream, &connection);
        self.stop.forget();
        let mut connection = connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        connection.stop_all();
        tracing::debug!("the VMM's connection has ended");
        match result {
            _ if self.stop.is_stopped() => Ok(Ended::Stopped),
            _ if connection.shares_no_memory() => Err(ServeError::NoSharedMemory),
            _ if empty_handed.load(Ordering::Relaxed) && self.requests() == before => {
                Err(ServeError::NoSharedMemory)
            }
            Ok(()) => Ok(Ended::Disconnected),
            Err(error) => Err(ServeError::Protocol(error.to_string())),
        }
    }

    /// Ends [`Device::serve`], from any thread.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.stop.clone())
    }

    /// What guests have made available in all queues.
    pub fn backlog(&self) -> Arc<dyn Backlog> {
        self.surroundings.backlog.clone()
    }

    /// What each queue has done since the device was made, hiprio first.
    pub fn counters(&self) -> Vec<QueueCounters> {
        self.counters.iter().map(|counters| counters.read()).collect()
    }

    fn requests(&self) -> u64 {
        self.counters().iter().map(|counters| counters.requests).sum()
    }

    /// Largest ring that a VMM may set up.
    pub const RING_SIZE_MAX: u16 = ring::RING_SIZE_MAX;

    fn accept(&self, listener: &Listener) -> Result<Option<UnixStream>, ServeError> {
        loop {
            if self.stop.is_stopped() {
                return Ok(None);
            }
            let (_, ready) = fds::wait_for(self.stop.wake.as_fd(), Some(listener.as_fd()), None);
            match ready {
                Readiness::Quiet => {}
                Readiness::Readable => match listener.accept()? {
                    Some(stream) => return Ok(Some(stream)),
                    None => continue,
                },
                Readiness::Broken => return Err(io::Error::other("the listening socket is broken").into()),
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An option makes no sense.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A system call failed.
    #[error("a device cannot be made: {0}")]
    Io(#[from] io::Error),
}

/// Follows messages until the VMM leaves (`Ok`) or says something that cannot be understood.
fn follow_messages(stream: &UnixStream, connection: &Arc<StdMutex<Connection>>) -> Result<(), MessageError> {
    let socket = stream.try_clone().map_err(MessageError::SocketError)?;
    let mut messages = BackendReqHandler::from_stream(socket, connection.clone());
    let mut warned = false;
    loop {
        if !warned && lacks_memory(connection) {
            warned = warn_unless_readable(stream);
        }
        match messages.handle_request() {
            Ok(()) | Err(MessageError::SocketRetry(_) | MessageError::ReqHandlerError(_)) => {}
            Err(MessageError::Disconnected | MessageError::SocketBroken(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn lacks_memory(connection: &StdMutex<Connection>) -> bool {
    connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).shares_no_memory()
}

/// QEMU stays connected after it found that it cannot share its memory, and the guest just sees no file system.
fn warn_unless_readable(stream: &UnixStream) -> bool {
    let (ready, _) = fds::wait_for(stream.as_fd(), None, Some(MEMORY_EXPECTED_WITHIN));
    if ready == Readiness::Quiet {
        tracing::warn!("{}", ServeError::NoSharedMemory);
    }
    ready == Readiness::Quiet
}

/// Ends a device's [`Device::serve`]: the connection is closed, requests that were taken are finished first.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Stop>);

impl StopHandle {
    /// Stops the device for good. Returns at once; [`Device::serve`] returns when everything is finished.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.wake.set();
        if let Some(stream) = &*self.0.connection.lock() {
            // It fails if the VMM has left already, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Debug)]
struct Stop {
    stopped: AtomicBool,
    wake: Wake,
    connection: Mutex<Option<UnixStream>>,
}

impl Stop {
    fn new() -> io::Result<Stop> {
        Ok(Stop { stopped: AtomicBool::new(false), wake: Wake::new()?, connection: Mutex::new(None) })
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Has `stop` end this connection; `false` if it was called before.
    fn watch(&self, stream: &UnixStream) -> io::Result<bool> {
        let mut connection = self.connection.lock();
        *connection = Some(stream.try_clone()?);
        Ok(!self.is_stopped())
    }

    fn forget(&self) {
        *self.connection.lock() = None;
    }
}
