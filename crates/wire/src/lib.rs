//! FUSE messages as Rust types, and the seams between those who move them and those who understand them.
//!
//! Bytes from a client become a typed [`Request`] in one place, [`Request::parse`]; after that, nothing asks
//! whether a message is well formed. Values become bytes again in one place, [`Reply::encode`]. For clients, [`encode`]
//! is the mirror of both.
//!
//! The protocol is that of the Linux header `include/uapi/linux/fuse.h`, up to 7.45 (Linux 7.2). Clients from
//! 7.27 on (Linux 5.0) are understood: older ones laid out some structures differently.
//!
//! What this crate leaves to others: moving bytes (the transports implement the traits of [`seam`]), and
//! deciding what a request means (`ashore-server` and the file systems behind it).

#![forbid(unsafe_code)]

pub mod abi;
pub mod encode;
pub mod errno;
pub mod flags;
pub mod ids;
pub mod init;
pub mod link;
pub mod opcode;
pub mod reply;
pub mod request;
pub mod seam;

pub use errno::Errno;
pub use ids::{FileHandle, LockOwner, NodeId, RequestId};
pub use opcode::Opcode;
pub use reply::{DirentBuffer, Reply};
pub use request::{Dialect, Name, Operation, ProtocolError, Request};
