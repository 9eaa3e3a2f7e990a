//! The loop: one worker takes the requests of one queue and runs each to completion.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ashore_wire::DirentBuffer;
use ashore_wire::seam::RequestQueue;

use crate::filesystem::FileSystem;
use crate::session::Session;

/// Memory a worker keeps from one request to the next, so that none is allocated for each.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) names: DirentBuffer,
    pub(crate) bytes: Vec<u8>,
}

/// Takes the requests of one queue.
pub struct Worker<F> {
    session: Arc<Session<F>>,
    scratch: Scratch,
}

impl<F: FileSystem> Worker<F> {
    /// A worker of this session; a session may have as many as there are queues.
    pub fn new(session: Arc<Session<F>>) -> Worker<F> {
        Worker { session, scratch: Scratch::default() }
    }

    /// Serves the queue until it is stopped.
    ///
    /// A panic behind the dispatch is a mistake of ours. It is logged and costs the client that one request, which
    /// its transport answers with EIO; other requests, and data not yet synced, must not suffer for it.
    pub fn run<Q: RequestQueue>(mut self, mut queue: Q) {
        while let Some(exchange) = queue.next() {
            let handled = catch_unwind(AssertUnwindSafe(|| self.session.handle(exchange, &mut self.scratch)));
            if handled.is_err() {
                tracing::error!("a request made the server panic; it was answered with EIO");
                self.scratch = Scratch::default();
            }
        }
        self.session.queue_ended();
    }
}
