//! A disk that remembers everything it was told, in the order in which it finished it.
//!
//! ```text
//!   log:   W0  W1  W2  F(3)  W3  W4  M  F(5)            time ──►
//!                       │                │
//!                       │                └─ arrived when 5 entries were there: M was not yet
//!                       └─ arrived when 3 entries were there: W0, W1, W2 are stable from here on
//! ```
//!
//! A write stands where it was *finished*. So does a flush, and it says how many entries there were when it *arrived*: a
//! write that finishes while a flush is under way gets no credit from it, nor does a sync that returned before its flush
//! was done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ashore_guest::workload::{Dice, MARK_SIZE, Mark, holds_data};
use parking_lot::Mutex;

/// One thing the disk has finished.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Bytes were written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Box<[u8]>,
        /// How many entries there were when it arrived.
        arrived: usize,
    },
    /// Everything that had been finished when it arrived is stable.
    Flush {
        /// How many entries there were when it arrived.
        covers: usize,
    },
    /// A sync of the workload had returned.
    Mark(Mark),
    /// A write failed, and whoever asked for it was told.
    Lost {
        /// What was to be written.
        data: Box<[u8]>,
    },
}

/// What the disk does beside what it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// Which writes and flushes are held follows from this.
    pub seed: u64,
    /// Writes and flushes are held for up to this time, so that they overtake each other.
    pub hold: Duration,
    /// Flushes are answered and not done: a fault of whoever should have sent them.
    pub drop_flushes: bool,
}

/// Of a hundred writes or flushes, so many are held.
const HELD_PERCENT: u64 = 35;

/// A disk with a log.
#[derive(Debug)]
pub struct Disk {
    image: File,
    /// The file system ends here. What is written beyond is a mark.
    end: u64,
    behaviour: Behaviour,
    log: Mutex<Vec<Entry>>,
    dice: Mutex<Dice>,
    /// Writes of files' data that are still to fail, and whether because there is no room.
    to_fail: AtomicU32,
    is_full: AtomicBool,
    /// Other writes that are still to fail.
    others_to_fail: AtomicU32,
    /// Flushes that are still to fail.
    flushes_to_fail: AtomicU32,
    failed: AtomicU64,
}

impl Disk {
    /// A disk with this image, whose file system ends at `end`; behind it there is room for marks.
    pub fn new(image: File, end: u64, behaviour: Behaviour) -> Disk {
        Disk {
            image,
            end,
            behaviour,
            log: Mutex::default(),
            dice: Mutex::new(Dice::new(behaviour.seed)),
            to_fail: AtomicU32::new(0),
            is_full: AtomicBool::new(false),
            others_to_fail: AtomicU32::new(0),
            flushes_to_fail: AtomicU32::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Bytes of the whole disk.
    pub fn length(&self) -> u64 {
        self.end + super::MARKER_AREA
    }

    /// Fails the next writes of files' data. Those of the file system itself are spared: it would stop at once, and then
    /// nothing is left to be told wrong.
    pub fn fail_data_writes(&self, count: u32) {
        self.to_fail.store(count, Ordering::SeqCst);
    }

    /// Fails the next writes of what the file system keeps for itself: its journal, names, attributes.
    pub fn fail_other_writes(&self, count: u32) {
        self.others_to_fail.store(count, Ordering::SeqCst);
    }

    /// Writes that fail do so because the disk has no room (ENOSPC), as thin ones do.
    pub fn is_full(&self) {
        self.is_full.store(true, Ordering::SeqCst);
    }

    /// Fails the next flushes. What was written since the last one may be lost.
    pub fn fail_flushes(&self, count: u32) {
        self.flushes_to_fail.store(count, Ordering::SeqCst);
    }

    /// How many writes and flushes have failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    /// Reads what has been finished.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read_exact_at(buffer, offset)
    }

    /// Writes, and is held for a while before that is so.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let arrived = self.log.lock().len();
        self.hold();
        if offset >= self.end {
            return self.write_mark(data);
        }
        let to_fail = if holds_data(data) { &self.to_fail } else { &self.others_to_fail };
        if self.takes_failure(to_fail) {
            self.log.lock().push(Entry::Lost { data: data.into() });
            let full = self.is_full.load(Ordering::SeqCst);
            return Err(if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other }.into());
        }
        let mut log = self.log.lock();
        self.image.write_all_at(data, offset)?;
        log.push(Entry::Write { offset, data: data.into(), arrived });
        Ok(())
    }

    /// A sync of the workload has returned at this moment.
    pub fn mark(&self, mark: Mark) {
        self.log.lock().push(Entry::Mark(mark));
    }

    /// A flush arrives. To be called as soon as it is seen.
    pub fn flush_arrives(&self) -> Arrival {
        Arrival(self.log.lock().len())
    }

    /// Does a flush, and is held for a while before that is so.
    pub fn flush(&self, arrival: Arrival) -> io::Result<()> {
        if self.behaviour.drop_flushes {
            return Ok(());
        }
        self.hold();
        if self.takes_failure(&self.flushes_to_fail) {
            return Err(io::ErrorKind::Other.into());
        }
        self.log.lock().push(Entry::Flush { covers: arrival.0 });
        Ok(())
    }

    /// Everything that was finished. The disk begins a new log.
    pub fn take_log(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.log.lock())
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.log.lock().len()
    }

    fn write_mark(&self, data: &[u8]) -> io::Result<()> {
        let mark = Mark::from_sector(data.get(..MARK_SIZE).unwrap_or_default());
        // A guest that looks for partitions or labels reads there, but nobody else writes.
        let mark = mark.ok_or(io::ErrorKind::InvalidData)?;
        self.mark(mark);
        Ok(())
    }

    fn hold(&self) {
        if self.behaviour.hold.is_zero() {
            return;
        }
        let (held, micros) = {
            let mut dice = self.dice.lock();
            (dice.percent(HELD_PERCENT), dice.below(self.behaviour.hold.as_micros().max(1) as u64))
        };
        if held {
            thread::sleep(Duration::from_micros(micros));
        }
    }

    fn takes_failure(&self, left: &AtomicU32) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok();
        self.failed.fetch_add(u64::from(taken), Ordering::SeqCst);
        taken
    }
}

/// How many entries there were when a flush arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival(usize);

#[cfg(test)]
mod tests {
    use ashore_guest::workload::{Scope, render};

    use super::*;

    fn disk() -> Disk {
        let image = tempfile::tempfile().unwrap();
        image.set_len(2 << 20).unwrap();
        Disk::new(image, 1 << 20, Behaviour::default())
    }

    #[test]
    fn a_write_that_finishes_while_a_flush_is_under_way_gets_no_credit() {
        let disk = disk();
        disk.write(b"early", 0).unwrap();
        let arrival = disk.flush_arrives();
        disk.write(b"late", 512).unwrap();
        disk.flush(arrival).unwrap();
        let log = disk.take_log();
        assert!(matches!(log[2], Entry::Flush { covers: 1 }), "{log:?}");
    }

    #[test]
    fn what_is_written_behind_the_file_system_is_a_mark() {
        let disk = disk();
        let mark = Mark { thread: 1, scope: Scope::Everything, succeeded: true, floors: vec![3, 4] };
        disk.write(&[&mark.to_sector()[..], &[0; 3584]].concat(), 1 << 20).unwrap();
        assert!(disk.write(&[7; 512], 1 << 20).is_err());
        assert!(matches!(&disk.take_log()[..], [Entry::Mark(found)] if *found == mark));
    }

    #[test]
    fn failures_hit_data_of_files_and_nothing_else() {
        let disk = disk();
        disk.fail_data_writes(1);
        disk.write(&[0; 4096], 0).unwrap();
        assert!(disk.write(&render(1, 0, 1, 0, 4096), 4096).is_err());
        disk.write(&render(1, 0, 1, 0, 4096), 4096).unwrap();
        assert_eq!(disk.failed(), 1);
        disk.fail_flushes(1);
        assert!(disk.flush(disk.flush_arrives()).is_err());
        disk.flush(disk.flush_arrives()).unwrap();
        assert!(matches!(disk.take_log().last(), Some(Entry::Flush { .. })));
        let mut found = [0; 8];
        disk.read(&mut found, 4096).unwrap();
        assert_eq!(found, render(1, 0, 1, 0, 8)[..]);
    }
}
