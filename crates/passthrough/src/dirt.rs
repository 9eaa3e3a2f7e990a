//! Which inodes a client changed on one host file system since its last sync, each with a descriptor to fsync it by.
//!
//! Only with `--sync-scope share`. The list is a round's work: a sync takes it whole, and what changes from then on is in
//! the next one.
//!
//! ```text
//!   epoch   7  7  7  7        8                      9
//!           W1 W1 W2 W1 sync: takes {W1, W2}  W1  sync: takes {W1}
//!           |     '---- into the list         '- again, for the epoch of its mark is over
//!           '---------- into the list; the second W1 looks at its mark, and that is all
//! ```
//!
//! Two things make it exact:
//!
//! - a descriptor is older than the change it stands for, so the host's kernel tells it of every error that befell the
//!   change, also of one that another process was told of first. Of several descriptors of one inode the oldest stays;
//! - a change is recorded after it was made and before it is acknowledged, and a sync begins the next epoch before it
//!   calls fsync. So a change whose mark is of this epoch is in a list that is yet to be taken.
//!
//! Where the list would grow too long, or an inode cannot be opened, track is lost: the next sync covers the whole host
//! file system.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::handles::OpenFile;
use crate::mutant::{self, Mutant};
use crate::sync::FileSync;

/// Inodes on the list, at most. Each keeps a descriptor open, and costs a sync about as much as one flush of the disk;
/// with more of them one syncfs of everything is taken to be cheaper.
pub(crate) const MAX_DIRTY_INODES: usize = 512;

/// The epoch in which an open file was put on the list last; 0: never.
#[derive(Default)]
pub(crate) struct Mark(AtomicU64);

/// What a client changed on one host file system.
pub(crate) struct Dirt {
    epoch: AtomicU64,
    list: Mutex<List>,
}

struct List {
    by_number: HashMap<u64, Arc<Held>>,
    lost_track: bool,
}

/// A changed inode.
pub(crate) enum Held {
    /// A file that the client has, or had, open.
    Open(Arc<OpenFile>),
    /// A file or directory that was opened for this.
    Opened {
        /// Not a path descriptor.
        descriptor: OwnedFd,
        /// Its fsyncs.
        sync: FileSync,
        /// Directories come after files, so that no name is stable before what it names.
        is_directory: bool,
    },
}

impl Held {
    /// To call fsync(2) by.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Held::Open(file) => file.descriptor(),
            Held::Opened { descriptor, .. } => descriptor.as_fd(),
        }
    }

    /// Its fsyncs.
    pub(crate) fn sync(&self) -> &FileSync {
        match self {
            Held::Open(file) => &file.sync,
            Held::Opened { sync, .. } => sync,
        }
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Held::Opened { is_directory: true, .. })
    }

    fn number(&self) -> Option<u64> {
        rustix::fs::fstat(self.descriptor()).ok().map(|stat| stat.st_ino)
    }

    /// Whether nothing leads to it any more, so that nobody could find out what became of it.
    pub(crate) fn is_gone(&self) -> bool {
        rustix::fs::fstat(self.descriptor()).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// What a round has to sync.
pub(crate) enum Taken {
    /// The whole host file system: track was lost.
    Everything,
    /// These inodes.
    Inodes(Vec<(u64, Arc<Held>)>),
}

impl Dirt {
    /// Begins without knowing anything: an earlier server may have left changes behind.
    pub(crate) fn new() -> Dirt {
        Dirt {
            epoch: AtomicU64::new(1),
            list: Mutex::new(List {
                by_number: HashMap::new(),
                lost_track: !mutant::on(Mutant::RestartForgets),
            }),
        }
    }

    /// An open file was changed. To be called after the change was made, and before it is acknowledged.
    pub(crate) fn record_file(&self, file: &Arc<OpenFile>, mark: &Mark) {
        // The caller has put a fence between the change and this look. If the epoch is still that of the mark, the list
        // with this file is taken later, and so synced after the change.
        if mark.0.load(Ordering::Relaxed) == self.epoch.load(Ordering::SeqCst) {
            return;
        }
        let held = Arc::new(Held::Open(Arc::clone(file)));
        let number = held.number();
        self.record(number.map(|number| (number, held)), Some(mark));
    }

    /// An inode was changed that [`Dirt::hold`] had made ready; `None`: it could not.
    pub(crate) fn record_inode(&self, number: u64, held: Option<&Arc<Held>>) {
        self.record(held.map(|held| (number, Arc::clone(held))), None);
    }

    /// Makes ready what an inode will be synced by, before it is changed: what is on the list for it, or else what
    /// `open` opens.
    pub(crate) fn hold(&self, number: u64, open: impl FnOnce() -> Option<Held>) -> Option<Arc<Held>> {
        {
            let list = self.list.lock();
            if list.lost_track {
                return None;
            }
            if let Some(held) = list.by_number.get(&number) {
                return Some(Arc::clone(held));
            }
        }
        open().map(Arc::new)
    }

    /// The client has forgotten an inode. If it has no name left either its space is given back now, not at the next
    /// sync.
    pub(crate) fn forget(&self, number: u64) {
        let held = self.list.lock().by_number.get(&number).cloned();
        if held.is_some_and(|held| held.is_gone()) {
            let gone = self.list.lock().by_number.remove(&number);
            drop(gone);
        }
    }

    /// The next sync is to cover everything.
    pub(crate) fn lose_track(&self) {
        self.record(None, None);
    }

    /// Takes the list, and begins the next epoch.
    pub(crate) fn take(&self) -> Taken {
        let mut list = self.list.lock();
        // Under the lock, so that a mark and the list it speaks of are of the same epoch.
        if !mutant::on(Mutant::EpochIgnored) {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        if std::mem::take(&mut list.lost_track) {
            return Taken::Everything;
        }
        Taken::Inodes(std::mem::take(&mut list.by_number).into_iter().collect())
    }

    /// Puts inodes back that could not be synced. They are older than what is on the list for the same inode.
    pub(crate) fn put_back(&self, inodes: Vec<(u64, Arc<Held>)>) {
        let mut list = self.list.lock();
        if list.lost_track {
            return;
        }
        list.by_number.extend(inodes);
        let given_up = list.give_up_if_too_long();
        drop(list);
        drop(given_up);
    }

    fn record(&self, inode: Option<(u64, Arc<Held>)>, mark: Option<&Mark>) {
        let mut list = self.list.lock();
        let given_up = match inode {
            Some((number, held)) if !list.lost_track => {
                list.by_number.entry(number).or_insert(held);
                list.give_up_if_too_long()
            }
            Some(_) => HashMap::new(),
            None => list.give_up(),
        };
        if let Some(mark) = mark {
            mark.0.store(self.epoch.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        drop(list);
        // Outside the lock: it closes descriptors.
        drop(given_up);
    }
}

impl List {
    fn give_up_if_too_long(&mut self) -> HashMap<u64, Arc<Held>> {
        if self.by_number.len() > MAX_DIRTY_INODES { self.give_up() } else { HashMap::new() }
    }

    fn give_up(&mut self) -> HashMap<u64, Arc<Held>> {
        self.lost_track = true;
        std::mem::take(&mut self.by_number)
    }
}
