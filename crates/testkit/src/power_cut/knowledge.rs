//! What can be known at a moment of a recording: what syncs that had returned have promised, and how far threads can
//! have been at most.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use ashore_guest::workload::{DirectoryId, FileId, Mark, Plan, SECTOR, Scope, holds_data};

use super::disk::Entry;
use super::history::History;

/// What is known at one position of a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge {
    /// How many steps of each thread are stable.
    pub(super) floors: Vec<u32>,
    /// How many steps of each thread had been begun, at most.
    pub(super) ceilings: Vec<u32>,
    /// Files that are stable beyond the floor of their thread.
    pub(super) files: BTreeMap<(u32, FileId), u32>,
    /// Directories whose names are stable beyond the floor of their thread.
    pub(super) directories: BTreeMap<(u32, DirectoryId), u32>,
    /// Bytes that a later step added behind a file's end may be what the file held there before it was cut off: btrfs (Linux
    /// 6.18) makes a file longer before it has written the zeros. No sync has promised those bytes anything.
    pub(super) stale_tails: bool,
    /// Files of which a write failed, and then a sync that had to say so: nothing is promised of them any more.
    pub(super) told_lost: HashSet<(u32, FileId)>,
}

/// Which file a sector is of, by its content.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<u64, (u32, FileId)>);

impl Owners {
    /// Those of all sectors that threads with these histories ever wrote.
    pub(super) fn of(histories: &[History]) -> Owners {
        let mut owners = Owners::default();
        for (thread, history) in histories.iter().enumerate() {
            for (file, timeline) in &history.files {
                let versions = timeline.between(0, u32::MAX).iter();
                for sector in versions.flat_map(|(_, version)| version.content.chunks(SECTOR)) {
                    if let Some(fingerprint) = fingerprint(sector) {
                        owners.0.insert(fingerprint, (thread as u32, *file));
                    }
                }
            }
        }
        owners
    }

    fn owners_in(&self, data: &[u8]) -> impl Iterator<Item = (u32, FileId)> {
        data.chunks(SECTOR)
            .filter_map(fingerprint)
            .filter_map(|fingerprint| self.0.get(&fingerprint).copied())
    }
}

impl Knowledge {
    /// What is known when the first `position` entries of the log have happened, of threads that did so many steps in all.
    pub(super) fn at(
        log: &[Entry],
        position: usize,
        (plan, steps): (&Plan, &[u32]),
        owners: &Owners,
    ) -> Knowledge {
        let mut known = Knowledge { floors: vec![0; steps.len()], ..Knowledge::default() };
        let mut untold = HashSet::new();
        for entry in &log[..position] {
            match entry {
                Entry::Lost { data } => untold.extend(owners.owners_in(data)),
                Entry::Mark(mark) if mark.succeeded => known.promise(plan, mark),
                Entry::Mark(Mark { thread, scope: Scope::File(file), .. }) => {
                    known.told_lost.extend(untold.take(&(*thread, *file)));
                }
                Entry::Mark(mark) => {
                    let told = untold.extract_if(|(thread, _)| plan.share_a_client(*thread, mark.thread));
                    known.told_lost.extend(told);
                }
                Entry::Write { .. } | Entry::Flush { .. } => {}
            }
        }
        known.ceilings = ceilings(&log[position..], steps);
        known
    }

    /// Whether data of this file was lost, and somebody was told.
    pub(super) fn was_told_lost(&self, thread: u32, file: FileId) -> bool {
        self.told_lost.contains(&(thread, file))
    }

    fn promise(&mut self, plan: &Plan, mark: &Mark) {
        let own = mark.floors.get(mark.thread as usize).copied().unwrap_or(0);
        match mark.scope {
            Scope::Everything => {
                for (thread, (floor, promised)) in (0..).zip(self.floors.iter_mut().zip(&mark.floors)) {
                    if plan.share_a_client(thread, mark.thread) {
                        *floor = (*floor).max(*promised);
                    }
                }
            }
            Scope::File(file) => {
                self.files.insert((mark.thread, file), own);
            }
            Scope::Directory(directory) => {
                self.directories.insert((mark.thread, directory), own);
            }
        }
    }
}

/// How far threads can have been when `later` had not happened yet.
///
/// The *second* mark of one thread from here on has floors that were read after the first one was written, so after this
/// moment. Each thread had then begun no more than one step beyond its floor. The first mark's own floors may have been
/// read before this moment, and say nothing.
fn ceilings(later: &[Entry], steps: &[u32]) -> Vec<u32> {
    // A step that was begun and not finished counts as one that can be seen.
    let mut ceilings: Vec<u32> = steps.iter().map(|steps| steps + 1).collect();
    let mut seen = HashSet::new();
    for entry in later {
        let Entry::Mark(mark) = entry else { continue };
        if seen.insert(mark.thread) {
            continue;
        }
        for (ceiling, floor) in ceilings.iter_mut().zip(&mark.floors) {
            *ceiling = (*ceiling).min(floor + 1);
        }
        if seen.len() == steps.len() {
            break;
        }
    }
    ceilings
}

/// Of a sector that says it is a file's, filled up with zeros as on the disk.
fn fingerprint(sector: &[u8]) -> Option<u64> {
    let mut whole = [0; SECTOR];
    whole[..sector.len()].copy_from_slice(sector);
    let mut hasher = DefaultHasher::new();
    whole.hash(&mut hasher);
    holds_data(&whole).then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use ashore_guest::workload::Plan;

    use super::*;

    fn mark(thread: u32, scope: Scope, succeeded: bool, floors: [u32; 2]) -> Entry {
        Entry::Mark(Mark { thread, scope, succeeded, floors: floors.to_vec() })
    }

    fn plan(threads: u32, clients: u32) -> Plan {
        Plan { seed: 4, threads, clients, operations: 60, floors_read_late: false }
    }

    #[test]
    fn a_client_is_promised_what_its_own_threads_did() {
        let log = [mark(0, Scope::Everything, true, [3, 5])];
        let floors =
            |clients| Knowledge::at(&log, 1, (&plan(2, clients), &[9, 9]), &Owners::default()).floors;
        assert_eq!((floors(1), floors(2)), (vec![3, 5], vec![3, 0]));
    }

    #[test]
    fn floors_come_from_marks_before_and_ceilings_from_second_marks_after() {
        let log = [
            mark(0, Scope::Everything, true, [3, 5]),
            mark(1, Scope::File(2), true, [3, 6]),
            mark(0, Scope::Everything, true, [9, 9]),
            mark(0, Scope::Everything, false, [11, 12]),
        ];
        let known = Knowledge::at(&log, 2, (&plan(2, 1), &[20, 20]), &Owners::default());
        assert_eq!(known.floors, [3, 5]);
        assert_eq!(known.files[&(1, 2)], 6);
        assert_eq!(known.ceilings, [12, 13]);
        assert_eq!(Knowledge::at(&log, 4, (&plan(2, 1), &[20, 20]), &Owners::default()).ceilings, [21, 21]);
    }

    /// Aim: a loss is excused from the moment on at which a sync said so, and an fsync speaks of its own file only.
    #[test]
    fn a_loss_is_excused_once_it_was_told() {
        let plan = plan(1, 1);
        let history = History::of(&plan, 0, 60);
        let whole_sector = |file: &&FileId| {
            let versions = history.files[*file].between(0, u32::MAX);
            versions
                .iter()
                .find_map(|(_, version)| version.content.chunks(SECTOR).find(|sector| holds_data(sector)))
        };
        let files: Vec<_> =
            history.files.keys().filter(|file| whole_sector(file).is_some()).copied().collect();
        let (first, second) = (files[0], files[1]);
        let lost = |file: &FileId| Entry::Lost { data: whole_sector(&file).unwrap().into() };
        let owners = Owners::of(std::slice::from_ref(&history));
        let log = [
            lost(&first),
            lost(&second),
            mark(0, Scope::File(second), false, [1, 1]),
            mark(0, Scope::Everything, false, [1, 1]),
        ];
        let told =
            |position, file| Knowledge::at(&log, position, (&plan, &[60]), &owners).was_told_lost(0, file);
        assert!(!told(2, first) && !told(2, second));
        assert!(!told(3, first) && told(3, second));
        assert!(told(4, first) && told(4, second));
    }
}
