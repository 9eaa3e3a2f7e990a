//! What one client changed, what it was told, and its syncs.
//!
//! For each host file system that a share reaches there is a [`Ledger`]: whether the client changed anything there
//! since its last successful sync, and which failures it has been told of. Two orders matter:
//!
//! - a change is marked after it was made and before it is acknowledged, and a sync clears the mark before it begins.
//!   So a mark that a sync cleared stands for a change that this sync covers;
//! - what a sync has been told is compared with what it knew when it was *called*. Of two that overlap both hear of
//!   the one error between them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Instant;

use ashore_server::Result;
use ashore_wire::{Errno, FileHandle, NodeId};
use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::dirt::{Dirt, Held, Taken};
use crate::handles::OpenFile;
use crate::host::HostResult;
use crate::hostfs::{Failures, HostFs, HostReport, uninterrupted};
use crate::mutant::{self, Mutant};
use crate::options::Durability;
use crate::places::Place;
use crate::rounds::{Rounds, TimedOut};
use crate::{Inode, Passthrough, sys};

/// One client's account with one host file system.
pub(crate) struct Ledger {
    host: Arc<HostFs>,
    /// Whether the client may have changed something there since its last successful sync began.
    changed: AtomicBool,
    /// Files that the client's kernel may be writing to, unseen.
    kernel_writes: AtomicUsize,
    /// Syncs of this client under way.
    under_way: AtomicUsize,
    /// Failures of the host file system that the client was told of, or that were before its time.
    told: AtomicU64,
    /// Whether the client mounts it of its own, and sends syncs for it.
    announced: AtomicBool,
    /// What was changed, inode by inode. `None`: syncs cover the whole host file system.
    dirt: Option<Dirt>,
    /// Rounds of syncs, inode by inode.
    rounds: Arc<Rounds>,
}

impl Ledger {
    /// A new account. It starts as changed, for who knows what an earlier server left behind; unless it cannot be
    /// synced and so cannot be changed either. `tracked` says whether syncs are to cover what was changed and no more.
    pub(crate) fn new(host: Arc<HostFs>, tracked: bool) -> Ledger {
        Ledger {
            changed: AtomicBool::new(host.can_sync() && !mutant::on(Mutant::RestartForgets)),
            kernel_writes: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            told: AtomicU64::new(host.failures().count),
            announced: AtomicBool::new(false),
            dirt: tracked.then(Dirt::new),
            rounds: Arc::default(),
            host,
        }
    }

    /// The host file system.
    pub(crate) fn host(&self) -> &Arc<HostFs> {
        &self.host
    }

    /// Something was changed. To be called after the change was made, and before it is acknowledged.
    pub(crate) fn mark_changed(&self) {
        // Either this thread sees that a sync has cleared the mark, and sets it again; or the sync, which clears it
        // before it begins, sees the change. The fence keeps the look from being made before the change.
        fence(Ordering::SeqCst);
        if !self.changed.load(Ordering::Relaxed) {
            self.changed.store(true, Ordering::SeqCst);
        }
    }

    /// An open file was changed. To be called as [`Ledger::mark_changed`], which this does too.
    pub(crate) fn mark_file_changed(&self, file: &Arc<OpenFile>) {
        if let Some(dirt) = &self.dirt {
            fence(Ordering::SeqCst);
            dirt.record_file(file, &file.dirty);
        }
        // After the list: a sync that clears this mark takes the list then.
        self.mark_changed();
    }

    /// The client's kernel was given a file to write to. To be called before it is.
    pub(crate) fn begin_kernel_writes(&self) {
        self.kernel_writes.fetch_add(1, Ordering::SeqCst);
    }

    /// It has closed the file.
    pub(crate) fn end_kernel_writes(&self) {
        // First, so that there is no moment in which nothing speaks of what was written.
        self.mark_changed();
        self.kernel_writes.fetch_sub(1, Ordering::SeqCst);
    }

    /// What there is to say about it.
    pub(crate) fn report(&self) -> HostReport {
        HostReport { unsynced: self.is_changed(), ..self.host.report() }
    }

    /// Whether something was changed since the last successful sync began.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst) || self.kernel_writes.load(Ordering::SeqCst) > 0
    }

    /// The client has been told that another file system begins here.
    pub(crate) fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// Something could not be made stable by another call than a sync. The next sync says so once more: a file's
    /// FSYNC tells one process of the client, and a sync is asked for by another.
    fn record_failure(&self, errno: Errno) {
        self.host.record_failure(errno);
        self.changed.store(true, Ordering::SeqCst);
    }

    /// A new client: failures before its time do not concern it.
    pub(crate) fn begin_session(&self) {
        self.told.store(self.host.failures().count, Ordering::SeqCst);
        self.kernel_writes.store(0, Ordering::SeqCst);
        self.changed.store(self.host.can_sync() && !mutant::on(Mutant::RestartForgets), Ordering::SeqCst);
    }

    /// Makes stable what was changed. `knew` is the value of `told` when the sync was called.
    fn sync(self: &Arc<Self>, knew: u64, deadline: Option<Instant>) -> Result<()> {
        // Another sync under way may have cleared the mark, and its outcome is not known yet.
        let alone = self.under_way.fetch_add(1, Ordering::SeqCst) == 0;
        let written = self.kernel_writes.load(Ordering::SeqCst) > 0;
        let outcome = if self.changed.swap(false, Ordering::SeqCst) || written || !alone {
            self.stabilise(deadline)
        } else {
            Ok(())
        };
        let failures = self.host.failures();
        let knew = match () {
            () if mutant::on(Mutant::ToldLookedUpLate) => self.told.load(Ordering::SeqCst),
            () if mutant::on(Mutant::OneCountForAll) => {
                TOLD_TO_ANYBODY.fetch_max(failures.count, Ordering::SeqCst)
            }
            () => knew,
        };
        let outcome = if failures.count > knew { Err(failures.last) } else { outcome };
        if outcome.is_err() {
            self.changed.store(true, Ordering::SeqCst);
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        // Told only now: whoever is called from here on knows.
        self.told.fetch_max(failures.count, Ordering::SeqCst);
        outcome
    }

    /// Returns when all that had been changed has been synced; the host's failures say how that went.
    fn stabilise(self: &Arc<Self>, deadline: Option<Instant>) -> Result<()> {
        let Some(_) = &self.dirt else { return self.host.stabilise(deadline) };
        let ledger = Arc::clone(self);
        let joined = self.rounds.join(deadline, move || ledger.sync_inodes());
        joined.map_err(|TimedOut| self.host.timed_out())
    }

    /// A round: syncs the inodes on the list, or everything if track was lost.
    fn sync_inodes(&self) {
        let Some(dirt) = &self.dirt else { return };
        let inodes = match dirt.take() {
            Taken::Everything => return self.sync_everything(dirt),
            Taken::Inodes(inodes) => inodes,
        };
        match fsync_all(&inodes, self).and_then(|()| self.after_fsync()) {
            Ok(()) => {}
            Err(Unsynced::Failed) => {
                if !mutant::on(Mutant::FailedForgotten) {
                    dirt.put_back(inodes);
                }
                self.changed.store(true, Ordering::SeqCst);
            }
            Err(Unsynced::Unsupported) => self.sync_everything(dirt),
        }
    }

    fn after_fsync(&self) -> std::result::Result<(), Unsynced> {
        uninterrupted(|| self.host.after_fsync()).told().map_err(|errno| {
            self.record_failure(errno);
            Unsynced::Failed
        })
    }

    fn sync_everything(&self, dirt: &Dirt) {
        let before = self.host.failures().count;
        // Without a deadline: whoever has one waits for this round elsewhere.
        let synced = self.host.stabilise(None);
        if synced.is_err() || self.host.failures().count > before {
            dirt.lose_track();
            self.changed.store(true, Ordering::SeqCst);
        }
    }
}

/// For a deliberate bug.
static TOLD_TO_ANYBODY: AtomicU64 = AtomicU64::new(0);

/// Threads that call fsync(2) for one sync, at most. Waiting side by side they share flushes of the disk.
const FSYNC_THREADS: usize = 8;

/// Why inodes were not synced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unsynced {
    /// The host does not do it inode by inode.
    Unsupported,
    /// It failed, and is told.
    Failed,
}

/// Calls fsync(2) on every inode; on all of them, whatever the others say.
fn fsync_all(inodes: &[(u64, Arc<Held>)], ledger: &Ledger) -> std::result::Result<(), Unsynced> {
    let (directories, files): (Vec<_>, Vec<_>) =
        inodes.iter().map(|(_, held)| &**held).partition(|held| held.is_directory());
    // All data first, so that the disk has it at once, and one commit of a journal serves many.
    if files.len() > 1 {
        files.iter().for_each(|held| ledger.host.calls().begin_writeback(held.descriptor()));
    }
    if mutant::on(Mutant::NamelessFails) && files.iter().any(|held| held.is_gone()) {
        ledger.record_failure(Errno::ESTALE);
        return Err(Unsynced::Failed);
    }
    let files = side_by_side(&files, |held| held.sync().run_for_all(held.descriptor(), ledger));
    if mutant::on(Mutant::DirectoriesSkipped) {
        return files;
    }
    files.max(side_by_side(&directories, |held| held.sync().run_for_all(held.descriptor(), ledger)))
}

fn side_by_side(
    inodes: &[&Held],
    fsync: impl Fn(&Held) -> std::result::Result<(), Unsynced> + Sync,
) -> std::result::Result<(), Unsynced> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcome = Ok(());
        while let Some(held) = inodes.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcome = outcome.max(fsync(held));
        }
        outcome
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..inodes.len().min(FSYNC_THREADS))
            // No thread to be had: this one does it all.
            .map_while(|_| thread::Builder::new().name("ashore-fsync".into()).spawn_scoped(scope, work).ok())
            .collect();
        let mine = work();
        helpers.into_iter().fold(mine, |all, helper| all.max(helper.join().unwrap_or(Err(Unsynced::Failed))))
    })
}

/// Calls fsync(2) on one open file, so that of several callers each hears of an error though the kernel reports it to
/// the descriptor once.
#[derive(Default)]
pub(crate) struct FileSync {
    /// Also keeps them one after another: the second must not return before the first has recorded its error.
    failures: Mutex<Failures>,
    told: AtomicU64,
}

impl FileSync {
    /// For an FSYNC.
    fn run(&self, call: impl FnOnce() -> rustix::io::Result<()>, ledger: &Ledger) -> Result<()> {
        let knew = self.told.load(Ordering::SeqCst);
        let mut failures = self.failures.lock();
        let outcome = call().told();
        if let Err(errno) = outcome {
            if !means_loss(errno) {
                return Err(errno);
            }
            FileSync::note(&mut failures, errno, ledger);
        }
        let Failures { count, last } = *failures;
        self.told.fetch_max(count, Ordering::SeqCst);
        if count > knew { Err(last) } else { Ok(()) }
    }

    /// For a sync that covers many files. Who asked for it is told by the ledger; an FSYNC of this file is asked by
    /// another process of the client, and so is told of the error too.
    fn run_for_all(&self, file: BorrowedFd<'_>, ledger: &Ledger) -> std::result::Result<(), Unsynced> {
        let mut failures = self.failures.lock();
        let call = || match () {
            () if mutant::on(Mutant::NoFlush) => {
                ledger.host.calls().begin_writeback(file);
                Ok(())
            }
            () => ledger.host.calls().fsync(file, mutant::on(Mutant::DataOnly)),
        };
        match uninterrupted(call).told() {
            Ok(()) => Ok(()),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EBADF) => Err(Unsynced::Unsupported),
            // Read-only by now though it was changed: it has been shut down after an error.
            Err(errno) => {
                FileSync::note(&mut failures, errno, ledger);
                Err(Unsynced::Failed)
            }
        }
    }

    fn note(failures: &mut Failures, errno: Errno, ledger: &Ledger) {
        failures.add(errno);
        ledger.record_failure(errno);
        tracing::error!("an fsync failed: {errno}; data of that file may be lost");
    }
}

/// Errors of fsync(2) that say data was lost, and not that the call made no sense.
fn means_loss(errno: Errno) -> bool {
    !matches!(errno, Errno::EBADF | Errno::EINVAL | Errno::EROFS | Errno::EINTR | Errno::EOPNOTSUPP)
}

/// FSYNC and FSYNCDIR.
pub(crate) fn fsync(fs: &Passthrough, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
    let file = fs.handles.find(handle, node)?;
    if mutant::on(Mutant::OtherFileSynced) {
        return fsync_file(fs, &fs.handles.other_than(&file).unwrap_or(file), data_only);
    }
    fsync_file(fs, &file, data_only)
}

/// Makes one open file stable.
pub(crate) fn fsync_file(fs: &Passthrough, file: &OpenFile, data_only: bool) -> Result<()> {
    let ledger = &fs.places.at(file.place).ledger;
    let call = || {
        ledger.host.calls().fsync(file.descriptor(), data_only || mutant::on(Mutant::DataOnly))?;
        ledger.host.after_fsync()
    };
    file.sync.run(call, ledger)
}

/// FLUSH: a descriptor was closed. Not a sync, unless the options say so.
pub(crate) fn flush(fs: &Passthrough, node: NodeId, handle: FileHandle) -> Result<()> {
    let file = fs.handles.find(handle, node)?;
    if fs.options.flush_fsync && file.written.swap(false, Ordering::SeqCst) {
        return fsync_file(fs, &file, false).inspect_err(|_| file.written.store(true, Ordering::SeqCst));
    }
    if fs.places.at(file.place).flushes_on_close {
        // Such a file system may know only now that a write failed; closing a duplicate asks it.
        return sys::close_duplicate(file.descriptor()).told();
    }
    Ok(())
}

/// SYNCFS: of the root, everything; of a mount that the client has of its own, that one and all it does not know of.
pub(crate) fn syncfs(fs: &Passthrough, node: NodeId) -> Result<()> {
    let place = fs.place_of(node)?;
    let ledgers = fs.places.ledgers();
    let own = |ledger: &&Arc<Ledger>| Arc::ptr_eq(ledger, &place.ledger);
    // A client that knows of mounts knows the root's file system to be another.
    let root = &fs.places.at(fs.root.place).ledger;
    let known = |ledger: &&Arc<Ledger>| {
        ledger.is_announced() || place.ledger.is_announced() && Arc::ptr_eq(ledger, root)
    };
    let covered: Vec<_> = match fs.options.durability {
        Durability::Relaxed => ledgers.iter().filter(own).collect(),
        _ if mutant::on(Mutant::OnlyRootSynced) => vec![root],
        _ if node == NodeId::ROOT => ledgers.iter().collect(),
        _ => ledgers.iter().filter(|ledger| own(ledger) || !known(ledger)).collect(),
    };
    sync_all(fs, &covered)
}

/// The client has gone, or the server ends.
pub(crate) fn last_call(fs: &Passthrough) -> Result<()> {
    if fs.options.durability == Durability::Relaxed {
        return Ok(());
    }
    let ledgers = fs.places.ledgers();
    ledgers.iter().for_each(|ledger| {
        ledger.changed.store(ledger.host.can_sync() || ledger.is_changed(), Ordering::SeqCst)
    });
    let outcome = sync_all(fs, &ledgers.iter().collect::<Vec<_>>());
    match outcome {
        Ok(()) => {
            tracing::info!("last sync: all changes are stable on {} host file system(s)", ledgers.len())
        }
        Err(errno) => tracing::error!("last sync failed: {errno}; changes may be lost"),
    }
    outcome
}

/// The client may leave for another server soon. Nothing is cleared and nobody is told: it is synced again when it leaves.
pub(crate) fn ahead(fs: &Passthrough) {
    if fs.options.durability == Durability::Relaxed {
        return;
    }
    for ledger in fs.places.ledgers().iter().filter(|ledger| ledger.is_changed()) {
        let _ = ledger.stabilise(None);
    }
}

/// The client leaves for another server. If that fails it stays, and hears of it at its next sync.
pub(crate) fn hand_over(fs: &Passthrough) -> Result<()> {
    let told = |ledger: Arc<Ledger>| (ledger.told.load(Ordering::SeqCst), ledger);
    let before: Vec<_> = fs.places.ledgers().into_iter().map(told).collect();
    let outcome = last_call(fs);
    if outcome.is_err() {
        // It was whoever moves the client that was told, and no sync of the client is under way.
        before.iter().for_each(|(knew, ledger)| ledger.told.store(*knew, Ordering::SeqCst));
    }
    outcome
}

/// A ledger to be synced, and what had been told of it when the sync was called.
type Call<'a> = (&'a Arc<Ledger>, u64);

/// Syncs several host file systems side by side. All are synced, whatever the others say; the first error counts.
fn sync_all(fs: &Passthrough, ledgers: &[&Arc<Ledger>]) -> Result<()> {
    let deadline = fs.options.sync_timeout.map(|timeout| Instant::now() + timeout);
    // Before anything else: what is known now is what was told before this call.
    let calls: Vec<Call<'_>> =
        ledgers.iter().map(|ledger| (*ledger, ledger.told.load(Ordering::SeqCst))).collect();
    let (busy, idle): (Vec<_>, Vec<_>) = calls.into_iter().partition(|(ledger, _)| ledger.is_changed());
    let Some((first, others)) = busy.split_first() else {
        return one_by_one(&idle, deadline);
    };
    thread::scope(|scope| {
        let start = |(ledger, knew): &Call<'_>| {
            let (ledger, knew) = (Arc::clone(ledger), *knew);
            let thread = thread::Builder::new().name("ashore-sync".into());
            thread.spawn_scoped(scope, move || ledger.sync(knew, deadline))
        };
        let threads: Vec<_> = others.iter().map(|call| (call, start(call))).collect();
        let mut outcome = first.0.sync(first.1, deadline);
        for (call, thread) in threads {
            outcome = outcome.and(match thread {
                Ok(thread) => thread.join().unwrap_or(Err(Errno::EIO)),
                // No thread to be had: one after another is right too.
                Err(_) => call.0.sync(call.1, deadline),
            });
        }
        outcome.and(one_by_one(&idle, deadline))
    })
}

fn one_by_one(calls: &[Call<'_>], deadline: Option<Instant>) -> Result<()> {
    let outcomes = calls.iter().map(|(ledger, knew)| ledger.sync(*knew, deadline));
    outcomes.fold(Ok(()), Result::and)
}

/// An inode that is about to be changed otherwise than through an open file of the client.
pub(crate) struct Change<'a> {
    place: &'a Place,
    number: u64,
    /// What it will be synced by, where syncs go by inode.
    held: Option<Arc<Held>>,
}

impl<'a> Change<'a> {
    /// To be called before the change is made: a descriptor must be older than the errors it is to hear of.
    pub(crate) fn of(fs: &Passthrough, inode: &Inode<'a>) -> Change<'a> {
        let held = inode.place.ledger.dirt.as_ref().and_then(|dirt| {
            dirt.hold(inode.number, || {
                // A link, a pipe or a device must not be opened, or cannot.
                if !matches!(inode.kind, libc::S_IFDIR | libc::S_IFREG) {
                    return None;
                }
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let descriptor = fs.places.reopen(inode.fd(), flags).ok()?;
                let is_directory = inode.kind == libc::S_IFDIR;
                Some(Held::Opened { descriptor, sync: FileSync::default(), is_directory })
            })
        });
        Change { place: inode.place, number: inode.number, held }
    }

    /// To be called after the change was made, and before it is acknowledged.
    pub(crate) fn mark(&self) {
        let ledger = &self.place.ledger;
        if let Some(dirt) = &ledger.dirt {
            dirt.record_inode(self.number, self.held.as_ref());
        }
        ledger.mark_changed();
    }

    /// As [`Change::mark`]; where every change is to be stable before it is acknowledged, makes it so.
    pub(crate) fn settle(&self, fs: &Passthrough) -> Result<()> {
        self.mark();
        settled(fs, self.place)
    }
}

/// A change was made at this place, and marked: where every change is to be stable before it is acknowledged, makes it
/// so.
pub(crate) fn settled(fs: &Passthrough, place: &Place) -> Result<()> {
    if fs.options.durability != Durability::Strict {
        return Ok(());
    }
    let ledger = &place.ledger;
    let before = ledger.host.failures().count;
    let deadline = fs.options.sync_timeout.map(|timeout| Instant::now() + timeout);
    ledger.stabilise(deadline)?;
    // Not noted as told: the next sync is to say it too, for this error goes to a process that never asked for one.
    let failures = ledger.host.failures();
    if failures.count > before { Err(failures.last) } else { Ok(()) }
}

/// FORGET.
pub(crate) fn forget(fs: &Passthrough, node: NodeId, lookups: u64) {
    let Some(forgotten) = fs.inodes.forget(node, lookups) else { return };
    if let Some(dirt) = &fs.places.at(forgotten.key.place).ledger.dirt {
        dirt.forget(forgotten.key.ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostfs::HostFileSystems;
    use rustix::io::Errno as HostErrno;

    fn ledger(hosts: &Arc<HostFileSystems>) -> Arc<Ledger> {
        Arc::new(Ledger::new(hosts.reach(7, Some(tempfile::tempfile().unwrap().into())), false))
    }

    fn sound_ledger() -> Arc<Ledger> {
        ledger(&HostFileSystems::with_sync_call(|_, _| Ok(())))
    }

    fn sync(ledger: &Arc<Ledger>) -> Result<()> {
        ledger.sync(ledger.told.load(Ordering::SeqCst), None)
    }

    /// Aim: the kernel tells a descriptor of an error once, and of two fsyncs that overlap both hear of it. Method: the
    /// first is held inside the kernel until the second has been called.
    #[test]
    fn of_two_fsyncs_that_overlap_both_hear_of_the_one_error() {
        let (file, ledger) = (FileSync::default(), sound_ledger());
        let second_called = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                let call = || {
                    second_called.wait();
                    thread::sleep(std::time::Duration::from_millis(50));
                    Err(HostErrno::IO)
                };
                file.run(call, &ledger)
            });
            second_called.wait();
            assert_eq!(file.run(|| Ok(()), &ledger), Err(Errno::EIO));
            assert_eq!(first.join().unwrap(), Err(Errno::EIO));
        });
        assert_eq!(file.run(|| Ok(()), &ledger), Ok(()), "told once");
        assert_eq!(sync(&ledger), Err(Errno::EIO), "the file system's sync says it too");
        assert_eq!(sync(&ledger), Ok(()));
    }

    #[test]
    fn a_call_that_made_no_sense_is_no_loss() {
        let (file, ledger) = (FileSync::default(), sound_ledger());
        assert_eq!(file.run(|| Err(HostErrno::INVAL), &ledger), Err(Errno::EINVAL));
        assert_eq!(file.run(|| Ok(()), &ledger), Ok(()));
        assert_eq!(sync(&ledger), Ok(()));
    }

    /// Aim: when a sync succeeds, what was changed before it was called is stable, however changes and syncs overlap, and
    /// a sync that fails leaves it owed. Method: "the disk" is a number of changes, of which a host sync makes stable
    /// those that were there when it began; every third one fails and makes nothing stable.
    #[test]
    fn a_sync_that_succeeds_covers_every_change_before_it() {
        const THREADS: u64 = 4;
        let (changes, stable, calls) =
            (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
        let (cache, disk) = (Arc::clone(&changes), Arc::clone(&stable));
        let hosts = HostFileSystems::with_sync_call(move |_, _| {
            let reached = cache.load(Ordering::SeqCst);
            thread::yield_now();
            if calls.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
                return Err(HostErrno::IO);
            }
            disk.fetch_max(reached, Ordering::SeqCst);
            Ok(())
        });
        let ledger = ledger(&hosts);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let mine = changes.fetch_add(1, Ordering::SeqCst) + 1;
                        ledger.mark_changed();
                        if sync(&ledger).is_ok() {
                            assert!(stable.load(Ordering::SeqCst) >= mine, "success without the change");
                        }
                    }
                });
            }
        });
        while sync(&ledger).is_err() {}
        assert_eq!(stable.load(Ordering::SeqCst), THREADS * 2000);
        assert!(!ledger.is_changed());
    }
}
