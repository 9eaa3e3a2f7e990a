//! A queue between a transport and a worker that answers some requests late, and keeps a journal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ashore_wire::Opcode;
use ashore_wire::abi::{InHeader, OutHeader};
use ashore_wire::seam::{Backlog, Exchange, RequestQueue};
use parking_lot::Mutex;
use zerocopy::FromBytes;

const PATIENCE: Duration = Duration::from_secs(20);

/// What was seen of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It came.
    Came(Opcode),
    /// It was answered.
    Answered(Opcode),
}

/// Which answers are late, and what was seen; shared by the queues of a mount.
#[derive(Default)]
pub struct Slowness {
    late: Mutex<Vec<(Opcode, Duration)>>,
    journal: Mutex<Vec<Seen>>,
}

impl Slowness {
    /// From now on, answers to this are late.
    pub fn delay(&self, opcode: Opcode, time: Duration) {
        self.late.lock().push((opcode, time));
    }

    /// How often something was seen.
    pub fn count(&self, seen: Seen) -> usize {
        self.journal.lock().iter().filter(|other| **other == seen).count()
    }

    /// Waits until something was seen so often.
    ///
    /// Panics if it takes too long.
    pub fn wait_for(&self, seen: Seen, count: usize) {
        let begin = Instant::now();
        while self.count(seen) < count {
            assert!(begin.elapsed() < PATIENCE, "{seen:?} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A queue whose answers are late.
    pub fn queue<Q: RequestQueue>(self: &Arc<Self>, inner: Q) -> SlowQueue<Q> {
        SlowQueue { inner, slowness: Arc::clone(self) }
    }

    fn note(&self, seen: Seen) {
        self.journal.lock().push(seen);
    }

    fn lateness(&self, opcode: Opcode) -> Option<Duration> {
        self.late.lock().iter().find(|(late, _)| *late == opcode).map(|(_, time)| *time)
    }
}

/// See [`Slowness::queue`].
pub struct SlowQueue<Q> {
    inner: Q,
    slowness: Arc<Slowness>,
}

impl<Q: RequestQueue> RequestQueue for SlowQueue<Q> {
    type Exchange = SlowExchange<Q::Exchange>;

    fn next(&mut self) -> Option<Self::Exchange> {
        let mut inner = self.inner.next()?;
        let header = InHeader::read_from_prefix(inner.parts().0).expect("a request has a header").0;
        let opcode = Opcode::from_raw(header.opcode).expect("the kernel sends what the protocol has");
        self.slowness.note(Seen::Came(opcode));
        Some(SlowExchange { inner, opcode, slowness: Arc::clone(&self.slowness) })
    }
}

/// A request whose answer may be late.
pub struct SlowExchange<E> {
    inner: E,
    opcode: Opcode,
    slowness: Arc<Slowness>,
}

impl<E: Exchange> Exchange for SlowExchange<E> {
    type Bulk = E::Bulk;

    fn parts(&mut self) -> (&[u8], &mut E::Bulk) {
        self.inner.parts()
    }

    fn finish(self, header: OutHeader) {
        let SlowExchange { inner, opcode, slowness } = self;
        let answer = move |slowness: &Slowness| {
            slowness.note(Seen::Answered(opcode));
            inner.finish(header);
        };
        match slowness.lateness(opcode) {
            None => answer(&slowness),
            Some(time) => drop(std::thread::spawn(move || {
                std::thread::sleep(time);
                answer(&slowness);
            })),
        }
    }

    fn finish_without_reply(self) {
        self.inner.finish_without_reply();
    }

    fn backlog(&self) -> Arc<dyn Backlog> {
        self.inner.backlog()
    }
}
