//! A virtio-fs client in user space.
#![forbid(unsafe_code)]

mod core;
