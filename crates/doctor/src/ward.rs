//! Where servers are examined: started when needed, connected to, and started again when a check has ended one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ashore_client::{Client, Options};
use ashore_vhost_user::driver::{LinkOptions, RawConnection, VhostUserLink};

use crate::line::Line;
use crate::place::Place;
use crate::server::{Recipe, Server};

/// What is examined.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A server that is started, on a directory of ours, as often as needed.
    Start(Recipe),
    /// One that runs already, and where its directory is, if that is known.
    Running { socket: PathBuf, directory: Option<PathBuf> },
}

/// The server under examination, and the connection to it.
pub(crate) struct Ward {
    source: Source,
    /// Before the server: it is hung up first.
    line: Option<Line>,
    server: Option<Server>,
    /// What started servers share.
    share: PathBuf,
    place: tempfile::TempDir,
    /// What the shared file system stands on, if it was named.
    pub(crate) disk: Option<PathBuf>,
    /// SYNCFS was answered ENOSYS.
    pub(crate) syncfs_is_unknown: bool,
    /// A sync has left data in memory. What else is wrong with syncs is then not to be told from that.
    pub(crate) sync_is_hollow: bool,
}

impl Ward {
    /// Files of the examination go into `place`.
    pub(crate) fn new(source: Source, place: tempfile::TempDir, disk: Option<PathBuf>) -> Result<Ward> {
        let share = place.path().join("share");
        fs::create_dir(&share).with_context(|| format!("cannot make {}", share.display()))?;
        Ok(Ward {
            source,
            line: None,
            server: None,
            share,
            place,
            disk,
            syncfs_is_unknown: false,
            sync_is_hollow: false,
        })
    }

    /// The connection, made if there is none.
    pub(crate) fn line(&mut self) -> Result<&Line> {
        if self.line.as_ref().is_none_or(|line| !line.is_alive()) {
            self.close();
            let socket = self.socket()?;
            let directory = self.directory().map(Path::to_owned);
            self.line = Some(Line::connect(&socket, directory.as_deref())?);
        }
        self.line.as_ref().context("it was just made")
    }

    /// As [`Ward::line`], for checks that mean nothing without SYNCFS.
    pub(crate) fn syncing_line(&mut self) -> Result<&Line> {
        self.need_syncs()?;
        self.line()
    }

    /// For checks that mean nothing without syncs that make something stable.
    pub(crate) fn need_syncs(&self) -> Result<()> {
        if self.syncfs_is_unknown {
            bail!("it needs SYNCFS, which the server does not understand");
        }
        if self.sync_is_hollow {
            bail!("it means nothing as long as a sync leaves data in memory");
        }
        Ok(())
    }

    /// The connection, to be used up, and the server if it is ours.
    pub(crate) fn take_line(&mut self) -> Result<(Line, Option<Server>)> {
        self.line()?;
        let line = self.line.take().context("it was just made")?;
        Ok((line, self.server.take()))
    }

    /// A connection of Ashore's client to a server of its own, or after the one before.
    pub(crate) fn client(&mut self) -> Result<(Client, Option<Server>, PathBuf)> {
        self.close();
        let socket = self.socket()?;
        let link =
            VhostUserLink::connect(&socket, LinkOptions { request_queues: 2, ..LinkOptions::default() })?;
        let client = Client::new(link, Options::default()).context("the server does not agree to INIT")?;
        let directory =
            self.directory().context("where the shared directory is must be known (--dir)")?.to_owned();
        Ok((client, self.server.take(), directory))
    }

    /// Hangs up, and ends the server if it is ours.
    pub(crate) fn close(&mut self) {
        if let Some(line) = self.line.take() {
            line.clean_up();
        }
        self.server = None;
    }

    /// The recipe, for checks that end servers or need two.
    pub(crate) fn recipe(&self) -> Result<&Recipe> {
        match &self.source {
            Source::Start(recipe) => Ok(recipe),
            Source::Running { .. } => bail!("the server is not ours to start and stop; see --command"),
        }
    }

    /// Whether the command says that a guest is to pay for its own dirty data only.
    pub(crate) fn was_asked_to_sync_its_share_only(&self) -> bool {
        let Source::Start(Recipe::Command(command)) = &self.source else { return false };
        ["--sync-scope share", "--sync-scope=share"].iter().any(|asked| command.contains(asked))
    }

    /// What is shared, if known.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match &self.source {
            Source::Start(_) => Some(&self.share),
            Source::Running { directory, .. } => directory.as_deref(),
        }
    }

    /// What the shared directory stands on.
    pub(crate) fn stands_on(&self) -> Result<Place> {
        Place::of(
            self.directory().context("where the shared directory is on this host is not known (--dir)")?,
        )
    }

    /// What the server has printed, if it is ours and running.
    pub(crate) fn log(&self) -> Option<String> {
        self.server.as_ref().map(Server::log)
    }

    /// A directory beside the share.
    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    /// In words, for the head of the report.
    pub(crate) fn subject(&self) -> String {
        let on = match self.stands_on() {
            Ok(place) => format!(", sharing a directory on {}", place.words()),
            Err(_) => String::new(),
        };
        match &self.source {
            Source::Start(Recipe::Ours) => format!("ashore serve{on}"),
            Source::Start(Recipe::Command(command)) => format!("{command}{on}"),
            Source::Running { socket, .. } => format!("the server at {}{on}", socket.display()),
        }
    }

    fn socket(&mut self) -> Result<PathBuf> {
        match &self.source {
            Source::Running { socket, .. } => Ok(socket.clone()),
            Source::Start(recipe) => {
                let server = recipe.start(&self.share, self.place.path())?;
                Ok(self.server.insert(server).socket().to_owned())
            }
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs `work` on a thread for each queue, so that what each sends goes into a queue of its own; all begin together.
pub(crate) fn on_each_queue<T: Send>(
    line: &Line,
    work: impl Fn(usize, &RawConnection) -> T + Sync,
) -> Vec<T> {
    on_threads(line, line.queues, work)
}

/// Runs `work` on so many threads, which take the queues in turn; all begin together.
pub(crate) fn on_threads<T: Send>(
    line: &Line,
    threads: usize,
    work: impl Fn(usize, &RawConnection) -> T + Sync,
) -> Vec<T> {
    use std::sync::{Barrier, mpsc};
    let together = Barrier::new(threads);
    std::thread::scope(|scope| {
        let (together, work) = (&together, &work);
        let begin = |number: usize| {
            let (ready, wait) = mpsc::channel();
            let thread = scope.spawn(move || {
                // A thread's first request decides its queue, and threads take queues in turn.
                _ = line.raw.getattr(ashore_wire::NodeId::ROOT);
                _ = ready.send(());
                together.wait();
                work(number, &line.raw)
            });
            _ = wait.recv();
            thread
        };
        let threads: Vec<_> = (0..threads).map(begin).collect();
        threads.into_iter().map(|thread| thread.join().expect("checks do not panic")).collect()
    })
}
