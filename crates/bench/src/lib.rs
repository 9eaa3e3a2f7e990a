//! How fast a virtio-fs server is: requests a second, and what a request costs the server.
//!
//! ```text
//!     run()            lib.rs       one server at a socket, or two commands compared
//!       Row            rows.rs      what is measured, one row of the table each
//!         Tree         tree.rs      the files that it is measured with
//!         Cached       cached.rs    files through Ashore's client
//!         native       native.rs    the same work as system calls on the host: the limit
//!       Pinned         pin.rs       client and server on processors of their own
//!       Meter          meter.rs     operations, time, processor time of the server
//!         Process      process.rs   the server, as /proc shows it; and servers that we start
//!     Report           report.rs    a table to read, JSON to keep
//!     plot()           plot.rs      curves instead: by requests on their way, by queues, and of latencies
//!       Figure         figure.rs    a drawing of them
//! ```
//!
//! Two servers are compared in turns, A B A B, since a machine is faster in one minute than in the next: the ratios are
//! medians over pairs that ran next to each other.

#![forbid(unsafe_code)]

mod cached;
mod compare;
mod figure;
mod meter;
mod native;
mod pin;
mod plot;
mod process;
mod report;
mod rows;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ashore_vhost_user::driver::{LINUX_FLAGS, LinkOptions, RawConnection, VhostUserLink};
use ashore_wire::NodeId;
use ashore_wire::abi::InitOut;
use ashore_wire::link::Link;

use crate::cached::Cached;
use crate::meter::Meter;
use crate::native::Native;
use crate::pin::Pinned;
use crate::process::Process;
use crate::rows::{Measure, MeasureCached, MeasureRaw, ROWS, Row};
use crate::tree::{Needs, Tree};

pub use crate::meter::Sample;
pub use crate::plot::plot;
pub use crate::report::{Cell, Report, ReportRow};

/// Pages of the link: the largest request, and some to read into while others are on their way.
const LINK_PAGES: u32 = 1024;
/// How long a server may take to answer anything; more than a sync of a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArguments {
    /// Measure the server that listens at this socket
    #[arg(long, value_name = "PATH", required_unless_present_any = ["compare", "path"])]
    pub socket: Option<PathBuf>,

    /// Compare two servers, started by these commands in turns. {dir} and {socket} stand for the shared directory and
    /// the socket; without them, --shared-dir and --socket-path are appended
    #[arg(long, num_args = 2, value_names = ["CMD_A", "CMD_B"], conflicts_with_all = ["socket", "path"])]
    pub compare: Vec<String>,

    /// Measure a directory, a mount for example, by system calls; given twice, both in turns
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    pub path: Vec<PathBuf>,

    /// Where to make the shared directory of --compare, and the files for the native column
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// How long to measure each row
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    pub seconds: f64,

    /// How often to measure each of both servers
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,

    /// Only rows whose name contains one of these
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,

    /// Request queues to use, at most
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queues: u16,

    /// How long to look for an answer before sleeping, in microseconds
    #[arg(long, value_name = "US", default_value_t = LinkOptions::default().poll_us)]
    pub poll_us: u32,

    /// Leave it to the scheduler where client and server run. Otherwise each has half of the processors, as a guest and its
    /// server have; without that, chance decides whether a request wakes a processor or not
    #[arg(long)]
    pub no_pin: bool,

    /// Leave out the same work as system calls on the host
    #[arg(long)]
    pub no_native: bool,
}

impl BenchArguments {
    fn chosen(&self) -> Vec<&'static Row> {
        let matches =
            |row: &&Row| self.only.is_empty() || self.only.iter().any(|text| row.name.contains(text));
        ROWS.iter().filter(matches).collect()
    }

    fn chosen_raw(&self) -> Vec<(&'static Row, MeasureRaw)> {
        let raw = |row: &'static Row| match row.measure {
            Measure::Raw(measure) => Some((row, measure)),
            Measure::Cached(_) => None,
        };
        self.chosen().into_iter().filter_map(raw).collect()
    }

    fn chosen_cached(&self) -> Vec<(&'static Row, MeasureCached)> {
        let cached = |row: &'static Row| match row.measure {
            Measure::Raw(_) => None,
            Measure::Cached(measure) => Some((row, measure)),
        };
        self.chosen().into_iter().filter_map(cached).collect()
    }

    fn row_time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.01, 3600.0))
    }

    /// A directory for files of ours, removed in the end.
    fn scratch(&self) -> Result<tempfile::TempDir> {
        let parent = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        scratch_in(&parent).context("try another --dir")
    }
}

fn scratch_in(parent: &Path) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("ashore-bench-").tempdir_in(parent);
    made.with_context(|| format!("no directory can be made in {}", parent.display()))
}

/// Measures; what was measured is the report.
pub fn run(arguments: &BenchArguments) -> Result<Report> {
    if arguments.chosen().is_empty() {
        let names = ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        bail!("--only names no row; there are: {names}");
    }
    let paths: Vec<&Path> = arguments.path.iter().map(PathBuf::as_path).collect();
    let mut report = match (&arguments.socket, arguments.compare.as_slice(), paths.as_slice()) {
        (Some(socket), _, _) => one_server(arguments, socket)?,
        (None, [a, b], _) => compare::compare(arguments, a, b)?,
        (None, _, [path]) => {
            Report::of_one(&path.display().to_string(), measure_calls(arguments, &Native::prepare(path)?)?)
        }
        (None, _, [a, b]) => compare::compare_directories(arguments, a, b)?,
        _ => bail!("name a --socket, two commands to --compare, or one --path or two"),
    };
    if !arguments.no_native {
        report.add_native(&measure_native(arguments)?);
    }
    Ok(report)
}

fn one_server(arguments: &BenchArguments, socket: &Path) -> Result<Report> {
    let mut cells = measure_requests(arguments, socket, false)?;
    cells.extend(measure_cached(arguments, socket)?);
    Ok(Report::of_one(&socket.display().to_string(), cells))
}

/// Measures those of the chosen rows that are single requests, over one connection. The files stay if the same directory is to be
/// measured again.
fn measure_requests(arguments: &BenchArguments, socket: &Path, keep_files: bool) -> Result<Vec<Cell>> {
    let chosen = arguments.chosen_raw();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let pinned = if arguments.no_pin { None } else { Pinned::new() };
    let Connected { raw, process, agreed, .. } = connect(arguments, socket, arguments.queues)?;
    pinned.as_ref().inspect(|pinned| pinned.move_away(process.pids()));
    let needed = |unit: &str| chosen.iter().any(|(row, _)| row.unit == unit);
    let needs = Needs { many: needed("names"), walk: needed("files walked") };
    let tree = Tree::prepare(&raw, needs).context("the files to measure with cannot be made")?;
    let meter = Meter::new(arguments.row_time(), Some(&process));
    let mut subject = rows::Subject { raw: &raw, tree: &tree, max_write: agreed.max_write };
    let mut cells = Vec::new();
    for (row, measure) in chosen {
        let sample = measure(&mut subject, &meter).map_err(|error| format!("{error:#}"));
        if sample.is_err() {
            raw.getattr(NodeId::ROOT).with_context(|| format!("measuring {}", row.name))?;
        }
        cells.push(Cell { name: row.name, unit: row.unit, sample });
    }
    tree.close(&raw, keep_files).context("the files to measure with cannot be removed")?;
    raw.destroy().context("taking leave of the server")?;
    Ok(cells)
}

/// Measures the others, over another connection: they have a client of their own.
fn measure_cached(arguments: &BenchArguments, socket: &Path) -> Result<Vec<Cell>> {
    let chosen = arguments.chosen_cached();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let pinned = if arguments.no_pin { None } else { Pinned::new() };
    let (cached, process) = Cached::connect(arguments, socket)?;
    pinned.as_ref().inspect(|pinned| pinned.move_away(process.pids()));
    let meter = Meter::new(arguments.row_time(), Some(&process));
    let mut cells = Vec::new();
    for (row, measure) in chosen {
        let sample = measure(&cached, &meter).map_err(|error| format!("{error:#}"));
        cells.push(Cell { name: row.name, unit: row.unit, sample });
    }
    cached.close().context("taking leave of the server")?;
    Ok(cells)
}

/// A connection for single requests.
struct Connected {
    raw: RawConnection,
    process: Process,
    agreed: InitOut,
    queues: usize,
}

fn connect(arguments: &BenchArguments, socket: &Path, most_queues: u16) -> Result<Connected> {
    let options = LinkOptions {
        pages: LINK_PAGES,
        request_queues: most_queues,
        poll_us: arguments.poll_us,
        ..LinkOptions::default()
    };
    let link = VhostUserLink::connect(socket, options)?;
    let queues = link.request_queues();
    let process = Process::new(link.server_process().context("which process is the server?")?);
    let raw = RawConnection::over(Arc::new(link) as Arc<dyn Link>).with_patience(PATIENCE);
    let agreed = raw.init(LINUX_FLAGS).context("the server does not agree to INIT")?;
    Ok(Connected { raw, process, agreed, queues })
}

fn measure_native(arguments: &BenchArguments) -> Result<Vec<Cell>> {
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    measure_calls(arguments, &Native::prepare(&parent).context("try another --dir")?)
}

/// Measures those of the chosen rows that can be done by system calls.
fn measure_calls(arguments: &BenchArguments, native: &Native) -> Result<Vec<Cell>> {
    let meter = Meter::new(arguments.row_time(), None);
    let mut cells = Vec::new();
    // What a client with a cache of its own is held against stands among the others already.
    let twice = |row: &Row| !arguments.path.is_empty() && matches!(row.measure, Measure::Cached(_));
    for row in arguments.chosen().into_iter().filter(|row| !twice(row)) {
        if let Some(measure) = row.native {
            let sample = measure(native, &meter).with_context(|| format!("measuring {}", row.name))?;
            cells.push(Cell { name: row.name, unit: row.unit, sample: Ok(sample) });
        }
    }
    Ok(cells)
}
