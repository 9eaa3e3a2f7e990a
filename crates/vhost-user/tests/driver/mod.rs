//! The other side of a ring, as a guest's driver has it: enough of one to test a device with, and to mistreat it.
//!
//! ```text
//!     0             descriptor table, available ring, used ring
//!     DATA          one place for each descriptor, PLACE_BYTES long: readable first half, writable second half
//! ```

#![allow(dead_code, reason = "each test uses what it needs of it")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failure of the test")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering, fence};
use std::time::Duration;

use ashore_vhost_user::device::{DetachedQueue, DeviceQueue, RingLayout};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const MEMORY_BYTES: u64 = 64 << 20;
pub(crate) const DATA: u64 = 1 << 20;
pub(crate) const PLACE_BYTES: u64 = 4096;

pub(crate) const IN_HEADER: usize = 40;
pub(crate) const OUT_HEADER: u32 = 16;

pub(crate) const GETATTR: u32 = 3;
pub(crate) const FORGET: u32 = 2;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE_OPCODE: u32 = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Memory shared with the device.
pub(crate) struct Shared {
    pub(crate) file: File,
    base: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to no thread; all access is atomic, or copies bytes nobody else has at the time.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(len: u64) -> Shared {
        let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        let (protection, len) = (ProtFlags::READ | ProtFlags::WRITE, len as usize);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &fd, 0) };
        Shared { file: fd.into(), base: base.unwrap().cast(), len }
    }

    pub(crate) fn address(&self) -> u64 {
        self.base as u64
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset as usize + len <= self.len, "the driver itself stays inside");
        self.base.wrapping_add(offset as usize)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        // SAFETY: `at` checked the bounds, and the source is a slice of ours.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.at(offset, bytes.len()), bytes.len()) }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: `at` checked the bounds, and the target is a vector of that length.
        unsafe { std::ptr::copy(self.at(offset, len), bytes.as_mut_ptr(), len) };
        bytes
    }

    pub(crate) fn u8(&self, offset: u64) -> &AtomicU8 {
        // SAFETY: inside the mapping, which lives as long as self.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    pub(crate) fn u16(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: inside the mapping, which lives as long as self; callers use even offsets.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    pub(crate) fn u32(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as self; callers use multiples of four.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrows from self is left.
        unsafe { rustix::mm::munmap(self.base.cast(), self.len).unwrap() }
    }
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub(crate) fn ring(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// Waits for an eventfd and empties it; `false` if nothing came in time.
pub(crate) fn wait(fd: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let ready = rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0;
    if ready {
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
    ready
}

/// The rings of `size` entries from `offset` on, one behind the other.
pub(crate) fn layout(size: u16, offset: u64, event_idx: bool, base: u16) -> RingLayout {
    let entries = u64::from(size);
    let available = offset + 16 * entries;
    let used = (available + 6 + 2 * entries).next_multiple_of(4);
    RingLayout { size, descriptors: offset, available, used, event_idx, base }
}

/// A driver of one ring.
pub(crate) struct Driver {
    pub(crate) memory: std::sync::Arc<Shared>,
    pub(crate) layout: RingLayout,
    pub(crate) kick: OwnedFd,
    pub(crate) call: OwnedFd,
    pub(crate) available: u16,
    pub(crate) last_used: u16,
    pub(crate) kicks: u64,
}

impl Driver {
    pub(crate) fn new(memory: std::sync::Arc<Shared>, layout: RingLayout) -> Driver {
        let driver = Driver {
            memory,
            layout,
            kick: event(),
            call: event(),
            available: layout.base,
            last_used: layout.base,
            kicks: 0,
        };
        driver.memory.u16(layout.available + 2).store(layout.base, Ordering::Relaxed);
        driver.memory.u16(layout.used + 2).store(layout.base, Ordering::Relaxed);
        driver
    }

    /// A driver and the device's end of its ring.
    pub(crate) fn detached(size: u16, event_idx: bool, base: u16) -> (Driver, DeviceQueue, DetachedQueue) {
        let memory = std::sync::Arc::new(Shared::new(MEMORY_BYTES));
        let driver = Driver::new(memory, layout(size, 0, event_idx, base));
        let (queue, other) = DeviceQueue::detached(
            driver.memory.file.try_clone().unwrap(),
            MEMORY_BYTES,
            driver.layout,
            Some(driver.kick.try_clone().unwrap()),
            Some(driver.call.try_clone().unwrap()),
        )
        .unwrap();
        (driver, queue, other)
    }

    pub(crate) fn place(&self, index: u16) -> u64 {
        DATA + u64::from(index) * PLACE_BYTES
    }

    pub(crate) fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.memory.write(self.layout.descriptors + 16 * u64::from(index), &descriptor.bytes());
    }

    /// Puts a head into the available ring and shows it to the device.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.memory.u16(self.layout.available + 4 + 2 * slot).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.memory.u16(self.layout.available + 2).store(self.available, Ordering::Release);
    }

    /// Notifies the device of what was made available since `old`, if it wants to hear of it.
    pub(crate) fn kick_since(&mut self, old: u16) {
        fence(Ordering::SeqCst);
        let wanted = if self.layout.event_idx {
            let event_at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
            let event = self.memory.u16(event_at).load(Ordering::Relaxed);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            self.memory.u16(self.layout.used).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.kicks += 1;
            ring(&self.kick);
        }
    }

    /// The next completion: head and bytes written.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        if self.memory.u16(self.layout.used + 2).load(Ordering::Acquire) == self.last_used {
            return None;
        }
        let slot = u64::from(self.last_used % self.layout.size);
        let at = self.layout.used + 4 + 8 * slot;
        let entry =
            (self.memory.u32(at).load(Ordering::Relaxed), self.memory.u32(at + 4).load(Ordering::Relaxed));
        self.last_used = self.last_used.wrapping_add(1);
        Some(entry)
    }

    /// Asks to be notified of the next completion; `true` if there is one already.
    pub(crate) fn enable_calls(&mut self) -> bool {
        if self.layout.event_idx {
            let used_event = self.layout.available + 4 + 2 * u64::from(self.layout.size);
            self.memory.u16(used_event).store(self.last_used, Ordering::Relaxed);
        } else {
            self.memory.u16(self.layout.available).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.memory.u16(self.layout.used + 2).load(Ordering::Acquire) != self.last_used
    }

    /// Waits for the next completion as a driver does: look, ask to be notified, look again, sleep.
    pub(crate) fn wait_used(&mut self, timeout: Duration) -> Option<(u32, u32)> {
        loop {
            if let Some(used) = self.used() {
                return Some(used);
            }
            if !self.enable_calls() && !wait(&self.call, timeout) {
                return self.used().map(|used| panic!("{used:?} came without a notification"));
            }
        }
    }

    /// A request in two descriptors, `index` and the one after it: readable, then writable unless `room` is 0.
    pub(crate) fn put_request(&self, index: u16, request: &[u8], room: u32) {
        let place = self.place(index);
        self.memory.write(place, request);
        let flags = if room > 0 { NEXT } else { 0 };
        let readable = Descriptor { address: place, len: request.len() as u32, flags, next: index + 1 };
        self.set_descriptor(index, readable);
        if room > 0 {
            let address = self.place(index + 1);
            self.set_descriptor(index + 1, Descriptor { address, len: room, flags: WRITE, next: 0 });
        }
    }

    /// The reply to a request made by `put_request`.
    pub(crate) fn reply(&self, index: u16, len: u32) -> Vec<u8> {
        self.memory.read(self.place(index + 1), len as usize)
    }
}

/// A request with its header.
pub(crate) fn request(opcode: u32, unique: u64, arguments: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; IN_HEADER];
    bytes[..4].copy_from_slice(&((IN_HEADER + arguments.len()) as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
    bytes.extend_from_slice(arguments);
    bytes
}

/// Length, error and id of a reply.
pub(crate) fn out_header(reply: &[u8]) -> (u32, i32, u64) {
    let word = |at: usize| <[u8; 4]>::try_from(&reply[at..at + 4]).unwrap();
    let id = u64::from_ne_bytes(reply[8..16].try_into().unwrap());
    (u32::from_ne_bytes(word(0)), i32::from_ne_bytes(word(4)), id)
}

pub(crate) fn poke(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}
