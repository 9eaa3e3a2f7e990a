//! System calls that no safe wrapper has.

#![allow(unsafe_code, reason = "each block says why it holds")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

/// Two processes; the child's number in the parent, nothing in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread (what `Isolation::enter` asks of its caller), so no lock is held by a thread that the
    // child does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Namespaces of its own for this process, or, of processes, for its children. Never a table of descriptors.
pub(crate) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    debug_assert!(!namespaces.contains(UnshareFlags::FILES));
    // SAFETY: no table of descriptors is unshared, which is what could make one invalid for another thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces & !UnshareFlags::FILES) }?)
}

/// Blocks signals for this thread and those it makes.
pub(crate) fn hold(signals: &[Signal]) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

/// Unblocks them for this thread.
pub(crate) fn let_in(signals: &[Signal]) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signals)
}

fn mask(how: libc::c_int, signals: &[Signal]) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is made valid by sigemptyset before anything reads it; a null pointer says that the old mask is not asked
    // for; and the numbers are those of signals.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}
