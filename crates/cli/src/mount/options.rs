//! Options as mount(8) and /etc/fstab have them, and what mount(8) expects of a helper.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use ashore_dev_fuse::{MountOptions, Transport};
use ashore_passthrough::{CachePolicy, SyncScope};
use clap::{Args, ValueEnum};

use super::{MountArguments, READY};

/// The name by which mount(8) runs us for `mount -t ashore`.
const HELPER: &str = "mount.ashore";
/// In the environment of the process that goes on in the background.
const BACKGROUND_VARIABLE: &str = "ASHORE_IN_BACKGROUND";

/// When requests are to come through io_uring.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IoUring {
    Auto,
    Always,
    Never,
}

impl From<IoUring> for Transport {
    fn from(when: IoUring) -> Transport {
        match when {
            IoUring::Auto => Transport::Any,
            IoUring::Always => Transport::IoUring,
            IoUring::Never => Transport::Device,
        }
    }
}

/// What only `-o` can say.
#[derive(Args, Debug, Default)]
pub(crate) struct More {
    #[arg(skip)]
    suid: bool,
    #[arg(skip)]
    dev: bool,
    #[arg(skip)]
    noexec: bool,
    #[arg(skip)]
    source: Option<String>,
    #[arg(skip)]
    subtype: Option<String>,
    #[arg(skip)]
    max_read: Option<u32>,
}

impl More {
    pub(super) fn apply(&self, options: MountOptions) -> MountOptions {
        let mut options = options.suid(self.suid).dev(self.dev).noexec(self.noexec);
        if let Some(source) = &self.source {
            options = options.source(source);
        }
        if let Some(subtype) = &self.subtype {
            options = options.subtype(subtype);
        }
        if let Some(bytes) = self.max_read {
            options = options.max_read(bytes);
        }
        options
    }
}

impl MountArguments {
    /// Takes what `-o` says into its places.
    pub(super) fn take_options(&mut self) -> anyhow::Result<()> {
        for option in std::mem::take(&mut self.options) {
            self.take_option(&option)?;
        }
        Ok(())
    }

    fn take_option(&mut self, option: &str) -> anyhow::Result<()> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "ro" | "readonly" => self.readonly = true,
            "rw" => self.readonly = false,
            "suid" | "nosuid" => self.more.suid = name == "suid",
            "dev" | "nodev" => self.more.dev = name == "dev",
            "exec" | "noexec" => self.more.noexec = name == "noexec",
            "allow_other" => self.allow_other = true,
            "owner_only" => self.owner_only = true,
            "fsname" => self.more.source = Some(value.to_owned()),
            "subtype" => self.more.subtype = Some(value.to_owned()),
            "max_read" => self.more.max_read = Some(number(name, value)?),
            "threads" => self.threads = Some(number(name, value)?),
            "cache" => self.cache = word::<CachePolicy>(name, value)?,
            "negative_timeout" => self.negative_timeout = number(name, value)?,
            "sync_scope" => self.sync_scope = word::<SyncScope>(name, value)?,
            "xattr" => self.xattr = true,
            "require_durable" => self.require_durable = true,
            "writeback" => self.writeback = true,
            "fsync_only" => self.fsync_only = true,
            "recover" => self.recover = true,
            "io_uring" => self.io_uring = word::<IoUring>(name, value)?,
            "no_passthrough" => self.no_passthrough = true,
            // Always so.
            "default_permissions" | "defaults" => {}
            // For mount(8) and systemd, which hand them on.
            "auto" | "noauto" | "nofail" | "_netdev" | "user" | "nouser" | "users" | "group" | "owner" => {}
            "" => {}
            _ if name.starts_with("x-") || name.starts_with("X-") || name.starts_with("comment") => {}
            _ => bail!("-o {option}: there is no such option; ashore mount --help lists those there are"),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T> {
    value
        .parse()
        .ok()
        .with_context(|| format!("-o {name}={value}: a number is expected, for example {name}=4"))
}

fn word<T: ValueEnum>(name: &str, value: &str) -> anyhow::Result<T> {
    T::from_str(value, false).map_err(|_| {
        let words = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let words: Vec<_> = words.map(|word| word.get_name().to_owned()).collect();
        anyhow::anyhow!("-o {name}={value}: one of {} is expected", words.join(", "))
    })
}

/// What to do if we were run as mount(8) runs its helpers: `mount.ashore SOURCE MOUNTPOINT [-sfnv] [-N NS] [-o OPTIONS]`. The
/// arguments of `ashore mount` that mean the same, or `None` if we were not.
pub(crate) fn helper(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    if Path::new(&program).file_name() != Some(OsStr::new(HELPER)) {
        return None;
    }
    let mut translated: Vec<OsString> = vec![program, "mount".into()];
    // mount(8) waits for its helper; only a person who asks wants to wait for the unmounting as well.
    translated.push("--background".into());
    for argument in arguments {
        match argument.to_str() {
            // Sloppy, no mtab, verbose: nothing to us.
            Some("-s" | "-n" | "-v") => {}
            _ => translated.push(argument),
        }
    }
    Some(translated)
}

/// Runs this command once more, in a session of its own, and returns when it has mounted, or has failed to.
pub(super) fn in_background() -> anyhow::Result<ExitCode> {
    let itself = env::current_exe().context("the program's own file cannot be found")?;
    let arguments = helper(env::args_os()).unwrap_or_else(|| env::args_os().collect());
    let arguments = arguments.into_iter().skip(1).filter(|argument| argument != "--background");
    let mut child = Command::new(itself)
        .args(arguments)
        .env(BACKGROUND_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the process for the background cannot be started")?;
    let output = child.stdout.take().context("the output of the background process is not there")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("nothing was heard from the background process")?;
    if line.starts_with(READY) {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why.
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.filter(|code| *code != 0).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// In the background no terminal's signals are for us.
pub(super) fn leave_terminal() {
    if env::var_os(BACKGROUND_VARIABLE).is_some()
        && let Err(error) = rustix::process::setsid()
    {
        tracing::debug!("no session of its own: {error}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mount: MountArguments,
    }

    fn taken(options: &str) -> anyhow::Result<MountArguments> {
        let mut arguments = Line::parse_from(["ashore", "/srv", "/mnt", "-o", options]).mount;
        arguments.take_options().map(|()| arguments)
    }

    #[test]
    fn options_of_fstab_go_to_their_places() {
        assert_eq!(taken("io_uring=never").unwrap().io_uring, IoUring::Never);
        let arguments =
            taken("ro,nosuid,noexec,cache=always,threads=3,max_read=4096,x-systemd.automount,_netdev")
                .unwrap();
        assert!(arguments.readonly && arguments.more.noexec && !arguments.more.suid);
        assert_eq!((arguments.cache, arguments.threads()), (CachePolicy::Always, 3));
        assert_eq!(arguments.more.max_read, Some(4096));
    }

    #[test]
    fn an_option_that_is_not_there_is_refused_with_its_name() {
        let refused = |options| taken(options).err().unwrap().to_string();
        assert!(refused("ro,sparkle").contains("sparkle"));
        assert!(refused("cache=sometimes").contains("auto"));
        assert!(refused("threads=many").contains("a number is expected"));
    }

    #[test]
    fn mount_runs_its_helper_in_the_background_and_keeps_its_options() {
        let line = |words: &[&str]| helper(words.iter().map(OsString::from));
        let expected = ["/sbin/mount.ashore", "mount", "--background", "/srv", "/mnt", "-o", "rw,nofail"];
        let translated = line(&["/sbin/mount.ashore", "/srv", "/mnt", "-n", "-o", "rw,nofail"]).unwrap();
        assert_eq!(translated, expected.map(OsString::from));
        assert_eq!(line(&["/usr/bin/ashore", "mount"]), None);
    }
}
