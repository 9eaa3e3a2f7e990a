//! The inodes a client has looked up.
//!
//! A node id says where its slot is (low half) and which of the inodes that had this slot in turn is meant (high
//! half), so that an id given out once is never taken for another. Node 1 is the root, and has no slot.
//!
//! ```text
//!   node id   generation | number          number = index in the shard * shards + shard
//!                            |
//!   shard     slots [ .. | slot | .. ]     found again by identity: device, mount, inode number
//!                            |
//!   slot      located by a file handle (80 bytes in all, no descriptor), or by a descriptor of its own
//! ```
//!
//! A slot located by handle may have an open path descriptor beside it, so that the next requests on it need not
//! open it again. How many there are is bounded; which go is decided by a clock hand that passes over those used
//! since it last came by.
//!
//! A shard's lock covers its slots and is never held over a system call.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use ashore_wire::NodeId;
use parking_lot::Mutex;

use crate::sys::RawHandle;

/// Shards, so that threads seldom meet. Numbers below this are not given out, 1 being the root.
const SHARDS: u32 = 16;
/// Stands in for a position in the ring where an inode is held by a descriptor though it could be by handle.
const HELD: u32 = u32::MAX;
/// Bytes of a file handle that are kept in the slot itself: ext4 needs 8, xfs 12, btrfs 20.
const SHORT_HANDLE: usize = 24;

/// A file descriptor that outlives the slot it came from as long as a request uses it.
pub(crate) type SharedFd = Arc<OwnedFd>;

/// All inodes but the root.
pub(crate) struct Inodes {
    shards: Box<[Mutex<Shard>]>,
    live: AtomicUsize,
    /// Inodes held by [`Inodes::hold`], and how many there may be.
    held: AtomicUsize,
    held_bound: usize,
    /// The highest generation of an id that was restored.
    restored: AtomicU32,
    /// Nodes that another server gave out, by an identity that would put them into another shard here. Looked at after the
    /// shard, and only if there are any; who is gone is found to be when it is looked for.
    foreign: Mutex<HashMap<Packed, NodeId>>,
    has_foreign: AtomicBool,
}

/// What makes two names lead to the same inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    /// The index of its place, that is of its device and mount.
    pub(crate) place: u32,
    /// The inode's number.
    pub(crate) ino: u64,
}

/// An inode as a lookup found it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Which it is.
    pub(crate) key: Key,
    /// When it was made, in nanoseconds; 0 where nobody knows.
    pub(crate) birth: u64,
    /// The kind of file: the bits of `S_IFMT`.
    pub(crate) kind: u32,
}

/// How an inode is opened again.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// By this path descriptor.
    Descriptor(SharedFd),
    /// By a file handle of at most 24 bytes.
    Short {
        /// How the file system reads the bytes.
        kind: i32,
        /// How many count.
        length: u8,
        /// The bytes.
        bytes: [u8; SHORT_HANDLE],
    },
    /// By a longer one.
    Long(Box<(i32, Box<[u8]>)>),
}

impl Location {
    /// A location by file handle.
    pub(crate) fn by_handle(handle: &RawHandle) -> Location {
        let found = handle.bytes();
        if found.len() > SHORT_HANDLE {
            return Location::Long(Box::new((handle.kind(), found.into())));
        }
        let mut bytes = [0; SHORT_HANDLE];
        bytes[..found.len()].copy_from_slice(found);
        Location::Short { kind: handle.kind(), length: found.len() as u8, bytes }
    }

    /// The file handle, if that is how it is located.
    pub(crate) fn handle(&self) -> Option<RawHandle> {
        match self {
            Location::Descriptor(_) => None,
            Location::Short { kind, length, bytes } => {
                Some(RawHandle::new(*kind, &bytes[..usize::from(*length)]))
            }
            Location::Long(handle) => Some(RawHandle::new(handle.0, &handle.1)),
        }
    }

    fn same_handle(&self, other: &Location) -> bool {
        match (self.handle(), other.handle()) {
            (Some(a), Some(b)) => a.kind() == b.kind() && a.bytes() == b.bytes(),
            _ => false,
        }
    }
}

/// What a request needs to know of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// What it is.
    pub(crate) candidate: Candidate,
    /// A path descriptor of it or, if none is open, its handle.
    pub(crate) location: Location,
    /// Whether the handle is known to lead to this inode. One that was taken by name may not, if the name was given
    /// to another file in between.
    pub(crate) verified: bool,
}

/// What became of a candidate.
pub(crate) enum Recognised {
    /// It has this node, and one more lookup.
    Known(NodeId),
    /// It is new, or cannot be told from one that is known without its location.
    Unknown,
}

struct Slot {
    lookups: u64,
    ino: u64,
    birth: u64,
    /// `None`: the slot is free.
    location: Option<Location>,
    /// An open path descriptor of an inode located by handle.
    cached: Option<SharedFd>,
    generation: u32,
    place: u32,
    /// Where in the shard's ring this slot stands, if it has a cached descriptor.
    ring_position: u32,
    /// The kind of file, `S_IFMT` shifted down to one digit.
    kind: u8,
    /// Used since the clock hand last passed.
    referenced: bool,
    verified: bool,
    /// Found by its key. Not so if its number has gone to another file.
    indexed: bool,
}

/// What a freed slot held; to be dropped outside the lock, for it may close descriptors.
struct Remains {
    was_held: bool,
    _location: Option<Location>,
    _cached: Option<SharedFd>,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Packed, u32, BuildHasherDefault<Mixer>>,
    /// Slots with a cached descriptor.
    ring: Vec<u32>,
    hand: usize,
    /// Cached descriptors, at most.
    bound: usize,
    /// The generation of slots that were never used.
    first_generation: u32,
}

impl Inodes {
    /// An empty table that keeps at most about `descriptor_bound` descriptors open beside handles.
    pub(crate) fn new(descriptor_bound: usize) -> Inodes {
        let bound = (descriptor_bound / SHARDS as usize).max(1);
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard { bound, ..Default::default() })).collect();
        Inodes {
            shards,
            live: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            held_bound: descriptor_bound,
            restored: AtomicU32::new(0),
            foreign: Mutex::default(),
            has_foreign: AtomicBool::new(false),
        }
    }

    /// What a node is, and where: not its cached descriptor.
    pub(crate) fn located(&self, node: NodeId) -> Option<(Candidate, Location)> {
        let (shard, index, generation) = self.locate(node)?;
        let shard = shard.lock();
        let slot = shard.slots.get(index).filter(|slot| slot.generation == generation)?;
        Some((slot.candidate(), slot.location.clone()?))
    }

    /// This id was given out by an earlier process, and so will not be given out again.
    pub(crate) fn note_restored(&self, node: NodeId) {
        self.restored.fetch_max((node.0 >> 32) as u32, Ordering::Relaxed);
    }

    /// Makes a node of an earlier process valid again. `false`: its id is none, or is in use.
    pub(crate) fn restore(
        &self,
        node: NodeId,
        lookups: u64,
        candidate: &Candidate,
        location: Location,
    ) -> bool {
        let Some((shard, index, generation)) = self.locate(node) else { return false };
        let foreign = shard_number(candidate.key) != node.0 as u32 % SHARDS;
        let mut guard = shard.lock();
        let shard = &mut *guard;
        while shard.slots.len() <= index {
            let unused = shard.add_slot();
            shard.free.push(unused);
        }
        let slot = &mut shard.slots[index];
        if slot.location.is_some() {
            return false;
        }
        slot.fill(candidate, location, false);
        (slot.lookups, slot.generation) = (lookups, generation);
        if foreign {
            slot.indexed = false;
            drop(guard);
            self.foreign.lock().insert(candidate.key.pack(), node);
            self.has_foreign.store(true, Ordering::Release);
            self.live.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        // Of two nodes with one number the newer is the one to be found: the older is a file that is gone.
        let key = candidate.key.pack();
        let older = shard.by_key.insert(key, index as u32);
        if let Some(older) = older {
            shard.slots[older as usize].indexed = false;
        }
        drop(guard);
        self.live.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// All is restored: other ids are new ones from now on.
    pub(crate) fn restored(&self) {
        let generation = self.restored.load(Ordering::Relaxed).wrapping_add(1);
        for shard in &self.shards {
            let mut guard = shard.lock();
            let shard = &mut *guard;
            shard.first_generation = generation;
            shard.free.clear();
            for (index, slot) in (0..).zip(&mut shard.slots) {
                if slot.location.is_none() {
                    slot.generation = generation;
                    shard.free.push(index);
                }
            }
        }
    }

    /// Every node, and how often it was looked up.
    pub(crate) fn all(&self) -> Vec<(NodeId, u64)> {
        let mut all = Vec::with_capacity(self.len());
        for (number, shard) in (0..).zip(&self.shards) {
            for (index, slot) in (0u32..).zip(&shard.lock().slots) {
                if slot.location.is_some() {
                    let id = u64::from(slot.generation) << 32 | u64::from((index + 1) * SHARDS + number);
                    all.push((NodeId(id), slot.lookups));
                }
            }
        }
        all
    }

    /// The node that another server gave to this identity, if it is still there.
    fn foreign(&self, key: Key) -> Option<NodeId> {
        if !self.has_foreign.load(Ordering::Acquire) {
            return None;
        }
        let node = *self.foreign.lock().get(&key.pack())?;
        let is_there = self.located(node).is_some();
        if !is_there {
            self.foreign.lock().remove(&key.pack());
        }
        is_there.then_some(node)
    }

    /// Counts a lookup of a foreign node if it is this candidate, as `same` decides.
    fn recognise_foreign(&self, key: Key, same: impl FnOnce(&Slot) -> bool) -> Option<NodeId> {
        let node = self.foreign(key)?;
        let (shard, index, generation) = self.locate(node)?;
        let mut shard = shard.lock();
        let slot = shard.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        if slot.location.is_none() || !same(slot) {
            return None;
        }
        slot.lookups += 1;
        Some(node)
    }

    /// Nodes that a client has looked up and not forgotten.
    pub(crate) fn len(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Looks a node up by its id. `None`: it was never given out, or has been forgotten.
    pub(crate) fn find(&self, node: NodeId) -> Option<Found> {
        let (shard, index, generation) = self.locate(node)?;
        let mut shard = shard.lock();
        let slot = shard.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        let location = slot.location.as_ref()?;
        let location = match &slot.cached {
            Some(descriptor) => {
                slot.referenced = true;
                Location::Descriptor(Arc::clone(descriptor))
            }
            None => location.clone(),
        };
        Some(Found { candidate: slot.candidate(), location, verified: slot.verified })
    }

    /// Recognises an inode that is known already, and counts the lookup.
    ///
    /// A number may have been given to a new file since. Not while we hold a descriptor of the old one; else the time
    /// of birth tells them apart, and where nobody knows that, the handle does.
    pub(crate) fn recognise(&self, candidate: &Candidate) -> Recognised {
        let mut guard = self.shard_of(candidate.key).lock();
        let shard = &mut *guard;
        let Some(&index) = shard.by_key.get(&candidate.key.pack()) else {
            drop(guard);
            let known = self.recognise_foreign(candidate.key, |slot| slot.is_surely(candidate));
            return known.map_or(Recognised::Unknown, Recognised::Known);
        };
        let slot = &mut shard.slots[index as usize];
        if !slot.is_surely(candidate) {
            return Recognised::Unknown;
        }
        slot.lookups += 1;
        let generation = slot.generation;
        Recognised::Known(self.node(candidate.key, index, generation))
    }

    /// Counts a lookup of an inode, whose location is known by now, and gives it a node if it has none.
    ///
    /// `verified` says whether the location was taken from an open descriptor of the candidate.
    pub(crate) fn add(&self, candidate: &Candidate, location: Location, verified: bool) -> NodeId {
        if let Some(node) = self.recognise_foreign(candidate.key, |slot| slot.is(candidate, &location)) {
            return node;
        }
        let mut guard = self.shard_of(candidate.key).lock();
        let shard = &mut *guard;
        if let Some(&index) = shard.by_key.get(&candidate.key.pack()) {
            let slot = &mut shard.slots[index as usize];
            if slot.is(candidate, &location) {
                slot.lookups += 1;
                return self.node(candidate.key, index, slot.generation);
            }
            slot.indexed = false;
        }
        let index = shard.claim_slot();
        let slot = &mut shard.slots[index as usize];
        slot.fill(candidate, location, verified);
        let generation = slot.generation;
        shard.by_key.insert(candidate.key.pack(), index);
        drop(guard);
        self.live.fetch_add(1, Ordering::Relaxed);
        self.node(candidate.key, index, generation)
    }

    /// Keeps an open path descriptor of an inode located by handle, for the next requests on it.
    pub(crate) fn cache(&self, node: NodeId, descriptor: &SharedFd) {
        let Some((shard, index, generation)) = self.locate(node) else { return };
        let mut guard = shard.lock();
        let evicted = match guard.slots.get(index) {
            Some(slot) if slot.generation == generation && slot.cached.is_none() && slot.is_by_handle() => {
                guard.cache(index as u32, descriptor)
            }
            _ => None,
        };
        drop(guard);
        // Closed here, outside the lock.
        drop(evicted);
    }

    /// From now on the handle is known to lead to this inode.
    pub(crate) fn verified(&self, node: NodeId) {
        self.change(node, |slot| slot.verified = true);
    }

    /// Holds an inode by a descriptor until it is forgotten: its last name is going, and a handle alone would not keep
    /// it. No more than the bound at a time: a client that never forgets must not use up the descriptors of all.
    pub(crate) fn hold(&self, node: NodeId, descriptor: SharedFd) {
        let Some((shard, index, generation)) = self.locate(node) else { return };
        if self.held.load(Ordering::Relaxed) >= self.held_bound {
            return;
        }
        let mut guard = shard.lock();
        match guard.slots.get(index) {
            Some(slot) if slot.generation == generation && slot.is_by_handle() => {}
            _ => return,
        }
        let uncached = guard.uncache(index as u32);
        let slot = &mut guard.slots[index];
        slot.location = Some(Location::Descriptor(descriptor));
        slot.ring_position = HELD;
        drop(guard);
        drop(uncached);
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// The inode is gone, or was another: its number will not be taken for it any more.
    pub(crate) fn abandon(&self, node: NodeId) {
        if self.has_foreign.load(Ordering::Acquire) {
            self.foreign.lock().retain(|_, known| *known != node);
        }
        let Some((shard, index, generation)) = self.locate(node) else { return };
        let mut shard = shard.lock();
        let key = match shard.slots.get_mut(index) {
            Some(slot) if slot.generation == generation && slot.indexed => {
                slot.indexed = false;
                slot.candidate().key
            }
            _ => return,
        };
        shard.by_key.remove(&key.pack());
    }

    /// The node of an inode, if it is known; counts nothing.
    pub(crate) fn node_of(&self, candidate: &Candidate) -> Option<NodeId> {
        let shard = self.shard_of(candidate.key).lock();
        let Some(&index) = shard.by_key.get(&candidate.key.pack()) else {
            drop(shard);
            return self.foreign(candidate.key);
        };
        Some(self.node(candidate.key, index, shard.slots[index as usize].generation))
    }

    /// Gives lookups back; the last one frees the node, and then says what it was.
    pub(crate) fn forget(&self, node: NodeId, lookups: u64) -> Option<Candidate> {
        let (shard, index, generation) = self.locate(node)?;
        let mut guard = shard.lock();
        let slot = guard.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        slot.location.as_ref()?;
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups > 0 {
            return None;
        }
        let candidate = slot.candidate();
        let remains = guard.free(index as u32);
        drop(guard);
        self.freed(&remains);
        Some(candidate)
    }

    /// Forgets everything: the client has gone. Ids that were given out stay invalid.
    pub(crate) fn clear(&self) {
        self.has_foreign.store(false, Ordering::Release);
        self.foreign.lock().clear();
        for shard in &self.shards {
            let mut guard = shard.lock();
            let live: Vec<u32> = (0..guard.slots.len() as u32)
                .filter(|index| guard.slots[*index as usize].location.is_some())
                .collect();
            let remains: Vec<_> = live.iter().map(|index| guard.free(*index)).collect();
            drop(guard);
            remains.iter().for_each(|remains| self.freed(remains));
        }
    }

    fn freed(&self, remains: &Remains) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        if remains.was_held {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn change(&self, node: NodeId, change: impl FnOnce(&mut Slot)) {
        let Some((shard, index, generation)) = self.locate(node) else { return };
        let mut shard = shard.lock();
        if let Some(slot) = shard.slots.get_mut(index).filter(|slot| slot.generation == generation)
            && slot.location.is_some()
        {
            change(slot);
        }
    }

    /// The shard a node id points into, the index there, and the generation.
    fn locate(&self, node: NodeId) -> Option<(&Mutex<Shard>, usize, u32)> {
        let number = node.0 as u32;
        let index = (number / SHARDS).checked_sub(1)?;
        Some((&self.shards[(number % SHARDS) as usize], index as usize, (node.0 >> 32) as u32))
    }

    fn shard_of(&self, key: Key) -> &Mutex<Shard> {
        &self.shards[shard_number(key) as usize]
    }

    fn node(&self, key: Key, index: u32, generation: u32) -> NodeId {
        let number = (index + 1) * SHARDS + shard_number(key);
        NodeId(u64::from(generation) << 32 | u64::from(number))
    }
}

/// Not the bits that the hash table of the shard looks at first.
fn shard_number(key: Key) -> u32 {
    let mut mixer = Mixer::default();
    std::hash::Hash::hash(&key.pack(), &mut mixer);
    ((mixer.finish() >> 40) as u32) % SHARDS
}

fn kind_digit(kind: u32) -> u8 {
    (kind >> 12) as u8
}

impl Slot {
    fn candidate(&self) -> Candidate {
        let key = Key { place: self.place, ino: self.ino };
        Candidate { key, birth: self.birth, kind: u32::from(self.kind) << 12 }
    }

    /// Whether this slot, found under the candidate's key, holds the candidate as far as can be told without its location.
    fn is_surely(&self, candidate: &Candidate) -> bool {
        let held = self.cached.is_some() || matches!(self.location, Some(Location::Descriptor(_)));
        let same_birth = candidate.birth != 0 && candidate.birth == self.birth;
        self.kind == kind_digit(candidate.kind) && (held || same_birth)
    }

    /// Whether this slot, found under the candidate's key, holds the candidate and no earlier owner of its number.
    fn is(&self, candidate: &Candidate, location: &Location) -> bool {
        if self.kind != kind_digit(candidate.kind) {
            return false;
        }
        match &self.location {
            Some(Location::Descriptor(_)) => true,
            Some(handle) => self.cached.is_some() || handle.same_handle(location),
            None => false,
        }
    }

    fn is_by_handle(&self) -> bool {
        !matches!(self.location, None | Some(Location::Descriptor(_)))
    }

    fn fill(&mut self, candidate: &Candidate, location: Location, verified: bool) {
        self.lookups = 1;
        self.ino = candidate.key.ino;
        self.birth = candidate.birth;
        self.place = candidate.key.place;
        self.kind = kind_digit(candidate.kind);
        self.location = Some(location);
        self.ring_position = 0;
        self.verified = verified;
        self.referenced = false;
        self.indexed = true;
    }
}

impl Shard {
    fn claim_slot(&mut self) -> u32 {
        if let Some(index) = self.free.pop() {
            return index;
        }
        self.add_slot()
    }

    fn add_slot(&mut self) -> u32 {
        // By an eighth: doubling would leave up to half of a million slots unused.
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(self.slots.len() / 8 + 16);
        }
        self.slots.push(Slot {
            lookups: 0,
            ino: 0,
            birth: 0,
            location: None,
            cached: None,
            generation: self.first_generation,
            place: 0,
            ring_position: 0,
            kind: 0,
            referenced: false,
            verified: false,
            indexed: false,
        });
        (self.slots.len() - 1) as u32
    }

    /// Frees a slot.
    fn free(&mut self, index: u32) -> Remains {
        let cached = self.uncache(index);
        let slot = &mut self.slots[index as usize];
        let location = slot.location.take();
        let key = slot.candidate().key;
        slot.generation = slot.generation.wrapping_add(1);
        if std::mem::take(&mut slot.indexed) {
            self.by_key.remove(&key.pack());
        }
        let was_held = std::mem::take(&mut slot.ring_position) == HELD;
        self.free.push(index);
        Remains { was_held, _location: location, _cached: cached }
    }

    /// Puts a descriptor into the cache; returns the one that had to go for it.
    fn cache(&mut self, index: u32, descriptor: &SharedFd) -> Option<SharedFd> {
        let evicted = if self.ring.len() >= self.bound { self.evict() } else { None };
        let slot = &mut self.slots[index as usize];
        slot.cached = Some(Arc::clone(descriptor));
        slot.referenced = true;
        slot.ring_position = self.ring.len() as u32;
        self.ring.push(index);
        evicted
    }

    fn evict(&mut self) -> Option<SharedFd> {
        loop {
            self.hand = if self.hand + 1 < self.ring.len() { self.hand + 1 } else { 0 };
            let index = *self.ring.get(self.hand)?;
            if !std::mem::take(&mut self.slots[index as usize].referenced) {
                return self.uncache(index);
            }
        }
    }

    fn uncache(&mut self, index: u32) -> Option<SharedFd> {
        let slot = &mut self.slots[index as usize];
        let cached = slot.cached.take()?;
        let position = slot.ring_position as usize;
        self.ring.swap_remove(position);
        if let Some(moved) = self.ring.get(position) {
            self.slots[*moved as usize].ring_position = position as u32;
        }
        Some(cached)
    }
}

/// A key in 12 bytes, so that one with its index takes 16 in the hash table.
type Packed = [u32; 3];

impl Key {
    fn pack(self) -> Packed {
        [self.place, self.ino as u32, (self.ino >> 32) as u32]
    }
}

/// Hashes a packed key: two multiplications. The numbers are the host's, no client chooses them.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u32(u32::from_ne_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ino: u64) -> Candidate {
        Candidate { key: Key { place: 0, ino }, birth: 7, kind: libc::S_IFREG }
    }

    fn handle(number: u8) -> Location {
        Location::by_handle(&RawHandle::new(1, &[number; 8]))
    }

    fn descriptor() -> SharedFd {
        Arc::new(tempfile::tempfile().unwrap().into())
    }

    fn node(recognised: Recognised) -> Option<NodeId> {
        match recognised {
            Recognised::Known(node) => Some(node),
            Recognised::Unknown => None,
        }
    }

    #[test]
    fn a_slot_takes_80_bytes() {
        assert_eq!((size_of::<Option<Location>>(), size_of::<Slot>()), (32, 80));
    }

    #[test]
    fn a_node_lives_until_all_its_lookups_are_given_back() {
        let inodes = Inodes::new(16);
        assert!(node(inodes.recognise(&candidate(5))).is_none());
        let first = inodes.add(&candidate(5), handle(1), false);
        assert_ne!(first, NodeId::ROOT);
        assert_eq!(node(inodes.recognise(&candidate(5))), Some(first));
        inodes.forget(first, 1);
        assert!(inodes.find(first).is_some());
        inodes.forget(first, 1);
        assert!(inodes.find(first).is_none());
        let second = inodes.add(&candidate(5), handle(1), false);
        assert_eq!(second.0 as u32, first.0 as u32, "the slot is used again");
        assert_ne!(second, first, "under another id");
        inodes.forget(first, 1);
        assert!(inodes.find(second).is_some(), "an old id does not reach the new inode");
        inodes.forget(second, u64::MAX);
        assert_eq!(inodes.len(), 0);
    }

    #[test]
    fn a_number_that_went_to_another_file_gets_another_node() {
        let inodes = Inodes::new(16);
        let old = inodes.add(&candidate(5), handle(1), false);
        let reborn = Candidate { birth: 8, ..candidate(5) };
        assert!(node(inodes.recognise(&reborn)).is_none(), "born at another time");
        let new = inodes.add(&reborn, handle(2), false);
        assert_ne!(old, new);
        assert_eq!(node(inodes.recognise(&reborn)), Some(new));
        assert!(inodes.find(old).is_some(), "the old node is valid still");
        inodes.forget(old, 1);
        assert_eq!(node(inodes.recognise(&reborn)), Some(new), "forgetting it leaves the new one alone");
        // Born within the same tick of the clock: the handle tells them apart.
        let third = inodes.add(&reborn, handle(3), false);
        assert_ne!(third, new);
    }

    #[test]
    fn hostile_ids_are_not_found() {
        let inodes = Inodes::new(16);
        let real = inodes.add(&candidate(5), handle(1), false);
        for id in [0, 1, 2, 15, 16, real.0 + 1, real.0 ^ 1 << 32, u64::MAX, 0xffff_ffff, 1 << 63] {
            assert!(inodes.find(NodeId(id)).is_none() || id == real.0, "{id:#x}");
            if id != real.0 {
                inodes.forget(NodeId(id), u64::MAX);
            }
        }
        assert!(inodes.find(real).is_some());
    }

    #[test]
    fn descriptors_beside_handles_stay_within_their_bound() {
        let inodes = Inodes::new(32);
        let nodes: Vec<_> = (0..1000)
            .map(|ino| {
                let node = inodes.add(&candidate(ino), handle(1), false);
                inodes.cache(node, &descriptor());
                node
            })
            .collect();
        let open = |nodes: &[NodeId]| {
            let is_open = |node: &&NodeId| {
                matches!(inodes.find(**node), Some(Found { location: Location::Descriptor(_), .. }))
            };
            nodes.iter().filter(is_open).count()
        };
        assert_eq!(open(&nodes), 32);
        inodes.clear();
        assert_eq!((inodes.len(), open(&nodes)), (0, 0));
        assert!(inodes.shards.iter().all(|shard| shard.lock().ring.is_empty()));
    }

    #[test]
    fn a_descriptor_in_use_outlasts_a_burst_of_others() {
        let inodes = Inodes::new(16 * 8);
        let parent = inodes.add(&candidate(0), handle(1), false);
        inodes.cache(parent, &descriptor());
        for ino in 1..2000 {
            let child = inodes.add(&candidate(ino), handle(1), false);
            inodes.cache(child, &descriptor());
            let found = inodes.find(parent).unwrap();
            assert!(matches!(found.location, Location::Descriptor(_)), "after {ino} children");
        }
    }

    #[test]
    fn an_abandoned_inode_keeps_its_node_but_not_its_name() {
        let inodes = Inodes::new(16);
        let old = inodes.add(&candidate(5), handle(1), false);
        inodes.abandon(old);
        assert!(node(inodes.recognise(&candidate(5))).is_none());
        assert!(inodes.find(old).is_some());
        inodes.hold(old, descriptor());
        assert!(matches!(inodes.find(old).unwrap().location, Location::Descriptor(_)));
    }

    /// Aim: a million looked-up inodes take at most 200 bytes each, at any point of the growth. Method: what the tables
    /// have allocated, by their capacities; a hash table has an eighth more buckets than it says, of 16 bytes and one.
    #[test]
    fn a_million_inodes_take_less_than_200_bytes_each() {
        let inodes = Inodes::new(1000);
        let allocated = || -> usize {
            let shards = inodes.shards.iter().map(|shard| shard.lock());
            let bytes = shards.map(|shard| {
                shard.slots.capacity() * size_of::<Slot>() + shard.by_key.capacity() * 8 / 7 * 17
            });
            bytes.sum()
        };
        let mut most = 0;
        for ino in 1..=1_000_000 {
            inodes.add(&candidate(ino), handle(ino as u8), false);
            if ino % 10_000 == 0 {
                most = most.max(allocated() / ino as usize);
            }
        }
        println!("{} bytes an inode at a million, {most} at most from 10,000 on", allocated() / 1_000_000);
        assert!(most < 200, "{most}");
        assert_eq!(inodes.len(), 1_000_000);
    }
}
