//! A server that a guest has taken over: isolated as `ashore serve` is, and then up to no good. Usage:
//! `compromised SANDBOX SECCOMP SHARE PORT ATTEMPT`, see `tests/isolation.rs`. It prints what it got, or why it did not.

use std::fmt::Display;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use ashore_isolation::{Ended, Isolation, Sandbox, Seccomp, Side};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

/// What everybody who breaks in looks for.
const SECRET: &str = "/etc/shadow";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sandbox, seccomp, share, port, attempt] = &arguments[..] else {
        bail!("usage: compromised SANDBOX SECCOMP SHARE PORT ATTEMPT")
    };
    let sandbox = match sandbox.as_str() {
        "namespace" => Sandbox::Namespace,
        "chroot" => Sandbox::Chroot,
        _ => Sandbox::None,
    };
    let seccomp = if seccomp == "kill" { Seccomp::Kill } else { Seccomp::None };
    let outside = rustix::process::getpid();
    let share = Path::new(share);
    let mut inside = match (Isolation { sandbox, seccomp, ..Default::default() }).enter(share)? {
        Side::Outside(keeper) => {
            return match keeper.wait()? {
                Ended::Code(code) => Ok(code.into()),
                Ended::Signal(signal) => {
                    println!("ended by signal {signal}");
                    Ok(ExitCode::FAILURE)
                }
            };
        }
        Side::Inside(inside) => inside,
    };
    let kept = inside.keep_directory(Path::new("/usr")).context("a directory to keep")?;
    inside.close(false)?.finish()?;
    let mut output = std::io::stdout();
    match try_to(attempt, outside, port.parse()?, kept.as_fd()) {
        Ok(got) => writeln!(output, "got {got}")?,
        Err(error) => writeln!(output, "refused: {error:#}")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn try_to(attempt: &str, outside: Pid, port: u16, kept: BorrowedFd<'_>) -> anyhow::Result<String> {
    match attempt {
        "secret" => Ok(std::fs::read_to_string(SECRET)?),
        "climb" => climb(kept),
        "network" => got(TcpStream::connect(("127.0.0.1", port))?.peer_addr()?),
        "processes" => {
            let numbers = std::fs::read_dir("/proc")?;
            got(numbers.flatten().map(|entry| entry.file_name().display().to_string()).collect::<String>())
        }
        "kill" => {
            rustix::process::test_kill_process(outside)?;
            rustix::process::kill_process(outside, Signal::URG)?;
            got("a signal through")
        }
        "program" => got(Command::new("/bin/true").status()?),
        "mount" => {
            rustix::mount::mount_bind("/", "/")?;
            got("a mount")
        }
        "root" => {
            std::fs::create_dir_all("/jail")?;
            rustix::process::chroot("/jail")?;
            rustix::process::chdir("../../../../../../..")?;
            Ok(std::fs::read_to_string("etc/shadow")?)
        }
        _ => bail!("no such attempt"),
    }
}

fn got(what: impl Display) -> anyhow::Result<String> {
    Ok(what.to_string())
}

/// Out of a directory that is open.
fn climb(kept: BorrowedFd<'_>) -> anyhow::Result<String> {
    let up = format!("{}{SECRET}", "../".repeat(20));
    let file = rustix::fs::openat(kept, &*up, OFlags::RDONLY, Mode::empty())?;
    got(std::io::read_to_string(std::fs::File::from(file))?.len())
}
