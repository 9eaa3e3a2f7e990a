//! What a file server gives up before it listens to a guest.
//!
//! A guest that finds a hole in the server has all that the server has. So the server keeps what it needs and nothing else,
//! in this order:
//!
//! 1. [`Isolation::enter`] splits the process, while it has one thread. The *keeper* stays where it is: it hands signals on,
//!    waits, and ends as the server did. The *server* gets namespaces of its own (`--sandbox namespace`).
//! 2. The server opens what it shares while it can still see the host.
//! 3. [`Inside::close`] makes the shared directory its root, and drops capabilities. Where inodes are not held by file
//!    handles, Landlock (Linux 5.13) allows files below the shared directory alone.
//! 4. [`Confined::finish`] allows the system calls that are used, and ends the process at any other.
//!
//! | file | what it is about |
//! |---|---|
//! | `namespaces.rs` | namespaces, the new root |
//! | `ids.rs` | which users and groups of the host a user namespace has |
//! | `keeper.rs` | the process that stays outside |
//! | `capabilities.rs` | which capabilities are kept |
//! | `paths.rs` | Landlock |
//! | `system_calls.rs` | which system calls are allowed, and why |
//! | `sys.rs` | fork(2), unshare(2) and signal masks, with all `unsafe` of this crate |
//!
//! # Limits
//!
//! - A server that may open files by handle (`CAP_DAC_READ_SEARCH`, kept if handles are used) can reach every file of the host
//!   file system that the share is on, if it is taken over: open_by_handle_at(2) knows no root. Shares for guests that are
//!   not trusted want a file system of their own, or no handles.
//! - `chroot` keeps the host's namespaces: the process sees its network, and others' processes by their numbers.

#![deny(unsafe_code)]

mod capabilities;
mod ids;
mod keeper;
mod namespaces;
mod paths;
mod sys;
mod system_calls;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

pub use capabilities::{CapabilityChanges, CapabilityError};
pub use ids::{IdRange, IdRangeError};
pub use keeper::{Ended, Keeper};

/// How the process is kept away from its host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Sandbox {
    /// Namespaces of its own for mounts, processes and network, and for users if it is not root; the shared directory is all
    /// it sees of the file system.
    #[default]
    Namespace,
    /// The shared directory is its root; for root alone.
    Chroot,
    /// Not at all.
    None,
}

/// What becomes of the process if it makes a system call that it never needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Seccomp {
    /// Nothing.
    None,
    /// It ends.
    #[default]
    Kill,
    /// The kernel logs it.
    Log,
    /// It gets SIGSYS, to be looked at in a debugger.
    Trap,
}

/// Signals that end a server in order; held back from the split until the server can receive them.
const ENDING: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Why the process cannot be isolated.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// Namespaces are not to be had.
    #[error(
        "--sandbox namespace: no namespaces can be made: {source}; allow user namespaces, start the server as root, or use \
         --sandbox none and have what starts it isolate it"
    )]
    NoNamespaces {
        /// Why.
        source: io::Error,
    },
    /// chroot(2) is for root.
    #[error("--sandbox chroot needs root; use --sandbox namespace")]
    ChrootNeedsRoot,
    /// Users can be mapped in a user namespace only.
    #[error("--uid-map and --gid-map need --sandbox namespace")]
    MapsNeedNamespace,
    /// The kernel, or newuidmap(1) or newgidmap(1), refused a map.
    #[error("{option} is refused: {why}")]
    MapRefused {
        /// --uid-map or --gid-map.
        option: &'static str,
        /// What was said.
        why: String,
    },
    /// The shared directory cannot become the root.
    #[error(
        "{path} cannot be made the root of the server: {source}; share a directory, or use --sandbox none"
    )]
    NoRoot {
        /// The shared directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else that should work does not.
    #[error("the server cannot isolate itself: {what}: {source}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// The filter of system calls cannot be made.
    #[error("--seccomp: {why}; use --seccomp none")]
    NoFilter {
        /// Why.
        why: String,
    },
}

/// How a server is isolated.
#[derive(Clone, Debug, Default)]
pub struct Isolation {
    /// Namespaces and root.
    pub sandbox: Sandbox,
    /// System calls.
    pub seccomp: Seccomp,
    /// Capabilities kept beside, or not kept of, those that are needed.
    pub capabilities: CapabilityChanges,
    /// Users of the host that the server's user namespace has; empty: the user who starts it.
    pub uid_map: Vec<IdRange>,
    /// Groups, likewise.
    pub gid_map: Vec<IdRange>,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that stays where it was. It has nothing to do but [`Keeper::wait`].
    Outside(Keeper),
    /// The one that serves. Without a sandbox there is only this.
    Inside(Inside),
}

/// A server that still sees its host.
#[derive(Debug)]
#[must_use = "nothing is given up before `close` and `finish`"]
pub struct Inside {
    isolation: Isolation,
    shared_dir: PathBuf,
    /// Its user namespace has its own user alone.
    single_user: bool,
    kept: Vec<OwnedFd>,
}

/// A server that sees its share alone.
#[derive(Debug)]
#[must_use = "system calls are not filtered, and signals not received, before `finish`"]
pub struct Confined {
    seccomp: Seccomp,
}

impl Isolation {
    /// Splits the process and gives the server its namespaces. To be called while the process has one thread: another would
    /// not be in both processes, and no user namespace can be had beside it.
    pub fn enter(self, shared_dir: &Path) -> Result<Side, IsolationError> {
        let maps = !self.uid_map.is_empty() || !self.gid_map.is_empty();
        if maps && self.sandbox != Sandbox::Namespace {
            return Err(IsolationError::MapsNeedNamespace);
        }
        let root = rustix::process::geteuid().is_root();
        if self.sandbox == Sandbox::Chroot && !root {
            return Err(IsolationError::ChrootNeedsRoot);
        }
        let inside = Inside {
            single_user: self.sandbox == Sandbox::Namespace && !root && !maps,
            shared_dir: std::fs::canonicalize(shared_dir).unwrap_or_else(|_| shared_dir.to_owned()),
            isolation: self,
            kept: Vec::new(),
        };
        inside.split(maps || !root)
    }
}

impl Inside {
    fn split(self, user_namespace: bool) -> Result<Side, IsolationError> {
        let Isolation { sandbox, uid_map, gid_map, .. } = &self.isolation;
        if *sandbox == Sandbox::None {
            return Ok(Side::Inside(self));
        }
        if *sandbox == Sandbox::Namespace {
            namespaces::for_children(user_namespace, uid_map, gid_map)?;
        }
        // Until the server receives them they wait for it: the first process of a namespace would never get them.
        sys::hold(&ENDING).map_err(failed("signals cannot be held back"))?;
        match sys::fork().map_err(failed("fork"))? {
            Some(child) => Ok(Side::Outside(Keeper::of(child))),
            None => {
                if *sandbox == Sandbox::Namespace {
                    namespaces::enter(&self.shared_dir, user_namespace)?;
                }
                if self.single_user {
                    // There is nobody to become. The share finds out when it is opened.
                    capabilities::drop_switching().map_err(failed("capabilities cannot be dropped"))?;
                }
                // Last: the kernel forgets it when a process gets other ids.
                keeper::end_with_parent().map_err(failed("ending with the parent"))?;
                Ok(Side::Inside(self))
            }
        }
    }

    /// Whether another process stays outside. It takes away what the server cannot see any more.
    pub fn has_keeper(&self) -> bool {
        self.isolation.sandbox != Sandbox::None
    }

    /// A directory outside the share that the server may still use afterwards, by the descriptor alone: its parents cannot be
    /// reached from there if it has namespaces.
    pub fn keep_directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let directory = match self.isolation.sandbox {
            Sandbox::Namespace => namespaces::detached(path)?,
            Sandbox::Chroot | Sandbox::None => namespaces::open_path(path)?,
        };
        self.kept.push(directory.try_clone()?);
        Ok(directory)
    }

    /// Makes the shared directory the root, and keeps only the capabilities that are needed. To be called by the only thread:
    /// others would keep theirs. `by_handle`: inodes are opened by file handles.
    pub fn close(self, by_handle: bool) -> Result<Confined, IsolationError> {
        let Isolation { sandbox, seccomp, capabilities, .. } = &self.isolation;
        let own_process = namespaces::detached(Path::new("/proc/self"))
            .or_else(|_| namespaces::open_path(Path::new("/proc/self")));
        match sandbox {
            Sandbox::Namespace => namespaces::make_root(&self.shared_dir)?,
            Sandbox::Chroot => namespaces::change_root(&self.shared_dir)?,
            Sandbox::None => {}
        }
        capabilities::keep(capabilities, by_handle).map_err(failed("capabilities cannot be dropped"))?;
        // A file that was opened by its handle has no path that Landlock could judge.
        if *sandbox != Sandbox::None && !by_handle {
            paths::restrict(&self.kept, own_process.ok().as_ref());
        }
        Ok(Confined { seccomp: *seccomp })
    }
}

impl Confined {
    /// Filters the system calls of all threads, and lets the signals in that were held back since the split.
    pub fn finish(self) -> Result<(), IsolationError> {
        sys::let_in(&ENDING).map_err(failed("signals cannot be let in"))?;
        system_calls::filter(self.seccomp)
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> IsolationError {
    move |source| IsolationError::Failed { what, source: source.into() }
}
