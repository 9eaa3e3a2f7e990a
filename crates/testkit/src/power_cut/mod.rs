//! Power cuts: what a sync promised, looked for on the disk after the power has gone, at hundreds of moments.
//!
//! ```text
//!   threads that follow a seed            mark: "these steps are stable"
//!        │ steps                 ┌──────────────────────────────────────┐
//!        ▼                       │ when a sync has returned             ▼
//!   our client, or a guest ─► our server ─► ext4, xfs, btrfs ─► loop ─► FUSE file ─► Disk
//!                                                                                     │ log
//!   oracle ◄── what is found ◄── mount ◄── an image with some of the log ◄── replay ◄─┘
//! ```
//!
//! - [`Disk`] remembers each write, flush and mark in the order in which it finished them, and holds some for a while so
//!   that they overtake each other.
//! - [`Recording::cut`] makes the disk as it may be after a power cut at some place in that log: what a flush covers is
//!   there; everything else is lost, there, or torn at a sector, each on its own. It mounts that, which replays the file
//!   system's journal, and compares what it finds with what the seed says.
//! - [`Way`] is how the work gets to the file system, [`Rung`] one recording with its power cuts.
//!
//! A mark needs no message to travel: it is put into the log by the thread whose sync has just returned or, in a guest,
//! written past all caches to the tail of the same disk. So what became stable only after the sync had returned cannot be
//! taken for its work.
//!
//! Needs root, `/dev/fuse` and loop devices. Images are sparse and in memory; mounts are in a name space of their own and
//! go with it, even if the process is killed.

mod disk;
mod disk_mount;
mod history;
mod knowledge;
mod mounts;
mod one_file;
mod oracle;
mod replay;
mod rung;
mod save;
mod stage;
mod target;
mod way;

pub use disk::{Behaviour, Disk, Entry};
pub use mounts::{Image, Kind};
pub use replay::{Broken, Cut, Recording, Report};
pub use rung::{Rung, replay_one};
pub use stage::{Scenario, Stage};
pub use target::{ClientTarget, OtherSync};
pub use way::{Way, connect};

/// Bytes behind the file system on a recorded disk: what is written there is a mark.
pub const MARKER_AREA: u64 = 1 << 20;
