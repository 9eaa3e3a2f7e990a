//! Work for a file system whose every step follows from a seed: what was done before a power cut need not be written
//! down, it can be made again.
//!
//! Some threads, each in a directory of its own, write, append, truncate, allocate, make, rename, link and unlink, and
//! sync in between. Nobody but the thread touches its directory, so what it finds there follows from its own steps alone.
//!
//! ```text
//!   Plan ─► Script (one per thread) ─► Operation ─► Target       a directory, or a client of ours
//!                                         │
//!                                      Tree                      what it leads to; made again by whoever checks
//!
//!   floors read ─► sync called ─► sync returned ─► Mark           "these many steps of each thread are stable"
//! ```
//!
//! It lives here because a guest runs it too. What a power cut may leave is judged in the test kit.

mod content;
mod mark;
mod operation;
mod run;
mod script;
mod target;
mod tree;

pub use content::{SECTOR, holds_data, render};
pub use mark::{MARK_SIZE, MAX_THREADS, Mark, MarkerDisk, Scope};
pub use operation::{Allocation, DirectoryId, FileId, Operation, Place};
pub use run::{Outcome, Progress, run};
pub use script::Script;
pub use target::{HostDirectory, SyncCall, Target};
pub use tree::{Node, Tree};

/// What the threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything follows from this.
    pub seed: u64,
    /// How many threads, at most [`MAX_THREADS`].
    pub threads: u32,
    /// Clients that the threads belong to, in equal parts: each is promised what its own threads did.
    pub clients: u32,
    /// Steps of each thread, syncs included.
    pub operations: u32,
    /// A deliberate bug: the floors of a sync are read when it has returned, and so promise too much.
    pub floors_read_late: bool,
}

impl Plan {
    /// Whether these threads belong to one client.
    pub fn share_a_client(&self, one: u32, other: u32) -> bool {
        let threads = self.threads.div_ceil(self.clients);
        one / threads == other / threads
    }

    /// The directory of a thread, below the one all work in.
    pub fn directory(thread: u32) -> String {
        format!("t{thread}")
    }
}

/// Numbers that look random and follow from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same way for one seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of several; `None` if there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize) }
    }
}

/// The finalizer of splitmix64: each bit of the result depends on each bit of the value.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
