//! The seam between the client and what carries its requests to a server; see [`ashore_wire::link`].

pub use ashore_wire::link::*;
