//! The checks themselves; what they are in words stands in [`crate::catalog`].

mod aloud;
mod bounded;
mod disks;
mod durable;
mod leaving;
mod neighbour;
mod on_disk;
mod truthful;
mod unobstructed;

use anyhow::Result;

use crate::report::Seen;
use crate::ward::Ward;

pub(crate) use on_disk::{ON_DISK, need_that_disk};

/// How a check is carried out. An error means that it could not be told.
pub(crate) type Carry = fn(&mut Ward) -> Result<Seen>;

/// All checks of a server, in the order in which they are carried out: those that end the connection come last.
pub(crate) const SERVER: &[(&str, Carry)] = &[
    ("syncfs-known", durable::syncfs_known),
    ("backing", durable::backing),
    ("backing-said", aloud::backing_said),
    ("sync-clean", durable::sync_clean),
    (ON_DISK, on_disk::on_disk),
    ("sync-queues", durable::sync_queues),
    ("fsync-file", durable::fsync_file),
    ("fsync-directory", durable::fsync_directory),
    ("dsync-write", durable::dsync_write),
    ("unknown-node", truthful::unknown_node),
    ("endless-writers", bounded::endless_writers),
    ("stall", unobstructed::stall),
    ("crowd", unobstructed::crowd),
    ("shared-syncs", unobstructed::shared_syncs),
    ("neighbour", neighbour::neighbour),
    ("early-sync", aloud::early_sync),
    ("flush", aloud::flush),
    ("destroy", leaving::destroy),
    ("disconnect", leaving::disconnect),
    ("client-cache", durable::client_cache),
    ("sigterm", leaving::sigterm),
    ("server-dies", truthful::server_dies),
    ("other-disks", disks::other_disks),
    ("power-cut", disks::power_cut),
    ("lost-write", disks::lost_write),
];
