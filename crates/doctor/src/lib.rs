//! The checks that a promise is kept, for any virtio-fs server over vhost-user.
//!
//! ```text
//!     run()               lib.rs        what is examined, and in which order
//!       Check             catalog.rs    every check in words: done, means, to do
//!       checks            checks/       and in deeds, a file for each promise
//!         Ward            ward.rs       starts servers and connects to them
//!           Server        server.rs     a process
//!           Line          line.rs       a connection, and files of ours in the share
//!         Below           below.rs      the look below: pages that only the host's memory has
//!         Disk            disk.rs       file systems on image files, for root
//!         Image           image.rs      the disk itself, searched for blocks that were written
//!       Recording         timeline.rs   one sync among writers, drawn by svg.rs
//!         Watch           watch.rs      threads of the server that sync the host
//!         Place           place.rs      what a directory stands on
//!     mounted::run()      mounted.rs    the other way in: a directory, from the application's side; kernel.rs
//!     Report              report.rs     the table, JSON, and the exit code
//! ```
//!
//! A check never says that something is durable which it could not look at. What it cannot look at it calls "could not
//! tell", and what it concludes from time or versions it marks as inferred.

#![deny(unsafe_code)]

mod below;
mod catalog;
mod checks;
mod disk;
mod image;
mod kernel;
mod line;
mod mounted;
mod place;
mod report;
mod server;
mod svg;
#[allow(unsafe_code, reason = "cachestat(2) has no safe wrapper")]
mod sys;
mod timeline;
mod ward;
mod watch;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::checks::Carry;
use crate::server::Recipe;
use crate::ward::{Source, Ward};

pub use crate::catalog::{CHECKS, Check};
pub use crate::report::{Finding, Promise, Report, Seen, Verdict};

/// Checks that mount file systems of their own.
const NEED_ROOT: [&str; 3] = ["other-disks", "power-cut", "lost-write"];

/// What to examine. Without any of it: our own server.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DoctorArguments {
    /// Examine the server that listens at this socket. Most servers end when their client, which is the doctor now, leaves
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    pub socket: Option<PathBuf>,

    /// Where on this host the directory is that the server at --socket shares
    #[arg(long, value_name = "DIR", requires = "socket")]
    pub dir: Option<PathBuf>,

    /// Examine a server that is started by this command, on a directory of the doctor's. {dir} and {socket} stand for the
    /// directory and the socket
    #[arg(long, value_name = "CMD")]
    pub command: Option<String>,

    /// Examine what is mounted at this directory, from the side of an application: virtio-fs in a guest, 9p, NFS, FUSE, or
    /// a local disk
    #[arg(long, value_name = "DIR", conflicts_with_all = ["command", "socket", "timeline", "scratch"])]
    pub path: Option<PathBuf>,

    /// Where to make that directory; otherwise the first of ~/.cache, ~, /var/tmp and here that can be stable
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    pub scratch: Option<PathBuf>,

    /// The image file or block device (up to 64 GiB) that the shared file system stands on: what was synced is looked for on it
    #[arg(long, value_name = "IMAGE", conflicts_with = "path")]
    pub disk: Option<PathBuf>,

    /// Draw one sync among writers into this file (SVG): what it waited for, what not, and what it missed
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,

    /// Leave out what needs root, also if this is root
    #[arg(long)]
    pub as_user: bool,

    /// Only checks whose name contains one of these
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
}

/// Told what happens while it does.
pub trait Observer {
    /// A check begins.
    fn begins(&mut self, check: &Check);
    /// It has ended.
    fn ended(&mut self, finding: &Finding);
    /// Whether to stop before the next check, and clean up.
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// Examines; what was found is the report. Fails if there is nothing to examine: no server, or none that can be reached.
pub fn run(arguments: &DoctorArguments, observer: &mut dyn Observer) -> Result<Report> {
    if let Some(path) = &arguments.path {
        return mounted::run(path, |id| arguments.has_chosen(id), observer);
    }
    let chosen: Vec<_> = checks::SERVER.iter().filter(|(id, _)| arguments.has_chosen(id)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = CHECKS.iter().map(|check| check.id).collect();
        bail!("--only names no check; there are: {}", names.join(", "));
    }
    let mut ward = arguments.ward()?;
    // A server that cannot be reached is no finding.
    ward.line()?;
    checks::need_that_disk(&ward)?;
    let mut findings = Vec::new();
    for (id, carry) in chosen {
        if observer.is_interrupted() {
            bail!("interrupted");
        }
        findings.push(carry_out(id, *carry, &mut ward, observer));
    }
    if let Some(file) = &arguments.timeline {
        timeline::write(&mut ward, file).context("the timeline was not drawn")?;
    }
    findings.sort_by_key(|finding| place_in_catalog(finding.check));
    Ok(Report { subject: ward.subject(), findings })
}

fn carry_out(id: &str, carry: Carry, ward: &mut Ward, observer: &mut dyn Observer) -> Finding {
    let check = catalog::find(id);
    observer.begins(check);
    let seen = carry(ward).unwrap_or_else(|error| Seen::unknown(format!("{error:#}")));
    let finding = Finding { check, seen };
    observer.ended(&finding);
    finding
}

fn place_in_catalog(check: &Check) -> usize {
    CHECKS.iter().position(|other| other.id == check.id).unwrap_or(CHECKS.len())
}

impl DoctorArguments {
    fn has_chosen(&self, id: &str) -> bool {
        if self.as_user && NEED_ROOT.contains(&id) || id == checks::ON_DISK && self.disk.is_none() {
            return false;
        }
        self.only.is_empty() || self.only.iter().any(|text| id.contains(text.as_str()))
    }

    fn ward(&self) -> Result<Ward> {
        let source = match (&self.socket, &self.command) {
            (Some(socket), _) => Source::Running { socket: socket.clone(), directory: self.dir.clone() },
            (None, Some(command)) => Source::Start(Recipe::Command(command.clone())),
            (None, None) => Source::Start(Recipe::Ours),
        };
        let place = match &self.scratch {
            Some(parent) => place::scratch_in(parent)?,
            None => place::scratch()?,
        };
        Ward::new(source, place, self.disk.clone())
    }
}
