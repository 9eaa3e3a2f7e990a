//! The file descriptors that wake things: eventfds, of the VMM's making and of ours.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::io::Errno;

/// An eventfd of ours: set by any thread, seen by those who poll it.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        Ok(Wake(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn set(&self) {
        signal(self.0.as_fd());
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Adds one to an eventfd. A full one is as good as set, and one that the VMM broke is its own loss.
pub(crate) fn signal(fd: BorrowedFd<'_>) {
    while rustix::io::write(fd, &1u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// What a file descriptor turned out to be when it was waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Readiness {
    Quiet,
    Readable,
    /// It will never be readable in a useful way.
    Broken,
}

/// Waits until one of two file descriptors has something to read, or the time is up.
pub(crate) fn wait_for(
    first: BorrowedFd<'_>,
    second: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> (Readiness, Readiness) {
    // Without a second one, the first takes its place in an array of fixed size.
    let absent = second.is_none();
    let mut fds = [
        PollFd::from_borrowed_fd(first, PollFlags::IN),
        PollFd::from_borrowed_fd(second.unwrap_or(first), PollFlags::IN),
    ];
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {
            let second = if absent { Readiness::Quiet } else { readiness(fds[1].revents()) };
            (readiness(fds[0].revents()), second)
        }
        // Interrupted by a signal, or out of kernel memory for a moment: the caller looks around and comes back.
        Err(_) => (Readiness::Quiet, Readiness::Quiet),
    }
}

fn readiness(events: PollFlags) -> Readiness {
    if events.contains(PollFlags::IN) {
        Readiness::Readable
    } else if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
        Readiness::Broken
    } else {
        Readiness::Quiet
    }
}
