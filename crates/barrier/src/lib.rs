//! Wait for all that was started before now, and for nothing that came later.
//!
//! ```
//! use ashore_barrier::Barrier;
//!
//! let barrier = Barrier::new();
//!
//! let ticket = barrier.enter(); //       a write begins
//! let cut = barrier.cut(); //            a sync arrives: the write is earlier
//! let later = barrier.enter(); //        this one is not, and may go on for ever
//!
//! assert!(!cut.is_settled());
//! // ... record the write's result, and then:
//! drop(ticket);
//! cut.wait().expect("nobody aborted"); // `later` is still outstanding
//! # drop(later);
//! ```
//!
//! A server whose workers must not be parked by a sync waits by callback:
//!
//! ```
//! # use std::sync::Arc;
//! # use std::sync::atomic::{AtomicI32, Ordering};
//! # use std::sync::mpsc::{Sender, channel};
//! # use ashore_barrier::Barrier;
//! # struct Request;
//! # impl Request {
//! #     fn is_sync(&self) -> bool { true }
//! #     fn carry_out(&self) -> i32 { 0 }
//! #     fn reply(self, _: i32) {}
//! # }
//! // On each queue's worker, for each request that it takes:
//! fn serve(barrier: &Barrier, error: &AtomicI32, host_syncs: &Sender<Request>, request: Request) {
//!     if request.is_sync() {
//!         let host_syncs = host_syncs.clone();
//!         // Runs on the thread that settles last. It hands over to the thread that syncs the host, and is gone.
//!         return barrier.cut().on_settled(move |outcome| match outcome {
//!             Ok(()) => host_syncs.send(request).expect("the thread for host syncs outlives the workers"),
//!             Err(aborted) => request.reply(-5),
//!         });
//!     }
//!     let ticket = barrier.enter();
//!     let result = request.carry_out();
//!     if result < 0 {
//!         error.store(result, Ordering::Relaxed); // First record the result,
//!     }
//!     request.reply(result);
//!     drop(ticket); //                              then settle.
//! }
//! # let (send, receive) = channel();
//! # serve(&Barrier::new(), &AtomicI32::new(0), &send, Request);
//! # receive.recv().unwrap();
//! ```
//!
//! [`GroupCommit`] lets the syncs that wait there share host syncs, at most two for however many come at once.
//!
//! # The problem
//!
//! A sync must answer for every change that was made before it. Changes are in flight all the time, on many threads.
//! Waiting until *nothing* is in flight may take for ever. So one has to know which of them came before, and to wait for
//! those. Every write takes part in the counting; a sync is rare. The cost belongs on the sync.
//!
//! # The answer of 2021
//!
//! Linux's virtiofs client got "sync buckets". A bucket is an atomic counter. Each write request joins the current
//! bucket and leaves it when it is answered. A sync makes a new bucket current and waits until the old one is empty; the
//! new one counts the old one as a member, so that it cannot be empty first; and if the current bucket holds nothing but
//! its own token, there is nothing to wait for. Joining is an increment unless the counter is zero, so that a bucket
//! that died is never joined. The [`bucket`] module is that algorithm. These were the questions in its review:
//!
//! * *When can a write have no bucket?* When counting is off, because the server does not know SYNCFS. Here: hold an
//!   `Option<Ticket>`. What entered settles, though counting be switched off meanwhile; what did not, does not.
//! * *After a sync has retired a bucket, must a new request not use it?* There it may, if it had read the pointer before:
//!   harmless, it only delays that one sync, and at most once a thread. Here it may not: whoever finds that the epoch
//!   moved while it entered takes its count back. So a ticket is in the old bucket only if it was had before the cut was
//!   made.
//! * *How can the current bucket count zero?* It cannot; the first version tested for it in vain. Here, asserted.
//! * *Should a server without SYNCFS get the wait too?* Not decided there. This crate knows nothing of servers.
//! * *Would a per-CPU counter not be better?* Everyone agreed, and left it. That is what this crate is.
//!
//! # What differs
//!
//! Each thread has two counters for each live bucket, *entered* and *settled*, in cache lines of its own that nobody
//! else writes. Enter and settle add one with a plain load and store. Whoever makes the cut pays: it sums all threads'
//! counters, "settled" first, and the bucket is empty when the sums are equal. A ticket that settles on another thread
//! than it was entered on is counted in that thread's "settled"; only the sum matters. Tickets of a bucket that is
//! already closed settle under a lock, so that the last one is noticed: this happens to no more tickets than were
//! outstanding at the cut.
//!
//! Two fences on the fast path remain, between counting and looking at the epoch. Where Linux offers membarrier(2), they
//! are left to the compiler, and a cut makes all processors of the process do theirs, in about a microsecond (five if
//! they are busy). Elsewhere both are real fences, and a ticket costs as much as an atomic. A process whose sandbox
//! comes down after its barriers are made must go on allowing that call, or ask for [`Options::full_fences`]; if it is
//! refused, the barrier aborts, since an error is better than a sync that is not true. The call is made through rustix,
//! this crate's only dependency: std has no system calls, and the alternative is unsafe code, of which there is none
//! here. Without the feature `membarrier` there is no dependency at all.
//!
//! Eight buckets can be live, so seven cuts can drain at once, each to the letter. Should an eighth be asked for, it is
//! put off until the oldest is over, and shared by all who ask in between: never a cut that was made before they came.
//!
//! # Two orders that you must keep
//!
//! 1. **Enter before the change stops being visible otherwise.** A client enters before its page stops being dirty, a
//!    server when it takes the request from its queue. In between, a sync would see neither.
//! 2. **Record the result before the ticket is dropped.** The waiter looks for it as soon as the last ticket is gone, and
//!    is sure to see what was stored before: settling releases, waiting acquires.
//!
//! Also: if a change is merged into another that is in flight, it belongs to the *older* of the two tickets.
//!
//! # What it is not
//!
//! * [`std::sync::Barrier`] stops a known number of threads until all have arrived. Here nobody who enters ever waits,
//!   and nobody knows how many there are.
//! * RCU and SRCU are the nearest relatives: readers enter and leave, a grace period waits for those who were there
//!   before. SRCU counts as we do, two counters a processor, summed by the updater. But it may wait for readers that came
//!   after the start of a grace period and drains one at a time; and a reader must leave where it entered, or pay. Our
//!   cuts are exact, overlap, can be waited for without a thread, and can be aborted.
//! * percpu-ref counts references per processor until it is killed, and then in one place. It divides once, not again
//!   and again.
//! * A read-write lock, taken for reading by writes and for writing by syncs, makes the writes wait for the sync, and the
//!   sync for whoever came before it had the lock; and its read side is a shared cache line.
//!
//! # Misuse
//!
//! A leaked ticket never settles: cuts after it end by [`Cut::wait_timeout`] or [`Barrier::abort`] only. A thread that
//! dies settles its tickets. A callback may do anything with its barrier; it delays the thread that settled last, and
//! its panic reaches that thread. Nothing here can lead to undefined behaviour: the crate has no unsafe code.
//!
//! Memory: a barrier takes some five kilobytes and two more for every sixteen threads. It is reused after the barrier is
//! dropped, and never given back, because tickets point to it and count no references. [`Barrier::enter`] allocates
//! nothing, except for the first thread of sixteen. More than 4096 threads at a time share counters under a lock.
#![forbid(unsafe_code)]

mod barrier;
pub mod bucket;
mod completion;
mod fence;
mod group_commit;
#[cfg(shuttle)]
#[doc(hidden)]
pub mod model;
mod mutant;
mod shared;
mod slots;
mod sync;
mod sys;

pub use barrier::{Barrier, Options, Ticket};
pub use completion::{Aborted, Cut, WaitError};
pub use group_commit::{GroupCommit, Round};

/// For models only: numbers the threads of one execution from `first`.
#[cfg(any(loom, shuttle))]
#[doc(hidden)]
pub fn start_model(first: usize) {
    slots::index::restart(first);
}
