//! Real Linux guests in a few seconds: QEMU, a Debian kernel, a tiny root file system and one program of ours in it.
//!
//! A test says what it needs, boots, and then works step by step while the guest is up:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use ashore_guest::{Guest, Server, Share};
//!
//! let server = Server::builder("/srv/shared").start()?;
//! let guest = Guest::builder().share(Share::new(server.socket())).boot()?;
//! guest.run("echo hello > /mnt/share/a && sync")?.success()?;
//! // Here the guest is still running, and its sync has just returned.
//! guest.shutdown()?;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!   test ── Guest ── QEMU ═══ virtio-serial ═══ ashore-agent (process 1 of the guest)
//!    │                  │                          └── sh -c '…' in /mnt/share
//!    └── Server ── socket (vhost-user)
//! ```
//!
//! Commands, their output and their exit codes travel over a virtio-serial port of their own, so that no kernel message
//! gets between them. Everything that is started here ends when its value is dropped.
//!
//! This is a package of its own because `xtask` boots guests too, and must work while the server does not compile.
//! It uses none of our crates: what it tests, it tests from outside.

#![forbid(unsafe_code)]

mod agent;
pub mod cache;
mod channel;
mod disk;
mod guest;
mod initramfs;
pub mod kernel;
pub mod manifest;
mod modules;
pub mod pattern;
pub mod protocol;
mod qemu;
mod server;
pub mod workload;

pub use agent::target_dir;
pub use channel::{Event, Output, Running};
pub use disk::{BindMount, LoopImage, SmallDisk};
pub use guest::{Builder, Guest, KERNEL_VARIABLE, Share};
pub use kernel::{DEFAULT_KERNEL, FULL_KERNEL, Kernel};
pub use pattern::count_blocks;
pub use server::{SERVER_VARIABLE, Server, ServerBuilder, is_listened_at};
