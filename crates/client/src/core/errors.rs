//! Errors that nobody was waiting for, and who has heard of them.
//!
//! A write of the cache fails long after write(2) returned. Its error goes into a log, one for each inode and one
//! for the connection; each open file and each mount handle has a [`Cursor`] into it, and is told, once, what
//! came after. A log is not a flag: that one was told takes nothing from the others.

use std::collections::VecDeque;

use ashore_wire::Errno;

/// Errors a log keeps by number. Older ones are only counted; whoever has not heard them is told EIO.
const ERRORS_REMEMBERED: usize = 16;

/// Errors in the order in which they happened.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    happened: u64,
    /// How many of them somebody has been told.
    told: u64,
    latest: VecDeque<Errno>,
}

/// How far into an [`ErrorLog`] someone has heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor(u64);

impl ErrorLog {
    /// Records an error. Must come before the ticket of the failed change is dropped: a sync that has waited for
    /// the change must find it here.
    pub(crate) fn record(&mut self, errno: Errno) {
        if self.latest.len() == ERRORS_REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(errno);
        self.happened += 1;
    }

    /// A cursor for one who opens now. An error nobody has been told yet is his as well, so that an error whose
    /// file was closed in the meantime is not lost (the rule of Linux's `errseq_sample`).
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor(self.told.min(self.happened))
    }

    /// The first error after `since`, without anybody counting as told.
    pub(crate) fn first_since(&self, since: Cursor) -> Option<Errno> {
        let unheard = self.happened.checked_sub(since.0).filter(|unheard| *unheard > 0)?;
        let kept = self.latest.len() as u64;
        // What is older than the log reaches back happened all the same.
        Some(if unheard > kept { Errno::EIO } else { self.latest[(kept - unheard) as usize] })
    }

    /// Tells the first error after `since`, and moves `heard` past all of them.
    ///
    /// `since` is the cursor as it stood when the call began, `heard` as it stands now: of two syncs of one handle
    /// that run at the same time both were called before either returned the error, so both return it.
    pub(crate) fn tell(&mut self, since: Cursor, heard: &mut Cursor) -> Result<(), Errno> {
        let error = self.first_since(since);
        heard.0 = heard.0.max(self.happened);
        if error.is_some() {
            self.told = self.happened;
        }
        error.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(log: &mut ErrorLog, cursor: &mut Cursor) -> Result<(), Errno> {
        log.tell(*cursor, cursor)
    }

    #[test]
    fn each_cursor_hears_an_error_once() {
        let mut log = ErrorLog::default();
        let (mut a, mut b) = (log.cursor(), log.cursor());
        log.record(Errno::EIO);
        assert_eq!(tell(&mut log, &mut a), Err(Errno::EIO));
        assert_eq!(tell(&mut log, &mut a), Ok(()));
        assert_eq!(tell(&mut log, &mut b), Err(Errno::EIO));
        assert_eq!(tell(&mut log, &mut b), Ok(()));
    }

    #[test]
    fn one_who_opens_later_hears_only_what_nobody_was_told() {
        let mut log = ErrorLog::default();
        let mut early = log.cursor();
        log.record(Errno::ENOSPC);
        let mut unseen = log.cursor();
        assert_eq!(tell(&mut log, &mut early), Err(Errno::ENOSPC));
        let mut seen = log.cursor();
        assert_eq!(tell(&mut log, &mut unseen), Err(Errno::ENOSPC));
        assert_eq!(tell(&mut log, &mut seen), Ok(()));
    }

    #[test]
    fn the_first_of_several_errors_is_the_one_told() {
        let mut log = ErrorLog::default();
        let mut cursor = log.cursor();
        log.record(Errno::ENOSPC);
        log.record(Errno::EIO);
        assert_eq!(tell(&mut log, &mut cursor), Err(Errno::ENOSPC));
        assert_eq!(tell(&mut log, &mut cursor), Ok(()));
    }

    #[test]
    fn two_calls_that_overlap_on_one_handle_are_both_told() {
        let mut log = ErrorLog::default();
        let mut heard = log.cursor();
        let (first_call, second_call) = (heard, heard);
        log.record(Errno::EIO);
        assert_eq!(log.tell(first_call, &mut heard), Err(Errno::EIO));
        assert_eq!(log.tell(second_call, &mut heard), Err(Errno::EIO));
        assert_eq!(log.tell(heard, &mut heard.clone()), Ok(()));
    }

    #[test]
    fn more_errors_than_the_log_keeps_are_still_an_error() {
        let mut log = ErrorLog::default();
        let mut cursor = log.cursor();
        (0..100).for_each(|_| log.record(Errno::ENOSPC));
        assert_eq!(tell(&mut log, &mut cursor), Err(Errno::EIO));
        assert!(log.latest.len() <= ERRORS_REMEMBERED);
    }
}
