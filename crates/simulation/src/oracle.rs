//! What a sync promises, held against the host.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::host::{Cell, Fault, SimFs};

#[derive(Default)]
struct Known {
    /// Versions whose calls have returned.
    floors: BTreeMap<Cell, u64>,
    /// File, first page cut off, and the version of the cut, which is newer than all that it cuts.
    cuts: Vec<(u64, u64, u64)>,
    syncs: u64,
    errors_told: u64,
}

impl Known {
    /// Whether a truncation that was called after this change has begun to take it away.
    fn is_cut(&self, cell: &Cell, version: u64) -> bool {
        let Cell::Page(node, page) = cell else { return false };
        self.cuts.iter().any(|(of, first, newer)| of == node && first <= page && *newer > version)
    }
}

/// One client's view of a host, for the length of its connection.
pub(crate) struct Oracle {
    pub(crate) host: SimFs,
    known: Mutex<Known>,
    /// The connection may be lost, and is.
    losing: AtomicBool,
    lost: AtomicBool,
}

impl Oracle {
    /// Of a client that has just connected.
    pub(crate) fn new(host: SimFs) -> Oracle {
        Oracle { host, known: Mutex::default(), losing: AtomicBool::new(false), lost: AtomicBool::new(false) }
    }

    /// Of a client whose server takes the place of lost ones: what those had acknowledged, the host has, and the syncs of
    /// this one are to cover. But for mounts of their own, which it syncs only once it has been there.
    pub(crate) fn after(host: SimFs, lost: &[&Oracle]) -> Oracle {
        let oracle = Oracle::new(host);
        for before in lost {
            before.known(|before| {
                oracle.known(|known| {
                    known.cuts.extend(&before.cuts);
                    let kept = before.floors.iter().filter(|(cell, version)| {
                        oracle.host.host(|host| {
                            let gone =
                                host.lost.iter().any(|(of, newest, _)| of == *cell && newest >= *version);
                            host.volatile(cell) >= **version && !gone && host.is_covered_by_root(cell)
                        })
                    });
                    known.floors.extend(kept.map(|(cell, version)| (cell.clone(), *version)));
                });
            });
        }
        oracle
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Syncs, and errors that they told.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.known(|known| (known.syncs, known.errors_told))
    }

    /// The connection is lost by `lose`.
    pub(crate) fn lose_connection(&self, lose: impl FnOnce()) {
        self.losing.store(true, Ordering::SeqCst);
        self.host.host(|host| host.hit(Fault::ConnectionLost));
        lose();
        self.lost.store(true, Ordering::SeqCst);
    }

    /// Whether calls may fail, because the connection is being lost.
    pub(crate) fn is_losing(&self) -> bool {
        self.losing.load(Ordering::SeqCst)
    }

    /// A call that made this cell so new has returned.
    pub(crate) fn done(&self, cell: Cell, version: u64) {
        self.known(|known| {
            let floor = known.floors.entry(cell).or_default();
            *floor = version.max(*floor);
        });
    }

    /// The version that the host has now: for changes that are made there before the call returns.
    pub(crate) fn done_at_host(&self, cell: Cell) {
        let version = self.host.host(|host| host.volatile(&cell));
        self.done(cell, version);
    }

    /// A truncation is about to be called.
    pub(crate) fn cuts(&self, node: u64, first_page: u64, version: u64) {
        self.known(|known| known.cuts.push((node, first_page, version)));
    }

    /// A sync by one who was told of errors at these times before; scope says what it covers.
    pub(crate) fn sync(
        &self,
        told: &mut Vec<u64>,
        whole: bool,
        scope: impl Fn(&Cell) -> bool,
        call: impl FnOnce() -> std::io::Result<()>,
    ) {
        let floors: Vec<_> = self.known(|known| {
            let covered = known.floors.iter().filter(|floor| scope(floor.0));
            covered.map(|(cell, version)| (cell.clone(), *version)).collect()
        });
        let lost_before = self.lost.load(Ordering::SeqCst);
        let called = self.host.host(|host| host.events);
        let outcome = call();
        self.known(|known| known.syncs += 1);
        self.host.host(|host| {
            host.events += 1;
            if let Err(error) = outcome {
                let stale = host.faults.contains_key(&Fault::SyncStale);
                let excused =
                    host.temper.sync_unsupported || stale || !host.lost.is_empty() || self.is_losing();
                assert!(excused, "a sync failed though nothing was wrong: {error}");
                told.push(host.events);
                self.known(|known| known.errors_told += 1);
                return;
            }
            assert!(!lost_before, "D3: a sync succeeded after the connection was lost");
            assert!(!whole || !host.temper.sync_unsupported, "D3: a sync that was not carried out succeeded");
            for (cell, version) in floors {
                let found = host.durable(&cell);
                if found >= version {
                    host.vouch(cell, version);
                    continue;
                }
                if self.known(|known| known.is_cut(&cell, version)) {
                    continue;
                }
                let excused = host.lost.iter().any(|(lost, newest, when)| {
                    *lost == cell
                        && *newest >= version
                        && told.iter().any(|told| when < told && *told <= called)
                });
                assert!(
                    excused,
                    "D1, D2: a sync succeeded; {cell:?} at version {version} is not durable ({found} is)"
                );
            }
            host.crash_point();
        });
    }
}
