//! Mounting what another process serves, through its socket.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::bail;
use ashore_dev_fuse::{Mount, Relay, Unmounted};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::link::Link;

use super::{MountArguments, ended, serve_until_unmounted};

/// Bytes in one READ or WRITE, at most.
const MAX_WRITE: u32 = 1 << 20;

/// Serves until somebody unmounts, a signal comes, or the server goes.
pub(super) fn mount(arguments: &MountArguments) -> anyhow::Result<ExitCode> {
    if arguments.writeback && arguments.fsync_only {
        bail!("--writeback needs sync(2) to reach us, and with --fsync-only it does not");
    }
    let request_queues = u16::try_from(arguments.threads()).unwrap_or(u16::MAX);
    let options = LinkOptions { poll_us: 0, request_queues, ..LinkOptions::default() };
    let link: Arc<dyn Link> = Arc::new(VhostUserLink::connect(&arguments.source, options)?);
    let mounted: Arc<OnceLock<Arc<Mount>>> = Arc::default();
    let gone = Arc::clone(&mounted);
    let relay = Relay::new(Arc::clone(&link), MAX_WRITE, arguments.writeback, move || {
        let gone = Arc::clone(&gone);
        // Unmounting waits for answers that the link's own thread brings.
        thread::spawn(move || gone.get().map(|mount| unmount_without_server(mount)));
    });
    let (mount, queues) = arguments.mount()?;
    let mount = Arc::new(mount);
    let _ = mounted.set(Arc::clone(&mount));
    let carrier = Arc::clone(&relay);
    serve_until_unmounted(arguments, &mount, queues, move |queue| carrier.run(queue))?;
    let synced = relay.end();
    link.close();
    // What it means by that is for `ashore doctor` to say.
    Ok(ended(synced, "the server says that all is stable"))
}

/// Nobody answers any more; those who still use the mount get errors.
fn unmount_without_server(mount: &Mount) {
    tracing::error!("the server has gone; {} is unmounted", mount.path().display());
    let ended = match mount.unmount() {
        Ok(Unmounted::Completely) => Ok(()),
        Ok(Unmounted::InUse) => mount.abort(),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::error!("{} cannot be unmounted: {error}", mount.path().display());
    }
}
