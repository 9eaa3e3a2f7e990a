//! What a service manager is told: that the server is ready, that it is alive, and that it is about to end.
//!
//! The protocol is that of sd_notify(3): a datagram of text to a socket that `NOTIFY_SOCKET` names. It is connected while the
//! server sees its host, and works on where nothing of that can be seen any more.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const SOCKET: &str = "NOTIFY_SOCKET";
/// How often a sign of life is wanted, in microseconds, and of which process.
const INTERVAL: &str = "WATCHDOG_USEC";
const WATCHED: &str = "WATCHDOG_PID";
/// A manager that takes nothing for so long has troubles of its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who started this process and wants to hear of it; nobody, mostly.
#[derive(Clone, Default)]
pub(crate) struct Manager {
    socket: Option<Arc<UnixDatagram>>,
    /// A sign of life is due each time this has passed, or the process is taken for dead.
    interval: Option<Duration>,
}

impl Manager {
    /// The one that the environment names. To be asked by the process that was started, before another is made of it.
    pub(crate) fn of_environment() -> Manager {
        let Some(name) = env::var(SOCKET).ok().filter(|name| !name.is_empty()) else {
            return Manager::default();
        };
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let ours = number(WATCHED).is_none_or(|watched| watched == u64::from(process::id()));
        let interval = number(INTERVAL).filter(|us| *us > 0 && ours).map(Duration::from_micros);
        match connect(&name) {
            Ok(socket) => Manager { socket: Some(Arc::new(socket)), interval },
            Err(error) => {
                tracing::warn!("{SOCKET}: the service manager cannot be reached at {name}: {error}");
                Manager::default()
            }
        }
    }

    /// The server takes connections from now on.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The server has been told to end, and makes stable what it has to first.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=ending after a last sync");
    }

    /// Gives signs of life, twice as often as is wanted, on a thread of its own. `touch` takes the locks that every request
    /// takes: where it does not come back, nothing is served. It must not wait for a disk: a slow one is no reason to end a
    /// server.
    pub(crate) fn watch(&self, touch: impl Fn() + Send + 'static) -> io::Result<()> {
        let Some(interval) = self.interval else { return Ok(()) };
        let manager = self.clone();
        let alive = move || loop {
            touch();
            manager.tell("WATCHDOG=1");
            thread::sleep(interval / 2);
        };
        thread::Builder::new().name("ashore-alive".into()).spawn(alive).map(drop)
    }

    fn tell(&self, words: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(words.as_bytes()) {
            tracing::warn!("the service manager could not be told {words:?}: {error}");
        }
    }
}

/// A path, or `@` and a name that has none.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use std::sync::Mutex;

    #[test]
    fn signs_of_life_end_where_a_lock_is_never_given_back() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let manager = Manager { socket: Some(Arc::new(ours)), interval: Some(Duration::from_millis(20)) };
        let lock = Arc::new(Mutex::new(()));
        let touched = Arc::clone(&lock);
        manager.watch(move || drop(touched.lock().unwrap())).unwrap();
        let mut said = [0; 64];
        for _ in 0..5 {
            let length = theirs.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"WATCHDOG=1");
        }
        let _stuck = lock.lock().unwrap();
        let more = (0..100).take_while(|_| theirs.recv(&mut said).is_ok()).count();
        assert!(more < 100, "it goes on with the lock held");
    }

    #[test]
    fn a_name_without_a_path_is_understood_too() {
        let name = format!("ashore-test-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let theirs = UnixDatagram::bind_addr(&address).unwrap();
        let manager =
            Manager { socket: Some(Arc::new(connect(&format!("@{name}")).unwrap())), interval: None };
        manager.ready("sharing");
        let mut said = [0; 64];
        let length = theirs.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"READY=1\nSTATUS=sharing");
    }
}
