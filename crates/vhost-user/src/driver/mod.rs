//! The driver side: we connect to a server, as a VMM and its guest would, without either.
//!
//! [`VhostUserLink`] is the whole of it to a client: memory that the server shares, and requests that go there and
//! come back. [`RawConnection`] sends requests one by one over it, or over any other link.
//!
//! ```text
//!   RawConnection        raw.rs        requests one by one; what they are stands in call.rs
//!     VhostUserLink      link.rs       the Link: which queue, threads that bring answers, the end
//!       Queue            queue.rs      one ring: submit, reap, and what is in flight
//!         Memory         memory.rs     the memory shared with the server, and who has which part
//!       handshake        handshake.rs  the messages to the server, before and after
//! ```
//!
//! A server is believed as little as a guest is: what it writes into the used ring is checked against what was sent,
//! and one that breaks the rules ends the link.

mod call;
mod handshake;
mod link;
mod memory;
mod queue;
mod raw;

pub use call::{Call, LINUX_FLAGS, Pages};
pub use handshake::ConnectError;
pub use link::{LinkOptions, VhostUserLink};
pub use raw::{Answer, RAW_IN_FLIGHT_MAX, RawConnection, RawError, Sent};
