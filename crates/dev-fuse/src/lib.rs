//! FUSE over `/dev/fuse`: a mount on this machine, and the queues its requests come from.
//!
//! ```text
//!     processes ---> the kernel's FUSE client
//!                         |  one list of waiting requests
//!             +-----------+-----------+
//!             v           v           v
//!         FuseQueue   FuseQueue   FuseQueue      a descriptor of /dev/fuse each, cloned from the first
//!             |           |           |
//!        FuseExchange    ...         ...         (RequestQueue, Exchange)
//! ```
//!
//! [`MountOptions::mount`] gives the mount and its queues. Each queue is run by a thread, by a worker of
//! `ashore-server` for example:
//!
//! ```ignore
//! let session = Session::new(filesystem, Limits::default());
//! let (mount, queues) = MountOptions::new().mount("/mnt", 4)?;
//! let workers: Vec<_> = queues
//!     .into_iter()
//!     .map(|queue| {
//!         let worker = Worker::new(Arc::clone(&session));
//!         std::thread::spawn(move || worker.run(queue))
//!     })
//!     .collect();
//! // ... until somebody else unmounts, or we do:
//! mount.unmount()?;
//! for worker in workers {
//!     worker.join().expect("a worker does not panic");
//! }
//! session.end()?;
//! ```
//!
//! `Session::end` belongs to it: a plain mount ends without a word (no DESTROY), so that the last sync is for whoever owns the
//! session. A mount that is dropped is unmounted, and if somebody still uses it, its connection is ended there and then.
//!
//! The kernel is on our side of every boundary: what it sends is parsed with the same care as what a guest sends, but it
//! cannot change a request that was read. So payloads lie in memory of ours, and there is no unsafe code but five
//! system calls that have no safe wrapper, and the rings of FUSE over io_uring (`sys.rs`), which is used where the kernel
//! offers it (`rings.rs`, `ring.rs`).

mod backing;
mod backlog;
mod buffers;
mod connection;
mod device;
mod exchange;
mod fusermount;
mod loop_device;
mod mount;
mod notify;
mod options;
mod queue;
mod relay;
mod ring;
mod rings;
mod sys;
mod write_back;

pub use backing::KernelFiles;
pub use exchange::{FuseBulk, FuseExchange};
pub use mount::{Mount, Unmounted};
pub use notify::Notifier;
pub use options::{MountError, MountOptions, SyncDelivery, Transport};
pub use queue::FuseQueue;
pub use relay::Relay;
