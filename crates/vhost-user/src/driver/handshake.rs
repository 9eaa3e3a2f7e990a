//! The messages between us and the server: features, memory, queues; and at the end, taking the queues back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserHeaderFlag,
    VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::memory::{GUEST_BASE, Memory};
use super::queue::{Queue, RingPlaces};

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Bytes of the configuration space: the tag, then the number of request queues.
const CONFIG_BYTES: u32 = 40;

/// Why no link to a server came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("cannot connect to {path}: {error}; check that a server is running and this is its socket")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody listens and says nothing.
    #[error(
        "{path} did not answer within {patience:?}; a server that is connected to a virtual machine answers nobody \
         else until that has gone; or it is no vhost-user-fs server at all"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        patience: Duration,
    },
    /// Somebody listens, and it is no vhost-user server, or a broken one.
    #[error("{path} did not answer as a vhost-user-fs server does ({what}); is it another kind of socket?")]
    NotAServer {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        what: String,
    },
    /// A server that lacks what every virtio-fs server has.
    #[error("the server at {path} does not offer {feature}, which this client needs")]
    Lacks {
        /// The socket.
        path: PathBuf,
        /// What it lacks.
        feature: &'static str,
    },
    /// Memory or threads could not be had.
    #[error("no link could be made: {0}")]
    Io(#[from] io::Error),
    /// One of two servers would not have the session moved; what it says of that is in its log.
    #[error("the server at {path} did not {what} the state of the session; see its log")]
    StateRefused {
        /// The socket.
        path: PathBuf,
        /// What it was asked to do: save, or load.
        what: &'static str,
    },
}

/// What is in flight, as the server wrote it down and we keep it for the next server.
pub(super) struct Inflight {
    what: VhostUserInflight,
    file: File,
}

/// A server that has agreed on features.
pub(super) struct Server {
    frontend: Frontend,
    socket: UnixStream,
    path: PathBuf,
    patience: Duration,
    event_idx: bool,
    /// Queues have to be enabled one by one.
    enables_queues: bool,
    request_queues: u16,
}

impl Server {
    /// Connects and agrees on features. A server that does not answer within `patience` is none.
    ///
    /// One to go on with after its end has to tell what is in flight.
    pub(super) fn greet(
        path: &Path,
        patience: Duration,
        most_queues: u16,
        go_on: bool,
    ) -> Result<Server, ConnectError> {
        let socket = connect(path, patience).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ConnectError::Silent { path: path.to_owned(), patience },
            _ => ConnectError::Connect { path: path.to_owned(), error },
        })?;
        // The handler checks queue numbers against this; the hiprio queue is one more.
        let frontend = Frontend::from_stream(socket.try_clone()?, u64::from(most_queues) + 1);
        let mut server = Server {
            frontend,
            socket,
            path: path.to_owned(),
            patience,
            event_idx: false,
            enables_queues: false,
            request_queues: 1,
        };
        server.in_time(|server| server.agree(most_queues, go_on))?;
        Ok(server)
    }

    fn agree(&mut self, most_queues: u16, go_on: bool) -> Result<(), ConnectError> {
        let path = self.path.clone();
        let not_a_server = move |error: vhost::Error| not_a_server(&path, error);
        self.frontend.set_owner().map_err(&not_a_server)?;
        let offered = self.frontend.get_features().map_err(&not_a_server)?;
        for (bit, feature) in [(VERSION_1, "VIRTIO_F_VERSION_1"), (INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC")] {
            if offered & bit == 0 {
                return Err(ConnectError::Lacks { path: self.path.clone(), feature });
            }
        }
        let agreed = offered & (VERSION_1 | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES);
        self.event_idx = agreed & EVENT_IDX != 0;
        self.enables_queues = agreed & PROTOCOL_FEATURES != 0;
        if self.enables_queues {
            self.agree_on_protocol(most_queues, go_on)?;
        } else if go_on {
            return Err(self.lacks_inflight());
        }
        self.frontend.set_features(agreed).map_err(&not_a_server)
    }

    fn agree_on_protocol(&mut self, most_queues: u16, go_on: bool) -> Result<(), ConnectError> {
        let path = self.path.clone();
        let broken = move |error: vhost::Error| not_a_server(&path, error);
        use VhostUserProtocolFeatures as Protocol;
        let offered = self.frontend.get_protocol_features().map_err(&broken)?;
        let inflight = if go_on { Protocol::INFLIGHT_SHMFD } else { Protocol::empty() };
        let agreed = offered
            & (Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIG | Protocol::DEVICE_STATE | inflight);
        if !agreed.contains(inflight) {
            return Err(self.lacks_inflight());
        }
        self.frontend.set_protocol_features(agreed).map_err(&broken)?;
        if agreed.contains(Protocol::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let mut queues = match agreed.contains(Protocol::MQ) {
            true => self.frontend.get_queue_num().map_err(&broken)?.saturating_sub(1),
            false => 1,
        };
        if agreed.contains(Protocol::CONFIG) {
            queues = queues.min(u64::from(self.configured_queues().unwrap_or(1)));
        }
        self.request_queues = queues.clamp(1, u64::from(most_queues)) as u16;
        Ok(())
    }

    fn lacks_inflight(&self) -> ConnectError {
        let feature = "to keep what is in flight (INFLIGHT_SHMFD; `ashore serve --state-file` does)";
        ConnectError::Lacks { path: self.path.clone(), feature }
    }

    /// The number of request queues in the configuration space.
    fn configured_queues(&mut self) -> Option<u32> {
        let room = [0; CONFIG_BYTES as usize];
        let read = self.frontend.get_config(0, CONFIG_BYTES, VhostUserConfigFlags::empty(), &room);
        let (_, config) = read.ok()?;
        Some(u32::from_le_bytes(config.get(36..40)?.try_into().ok()?))
    }

    pub(super) fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Request queues, beside hiprio.
    pub(super) fn request_queues(&self) -> u16 {
        self.request_queues
    }

    /// Closes or breaks together with the connection.
    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Memory in which the server writes down what is in flight.
    pub(super) fn make_inflight(&mut self, queues: &[Queue]) -> Result<Inflight, ConnectError> {
        let Some(queue) = queues.first() else { unreachable!("there is a hiprio queue") };
        let wanted = VhostUserInflight::new(0, 0, queues.len() as u16, queue.size());
        self.in_time(|server| match server.frontend.get_inflight_fd(&wanted) {
            Ok((what, file)) => Ok(Inflight { what, file }),
            Err(error) => Err(not_a_server(&server.path, error)),
        })
    }

    /// Hands memory and queues over; the server begins to serve them, with what is in flight, at these indices of their
    /// available rings.
    pub(super) fn start(
        &mut self,
        memory: &Memory,
        queues: &[Queue],
        inflight: Option<&Inflight>,
        bases: &[u16],
    ) -> Result<(), ConnectError> {
        self.in_time(|server| {
            let handed_over = server.hand_over(memory, queues, inflight, bases);
            handed_over.map_err(|error| not_a_server(&server.path, error))
        })
    }

    /// Talks to the server, and hangs up on one that keeps silent for too long. A timeout of the socket would not do:
    /// `vhost` takes it for an interruption, and goes on waiting.
    fn in_time<T>(
        &mut self,
        talk: impl FnOnce(&mut Server) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let (socket, patience) = (self.socket.try_clone()?, self.patience);
        let (finished, finish) = mpsc::channel::<()>();
        let hang_up_late = move || {
            let late = finish.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
            if late {
                // It fails if the other side has hung up already.
                let _ = socket.shutdown(Shutdown::Both);
            }
            late
        };
        let clock = thread::Builder::new().name("ashore-patience".into()).spawn(hang_up_late)?;
        let result = talk(self);
        drop(finished);
        match clock.join() {
            Ok(true) => Err(ConnectError::Silent { path: self.path.clone(), patience }),
            _ => result,
        }
    }

    fn hand_over(
        &mut self,
        memory: &Memory,
        queues: &[Queue],
        inflight: Option<&Inflight>,
        bases: &[u16],
    ) -> Result<(), vhost::Error> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: memory.bytes() as u64,
            userspace_addr: memory.address(),
            mmap_offset: 0,
            mmap_handle: memory.file().as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region])?;
        if let Some(Inflight { what, file }) = inflight {
            self.frontend.set_inflight_fd(what, file.as_raw_fd())?;
        }
        for (index, queue) in queues.iter().enumerate() {
            let RingPlaces { descriptors, available, used } = queue.places();
            let size = queue.size();
            self.frontend.set_vring_num(index, size)?;
            let address = |offset: usize| memory.address() + offset as u64;
            let addresses = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: address(descriptors),
                used_ring_addr: address(used),
                avail_ring_addr: address(available),
                log_addr: None,
            };
            self.frontend.set_vring_addr(index, &addresses)?;
            // Where a ring goes on that was served before, the server knows by what is in flight.
            self.frontend.set_vring_base(index, bases.get(index).copied().unwrap_or(0))?;
            self.frontend.set_vring_call(index, queue.call())?;
            self.frontend.set_vring_kick(index, queue.kick())?;
            if self.enables_queues {
                self.frontend.set_vring_enable(index, true)?;
            }
        }
        Ok(())
    }

    /// Takes the queues back: the server finishes what it has taken first. Returns where each goes on.
    pub(super) fn take_back(&mut self, queues: usize) -> Result<Vec<u16>, ConnectError> {
        self.in_time(|server| {
            let base = |index| server.frontend.get_vring_base(index).map(|base| base as u16);
            let bases = (0..queues).map(base).collect::<Result<_, _>>();
            bases.map_err(|error| not_a_server(&server.path, error))
        })
    }

    /// Everything the server keeps for us, for another one to go on with. Its queues have been taken back.
    pub(super) fn save_state(&mut self) -> Result<Vec<u8>, ConnectError> {
        self.in_time(|server| {
            let (mut from, pipe) = io::pipe()?;
            let (direction, phase) = (VhostTransferStateDirection::SAVE, VhostTransferStatePhase::STOPPED);
            let refused = |_| ConnectError::StateRefused { path: server.path.clone(), what: "save" };
            let other =
                server.frontend.set_device_state_fd(direction, phase, pipe.into()).map_err(refused)?;
            let mut state = Vec::new();
            match other {
                Some(mut other) => other.read_to_end(&mut state)?,
                None => from.read_to_end(&mut state)?,
            };
            server.frontend.check_device_state().map_err(refused)?;
            Ok(state)
        })
    }

    /// Has the server go on with what another one kept for us. Its queues come after that.
    pub(super) fn load_state(&mut self, state: &[u8]) -> Result<(), ConnectError> {
        self.in_time(|server| {
            let (pipe, mut into) = io::pipe()?;
            let (direction, phase) = (VhostTransferStateDirection::LOAD, VhostTransferStatePhase::STOPPED);
            let refused = |_| ConnectError::StateRefused { path: server.path.clone(), what: "load" };
            let other =
                server.frontend.set_device_state_fd(direction, phase, pipe.into()).map_err(refused)?;
            // One that reads no further says why when it is asked.
            let _ = match other {
                Some(mut other) => other.write_all(state),
                None => into.write_all(state),
            };
            drop(into);
            server.frontend.check_device_state().map_err(refused)
        })
    }

    /// Ends the connection.
    pub(super) fn hang_up(&self) {
        // It fails if the other side has hung up already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Connects; [`WouldBlock`](io::ErrorKind::WouldBlock) if nobody has accepted those before us, and so no more can wait.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}

fn not_a_server(path: &Path, error: vhost::Error) -> ConnectError {
    ConnectError::NotAServer { path: path.to_owned(), what: error.to_string() }
}
