//! The host: what its kernel would find again after a power cut, and what it would not.
//!
//! A change makes a *cell* newer: a page of a file, a file's size or mode, a name. Each cell has a volatile and a durable
//! version; versions are numbers that only grow. In the weakest file system that POSIX allows each cell becomes durable on
//! its own, in any order, at any time. So a crash may keep any subset of what is pending, and the worst of them all is the
//! durable state as it stands: whoever finds a cell's durable version old enough there finds it so in every crash state. A page
//! that is torn has parts of two versions, and counts as the older.
//!
//! This file system takes the place of `passthrough` and keeps the trait's contract itself, its error cursors included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ashore_barrier::model::thread::{sleep, yield_now};
use ashore_server::{
    Attributes, Caller, Created, Entry, FileSystem, Opened, Read, Result, SetAttributes, Write,
};
use ashore_wire::abi::{Attr, CopyFileRangeIn};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, SetattrValid};
use ashore_wire::seam::{Payload, ReplyBody};
use ashore_wire::{Errno, FileHandle, Name, NodeId};

use crate::schedule::Dice;

const PAGE: u64 = 4096;
/// Root of the other file system, which the client is told of.
pub const SUBMOUNT: u64 = 2;
/// A directory on the third file system, which it is not told of.
pub const HIDDEN: u64 = 3;
const FILE_SYSTEMS: usize = 3;
/// The root's own, and the one that the client is not told of.
const ROOT_COVERS: [usize; 2] = [0, 2];

/// What changes and becomes durable as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    Page(u64, u64),
    Size(u64),
    Mode(u64),
    Name(u64, Vec<u8>),
}

/// Faults, by kind; how often each was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A change could not be made durable (EIO).
    HardeningFailed,
    /// A change could not be made durable for want of space (ENOSPC).
    NoSpaceAtHardening,
    /// WRITE fails (EIO, ENOSPC or ESTALE).
    WriteFailed,
    /// WRITE takes a part.
    ShortWrite,
    /// The file system cannot sync (ENOSYS).
    SyncUnsupported,
    /// A sync finds its file system gone (ESTALE), and does nothing.
    SyncStale,
    /// The kernel hardened something by itself.
    HardenedEarly,
    /// The connection to the server is lost, and another server takes its place.
    ConnectionLost,
}

/// How the host behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Temper {
    /// One in so many; 0: never.
    pub hardening_fails: u64,
    pub write_fails: u64,
    pub short_writes: u64,
    pub hardens_early: u64,
    pub sync_stale: u64,
    pub sync_unsupported: bool,
    /// Nothing is ever pending.
    pub write_through: bool,
    /// As ext4 by default: what was changed first is durable first, and an fsync of a file takes the names with it.
    pub ordered: bool,
}

#[derive(Debug, Default)]
pub struct Node {
    file_system: usize,
    directory: bool,
    size: u64,
    names: BTreeMap<Vec<u8>, u64>,
    /// Errors of hardening this file.
    errors: u64,
}

/// Everything the host knows.
pub struct Host {
    pub temper: Temper,
    dice: Dice,
    last_version: u64,
    nodes: BTreeMap<u64, Node>,
    volatile: BTreeMap<Cell, u64>,
    durable: BTreeMap<Cell, u64>,
    pending: BTreeSet<Cell>,
    /// Cell, newest version lost with it, and when.
    pub lost: Vec<(Cell, u64, u64)>,
    /// Errors of hardening, by file system, and how many of them each session has been told.
    errors: [u64; FILE_SYSTEMS],
    told: Vec<[u64; FILE_SYSTEMS]>,
    handles: BTreeMap<u64, (u64, u64)>,
    /// Syncs of each file system.
    pub syncs: [u64; FILE_SYSTEMS],
    /// WRITEs of these versions are not done as long as they are in here.
    pub frozen: BTreeSet<u64>,
    /// A clock of the oracle: it moves with each event.
    pub events: u64,
    /// What syncs that succeeded vouch for.
    vouched: BTreeMap<Cell, u64>,
    pub crash_points: u64,
    pub faults: BTreeMap<Fault, u64>,
}

impl Host {
    fn new(seed: u64, temper: Temper) -> Host {
        let directory = |file_system| Node { file_system, directory: true, ..Node::default() };
        let mut root = directory(0);
        root.names.insert(b"mounted".to_vec(), SUBMOUNT);
        root.names.insert(b"hidden".to_vec(), HIDDEN);
        Host {
            temper,
            dice: Dice::new(seed ^ 0x0005_5eed),
            last_version: 16,
            nodes: BTreeMap::from([(1, root), (SUBMOUNT, directory(1)), (HIDDEN, directory(2))]),
            volatile: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: BTreeSet::new(),
            lost: Vec::new(),
            errors: [0; FILE_SYSTEMS],
            told: vec![[0; FILE_SYSTEMS]],
            handles: BTreeMap::new(),
            syncs: [0; FILE_SYSTEMS],
            frozen: BTreeSet::new(),
            events: 0,
            vouched: BTreeMap::new(),
            crash_points: 0,
            faults: BTreeMap::new(),
        }
    }

    /// A version newer than all.
    pub fn version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }

    pub fn volatile(&self, cell: &Cell) -> u64 {
        self.volatile.get(cell).copied().unwrap_or(0)
    }

    /// What would be found after a crash at this moment.
    pub fn all_durable(&self) -> BTreeMap<Cell, u64> {
        self.durable.clone()
    }

    pub fn durable(&self, cell: &Cell) -> u64 {
        self.durable.get(cell).copied().unwrap_or(0)
    }

    /// A sync that succeeded vouches for this version, or a newer one, from now on.
    pub fn vouch(&mut self, cell: Cell, version: u64) {
        let vouched = self.vouched.entry(cell).or_default();
        *vouched = version.max(*vouched);
    }

    /// The power fails here: what would be found?
    pub fn crash_point(&mut self) {
        if self.vouched.is_empty() {
            return;
        }
        self.crash_points += 1;
        for (cell, version) in &self.vouched {
            let found = self.durable(cell);
            assert!(
                found >= *version,
                "D1: {cell:?} was synced at version {version}; after a crash it has {found}"
            );
        }
    }

    /// The next moment of the oracle's clock.
    pub fn tick(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A fault was hit.
    pub fn hit(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn file_system(&self, cell: &Cell) -> usize {
        let (Cell::Page(node, _) | Cell::Size(node) | Cell::Mode(node) | Cell::Name(node, _)) = cell;
        self.nodes.get(node).map_or(0, |node| node.file_system)
    }

    /// Whether a sync of the root covers this.
    pub(crate) fn is_covered_by_root(&self, cell: &Cell) -> bool {
        ROOT_COVERS.contains(&self.file_system(cell))
    }

    fn change(&mut self, cell: Cell, version: u64) {
        self.volatile.insert(cell.clone(), version);
        self.pending.insert(cell.clone());
        if self.temper.write_through {
            self.harden(&cell);
        } else if self.dice.once_in(self.temper.hardens_early) {
            let early = self.early().expect("something is pending: it has just been changed");
            self.hit(Fault::HardenedEarly);
            self.harden(&early);
        }
        self.step();
    }

    /// What the kernel hardens next.
    fn early(&mut self) -> Option<Cell> {
        if self.temper.ordered {
            return self.pending.iter().min_by_key(|cell| self.volatile(cell)).cloned();
        }
        let place = self.dice.below(self.pending.len() as u64) as usize;
        self.pending.iter().nth(place).cloned()
    }

    fn step(&mut self) {
        self.events += 1;
        self.crash_point();
    }

    /// Makes a cell durable, or fails: then it is clean all the same, as on ext4, XFS and btrfs.
    fn harden(&mut self, cell: &Cell) {
        if !self.pending.remove(cell) {
            return;
        }
        let version = self.volatile(cell);
        if self.dice.once_in(self.temper.hardening_fails) {
            let fault = if self.dice.once_in(2) { Fault::HardeningFailed } else { Fault::NoSpaceAtHardening };
            self.hit(fault);
            self.lose(cell.clone(), version);
        } else {
            self.durable.insert(cell.clone(), version);
        }
        self.step();
    }

    fn lose(&mut self, cell: Cell, version: u64) {
        self.events += 1;
        self.errors[self.file_system(&cell)] += 1;
        if let Cell::Page(node, _) | Cell::Size(node) | Cell::Mode(node) = cell {
            self.nodes.get_mut(&node).expect("cells are of nodes").errors += 1;
        }
        self.lost.push((cell, version, self.events));
    }

    fn attr(&self, node: u64) -> Result<Attr> {
        let found = self.nodes.get(&node).ok_or(Errno::ESTALE)?;
        let (mode, nlink) = if found.directory { (0o040_755, 2) } else { (0o100_644, 1) };
        let flags = u32::from(node == SUBMOUNT);
        Ok(Attr { ino: node, mode, nlink, size: found.size, blksize: PAGE as u32, flags, ..Attr::default() })
    }

    fn entry(&self, node: u64) -> Result<Entry> {
        let timeout = Duration::from_secs(1 << 20);
        Ok(Entry {
            node,
            generation: 0,
            attr: self.attr(node)?,
            entry_timeout: timeout,
            attr_timeout: timeout,
        })
    }

    fn open(&mut self, node: u64) -> Opened {
        let handle = self.version();
        self.handles.insert(handle, (node, self.nodes[&node].errors));
        Opened::new(FileHandle(handle), OpenReplyFlags::KEEP_CACHE)
    }

    fn resize(&mut self, node: u64, size: u64) -> Result<()> {
        let version = self.version();
        let before = std::mem::replace(&mut self.nodes.get_mut(&node).ok_or(Errno::ESTALE)?.size, size);
        for page in size.div_ceil(PAGE)..before.div_ceil(PAGE) {
            self.change(Cell::Page(node, page), version);
        }
        self.change(Cell::Size(node), version);
        Ok(())
    }
}

/// The file system that a session serves. Others may serve the same host.
#[derive(Clone)]
pub struct SimFs {
    host: Arc<Mutex<Host>>,
    session: usize,
}

impl SimFs {
    pub fn new(seed: u64, temper: Temper) -> SimFs {
        SimFs { host: Arc::new(Mutex::new(Host::new(seed, temper))), session: 0 }
    }

    /// The same host for another session. Errors before its time it is not told of.
    pub fn another(&self) -> SimFs {
        let session = self.host(|host| {
            host.told.push(host.errors);
            host.told.len() - 1
        });
        SimFs { host: Arc::clone(&self.host), session }
    }

    pub fn host<T>(&self, look: impl FnOnce(&mut Host) -> T) -> T {
        look(&mut self.host.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn harden_all(&self, wanted: impl Fn(&Host, &Cell) -> bool) {
        let todo: Vec<Cell> =
            self.host(|host| host.pending.iter().filter(|cell| wanted(host, cell)).cloned().collect());
        for cell in todo {
            yield_now();
            self.host(|host| host.harden(&cell));
        }
    }

    fn sync_file_systems(&self, which: &[usize]) -> Result<()> {
        if self.host(|host| host.temper.sync_unsupported) {
            self.host(|host| host.hit(Fault::SyncUnsupported));
            return Err(Errno::ENOSYS);
        }
        let stale = self.host(|host| {
            let stale = host.dice.once_in(host.temper.sync_stale);
            if stale {
                host.hit(Fault::SyncStale);
            }
            stale
        });
        if stale {
            return Err(Errno::ESTALE);
        }
        self.host(|host| which.iter().for_each(|one| host.syncs[*one] += 1));
        self.harden_all(|host, cell| which.contains(&host.file_system(cell)));
        yield_now();
        self.host(|host| {
            let told = &mut host.told[self.session];
            let failed = which.iter().any(|one| told[*one] < host.errors[*one]);
            which.iter().for_each(|one| told[*one] = host.errors[*one]);
            if failed { Err(Errno::EIO) } else { Ok(()) }
        })
    }
}

impl FileSystem for SimFs {
    fn features(&self) -> InitFlags {
        InitFlags::WRITEBACK_CACHE | InitFlags::SUBMOUNTS | InitFlags::PARALLEL_DIROPS
    }

    fn lookup(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.host(|host| {
            let parent = host.nodes.get(&parent.0).ok_or(Errno::ESTALE)?;
            host.entry(*parent.names.get(name.as_bytes()).ok_or(Errno::ENOENT)?)
        })
    }

    fn forget(&self, _: NodeId, _: u64) {}

    fn getattr(&self, _: &Caller<'_>, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        let attr = self.host(|host| host.attr(node.0))?;
        Ok(Attributes { attr, timeout: Duration::from_secs(1 << 20) })
    }

    fn setattr(&self, caller: &Caller<'_>, node: NodeId, set: &SetAttributes<'_>) -> Result<Attributes> {
        yield_now();
        self.host(|host| {
            if set.valid.contains(SetattrValid::SIZE) {
                host.resize(node.0, set.values.size)?;
            }
            if set.valid.contains(SetattrValid::MODE) {
                let version = host.version();
                host.change(Cell::Mode(node.0), version);
            }
            Ok::<(), Errno>(())
        })?;
        self.getattr(caller, node, None)
    }

    fn unlink(&self, _: &Caller<'_>, parent: NodeId, name: Name<'_>) -> Result<()> {
        yield_now();
        self.host(|host| {
            let directory = host.nodes.get_mut(&parent.0).ok_or(Errno::ESTALE)?;
            directory.names.remove(name.as_bytes()).ok_or(Errno::ENOENT)?;
            let version = host.version();
            host.change(Cell::Name(parent.0, name.as_bytes().to_vec()), version);
            Ok(())
        })
    }

    fn rename(
        &self,
        _: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        _: u32,
    ) -> Result<()> {
        yield_now();
        self.host(|host| {
            let directory = host.nodes.get_mut(&parent.0).ok_or(Errno::ESTALE)?;
            let node = directory.names.remove(name.as_bytes()).ok_or(Errno::ENOENT)?;
            let new = host.nodes.get_mut(&new_parent.0).ok_or(Errno::ESTALE)?;
            new.names.insert(new_name.as_bytes().to_vec(), node);
            let version = host.version();
            host.change(Cell::Name(parent.0, name.as_bytes().to_vec()), version);
            host.change(Cell::Name(new_parent.0, new_name.as_bytes().to_vec()), version);
            Ok(())
        })
    }

    fn open(&self, _: &Caller<'_>, node: NodeId, _: u32, _: OpenRequestFlags) -> Result<Opened> {
        self.host(
            |host| if host.nodes.contains_key(&node.0) { Ok(host.open(node.0)) } else { Err(Errno::ESTALE) },
        )
    }

    fn create(
        &self,
        _: &Caller<'_>,
        parent: NodeId,
        name: Name<'_>,
        _: u32,
        _: u32,
        _: u32,
        _: OpenRequestFlags,
    ) -> Result<Created> {
        yield_now();
        self.host(|host| {
            let (version, node) = (host.version(), host.version());
            let directory = host.nodes.get_mut(&parent.0).ok_or(Errno::ESTALE)?;
            let file_system = directory.file_system;
            if directory.names.insert(name.as_bytes().to_vec(), node).is_some() {
                return Err(Errno::EEXIST);
            }
            host.nodes.insert(node, Node { file_system, ..Node::default() });
            host.change(Cell::Name(parent.0, name.as_bytes().to_vec()), version);
            Ok(Created { entry: host.entry(node)?, opened: host.open(node) })
        })
    }

    fn read(&self, _: NodeId, _: &Read, _: &mut dyn ReplyBody) -> Result<usize> {
        Ok(0)
    }

    fn write(&self, _: &Caller<'_>, node: NodeId, write: &Write, payload: &mut dyn Payload) -> Result<usize> {
        let mut data = vec![0; write.size];
        payload.copy_to(&mut data);
        yield_now();
        let version = data.get(..8).map_or(0, |word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
        while self.host(|host| host.frozen.contains(&version)) {
            sleep(Duration::from_secs(1));
        }
        self.host(|host| {
            let version = |chunk: &[u8]| {
                chunk.get(..8).map_or(0, |word| u64::from_ne_bytes(word.try_into().expect("8 bytes")))
            };
            let first = write.offset / PAGE;
            if host.dice.once_in(host.temper.write_fails) {
                host.hit(Fault::WriteFailed);
                let versions = data.chunks(PAGE as usize).map(version).zip(first..);
                versions.for_each(|(version, page)| {
                    host.events += 1;
                    host.lost.push((Cell::Page(node.0, page), version, host.events));
                });
                return Err([Errno::EIO, Errno::ENOSPC, Errno::ESTALE][host.dice.below(3) as usize]);
            }
            let mut taken = write.size;
            if write.size > PAGE as usize && host.dice.once_in(host.temper.short_writes) {
                host.hit(Fault::ShortWrite);
                taken = PAGE as usize;
            }
            for (chunk, page) in data[..taken].chunks(PAGE as usize).zip(first..) {
                if version(chunk) != 0 {
                    host.change(Cell::Page(node.0, page), version(chunk));
                }
            }
            let size = &mut host.nodes.get_mut(&node.0).ok_or(Errno::ESTALE)?.size;
            *size = (*size).max(write.offset + taken as u64);
            Ok(taken)
        })
    }

    fn fsync(&self, node: NodeId, handle: FileHandle, _: bool) -> Result<()> {
        self.harden_all(|host, cell| match cell {
            Cell::Page(of, _) | Cell::Size(of) | Cell::Mode(of) => *of == node.0,
            Cell::Name(..) => {
                host.temper.ordered && host.file_system(cell) == host.file_system(&Cell::Size(node.0))
            }
        });
        self.host(|host| {
            let errors = host.nodes.get(&node.0).ok_or(Errno::ESTALE)?.errors;
            let told = &mut host.handles.get_mut(&handle.0).ok_or(Errno::EBADF)?.1;
            if std::mem::replace(told, errors) < errors { Err(Errno::EIO) } else { Ok(()) }
        })
    }

    fn fsyncdir(&self, node: NodeId, _: FileHandle, _: bool) -> Result<()> {
        self.harden_all(|_, cell| matches!(cell, Cell::Name(of, _) if *of == node.0));
        Ok(())
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        if !self.host(|host| host.nodes.contains_key(&node.0)) {
            return Err(Errno::ESTALE);
        }
        self.sync_file_systems(if node.0 == SUBMOUNT { &[1] } else { &ROOT_COVERS })
    }

    fn last_call(&self) -> Result<()> {
        self.sync_file_systems(&[0, 1, 2])
    }

    fn fallocate(
        &self,
        _: &Caller<'_>,
        node: NodeId,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: u32,
    ) -> Result<()> {
        yield_now();
        self.host(|host| {
            let size = host.nodes.get(&node.0).ok_or(Errno::ESTALE)?.size;
            host.resize(node.0, size.max(offset + length))
        })
    }

    fn copy_file_range(&self, _: &Caller<'_>, _: NodeId, arguments: &CopyFileRangeIn) -> Result<usize> {
        yield_now();
        self.host(|host| {
            let version = host.version();
            let (to, start) = (arguments.nodeid_out, arguments.off_out / PAGE);
            for page in start..start + arguments.len.div_ceil(PAGE) {
                host.change(Cell::Page(to, page), version);
            }
            let size = &mut host.nodes.get_mut(&to).ok_or(Errno::ESTALE)?.size;
            *size = (*size).max(arguments.off_out + arguments.len);
            Ok(arguments.len as usize)
        })
    }

    fn opendir(&self, _: &Caller<'_>, node: NodeId, _: u32) -> Result<Opened> {
        Ok(Opened::new(FileHandle(node.0), OpenReplyFlags::empty()))
    }
}
