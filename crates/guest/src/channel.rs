//! The host's end of the virtio-serial port: many commands at a time over one stream.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::protocol::{Frame, Kind};

/// Longer than anything that a test does in one command should take, even under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

type Listeners = Arc<Mutex<HashMap<u32, Sender<Frame>>>>;

pub(crate) struct Channel {
    stream: UnixStream,
    listeners: Listeners,
    next_id: AtomicU32,
}

impl Channel {
    /// Waits until the agent says that it is ready; returns the release of its kernel too.
    pub(crate) fn open(stream: UnixStream, patience: Duration) -> Result<(Self, String)> {
        stream.set_read_timeout(Some(patience))?;
        let ready = Frame::read_from(&stream)?.context("the guest closed its port before it was ready")?;
        if ready.kind != Kind::Ready {
            bail!("the guest's first message was {:?}, not that it is ready", ready.kind);
        }
        stream.set_read_timeout(None)?;
        let listeners = Listeners::default();
        let (reading, hand_out) = (stream.try_clone()?, Arc::clone(&listeners));
        thread::spawn(move || distribute(reading, &hand_out));
        let channel = Self { stream, listeners, next_id: AtomicU32::new(1) };
        Ok((channel, String::from_utf8_lossy(&ready.payload).into_owned()))
    }

    pub(crate) fn spawn(&self, command: &str) -> Result<Running> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = channel();
        lock(&self.listeners).insert(id, sender);
        self.send(&Frame::new(Kind::Spawn, id, command))?;
        Ok(Running { command: command.to_owned(), events })
    }

    pub(crate) fn send(&self, frame: &Frame) -> Result<()> {
        frame.write_to(&self.stream).context("the guest has gone: its port is closed")
    }
}

/// Runs until the guest has gone. Then every listener is dropped, which tells the waiting ones.
fn distribute(stream: UnixStream, listeners: &Listeners) {
    let mut stream = BufReader::new(stream);
    let ended: io::Result<()> = loop {
        match Frame::read_from(&mut stream) {
            Ok(Some(frame)) => hand_over(frame, listeners),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = ended
        && error.kind() == io::ErrorKind::InvalidData
    {
        eprintln!("a guest sent what is no message of ours: {error}");
    }
    lock(listeners).clear();
}

fn hand_over(frame: Frame, listeners: &Listeners) {
    let mut listeners = lock(listeners);
    let (id, last) = (frame.id, frame.kind == Kind::Exit);
    if let Some(listener) = listeners.get(&id) {
        // Nobody waits for a command whose `Running` was dropped; its output is of no interest then.
        let _ = listener.send(frame);
    }
    if last {
        listeners.remove(&id);
    }
}

fn lock(listeners: &Listeners) -> MutexGuard<'_, HashMap<u32, Sender<Frame>>> {
    listeners.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Something that a command in the guest did.
#[derive(Debug)]
pub enum Event {
    /// It wrote this to its standard output.
    Stdout(Vec<u8>),
    /// It wrote this to its standard error.
    Stderr(Vec<u8>),
    /// It ended with this exit code; there is no event after it.
    Exit(i32),
}

/// A command that runs in the guest while the test goes on.
#[derive(Debug)]
pub struct Running {
    command: String,
    events: Receiver<Frame>,
}

impl Running {
    /// Waits until the command has ended.
    pub fn wait(self) -> Result<Output> {
        self.wait_for(PATIENCE)
    }

    /// As `wait`, but no longer than this. A command that takes longer goes on in the guest, and its output is lost.
    pub fn wait_for(self, patience: Duration) -> Result<Output> {
        let end = Instant::now() + patience;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            match self.next_event(rest)? {
                Some(Event::Stdout(bytes)) => stdout.extend(bytes),
                Some(Event::Stderr(bytes)) => stderr.extend(bytes),
                Some(Event::Exit(code)) => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let (stdout, stderr) = (text(&stdout), text(&stderr));
                    return Ok(Output { command: self.command, code, stdout, stderr });
                }
                None => bail!("`{}` in the guest did not end within {patience:?}", self.command),
            }
        }
    }

    /// The next thing that the command does, or `None` if it does nothing for so long.
    pub fn next_event(&self, patience: Duration) -> Result<Option<Event>> {
        let frame = match self.events.recv_timeout(patience) {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended while `{}` was running in it", self.command)
            }
        };
        Ok(Some(match frame.kind {
            Kind::Stdout => Event::Stdout(frame.payload),
            Kind::Stderr => Event::Stderr(frame.payload),
            Kind::Exit => Event::Exit(frame.exit_code()?),
            kind => bail!("the guest sent {kind:?} about a command"),
        }))
    }
}

/// What a command in the guest printed, and its exit code.
#[derive(Clone, Debug)]
pub struct Output {
    command: String,
    /// The exit code; 128 + n if it was killed by signal n.
    pub code: i32,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that must have succeeded.
    pub fn success(self) -> Result<String> {
        if self.code != 0 {
            bail!("`{}` in the guest ended with {}: {}{}", self.command, self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> (Channel, UnixStream) {
        let (host, guest) = UnixStream::pair().unwrap();
        Frame::new(Kind::Ready, 0, "6.12").write_to(&guest).unwrap();
        let (channel, release) = Channel::open(host, Duration::from_secs(5)).unwrap();
        assert_eq!(release, "6.12");
        (channel, guest)
    }

    #[test]
    fn two_commands_get_their_own_output() {
        let (channel, guest) = connected();
        let (first, second) = (channel.spawn("first").unwrap(), channel.spawn("second").unwrap());
        for id in [2, 1] {
            Frame::new(Kind::Stdout, id, format!("output {id}")).write_to(&guest).unwrap();
            Frame::new(Kind::Exit, id, (id as i32).to_le_bytes()).write_to(&guest).unwrap();
        }
        let (first, second) = (first.wait().unwrap(), second.wait().unwrap());
        assert_eq!((first.code, first.stdout.as_str()), (1, "output 1"));
        assert_eq!((second.code, second.stdout.as_str()), (2, "output 2"));
    }

    #[test]
    fn a_guest_that_goes_away_is_an_error_for_whoever_waits() {
        let (channel, guest) = connected();
        let running = channel.spawn("sleep").unwrap();
        drop(guest);
        assert!(running.wait().unwrap_err().to_string().contains("the guest ended"));
    }

    #[test]
    fn waiting_has_an_end() {
        let (channel, _guest) = connected();
        let error = channel.spawn("sleep").unwrap().wait_for(Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
