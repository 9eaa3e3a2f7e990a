//! What `ashore serve` takes for the sake of programs that start virtiofsd: its older spelling of options, the
//! file with its process number, and its name.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ashore_passthrough::{CachePolicy, LockScope, Negotiation};
use clap::{Args, ValueEnum};

use crate::logging::LogLevel;
use crate::serve::ServeArguments;

/// The name under which the program is `ashore serve`.
const NAME: &str = "virtiofsd";

/// What `--print-capabilities` prints, for libvirt; as docs/interop/vhost-user.json of QEMU has it.
pub(crate) const CAPABILITIES: &str = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}"#;

/// Options that mean something to virtiofsd alone, or are another spelling.
#[derive(Args)]
pub(crate) struct VirtiofsdArguments {
    /// Print what this program can do, in JSON for VMM managers, and end
    #[arg(long)]
    pub(crate) print_capabilities: bool,

    /// A group, by name in /etc/group or by number, whose members may connect to the socket
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    socket_group: Option<String>,

    /// Log to the system's log rather than to standard error
    #[arg(long)]
    pub(crate) syslog: bool,

    /// Options in the older spelling: source=DIR,cache=auto,xattr,no_writeback and so on
    #[arg(short = 'o', value_name = "OPTIONS", hide_short_help = true)]
    older: Vec<String>,

    /// As --log-level debug
    #[arg(short = 'd', hide_short_help = true)]
    debug: bool,

    /// Taken and not needed: the server always stays in the foreground
    #[arg(short = 'f', hide = true)]
    _foreground: bool,
}

/// The arguments of `ashore serve` that mean the same, if we were started under virtiofsd's name.
pub(crate) fn under_its_name(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    if Path::new(&program).file_name() != Some(OsStr::new(NAME)) {
        return None;
    }
    let rest: Vec<_> = arguments.collect();
    // The version is the program's, which no command has.
    let version = rest.iter().any(|argument| argument == "--version" || argument == "-V");
    let command = (!version).then(|| "serve".into());
    Some([program].into_iter().chain(command).chain(rest).collect())
}

impl VirtiofsdArguments {
    /// Lets the members of a group connect.
    pub(crate) fn open_to_group(&self, socket: &Path) -> anyhow::Result<()> {
        let Some(group) = &self.socket_group else { return Ok(()) };
        let id = group_id(group)?;
        chown(socket, None, Some(id))
            .and_then(|()| fs::set_permissions(socket, fs::Permissions::from_mode(0o660)))
            .with_context(|| format!("--socket-group: {} cannot be given to group {group}", socket.display()))
    }
}

fn group_id(group: &str) -> anyhow::Result<u32> {
    let table = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut ids = named
        .filter(|fields| fields.first() == Some(&group))
        .filter_map(|fields| fields.get(2)?.parse().ok());
    match ids.next().or_else(|| group.parse().ok()) {
        Some(id) => Ok(id),
        None => bail!("--socket-group: there is no group {group} in /etc/group; give its number"),
    }
}

/// Options in the older spelling override the others, as they do in virtiofsd.
pub(crate) fn apply_older_spelling(arguments: &mut ServeArguments) -> anyhow::Result<()> {
    for options in std::mem::take(&mut arguments.virtiofsd.older) {
        for option in split(&options) {
            apply(arguments, &option).with_context(|| format!("-o {option}"))?;
        }
    }
    if arguments.virtiofsd.debug {
        arguments.log_level = LogLevel::Debug;
    }
    Ok(())
}

/// At commas. Two of them are one that belongs to a value: libvirt writes it so.
fn split(options: &str) -> Vec<String> {
    const COMMA: &str = "\0";
    options.replace(",,", COMMA).split(',').map(|option| option.replace(COMMA, ",")).collect()
}

fn apply(arguments: &mut ServeArguments, option: &str) -> anyhow::Result<()> {
    if let Some((name, value)) = option.split_once('=') {
        return apply_value(arguments, name, value);
    }
    let (name, on) = option.strip_prefix("no_").map_or((option, true), |name| (name, false));
    let negotiation = if on { Negotiation::Always } else { Negotiation::Never };
    let lock = if on { LockScope::Host } else { LockScope::Guest };
    match name {
        "xattr" => arguments.xattr = on,
        "readdirplus" => arguments.no_readdirplus = !on,
        "writeback" => arguments.writeback = on,
        "allow_direct_io" => arguments.allow_direct_io = on,
        "announce_submounts" => arguments.no_announce_submounts = !on,
        "killpriv_v2" => (arguments.killpriv_v2, arguments.no_killpriv_v2) = (on, !on),
        "posix_acl" => arguments.posix_acl = negotiation,
        "security_label" => arguments.security_label = negotiation,
        "posix_lock" => arguments.posix_lock = lock,
        "flock" => arguments.flock = lock,
        _ => bail!("there is no such option; see --help for those there are, without -o"),
    }
    Ok(())
}

fn apply_value(arguments: &mut ServeArguments, name: &str, value: &str) -> anyhow::Result<()> {
    fn one_of<T: ValueEnum>(value: &str) -> anyhow::Result<T> {
        T::from_str(value, true).map_err(|_| {
            let known: Vec<_> = T::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
            let known: Vec<_> = known.iter().map(|value| value.get_name()).collect();
            anyhow::anyhow!("the values there are: {}", known.join(", "))
        })
    }
    match (name, value) {
        ("source", _) => arguments.shared_dir = Some(PathBuf::from(value)),
        ("cache", "none") => arguments.cache = CachePolicy::Never,
        ("cache", _) => arguments.cache = one_of(value)?,
        ("loglevel", "err") => arguments.log_level = LogLevel::Error,
        ("loglevel", _) => arguments.log_level = one_of(value)?,
        ("sandbox", _) => arguments.isolation.sandbox = one_of(value)?,
        ("modcaps", _) => arguments.isolation.modcaps = value.parse()?,
        ("xattrmap", _) => arguments.xattrmap = Some(value.parse()?),
        _ => bail!("there is no such option; see --help for those there are, without -o"),
    }
    Ok(())
}

/// Writes the number of this process beside the socket, and holds a lock on it: managers look for the one and a second server
/// is kept away by the other. The lock ends with the file, or with the process; the file stays.
pub(crate) fn claim(socket: &Path) -> anyhow::Result<File> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".pid");
    let shown = Path::new(&path).display();
    let options = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = options.with_context(|| format!("{shown} cannot be made"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "{} is in use by another server, which holds {shown}: stop it, or choose another socket path",
            socket.display()
        ),
        Err(TryLockError::Error(error)) => return Err(error).context(format!("{shown} cannot be locked")),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("{shown}"))?;
    Ok(file)
}
