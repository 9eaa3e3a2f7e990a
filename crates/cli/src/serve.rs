//! `ashore serve`: one host directory, one virtual machine at a time.

use std::fs::File;
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ashore_isolation::{Inside, Side};
use ashore_passthrough::{
    CachePolicy, Durability, IdMap, IdRule, InodeFileHandles, LockScope, Negotiation, Options, Passthrough,
    SyncScope, XattrMap,
};
use ashore_server::{Limits, Metrics, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Ended, Listener, Tag};
use clap::{ArgAction, Args, ValueEnum};

use crate::isolation::{self, IsolationArguments};
use crate::logging::{self, LogLevel};
use crate::metrics;
use crate::migration::MigrationArguments;
use crate::processors::Processors;
use crate::service::Manager;
use crate::signals;
use crate::state_file::StateFile;
use crate::virtiofsd::{self, VirtiofsdArguments};

/// How long a VMM that resets its machine is kept waiting for the last sync of the one before.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

/// Options have the incumbent's names where it has them, so that what starts virtiofsd can start this.
#[derive(Args)]
pub(crate) struct ServeArguments {
    /// The directory to share
    #[arg(long, value_name = "DIR", required_unless_present_any = ["older", "print_capabilities", "print_id_map"])]
    pub(crate) shared_dir: Option<PathBuf>,

    /// Where to listen for the VMM; replaced if nobody listens there any more
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities", "print_id_map"], alias = "socket")]
    socket_path: Option<PathBuf>,

    /// A listening socket that was inherited, by its descriptor
    #[arg(long, value_name = "FD", conflicts_with = "socket_path")]
    fd: Option<RawFd>,

    /// The name that the guest mounts by, for VMMs that ask for it (QEMU has an option of its own)
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,

    /// How many request queues to offer, 1 to 64; each has a thread. A guest uses as many as it has CPUs
    #[arg(long, value_name = "N", default_value = "1")]
    num_request_queues: NonZeroU16,

    /// How long a queue's thread looks for requests before it sleeps, in microseconds. Where looking was in vain lately it looks
    /// less, down to nothing; an idle server sleeps. 0: sleep at once
    #[arg(long, value_name = "US", default_value_t = 25)]
    poll_us: u32,

    /// Keep each request queue's thread on one processor: the first queue's on the first of the list, such as 0,2-3, and so on, from
    /// its beginning again if there are more queues. All other threads, hiprio's too, go wherever this process may
    #[arg(long, value_name = "PROCESSORS")]
    queue_affinity: Option<Processors>,

    /// Listen again when the VMM has disconnected, rather than end
    #[arg(long)]
    keep_listening: bool,

    /// How long the guest may remember names, attributes and data: never, metadata, auto (1 s), always (1 day)
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = CachePolicy::Auto)]
    pub(crate) cache: CachePolicy,

    /// How long the guest may remember that there is no such name, in seconds: compilers and scripting languages ask for many that
    /// are not there. Until then it does not see what others make under such a name
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    negative_timeout: u64,

    /// Let the guest write back from its cache when it likes. Newer Linux guests then return from sync(2) before
    /// their data was sent
    #[arg(long)]
    pub(crate) writeback: bool,

    /// Refuse every change
    #[arg(long)]
    readonly: bool,

    /// Extended attributes
    #[arg(long)]
    pub(crate) xattr: bool,

    /// Keep the guest's extended attributes under other names, by rules such as ":map::user.virtiofs.:"; implies --xattr
    #[arg(long, value_name = "RULES")]
    pub(crate) xattrmap: Option<XattrMap>,

    /// Access control lists, checked by the guest and kept by the host: always, auto (if both can), or never. Implies
    /// --xattr. Without a value: always
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t = Negotiation::Never,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always"
    )]
    pub(crate) posix_acl: Negotiation,

    /// Give new files the security labels the guest wants (SELinux); as --posix-acl
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t = Negotiation::Never,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always"
    )]
    pub(crate) security_label: Negotiation,

    /// Make users of the guest others on the host: map:GUEST:HOST:COUNT; or guest, host, squash-guest, squash-host with
    /// the same fields, source first; or forbid-guest:GUEST:COUNT. May be given several times
    #[arg(long, value_name = "RULE")]
    translate_uid: Vec<IdRule>,

    /// Likewise for groups
    #[arg(long, value_name = "RULE")]
    translate_gid: Vec<IdRule>,

    /// All that the guest makes belongs to the user and group the server runs as, and what is theirs is root's in the
    /// guest, or that of UID and GID: me, me:UID or me:UID:GID
    #[arg(long, value_name = "me", conflicts_with_all = ["translate_uid", "translate_gid"])]
    map: Option<MapMe>,

    /// Show who the guest's users and groups are on the host, and end
    #[arg(long)]
    print_id_map: bool,

    /// How inodes are held: by file handle where that works (prefer), always, or by a descriptor each (never)
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = InodeFileHandles::Prefer)]
    inode_file_handles: InodeFileHandles,

    /// Tell the guest where other host file systems begin (the default)
    #[arg(long, overrides_with = "no_announce_submounts")]
    announce_submounts: bool,

    /// Do not tell the guest where other host file systems begin. A sync covers them all the same
    #[arg(long)]
    pub(crate) no_announce_submounts: bool,

    /// Honour O_DIRECT of the guest on the host
    #[arg(long)]
    pub(crate) allow_direct_io: bool,

    /// Allow shared mappings with --cache=never and metadata
    #[arg(long)]
    allow_mmap: bool,

    /// Send names without attributes
    #[arg(long)]
    pub(crate) no_readdirplus: bool,

    /// Clear set-user-id and set-group-id bits in the server
    #[arg(long, overrides_with = "no_killpriv_v2")]
    pub(crate) killpriv_v2: bool,

    /// Leave set-user-id and set-group-id bits to the guest (the default)
    #[arg(long)]
    pub(crate) no_killpriv_v2: bool,

    /// Honour O_NOATIME of the guest on the host
    #[arg(long)]
    preserve_noatime: bool,

    /// Who sees locks that the guest takes by fcntl(2): itself alone (guest), or all guests and the host's processes
    /// (host); or nobody may take any (refuse). Without a value: host
    #[arg(
        long,
        value_enum,
        value_name = "SCOPE",
        default_value_t = LockScope::Guest,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "host"
    )]
    pub(crate) posix_lock: LockScope,

    /// Who sees locks that the guest takes by flock(2); as --posix-lock
    #[arg(
        long,
        value_enum,
        value_name = "SCOPE",
        default_value_t = LockScope::Guest,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "host"
    )]
    pub(crate) flock: LockScope,

    /// When changes become stable: at a sync (on-sync), before each answer (strict), or as virtiofsd does (relaxed)
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Durability::OnSync)]
    durability: Durability,

    /// What a sync covers on a host file system: all of it (filesystem), or what was changed through this share
    /// (share): neighbours on the same file system are then not waited for
    #[arg(long, value_enum, value_name = "SCOPE", default_value_t = SyncScope::Filesystem)]
    sync_scope: SyncScope,

    /// Refuse what cannot be stable, rather than warn: a host file system such as tmpfs, a write-back cache, and a SYNCFS
    /// that its guest sent before its data (answered with EIO)
    #[arg(long)]
    require_durable: bool,

    /// What FLUSH of a written file does: nothing (none), or fsync, for guests that know no fsync (Windows)
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Flush::None)]
    flush: Flush,

    /// How long a host file system may take to sync, in seconds, before the guest is told EIO; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    sync_timeout: u64,

    /// How long the last sync may take after SIGTERM or SIGINT, in seconds, before the process ends without it
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    last_call_timeout: u64,

    /// How long writes from the guest's cache must have been quiet before a sync is carried out, in milliseconds, for
    /// guests that send SYNCFS before their data (Linux 6.18.21, 6.19.11, 7.0 and later); 0: not at all
    #[arg(long, value_name = "MS", default_value_t = 20)]
    early_sync_grace: u64,

    /// Go on where an earlier server was that was killed, or ended by a signal, by what it wrote to this file; a client that
    /// reconnects finds its ids and open files valid, and nothing is lost or done twice
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,

    /// Where to tell numbers of what is going on, for Prometheus and `ashore top`: a socket to listen on, or a file that
    /// is replaced every 5 s
    #[arg(long, value_name = "unix:PATH|FILE")]
    metrics: Option<metrics::Target>,

    /// Log each request that takes so long or longer, in milliseconds
    #[arg(long, value_name = "MS")]
    slow_ms: Option<u64>,

    /// Taken for virtiofsd's sake, and not needed: each queue has a thread, see --num-request-queues
    #[arg(long, value_name = "N", hide = true)]
    thread_pool_size: Option<usize>,

    /// Which log lines to show; RUST_LOG overrides it
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info, action = ArgAction::Set)]
    pub(crate) log_level: LogLevel,

    #[command(flatten)]
    migration: MigrationArguments,

    #[command(flatten)]
    pub(crate) isolation: IsolationArguments,

    #[command(flatten)]
    pub(crate) virtiofsd: VirtiofsdArguments,
}

/// Whose the server's own files are in the guest.
#[derive(Clone, Copy, Debug)]
struct MapMe {
    uid: u32,
    gid: u32,
}

impl FromStr for MapMe {
    type Err = String;

    fn from_str(text: &str) -> Result<MapMe, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("\"{text}\" is not an id"));
        match text.split(':').collect::<Vec<_>>()[..] {
            ["me"] => Ok(MapMe { uid: 0, gid: 0 }),
            ["me", uid] => Ok(MapMe { uid: number(uid)?, gid: number(uid)? }),
            ["me", uid, gid] => Ok(MapMe { uid: number(uid)?, gid: number(gid)? }),
            _ => Err("use me, me:UID or me:UID:GID".into()),
        }
    }
}

/// What FLUSH of a written file does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Flush {
    /// Nothing: an application that wants its data stable says fsync.
    None,
    /// The file is stable when close(2), or FlushFileBuffers of Windows, returns.
    Fsync,
}

/// What a server opens while it sees its host, and whoever stays outside takes away in the end.
struct Entrance {
    listener: Listener,
    metrics: Option<metrics::Entrance>,
    manager: Manager,
    state: Option<StateFile>,
    /// Keeps others from the socket's path.
    _claim: Option<File>,
}

/// Serves until the VMM has gone or a signal comes; then syncs, and says by its exit code how that went.
pub(crate) fn serve(mut arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    if arguments.virtiofsd.print_capabilities {
        println!("{}", virtiofsd::CAPABILITIES);
        return Ok(ExitCode::SUCCESS);
    }
    virtiofsd::apply_older_spelling(&mut arguments)?;
    logging::start_for_server(arguments.log_level, arguments.virtiofsd.syslog);
    arguments.hint();
    arguments.make_paths_absolute();
    prepare_process();
    isolation::limit_open_files(arguments.isolation.rlimit_nofile);
    let id_maps = arguments.id_maps()?;
    if arguments.print_id_map {
        print!("users\n{}groups\n{}", id_maps[0], id_maps[1]);
        return Ok(ExitCode::SUCCESS);
    }
    let shared_dir = arguments.shared_dir()?;
    arguments.check_state_file()?;
    arguments.queue_affinity.as_ref().map(Processors::check).transpose()?;
    let entrance = arguments.open_entrance()?;
    match arguments.isolation.isolation().enter(shared_dir)? {
        Side::Outside(keeper) => isolation::wait_for_server(keeper),
        Side::Inside(inside) => serve_inside(&arguments, id_maps, entrance, inside),
    }
}

fn serve_inside(
    arguments: &ServeArguments,
    id_maps: [IdMap; 2],
    entrance: Entrance,
    mut inside: Inside,
) -> anyhow::Result<ExitCode> {
    let shared_dir = arguments.shared_dir()?;
    let Entrance { mut listener, metrics: mut told, manager, state, _claim } = entrance;
    if inside.has_keeper() {
        listener.leave_file();
        told.iter_mut().for_each(metrics::Entrance::leave_file);
    }
    let telling = told.map(|told| told.open(|directory| inside.keep_directory(directory))).transpose()?;
    let filesystem = Passthrough::new(arguments.passthrough_options(shared_dir, id_maps))?;
    let confined = inside.close(filesystem.holds_by_handle())?;
    filesystem.enter_descriptors().context("/proc/self/fd cannot be entered")?;
    let limits = Limits {
        early_sync_grace: Duration::from_millis(arguments.early_sync_grace),
        refuse_early_syncs: arguments.require_durable,
        ..Default::default()
    };
    let session = Session::new(filesystem, limits);
    let journal = state.map(|state| state.restore(&session)).transpose()?;
    let observed = arguments.metrics();
    let (queue_session, queue_metrics) = (Arc::clone(&session), observed.clone());
    let queue_journal = journal.clone();
    let affinity = arguments.queue_affinity.clone();
    let device = Device::new(arguments.device_options()?, move |number, queue| {
        // None for hiprio, which is number 0.
        if let (Some(processors), Some(number)) = (&affinity, NonZeroU16::new(number.0)) {
            processors.tie(number);
        }
        let worker = Worker::new(Arc::clone(&queue_session));
        let number = number.0.into();
        match (&queue_metrics, &queue_journal) {
            (Some(metrics), Some(journal)) => {
                worker.run(journal.record(&queue_session, metrics.observe(number, queue)));
            }
            (Some(metrics), None) => worker.run(metrics.observe(number, queue)),
            (None, Some(journal)) => worker.run(journal.record(&queue_session, queue)),
            (None, None) => worker.run(queue),
        }
    })?;
    let reset_session = Arc::clone(&session);
    let device = device.on_reset(move || reset_session.reset(RESET_PATIENCE));
    // A client that came from another server would have to be told to the state file first.
    let device = match &journal {
        None => device.with_state(arguments.migration.state_of(&session)),
        Some(_) => device,
    };
    let _telling = match (telling, observed) {
        (Some(telling), Some(metrics)) => {
            Some(telling.start(metrics::Sources { metrics, session: Arc::clone(&session) })?)
        }
        _ => None,
    };
    let stop = device.stop_handle();
    let told_to_stop = manager.clone();
    signals::on_end(Duration::from_secs(arguments.last_call_timeout), move || {
        stop.stop();
        told_to_stop.stopping();
    })
    .context("signals cannot be received")?;
    let alive_session = Arc::clone(&session);
    manager
        .watch(move || _ = alive_session.filesystem().open_handles())
        .context("no signs of life can be given")?;
    confined.finish()?;
    println!("{}", arguments.ready_line(shared_dir));
    manager.ready(&format!("sharing {}", shared_dir.display()));

    loop {
        let ended = device.serve(&listener);
        // Of a server that is told to end the next one can go on with its client; a client that has gone is gone.
        if let (Some(journal), Ok(Ended::Disconnected)) = (&journal, &ended) {
            journal.end().context("the state file cannot be written")?;
        }
        let synced = session.end();
        for (index, counters) in device.counters().iter().enumerate() {
            tracing::debug!("queue {index}: {counters}");
        }
        match &synced {
            Ok(()) => tracing::info!("all that was changed is stable"),
            Err(errno) => {
                tracing::error!("the last sync failed: {errno}; what was changed may not be stable")
            }
        }
        match ended {
            Ok(Ended::Disconnected) if arguments.keep_listening => tracing::info!("waiting for the next VMM"),
            Err(error) if arguments.keep_listening => tracing::error!("{error}; waiting for the next VMM"),
            Ok(_) => return Ok(if synced.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            Err(error) => return Err(error.into()),
        }
    }
}

impl ServeArguments {
    /// What was asked for and is not needed, or weakens a promise: said once, at start.
    fn hint(&self) {
        if self.thread_pool_size.is_some_and(|size| size > 0) {
            tracing::info!(
                "--thread-pool-size is not needed: each request queue has a thread; see --num-request-queues"
            );
        }
        if self.require_durable && self.early_sync_grace == 0 {
            tracing::warn!(
                "--require-durable with --early-sync-grace 0: a guest that sends SYNCFS before its data goes unnoticed"
            );
        }
        if self.writeback && !self.require_durable {
            tracing::warn!(
                "--writeback: guests with Linux 6.18.21, 6.19.11, 7.0 or later return from sync(2) before all they \
                 wrote was sent; fsync(2) is right everywhere"
            );
        }
    }

    /// In its sandbox the process is elsewhere, and may not ask where.
    fn make_paths_absolute(&mut self) {
        for path in [&mut self.shared_dir, &mut self.socket_path] {
            *path = path.take().map(|path| std::path::absolute(&path).unwrap_or(path));
        }
    }

    /// What cannot be gone on with is refused before anybody relies on it.
    fn check_state_file(&self) -> anyhow::Result<()> {
        if self.state_file.is_none() {
            return Ok(());
        }
        anyhow::ensure!(
            self.inode_file_handles != InodeFileHandles::Never,
            "--state-file needs file handles: leave out --inode-file-handles=never"
        );
        anyhow::ensure!(
            self.posix_lock != LockScope::Host && self.flock != LockScope::Host,
            "--state-file cannot bring back locks that the host has dropped with the process: leave out --posix-lock and --flock"
        );
        Ok(())
    }

    /// Users and groups.
    fn id_maps(&self) -> anyhow::Result<[IdMap; 2]> {
        if let Some(MapMe { uid, gid }) = self.map {
            let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ok([IdMap::all_to_one(own.0, uid)?, IdMap::all_to_one(own.1, gid)?]);
        }
        Ok([
            IdMap::new(self.translate_uid.iter().copied()).context("--translate-uid")?,
            IdMap::new(self.translate_gid.iter().copied()).context("--translate-gid")?,
        ])
    }

    fn shared_dir(&self) -> anyhow::Result<&Path> {
        self.shared_dir.as_deref().context("nothing is shared: name a directory with --shared-dir")
    }

    fn passthrough_options(&self, shared_dir: &Path, [uids, gids]: [IdMap; 2]) -> Options {
        Options {
            cache: self.cache,
            negative_timeout: Duration::from_secs(self.negative_timeout),
            writeback: self.writeback,
            readonly: self.readonly,
            xattr: self.xattr,
            xattr_map: self.xattrmap.clone(),
            posix_acl: self.posix_acl,
            security_label: self.security_label,
            uids,
            gids,
            inode_file_handles: self.inode_file_handles,
            announce_submounts: !self.no_announce_submounts,
            allow_direct_io: self.allow_direct_io,
            allow_mmap: self.allow_mmap,
            // Its answers are too long to be written down, and read twice they would count twice.
            readdirplus: !self.no_readdirplus && self.state_file.is_none(),
            killpriv_v2: self.killpriv_v2 && !self.no_killpriv_v2,
            preserve_noatime: self.preserve_noatime,
            posix_lock: self.posix_lock,
            flock: self.flock,
            durability: self.durability,
            sync_scope: self.sync_scope,
            flush_fsync: self.flush == Flush::Fsync,
            require_durable: self.require_durable,
            sync_timeout: (self.sync_timeout > 0).then(|| Duration::from_secs(self.sync_timeout)),
            ..Options::new(shared_dir)
        }
    }

    /// Counts only if somebody wants to see them.
    fn metrics(&self) -> Option<Arc<Metrics>> {
        let slow = self.slow_ms.map(Duration::from_millis);
        // One more for hiprio.
        let queues = usize::from(self.num_request_queues.get()) + 1;
        (self.metrics.is_some() || slow.is_some()).then(|| Arc::new(Metrics::new(queues, slow)))
    }

    fn device_options(&self) -> anyhow::Result<DeviceOptions> {
        let tag = self.tag.as_deref().map(Tag::new).transpose()?;
        let request_queues = self.num_request_queues.get();
        let keep_inflight = self.state_file.is_some();
        Ok(DeviceOptions { request_queues, tag, poll_us: self.poll_us, keep_inflight, ..Default::default() })
    }

    fn open_entrance(&self) -> anyhow::Result<Entrance> {
        let metrics = || self.metrics.as_ref().map(metrics::Entrance::new).transpose();
        let manager = Manager::of_environment();
        let state = self.state_file.as_deref().map(StateFile::open).transpose()?;
        match (&self.socket_path, self.fd) {
            (Some(path), _) => {
                let listener = Listener::bind(path)?;
                let claim = virtiofsd::claim(path)?;
                self.virtiofsd.open_to_group(path)?;
                Ok(Entrance { listener, metrics: metrics()?, manager, state, _claim: Some(claim) })
            }
            (None, Some(fd)) => {
                let listener = Listener::inherit(fd)?;
                Ok(Entrance { listener, metrics: metrics()?, manager, state, _claim: None })
            }
            (None, None) => unreachable!("clap requires one of them"),
        }
    }

    /// One line that says where we are and, ready to paste, how a QEMU guest gets there.
    fn ready_line(&self, shared_dir: &Path) -> String {
        let socket = match &self.socket_path {
            Some(path) => path.display().to_string(),
            None => format!("(descriptor {})", self.fd.unwrap_or_default()),
        };
        let tag = self.tag.as_deref().unwrap_or("share");
        let queues = match self.num_request_queues.get() {
            1 => String::new(),
            count => format!(",num-request-queues={count}"),
        };
        format!(
            "ashore: ready, sharing {} at {socket}; QEMU: -object memory-backend-memfd,id=mem,size=RAM,share=on \
             -machine memory-backend=mem -chardev socket,id=ashore,path={socket} \
             -device vhost-user-fs-pci,chardev=ashore,tag={tag}{queues}; in the guest: mount -t virtiofs {tag} /mnt",
            shared_dir.display(),
        )
    }
}

/// What belongs to the whole process, and so to the program rather than to a library.
pub(crate) fn prepare_process() {
    // Modes come from the guest, masked there already. A mask of ours would be applied on top.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Groups of whoever started the server must not open for a guest's caller what his own do not. Threads inherit this;
    // there are none yet.
    if rustix::process::geteuid().is_root()
        && let Err(error) = rustix::thread::set_thread_groups(&[])
    {
        tracing::warn!("the server's supplementary groups could not be dropped: {error}");
    }
}
