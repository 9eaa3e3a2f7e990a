//! The one system call: membarrier(2), private and expedited.
//!
//! `expedite` interrupts every processor that runs a thread of this process and returns when each has passed a full
//! memory barrier; a thread that is not running has passed one when it was switched out. Threads of other processes
//! are left alone, hence "private". A process registers first, once, so that the kernel need not search.

/// The kernel did not carry out the barrier.
#[derive(Debug)]
pub(crate) struct Refused;

#[cfg(all(target_os = "linux", feature = "membarrier", not(any(loom, shuttle, miri))))]
mod call {
    use super::Refused;
    use rustix::thread::{MembarrierCommand, membarrier};

    /// Whether this process may use [`expedite`] from now on. Registering twice does no harm.
    pub(crate) fn register() -> bool {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }

    /// A full memory barrier on every running thread of this process, and on this one.
    pub(crate) fn expedite() -> Result<(), Refused> {
        membarrier(MembarrierCommand::PrivateExpedited).or_else(|_| register_again()).map_err(|_| Refused)
    }

    /// The registration belongs to the address space. A fork may have lost it.
    fn register_again() -> rustix::io::Result<()> {
        membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
        membarrier(MembarrierCommand::PrivateExpedited)
    }
}

#[cfg(not(all(target_os = "linux", feature = "membarrier", not(any(loom, shuttle, miri)))))]
#[cfg_attr(any(loom, shuttle), allow(dead_code, reason = "the models have no system calls"))]
mod call {
    use super::Refused;

    pub(crate) fn register() -> bool {
        false
    }

    pub(crate) fn expedite() -> Result<(), Refused> {
        Err(Refused)
    }
}

pub(crate) use call::expedite;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use call::register;
