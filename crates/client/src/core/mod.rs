//! The heart of the client: plain state. No I/O, no threads, no clock.
//!
//! Each part is told what happened and says what to do next; [`crate::shell`] does it. The state of a file is
//! under a lock of its own ([`inode::InodeState`]); what all files share (ids, names, rounds of sync) is small and
//! not touched by a cached read or write.
//!
//! Two orders carry everything, here and in the shell: *enter the barrier before a page stops being dirty*
//! ([`inode::InodeState::begin_run`]), and *record a result before the ticket is dropped*
//! ([`inode::InodeState::run_answered`]).

pub(crate) mod errors;
pub(crate) mod in_flight;
pub(crate) mod inode;
pub(crate) mod names;
pub(crate) mod pages;
pub(crate) mod rounds;
