//! Where log lines go and which are shown.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;

use clap::ValueEnum;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Where the system's log takes its lines.
const SYSTEM_LOG: &str = "/dev/log";

/// Which log lines are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    /// None at all.
    Off,
    /// What went wrong.
    Error,
    /// And what may go wrong: a host file system that cannot be stable, say.
    Warn,
    /// And what happened: clients that come and go.
    Info,
    /// And what it cost.
    Debug,
    /// And each request.
    Trace,
}

/// Logs to standard error, as `[time LEVEL target] text`. `RUST_LOG`, where it is set, decides in place of `level`.
pub(crate) fn start(level: LogLevel) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(std::io::stderr);
    // A request that is over, with the time it took: of interest at the level of requests, and off at the others.
    let builder = builder.with_span_events(FmtSpan::CLOSE);
    builder.with_ansi(std::io::stderr().is_terminal()).init();
}

/// As [`start`], or to the system's log if `syslog`. Where there is none, to standard error after all, with a warning.
pub(crate) fn start_for_server(level: LogLevel, syslog: bool) {
    let socket = syslog
        .then(|| UnixDatagram::unbound().and_then(|socket| socket.connect(SYSTEM_LOG).map(|()| socket)));
    match socket {
        None => start(level),
        Some(Ok(socket)) => {
            let lines =
                tracing_subscriber::fmt().with_env_filter(filter(level)).with_writer(SystemLog(socket));
            lines.without_time().with_ansi(false).with_level(false).init();
        }
        Some(Err(error)) => {
            start(level);
            tracing::warn!("--syslog: {SYSTEM_LOG} takes no lines, they go to standard error: {error}");
        }
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    let default = format!("{level:?}").to_lowercase();
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}

struct SystemLog(UnixDatagram);

/// One line for the system's log, with the number that stands for its severity.
struct SystemLogLine<'a> {
    socket: &'a UnixDatagram,
    priority: u8,
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = SystemLogLine<'a>;

    fn make_writer(&'a self) -> SystemLogLine<'a> {
        SystemLogLine { socket: &self.0, priority: priority(Level::INFO) }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> SystemLogLine<'a> {
        SystemLogLine { socket: &self.0, priority: priority(*metadata.level()) }
    }
}

impl Write for SystemLogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let head = format!("<{}>ashore[{}]: ", self.priority, std::process::id());
        self.socket.send(&[head.as_bytes(), line.trim_ascii_end()].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A daemon's (3 << 3), and the severity of syslog(3).
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    3 << 3 | severity
}
