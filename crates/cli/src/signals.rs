//! SIGTERM and SIGINT: the server ends in order, which means after a last sync.

use std::io;
use std::process;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The exit code of a server that was told twice to end: its last sync was not waited for.
const EXIT_IMPATIENT: i32 = 1;

/// Calls `stop` at the first SIGTERM, SIGINT or SIGHUP. A second one ends the process there and then, for a disk that
/// never answers must not keep it alive.
pub(crate) fn on_end(stop: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("ashore-signals".into()).spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if count > 0 {
                tracing::error!("{name} once more: ending without waiting for the last sync");
                process::exit(EXIT_IMPATIENT);
            }
            tracing::info!("{name}: ending after a last sync");
            stop();
        }
    })?;
    Ok(())
}
