//! Where the thread of a queue sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::fds::{Readiness, Wake};

/// Where the thread of a queue sleeps: until it is woken by one of us, or kicked by the VMM.
///
/// Edges are waited for, not levels: what was written since the last sleep ends the next one, without being read. That
/// is one system call for each time a queue wakes, not two.
#[derive(Debug)]
pub(crate) struct Sleeper {
    epoll: OwnedFd,
    /// What is watched as the kick.
    kick: Option<Arc<OwnedFd>>,
    kicks: u32,
}

/// Kicks after which the descriptor is emptied. An eventfd never fills up, but nobody says that it is one: a pipe would.
const KICKS_UNREAD_MAX: u32 = 1024;
const WAKE: u64 = 0;
const KICK: u64 = 1;

impl Sleeper {
    pub(crate) fn new(wake: &Wake) -> io::Result<Sleeper> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EDGES)?;
        Ok(Sleeper { epoll, kick: None, kicks: 0 })
    }

    /// Sleeps until something happens or the time is up. Says what became of the kick.
    pub(crate) fn sleep(&mut self, kick: Option<&Arc<OwnedFd>>, timeout: Option<Duration>) -> Readiness {
        if self.watch(kick).is_err() {
            return Readiness::Broken;
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(WAKE) }; 2];
        // Interrupted by a signal, or out of kernel memory for a moment: the caller looks around and comes back.
        let count = epoll::wait(&self.epoll, &mut events, timeout.as_ref()).unwrap_or(0);
        let kicked = events[..count].iter().find(|event| event.data.u64() == KICK);
        let readiness = kicked.map_or(Readiness::Quiet, |event| readiness(event.flags));
        if readiness == Readiness::Readable {
            self.kicks += 1;
            if self.kicks == KICKS_UNREAD_MAX {
                self.kicks = 0;
                self.empty();
            }
        }
        readiness
    }

    /// Takes out what so many kicks can have put in.
    fn empty(&self) {
        let mut room = [0; 8 * KICKS_UNREAD_MAX as usize];
        // Readable a moment ago, and nobody else reads it; but the VMM may have made it one that blocks.
        if let Some(kick) = self.kick.as_ref().filter(|kick| is_readable(kick.as_fd())) {
            while rustix::io::read(kick, &mut room) == Err(Errno::INTR) {}
        }
    }

    fn watch(&mut self, kick: Option<&Arc<OwnedFd>>) -> io::Result<()> {
        let same = match (&self.kick, kick) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if same {
            return Ok(());
        }
        if let Some(old) = self.kick.take() {
            epoll::delete(&self.epoll, &old)?;
        }
        if let Some(new) = kick {
            epoll::add(&self.epoll, new, EventData::new_u64(KICK), EDGES)?;
            self.kick = Some(Arc::clone(new));
        }
        Ok(())
    }
}

const EDGES: EventFlags = EventFlags::IN.union(EventFlags::ET);

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count == 1)
}

fn readiness(events: EventFlags) -> Readiness {
    if events.contains(EventFlags::IN) {
        Readiness::Readable
    } else if events.intersects(EventFlags::ERR | EventFlags::HUP) {
        Readiness::Broken
    } else {
        Readiness::Quiet
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    use super::super::fds::signal;

    const SHORT: Option<Duration> = Some(Duration::from_millis(10));

    fn kick() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    #[test]
    fn a_kick_ends_one_sleep_whether_it_came_before_or_meanwhile() {
        let (wake, kick) = (Wake::new().unwrap(), kick());
        let mut sleeper = Sleeper::new(&wake).unwrap();
        signal(kick.as_fd());
        assert_eq!(sleeper.sleep(Some(&kick), None), Readiness::Readable);
        assert_eq!(sleeper.sleep(Some(&kick), SHORT), Readiness::Quiet);
        let other = Arc::clone(&kick);
        let kicker = std::thread::spawn(move || signal(other.as_fd()));
        assert_eq!(sleeper.sleep(Some(&kick), None), Readiness::Readable);
        kicker.join().unwrap();
    }

    #[test]
    fn being_woken_is_no_kick() {
        let (wake, kick) = (Wake::new().unwrap(), kick());
        let mut sleeper = Sleeper::new(&wake).unwrap();
        wake.set();
        assert_eq!(sleeper.sleep(Some(&kick), None), Readiness::Quiet);
    }

    #[test]
    fn another_kick_takes_the_place_of_the_first() {
        let (wake, first, second) = (Wake::new().unwrap(), kick(), kick());
        let mut sleeper = Sleeper::new(&wake).unwrap();
        sleeper.sleep(Some(&first), SHORT);
        signal(second.as_fd());
        assert_eq!(sleeper.sleep(Some(&second), None), Readiness::Readable);
        signal(first.as_fd());
        assert_eq!(sleeper.sleep(Some(&second), SHORT), Readiness::Quiet);
        assert_eq!(sleeper.sleep(None, SHORT), Readiness::Quiet);
    }

    #[test]
    fn a_pipe_in_place_of_an_eventfd_does_not_fill_up() {
        let wake = Wake::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let read = Arc::new(read);
        let mut sleeper = Sleeper::new(&wake).unwrap();
        for _ in 0..20_000 {
            signal(write.as_fd());
            assert_eq!(sleeper.sleep(Some(&read), None), Readiness::Readable);
        }
    }
}
