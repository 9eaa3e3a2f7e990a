//! The host's file systems, as this process syncs them.
//!
//! There is one [`HostFs`] for each, however many shares reach it. It holds one descriptor from the moment the file
//! system is first seen, before any change reaches it through us: the kernel reports a write-back error once to each
//! open descriptor *that is older than the error*, so this one hears of every error, also of those another process was
//! told first. As the one descriptor hears of each error once, and many may ask, it counts them (see [`Failures`]).
//!
//! Syncs that overlap share rounds, across all clients of this process:
//!
//! ```text
//!   round 1 |===== syncfs(2) =====|
//!   A joins ^   B, C join ^       | round 2 |===== syncfs(2) =====|
//!                                 A returns                       B, C return
//! ```
//!
//! A caller may only share a round that began after it came, so n that overlap cost at most two.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use ashore_wire::Errno;
use parking_lot::Mutex;

use crate::backing::Backing;
use crate::gaps::Gaps;
use crate::host::HostResult;
use crate::mutant::{self, Mutant};
use crate::rounds::{Rounds, TimedOut};
use crate::sys;

/// The calls that make things stable on the host. Each does what its name says unless it is replaced: to count calls,
/// delay them, or make them fail.
pub trait HostCalls: Send + Sync {
    /// Makes a host file system stable, given its device number and a descriptor on it: syncfs(2).
    fn syncfs(&self, _device: u64, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        rustix::fs::syncfs(file)
    }

    /// Makes a file or a directory stable: fsync(2), or fdatasync(2) if only data is wanted.
    fn fsync(&self, file: BorrowedFd<'_>, data_only: bool) -> rustix::io::Result<()> {
        if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    /// Has the host begin to write a file's data, and waits for nothing: a hint, and no part of any promise.
    fn begin_writeback(&self, file: BorrowedFd<'_>) {
        sys::begin_writeback(file);
    }
}

/// The host's own calls.
struct RealCalls;

impl HostCalls for RealCalls {}

/// With another way to sync a whole file system.
struct WithSyncCall<F>(F);

impl<F> HostCalls for WithSyncCall<F>
where
    F: Fn(u64, BorrowedFd<'_>) -> rustix::io::Result<()> + Send + Sync,
{
    fn syncfs(&self, device: u64, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.0(device, file)
    }
}

/// All host file systems that are in use by shares.
///
/// One for the whole process will do, see [`HostFileSystems::of_this_process`].
pub struct HostFileSystems {
    by_device: Mutex<HashMap<u64, Weak<HostFs>>>,
    calls: Arc<dyn HostCalls>,
}

impl HostFileSystems {
    /// The registry that all shares of this process should use, so that their syncs can share rounds.
    pub fn of_this_process() -> Arc<HostFileSystems> {
        static REGISTRY: OnceLock<Arc<HostFileSystems>> = OnceLock::new();
        Arc::clone(REGISTRY.get_or_init(|| HostFileSystems::with_calls(RealCalls)))
    }

    /// A registry of its own that syncs by `sync_call` in place of syncfs(2): to count syncs, delay them, or make them
    /// fail.
    pub fn with_sync_call(
        sync_call: impl Fn(u64, BorrowedFd<'_>) -> rustix::io::Result<()> + Send + Sync + 'static,
    ) -> Arc<HostFileSystems> {
        HostFileSystems::with_calls(WithSyncCall(sync_call))
    }

    /// A registry of its own that syncs by these calls.
    pub fn with_calls(calls: impl HostCalls + 'static) -> Arc<HostFileSystems> {
        Arc::new(HostFileSystems { by_device: Mutex::default(), calls: Arc::new(calls) })
    }

    /// The file system of this device; `descriptor` is to be kept if it has none yet.
    pub(crate) fn reach(&self, device: u64, descriptor: Option<OwnedFd>) -> Arc<HostFs> {
        let mut by_device = self.by_device.lock();
        by_device.retain(|_, host| host.strong_count() > 0);
        if let Some(host) = by_device.get(&device).and_then(Weak::upgrade) {
            drop(by_device);
            if let Some(descriptor) = descriptor {
                host.offer(descriptor);
            }
            return host;
        }
        let host = Arc::new(HostFs {
            device,
            anchor: descriptor.map(|descriptor| OnceLock::from(Anchor::new(descriptor))).unwrap_or_default(),
            failures: Mutex::default(),
            rounds: Arc::default(),
            calls: Arc::clone(&self.calls),
        });
        by_device.insert(device, Arc::downgrade(&host));
        host
    }
}

impl std::fmt::Debug for HostFileSystems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostFileSystems").field("devices", &self.by_device.lock().len()).finish()
    }
}

/// Failures to make something stable: how many there have been, and what the last one was.
///
/// Whoever may have lost something by one remembers the count it was last *told* of. The count being higher, it has
/// not been told. This is how many share one report of the kernel, and none misses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failures {
    /// How many.
    pub(crate) count: u64,
    /// The last one.
    pub(crate) last: Errno,
}

impl Failures {
    /// One more.
    pub(crate) fn add(&mut self, errno: Errno) {
        self.count += 1;
        self.last = errno;
    }
}

impl Default for Failures {
    fn default() -> Failures {
        Failures { count: 0, last: Errno::EIO }
    }
}

/// A host file system, for a report or for metrics.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// The device number, as stat(2) has it.
    pub device: u64,
    /// What it is made of. `None` if it could not be opened, so that a sync of a change on it fails.
    pub backing: Option<Backing>,
    /// Calls of syncfs(2) on it by this process.
    pub syncs: u64,
    /// How often something on it could not be made stable.
    pub failures: u64,
    /// Whether this client may have changed something there since its last sync.
    pub unsynced: bool,
}

/// What a host file system is synced by.
struct Anchor {
    descriptor: OwnedFd,
    gaps: Gaps,
}

impl Anchor {
    fn new(descriptor: OwnedFd) -> Anchor {
        Anchor { gaps: Gaps::of(descriptor.as_fd()), descriptor }
    }
}

/// One host file system.
pub(crate) struct HostFs {
    device: u64,
    anchor: OnceLock<Anchor>,
    failures: Mutex<Failures>,
    rounds: Arc<Rounds>,
    calls: Arc<dyn HostCalls>,
}

impl HostFs {
    /// The device number, as stat(2) has it.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    /// Whether there is a descriptor to sync it by.
    pub(crate) fn can_sync(&self) -> bool {
        self.anchor.get().is_some()
    }

    /// Keeps a descriptor to sync it by, if it has none.
    pub(crate) fn offer(&self, descriptor: OwnedFd) {
        self.anchor.get_or_init(|| Anchor::new(descriptor));
    }

    /// What it is made of.
    pub(crate) fn backing(&self) -> Option<Backing> {
        self.anchor.get().map(|anchor| Backing::of(&anchor.descriptor, self.device))
    }

    /// What there is to say about it, whatever the client.
    pub(crate) fn report(&self) -> HostReport {
        let (syncs, failures) = (self.rounds.ended(), self.failures().count);
        HostReport { device: self.device, backing: self.backing(), syncs, failures, unsynced: false }
    }

    /// What went wrong so far.
    pub(crate) fn failures(&self) -> Failures {
        *self.failures.lock()
    }

    /// Something on it could not be made stable, as another call than syncfs(2) found.
    pub(crate) fn record_failure(&self, errno: Errno) {
        self.failures.lock().add(errno);
    }

    /// Returns when a sync that began after this call has ended; [`HostFs::failures`] says how it went. Fails if
    /// `deadline` comes first.
    pub(crate) fn stabilise(self: &Arc<Self>, deadline: Option<Instant>) -> Result<(), Errno> {
        let host = Arc::clone(self);
        self.rounds.join(deadline, move || host.run_round()).map_err(|TimedOut| self.timed_out())
    }

    /// The calls to make things stable by.
    pub(crate) fn calls(&self) -> &dyn HostCalls {
        &*self.calls
    }

    fn run_round(&self) {
        let Err(errno) = self.sync() else { return };
        let unsupported = matches!(errno, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL);
        if mutant::on(Mutant::ErrorSwallowed) || unsupported && mutant::on(Mutant::UnsupportedIsSuccess) {
            return;
        }
        let mut failures = self.failures.lock();
        failures.add(errno);
        let count = failures.count;
        drop(failures);
        tracing::error!(
            "syncing the host file system {} failed: {errno}; data may be lost (failure {count} of it)",
            self.name()
        );
    }

    fn sync(&self) -> Result<(), Errno> {
        let Anchor { descriptor, gaps } = self.anchor.get().ok_or(Errno::EIO)?;
        if mutant::on(Mutant::OneInodeSynced) {
            return uninterrupted(|| self.calls.fsync(descriptor.as_fd(), false)).told();
        }
        if mutant::on(Mutant::FreshDescriptor) {
            let flags = rustix::fs::OFlags::RDONLY;
            let fresh = rustix::fs::openat(descriptor, c".", flags, rustix::fs::Mode::empty()).told()?;
            return uninterrupted(|| self.calls.syncfs(self.device, fresh.as_fd())).told();
        }
        let _span = tracing::trace_span!("syncfs", device = self.device).entered();
        uninterrupted(|| self.calls.syncfs(self.device, descriptor.as_fd())).told()?;
        if mutant::on(Mutant::GapsLeft) {
            return Ok(());
        }
        uninterrupted(|| gaps.after_sync(descriptor.as_fd())).told()
    }

    /// To be called when fsync(2) of something on it has succeeded; fails if that was for nothing.
    pub(crate) fn after_fsync(&self) -> rustix::io::Result<()> {
        let Some(Anchor { descriptor, gaps }) = self.anchor.get() else { return Ok(()) };
        if mutant::on(Mutant::GapsLeft) {
            return Ok(());
        }
        gaps.after_fsync(descriptor.as_fd()).inspect_err(|error| {
            tracing::error!("the host file system {} has stopped: {error}; data may be lost", self.name());
        })
    }

    /// What is said of a sync that took too long.
    pub(crate) fn timed_out(&self) -> Errno {
        tracing::error!("syncing the host file system {} takes longer than allowed; told EIO", self.name());
        Errno::EIO
    }

    /// How to speak of it in the log.
    fn name(&self) -> String {
        let number = format!("{}:{}", rustix::fs::major(self.device), rustix::fs::minor(self.device));
        self.backing()
            .map_or(number.clone(), |backing| format!("{} ({}, {number})", backing.mount_point, backing.kind))
    }
}

/// Calls again when a signal came in between. A call that panics has failed: a round must come to its end, for others
/// wait for it.
pub(crate) fn uninterrupted(call: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match catch_unwind(AssertUnwindSafe(&call)) {
            Ok(Err(rustix::io::Errno::INTR)) => {}
            Ok(outcome) => return outcome,
            Err(_) => return Err(rustix::io::Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn descriptor() -> Option<OwnedFd> {
        Some(tempfile::tempfile().unwrap().into())
    }

    #[test]
    fn one_device_has_one_file_system_while_it_is_in_use() {
        let hosts = HostFileSystems::with_sync_call(|_, _| Ok(()));
        let first = hosts.reach(7, descriptor());
        assert!(Arc::ptr_eq(&first, &hosts.reach(7, None)));
        assert!(!Arc::ptr_eq(&first, &hosts.reach(8, None)));
        first.record_failure(Errno::EIO);
        drop(first);
        assert_eq!(hosts.reach(7, None).failures().count, 0, "it went with the last user");
    }

    /// Calls that 17 overlapping callers cost; the first is held until the others have come.
    fn calls_of_17_overlapping() -> usize {
        let calls = Arc::new(AtomicUsize::new(0));
        let (began, begun) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let (counted, held) = (Arc::clone(&calls), Mutex::new(held));
        let hosts = HostFileSystems::with_sync_call(move |_, _| {
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                began.send(()).unwrap();
                held.lock().recv_timeout(PATIENCE).unwrap();
            }
            Ok(())
        });
        let host = hosts.reach(7, descriptor());
        thread::scope(|scope| {
            scope.spawn(|| host.stabilise(None).unwrap());
            begun.recv_timeout(PATIENCE).unwrap();
            let late: Vec<_> = (0..16).map(|_| scope.spawn(|| host.stabilise(None).unwrap())).collect();
            thread::sleep(Duration::from_millis(50));
            assert!(
                late.iter().all(|late| !late.is_finished()),
                "none may share the round that began before"
            );
            release.send(()).unwrap();
        });
        calls.load(Ordering::SeqCst)
    }

    /// Whether all had come in time is the scheduler's affair, so it may take several goes.
    #[test]
    fn overlapping_syncs_cost_two_and_share_only_a_round_that_began_later() {
        let calls: Vec<_> =
            (0..10).map(|_| calls_of_17_overlapping()).take_while(|calls| *calls != 2).collect();
        assert!(calls.len() < 10, "never two: {calls:?}");
    }

    #[test]
    fn a_stuck_disk_is_an_error_in_time_and_is_waited_for_once() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let hosts = HostFileSystems::with_sync_call(move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = held.lock().recv_timeout(PATIENCE);
            Ok(())
        });
        let host = hosts.reach(7, descriptor());
        let soon = || Some(Instant::now() + Duration::from_millis(30));
        for _ in 0..3 {
            assert_eq!(host.stabilise(soon()), Err(Errno::EIO));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1, "one thread is stuck, not one for each caller");
        drop(release);
        assert_eq!(host.stabilise(Some(Instant::now() + PATIENCE)), Ok(()));
    }

    #[test]
    fn a_sync_call_that_panics_is_a_failure_and_leaves_nobody_waiting() {
        let hosts = HostFileSystems::with_sync_call(|_, _| panic!("on purpose"));
        let host = hosts.reach(7, descriptor());
        for count in 1..3 {
            assert_eq!(host.stabilise(Some(Instant::now() + PATIENCE)), Ok(()));
            assert_eq!(host.failures(), Failures { count, last: Errno::EIO });
        }
    }

    #[test]
    fn a_failing_sync_is_counted_and_without_a_descriptor_every_sync_fails() {
        let hosts = HostFileSystems::with_sync_call(|_, _| Err(rustix::io::Errno::NOSPC));
        let host = hosts.reach(7, descriptor());
        host.stabilise(None).unwrap();
        assert_eq!(host.failures(), Failures { count: 1, last: Errno::ENOSPC });
        let blind = hosts.reach(8, None);
        blind.stabilise(None).unwrap();
        assert_eq!(blind.failures().last, Errno::EIO);
    }
}
