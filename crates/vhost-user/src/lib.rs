//! virtio-fs over vhost-user: requests and replies in memory that a virtual machine shares with us.
//!
//! The [`device`] side is what a file server needs: a VMM connects to a Unix socket, hands over the guest's
//! memory and its queues, and each queue becomes a thread that takes requests from it. It implements the seams
//! of `ashore_wire::seam` and knows nothing about what a request means.
//!
//! ```text
//!     VMM ---- Unix socket ---->  Device            messages: memory, rings, eventfds, start and stop
//!      |                            |
//!      |                            | one thread a queue
//!      v                            v
//!     guest memory  <-------->  DeviceQueue --> RingExchange      (RequestQueue, Exchange)
//!     descriptors, rings,
//!     requests, room for replies
//! ```
//!
//! Nothing a guest writes is believed: indices, addresses and lengths are read once and checked as read. The
//! VMM is trusted with more, since it owns the memory: it can make us wait, but a message that makes no sense
//! ends its connection and nothing else.
//!
//! Both sides look at their rings for a while before they sleep (`look.rs`), as long as that has paid lately: waking up costs more
//! than most requests do.
//!
//! The crates of rust-vmm carry the messages (`vhost`) and make the mappings (`vm-memory`); none of their types
//! are visible outside. The rings are our own, because draining, and what is to come (recovery of requests in
//! flight, migration), need every step of them.

pub mod device;
pub mod driver;
mod look;
mod memory;
