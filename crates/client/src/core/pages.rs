//! The cached pages of one file: which there are, and which state each is in.
//!
//! ```text
//!                fill asked              fill came
//!      absent ────────────────► filling ──────────► clean ◄──────────────┐
//!        ▲  │                                       │  ▲                  │
//!        │  └──── all of it written ────────────────│──│──► dirty         │
//!        └───────────── evicted ────────────────────┘  │      │ barrier entered, then taken
//!                                                      │      ▼           │
//!                                              answered└── in writeback ──┘
//!                                                             │  ▲
//!                                                     written │  │ never: it is *redirtied*,
//!                                                             ▼  │ dirty and in writeback at once
//!                                                          redirtied ── answered ──► dirty
//! ```
//!
//! A page that is written to while its write is in flight is dirty *and* in writeback. The answer to that write
//! ends the writeback only; the page stays dirty, for its new content was not in it, or not all of it.
//!
//! Pages are kept in chunks of 64, a bit map for each state: finding the next run of dirty pages or a page to
//! evict looks at 64 pages at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mutant::{self, Mutant};

/// Bytes of a page.
pub(crate) const PAGE_SIZE: usize = ashore_wire::link::PAGE_BYTES;
const PAGES_IN_CHUNK: u64 = 64;

/// A page of the link's shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct PageId(pub(crate) u32);

/// What there is at a place in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    /// Nothing.
    Absent,
    /// A read from the server is under way.
    Filling,
    /// Content.
    Ready(PageId),
}

/// Where each cached page of a file is, and in which state.
#[derive(Debug, Default)]
pub(crate) struct PageTable {
    chunks: BTreeMap<u64, Box<Chunk>>,
    present: usize,
    dirty: usize,
    writeback: usize,
    filling: usize,
}

#[derive(Debug)]
struct Chunk {
    present: u64,
    dirty: u64,
    writeback: u64,
    filling: u64,
    /// Used since the last sweep of the evictor.
    referenced: u64,
    pages: [PageId; PAGES_IN_CHUNK as usize],
}

impl PageTable {
    /// What is cached at `index`. Counts as a use of the page.
    #[inline]
    pub(crate) fn lookup(&mut self, index: u64) -> Lookup {
        let (chunk, bit) = place(index);
        let Some(chunk) = self.chunks.get_mut(&chunk) else { return Lookup::Absent };
        let mask = 1 << bit;
        if chunk.present & mask == 0 {
            return Lookup::Absent;
        }
        chunk.referenced |= mask;
        if chunk.filling & mask != 0 { Lookup::Filling } else { Lookup::Ready(chunk.pages[bit]) }
    }

    /// How many pages from `index` on, which is ready, are so too and follow each other in memory: at most `most`, and none
    /// behind the end of a chunk. Counts as a use of them.
    pub(crate) fn ready_run(&mut self, index: u64, most: u64) -> u64 {
        let (number, first) = place(index);
        let Some(chunk) = self.chunks.get_mut(&number) else { return 1 };
        let end = PAGES_IN_CHUNK.min(first as u64 + most) as usize;
        let ready = chunk.present & !chunk.filling;
        let follows = |bit: &usize| {
            ready & 1 << bit != 0 && chunk.pages[*bit].0 == chunk.pages[bit - 1].0.wrapping_add(1)
        };
        let run = 1 + (first + 1..end).take_while(follows).count();
        chunk.referenced |= u64::MAX >> (PAGES_IN_CHUNK as usize - run) << first;
        run as u64
    }

    /// How many pages from `index` on, which is absent, are so too: at most `most`, and none behind the end of a chunk.
    pub(crate) fn absent_run(&self, index: u64, most: u64) -> u64 {
        let (number, first) = place(index);
        let present = self.chunks.get(&number).map_or(0, |chunk| chunk.present >> first);
        u64::from(present.trailing_zeros()).min(PAGES_IN_CHUNK - first as u64).min(most)
    }

    /// Puts a page in an empty place: to be filled by a read, or ready.
    pub(crate) fn insert(&mut self, index: u64, page: PageId, filling: bool) {
        let (number, bit) = place(index);
        let chunk = self.chunks.entry(number).or_insert_with(|| Box::new(Chunk::empty()));
        let mask = 1 << bit;
        assert_eq!(chunk.present & mask, 0, "a page is put only where there is none");
        chunk.present |= mask;
        chunk.referenced |= mask;
        chunk.pages[bit] = page;
        self.present += 1;
        if filling {
            chunk.filling |= mask;
            self.filling += 1;
        }
    }

    /// The read that was to fill this page has come: its content counts.
    pub(crate) fn filled(&mut self, index: u64) {
        let (chunk, mask) = self.chunk_mut(index);
        assert_ne!(chunk.filling & mask, 0, "only a page being filled can have been filled");
        chunk.filling &= !mask;
        self.filling -= 1;
    }

    /// The page's content is newer than the server's. `true` if it was clean, or was being written as it had been.
    #[inline]
    pub(crate) fn set_dirty(&mut self, index: u64) -> bool {
        let (chunk, mask) = self.chunk_mut(index);
        let newly = chunk.dirty & mask == 0;
        chunk.dirty |= mask;
        self.dirty += usize::from(newly);
        newly
    }

    /// The first run of pages in `range` that are dirty and not being written, at most `max` pages long.
    pub(crate) fn next_run(&self, range: Range<u64>, max: u64) -> Option<Range<u64>> {
        let start = self.first(range.clone(), |chunk| chunk.dirty & !chunk.writeback)?;
        let end = (start + 1..range.end.min(start + max))
            .find(|index| !self.has(*index, |chunk| chunk.dirty & !chunk.writeback))
            .unwrap_or(range.end.min(start + max));
        Some(start..end)
    }

    /// These pages stop being dirty, because their content is about to be sent. The barrier has been entered.
    pub(crate) fn start_writeback(&mut self, run: Range<u64>) -> Vec<PageId> {
        let mut pages = Vec::with_capacity((run.end - run.start) as usize);
        for index in run {
            let (chunk, mask) = self.chunk_mut(index);
            assert!(
                chunk.dirty & mask != 0 && chunk.writeback & mask == 0,
                "only a dirty page is written back"
            );
            chunk.dirty &= !mask;
            chunk.writeback |= mask;
            pages.push(chunk.pages[place(index).1]);
            self.dirty -= 1;
            self.writeback += 1;
        }
        pages
    }

    /// The write of these pages has been answered. Those redirtied meanwhile stay dirty.
    pub(crate) fn end_writeback(&mut self, run: Range<u64>) {
        for index in run {
            let (chunk, mask) = self.chunk_mut(index);
            assert_ne!(chunk.writeback & mask, 0, "only a page in writeback can end it");
            chunk.writeback &= !mask;
            let forgotten = if mutant::on(Mutant::RedirtiedIsClean) { chunk.dirty & mask } else { 0 };
            chunk.dirty &= !forgotten;
            self.writeback -= 1;
            self.dirty -= usize::from(forgotten != 0);
        }
    }

    /// Takes a page out. It must be neither in writeback nor being filled; if it is dirty its content is lost.
    pub(crate) fn remove(&mut self, index: u64) -> Option<PageId> {
        let (number, bit) = place(index);
        let chunk = self.chunks.get_mut(&number)?;
        let mask = 1 << bit;
        if chunk.present & mask == 0 {
            return None;
        }
        assert_eq!((chunk.writeback | chunk.filling) & mask, 0, "a page the server may still touch stays");
        self.present -= 1;
        self.dirty -= usize::from(chunk.dirty & mask != 0);
        chunk.present &= !mask;
        chunk.dirty &= !mask;
        let page = chunk.pages[bit];
        if chunk.present == 0 {
            self.chunks.remove(&number);
        }
        Some(page)
    }

    /// Takes a page out whose fill failed or is not wanted any more.
    pub(crate) fn remove_filling(&mut self, index: u64) -> Option<PageId> {
        self.filled(index);
        self.remove(index)
    }

    /// Takes out all pages in `range` that [`PageTable::remove`] could take out and that `clean_only` allows.
    pub(crate) fn remove_range(&mut self, range: Range<u64>, clean_only: bool) -> Vec<PageId> {
        let mut removed = Vec::new();
        let mut from = range.start;
        let removable = |chunk: &Chunk| {
            chunk.present & !chunk.writeback & !chunk.filling & if clean_only { !chunk.dirty } else { !0 }
        };
        while let Some(index) = self.first(from..range.end, removable) {
            removed.extend(self.remove(index));
            from = index + 1;
        }
        removed
    }

    /// Takes out up to `max` clean pages that were not used since the last sweep; used ones get a second chance.
    pub(crate) fn evict(&mut self, max: usize) -> Vec<PageId> {
        let mut victims = Vec::new();
        for (number, chunk) in &mut self.chunks {
            let mut idle = chunk.idle() & !chunk.referenced;
            chunk.referenced = 0;
            while idle != 0 && victims.len() < max {
                victims.push(number * PAGES_IN_CHUNK + u64::from(idle.trailing_zeros()));
                idle &= idle - 1;
            }
            if victims.len() == max {
                break;
            }
        }
        victims.into_iter().filter_map(|index| self.remove(index)).collect()
    }

    /// The first page in `range` that is being written or filled: one the server may still touch.
    pub(crate) fn first_busy(&self, range: Range<u64>) -> Option<u64> {
        self.first(range, |chunk| chunk.writeback | chunk.filling)
    }

    /// The first place in `range` where nothing is cached, nor on its way.
    pub(crate) fn first_absent(&self, mut range: Range<u64>) -> Option<u64> {
        range.find(|index| !self.has(*index, |chunk| chunk.present))
    }

    /// The first page in `range` that is dirty and being written at once.
    pub(crate) fn first_redirtied(&self, range: Range<u64>) -> Option<u64> {
        self.first(range, |chunk| chunk.dirty & chunk.writeback)
    }

    /// The first page in `range` that is dirty.
    pub(crate) fn first_dirty(&self, range: Range<u64>) -> Option<u64> {
        self.first(range, |chunk| chunk.dirty)
    }

    /// Behind the last page that is dirty.
    pub(crate) fn dirty_end(&self) -> u64 {
        let last = self.chunks.iter().rev().find(|(_, chunk)| chunk.dirty != 0);
        last.map_or(0, |(number, chunk)| {
            (number + 1) * PAGES_IN_CHUNK - u64::from(chunk.dirty.leading_zeros())
        })
    }

    /// Pages there are.
    pub(crate) fn len(&self) -> usize {
        self.present
    }

    /// Pages that are dirty, redirtied ones included.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    /// Pages whose write is in flight.
    pub(crate) fn writeback(&self) -> usize {
        self.writeback
    }

    fn chunk_mut(&mut self, index: u64) -> (&mut Chunk, u64) {
        let (chunk, bit) = place(index);
        let chunk = self.chunks.get_mut(&chunk).expect("the caller has just seen this page");
        (chunk, 1 << bit)
    }

    fn has(&self, index: u64, state: impl Fn(&Chunk) -> u64) -> bool {
        let (chunk, bit) = place(index);
        self.chunks.get(&chunk).is_some_and(|chunk| state(chunk) & (1 << bit) != 0)
    }

    fn first(&self, range: Range<u64>, state: impl Fn(&Chunk) -> u64) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        let chunks = self.chunks.range(range.start / PAGES_IN_CHUNK..=(range.end - 1) / PAGES_IN_CHUNK);
        for (number, chunk) in chunks {
            let base = number * PAGES_IN_CHUNK;
            let skip = range.start.saturating_sub(base);
            let wanted = state(chunk) & (!0 << skip);
            if wanted != 0 {
                return Some(base + u64::from(wanted.trailing_zeros())).filter(|index| *index < range.end);
            }
        }
        None
    }
}

impl Chunk {
    fn empty() -> Chunk {
        Chunk {
            present: 0,
            dirty: 0,
            writeback: 0,
            filling: 0,
            referenced: 0,
            pages: [PageId(u32::MAX); PAGES_IN_CHUNK as usize],
        }
    }

    fn idle(&self) -> u64 {
        self.present & !self.dirty & !self.writeback & !self.filling
    }
}

#[inline]
fn place(index: u64) -> (u64, usize) {
    (index / PAGES_IN_CHUNK, (index % PAGES_IN_CHUNK) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(indices: Range<u64>) -> PageTable {
        let mut table = PageTable::default();
        indices.for_each(|index| table.insert(index, PageId(index as u32), false));
        table
    }

    #[test]
    fn a_run_ends_where_memory_or_a_chunk_does_or_at_what_is_not_there() {
        let mut table = table(0..70);
        assert_eq!((table.ready_run(0, 100), table.ready_run(60, 100), table.ready_run(3, 2)), (64, 4, 2));
        table.insert(72, PageId(72), true);
        assert_eq!((table.ready_run(64, 9), table.absent_run(70, 9), table.absent_run(73, 100)), (6, 2, 55));
        table.insert(70, PageId(7), false);
        assert_eq!((table.ready_run(69, 9), table.absent_run(200, 3)), (1, 3));
    }

    #[test]
    fn a_page_redirtied_in_flight_stays_dirty_after_the_answer() {
        let mut table = table(0..1);
        assert!(table.set_dirty(0));
        table.start_writeback(0..1);
        assert_eq!((table.dirty(), table.writeback()), (0, 1));
        assert!(table.set_dirty(0), "it was being written as it had been");
        assert_eq!(table.next_run(0..1, 16), None, "two writes of one page could overtake each other");
        assert_eq!(table.first_redirtied(0..1), Some(0));
        table.end_writeback(0..1);
        assert_eq!(table.next_run(0..1, 16), Some(0..1));
    }

    #[test]
    fn runs_end_at_gaps_at_the_maximum_and_at_the_range() {
        let mut table = table(0..200);
        (10..150).chain(160..170).for_each(|index| _ = table.set_dirty(index));
        assert_eq!(table.next_run(0..200, 64), Some(10..74));
        assert_eq!(table.next_run(74..200, 256), Some(74..150));
        assert_eq!(table.next_run(150..165, 256), Some(160..165));
        assert_eq!(table.next_run(170..200, 256), None);
        assert_eq!(table.dirty_end(), 170);
    }

    #[test]
    fn eviction_takes_what_is_clean_and_was_not_used_since_the_last_sweep() {
        let mut table = table(0..130);
        table.set_dirty(3);
        table.set_dirty(4);
        table.start_writeback(4..5);
        assert!(table.evict(1000).is_empty(), "all are fresh");
        table.lookup(7);
        let evicted = table.evict(1000);
        assert_eq!(evicted.len(), 127);
        assert!([3, 4, 7].iter().all(|index| !evicted.contains(&PageId(*index))));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_filling_page_is_neither_content_nor_evicted_nor_removed() {
        let mut table = table(0..0);
        table.insert(5, PageId(1), true);
        assert_eq!(table.lookup(5), Lookup::Filling);
        assert!(table.remove_range(0..100, false).is_empty());
        assert_eq!(table.first_busy(0..100), Some(5));
        table.filled(5);
        assert_eq!(table.lookup(5), Lookup::Ready(PageId(1)));
        assert_eq!(table.remove_range(0..100, true), [PageId(1)]);
        assert_eq!(table.lookup(5), Lookup::Absent);
    }
}
