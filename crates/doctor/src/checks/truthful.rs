//! P2: what could not be made stable is said.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ashore_vhost_user::driver::{Call, RawError};
use ashore_wire::{FileHandle, NodeId};
use rustix::process::Signal;

use crate::report::Seen;
use crate::ward::Ward;

/// Numbers that no server gives out: not small, not an address, not a hash of nothing.
const NOWHERE: u64 = 0x00d0_c701_dead_0001;

pub(crate) fn unknown_node(ward: &mut Ward) -> Result<Seen> {
    let knows_syncfs = !ward.syncfs_is_unknown;
    let line = ward.line()?;
    let file = line.new_file("unknown")?;
    let asked = [
        ("SYNCFS of an unknown node", knows_syncfs.then(|| Call::syncfs(NodeId(NOWHERE)))),
        ("FSYNC of an unknown handle", Some(Call::fsync(file.node, FileHandle(NOWHERE)))),
    ];
    let mut errors = Vec::new();
    for (what, call) in asked {
        let Some(call) = call else { continue };
        match line.raw.call(call) {
            Ok(_) => return Ok(Seen::broken(format!("{what} succeeded"))),
            Err(RawError::Errno(errno)) => errors.push(format!("{what}: {errno}")),
            Err(error) => bail!("{what}: {error}"),
        }
    }
    Ok(Seen::kept(errors.join("; ")))
}

pub(crate) fn server_dies(ward: &mut Ward) -> Result<Seen> {
    /// Long enough that sync() has sent what it has to send.
    const UNDER_WAY: Duration = Duration::from_millis(100);
    ward.recipe()?;
    let (client, server, _) = ward.client()?;
    let server = server.context("it was started by us")?;
    let file = client.create("dies")?;
    server.signal(Signal::STOP);
    let synced = std::thread::scope(|scope| {
        // The server is stopped, so nothing of this can be anywhere but in our cache. Without write-back, the write waits.
        let syncing = scope.spawn(|| file.write_all_at(&[7; 64 << 10], 0).and_then(|()| client.sync()));
        std::thread::sleep(UNDER_WAY);
        server.signal(Signal::KILL);
        syncing.join()
    });
    Ok(match synced {
        Ok(Err(error)) => Seen::kept(format!("writing, or the sync after it, failed: {error}")),
        Ok(Ok(())) => Seen::broken("sync() returned success"),
        Err(_) => bail!("sync() panicked"),
    })
}
