//! Requests that were sent and not yet answered, by id.

use ashore_wire::{Errno, RequestId};

use crate::primitives::HashMap;

/// Requests in flight on one connection, at most. The kernel's own queues hold far fewer; this one only has to be
/// finite, so that a server that never answers cannot make the client's memory grow for ever.
pub(crate) const REQUESTS_IN_FLIGHT: usize = 4096;

/// Ids go up in steps of two, as the kernel's do: the odd ones belong to INTERRUPT.
const ID_STEP: u64 = 2;

/// The requests in flight, each with what is to be done with its answer.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    last_id: u64,
    requests: HashMap<u64, T>,
    /// Why nothing more can be sent.
    ended: bool,
}

impl<T> InFlight<T> {
    /// Nothing is in flight.
    pub(crate) fn new() -> InFlight<T> {
        InFlight { last_id: 0, requests: HashMap::default(), ended: false }
    }

    /// Whether one more may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_IN_FLIGHT
    }

    /// A request is about to be sent. ENOTCONN, and `pending` back, if the connection has ended.
    pub(crate) fn begin(&mut self, pending: T) -> Result<RequestId, (Errno, T)> {
        if self.ended {
            return Err((Errno::ENOTCONN, pending));
        }
        self.last_id += ID_STEP;
        self.requests.insert(self.last_id, pending);
        Ok(RequestId(self.last_id))
    }

    /// The id of a request that has no answer: a server that goes on for another knows by it whether that has done it.
    pub(crate) fn one_way(&mut self) -> RequestId {
        self.last_id += ID_STEP;
        RequestId(self.last_id)
    }

    /// An answer came. `None` if nobody asked: a server that answers twice, or makes up ids.
    pub(crate) fn answered(&mut self, id: RequestId) -> Option<T> {
        self.requests.remove(&id.0)
    }

    /// Looks at a request in flight.
    pub(crate) fn pending(&mut self, id: RequestId) -> Option<&mut T> {
        self.requests.get_mut(&id.0)
    }

    /// The connection has ended: returns all that will never be answered. Their error is ECONNABORTED; what is
    /// begun from now on gets ENOTCONN.
    pub(crate) fn end(&mut self) -> Vec<T> {
        self.ended = true;
        self.requests.drain().map(|(_, pending)| pending).collect()
    }

    /// All requests in flight.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.requests.values()
    }

    /// Whether the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Requests in flight.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }
}

/// The id of an INTERRUPT for a request.
pub(crate) fn interrupt_id(target: RequestId) -> RequestId {
    RequestId(target.0 | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_even_and_never_come_again() {
        let mut table = InFlight::new();
        let ids: Vec<_> = (0..4).map(|n| table.begin(n).unwrap()).collect();
        assert_eq!(ids, [2, 4, 6, 8].map(RequestId));
        assert_eq!(table.answered(RequestId(4)), Some(1));
        assert_eq!(table.answered(RequestId(4)), None, "a second answer is nobody's");
        assert_eq!(table.begin(9).unwrap(), RequestId(10));
        assert_eq!(interrupt_id(RequestId(26)), RequestId(27));
    }

    #[test]
    fn after_the_end_nothing_is_lost_and_nothing_begins() {
        let mut table = InFlight::new();
        table.begin("a").unwrap();
        assert_eq!(table.end(), ["a"]);
        assert_eq!(table.begin("b").unwrap_err().0, Errno::ENOTCONN);
        assert!(table.has_ended() && table.len() == 0);
    }
}
