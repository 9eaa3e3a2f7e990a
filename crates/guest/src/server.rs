//! A virtio-fs server as its users start it: by its command line, at the other end of a socket.
//!
//! Tests start ours, unless `ASHORE_TEST_SERVER` holds the command line of another one, with `{socket}`, `{dir}` and
//! `{queues}` where its own values belong. So a test can be shown to fail where it should.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::{agent, cache};

/// Names the command line of another server for tests to try.
pub const SERVER_VARIABLE: &str = "ASHORE_TEST_SERVER";

const START_PATIENCE: Duration = Duration::from_secs(20);
/// A server that is told to end may have hundreds of megabytes to sync first.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// How a server shall be started.
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    shared_dir: PathBuf,
    queues: u32,
    template: Option<String>,
    arguments: Vec<String>,
}

impl ServerBuilder {
    /// This many request queues; one unless said otherwise.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Another server: a shell command line with `{socket}`, `{dir}` and, if it likes, `{queues}`.
    pub fn command(mut self, template: &str) -> Self {
        self.template = Some(template.to_owned());
        self
    }

    /// One more argument, for our server only: others have other options.
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts it, and returns when it listens at its socket.
    pub fn start(self) -> Result<Server> {
        let mut server = self.spawn()?;
        server.wait_for_socket()?;
        Ok(server)
    }

    fn spawn(self) -> Result<Server> {
        let folder = tempfile::Builder::new().prefix("ashore-server-").tempdir()?;
        let log = folder.path().join("log");
        let template = self.template.clone().or_else(|| env::var(SERVER_VARIABLE).ok());
        let mut command = match &template {
            Some(template) => self.other_server(template, folder.path())?,
            None => self.our_server(folder.path())?,
        };
        let output = File::create(&log)?;
        command.stdout(output.try_clone()?).stderr(output);
        // The keyboard's interrupt is for us, who then end the server in good order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Server { child, ours: template.is_none(), folder })
    }

    fn our_server(&self, folder: &Path) -> Result<Command> {
        let mut command = Command::new(agent::ashore()?);
        command.arg("serve").arg("--shared-dir").arg(&self.shared_dir);
        command.arg("--socket-path").arg(socket_in(folder));
        command.arg("--num-request-queues").arg(self.queues.to_string()).args(&self.arguments);
        Ok(command)
    }

    fn other_server(&self, template: &str, folder: &Path) -> Result<Command> {
        if !template.contains("{socket}") || !template.contains("{dir}") {
            bail!("the server's command line must say where {{socket}} and {{dir}} belong: {template}");
        }
        let line = template
            .replace("{socket}", &quoted(&socket_in(folder)))
            .replace("{dir}", &quoted(&self.shared_dir))
            .replace("{queues}", &self.queues.to_string());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {line}"));
        command.env("PATH", path_with_peers()?);
        Ok(command)
    }
}

/// A running server; it is told to end when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    ours: bool,
    folder: TempDir,
}

impl Server {
    /// A server for this directory.
    pub fn builder(shared_dir: impl Into<PathBuf>) -> ServerBuilder {
        ServerBuilder { shared_dir: shared_dir.into(), queues: 1, template: None, arguments: Vec::new() }
    }

    /// Our own program, which other programs start.
    pub fn program() -> Result<PathBuf> {
        agent::ashore()
    }

    /// The socket that a guest's share connects to.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    /// Whether it is ours, and not one named by a command line.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// What our server says at its end, with `--log-level debug`, about each queue: how many requests its worker served.
    ///
    /// It is the number in a line that holds `queue 1: 5042 requests`.
    pub fn requests_of_queue(&self, queue: u32) -> Option<u64> {
        let log = self.log();
        let (_, rest) = log.rsplit_once(&format!("queue {queue}: "))?;
        let (number, _) = rest.split_once(" requests")?;
        number.parse().ok()
    }

    /// Waits for a server that ends by itself, as most do when their guest has gone.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(5));
        }
        bail!("the server did not end within {patience:?}; it said:\n{}", self.log())
    }

    /// Sends a signal to it and to what it has started.
    pub fn signal(&self, signal: Signal) {
        // Fails only if it has ended.
        let _ = i32::try_from(self.child.id())
            .map(|pid| Pid::from_raw(pid).map(|pid| kill_process_group(pid, signal)));
    }

    /// Connecting to see whether it listens would not do: most servers serve one client and then end.
    fn wait_for_socket(&mut self) -> Result<()> {
        let end = Instant::now() + START_PATIENCE;
        while !is_listened_at(&self.socket()) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once ({status}): {}", self.log().trim());
            }
            if Instant::now() > end {
                bail!("the server made no socket within {START_PATIENCE:?}; it said:\n{}", self.log());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether somebody listens at this socket: its name is there a little before, and connecting would take the place of the one
/// client that some servers have.
pub fn is_listened_at(socket: &Path) -> bool {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let socket = format!(" {}", socket.display());
    // Flags with __SO_ACCEPTCON (proc_net_unix(5)).
    sockets.lines().any(|line| line.ends_with(&socket) && line.contains(" 00010000 "))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal(Signal::TERM);
        if self.wait(END_PATIENCE).is_err() {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("socket")
}

fn path_with_peers() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(std::iter::once(cache::peers()?.join("bin")).chain(env::split_paths(&path)))?)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(template: &str) -> ServerBuilder {
        Server::builder("/srv/it's here").command(template)
    }

    /// A program that never listens, when it has ended.
    fn ended(template: &str) -> Server {
        let mut server = server(template).spawn().unwrap();
        server.wait(START_PATIENCE).unwrap();
        server
    }

    #[test]
    fn the_values_stand_where_the_command_line_names_them() {
        let server = ended("sh -c 'echo \"$@\"' - {socket} {dir} {queues}");
        assert_eq!(server.log().trim(), format!("{} /srv/it's here 1", server.socket().display()));
        assert!(!server.is_ours());
    }

    #[test]
    fn the_log_says_how_busy_a_queue_was() {
        let server = ended("sh -c 'echo DEBUG queue 1: 42 requests' {socket} {dir}");
        assert_eq!(server.requests_of_queue(1), Some(42));
        assert_eq!(server.requests_of_queue(2), None);
    }

    #[test]
    fn a_server_that_ends_at_once_is_quoted() {
        let error = server("sh -c 'echo no such directory: $1; exit 1' - {dir} {socket}")
            .start()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ended at once") && error.contains("no such directory: /srv/it's here"),
            "{error}"
        );
    }

    #[test]
    fn a_command_line_without_a_socket_is_refused() {
        assert!(server("true {dir}").start().unwrap_err().to_string().contains("{socket}"));
    }
}
