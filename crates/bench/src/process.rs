//! A server's processes, as /proc shows them; and servers that we start.
//!
//! Processor time is summed over the threads of the server and of its children: some servers do their work in one.
//! /proc/PID/task/TID/schedstat counts nanoseconds; what threads that have ended used is missing from it, and servers keep
//! theirs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;

/// How long a server may take until it listens, and until it ends.
const START_TIME: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A server.
#[derive(Debug)]
pub(crate) struct Process {
    pids: Vec<u32>,
}

impl Process {
    /// The process behind a socket and its children, as they are now.
    pub(crate) fn new(pid: Pid) -> Process {
        let mut pids = vec![pid.as_raw_nonzero().get() as u32];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            pids.extend(children(pid));
            next += 1;
        }
        Process { pids }
    }

    /// The process and its children.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Processor time so far.
    pub(crate) fn cpu_us(&self) -> Result<f64> {
        let mut cpu_ns = 0u64;
        for pid in &self.pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the server has ended")?;
            for task in tasks {
                // A thread may end while we look.
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                cpu_ns += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(cpu_ns as f64 / 1e3)
    }

    /// Memory in use.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let mut kib = 0;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let number = line.and_then(|line| line.split_whitespace().next());
            kib += number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(kib)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A server that we started, for one connection.
pub(crate) struct Server {
    child: Child,
    command: String,
}

impl Server {
    /// Starts a command whose `{dir}` and `{socket}` are these, and waits until it listens.
    pub(crate) fn start(command: &str, directory: &Path, socket: &Path) -> Result<Server> {
        let words = words(command, directory, socket);
        let Some((program, rest)) = words.split_first() else { bail!("an empty command starts no server") };
        let mut child = Command::new(program);
        child.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn().with_context(|| format!("{program} cannot be started"))?;
        let mut server = Server { child, command: words.join(" ") };
        server.wait_until_it_listens(socket)?;
        Ok(server)
    }

    /// Trying by connecting would use up the one connection that most servers take.
    fn wait_until_it_listens(&mut self, socket: &Path) -> Result<()> {
        let (deadline, name) = (Instant::now() + START_TIME, socket.display().to_string());
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once ({status}); try it yourself: {}", self.command);
            }
            // Flags of a socket that listens.
            let sockets = fs::read_to_string("/proc/net/unix").context("/proc/net/unix")?;
            if sockets.lines().any(|line| line.ends_with(&name) && line.contains(" 00010000 ")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the server does not listen at its socket; try it yourself: {}", self.command);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The connection is closed, and servers end with it. One that stays has had its chance.
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command's words; quotes are not understood, and need not be.
fn words(command: &str, directory: &Path, socket: &Path) -> Vec<String> {
    let (directory, socket) = (directory.display().to_string(), socket.display().to_string());
    let fill = |word: &str| word.replace("{dir}", &directory).replace("{socket}", &socket);
    let mut words: Vec<String> = command.split_whitespace().map(fill).collect();
    for (place, option, value) in
        [("{dir}", "--shared-dir", directory.clone()), ("{socket}", "--socket-path", socket.clone())]
    {
        if !command.contains(place) {
            words.extend([option.to_owned(), value]);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn a_commands_places_are_filled_or_appended() {
        let filled = |command| words(command, Path::new("/d"), Path::new("/s"));
        assert_eq!(filled("a -o {dir} --at={socket}"), ["a", "-o", "/d", "--at=/s"]);
        assert_eq!(filled("a"), ["a", "--shared-dir", "/d", "--socket-path", "/s"]);
    }

    #[test]
    fn a_command_that_is_no_server_is_said_so() {
        let failed =
            |command| format!("{:#}", Server::start(command, Path::new("/"), Path::new("/s")).err().unwrap());
        assert!(failed("/bin/true").contains("ended at once"));
        assert!(failed("/no/such/program").contains("cannot be started"));
    }

    #[test]
    fn our_own_processor_time_grows() {
        let process = Process::new(rustix::process::getpid());
        let before = process.cpu_us().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(process.cpu_us().unwrap() > before + 1000.0);
        assert!(process.resident_kib().unwrap() > 100);
    }
}
