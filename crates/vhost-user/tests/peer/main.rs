//! The driver side against virtiofsd, a server that is none of ours. Also: that server stopped, killed, and not there.
//!
//! `cargo xtask test peers` installs it first.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod with_virtiofsd;
