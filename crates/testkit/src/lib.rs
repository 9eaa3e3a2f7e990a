//! File systems, transports and guests for tests.
//!
//! What a test needs of more than one of our crates lives here, and so do the tests themselves. Nothing depends on
//! this crate.

#![allow(clippy::unwrap_used, reason = "this is test code: a failed unwrap is the failed test")]

pub use ashore_guest as guest;

pub mod conformance;
pub mod delayed;
pub mod fsx;
pub mod in_process;
pub mod loopback;
pub mod memory_fs;
pub mod mounted;
pub mod overtaking;
pub mod power_cut;
pub mod scripted;
pub mod share;
pub mod slow;

/// In an `impl FileSystem` of something that wraps another, its field `inner`: methods that are passed on as they are.
#[macro_export]
macro_rules! delegate {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        $(#[allow(clippy::too_many_arguments, reason = "the trait's")]
        fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            self.inner.$name($($argument),*)
        })*
    };
}
