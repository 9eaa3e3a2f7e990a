//! What a running server tells of itself, in Prometheus' text format (version 0.0.4).
//!
//! On a socket every connection gets the numbers of now, as the answer to an HTTP request or, if it says nothing, bare. In a
//! file they are replaced every few seconds, whole, as node_exporter's textfile collector wants them.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use ashore_passthrough::{HostReport, Passthrough};
use ashore_server::{Metrics, OperationCounts, SHARING_BUCKETS, Session, SyncCounts, TIME_BUCKETS, Times};
use rustix::fs::{Mode, OFlags};

/// How often a file is replaced.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a connection may take to say what it wants.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest request that is read; what comes after it is of no interest.
const REQUEST_LIMIT: usize = 8 << 10;

/// Where the numbers go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A socket to listen on.
    Socket(PathBuf),
    /// A file to replace.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        match text.strip_prefix("unix:") {
            Some("") => {
                Err("unix: wants the path of a socket after it, as in unix:/run/ashore/metrics".into())
            }
            Some(path) => Ok(Target::Socket(path.into())),
            None if text.is_empty() => Err("wants unix:PATH or the path of a file".into()),
            None => Ok(Target::File(text.into())),
        }
    }
}

/// What the numbers are read from.
pub(crate) struct Sources {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) session: Arc<Session<Passthrough>>,
}

/// Where the numbers will go: the socket is there, or the directory of the file. Takes socket or file away when it is dropped, so
/// that nobody reads numbers of a server that is gone.
pub(crate) struct Entrance {
    listener: Option<UnixListener>,
    path: PathBuf,
    leave: bool,
}

impl Entrance {
    pub(crate) fn new(target: &Target) -> anyhow::Result<Entrance> {
        let (path, listener) = match target {
            Target::Socket(path) => {
                let listener = listen(path);
                let listener = listener
                    .with_context(|| format!("--metrics: {} cannot be listened on", path.display()))?;
                (path, Some(listener))
            }
            Target::File(path) => (path, None),
        };
        Ok(Entrance { listener, path: path.clone(), leave: false })
    }

    /// Socket or file stay when this is dropped: another process takes them away.
    pub(crate) fn leave_file(&mut self) {
        self.leave = true;
    }

    /// `open_directory` opens one that can be used when the process sees its share alone.
    pub(crate) fn open(
        mut self,
        open_directory: impl FnOnce(&Path) -> io::Result<OwnedFd>,
    ) -> anyhow::Result<Telling> {
        let sink = match self.listener.take() {
            Some(listener) => Sink::Socket(listener),
            None => {
                let failed = || format!("--metrics: {} cannot be written", self.path.display());
                let path = std::path::absolute(&self.path).with_context(failed)?;
                let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                    bail!("{}: it has no name", failed())
                };
                let directory = open_directory(directory).with_context(failed)?;
                Sink::File(Arc::new(Replaced { directory, name: name.to_owned() }))
            }
        };
        Ok(Telling { sink, entrance: self })
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if !self.leave {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Ready to tell.
pub(crate) struct Telling {
    sink: Sink,
    entrance: Entrance,
}

enum Sink {
    Socket(UnixListener),
    File(Arc<Replaced>),
}

impl Telling {
    /// Tells from now on, on a thread of its own, until the process ends or what is returned is dropped.
    pub(crate) fn start(self, sources: Sources) -> anyhow::Result<Entrance> {
        match self.sink {
            Sink::Socket(listener) => start(move || answer_all(&listener, &sources))?,
            Sink::File(file) => {
                let path = self.entrance.path.display();
                file.replace(&text(&sources))
                    .with_context(|| format!("--metrics: {path} cannot be written"))?;
                start(move || rewrite_for_ever(&file, &sources))?;
            }
        }
        Ok(self.entrance)
    }
}

fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("ashore-metrics".into()).spawn(work).map(drop)
}

/// A socket that nobody listens on any more is replaced; anything else at that path is an error.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

fn is_abandoned(path: &Path) -> bool {
    matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

fn answer_all(listener: &UnixListener, sources: &Sources) {
    for stream in listener.incoming() {
        // One that leaves early, or says nothing, costs itself its answer.
        if let Err(error) = stream.and_then(|stream| answer(stream, sources)) {
            tracing::debug!("metrics: {error}");
        }
    }
}

fn answer(mut stream: UnixStream, sources: &Sources) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let asked = read_request(&mut stream);
    let body = text(sources);
    if asked.starts_with(b"GET ") {
        write!(
            stream,
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
    }
    stream.write_all(body.as_bytes())
}

/// Up to the empty line that ends it, or what came until the other side fell silent.
fn read_request(stream: &mut UnixStream) -> Vec<u8> {
    let (mut request, mut piece) = (Vec::new(), [0; 1024]);
    while request.len() < REQUEST_LIMIT && !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(count @ 1..) => request.extend_from_slice(&piece[..count]),
            _ => break,
        }
    }
    request
}

fn rewrite_for_ever(file: &Replaced, sources: &Sources) {
    loop {
        thread::sleep(FILE_INTERVAL);
        if let Err(error) = file.replace(&text(sources)) {
            tracing::warn!("--metrics: {} cannot be written: {error}", file.name.display());
        }
    }
}

/// A file that is replaced whole.
struct Replaced {
    directory: OwnedFd,
    name: OsString,
}

impl Replaced {
    /// Whoever reads it meanwhile reads the old numbers or the new ones.
    fn replace(&self, text: &str) -> io::Result<()> {
        let mut new = self.name.clone();
        new.push(".new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &new, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(text.as_bytes())?;
        Ok(rustix::fs::renameat(&self.directory, &new, &self.directory, &self.name)?)
    }
}

fn text(sources: &Sources) -> String {
    let share = sources.session.filesystem();
    let mut page = Page::default();
    page.operations(&sources.metrics.operations());
    page.single(
        "ashore_unsynced_bytes",
        "gauge",
        "Bytes written since the last sync that succeeded began",
        sources.metrics.unsynced_bytes(),
    );
    page.single("ashore_inodes", "gauge", "Inodes that the client knows", share.looked_up() as u64);
    page.single(
        "ashore_open_handles",
        "gauge",
        "Files and directories that the client has open",
        share.open_handles() as u64,
    );
    page.single("ashore_open_descriptors", "gauge", "Descriptors of this process", share.open_descriptors());
    page.single(
        "ashore_guest_sends_syncfs_early",
        "gauge",
        "1 if the guest was seen to send SYNCFS before its data",
        sources.session.sends_syncfs_early().into(),
    );
    page.syncs(&sources.session.sync_counts());
    page.hosts(&share.host_file_systems());
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes all that is written");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.line(format_args!("{name} {value}"));
    }

    fn operations(&mut self, all: &[OperationCounts]) {
        type Value = fn(&OperationCounts) -> u64;
        let families: [(&str, &str, &str, Value); 5] = [
            ("ashore_requests_total", "counter", "Requests answered", |it| it.done),
            ("ashore_requests_failed_total", "counter", "Requests answered with an error", |it| it.failed),
            (
                "ashore_requests_in_flight",
                "gauge",
                "Requests taken and not answered",
                OperationCounts::in_flight,
            ),
            ("ashore_request_bytes_total", "counter", "Bytes of data that came with requests", |it| {
                it.bytes_in
            }),
            ("ashore_reply_bytes_total", "counter", "Bytes of data in answers", |it| it.bytes_out),
        ];
        for (name, kind, help, value) in families {
            self.family(name, kind, help);
            for counts in all {
                self.line(format_args!("{name}{{operation=\"{}\"}} {}", counts.opcode, value(counts)));
            }
        }
        let name = "ashore_request_duration_seconds";
        self.family(name, "histogram", "From when a request was taken from its queue until it was answered");
        for counts in all {
            self.times(name, &format!("operation=\"{}\"", counts.opcode), &counts.times);
        }
    }

    fn syncs(&mut self, counts: &SyncCounts) {
        let name = "ashore_sync_barrier_wait_seconds";
        self.family(name, "histogram", "What a round of SYNCFS waited until all that is earlier had settled");
        self.times(name, "", &counts.barrier_waits);
        let name = "ashore_sync_host_seconds";
        self.family(name, "histogram", "What the host took in a round of SYNCFS to make it stable");
        self.times(name, "", &counts.host_syncs);
        let name = "ashore_sync_round_members";
        self.family(name, "histogram", "How many SYNCFS shared a round");
        let bounds = (0..SHARING_BUCKETS - 1).map(|bucket| (1u64 << bucket) as f64);
        self.histogram(name, "", bounds, &counts.sharing, counts.syncs as f64);
    }

    /// A histogram of times, in seconds.
    fn times(&mut self, name: &str, label: &str, times: &Times) {
        let bounds = (0..TIME_BUCKETS - 1).map(|bucket| (1u64 << bucket) as f64 / 1e6);
        self.histogram(name, label, bounds, &times.buckets, times.sum.as_secs_f64());
    }

    /// The last bucket has no bound. `label` is empty or `name="value"`.
    fn histogram(
        &mut self,
        name: &str,
        label: &str,
        bounds: impl Iterator<Item = f64>,
        buckets: &[u64],
        sum: f64,
    ) {
        let (comma, total) = (if label.is_empty() { "" } else { "," }, buckets.iter().sum::<u64>());
        let mut below = 0;
        for (bound, count) in bounds.zip(buckets) {
            below += count;
            self.line(format_args!("{name}_bucket{{{label}{comma}le=\"{bound}\"}} {below}"));
        }
        self.line(format_args!("{name}_bucket{{{label}{comma}le=\"+Inf\"}} {total}"));
        let label = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        self.line(format_args!("{name}_sum{label} {sum}"));
        self.line(format_args!("{name}_count{label} {total}"));
    }

    fn hosts(&mut self, hosts: &[HostReport]) {
        type Value = fn(&HostReport) -> u64;
        let families: [(&str, &str, &str, Value); 3] = [
            ("ashore_host_syncs_total", "counter", "Syncs of a host file system by this process", |it| {
                it.syncs
            }),
            (
                "ashore_host_sync_failures_total",
                "counter",
                "How often something could not be made stable",
                |it| it.failures,
            ),
            (
                "ashore_host_unsynced",
                "gauge",
                "1 if the client changed something since its last sync",
                |it| it.unsynced.into(),
            ),
        ];
        for (name, kind, help, value) in families {
            self.family(name, kind, help);
            for host in hosts {
                let (major, minor) = (rustix::fs::major(host.device), rustix::fs::minor(host.device));
                self.line(format_args!("{name}{{device=\"{major}:{minor}\"}} {}", value(host)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use ashore_server::Metrics;

    #[test]
    fn a_target_is_a_socket_or_a_file() {
        assert_eq!("unix:/run/a".parse(), Ok(Target::Socket("/run/a".into())));
        assert_eq!("/var/lib/a.prom".parse(), Ok(Target::File("/var/lib/a.prom".into())));
        assert!("unix:".parse::<Target>().unwrap_err().contains("path of a socket"));
        assert!("".parse::<Target>().is_err());
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let directory = File::open(folder.path()).unwrap().into();
        let file = Replaced { directory, name: "ashore.prom".into() };
        file.replace("old\n").unwrap();
        file.replace("new\n").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("ashore.prom")).unwrap(), "new\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_server_that_did_nothing_has_families_without_members() {
        let mut page = Page::default();
        page.operations(&Metrics::new(1, None).operations());
        assert!(page.text.contains("# TYPE ashore_request_duration_seconds histogram"));
        assert!(page.text.lines().all(|line| line.starts_with('#')), "{}", page.text);
    }
}
