//! `ashore ls`, `cat`, `stat`, `sync` and `cp`: a share looked at and changed through its own socket, without a VM.
//!
//! Each connects, does its work, and takes leave in the end, whatever came of the work. Those that only look mount
//! read-only, so that they change nothing and make nobody sync.

mod copy;

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use ashore_client::{Client, FileType, Metadata};
use clap::Args;

use crate::logging::{self, LogLevel};

pub(crate) use copy::{CopyArguments, copy};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

#[derive(Args)]
struct Server {
    /// The socket of a running server, `ashore serve` or any other of virtio-fs over vhost-user
    #[arg(long, value_name = "PATH", alias = "socket-path")]
    socket: PathBuf,
}

#[derive(Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    server: Server,

    /// Also kind, permissions, names, owner, group, size and time of the last change (UTC)
    #[arg(short)]
    long: bool,

    /// A path in the share
    #[arg(default_value = "/")]
    path: PathBuf,
}

#[derive(Args)]
pub(crate) struct PathArguments {
    #[command(flatten)]
    server: Server,

    /// A path in the share
    path: PathBuf,
}

#[derive(Args)]
pub(crate) struct SyncArguments {
    #[command(flatten)]
    server: Server,
}

/// Whether the work of a mount changes anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Look,
    Change,
}

impl Server {
    /// Connects, works, and takes leave. An error of the work matters more than one of the leave.
    fn mounted<T>(
        &self,
        access: Access,
        work: impl FnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // What goes wrong is the error that is returned; that a server agrees to less than was asked for is no news.
        logging::start(LogLevel::Error);
        let client = Client::options().read_only(access == Access::Look).connect(&self.socket)?;
        let done = work(&client);
        let left = client.unmount();
        let done = done?;
        left.with_context(|| {
            let socket = self.socket.display();
            format!("the connection to {socket} did not end well; some changes may be lost")
        })?;
        Ok(done)
    }
}

/// Prints the names in a directory, or of a file.
pub(crate) fn list(arguments: ListArguments) -> anyhow::Result<ExitCode> {
    let ListArguments { server, long, path } = arguments;
    let text = server.mounted(Access::Look, |client| {
        let mut text = Vec::new();
        for name in names(client, &path)? {
            // What is not a directory is the only name in its own list.
            let place = if name == path { path.clone() } else { path.join(&name) };
            if long {
                write_long(client, &place, &mut text)?;
            }
            write_name(&mut text, name.as_os_str());
            if long && let Ok(target) = client.read_link(&place) {
                text.extend_from_slice(b" -> ");
                write_name(&mut text, target.as_os_str());
            }
            text.push(b'\n');
        }
        Ok(text)
    })?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn names(client: &Client, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot list {}", path.display());
    if !client.metadata(path).with_context(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = client.read_dir(path).with_context(failed)?;
    let mut names: Vec<PathBuf> = entries.iter().map(|entry| entry.file_name().into()).collect();
    names.sort();
    Ok(names)
}

fn write_long(client: &Client, path: &Path, text: &mut Vec<u8>) -> anyhow::Result<()> {
    let about =
        client.symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let (mode, changed) = (mode_letters(&about), Moment(about.modified()));
    let (names, owner, group, bytes) = (about.nlink(), about.uid(), about.gid(), about.len());
    write!(text, "{mode} {names:>3} {owner:>5} {group:>5} {bytes:>12} {changed} ")?;
    Ok(())
}

/// Prints what is in a file.
pub(crate) fn cat(arguments: PathArguments) -> anyhow::Result<ExitCode> {
    let PathArguments { server, path } = arguments;
    server.mounted(Access::Look, |client| {
        let failed = || format!("cannot read {}", path.display());
        let file = client.open(&path).with_context(failed)?;
        let (mut chunk, mut offset) = (vec![0; CHUNK], 0);
        loop {
            let read = file.read_at(&mut chunk, offset).with_context(failed)?;
            if read == 0 || !print(&chunk[..read])? {
                return Ok(ExitCode::SUCCESS);
            }
            offset += read as u64;
        }
    })
}

/// Prints what is known about a path, of the link if it is one.
pub(crate) fn stat(arguments: PathArguments) -> anyhow::Result<ExitCode> {
    let PathArguments { server, path } = arguments;
    let text = server.mounted(Access::Look, |client| {
        let failed = || format!("cannot look at {}", path.display());
        let about = client.symlink_metadata(&path).with_context(failed)?;
        let mut text = b"path:     ".to_vec();
        write_name(&mut text, path.as_os_str());
        writeln!(text, "\nkind:     {}", kind(&about))?;
        if about.file_type() == FileType::Symlink {
            text.extend_from_slice(b"target:   ");
            write_name(&mut text, client.read_link(&path).with_context(failed)?.as_os_str());
            text.push(b'\n');
        }
        writeln!(text, "size:     {} bytes, {} allocated", about.len(), about.blocks().saturating_mul(512))?;
        writeln!(text, "mode:     {:04o} ({})", about.mode() & 0o7777, mode_letters(&about))?;
        writeln!(text, "owner:    {}, group {}", about.uid(), about.gid())?;
        writeln!(text, "inode:    {}, {} names", about.ino(), about.nlink())?;
        writeln!(text, "modified: {} UTC", Moment(about.modified()))?;
        writeln!(text, "changed:  {} UTC", Moment(about.changed()))?;
        writeln!(text, "accessed: {} UTC", Moment(about.accessed()))?;
        Ok(text)
    })?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Has the server make everything stable.
pub(crate) fn sync(arguments: SyncArguments) -> anyhow::Result<ExitCode> {
    arguments.server.mounted(Access::Change, |client| {
        client
            .sync()
            .context("the sync failed, and what was changed may not be stable; look at the server's log")
    })?;
    print(b"all that was changed is stable\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints to standard output; `false`: nobody reads it any more, which is no error.
fn print(text: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// A name as it is, but on a terminal without what would steer it: names come from the server.
fn write_name(text: &mut Vec<u8>, name: &OsStr) {
    if !io::stdout().is_terminal() {
        return text.extend_from_slice(name.as_bytes());
    }
    let shown: String =
        name.to_string_lossy().chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    text.extend_from_slice(shown.as_bytes());
}

fn kind(about: &Metadata) -> &'static str {
    match about.mode() & 0o170_000 {
        0o100_000 => "regular file",
        0o040_000 => "directory",
        0o120_000 => "symbolic link",
        0o020_000 => "character device",
        0o060_000 => "block device",
        0o010_000 => "pipe",
        0o140_000 => "socket",
        _ => "unknown",
    }
}

/// As ls(1) writes them.
fn mode_letters(about: &Metadata) -> String {
    let mode = about.mode();
    let first = match kind(about) {
        "regular file" => '-',
        "directory" => 'd',
        "symbolic link" => 'l',
        "character device" => 'c',
        "block device" => 'b',
        "pipe" => 'p',
        "socket" => 's',
        _ => '?',
    };
    let mut letters = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    letters
}

/// A time, shown to the second in UTC.
struct Moment(SystemTime);

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = match self.0.duration_since(UNIX_EPOCH) {
            Ok(since) => i128::from(since.as_secs()),
            Err(before) => -i128::from(before.duration().as_secs()),
        };
        let (year, month, day) = date(seconds.div_euclid(86_400));
        let second = seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// The date of a day, counted from 1970-01-01. Years are taken to begin in March, so that the leap day comes last.
fn date(day: i128) -> (i128, i128, i128) {
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i128::from(month <= 2), month, day)
}

/// A name that a server said is in a directory. One that leads elsewhere must not be followed.
fn is_plain(name: &OsString) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.as_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| Moment(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_709_251_199), "2024-02-29 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(Moment(UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1969-12-31 23:59:59");
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_plain() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x"] {
            assert!(!is_plain(&OsString::from(name)), "{name:?}");
        }
        assert!(is_plain(&OsString::from("...")));
    }
}
