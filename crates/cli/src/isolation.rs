//! How `ashore serve` is kept away from its host.

use std::process::ExitCode;

use anyhow::{Context, bail};
use ashore_isolation::{CapabilityChanges, Ended, IdRange, Isolation, Keeper, Sandbox, Seccomp};
use clap::Args;
use rustix::process::{Resource, Rlimit};

/// Options that have virtiofsd's names, meanings and defaults.
#[derive(Args)]
pub(crate) struct IsolationArguments {
    /// What the process sees of its host: namespaces of its own, with the shared directory as root (namespace); the shared
    /// directory as root, for root alone (chroot); or everything (none)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Sandbox::Namespace)]
    pub(crate) sandbox: Sandbox,

    /// What becomes of the process if it makes a system call it never needs: it ends (kill), the kernel logs it (log), it
    /// gets SIGSYS (trap), or nothing (none)
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = Seccomp::Kill)]
    seccomp: Seccomp,

    /// Capabilities to keep beside those that are needed, or not to keep of them: +sys_admin:-mknod
    #[arg(
        long,
        value_name = "CHANGES",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(crate) modcaps: CapabilityChanges,

    /// Users of the host that the sandbox's user namespace has, as :NAMESPACE:HOST:COUNT:. May be given several times.
    /// Without it: who starts the server, if that is not root
    #[arg(long, value_name = "RANGE")]
    uid_map: Vec<IdRange>,

    /// Groups, likewise
    #[arg(long, value_name = "RANGE")]
    gid_map: Vec<IdRange>,

    /// How many files the process may have open; 0: as many as whoever starts it allows
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rlimit_nofile: u64,
}

impl IsolationArguments {
    pub(crate) fn isolation(&self) -> Isolation {
        Isolation {
            sandbox: self.sandbox,
            seccomp: self.seccomp,
            capabilities: self.modcaps,
            uid_map: self.uid_map.clone(),
            gid_map: self.gid_map.clone(),
        }
    }
}

/// How many files the process may have open; 0: all that it may have.
pub(crate) fn limit_open_files(wanted: u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    let raise = || rustix::process::setrlimit(Resource::Nofile, most);
    let outcome = match wanted {
        0 => raise(),
        _ => {
            let exactly = Rlimit { current: Some(wanted), maximum: Some(wanted) };
            rustix::process::setrlimit(Resource::Nofile, exactly).or_else(|error| raise().and(Err(error)))
        }
    };
    if let Err(error) = outcome {
        let now = rustix::process::getrlimit(Resource::Nofile).current;
        tracing::warn!("the process may have {now:?} files open, and no others: {error}");
    }
}

/// Outside the sandbox: waits for the server, and ends as it did.
pub(crate) fn wait_for_server(keeper: Keeper) -> anyhow::Result<ExitCode> {
    match keeper.wait().context("the server cannot be waited for")? {
        Ended::Code(code) => Ok(ExitCode::from(code)),
        Ended::Signal(signal) if signal == signal_hook::consts::SIGSYS => bail!(
            "the server was ended for a system call that its filter does not allow; if nobody attacked it this is our \
             mistake: `--seccomp log` goes on, and the kernel's log has the number of the call"
        ),
        Ended::Signal(signal) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            bail!(
                "the server was ended by {name} ({signal}) without a last sync; what was changed may not be stable"
            )
        }
    }
}
