//! One descriptor of a mount, from which one thread takes requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ashore_wire::seam::RequestQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::device::Came;
use crate::exchange::{FuseExchange, Origin};

/// How long to leave the kernel alone after it had no memory for a request.
const BREATHER: Duration = Duration::from_millis(10);

/// A queue of requests from the kernel; see [`RequestQueue`]. It ends when the mount does.
///
/// The connection lives as long as one of its queues: when all have been dropped, the kernel answers everything with
/// "Transport endpoint is not connected", and the mount is only good for being unmounted.
pub struct FuseQueue {
    origin: Arc<Origin>,
    index: usize,
}

impl fmt::Debug for FuseQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseQueue").field("index", &self.index).finish_non_exhaustive()
    }
}

impl FuseQueue {
    pub(crate) fn new(origin: Origin, index: usize) -> FuseQueue {
        FuseQueue { origin: Arc::new(origin), index }
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
        self.origin.turns.end(self.index);
        let mut slot = self.origin.pool.take();
        loop {
            match self.origin.device.read(slot.bulk.request.bytes_mut()) {
                Came::Request(length) => {
                    self.origin.turns.begin(self.index);
                    let exchange = FuseExchange::new(Arc::clone(&self.origin), slot, length);
                    if let Some(exchange) = exchange.unless_crowded() {
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

impl Drop for FuseQueue {
    fn drop(&mut self) {
        self.origin.turns.end(self.index);
    }
}
