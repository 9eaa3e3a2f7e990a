//! Live migration: how the files that a guest knows are told to the server it goes on at, and found there.

use std::io::{Read, Write};
use std::sync::Arc;

use ashore_passthrough::Passthrough;
use ashore_server::{FindBy, Moved, Restored, Session, Unfound, load, prepare, save};
use ashore_vhost_user::device::{DeviceState, StateError};
use clap::{Args, ValueEnum};

/// Options that have virtiofsd's names, meanings and defaults.
#[derive(Args)]
pub(crate) struct MigrationArguments {
    /// How a guest's files are found again by the server that it is migrated to: by their paths in the shared directory
    /// (find-paths); or by their file handles, if both servers share the same directory of the same file system
    /// (file-handles). The source's choice
    #[arg(long, value_enum, value_name = "MODE", default_value_t = MigrationMode::FindPaths)]
    migration_mode: MigrationMode,

    /// If some of a guest's files are not found again: the migration fails (abort), or the guest gets errors when it uses them
    /// (guest-error). The destination's choice
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = MigrationOnError::Abort)]
    migration_on_error: MigrationOnError,

    /// With find-paths, and if both servers share the same directory of the same file system: each path has to lead to the very
    /// same file there. The source's choice
    #[arg(long)]
    migration_verify_handles: bool,

    /// Taken for virtiofsd's sake, and not needed: paths are looked for when the guest has stopped, and each is tried
    #[arg(long, hide_short_help = true)]
    _migration_confirm_paths: bool,
}

/// How files are found again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum MigrationMode {
    /// By path.
    FindPaths,
    /// By file handle.
    FileHandles,
}

/// What to do about those that are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum MigrationOnError {
    /// Nothing moves.
    Abort,
    /// The guest moves, and hears of it.
    GuestError,
}

impl MigrationArguments {
    fn find_by(&self) -> FindBy {
        match self.migration_mode {
            MigrationMode::FindPaths => FindBy::Path { verify: self.migration_verify_handles },
            MigrationMode::FileHandles => FindBy::Handle,
        }
    }

    fn unfound(&self) -> Unfound {
        match self.migration_on_error {
            MigrationOnError::Abort => Unfound::Abort,
            MigrationOnError::GuestError => Unfound::TellTheClient,
        }
    }

    /// The state that a VMM moves.
    pub(crate) fn state_of(&self, session: &Arc<Session<Passthrough>>) -> SessionState {
        SessionState { session: Arc::clone(session), by: self.find_by(), unfound: self.unfound() }
    }
}

/// What is kept for a guest, on its way to another server or from one.
pub(crate) struct SessionState {
    session: Arc<Session<Passthrough>>,
    by: FindBy,
    unfound: Unfound,
}

impl DeviceState for SessionState {
    fn prepare(&self) {
        prepare(&self.session);
    }

    fn save(&self, into: &mut dyn Write) -> Result<(), StateError> {
        let Moved { nodes, open } = save(&self.session, self.by, into)?;
        tracing::info!("migration: {nodes} nodes and {open} open files were told to another server");
        Ok(())
    }

    fn load(&self, from: &mut dyn Read) -> Result<(), StateError> {
        match load(&self.session, self.unfound, from)? {
            Some(Restored { found, lost: 0 }) => {
                tracing::info!("migration: going on with {found} nodes and open files of another server");
            }
            Some(Restored { found, lost }) => tracing::warn!(
                "migration: going on with {found} nodes and open files of another server; {lost} were not found, and are stale"
            ),
            None => tracing::info!("migration: the guest had mounted nothing"),
        }
        Ok(())
    }
}
