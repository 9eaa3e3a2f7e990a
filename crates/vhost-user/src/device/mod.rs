//! The device side: a VMM connects, and its guest's requests come out of queues.
//!
//! [`Device::serve`] accepts one VMM and follows its messages until it leaves. Every queue the VMM starts gets
//! a thread, which runs the handler of the embedding program with a [`DeviceQueue`] to take requests from. The
//! handler returns when the queue says `None`: the queue was stopped.
//!
//! ```text
//!     Device::serve        connection.rs   follows the VMM's messages
//!       a state that moves state.rs        through a pipe of the VMM's, while no queue runs
//!       a queue's life     vring.rs        collects what they say of a queue, starts and stops its thread
//!         DeviceQueue      queue.rs        the thread's side: take, sleep, wake
//!           RingExchange   exchange.rs     one request: head, payload, reply, exactly one return
//!           Shared         shared.rs       what both need: the used ring, notifications, draining
//!             chain.rs     walks and checks the descriptors of one request
//!             ring.rs      the rings in guest memory: all pointers into them
//!             dirty_log.rs which pages we wrote to, for a VMM that copies them elsewhere meanwhile
//!             inflight.rs  what was taken and not given back, for the server that comes after one that was killed
//! ```

mod backlog;
mod chain;
mod connection;
mod counters;
mod detached;
mod dirty_log;
mod exchange;
mod fds;
mod inflight;
mod listener;
mod options;
mod queue;
mod ring;
mod serve;
mod shared;
mod sleeper;
mod state;
mod transfer;
mod vring;

pub use counters::QueueCounters;
pub use detached::{DetachedQueue, RingLayout};
pub use exchange::{Bulk, RingExchange};
pub use listener::{ListenError, Listener};
pub use options::{DeviceOptions, OptionsError, QueueIndex, Tag};
pub use queue::DeviceQueue;
pub use serve::{Device, DeviceError, Ended, ServeError, StopHandle};
pub use state::{DeviceState, StateError};
