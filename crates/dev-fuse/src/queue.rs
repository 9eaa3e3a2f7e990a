//! One descriptor of a mount, from which one thread takes requests.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ashore_wire::seam::RequestQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::device::Came;
use crate::exchange::{FuseExchange, Origin};
use crate::notify::Notifier;
use crate::ring::{Next, RingQueue};
use crate::rings::Decision;

/// How long to leave the kernel alone after it had no memory for a request.
const BREATHER: Duration = Duration::from_millis(10);

/// A queue of requests from the kernel; see [`RequestQueue`]. It ends when the mount does.
///
/// The connection lives as long as one of its queues: when all have been dropped, the kernel answers everything with
/// "Transport endpoint is not connected", and the mount is only good for being unmounted.
pub struct FuseQueue {
    origin: Arc<Origin>,
    index: usize,
    source: Source,
}

enum Source {
    /// Requests are read from the kernel.
    Kernel,
    /// Syncs that were read by the other queues, and the way to ask for write-back.
    Syncs(Receiver<FuseExchange>, Notifier),
    /// Requests come through a ring, or are read if the kernel does not want that.
    Ring(Box<RingQueue>, Notifier),
}

impl fmt::Debug for FuseQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseQueue").field("index", &self.index).finish_non_exhaustive()
    }
}

impl FuseQueue {
    /// A queue that reads requests.
    pub(crate) fn new(origin: Origin, index: usize) -> FuseQueue {
        FuseQueue { origin: Arc::new(origin), index, source: Source::Kernel }
    }

    /// A queue of the syncs that the others have read; see `write_back.rs`.
    pub(crate) fn of_syncs(
        origin: Origin,
        index: usize,
        syncs: Receiver<FuseExchange>,
        notifier: Notifier,
    ) -> FuseQueue {
        FuseQueue { origin: Arc::new(origin), index, source: Source::Syncs(syncs, notifier) }
    }

    /// A queue whose requests come through a ring.
    pub(crate) fn of_ring(origin: Origin, index: usize, ring: RingQueue, notifier: Notifier) -> FuseQueue {
        FuseQueue { origin: Arc::new(origin), index, source: Source::Ring(Box::new(ring), notifier) }
    }

    /// Which queue of its mount this is, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    fn wait_until_readable(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.origin.device.fd(), PollFlags::IN)];
        // Whatever comes of it, the next read says more.
        let _ = poll(&mut fds, None);
    }
}

impl RequestQueue for FuseQueue {
    type Exchange = FuseExchange;

    fn next(&mut self) -> Option<FuseExchange> {
        match &mut self.source {
            Source::Ring(..) => self.next_of_ring(),
            Source::Kernel => {
                self.origin.turns.end(self.index);
                self.read()
            }
            Source::Syncs(..) => {
                self.origin.turns.end(self.index);
                self.next_sync()
            }
        }
    }
}

impl FuseQueue {
    fn read(&self) -> Option<FuseExchange> {
        let mut slot = self.origin.pool.take();
        loop {
            match self.origin.device.read(slot.bulk.request.bytes_mut()) {
                Came::Request(length) => {
                    self.origin.turns.begin(self.index);
                    let exchange = FuseExchange::new(Arc::clone(&self.origin), slot, length);
                    if let Some(exchange) =
                        exchange.unless_crowded().and_then(|exchange| self.examined(exchange))
                    {
                        return Some(exchange);
                    }
                    self.origin.turns.end(self.index);
                    slot = self.origin.pool.take();
                }
                Came::Again => {}
                Came::WouldBlock => self.wait_until_readable(),
                Came::Failed(Errno::NOMEM) => std::thread::sleep(BREATHER),
                Came::Ended => break,
                Came::Failed(errno) => {
                    tracing::error!(
                        "queue {}: reading /dev/fuse failed: {errno}; the queue is stopped",
                        self.index
                    );
                    break;
                }
            }
        }
        self.origin.pool.give_back(slot);
        None
    }
}

impl FuseQueue {
    fn examined(&self, exchange: FuseExchange) -> Option<FuseExchange> {
        match &self.origin.write_back {
            Some(write_back) => write_back.examine(exchange),
            None => Some(exchange),
        }
    }

    fn next_of_ring(&mut self) -> Option<FuseExchange> {
        loop {
            let Source::Ring(ring, notifier) = &mut self.source else { return self.read() };
            match ring.next(&self.origin, self.index, notifier) {
                Next::Request(exchange) => {
                    if let Some(exchange) =
                        exchange.unless_crowded().and_then(|exchange| self.examined(exchange))
                    {
                        return Some(exchange);
                    }
                }
                Next::Read => self.source = Source::Kernel,
                Next::Ended => return None,
            }
        }
    }

    /// The next sync, when the kernel has sent all it held.
    fn next_sync(&self) -> Option<FuseExchange> {
        let Source::Syncs(syncs, notifier) = &self.source else { return None };
        let write_back = self.origin.write_back.as_ref()?;
        loop {
            let exchange = syncs.recv().ok()?;
            match write_back.flush(notifier) {
                Ok(()) => {
                    self.origin.turns.begin(self.index);
                    return Some(exchange);
                }
                Err(errno) => {
                    tracing::error!("the kernel could not be made to write back before a sync: {errno}");
                    // Dropped, it is answered with EIO: what is not known to be here cannot be stable.
                    drop(exchange);
                }
            }
        }
    }
}

impl Drop for FuseQueue {
    fn drop(&mut self) {
        self.origin.turns.end(self.index);
        if matches!(self.source, Source::Syncs(..)) {
            return;
        }
        if let Some(write_back) = &self.origin.write_back {
            write_back.queue_ended();
        }
        // If INIT was never answered, nobody is to wait for that any longer.
        if let Some(rings) = &self.origin.rings {
            rings.decide(Decision::Reading);
        }
    }
}
