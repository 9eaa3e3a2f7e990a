//! The process that stays outside.
//!
//! Whoever started the server knows this process: its number stands in the file beside the socket, signals come to it, and it
//! takes the socket away in the end, which the server can no longer see.

use std::io;

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal, waitpid,
};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{ENDING, sys};

/// The process outside, and what it has to wait for.
#[derive(Debug)]
pub struct Keeper {
    child: Pid,
}

/// How the server ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With an exit code.
    Code(u8),
    /// By a signal: SIGSYS if it made a system call that `Seccomp::Kill` does not allow.
    Signal(i32),
}

impl Keeper {
    pub(crate) fn of(child: Pid) -> Keeper {
        Keeper { child }
    }

    /// Waits for the server, and hands on to it the signals that end it.
    pub fn wait(self) -> io::Result<Ended> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?;
        sys::let_in(&ENDING)?;
        loop {
            // First without waiting for a signal: the server may have ended before any could be received.
            if let Some((_, status)) = waitpid(Some(self.child), WaitOptions::NOHANG)? {
                return Ok(Ended::of(status));
            }
            let ending = signals.wait().filter(|signal| *signal != SIGCHLD);
            for signal in ending.filter_map(Signal::from_named_raw) {
                // It has ended, if there is nobody to hand it on to.
                let _ = kill_process(self.child, signal);
            }
        }
    }
}

impl Ended {
    fn of(status: WaitStatus) -> Ended {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Code(code as u8),
            (None, signal) => Ended::Signal(signal.unwrap_or_default()),
        }
    }
}

/// What becomes of the server if the keeper is killed: nobody would hand signals on to it, nor take its socket away.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}
