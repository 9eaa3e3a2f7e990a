//! What is in a file: pages, of which some were never written.

use std::collections::BTreeMap;

use ashore_server::Result;
use ashore_wire::Errno;

const PAGE: usize = 4096;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Bytes with holes, which read as zeros.
#[derive(Default)]
pub(super) struct Sparse {
    size: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Sparse {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory in use.
    pub(super) fn allocated(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// As many of these bytes as there are.
    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let length = (length as u64).min(self.size.saturating_sub(offset)) as usize;
        let mut bytes = vec![0; length];
        for (page, within, at) in pieces(offset, length) {
            if let Some(data) = self.pages.get(&page) {
                bytes[at..at + within.len()].copy_from_slice(&data[within]);
            }
        }
        bytes
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, within, at) in pieces(offset, bytes.len()) {
            let length = within.len();
            self.page(page)[within].copy_from_slice(&bytes[at..at + length]);
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_size(&mut self, size: u64) {
        if size < self.size {
            // What lies behind a shorter end must not come back when the file grows.
            self.punch(size, self.size.next_multiple_of(PAGE as u64) - size);
        }
        self.size = size;
    }

    /// Takes memory for these bytes, and leaves the size.
    pub(super) fn allocate(&mut self, offset: u64, length: u64) {
        pieces(offset, length as usize).for_each(|(page, ..)| _ = self.page(page));
    }

    /// Makes these bytes zero, and whole pages of them holes.
    pub(super) fn punch(&mut self, offset: u64, length: u64) {
        for (page, within, _) in pieces(offset, length as usize) {
            if within.len() == PAGE {
                self.pages.remove(&page);
            } else if let Some(data) = self.pages.get_mut(&page) {
                data[within].fill(0);
            }
        }
    }

    /// The next data or hole; the end of the file is a hole.
    pub(super) fn seek(&self, offset: u64, whence: u32) -> Result<u64> {
        if offset >= self.size {
            return Err(Errno::ENXIO);
        }
        let is_data = |page: &u64| self.pages.contains_key(page);
        let mut pages = offset / PAGE as u64..self.size.div_ceil(PAGE as u64);
        let found = match whence {
            SEEK_DATA => pages.find(is_data).ok_or(Errno::ENXIO)?,
            SEEK_HOLE => pages.find(|page| !is_data(page)).unwrap_or(u64::MAX / PAGE as u64),
            _ => return Err(Errno::EINVAL),
        };
        Ok((found * PAGE as u64).clamp(offset, self.size))
    }

    fn page(&mut self, page: u64) -> &mut [u8; PAGE] {
        self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]))
    }
}

/// The parts of some bytes by page: its number, where in it, and where in the bytes.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = ((offset + at as u64) % PAGE as u64) as usize;
        let end = PAGE.min(start + (length - at));
        let piece = ((offset + at as u64) / PAGE as u64, start..end, at);
        at += end - start;
        (start < end).then_some(piece)
    })
}
