//! Which capabilities are kept.

use std::io;
use std::str::FromStr;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// What a server needs to make files for others, and to keep their owners, modes and capabilities.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Changes of what is kept, as `+sys_admin:-mknod`: names as in capabilities(7), in either case, with or without `CAP_`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapabilityChanges {
    added: CapabilitySet,
    removed: CapabilitySet,
}

/// Why a list of changes is none.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// No sign.
    #[error("\"{0}\" begins neither with + nor with -, as in +sys_admin:-mknod")]
    NoSign(String),
    /// No such capability.
    #[error("there is no capability \"{0}\"; see capabilities(7)")]
    Unknown(String),
}

impl Default for CapabilityChanges {
    fn default() -> CapabilityChanges {
        CapabilityChanges { added: CapabilitySet::empty(), removed: CapabilitySet::empty() }
    }
}

impl FromStr for CapabilityChanges {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<CapabilityChanges, CapabilityError> {
        let mut changes = CapabilityChanges::default();
        for change in text.split(':').filter(|change| !change.is_empty()) {
            let upper = change.to_uppercase();
            let (set, name) = match (upper.strip_prefix('+'), upper.strip_prefix('-')) {
                (Some(name), _) => (&mut changes.added, name),
                (_, Some(name)) => (&mut changes.removed, name),
                _ => return Err(CapabilityError::NoSign(change.to_owned())),
            };
            let name = name.strip_prefix("CAP_").unwrap_or(name);
            let capability = CapabilitySet::from_name(name);
            *set |= capability.ok_or_else(|| CapabilityError::Unknown(change[1..].to_owned()))?;
        }
        Ok(changes)
    }
}

impl CapabilityChanges {
    fn apply(&self, by_handle: bool) -> CapabilitySet {
        let mut kept = NEEDED;
        kept.set(CapabilitySet::DAC_READ_SEARCH, by_handle);
        (kept | self.added) - self.removed
    }
}

/// Drops all that is not kept, for good, of this thread and those it makes.
pub(crate) fn keep(changes: &CapabilityChanges, by_handle: bool) -> io::Result<()> {
    let kept = changes.apply(by_handle);
    let own = capabilities(None)?;
    if own.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter().filter(|it| it.bits().count_ones() == 1) {
            // An older kernel does not know all of them.
            if !kept.contains(capability) && capability_is_in_bounding_set(capability).unwrap_or(false) {
                remove_capability_from_bounding_set(capability)?;
            }
        }
    }
    clear_ambient_capability_set()?;
    let kept = own.permitted & kept;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Drops those by which a process becomes another user or group.
pub(crate) fn drop_switching() -> io::Result<()> {
    let own = capabilities(None)?;
    let kept = own.permitted - (CapabilitySet::SETUID | CapabilitySet::SETGID);
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, ..own })?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn changes_are_made_to_what_is_needed() {
        let changes: CapabilityChanges = "+sys_admin:-MKNOD:+CAP_linux_immutable".parse().unwrap();
        let kept = changes.apply(false);
        assert!(
            kept.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::LINUX_IMMUTABLE | CapabilitySet::CHOWN)
        );
        assert!(!kept.intersects(CapabilitySet::MKNOD | CapabilitySet::DAC_READ_SEARCH));
        let none = CapabilityChanges::default();
        assert_eq!("".parse::<CapabilityChanges>().unwrap(), none);
        assert_eq!(none.apply(true), NEEDED | CapabilitySet::DAC_READ_SEARCH);
    }

    #[test]
    fn what_is_no_change_is_said_so() {
        let error = |text: &str| text.parse::<CapabilityChanges>().unwrap_err().to_string();
        assert!(error("mknod").contains("begins neither with + nor with -"));
        assert!(error("+mknot").contains("no capability \"mknot\""));
        assert!(error("+é").contains("no capability \"é\""));
    }
}
