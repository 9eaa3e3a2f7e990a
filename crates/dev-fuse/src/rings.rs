//! Whether the requests of a mount come through io_uring: what the kernel offers, what INIT's answer says of it, and the queues that
//! wait for that answer. What a queue then does is in `ring.rs`.

use std::fs;
use std::io;
use std::sync::Arc;

use ashore_wire::Opcode;
use ashore_wire::abi::{InHeader, InitIn, InitOut};
use ashore_wire::flags::InitFlags;
use ashore_wire::init::offered_flags;
use parking_lot::{Condvar, Mutex};
use zerocopy::FromBytes;

use crate::buffers::PAGE_SIZE;
use crate::ring::{RingQueue, SLOTS};

/// Where the kernel says whether it offers this.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors there can be, each of which has a queue.
const PROCESSORS: &str = "/sys/devices/system/cpu/possible";
/// The kernel refuses less room for a payload (`FUSE_MIN_READ_BUFFER`).
const SHORTEST_PAYLOAD: usize = 8192;
/// Pages in a request if INIT does not say.
const PAGES_UNLESS_AGREED: usize = 32;

/// Why there are no rings.
pub(crate) fn obstacle() -> Option<String> {
    match fs::read_to_string(PARAMETER) {
        Ok(value) if value.trim() == "Y" => None,
        Ok(_) => Some(format!("the kernel does not offer it; as root: echo Y > {PARAMETER}")),
        Err(_) => Some(
            "the kernel does not have it; Linux 6.14 is the first that can (CONFIG_FUSE_IO_URING)".into(),
        ),
    }
}

/// What INIT's answer says about the rings of a mount, and their queues, which wait for it.
pub(crate) struct Rings {
    decision: Mutex<Option<Decision>>,
    decided: Condvar,
    processors: u16,
}

/// How requests come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Through rings; payloads have so many bytes at most.
    Rings(usize),
    /// By read(2).
    Reading,
}

impl Rings {
    /// Makes the rings, one for each processor, and nothing of it if one of them cannot be made.
    pub(crate) fn new() -> io::Result<(Arc<Rings>, Vec<RingQueue>)> {
        let processors = possible_processors(&fs::read_to_string(PROCESSORS)?)
            .ok_or_else(|| io::Error::other(format!("{PROCESSORS} is not understood")))?;
        let rings = Arc::new(Rings { decision: Mutex::default(), decided: Condvar::new(), processors });
        let queue = |processor| RingQueue::new(Arc::clone(&rings), processor);
        let queues = (0..processors).map(queue).collect::<io::Result<_>>()?;
        Ok((rings, queues))
    }

    /// Looks at an answer that goes to the kernel. If it is the one to INIT it gets our word as well: the server behind knows
    /// nothing of how its requests come.
    pub(crate) fn agree(&self, head: &[u8], body: &mut [u8]) -> Option<Decision> {
        let (header, arguments) = InHeader::ref_from_prefix(head).ok()?;
        if header.opcode != Opcode::Init as u32 {
            return None;
        }
        let offered = InitIn::read_from_prefix(arguments).map(|(offer, _)| offered_flags(&offer)).ok()?;
        let Ok((reply, _)) = InitOut::mut_from_prefix(body) else { return Some(Decision::Reading) };
        // A kernel of another major version is asked to say it again.
        if reply.max_write == 0 {
            return None;
        }
        if !offered.contains(InitFlags::OVER_IO_URING) {
            tracing::warn!(
                "FUSE over io_uring: the kernel did not offer it; requests are read from /dev/fuse"
            );
            return Some(Decision::Reading);
        }
        reply.flags |= InitFlags::INIT_EXT.bits() as u32;
        reply.flags2 |= (InitFlags::OVER_IO_URING.bits() >> 32) as u32;
        let pages = if reply.max_pages == 0 { PAGES_UNLESS_AGREED } else { usize::from(reply.max_pages) };
        let payload = (reply.max_write as usize).max(pages * PAGE_SIZE).max(SHORTEST_PAYLOAD);
        tracing::info!(
            "FUSE over io_uring: {} queues, one for each processor, of {SLOTS} requests of {payload} bytes",
            self.processors
        );
        Some(Decision::Rings(payload))
    }

    /// The answer to INIT has gone, or none will. What was said first holds.
    pub(crate) fn decide(&self, decision: Decision) {
        self.decision.lock().get_or_insert(decision);
        self.decided.notify_all();
    }

    pub(crate) fn wait(&self) -> Decision {
        let mut decision = self.decision.lock();
        loop {
            match *decision {
                Some(decision) => return decision,
                None => self.decided.wait(&mut decision),
            }
        }
    }
}

/// How many processors there can be, from the list that the kernel shows: `0` or `0-7`.
fn possible_processors(list: &str) -> Option<u16> {
    let last = list.trim().rsplit(['-', ',']).next()?;
    last.parse::<u16>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashore_wire::abi::IN_HEADER_SIZE;
    use zerocopy::IntoBytes;

    fn header(opcode: Opcode, length: usize) -> InHeader {
        InHeader { len: (IN_HEADER_SIZE + length) as u32, opcode: opcode as u32, ..Default::default() }
    }

    #[test]
    fn the_word_about_rings_is_said_only_to_a_kernel_that_offers_them() {
        let rings = Rings { decision: Mutex::default(), decided: Condvar::new(), processors: 2 };
        let answer = InitOut { max_write: 1 << 20, max_pages: 256, ..Default::default() };
        let ask = |flags: InitFlags| {
            let offer = InitIn {
                major: 7,
                minor: 45,
                flags: flags.bits() as u32,
                flags2: (flags.bits() >> 32) as u32,
                ..Default::default()
            };
            let head = [header(Opcode::Init, size_of::<InitIn>()).as_bytes(), offer.as_bytes()].concat();
            let mut words = [0u64; 8];
            words.as_mut_bytes().copy_from_slice(answer.as_bytes());
            let decision = rings.agree(&head, words.as_mut_bytes());
            (decision, InitOut::read_from_bytes(words.as_bytes()).unwrap().flags2)
        };
        let ext = InitFlags::INIT_EXT;
        assert_eq!(ask(ext), (Some(Decision::Reading), 0));
        assert_eq!(ask(ext | InitFlags::OVER_IO_URING), (Some(Decision::Rings(1 << 20)), 1 << 9));
        assert_eq!(rings.agree(header(Opcode::Lookup, 0).as_bytes(), &mut []), None);
    }

    #[test]
    fn processors_are_counted_from_the_kernels_list() {
        assert_eq!(possible_processors("0-1\n"), Some(2));
        assert_eq!(possible_processors("0\n"), Some(1));
        assert_eq!(possible_processors(""), None);
    }
}
