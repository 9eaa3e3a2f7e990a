//! Reads through the cache: what is there is copied, what is not is read from the server into the pages themselves.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use ashore_wire::abi::ReadIn;
use ashore_wire::{Errno, Opcode};

use super::Mount;
use super::inodes::{Inode, Locked, OpenHandle};
use super::message::{Answer, Outgoing, Segment};
use crate::core::inode::Missing;
use crate::core::pages::{Lookup, PAGE_SIZE, PageId};
use crate::primitives::atomic::{AtomicU64, Ordering};
use crate::primitives::{Mutex, MutexGuard};

/// Pages copied while an inode's lock is held, at most: others get their turn in a long read or write.
pub(crate) const PAGES_PER_TURN: u64 = 64;

/// Pages read ahead in one READ, at most: a reader goes on with the first of them while the server is at the next.
const PAGES_PER_PIECE: u64 = 64;

/// How far behind a reader pages of a file larger than the cache are looked for, to be dropped: a few windows.
const DROPPED_BEHIND: u64 = 4096;

/// How far ahead of a reader the cache is filled.
pub(crate) struct ReadAhead {
    plan: Mutex<Plan>,
    /// The page whose reading starts the next read-ahead. Looked at by every cached read, so outside the lock; an
    /// old value costs a request too early or too late, nothing else.
    trigger: AtomicU64,
}

#[derive(Default)]
struct Plan {
    /// Where a sequential reader's next miss would be.
    next: u64,
    /// Pages in the last read-ahead.
    window: u64,
}

impl ReadAhead {
    pub(crate) fn new() -> ReadAhead {
        ReadAhead { plan: Mutex::default(), trigger: AtomicU64::new(u64::MAX) }
    }

    /// A reader needs `demand` pages from `index`, which are not there. Returns how many to read: more and more, as
    /// long as he reads on where he stopped.
    fn missed(&self, index: u64, demand: u64, max: u64) -> u64 {
        let mut plan = self.plan.lock();
        let sequential = index == plan.next || index == 0;
        plan.window = if sequential { (plan.window * 2).max(demand * 4).min(max) } else { 0 };
        let total = demand.max(plan.window);
        self.planned(&mut plan, index, total);
        total
    }

    /// The reader has come to `index`: whether it is time to read on, from where and how many pages.
    fn hit(&self, index: u64, max: u64) -> Option<Range<u64>> {
        let mut plan = self.plan.lock();
        if index != self.trigger.load(Ordering::Relaxed) {
            return None;
        }
        plan.window = (plan.window * 2).min(max);
        let from = plan.next;
        let window = plan.window;
        self.planned(&mut plan, from, window);
        Some(from..from + window)
    }

    fn planned(&self, plan: &mut Plan, from: u64, pages: u64) {
        plan.next = from + pages;
        let trigger = if plan.window > 0 { plan.next - plan.window.div_ceil(2) } else { u64::MAX };
        self.trigger.store(trigger, Ordering::Relaxed);
    }
}

impl Mount {
    /// Reads what the cache has, and has it filled where there is nothing. Returns fewer bytes than asked for only
    /// at the end of the file, or if an error came after the first of them.
    pub(crate) fn read_cached(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        let mut locked = inode.lock();
        while done < buffer.len() {
            let position = offset + done as u64;
            let left = locked.core.size().saturating_sub(position).min((buffer.len() - done) as u64) as usize;
            if left == 0 {
                break;
            }
            let (index, in_page) = (position / PAGE_SIZE as u64, (position % PAGE_SIZE as u64) as usize);
            match locked.core.pages.lookup(index) {
                Lookup::Ready(page) => {
                    let pages = match (in_page + left).div_ceil(PAGE_SIZE) {
                        1 => 1,
                        most => locked.core.pages.ready_run(index, most as u64),
                    };
                    let length = left.min(pages as usize * PAGE_SIZE - in_page);
                    self.memory.read(page, in_page, &mut buffer[done..done + length]);
                    done += length;
                    let trigger = handle.read_ahead.trigger.load(Ordering::Relaxed);
                    if (index..index + pages).contains(&trigger) {
                        locked = self.read_on(inode, handle, trigger, locked);
                    } else if (index + pages).is_multiple_of(PAGES_PER_TURN) {
                        MutexGuard::bump(&mut locked);
                    }
                }
                Lookup::Filling => locked = self.await_filled(inode, index, locked),
                Lookup::Absent => {
                    let demand = (in_page + left).div_ceil(PAGE_SIZE) as u64;
                    match self.fill(inode, handle, index, demand, true, locked) {
                        Ok(again) => locked = again,
                        Err(_) if done > 0 => return Ok(done),
                        Err(errno) => return Err(errno),
                    }
                }
            }
        }
        Ok(done)
    }

    /// Brings the absent page at `index` in, and others a reader is likely to want. Returns once it has been tried,
    /// with the lock, which was given up meanwhile: the caller looks again.
    pub(crate) fn fill<'a>(
        self: &Arc<Self>,
        inode: &'a Arc<Inode>,
        handle: &Arc<OpenHandle>,
        index: u64,
        demand: u64,
        read_ahead: bool,
        mut locked: MutexGuard<'a, Locked>,
    ) -> Result<MutexGuard<'a, Locked>, Errno> {
        if locked.core.missing(index, 1) == Missing::Zeros {
            let Some(page) = self.pool.take_one() else {
                drop(locked);
                self.make_room(1)?;
                return Ok(inode.lock());
            };
            self.memory.zero(page, 0..PAGE_SIZE);
            locked.core.pages.insert(index, page, false);
            self.put_on_clock(inode, &mut locked);
            return Ok(locked);
        }
        let max = self.agreed().readahead_pages;
        let wanted = if read_ahead { handle.read_ahead.missed(index, demand, max) } else { demand };
        let first = wanted.min(self.agreed().write_pages).min(PAGES_PER_PIECE);
        let Some(outcome) = self.start_fill(inode, handle, index, first, &mut locked) else {
            drop(locked);
            self.make_room(first as usize)?;
            return Ok(inode.lock());
        };
        drop(locked);
        if wanted > first {
            self.fill_ahead(inode, handle, index + first..index + wanted);
        }
        self.connection.attend(&mut || outcome.get().is_some());
        let mut locked = inode.lock();
        while outcome.get().is_none() {
            inode.wait(&mut locked);
        }
        outcome.get().copied().expect("it has just been seen")?;
        Ok(locked)
    }

    /// Waits for an answer that may be that of the READ which fills this page. The caller looks again.
    fn await_filled<'a>(
        &self,
        inode: &'a Inode,
        index: u64,
        locked: MutexGuard<'a, Locked>,
    ) -> MutexGuard<'a, Locked> {
        let is_filling =
            |locked: &mut MutexGuard<'a, Locked>| locked.core.pages.lookup(index) == Lookup::Filling;
        drop(locked);
        self.connection.attend(&mut || !is_filling(&mut inode.lock()));
        let mut locked = inode.lock();
        if is_filling(&mut locked) {
            inode.wait(&mut locked);
        }
        locked
    }

    /// The reader has come to the page from which on it is time to read ahead.
    fn read_on<'a>(
        self: &Arc<Self>,
        inode: &'a Arc<Inode>,
        handle: &Arc<OpenHandle>,
        index: u64,
        locked: MutexGuard<'a, Locked>,
    ) -> MutexGuard<'a, Locked> {
        drop(locked);
        if let Some(ahead) = handle.read_ahead.hit(index, self.agreed().readahead_pages) {
            let behind = index.saturating_sub(ahead.end - ahead.start);
            self.drop_behind(&mut inode.lock(), behind.saturating_sub(DROPPED_BEHIND)..behind);
            self.fill_ahead(inode, handle, ahead);
        }
        inode.lock()
    }

    /// Asks for pages nobody waits for. Best effort: stops at the first page there is no memory for.
    fn fill_ahead(self: &Arc<Self>, inode: &Arc<Inode>, handle: &Arc<OpenHandle>, range: Range<u64>) {
        let mut index = range.start;
        while index < range.end {
            let count = (range.end - index).min(self.agreed().write_pages).min(PAGES_PER_PIECE);
            if self.pool.free() < count as usize && self.evict(count as usize) < count as usize {
                return;
            }
            let mut locked = inode.lock();
            let Some(start) = locked.core.pages.first_absent(index..index + count) else {
                index += count;
                continue;
            };
            let count = count - (start - index);
            if locked.core.missing(start, 1) == Missing::Zeros
                || self.start_fill(inode, handle, start, count, &mut locked).is_none()
            {
                return;
            }
            index = start + count;
        }
    }

    /// Sends one READ for the absent page at `index` and as many absent ones behind it as were wanted. `None` if
    /// there is no memory.
    fn start_fill(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: &Arc<OpenHandle>,
        index: u64,
        wanted: u64,
        locked: &mut Locked,
    ) -> Option<Arc<OnceLock<Result<(), Errno>>>> {
        let Missing::Read(range) = locked.core.missing(index, wanted) else { return None };
        let pages = self.pool.take((range.end - range.start) as usize)?;
        for (index, page) in range.clone().zip(&pages) {
            locked.core.pages.insert(index, *page, true);
        }
        self.put_on_clock(inode, locked);
        let outcome = Arc::new(OnceLock::new());
        let (mount, held, seen, handle_held) =
            (Arc::clone(self), Arc::clone(inode), Arc::clone(&outcome), Arc::clone(handle));
        let request = read_request(handle, &range, &pages);
        let filled = Box::new(move |answer: Result<Answer, Errno>| {
            mount.filled(&held, &range, &pages, answer, &seen);
            drop(handle_held);
        });
        self.send(request, None, filled);
        Some(outcome)
    }

    /// A READ into the cache has been answered.
    fn filled(
        &self,
        inode: &Inode,
        range: &Range<u64>,
        pages: &[PageId],
        answer: Result<Answer, Errno>,
        outcome: &OnceLock<Result<(), Errno>>,
    ) {
        let mut locked = inode.lock();
        match answer {
            Ok(Answer { in_place, .. }) => {
                let start = range.start * PAGE_SIZE as u64;
                let came = start + in_place as u64;
                locked.core.ended_early_if(in_place < pages.len() * PAGE_SIZE, came);
                // Behind the end of the file everything is zero, or a later write past it would bring to light
                // what the server, or a page's earlier user, had left there.
                let valid = came.min(locked.core.size());
                for (index, page) in range.clone().zip(pages) {
                    let keep = valid.saturating_sub(index * PAGE_SIZE as u64).min(PAGE_SIZE as u64) as usize;
                    self.memory.zero(*page, keep..PAGE_SIZE);
                    locked.core.pages.filled(index);
                }
                _ = outcome.set(Ok(()));
            }
            Err(errno) => {
                let freed = range.clone().filter_map(|index| locked.core.pages.remove_filling(index));
                let freed: Vec<_> = freed.collect();
                self.pool.give(freed);
                _ = outcome.set(Err(errno));
            }
        }
        drop(locked);
        inode.changed.notify_all();
    }
}

fn read_request(handle: &OpenHandle, range: &Range<u64>, pages: &[PageId]) -> Outgoing {
    let size = (pages.len() * PAGE_SIZE) as u32;
    let offset = range.start * PAGE_SIZE as u64;
    let read = ReadIn { fh: handle.handle.0, offset, size, flags: handle.flags, ..Default::default() };
    let target = pages.iter().map(|page| Segment { page: *page, length: PAGE_SIZE as u32 });
    Outgoing::new(Opcode::Read, handle.node).with(&read).into_pages(target.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_more_and_more_and_a_random_one_what_he_asked_for() {
        let ahead = ReadAhead::new();
        assert_eq!(ahead.missed(0, 1, 256), 4);
        assert_eq!(ahead.missed(4, 1, 256), 8);
        assert_eq!(ahead.hit(7, 256), None);
        assert_eq!(ahead.hit(8, 256), Some(12..28));
        assert_eq!(ahead.missed(1000, 2, 256), 2);
        assert_eq!(ahead.missed(77, 2, 256), 2);
    }
}
