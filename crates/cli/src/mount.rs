//! `ashore mount`: a host directory mounted on this machine, with the same server as behind a VM.

mod options;
mod share;

use std::num::NonZeroUsize;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ashore_dev_fuse::{FuseQueue, Mount, MountError, MountOptions, SyncDelivery, Unmounted};
use ashore_passthrough::{CachePolicy, Options, Passthrough, SyncScope};
use ashore_server::{Limits, Session, Worker};
use clap::Args;

use crate::logging::{self, LogLevel};
use crate::{isolation, serve, signals};

pub(crate) use options::helper;

/// The line that says the mount is there begins so.
pub(crate) const READY: &str = "ashore: ready";

/// Mount a host directory, or the share of a running server.
#[derive(Args)]
pub(crate) struct MountArguments {
    /// The directory to mount, or the socket of a running server
    #[arg(value_name = "DIR|SOCKET")]
    source: PathBuf,

    /// Where to mount it
    #[arg(value_name = "MOUNTPOINT")]
    mount_point: PathBuf,

    /// What is mounted is the socket of a server, `ashore serve` or any other of virtio-fs over vhost-user. It is found out anyway
    /// if the socket is there. What is cached and shared is then the server's to say
    #[arg(long)]
    socket: bool,

    /// With a socket: carry each request of the kernel to the server as it is. Without it, Ashore's client is in between, with its
    /// own cache and write-back; with it, locks and ioctl(2) reach the server, and the kernel is the only cache
    #[arg(long)]
    relay: bool,

    /// How many threads answer requests [default: one for each processor, at least 2]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Other users may come in. It is so anyway where root mounts; others need user_allow_other in /etc/fuse.conf
    #[arg(long)]
    allow_other: bool,

    /// Nobody but the one who mounts may come in
    #[arg(long, conflicts_with = "allow_other")]
    owner_only: bool,

    /// How long the kernel may remember names, attributes and data: never, metadata, auto (1 s), always (1 day)
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = CachePolicy::Auto)]
    cache: CachePolicy,

    /// How long the kernel may remember that there is no such name, in seconds: compilers and scripting languages ask for many that
    /// are not there. Until then it does not see what others make under such a name
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    negative_timeout: u64,

    /// Let the kernel write back from its cache when it likes. A sync brings all of it here first
    #[arg(long, conflicts_with = "fsync_only")]
    writeback: bool,

    /// Refuse every change
    #[arg(long)]
    readonly: bool,

    /// Extended attributes
    #[arg(long)]
    xattr: bool,

    /// What a sync covers on each host file system that was changed: all of it, or what was changed through this mount
    #[arg(long, value_enum, value_name = "SCOPE", default_value_t = SyncScope::Filesystem)]
    sync_scope: SyncScope,

    /// Refuse to mount where sync(2) does not reach us, and to share what cannot be stable, rather than warn
    #[arg(long)]
    require_durable: bool,

    /// Do not ask the kernel to pass on sync(2): no loop device is needed, and only fsync(2) makes anything stable
    #[arg(long, conflicts_with = "require_durable")]
    fsync_only: bool,

    /// Take away a mount whose server has died, if one is in the way
    #[arg(long)]
    recover: bool,

    /// Have each read and write of a file brought here, rather than let the kernel read and write the host's file itself, which it
    /// does where it can: Linux 6.9, root, and none of --writeback and --sync-scope share
    #[arg(long)]
    no_passthrough: bool,

    /// Whether requests come through io_uring, which takes fewer system calls: auto, where the kernel offers it (Linux 6.14, and as
    /// root: echo Y > /sys/module/fuse/parameters/enable_uring); always, or not at all; never
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = options::IoUring::Auto)]
    io_uring: options::IoUring,

    /// Return when it is mounted, and go on in the background
    #[arg(long)]
    background: bool,

    /// How long those who still use the mount may go on after SIGTERM or SIGINT, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    busy_timeout: u64,

    /// How long the last sync may take after SIGTERM or SIGINT, in seconds, before the process ends without it
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    last_call_timeout: u64,

    /// Options as in /etc/fstab: ro, suid, dev, noexec, fsname=, subtype=, max_read=, and those above by their names
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,

    /// Which log lines to show; RUST_LOG overrides it
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    log_level: LogLevel,

    #[command(flatten)]
    more: options::More,
}

/// Mounts, serves until somebody unmounts or a signal comes, then syncs, and says by its exit code how that went.
pub(crate) fn mount(mut arguments: MountArguments) -> anyhow::Result<ExitCode> {
    arguments.take_options()?;
    if arguments.background {
        return options::in_background();
    }
    logging::start(arguments.log_level);
    options::leave_terminal();
    serve::prepare_process();
    isolation::limit_open_files(0);
    if arguments.socket || is_socket(&arguments.source) {
        return share::mount(&arguments);
    }
    arguments.check_places()?;
    let filesystem = Passthrough::new(arguments.passthrough_options())?;
    // What the kernel holds is asked for before each sync: nothing has to be waited for on suspicion.
    let limits = Limits { early_sync_grace: Duration::ZERO, ..Default::default() };
    let session = Session::new(filesystem, limits);
    let (mount, queues) = arguments.mount()?;
    session.filesystem().give_files_to(Arc::new(mount.backing_files()));
    let queue_session = Arc::clone(&session);
    let run = move |queue| Worker::new(Arc::clone(&queue_session)).run(queue);
    serve_until_unmounted(&arguments, &Arc::new(mount), queues, run)?;
    Ok(ended(session.end(), "all that was changed is stable"))
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_socket())
}

fn serve_until_unmounted(
    arguments: &MountArguments,
    mount: &Arc<Mount>,
    queues: Vec<FuseQueue>,
    run: impl Fn(FuseQueue) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let workers = start_workers(queues, run)?;
    unmount_on_signal(mount, arguments).context("signals cannot be received")?;
    println!("{READY}, {} is at {}", arguments.source.display(), mount.path().display());
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!("a thread that answers requests has panicked");
        }
    }
    Ok(())
}

fn ended(synced: Result<(), ashore_wire::Errno>, means: &str) -> ExitCode {
    match synced {
        Ok(()) => {
            tracing::info!("unmounted; {means}");
            ExitCode::SUCCESS
        }
        Err(errno) => {
            tracing::error!("the last sync failed: {errno}; what was changed may not be stable");
            ExitCode::FAILURE
        }
    }
}

impl MountArguments {
    /// A mount below its own source would serve itself: a sync would wait for its own end.
    fn check_places(&self) -> anyhow::Result<()> {
        let absolute = |path: &Path| path.canonicalize().ok();
        if let (Some(source), Some(point)) = (absolute(&self.source), absolute(&self.mount_point)) {
            ensure!(
                !point.starts_with(&source),
                "{} is inside of {}: a mount cannot serve itself; choose another mount point",
                point.display(),
                source.display()
            );
        }
        Ok(())
    }

    fn passthrough_options(&self) -> Options {
        Options {
            cache: self.cache,
            negative_timeout: Duration::from_secs(self.negative_timeout),
            writeback: self.writeback,
            readonly: self.readonly,
            xattr: self.xattr,
            sync_scope: self.sync_scope,
            require_durable: self.require_durable,
            kernel_io: !self.no_passthrough,
            ..Options::new(&self.source)
        }
    }

    /// Mounts so that syncs reach us, where the kernel can; says so where it cannot.
    fn mount(&self) -> anyhow::Result<(Mount, Vec<FuseQueue>)> {
        let (options, threads) = (self.mount_options(), self.threads());
        let reason = match SyncDelivery::of_this_machine() {
            _ if self.fsync_only => "--fsync-only".to_owned(),
            SyncDelivery::Impossible(reason) => reason,
            SyncDelivery::Possible => {
                let options = options.clone().deliver_syncs(true).write_back_barrier(true);
                match options.mount(&self.mount_point, threads) {
                    Err(error @ MountError::LoopDevice(_)) => error.to_string(),
                    mounted => return Ok(mounted?),
                }
            }
        };
        if self.require_durable {
            bail!(
                "only fsync(2) would make changes stable here, sync(2) would not: {reason}; drop --require-durable"
            );
        }
        if self.writeback {
            bail!(
                "--writeback needs sync(2) to reach us, and it does not: {reason}; mount without --writeback"
            );
        }
        tracing::warn!(
            "only fsync(2) makes changes stable here, and unmounting; sync(2) does not reach us: {reason}"
        );
        Ok(options.mount(&self.mount_point, threads)?)
    }

    fn mount_options(&self) -> MountOptions {
        let root = rustix::process::geteuid().is_root();
        let options = MountOptions::new()
            .source(self.source.display().to_string())
            .allow_other((root || self.allow_other) && !self.owner_only)
            .read_only(self.readonly)
            .recover(self.recover)
            .transport(self.io_uring.into());
        self.more.apply(options)
    }

    fn threads(&self) -> usize {
        let processors = || thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2);
        self.threads.map_or_else(processors, NonZeroUsize::get)
    }
}

fn start_workers(
    queues: Vec<FuseQueue>,
    run: impl Fn(FuseQueue) + Clone + Send + 'static,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let start = |queue: FuseQueue| {
        let (name, run) = (format!("ashore-{}", queue.index()), run.clone());
        thread::Builder::new().name(name).spawn(move || run(queue)).context("a thread cannot be started")
    };
    queues.into_iter().map(start).collect()
}

/// A mount that is in use is out of sight at once, and its users have a while to end.
fn unmount_on_signal(mount: &Arc<Mount>, arguments: &MountArguments) -> std::io::Result<()> {
    let (mount, busy) = (Arc::clone(mount), Duration::from_secs(arguments.busy_timeout));
    let patience = busy + Duration::from_secs(arguments.last_call_timeout);
    signals::on_end(patience, move || {
        let mount = Arc::clone(&mount);
        // Not on this thread, which listens for a second signal.
        thread::spawn(move || match mount.unmount() {
            Ok(Unmounted::Completely) => {}
            Ok(Unmounted::InUse) => {
                tracing::warn!("{} is in use; who uses it may go on for {busy:?}", mount.path().display());
                thread::sleep(busy);
                if let Err(error) = mount.write_back() {
                    tracing::error!("the kernel's cache could not be written back: {error}");
                }
                tracing::warn!("the mount is still in use, and is ended; its users get errors");
                if let Err(error) = mount.abort() {
                    tracing::error!(
                        "the mount cannot be ended: {error}; end its users, or send the signal again"
                    );
                }
            }
            Err(error) => {
                let path = mount.path().display();
                tracing::error!("{path} cannot be unmounted: {error}; try: umount -l {path}");
            }
        });
    })
}
