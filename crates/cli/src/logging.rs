//! Where log lines go and which are shown.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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
    let default = format!("{level:?}").to_lowercase();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    builder.with_ansi(std::io::stderr().is_terminal()).init();
}
