//! A program that says in a line that it is ready, and goes on.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ended with the test, however that ends.
pub(crate) struct Running {
    child: Child,
    /// The line.
    pub(crate) ready: String,
}

impl Running {
    /// Started, with both outputs piped, and ready.
    pub(crate) fn start(mut command: Command) -> Running {
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let running = Running { child, ready };
        if running.ready.is_empty() {
            let (code, said) = running.ended();
            panic!("not ready, exit code {code:?}: {said}");
        }
        running
    }

    /// The number of its process.
    #[allow(dead_code, reason = "not every test looks at it from outside")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; the exit code, and what it said.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "still there after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
