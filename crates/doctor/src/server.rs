//! The server that is examined, started by us or running already.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

const START_PATIENCE: Duration = Duration::from_secs(10);
const END_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How to start a server.
#[derive(Clone, Debug)]
pub(crate) enum Recipe {
    /// Ours: this very program.
    Ours,
    /// A shell command with `{socket}` and `{dir}`.
    Command(String),
}

/// A server that we have started, in a process group of its own. Ended and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Recipe {
    /// Starts a server of `directory`; its socket and its log go into `place`.
    pub(crate) fn start(&self, directory: &Path, place: &Path) -> Result<Server> {
        let socket = place.join("socket");
        _ = fs::remove_file(&socket);
        let log = place.join("log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self.command(directory, &socket)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let mut server = Server { child, socket, log };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    fn command(&self, directory: &Path, socket: &Path) -> Result<Command> {
        match self {
            Recipe::Ours => {
                let program = std::env::current_exe().context("which program is this?")?;
                let mut command = Command::new(program);
                command
                    .args(["serve", "--num-request-queues", "2", "--xattr", "--shared-dir"])
                    .arg(directory);
                command.arg("--socket-path").arg(socket).env_remove("RUST_LOG");
                Ok(command)
            }
            Recipe::Command(template) => {
                if !template.contains("{socket}") || !template.contains("{dir}") {
                    bail!("--command must say where {{socket}} and {{dir}} belong: {template}");
                }
                let line = template.replace("{socket}", &quoted(socket)).replace("{dir}", &quoted(directory));
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!("exec {line}"));
                Ok(command)
            }
        }
    }
}

impl Server {
    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }

    /// Sends a signal to it and to what it has started.
    pub(crate) fn signal(&self, signal: Signal) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It fails only if the server has ended.
        group.inspect(|group| _ = kill_process_group(*group, signal));
    }

    /// Trying by connecting would use up the one connection that most servers take.
    fn wait_until_it_listens(&mut self) -> Result<()> {
        let (begun, name) = (Instant::now(), self.socket.display().to_string());
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once ({status}); it said:\n{}", self.log().trim());
            }
            let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            // 00010000 are the flags of a socket that listens.
            if sockets.lines().any(|line| line.ends_with(&name) && line.contains(" 00010000 ")) {
                return Ok(());
            }
            if begun.elapsed() > START_PATIENCE {
                bail!(
                    "the server does not listen at {name} after {START_PATIENCE:?}; it said:\n{}",
                    self.log().trim()
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        // One that was stopped hears nothing else.
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        if self.wait(END_PATIENCE).is_none() {
            self.signal(Signal::KILL);
            _ = self.child.wait();
        }
    }
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    fn failed(template: &str) -> String {
        let place = tempfile::tempdir().unwrap();
        let recipe = Recipe::Command(template.to_owned());
        format!("{:#}", recipe.start(Path::new("/"), place.path()).unwrap_err())
    }

    #[test]
    fn a_command_that_is_no_server_is_quoted() {
        let why = failed("sh -c 'echo no such directory: $1; exit 3' {socket} {dir}");
        assert!(why.contains("ended at once") && why.contains("no such directory: /"), "{why}");
    }

    #[test]
    fn a_command_without_places_is_refused() {
        assert!(failed("virtiofsd --socket-path {socket}").contains("{dir}"));
    }
}
