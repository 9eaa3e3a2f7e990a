//! Landlock: files below the shared directory, and no network, for this thread and those it makes.
//!
//! It is one layer more, below namespaces and root. A kernel that has none of it, or an older one, is left with those.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest of what is asked for (Linux 6.12); the kernel does what it knows of it.
const WANTED: ABI = ABI::V6;

/// Allows what is below the root, which is the share by now, and below `kept`.
pub(crate) fn restrict(kept: &[OwnedFd], own_process: Option<&OwnedFd>) {
    match try_to_restrict(kept, own_process) {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => {
            tracing::debug!("the kernel has no Landlock");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("Landlock cannot be used: {error}"),
    }
}

fn try_to_restrict(
    kept: &[OwnedFd],
    own_process: Option<&OwnedFd>,
) -> Result<RestrictionStatus, Box<dyn std::error::Error>> {
    let all = AccessFs::from_all(WANTED);
    let rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, all))?;
    let rules =
        kept.iter().try_fold(rules, |rules, directory| rules.add_rule(PathBeneath::new(directory, all)))?;
    // Which file systems there are stands there.
    let rules = match own_process {
        Some(directory) => rules.add_rule(PathBeneath::new(directory, AccessFs::from_read(WANTED)))?,
        None => rules,
    };
    Ok(rules.restrict_self().map_err(|error: RulesetError| error)?)
}
