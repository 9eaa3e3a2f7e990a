//! The files and directories a client has open.
//!
//! A handle is a slot's number in the low half and a generation in the high half, so that one that was released is
//! never taken for its successor. The table is sharded; a shard's lock is held for as long as it takes to clone an
//! `Arc`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ashore_server::Result;
use ashore_wire::{Errno, FileHandle, NodeId};
use parking_lot::Mutex;

use crate::directory::Position;
use crate::dirt::Mark;
use crate::sync::FileSync;

const SHARDS: u32 = 16;

/// Something a client has open.
pub(crate) struct OpenFile {
    /// The inode it was opened by; no other may use it.
    pub(crate) node: NodeId,
    /// The index of the place it is at.
    pub(crate) place: u32,
    /// Written since the last FLUSH.
    pub(crate) written: AtomicBool,
    /// Its data is written by the client's kernel, unseen.
    pub(crate) written_by_kernel: AtomicBool,
    /// When it was put on the list of what the next sync covers.
    pub(crate) dirty: Mark,
    /// Its fsyncs.
    pub(crate) sync: FileSync,
    /// Where a directory is being read. `None` for a file.
    pub(crate) position: Option<Mutex<Position>>,
    descriptor: OwnedFd,
}

impl OpenFile {
    /// An open file.
    pub(crate) fn file(node: NodeId, place: u32, descriptor: OwnedFd) -> OpenFile {
        OpenFile {
            node,
            place,
            written: AtomicBool::new(false),
            written_by_kernel: AtomicBool::new(false),
            dirty: Mark::default(),
            sync: FileSync::default(),
            position: None,
            descriptor,
        }
    }

    /// An open directory.
    pub(crate) fn directory(node: NodeId, place: u32, descriptor: OwnedFd) -> OpenFile {
        OpenFile { position: Some(Mutex::default()), ..OpenFile::file(node, place, descriptor) }
    }

    /// The host's descriptor. Not a path descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// All that is open.
#[derive(Default)]
pub(crate) struct Handles {
    shards: [Mutex<Shard>; SHARDS as usize],
    next_shard: AtomicU32,
    /// The highest generation of a handle that was restored.
    restored: AtomicU32,
}

#[derive(Default)]
struct Shard {
    slots: Vec<(u32, Option<Arc<OpenFile>>)>,
    free: Vec<u32>,
    /// The generation of slots that were never used.
    first_generation: u32,
}

impl Handles {
    /// Gives an open file a handle.
    pub(crate) fn add(&self, file: impl Into<Arc<OpenFile>>) -> FileHandle {
        let number = self.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut shard = self.shards[number as usize].lock();
        let index = shard.free.pop().unwrap_or_else(|| {
            let first = shard.first_generation;
            shard.slots.push((first, None));
            (shard.slots.len() - 1) as u32
        });
        let (generation, slot) = &mut shard.slots[index as usize];
        *slot = Some(file.into());
        FileHandle(u64::from(*generation) << 32 | u64::from(index * SHARDS + number))
    }

    /// Makes a handle of an earlier process valid again.
    pub(crate) fn restore(&self, handle: FileHandle, file: OpenFile) {
        let (shard, index, generation) = self.locate(handle);
        let slots = &mut shard.lock().slots;
        slots.resize_with(slots.len().max(index + 1), Default::default);
        slots[index] = (generation, Some(Arc::new(file)));
    }

    /// Everything that is open.
    pub(crate) fn all(&self) -> Vec<(FileHandle, Arc<OpenFile>)> {
        let mut all = Vec::new();
        for (number, shard) in (0..).zip(&self.shards) {
            for (index, (generation, file)) in (0..).zip(&shard.lock().slots) {
                if let Some(file) = file {
                    let id = u64::from(*generation) << 32 | u64::from(index * SHARDS + number);
                    all.push((FileHandle(id), Arc::clone(file)));
                }
            }
        }
        all
    }

    /// This handle was given out by an earlier process, and so will not be given out again.
    pub(crate) fn note_restored(&self, handle: FileHandle) {
        self.restored.fetch_max((handle.0 >> 32) as u32, Ordering::Relaxed);
    }

    /// All is restored: other handles are new ones from now on.
    pub(crate) fn restored(&self) {
        let first = self.restored.load(Ordering::Relaxed).wrapping_add(1);
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            shard.first_generation = first;
            shard.free.clear();
            for (index, (generation, file)) in (0..).zip(&mut shard.slots) {
                if file.is_none() {
                    *generation = first;
                    shard.free.push(index);
                }
            }
        }
    }

    /// The open file of a handle, if it was opened by this node.
    pub(crate) fn find(&self, handle: FileHandle, node: NodeId) -> Result<Arc<OpenFile>> {
        let (shard, index, generation) = self.locate(handle);
        let shard = shard.lock();
        match shard.slots.get(index) {
            Some((current, Some(file))) if *current == generation && file.node == node => {
                Ok(Arc::clone(file))
            }
            _ => Err(Errno::EBADF),
        }
    }

    /// Some other open file, for a deliberate bug.
    pub(crate) fn other_than(&self, file: &Arc<OpenFile>) -> Option<Arc<OpenFile>> {
        let open =
            self.shards.iter().flat_map(|shard| shard.lock().slots.clone()).filter_map(|(_, file)| file);
        open.into_iter().find(|other| !Arc::ptr_eq(other, file))
    }

    /// The handle is not valid any more. The file is closed when no request uses it.
    pub(crate) fn remove(&self, handle: FileHandle, node: NodeId) -> Result<Arc<OpenFile>> {
        let (shard, index, generation) = self.locate(handle);
        let mut guard = shard.lock();
        let shard = &mut *guard;
        let (current, slot) = shard.slots.get_mut(index).ok_or(Errno::EBADF)?;
        if *current != generation || slot.as_ref().is_none_or(|file| file.node != node) {
            return Err(Errno::EBADF);
        }
        let file = slot.take().ok_or(Errno::EBADF)?;
        *current = current.wrapping_add(1);
        shard.free.push(index as u32);
        Ok(file)
    }

    /// Closes everything: the client has gone.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut guard = shard.lock();
            let shard = &mut *guard;
            let mut closed = Vec::new();
            for (index, (generation, slot)) in shard.slots.iter_mut().enumerate() {
                if let Some(file) = slot.take() {
                    *generation = generation.wrapping_add(1);
                    shard.free.push(index as u32);
                    closed.push(file);
                }
            }
            drop(guard);
            drop(closed);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock()).map(|shard| shard.slots.len() - shard.free.len()).sum()
    }

    fn locate(&self, handle: FileHandle) -> (&Mutex<Shard>, usize, u32) {
        let number = handle.0 as u32;
        (&self.shards[(number % SHARDS) as usize], (number / SHARDS) as usize, (handle.0 >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(node: u64) -> OpenFile {
        OpenFile::file(NodeId(node), 0, tempfile::tempfile().unwrap().into())
    }

    #[test]
    fn a_handle_is_valid_for_its_node_until_it_is_released() {
        let handles = Handles::default();
        let first = handles.add(open(5));
        assert!(handles.find(first, NodeId(5)).is_ok());
        assert!(handles.find(first, NodeId(6)).is_err(), "another inode must not use it");
        assert!(handles.remove(first, NodeId(6)).is_err());
        handles.remove(first, NodeId(5)).unwrap();
        assert!(handles.find(first, NodeId(5)).is_err());
        assert!(handles.remove(first, NodeId(5)).is_err());
        let reused =
            (0..SHARDS).map(|_| handles.add(open(5))).find(|handle| handle.0 as u32 == first.0 as u32);
        assert_ne!(reused.unwrap(), first, "the slot again, the handle not");
        assert!(handles.find(first, NodeId(5)).is_err());
        handles.clear();
        assert_eq!(handles.len(), 0);
        assert!(handles.find(reused.unwrap(), NodeId(5)).is_err());
    }
}
