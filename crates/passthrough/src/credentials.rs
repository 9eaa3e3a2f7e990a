//! Files belong to the caller who made them.
//!
//! While a file is being made, and only then, the calling thread takes on the caller's ids. They are the thread's own:
//! the kernel knows no ids of a process, and the wrappers of the C library, which change all threads, are not used.
//! Nothing else is done under the caller's ids: the client's kernel has checked permissions before it asked.

use std::marker::PhantomData;

use ashore_server::{Caller, Result};
use ashore_wire::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::host::HostResult;
use crate::ids::IdMap;

/// Supplementary groups taken over from a caller, at most. Linux sends one.
const GROUPS_MAX: usize = 32;
/// What a client's kernel sends where it has no id for a user.
const NOBODY: u32 = u32::MAX;

/// Who the server itself is.
#[derive(Debug)]
pub(crate) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    may_switch: bool,
}

impl Credentials {
    /// Those of the calling thread; all threads that serve requests must have the same.
    pub(crate) fn of_this_thread() -> Credentials {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let may_switch = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        let (uid, gid) = (geteuid(), getegid());
        if !may_switch {
            tracing::warn!(
                "not privileged to give files away: all files the client makes will belong to user {} and group {}",
                uid.as_raw(),
                gid.as_raw()
            );
        }
        Credentials { uid, gid, groups: getgroups().unwrap_or_default(), may_switch }
    }

    /// Takes on the caller's ids until the guard is dropped. `override_permissions` keeps the host from checking
    /// permissions a second time, for clients that do not tell all groups of the caller.
    pub(crate) fn become_caller(
        &self,
        caller: &CallerIds,
        override_permissions: bool,
    ) -> Result<AsCaller<'_>> {
        let mut guard =
            AsCaller { own: self, uid: false, gid: false, groups: false, on_this_thread: PhantomData };
        let groups = caller.groups.is_some();
        if !self.may_switch || (caller.uid, caller.gid) == (self.uid.as_raw(), self.gid.as_raw()) && !groups {
            return Ok(guard);
        }
        if caller.uid == NOBODY || caller.gid == NOBODY {
            return Err(Errno::EOVERFLOW);
        }
        if let Some((groups, count)) = &caller.groups {
            set_thread_groups(&groups[..*count]).told()?;
            guard.groups = true;
        }
        if caller.gid != self.gid.as_raw() {
            set_thread_res_gid(None, Gid::from_raw(caller.gid), None).told()?;
            guard.gid = true;
        }
        // Last, for it takes the privileges that the others need.
        if caller.uid != self.uid.as_raw() {
            set_thread_res_uid(None, Uid::from_raw(caller.uid), None).told()?;
            guard.uid = true;
            if override_permissions {
                raise(CapabilitySet::DAC_OVERRIDE);
            }
        }
        Ok(guard)
    }
}

/// Who the caller is on the host.
#[derive(Debug)]
pub(crate) struct CallerIds {
    uid: u32,
    gid: u32,
    groups: Option<([Gid; GROUPS_MAX], usize)>,
}

impl CallerIds {
    /// Of this caller; EPERM if he may not use one of his ids.
    pub(crate) fn of(caller: &Caller<'_>, uids: &IdMap, gids: &IdMap) -> Result<CallerIds> {
        let mut ids =
            CallerIds { uid: uids.to_host(caller.uid)?, gid: gids.to_host(caller.gid)?, groups: None };
        if caller.extensions.groups.is_some() {
            let (mut groups, mut count) = ([Gid::ROOT; GROUPS_MAX], 0);
            let sent = caller.extensions.group_ids().filter(|group| *group != NOBODY);
            for (place, group) in groups.iter_mut().zip(sent) {
                *place = Gid::from_raw(gids.to_host(group)?);
                count += 1;
            }
            ids.groups = Some((groups, count));
        }
        Ok(ids)
    }
}

/// The calling thread has the caller's ids.
pub(crate) struct AsCaller<'a> {
    own: &'a Credentials,
    uid: bool,
    gid: bool,
    groups: bool,
    /// It must be dropped on the thread it was made on.
    on_this_thread: PhantomData<*const ()>,
}

impl Drop for AsCaller<'_> {
    fn drop(&mut self) {
        let Credentials { uid, gid, groups, .. } = self.own;
        // Each of these was ours a moment ago, and the saved ids still are. To go on with a stranger's ids would make
        // files belong to the wrong user.
        if self.uid {
            set_thread_res_uid(None, *uid, None).expect("a thread can go back to its saved user id");
        }
        if self.gid {
            set_thread_res_gid(None, *gid, None).expect("a thread can go back to its saved group id");
        }
        if self.groups {
            set_thread_groups(groups).expect("a thread that could set groups can set its own again");
        }
    }
}

/// Makes a permitted capability effective; what is not permitted stays as it is.
fn raise(wanted: CapabilitySet) {
    if let Ok(mut sets) = capabilities(None) {
        sets.effective |= sets.permitted & wanted;
        let _ = set_capabilities(None, sets);
    }
}

/// While this lives, the kernel clears set-user-id and set-group-id bits of what this thread writes, as it does for
/// anybody without CAP_FSETID.
pub(crate) struct BitsCleared {
    was_effective: bool,
    on_this_thread: PhantomData<*const ()>,
}

impl BitsCleared {
    /// Begins, if `wanted`.
    pub(crate) fn when(wanted: bool) -> Result<BitsCleared> {
        let mut cleared = BitsCleared { was_effective: false, on_this_thread: PhantomData };
        if wanted {
            let mut sets = capabilities(None).told()?;
            if sets.effective.contains(CapabilitySet::FSETID) {
                sets.effective.remove(CapabilitySet::FSETID);
                set_capabilities(None, sets).told()?;
                cleared.was_effective = true;
            }
        }
        Ok(cleared)
    }
}

impl Drop for BitsCleared {
    fn drop(&mut self) {
        if self.was_effective {
            raise(CapabilitySet::FSETID);
        }
    }
}
