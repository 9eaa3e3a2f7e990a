//! The file by which a server goes on where another was.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ashore_passthrough::Passthrough;
use ashore_server::{Identity, Journal, Restored, Session};

/// How long a server that was killed may take to let go of the file.
const ENDING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Opened and locked while the host can be seen; read when the share is open.
pub(crate) struct StateFile {
    file: File,
    path: PathBuf,
    boot: Vec<u8>,
}

impl StateFile {
    pub(crate) fn open(path: &Path) -> anyhow::Result<StateFile> {
        use std::os::unix::fs::OpenOptionsExt;
        let cannot = || format!("the state file {} cannot be used", path.display());
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.with_context(cannot)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // One that was killed may not have let go yet.
                Err(TryLockError::WouldBlock) if begun.elapsed() < ENDING => thread::sleep(LOOK_AGAIN),
                Err(TryLockError::WouldBlock) => anyhow::bail!("{}: another server uses it", cannot()),
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
        }
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").with_context(cannot)?;
        Ok(StateFile { file, path: path.to_owned(), boot })
    }

    /// Puts the session where the last one was.
    pub(crate) fn restore(self, session: &Arc<Session<Passthrough>>) -> anyhow::Result<Arc<Journal>> {
        let filesystem = session.filesystem();
        anyhow::ensure!(
            filesystem.holds_by_handle(),
            "--state-file needs file handles, which this host file system has not or which need root"
        );
        let share = filesystem.share_identity().map_err(std::io::Error::from)?;
        let identity = Identity { boot: self.boot, share };
        let cannot = || format!("the state file {} cannot be used", self.path.display());
        let journal = Journal::open(self.file, identity).with_context(cannot)?;
        match journal.restore(session).with_context(cannot)? {
            Some(Restored { found, lost: 0 }) => {
                tracing::info!("going on where the last server was: {found} nodes and open files")
            }
            Some(Restored { found, lost }) => tracing::warn!(
                "going on where the last server was: {found} nodes and open files; {lost} could not be had again, and are stale"
            ),
            None => {}
        }
        Ok(Arc::new(journal))
    }
}
