//! The ways that work takes to the recorded disk.

use std::fs::File;

use anyhow::{Context, Result, bail};
use ashore_client::{CacheMode, Client, Options};
use ashore_guest::workload::{HostDirectory, Outcome, SyncCall};
use ashore_guest::{Guest, Server, Share};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};

use super::replay::Recording;
use super::stage::{Scenario, Stage};
use super::target::{ClientTarget, OtherSync};

/// A way from the threads to the disk.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What it is called.
    pub name: &'static str,
    through: Through,
    /// Arguments of our server.
    server: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
enum Through {
    Nothing,
    Client { cache: CacheMode },
    Guest { sync: SyncCall },
}

const WRITE_BACK: Through = Through::Client { cache: CacheMode::WriteBack };

impl Way {
    /// Straight to the file system. What is broken here is its fault, or the rig's.
    pub const DIRECT: Way = Way { name: "direct", through: Through::Nothing, server: &[] };
    /// Through our client, which writes back, and our server.
    pub const CLIENT: Way = Way { name: "client", through: WRITE_BACK, server: &["--writeback"] };
    /// Through our client without a cache.
    pub const CLIENT_UNCACHED: Way =
        Way { name: "client-uncached", through: Through::Client { cache: CacheMode::None }, server: &[] };
    /// Through our client, and our server syncs what was changed through it only.
    pub const CLIENT_SHARE: Way =
        Way { name: "client-share", through: WRITE_BACK, server: &["--writeback", "--sync-scope", "share"] };
    /// Through the kernel of a guest and our server, by syncfs(2).
    pub const GUEST: Way =
        Way { name: "guest", through: Through::Guest { sync: SyncCall::Syncfs }, server: &[] };
    /// Through the kernel of a guest that writes back, by sync(2). Sound for guests that wait for their own write-back.
    pub const GUEST_WRITEBACK: Way = Way {
        name: "guest-writeback",
        through: Through::Guest { sync: SyncCall::Sync },
        server: &["--writeback"],
    };
    /// Through the kernel of a guest, and our server syncs what was changed through it only.
    pub const GUEST_SHARE: Way = Way {
        name: "guest-share",
        through: Through::Guest { sync: SyncCall::Syncfs },
        server: &["--sync-scope", "share"],
    };
    /// Through the kernel of a guest, without any sync.
    pub const GUEST_UNSYNCED: Way =
        Way { name: "guest-unsynced", through: Through::Guest { sync: SyncCall::None }, server: &[] };

    /// Those that must keep every promise.
    pub const SOUND: [Way; 7] = [
        Way::DIRECT,
        Way::CLIENT,
        Way::CLIENT_UNCACHED,
        Way::CLIENT_SHARE,
        Way::GUEST,
        Way::GUEST_WRITEBACK,
        Way::GUEST_SHARE,
    ];

    /// Whether a guest's kernel takes part.
    pub fn has_guest(self) -> bool {
        matches!(self.through, Through::Guest { .. })
    }

    /// The sound one of this name.
    pub fn from_name(name: &str) -> Option<Way> {
        Way::SOUND.into_iter().find(|way| way.name == name)
    }

    /// Records work that takes this way.
    pub fn record(self, scenario: &Scenario) -> Result<Recording> {
        let stage = Stage::new(scenario)?;
        let outcome = match self.through {
            Through::Nothing => work_directly(&stage)?,
            Through::Client { cache } => {
                let server = self.serve(&stage)?;
                stage.work(&ClientTarget(connect(&server, cache)?))?
            }
            Through::Guest { sync } => self.work_in_guest(scenario, &stage, sync)?,
        };
        Ok(stage.finish(&outcome))
    }

    fn serve(&self, stage: &Stage) -> Result<Server> {
        let builder = Server::builder(stage.root()).queues(2);
        self.server.iter().fold(builder, |builder, argument| builder.arg(argument)).start()
    }

    /// The guest marks its syncs on a disk of its own, which is the tail of the recorded one: no reply has to travel first,
    /// and nothing that became stable meanwhile is taken for the sync's work.
    fn work_in_guest(&self, scenario: &Scenario, stage: &Stage, sync: SyncCall) -> Result<Outcome> {
        let server = self.serve(stage)?;
        // Other servers may have one queue, and a guest would wait for the second for ever.
        let share = Share::new(server.socket()).queues(if server.is_ours() { 2 } else { 1 });
        let guest =
            Guest::builder().share(share).disk(stage.disk_file(), scenario.kind.length(), super::MARKER_AREA);
        let guest = guest.boot()?;
        let plan = &scenario.plan;
        let command = format!(
            "agent work /mnt/share {} {} {} /dev/vda {}",
            plan.seed,
            plan.threads,
            plan.operations,
            sync.name()
        );
        let output = guest.run(&command)?.success()?;
        let done = output.trim().strip_prefix("done ").context("the guest did not say how far it came")?;
        let done = done.split(' ').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        if done != vec![plan.operations; plan.threads as usize] {
            bail!("the guest ended early: {done:?}");
        }
        Ok(Outcome { done, errors: Vec::new() })
    }
}

/// Each sync is syncfs(2) and then an fsync of some file: on XFS the first alone does not always flush the disk, which these
/// power cuts have shown. Our server does the same.
fn work_directly(stage: &Stage) -> Result<Outcome> {
    let anchor = File::create(stage.root().join("anchor"))?;
    let sync = || {
        rustix::fs::syncfs(&anchor)?;
        anchor.sync_all()
    };
    let target = HostDirectory::new(stage.root(), SyncCall::Syncfs);
    stage.work(&OtherSync { target, sync, fsync: true })
}

/// Our client, mounted on the share of this server.
pub fn connect(server: &Server, cache: CacheMode) -> Result<Client> {
    let options = LinkOptions { request_queues: 2, pages: 2048, ..LinkOptions::default() };
    let link = VhostUserLink::connect(server.socket(), options)?;
    let client = Client::new(link, Options { cache, ..Options::default() })?;
    if client.cache_mode() != cache {
        bail!("the server does not agree to {cache:?}");
    }
    Ok(client)
}
