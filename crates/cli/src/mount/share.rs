//! Mounting what another process serves, through its socket.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use ashore_client::{CacheMode, Client, Options};
use ashore_dev_fuse::{Mount, Relay, Unmounted};
use ashore_remote::Remote;
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::link::Link;

use super::{MountArguments, ended, serve_until_unmounted};

/// What it means by that is for `ashore doctor` to say.
const SERVER_SAYS: &str = "the server says that all is stable";
/// Bytes in one READ or WRITE, at most.
const MAX_WRITE: u32 = 1 << 20;

/// Serves until somebody unmounts, a signal comes, or the server goes.
pub(super) fn mount(arguments: &MountArguments) -> anyhow::Result<ExitCode> {
    if arguments.relay { relayed(arguments) } else { cached(arguments) }
}

/// Ashore's client stands between the kernel and the server, with its cache and its sync.
fn cached(arguments: &MountArguments) -> anyhow::Result<ExitCode> {
    if arguments.writeback {
        bail!(
            "--writeback is the kernel's cache, which Ashore's client makes needless; it goes with --relay"
        );
    }
    let link = Arc::new(VhostUserLink::connect(&arguments.source, link_options(arguments))?);
    let options = Options {
        cache: CacheMode::WriteBack,
        read_only: arguments.readonly,
        // A server may take as long as it likes, as behind a kernel.
        request_timeout: None,
        ..Options::default()
    };
    let client = Client::with_link(Arc::clone(&link) as Arc<dyn Link>, options)
        .context("the server does not accept us as a client")?;
    let limits = Limits { early_sync_grace: Duration::ZERO, ..Default::default() };
    let session = Session::new(Remote::new(client), limits);
    let (mount, queues) = arguments.mount()?;
    let mount = Arc::new(mount);
    let unmounted = Arc::new(AtomicBool::new(false));
    let (watched, leaving) = (Arc::clone(&mount), Arc::clone(&unmounted));
    thread::spawn(move || {
        link.wait_until_ended();
        if !leaving.load(Ordering::Acquire) {
            unmount_without_server(&watched);
        }
    });
    let queue_session = Arc::clone(&session);
    let run = move |queue| Worker::new(Arc::clone(&queue_session)).run(queue);
    serve_until_unmounted(arguments, &mount, queues, run)?;
    unmounted.store(true, Ordering::Release);
    Ok(ended(session.end(), SERVER_SAYS))
}

/// Each request of the kernel goes to the server as it is.
fn relayed(arguments: &MountArguments) -> anyhow::Result<ExitCode> {
    if arguments.writeback && arguments.fsync_only {
        bail!("--writeback needs sync(2) to reach us, and with --fsync-only it does not");
    }
    let link: Arc<dyn Link> = Arc::new(VhostUserLink::connect(&arguments.source, link_options(arguments))?);
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
    Ok(ended(synced, SERVER_SAYS))
}

fn link_options(arguments: &MountArguments) -> LinkOptions {
    let request_queues = u16::try_from(arguments.threads()).unwrap_or(u16::MAX);
    LinkOptions { poll_us: 0, request_queues, ..LinkOptions::default() }
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
