//! `cargo xtask guest`: a server, a guest, and one command in it.

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ashore_guest::{DEFAULT_KERNEL, Event, Guest, Running, Server, Share};
use rustix::termios;

use crate::interrupt::{self, Interrupt};
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernel of the guest, for example 6.12, 6.19.10 or 7.2
    #[arg(long, value_name = "VERSION", default_value = DEFAULT_KERNEL)]
    kernel: String,
    /// Command line of another server, with {socket} and {dir} where these belong
    #[arg(long, value_name = "COMMAND LINE")]
    server: Option<String>,
    /// One more argument for our server; may be given several times
    #[arg(long, value_name = "ARGUMENT", conflicts_with = "server", allow_hyphen_values = true)]
    server_arg: Vec<String>,
    /// Number of request queues
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    queues: u32,
    /// Number of processors of the guest
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    cpus: u32,
    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u32,
    /// Directory to share; a new one, kept if anything is in it, unless given
    #[arg(long, value_name = "DIR")]
    shared_dir: Option<PathBuf>,
    /// Program of this machine that the guest shall have; may be given several times
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// Shell command to run in the guest; an interactive shell if there is none
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let interrupt = Interrupt::catch()?;
    setup::ensure(&options.kernel)?;
    if options.server.is_none() {
        build_server()?;
    }
    let directory = SharedDirectory::of(options)?;
    eprintln!("sharing {}", directory.path.display());
    let mut server = start_server(options, &directory.path)?;
    let code = in_guest(options, &server, &interrupt);
    let ended = server.wait(Duration::from_secs(10));
    if code.is_err() || !ended.is_ok_and(|status| status.success()) {
        eprintln!("the server said:\n{}", server.log().trim_end());
    }
    code.map(ExitCode::from)
}

/// Building is done here and not left to the first use, so that one can watch it.
fn build_server() -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "ashore", "--bin", "ashore"]);
    cargo.arg("--target-dir").arg(ashore_guest::target_dir()?);
    if !io::stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    if !cargo.status().context("cannot start cargo: is it in PATH?")?.success() {
        bail!("the server could not be built; `--server` takes the command line of another one");
    }
    Ok(())
}

fn start_server(options: &Options, directory: &Path) -> Result<Server> {
    let mut server = Server::builder(directory).queues(options.queues);
    if let Some(template) = &options.server {
        server = server.command(template);
    }
    for argument in &options.server_arg {
        server = server.arg(argument);
    }
    server.start()
}

fn in_guest(options: &Options, server: &Server, interrupt: &Interrupt) -> Result<u8> {
    let script = script(options)?;
    let share = Share::new(server.socket()).queues(options.queues);
    let mut builder =
        Guest::builder().kernel(&options.kernel).cpus(options.cpus).memory_mib(options.memory).share(share);
    for program in &options.program {
        builder = builder.program(program);
    }
    let code = match script {
        Some(script) => {
            let guest = builder.boot()?;
            let code = stream(&guest.spawn(&script)?, interrupt)?;
            leave(guest)?;
            code
        }
        None => interactive(builder.terminal(), interrupt)?,
    };
    Ok(code)
}

/// The command, or what comes from a pipe; `None` stands for a person at a terminal.
fn script(options: &Options) -> Result<Option<String>> {
    if !options.command.is_empty() {
        return Ok(Some(options.command.join(" ")));
    }
    if io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut script = String::new();
    io::stdin().read_to_string(&mut script).context("reading the commands for the guest")?;
    Ok(Some(script))
}

/// Passes output on as it comes, and returns the exit code.
fn stream(running: &Running, interrupt: &Interrupt) -> Result<u8> {
    loop {
        if interrupt.is_noted() {
            eprintln!("interrupted; ending the guest ...");
            return Ok(interrupt::EXIT_CODE);
        }
        match running.next_event(Duration::from_millis(100))? {
            Some(Event::Stdout(bytes)) => pass_on(io::stdout(), &bytes)?,
            Some(Event::Stderr(bytes)) => pass_on(io::stderr(), &bytes)?,
            Some(Event::Exit(code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            None => {}
        }
    }
}

fn pass_on(mut out: impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// A shell with a terminal of its own, so that editing, Ctrl-C and full-screen programs work.
fn interactive(builder: ashore_guest::Builder, interrupt: &Interrupt) -> Result<u8> {
    let before = termios::tcgetattr(io::stdin()).context("asking for the terminal's settings")?;
    let size = termios::tcgetwinsize(io::stdin()).context("asking for the terminal's size")?;
    let guest = builder.boot()?;
    eprint!("Linux {} with the share at /mnt/share; `exit` ends it.\r\n", guest.kernel_release());
    let shell = format!(
        "cd /mnt/share; export TERM={} PS1='guest:\\w# '; \
         exec setsid -c sh -c 'stty rows {} cols {}; exec sh' </dev/hvc0 >/dev/hvc0 2>&1",
        std::env::var("TERM").unwrap_or_else(|_| "linux".into()),
        size.ws_row.max(24),
        size.ws_col.max(80),
    );
    let result = guest.spawn(&shell).and_then(|running| stream(&running, interrupt));
    let left = leave(guest);
    // QEMU puts them back itself, unless it was killed.
    termios::tcsetattr(io::stdin(), termios::OptionalActions::Now, &before)?;
    left?;
    result
}

/// Unmounts, so that the server hears that it was the last call, and powers off.
fn leave(guest: Guest) -> Result<()> {
    // A command that still runs there keeps the share busy, and then it ends with the guest.
    guest.run("umount /mnt/share 2>/dev/null")?;
    guest.shutdown()
}

/// The directory that is shared; one that we made goes away again if nothing is in it.
struct SharedDirectory {
    path: PathBuf,
    ours: bool,
}

impl SharedDirectory {
    fn of(options: &Options) -> Result<Self> {
        if let Some(path) = &options.shared_dir {
            return Ok(Self { path: path.clone(), ours: false });
        }
        let path = tempfile::Builder::new().prefix("ashore-share-").tempdir()?.keep();
        Ok(Self { path, ours: true })
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        // Removing fails if the guest has left something in it, and that is wanted: it is what the user came for.
        if self.ours && std::fs::remove_dir(&self.path).is_err() {
            eprintln!("what the guest wrote is in {}", self.path.display());
        }
    }
}
