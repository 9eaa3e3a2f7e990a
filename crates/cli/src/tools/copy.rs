//! `ashore cp`: files and trees into a share, and out of it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use ashore_client::{Client, File, FileType, OpenOptions};
use clap::{Args, error::ErrorKind};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{Access, CHUNK, Server, is_plain, print};

#[derive(Args)]
pub(crate) struct CopyArguments {
    #[command(flatten)]
    server: Server,

    /// Directories too, with all that is in them; symbolic links stay symbolic links
    #[arg(short, long)]
    recursive: bool,

    /// What to copy. A path in the share has a colon before it, as in :notes/today
    #[arg(value_name = "SRC")]
    from: Side,

    /// Where to; into it, if it is a directory. Either this or SRC is in the share
    #[arg(value_name = "DST")]
    to: Side,
}

/// A path on this machine, or in the share.
#[derive(Clone)]
enum Side {
    Local(PathBuf),
    Share(PathBuf),
}

impl From<OsString> for Side {
    fn from(argument: OsString) -> Side {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        match argument.as_bytes().strip_prefix(b":") {
            // The colon alone is the whole share.
            Some(b"") => Side::Share("/".into()),
            Some(path) => Side::Share(OsString::from_vec(path.to_vec()).into()),
            None => Side::Local(argument.into()),
        }
    }
}

/// Copies, and after copying into the share syncs.
pub(crate) fn copy(arguments: CopyArguments) -> anyhow::Result<ExitCode> {
    let CopyArguments { server, recursive, from, to } = arguments;
    let access = match (&from, &to) {
        (Side::Share(_), Side::Local(_)) => Access::Look,
        (Side::Local(_), Side::Share(_)) => Access::Change,
        _ => wrong_use("exactly one of SRC and DST is in the share and begins with a colon, as in :dir/file"),
    };
    let mut copying = Copying { recursive, ..Copying::default() };
    server.mounted(access, |client| {
        let (from, to) = (Place::new(client, from), Place::new(client, to));
        copying.bar = bar(&from);
        let copied = copying.start(&from, to);
        copying.bar.finish_and_clear();
        copied?;
        if access == Access::Change {
            client
                .sync()
                .context("everything was copied, but the sync failed, so that it may not be stable")?;
        }
        Ok(())
    })?;
    let stable = if access == Access::Change { "; all of it is stable" } else { "" };
    print(format!("{copying}{stable}\n").as_bytes())?;
    Ok(if copying.skipped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wrong_use(message: &str) -> ! {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n")).exit()
}

/// A bar for a file, whose length is known; for a tree, what has been copied so far. Nothing where nobody looks.
fn bar(from: &Place<'_>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match from.look() {
        Ok(Some(Found { kind: FileType::File, length, .. })) => {
            (ProgressBar::new(length), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        }
        _ => (ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec} {wide_msg}"),
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What has been copied so far.
struct Copying {
    recursive: bool,
    bar: ProgressBar,
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    skipped: u64,
}

impl Default for Copying {
    fn default() -> Copying {
        let bar = ProgressBar::hidden();
        Copying { recursive: false, bar, files: 0, directories: 0, links: 0, bytes: 0, skipped: 0 }
    }
}

impl Copying {
    /// Copies what the user named, following a link as cp(1) does, unless whole trees are asked for.
    fn start(&mut self, from: &Place<'_>, to: Place<'_>) -> anyhow::Result<()> {
        let found = match self.recursive {
            true => from.look(),
            false => from.look_through(),
        };
        let found = found.with_context(|| format!("cannot look at {from}"))?;
        let found = found.with_context(|| format!("there is no {from}; check the path"))?;
        ensure!(
            found.kind != FileType::Directory || self.recursive,
            "{from} is a directory; copy it with -r"
        );
        let there = to.look_through().with_context(|| format!("cannot look at {to}"))?;
        let to = match (there, from.path().file_name()) {
            (Some(Found { kind: FileType::Directory, .. }), Some(name)) => to.child(name.to_owned()),
            _ => to,
        };
        self.copy(from, &found, &to)
    }

    fn copy(&mut self, from: &Place<'_>, found: &Found, to: &Place<'_>) -> anyhow::Result<()> {
        match found.kind {
            FileType::File => self.copy_file(from, found, to),
            FileType::Directory => self.copy_directory(from, found, to),
            FileType::Symlink => self.copy_link(from, to),
            FileType::Other => {
                eprintln!("ashore: {from} is a pipe, a socket or a device, and was left out");
                self.skipped += 1;
                Ok(())
            }
        }
    }

    fn copy_file(&mut self, from: &Place<'_>, found: &Found, to: &Place<'_>) -> anyhow::Result<()> {
        let mut source = from.reader().with_context(|| format!("cannot read {from}"))?;
        let mut target = to.writer(found.mode).with_context(|| format!("cannot make {to}"))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = source.read(&mut chunk).with_context(|| format!("cannot read {from}"))?;
            if read == 0 {
                break;
            }
            target.write_all(&chunk[..read]).with_context(|| format!("cannot write {to}"))?;
            self.bytes += read as u64;
            self.bar.inc(read as u64);
        }
        target.close().with_context(|| format!("cannot write {to}"))?;
        self.files += 1;
        Ok(())
    }

    fn copy_directory(&mut self, from: &Place<'_>, found: &Found, to: &Place<'_>) -> anyhow::Result<()> {
        // Not through a link: what is written into one that the other side made would land anywhere.
        match to.look().with_context(|| format!("cannot look at {to}"))? {
            Some(Found { kind: FileType::Directory, .. }) => {}
            Some(_) => bail!("{to} is there and is no directory; remove it, or copy to another name"),
            None => to.make_directory().with_context(|| format!("cannot make {to}"))?,
        }
        self.bar.set_message(from.to_string());
        for name in from.names().with_context(|| format!("cannot list {from}"))? {
            ensure!(
                is_plain(&name),
                "the server lists {name:?} in {from}, which is no name; do not trust it"
            );
            let (from, to) = (from.child(name.clone()), to.child(name));
            let found = from.look().with_context(|| format!("cannot look at {from}"))?;
            // It may have been removed since it was listed.
            if let Some(found) = found {
                self.copy(&from, &found, &to)?;
            }
        }
        self.directories += 1;
        // Last: a directory may forbid even its owner to write.
        to.set_mode(found.mode).with_context(|| format!("cannot set the permissions of {to}"))
    }

    fn copy_link(&mut self, from: &Place<'_>, to: &Place<'_>) -> anyhow::Result<()> {
        let target = from.link_target().with_context(|| format!("cannot read the link {from}"))?;
        to.make_link(&target).with_context(|| format!("cannot make the link {to}"))?;
        self.links += 1;
        Ok(())
    }
}

impl fmt::Display for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Copying { files, directories, links, bytes, skipped, .. } = *self;
        write!(f, "copied {files} files ({})", HumanBytes(bytes))?;
        for (count, what) in [(directories, "directories"), (links, "links")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if skipped > 0 {
            write!(f, ", left out {skipped}")?;
        }
        Ok(())
    }
}

/// What is at a place.
struct Found {
    kind: FileType,
    /// Permissions alone.
    mode: u32,
    length: u64,
}

impl Found {
    fn local(about: &fs::Metadata) -> Found {
        let kind = match about.file_type() {
            kind if kind.is_file() => FileType::File,
            kind if kind.is_dir() => FileType::Directory,
            kind if kind.is_symlink() => FileType::Symlink,
            _ => FileType::Other,
        };
        Found { kind, mode: about.permissions().mode() & 0o777, length: about.len() }
    }

    fn shared(about: &ashore_client::Metadata) -> Found {
        Found { kind: about.file_type(), mode: about.mode() & 0o777, length: about.len() }
    }
}

/// One end of a copy, or something below it.
enum Place<'a> {
    Local(PathBuf),
    Share(&'a Client, PathBuf),
}

impl<'a> Place<'a> {
    fn new(client: &'a Client, side: Side) -> Place<'a> {
        match side {
            Side::Local(path) => Place::Local(path),
            Side::Share(path) => Place::Share(client, path),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Place::Local(path) | Place::Share(_, path) => path,
        }
    }

    fn child(&self, name: OsString) -> Place<'a> {
        match self {
            Place::Local(path) => Place::Local(path.join(name)),
            Place::Share(client, path) => Place::Share(client, path.join(name)),
        }
    }

    /// What is there, a link being a link; `None` if nothing is.
    fn look(&self) -> io::Result<Option<Found>> {
        if_there(match self {
            Place::Local(path) => fs::symlink_metadata(path).map(|about| Found::local(&about)),
            Place::Share(client, path) => client.symlink_metadata(path).map(|about| Found::shared(&about)),
        })
    }

    /// What is where the path leads; `None` if nothing is.
    fn look_through(&self) -> io::Result<Option<Found>> {
        if_there(match self {
            Place::Local(path) => fs::metadata(path).map(|about| Found::local(&about)),
            Place::Share(client, path) => client.metadata(path).map(|about| Found::shared(&about)),
        })
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        match self {
            Place::Local(path) => fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect(),
            Place::Share(client, path) => {
                Ok(client.read_dir(path)?.iter().map(|entry| entry.file_name()).collect())
            }
        }
    }

    fn reader(&self) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Place::Local(path) => Box::new(fs::File::open(path)?),
            Place::Share(client, path) => Box::new(client.open(path)?),
        })
    }

    /// The file, emptied or new. On this machine never through a link: the share may have sent one by this name.
    fn writer(&self, mode: u32) -> io::Result<Target> {
        Ok(match self {
            Place::Local(path) => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(mode);
                options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
                Target::Local(options.open(path)?)
            }
            Place::Share(client, path) => {
                let options = OpenOptions::new().write(true).create(true).truncate(true).mode(mode);
                Target::Share(client.open_with(path, &options)?)
            }
        })
    }

    fn make_directory(&self) -> io::Result<()> {
        match self {
            // For its owner alone until it has its permissions.
            Place::Local(path) => fs::DirBuilder::new().mode(0o700).create(path),
            Place::Share(client, path) => client.create_dir(path),
        }
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        match self {
            Place::Local(path) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
            Place::Share(client, path) => client.set_mode(path, mode),
        }
    }

    fn link_target(&self) -> io::Result<PathBuf> {
        match self {
            Place::Local(path) => fs::read_link(path),
            Place::Share(client, path) => client.read_link(path),
        }
    }

    fn make_link(&self, target: &Path) -> io::Result<()> {
        match self {
            Place::Local(path) => symlink(target, path),
            Place::Share(client, path) => client.symlink(target, path),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Local(path) => write!(f, "{}", path.display()),
            Place::Share(_, path) => write!(f, ":{}", path.display()),
        }
    }
}

fn if_there(found: io::Result<Found>) -> io::Result<Option<Found>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A file that is being written.
enum Target {
    Local(fs::File),
    Share(File),
}

impl Target {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Target::Local(file) => file.write_all(data),
            Target::Share(file) => file.write_all(data),
        }
    }

    /// Closes it; what a write behind our back ran into is an error here.
    fn close(self) -> io::Result<()> {
        match self {
            Target::Local(_) => Ok(()),
            Target::Share(file) => file.close(),
        }
    }
}
