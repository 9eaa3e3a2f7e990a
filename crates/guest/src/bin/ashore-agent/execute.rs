//! Runs what the host asks for, any number of commands at a time, and sends back what they print.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::Result;
use ashore_guest::protocol::{Frame, Kind};

use crate::boot::power_off;

/// Returns when the host has closed the port: nobody is left to work for.
pub(crate) fn serve(port: &File) -> Result<()> {
    let sender = Sender(Mutex::new(port));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    sender.send(Kind::Ready, 0, release.trim());
    thread::scope(|scope| {
        while let Some(frame) = Frame::read_from(port)? {
            match frame.kind {
                Kind::Spawn => {
                    let sender = &sender;
                    scope.spawn(move || execute(&frame, sender));
                }
                Kind::PowerOff => power_off(),
                _ => println!("agent: the host sent a frame that only a guest sends: {frame:?}"),
            }
        }
        // Leaving the scope would wait for commands whose output nobody will read.
        power_off()
    })
}

struct Sender<'port>(Mutex<&'port File>);

impl Sender<'_> {
    /// A failure means that the host has gone; the reading side notices that too and ends everything.
    fn send(&self, kind: Kind, id: u32, payload: impl Into<Vec<u8>>) {
        let mut port = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Err(error) = Frame::new(kind, id, payload).write_to(&mut *port) {
            println!("agent: sending to the host: {error}");
        }
    }
}

fn execute(frame: &Frame, sender: &Sender<'_>) {
    let command = String::from_utf8_lossy(&frame.payload);
    let code = run(&command, frame.id, sender).unwrap_or_else(|error| {
        sender.send(Kind::Stderr, frame.id, format!("agent: {error:#}\n"));
        127
    });
    sender.send(Kind::Exit, frame.id, code.to_le_bytes());
}

fn run(command: &str, id: u32, sender: &Sender<'_>) -> Result<i32> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let status = thread::scope(|scope| {
        scope.spawn(|| pump(stdout, Kind::Stdout, id, sender));
        scope.spawn(|| pump(stderr, Kind::Stderr, id, sender));
        child.wait()
    })?;
    Ok(exit_code(status))
}

fn pump(source: Option<impl Read>, kind: Kind, id: u32, sender: &Sender<'_>) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count @ 1..) = source.read(&mut buffer) {
        sender.send(kind, id, &buffer[..count]);
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
