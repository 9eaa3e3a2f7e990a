//! Each kind of number has a type of its own, so that one cannot be passed for another.

use std::fmt;

/// Names an inode between client and server; given out by the server with an entry, valid until forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the file system; valid without ever having been looked up.
    pub const ROOT: NodeId = NodeId(1);
}

/// Names an open file or directory; chosen by the server at OPEN, valid until RELEASE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileHandle(pub u64);

/// Names one request of a connection (`unique` in the headers); the reply repeats it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names the owner of POSIX locks, as the client's kernel tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockOwner(pub u64);

macro_rules! shown_as {
    ($($type:ident $prefix:literal),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}

shown_as!(NodeId "node ", FileHandle "handle ", RequestId "request ", LockOwner "owner ");
