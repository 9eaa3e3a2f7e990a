//! The barrier that makes a sync right although the kernel writes back from its cache when it likes.
//!
//! Linux from 6.18.21, 6.19.11 and 7.0 on sends SYNCFS without having waited for its dirty pages, and sometimes before it has
//! sent them at all. So before a SYNCFS goes to the server, the kernel is asked to write back and drop what it holds of
//! each file that is open for writing; asking returns when the WRITEs this takes have been answered.
//!
//! ```text
//!     queue 1 ---- OPEN f ---- WRITE f ---- SYNCFS --------+     WRITE f' ------------------->
//!                                                          |        ^
//!     write-back queue                                     +--> invalidate f --> SYNCFS goes to the server
//! ```
//!
//! The answering has to go on meanwhile, so the SYNCFS waits in a queue of its own, whose thread answers nothing else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use ashore_wire::abi::{CreateIn, EntryOut, InHeader, OpenIn, ReleaseIn};
use ashore_wire::{NodeId, Opcode};
use parking_lot::Mutex;
use zerocopy::FromBytes;

use crate::exchange::FuseExchange;
use crate::notify::Notifier;

/// Syncs that wait for write-back, at most; who reads one more waits until there is room.
pub(crate) const WAITING_SYNCS_MAX: usize = 1024;
/// The kind of access in the flags of open(2).
const ACCESS_MODE: u32 = 0o3;

/// Which files may have dirty pages in the kernel, and the way of a SYNCFS to the queue of its own.
pub(crate) struct WriteBack {
    open: Mutex<HashMap<NodeId, usize>>,
    syncs: Mutex<Option<SyncSender<FuseExchange>>>,
    /// Queues that read requests and have not ended.
    reading: AtomicUsize,
}

/// What an exchange does to the set of open files, once it has succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    None,
    /// This file is open for writing, once more.
    Opens(NodeId),
    /// So is the one that the reply names.
    Creates,
}

impl WriteBack {
    pub(crate) fn new(syncs: SyncSender<FuseExchange>, queues: usize) -> WriteBack {
        WriteBack {
            open: Mutex::default(),
            syncs: Mutex::new(Some(syncs)),
            reading: AtomicUsize::new(queues),
        }
    }

    /// Looks at a request that was just read. A SYNCFS is taken to its queue; everything else comes back.
    pub(crate) fn examine(&self, mut exchange: FuseExchange) -> Option<FuseExchange> {
        match Matter::of(exchange.head()) {
            Matter::Sync => {
                // Without the queue nobody is there who could wait: the server answers as it can.
                let syncs = self.syncs.lock().clone();
                return match syncs {
                    Some(syncs) => syncs.send(exchange).err().map(|refused| refused.0),
                    None => Some(exchange),
                };
            }
            Matter::Changes(effect) => exchange.set_effect(effect),
            // Its pages were written back when it was closed, or unmapped: a mapping holds a file open.
            Matter::Closes(node) => self.closed(node),
            Matter::Nothing => {}
        }
        Some(exchange)
    }

    /// An exchange has succeeded with this body.
    pub(crate) fn done(&self, effect: Effect, body: &[u8]) {
        let node = match effect {
            Effect::None => return,
            Effect::Opens(node) => node,
            Effect::Creates => match EntryOut::ref_from_prefix(body) {
                Ok((entry, _)) => NodeId(entry.nodeid),
                Err(_) => return,
            },
        };
        *self.open.lock().entry(node).or_default() += 1;
    }

    /// Some files that are open for writing.
    pub(crate) fn files(&self, count: usize) -> Vec<NodeId> {
        self.open.lock().keys().copied().take(count).collect()
    }

    fn closed(&self, node: NodeId) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                open.remove(&node);
            }
        }
    }

    /// Has the kernel write back whatever it holds, and waits for it. Not to be called by a thread that answers WRITEs.
    pub(crate) fn flush(&self, notifier: &Notifier) -> rustix::io::Result<()> {
        let nodes: Vec<_> = self.open.lock().keys().copied().collect();
        nodes.into_iter().try_for_each(|node| notifier.invalidate_inode(node))
    }

    /// A queue that reads requests has ended. With the last of them the queue of the syncs ends too.
    pub(crate) fn queue_ended(&self) {
        if self.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.syncs.lock() = None;
        }
    }
}

/// What a request is to the barrier.
enum Matter {
    Sync,
    Changes(Effect),
    Closes(NodeId),
    Nothing,
}

impl Matter {
    fn of(head: &[u8]) -> Matter {
        let Ok((header, arguments)) = InHeader::read_from_prefix(head) else { return Matter::Nothing };
        let node = NodeId(header.nodeid);
        let open = || OpenIn::read_from_prefix(arguments).is_ok_and(|(open, _)| writes(open.flags));
        let create = || CreateIn::read_from_prefix(arguments).is_ok_and(|(create, _)| writes(create.flags));
        let release =
            || ReleaseIn::read_from_prefix(arguments).is_ok_and(|(release, _)| writes(release.flags));
        match Opcode::from_raw(header.opcode) {
            Some(Opcode::Syncfs) => Matter::Sync,
            Some(Opcode::Open) if open() => Matter::Changes(Effect::Opens(node)),
            Some(Opcode::Create | Opcode::Tmpfile) if create() => Matter::Changes(Effect::Creates),
            Some(Opcode::Release) if release() => Matter::Closes(node),
            _ => Matter::Nothing,
        }
    }
}

fn writes(flags: u32) -> bool {
    flags & ACCESS_MODE != 0
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn head(opcode: Opcode, node: u64, arguments: &[u8]) -> Vec<u8> {
        let header = InHeader { opcode: opcode as u32, nodeid: node, ..Default::default() };
        [header.as_bytes(), arguments].concat()
    }

    #[test]
    fn a_file_is_flushed_from_its_opening_for_writing_to_its_last_release() {
        let write_back = WriteBack::new(std::sync::mpsc::sync_channel(1).0, 1);
        let nodes = || write_back.open.lock().keys().map(|node| node.0).collect::<Vec<_>>();
        let open = OpenIn { flags: 0o2, ..Default::default() };
        let Matter::Changes(effect) = Matter::of(&head(Opcode::Open, 7, open.as_bytes())) else { panic!() };
        write_back.done(effect, &[]);
        write_back.done(effect, &[]);
        let release = ReleaseIn { flags: 0o2, ..Default::default() };
        let Matter::Closes(node) = Matter::of(&head(Opcode::Release, 7, release.as_bytes())) else {
            panic!()
        };
        write_back.closed(node);
        assert_eq!(nodes(), [7]);
        write_back.closed(node);
        assert!(nodes().is_empty());
    }

    #[test]
    fn a_file_that_is_made_is_known_by_the_reply_and_one_that_is_read_not_at_all() {
        let write_back = WriteBack::new(std::sync::mpsc::sync_channel(1).0, 1);
        let create = CreateIn { flags: 0o1, ..Default::default() };
        let Matter::Changes(effect) = Matter::of(&head(Opcode::Create, 1, create.as_bytes())) else {
            panic!()
        };
        write_back.done(effect, EntryOut { nodeid: 9, ..Default::default() }.as_bytes());
        assert!(write_back.open.lock().contains_key(&NodeId(9)));
        let read_only = OpenIn::default();
        assert!(matches!(Matter::of(&head(Opcode::Open, 7, read_only.as_bytes())), Matter::Nothing));
    }
}
