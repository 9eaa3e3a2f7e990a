//! What the client knows of one file: attributes, who owns them, cached pages, and the writes in flight.
//!
//! Nothing here waits, sends or looks at a clock. The shell holds one lock for each inode around this state, tells
//! it what happened and does what it answers. Two inodes share nothing, so their callers never meet.
//!
//! In write-back mode size and times of a regular file are the client's: the server's values are behind by all that
//! was not yet sent. They are taken from the server only while nothing local is newer (see [`InodeState::adopt`]).

use std::collections::BTreeSet;
use std::ops::Range;

use ashore_wire::Errno;
use ashore_wire::abi::Attr;

use super::errors::ErrorLog;
use super::pages::{PAGE_SIZE, PageId, PageTable};

/// Nanoseconds since the client started: a clock that never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Moment(pub(crate) u64);

/// Time of day, as it stands in attributes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Timestamp {
    pub(crate) seconds: u64,
    pub(crate) nanoseconds: u32,
}

/// Numbers the changes of one inode in the order in which they began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Serial(u64);

/// Pages on their way to the server in one WRITE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) serial: Serial,
    pub(crate) indices: Range<u64>,
    pub(crate) pages: Vec<PageId>,
    pub(crate) offset: u64,
    /// Bytes to send: all of the pages, less what lies behind the end of the file.
    pub(crate) length: usize,
}

/// What a page that is not cached needs before part of it can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Missing {
    /// The server has nothing there: the page is zeros.
    Zeros,
    /// These pages are to be read from the server in one READ.
    Read(Range<u64>),
}

/// What is left to do once a file was cut to a new size.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Cut {
    /// Pages that are free now.
    pub(crate) freed: Vec<PageId>,
    /// The last page, and from which byte on it must become zero.
    pub(crate) zero_tail: Option<(PageId, usize)>,
}

/// One file as the client knows it.
#[derive(Debug)]
pub(crate) struct InodeState {
    attr: Attr,
    attr_valid_until: Moment,
    /// Whether size and times are the client's (write-back mode, regular file).
    owned: bool,
    /// Counts local changes, and changes the server has answered: a reply to what was asked before the last of
    /// them is out of date.
    version: u64,
    /// The server has content at most up to here: what lies behind need not be read, it is zeros.
    server_size: u64,
    times_dirty: bool,
    /// The times are to be sent as soon as no write is in flight; until then no new write starts, or that moment
    /// might never come.
    times_wanted: bool,
    /// Those who need the server's file to hold still: a truncate, above all.
    gates: u32,
    /// One caller alone may write: O_APPEND, a long write, a truncate, a direct write.
    pub(crate) writer: bool,
    pub(crate) pages: PageTable,
    pub(crate) errors: ErrorLog,
    /// When the oldest dirty page became dirty, or a little earlier; for times alone, when they did.
    dirty_since: Option<Moment>,
    next_serial: u64,
    in_flight: BTreeSet<Serial>,
    writebacks: usize,
}

impl InodeState {
    /// A file whose attributes have just come from the server.
    pub(crate) fn new(attr: Attr, valid_until: Moment, owned: bool) -> InodeState {
        InodeState {
            attr,
            attr_valid_until: valid_until,
            owned: owned && attr.mode & 0o170_000 == 0o100_000,
            version: 0,
            server_size: attr.size,
            times_dirty: false,
            times_wanted: false,
            gates: 0,
            writer: false,
            pages: PageTable::default(),
            errors: ErrorLog::default(),
            dirty_since: None,
            next_serial: 0,
            in_flight: BTreeSet::new(),
            writebacks: 0,
        }
    }

    /// Bytes of the file.
    #[inline]
    pub(crate) fn size(&self) -> u64 {
        self.attr.size
    }

    /// Bytes of the file if its size is the client's to know; otherwise 0.
    pub(crate) fn own_size(&self) -> u64 {
        if self.owned { self.attr.size } else { 0 }
    }

    /// The attributes as a caller is told them.
    pub(crate) fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Whether the attributes may still be used without asking.
    pub(crate) fn attributes_valid(&self, now: Moment) -> bool {
        now < self.attr_valid_until
    }

    /// The attributes must be asked for before they are used again.
    pub(crate) fn forget_attributes(&mut self) {
        self.attr_valid_until = Moment(0);
    }

    /// To be remembered when attributes are asked for, and given to [`InodeState::adopt`] with the reply.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Attributes came that were asked for at `asked_at`. Returns pages of a cache that is out of date, because
    /// someone else has changed the file.
    pub(crate) fn adopt(&mut self, attr: &Attr, asked_at: u64, valid_until: Moment) -> Vec<PageId> {
        let (size, mtime, ctime) = (self.attr.size, mtime(&self.attr), ctime(&self.attr));
        self.attr = *attr;
        if asked_at != self.version || !self.is_settled() {
            // Older than what is known here. Without ownership the next one who asks gets newer ones.
            self.attr.size = size;
            if self.owned {
                set_mtime(&mut self.attr, mtime);
                set_ctime(&mut self.attr, ctime);
            }
            if self.owned && asked_at == self.version {
                self.attr_valid_until = valid_until;
            }
            return Vec::new();
        }
        self.attr_valid_until = valid_until;
        self.server_size = attr.size;
        if attr.size == size && self::mtime(attr) == mtime {
            return Vec::new();
        }
        self.pages.remove_range(0..u64::MAX, true)
    }

    /// Attributes came in the reply to a change of our own, which was alone.
    pub(crate) fn adopt_own(&mut self, attr: &Attr, valid_until: Moment, with_times: bool) {
        let (size, mtime, ctime) = (self.attr.size, mtime(&self.attr), ctime(&self.attr));
        self.attr = *attr;
        self.attr_valid_until = valid_until;
        if self.owned {
            self.attr.size = size;
            if !with_times {
                set_mtime(&mut self.attr, mtime);
                set_ctime(&mut self.attr, ctime.max(self::ctime(attr)));
            }
        }
    }

    /// Bytes were put into the page at `index`, up to `end` in the file. `true` if the page was not dirty before.
    #[inline]
    pub(crate) fn wrote(&mut self, index: u64, end: u64, now: impl FnOnce() -> Moment) -> bool {
        self.attr.size = self.attr.size.max(end);
        self.dirty_since.get_or_insert_with(now);
        self.pages.set_dirty(index)
    }

    /// A write of the application is done: times move, if they are ours, and replies on their way are out of date.
    #[inline]
    pub(crate) fn touched(&mut self, time: Timestamp) {
        self.version += 1;
        if self.owned {
            set_mtime(&mut self.attr, time);
            set_ctime(&mut self.attr, time);
            self.times_dirty = true;
        }
    }

    /// The server was told to write up to `end`, past the cache, and has done so.
    pub(crate) fn wrote_past_cache(&mut self, end: u64) {
        self.attr.size = self.attr.size.max(end);
        self.server_size = self.server_size.max(end);
        self.version += 1;
        if self.owned {
            // The server's clock has moved the times; ours are the ones that count.
            self.times_dirty = true;
        } else {
            self.forget_attributes();
        }
    }

    /// What must happen before the absent page at `index` can be used. A read may go on to `wanted` pages, as far
    /// as they are absent too, and never behind the end of the file.
    pub(crate) fn missing(&self, index: u64, wanted: u64) -> Missing {
        let server_pages = self.server_size.div_ceil(PAGE_SIZE as u64);
        if index >= server_pages {
            return Missing::Zeros;
        }
        let limit = server_pages.min(index + wanted);
        let present = |index: &u64| self.pages.first_absent(*index..*index + 1).is_none();
        let end = (index + 1..limit).find(present).unwrap_or(limit);
        Missing::Read(index..end.max(index + 1))
    }

    /// A READ was answered; if it was `short`, the server's file ends at `size`.
    pub(crate) fn ended_early_if(&mut self, short: bool, size: u64) {
        if short && !self.owned && size < self.attr.size {
            self.forget_attributes();
        }
    }

    /// The next pages to send, from `range`, in a run of at most `max_pages`. The caller has entered the barrier:
    /// from here on these pages are not dirty any more.
    pub(crate) fn begin_run(&mut self, range: Range<u64>, max_pages: u64) -> Option<Run> {
        if !self.may_write_back() {
            return None;
        }
        let indices = self.pages.next_run(range, max_pages)?;
        let pages = self.pages.start_writeback(indices.clone());
        let offset = indices.start * PAGE_SIZE as u64;
        let end = (indices.end * PAGE_SIZE as u64).min(self.attr.size);
        assert!(end > offset, "a cut takes dirty pages behind the new end with it");
        self.writebacks += 1;
        Some(Run { serial: self.begin_change(), indices, pages, offset, length: (end - offset) as usize })
    }

    /// The server has answered the WRITE of a run. An error stands in the log when this returns, so before the
    /// caller drops the ticket.
    pub(crate) fn run_answered(&mut self, run: &Run, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.server_size = self.server_size.max(run.offset + run.length as u64),
            Err(errno) => self.errors.record(errno),
        }
        self.pages.end_writeback(run.indices.clone());
        self.writebacks -= 1;
        // The WRITE has moved the server's mtime; the client's has to be sent again.
        self.times_dirty |= self.owned;
        self.end_change(run.serial);
        self.forget_age_if_clean();
    }

    /// A change of this file goes to the server; [`InodeState::settled_before`] knows of it.
    pub(crate) fn begin_change(&mut self) -> Serial {
        let serial = Serial(self.next_serial);
        self.next_serial += 1;
        self.in_flight.insert(serial);
        serial
    }

    /// The change is settled, its error recorded.
    pub(crate) fn end_change(&mut self, serial: Serial) {
        assert!(self.in_flight.remove(&serial), "a change ends once");
        // Attributes asked for while it was in flight may have been taken before it or after.
        self.version += 1;
    }

    /// The cut of an fsync: changes that begin from now on have this number or a later one.
    pub(crate) fn cut_here(&self) -> Serial {
        Serial(self.next_serial)
    }

    /// Whether every change that began before `cut` is settled.
    pub(crate) fn settled_before(&self, cut: Serial) -> bool {
        self.in_flight.first().is_none_or(|oldest| *oldest >= cut)
    }

    /// Whether writeback may start.
    pub(crate) fn may_write_back(&self) -> bool {
        self.gates == 0 && !self.times_wanted
    }

    /// Closes the gate: no new writeback starts until it is opened as often as it was closed.
    pub(crate) fn close_gate(&mut self) {
        self.gates += 1;
    }

    /// Opens the gate again.
    pub(crate) fn open_gate(&mut self) {
        self.gates = self.gates.checked_sub(1).expect("a gate is opened as often as it was closed");
    }

    /// WRITEs of the cache that are in flight.
    pub(crate) fn writebacks(&self) -> usize {
        self.writebacks
    }

    /// Whether the server will have to be told the times, now or once the writes in flight are answered.
    pub(crate) fn times_behind(&self) -> bool {
        self.owned && (self.times_dirty || self.writebacks > 0)
    }

    /// The times are to be sent when no write is in flight.
    pub(crate) fn want_times(&mut self) {
        self.times_wanted = true;
    }

    /// Whether the times are waiting to be sent and nothing stands in the way any more.
    pub(crate) fn times_due(&self) -> bool {
        self.times_wanted && self.writebacks == 0
    }

    /// The times (mtime, ctime) are being sent; the caller has entered the barrier.
    pub(crate) fn take_times(&mut self) -> (Timestamp, Timestamp) {
        self.times_wanted = false;
        self.times_dirty = false;
        self.forget_age_if_clean();
        (mtime(&self.attr), ctime(&self.attr))
    }

    /// The times could not be sent: they are still to be.
    pub(crate) fn times_failed(&mut self, errno: Errno) {
        self.errors.record(errno);
    }

    /// The server's file has `size` bytes now, by a SETATTR that was alone.
    pub(crate) fn cut_to(&mut self, size: u64) -> Cut {
        self.attr.size = size;
        self.server_size = size;
        self.version += 1;
        let first_gone = size.div_ceil(PAGE_SIZE as u64);
        let freed = self.pages.remove_range(first_gone..u64::MAX, false);
        self.forget_age_if_clean();
        let in_page = (size % PAGE_SIZE as u64) as usize;
        let tail = (in_page > 0).then(|| self.pages.lookup(size / PAGE_SIZE as u64));
        let zero_tail = match tail {
            Some(super::pages::Lookup::Ready(page)) => Some((page, in_page)),
            _ => None,
        };
        Cut { freed, zero_tail }
    }

    /// Whether nothing here is newer than the server's file.
    pub(crate) fn is_settled(&self) -> bool {
        self.pages.dirty() == 0 && !self.times_dirty && !self.times_wanted && self.in_flight.is_empty()
    }

    /// When the oldest thing that the server lacks (a page, the times) became dirty.
    pub(crate) fn dirty_since(&self) -> Option<Moment> {
        self.dirty_since
    }

    /// A writer of the cache has seen all that was dirty; what is dirty now counts from `now`.
    pub(crate) fn dirty_again_since(&mut self, now: Moment) {
        self.dirty_since = Some(now);
        self.forget_age_if_clean();
    }

    fn forget_age_if_clean(&mut self) {
        if self.pages.dirty() == 0 && !self.times_dirty {
            self.dirty_since = None;
        }
    }
}

fn mtime(attr: &Attr) -> Timestamp {
    Timestamp { seconds: attr.mtime, nanoseconds: attr.mtimensec }
}

fn ctime(attr: &Attr) -> Timestamp {
    Timestamp { seconds: attr.ctime, nanoseconds: attr.ctimensec }
}

fn set_mtime(attr: &mut Attr, time: Timestamp) {
    (attr.mtime, attr.mtimensec) = (time.seconds, time.nanoseconds);
}

fn set_ctime(attr: &mut Attr, time: Timestamp) {
    (attr.ctime, attr.ctimensec) = (time.seconds, time.nanoseconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> InodeState {
        let attr = Attr { mode: 0o100_644, nlink: 1, size, ..Default::default() };
        InodeState::new(attr, Moment(1000), true)
    }

    fn write(file: &mut InodeState, index: u64, end: u64) {
        if file.pages.lookup(index) == super::super::pages::Lookup::Absent {
            file.pages.insert(index, PageId(index as u32), false);
        }
        file.wrote(index, end, || Moment(1));
        file.touched(Timestamp { seconds: 7, nanoseconds: 0 });
    }

    #[test]
    fn a_run_is_cropped_at_the_end_of_the_file() {
        let mut file = file(0);
        write(&mut file, 0, 4096);
        write(&mut file, 1, 5000);
        let run = file.begin_run(0..u64::MAX, 256).unwrap();
        assert_eq!((run.offset, run.length, run.indices.clone()), (0, 5000, 0..2));
        file.run_answered(&run, Ok(()));
        assert_eq!(file.missing(1, 1), Missing::Read(1..2), "the server has it now");
        assert_eq!(file.missing(2, 1), Missing::Zeros);
    }

    #[test]
    fn the_servers_size_and_times_count_only_while_nothing_here_is_newer() {
        let mut file = file(0);
        let asked_at = file.version();
        write(&mut file, 0, 100);
        let stale = Attr { mode: 0o100_600, size: 0, mtime: 3, ..Default::default() };
        assert!(file.adopt(&stale, asked_at, Moment(2000)).is_empty());
        assert_eq!((file.size(), file.attr().mtime, file.attr().mode), (100, 7, 0o100_600));
        file.adopt(&stale, file.version(), Moment(2000));
        assert_eq!(file.size(), 100, "a dirty page is newer than any reply");

        let run = file.begin_run(0..u64::MAX, 256).unwrap();
        file.run_answered(&run, Ok(()));
        file.take_times();
        let theirs = Attr { mode: 0o100_600, size: 9, mtime: 8, ..Default::default() };
        assert_eq!(file.adopt(&theirs, file.version(), Moment(3000)), [PageId(0)], "someone else wrote");
        assert_eq!(file.size(), 9);
    }

    #[test]
    fn an_fsync_waits_for_what_began_before_it_and_for_nothing_later() {
        let mut file = file(1 << 20);
        let before = file.begin_change();
        let cut = file.cut_here();
        let after = file.begin_change();
        assert!(!file.settled_before(cut));
        file.end_change(before);
        assert!(file.settled_before(cut));
        file.end_change(after);
    }

    #[test]
    fn times_wait_for_the_writes_in_flight_and_hold_back_new_ones() {
        let mut file = file(0);
        write(&mut file, 0, 4096);
        let run = file.begin_run(0..u64::MAX, 1).unwrap();
        write(&mut file, 0, 4096);
        file.want_times();
        assert!(!file.times_due());
        assert_eq!(file.begin_run(0..u64::MAX, 1), None);
        file.run_answered(&run, Ok(()));
        assert!(file.times_due());
        file.take_times();
        assert!(file.begin_run(0..u64::MAX, 1).is_some());
        assert!(file.times_behind(), "the second write will move the server's mtime again");
    }

    #[test]
    fn a_cut_frees_what_lies_behind_it_and_zeroes_the_rest_of_the_last_page() {
        let mut file = file(0);
        (0..4).for_each(|index| write(&mut file, index, (index + 1) * 4096));
        let cut = file.cut_to(4096 + 10);
        assert_eq!(cut, Cut { freed: vec![PageId(2), PageId(3)], zero_tail: Some((PageId(1), 10)) });
        assert_eq!(file.pages.dirty(), 2);
        assert_eq!(file.cut_to(0).freed, [PageId(0), PageId(1)]);
        assert_eq!(
            (file.pages.dirty(), file.dirty_since()),
            (0, Some(Moment(1))),
            "the times are still to be sent"
        );
        file.take_times();
        assert_eq!(file.dirty_since(), None);
    }

    #[test]
    fn a_failed_write_leaves_its_error_and_a_clean_page() {
        let mut file = file(0);
        let mut cursor = file.errors.cursor();
        write(&mut file, 0, 10);
        let run = file.begin_run(0..u64::MAX, 1).unwrap();
        file.run_answered(&run, Err(Errno::ENOSPC));
        assert_eq!(file.pages.dirty(), 0);
        let since = cursor;
        assert_eq!(file.errors.tell(since, &mut cursor), Err(Errno::ENOSPC));
    }
}
