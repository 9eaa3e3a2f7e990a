//! SIGTERM and SIGINT: the server ends in order, which means after a last sync.

use std::io;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The exit code of a server whose last sync was not waited for.
const EXIT_UNSYNCED: i32 = 1;
/// Signals so close together are one: a terminal or a service manager sends it to every process, and the one outside the sandbox
/// hands it on.
const SAME: Duration = Duration::from_millis(500);

/// Calls `stop` at the first SIGTERM, SIGINT or SIGHUP. A disk that never answers must not keep the process alive: a
/// second signal, half a second later or more, ends it there and then, and so does `patience` without an end.
pub(crate) fn on_end(patience: Duration, stop: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new().name("ashore-signals".into()).spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            match first {
                None => {
                    first = Some(Instant::now());
                    tracing::info!("{name}: ending after a last sync");
                    stop();
                    limit(patience);
                }
                Some(first) if first.elapsed() < SAME => {}
                Some(_) => {
                    tracing::error!("{name} once more: ending without waiting for the last sync");
                    process::exit(EXIT_UNSYNCED);
                }
            }
        }
    })?;
    Ok(())
}

fn limit(patience: Duration) {
    let watchdog = thread::Builder::new().name("ashore-patience".into()).spawn(move || {
        thread::sleep(patience);
        tracing::error!("the last sync did not end within {patience:?}; what was changed may not be stable");
        process::exit(EXIT_UNSYNCED);
    });
    if let Err(error) = watchdog {
        tracing::warn!("nothing limits how long the last sync may take: {error}");
    }
}
