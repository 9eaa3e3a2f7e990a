//! Names the server has told, for as long as it said they may be remembered.

use super::inode::Moment;
use crate::primitives::HashMap;

/// Names remembered, at most. When there are more, all are forgotten: rare, cheap, and never wrong.
const NAMES_KEPT: usize = 65_536;

/// What leads from a directory and a name to an inode `N`.
#[derive(Debug)]
pub(crate) struct NameCache<N> {
    directories: HashMap<u64, HashMap<Box<[u8]>, Known<N>>>,
    len: usize,
}

#[derive(Debug)]
struct Known<N> {
    /// `None`: there is no such name.
    inode: Option<N>,
    valid_until: Moment,
}

impl<N: Clone> NameCache<N> {
    /// Remembers nothing.
    pub(crate) fn new() -> NameCache<N> {
        NameCache { directories: HashMap::default(), len: 0 }
    }

    /// What is known of a name: `None` is nothing, `Some(None)` that it does not exist.
    pub(crate) fn find(&self, directory: u64, name: &[u8], now: Moment) -> Option<Option<N>> {
        let known = self.directories.get(&directory)?.get(name)?;
        (now < known.valid_until).then(|| known.inode.clone())
    }

    /// Remembers a name. One that may not be remembered at all is still kept, out of date, because it keeps its
    /// inode and that inode's pages alive until it is asked for again. Returns what must be dropped by the caller,
    /// outside any lock: dropping an inode sends things.
    #[must_use]
    pub(crate) fn remember(
        &mut self,
        directory: u64,
        name: &[u8],
        inode: Option<N>,
        valid_until: Moment,
    ) -> Vec<N> {
        let mut dropped = if self.len >= NAMES_KEPT { self.forget_all() } else { Vec::new() };
        let names = self.directories.entry(directory).or_default();
        match names.insert(name.into(), Known { inode, valid_until }) {
            Some(before) => dropped.extend(before.inode),
            None => self.len += 1,
        }
        dropped
    }

    /// Forgets a name.
    #[must_use]
    pub(crate) fn forget(&mut self, directory: u64, name: &[u8]) -> Option<N> {
        let known = self.directories.get_mut(&directory)?.remove(name)?;
        self.len -= 1;
        known.inode
    }

    /// Forgets everything.
    #[must_use]
    pub(crate) fn forget_all(&mut self) -> Vec<N> {
        self.len = 0;
        let names = self.directories.drain().flat_map(|(_, names)| names.into_values());
        names.filter_map(|known| known.inode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_until_its_time_and_so_is_its_absence() {
        let mut names = NameCache::new();
        assert!(names.remember(1, b"a", Some(7), Moment(100)).is_empty());
        assert!(names.remember(1, b"b", None, Moment(100)).is_empty());
        assert_eq!(names.find(1, b"a", Moment(99)), Some(Some(7)));
        assert_eq!(names.find(1, b"b", Moment(99)), Some(None));
        assert_eq!(names.find(1, b"a", Moment(100)), None);
        assert_eq!(names.find(2, b"a", Moment(0)), None);
        assert_eq!(names.forget(1, b"a"), Some(7));
        assert_eq!(names.find(1, b"a", Moment(0)), None);
    }

    #[test]
    fn there_is_a_bound_and_what_falls_out_is_handed_back() {
        let mut names = NameCache::new();
        for n in 0..NAMES_KEPT as u64 {
            assert!(names.remember(n, b"a", Some(n), Moment(1)).is_empty());
        }
        assert_eq!(names.remember(0, b"z", None, Moment(1)).len(), NAMES_KEPT);
        assert_eq!(names.len, 1);
    }
}
