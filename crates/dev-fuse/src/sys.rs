//! The system calls that have no safe wrapper: five ioctls, each on one kind of descriptor, and a ring of FUSE over io_uring.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ashore_wire::abi::{UringCmdReq, UringReqHeader};
use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode as operations};
use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use zerocopy::IntoBytes;

use crate::buffers::{PAGE_SIZE, Slot};
use crate::device::Device;

/// `FUSE_DEV_IOC_CLONE`: makes `new`, freshly opened, one more descriptor of the session of `session`.
pub(crate) fn clone_session(new: BorrowedFd<'_>, session: BorrowedFd<'_>) -> Result<()> {
    let number = session.as_raw_fd() as u32;
    let call = Call { opcode: opcode::read::<u32>(229, 0), argument: Argument::Pointer(number) };
    // SAFETY: the kernel reads four bytes, the descriptor's number, from memory that lives in `call`, and writes none.
    // Both descriptors are borrowed, so they are open for as long as it takes.
    unsafe { ioctl(new, call) }.map(drop)
}

/// `FUSE_DEV_IOC_BACKING_OPEN` (Linux 6.9): gives the session a file to read and write itself, which it numbers.
pub(crate) fn open_backing(session: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let map = BackingMap { file: file.as_raw_fd(), flags: 0, padding: 0 };
    let call = Call { opcode: opcode::write::<BackingMap>(229, 1), argument: Argument::Pointer(map) };
    // SAFETY: the kernel copies a `struct fuse_backing_map` from memory that lives in `call`; `BackingMap` has its layout, and
    // nothing is written to it. Both descriptors are borrowed, so they are open for as long as it takes.
    unsafe { ioctl(session, call) }.map(|id| id as u32)
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`: the session may let go of such a file, when it is not open there any more.
pub(crate) fn close_backing(session: BorrowedFd<'_>, id: u32) -> Result<()> {
    let call = Call { opcode: opcode::write::<u32>(229, 2), argument: Argument::Pointer(id) };
    // SAFETY: the kernel reads four bytes from memory that lives in `call`, and writes none.
    unsafe { ioctl(session, call) }.map(drop)
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    file: i32,
    flags: u32,
    padding: u64,
}

/// `LOOP_CTL_GET_FREE`: the number of a loop device that nobody uses.
pub(crate) fn free_loop_device(control: impl AsFd) -> Result<u32> {
    let call: Call<u32> = Call { opcode: 0x4c82, argument: Argument::None };
    // SAFETY: this call takes no argument and answers with a number; no memory of ours is involved.
    unsafe { ioctl(control, call) }.map(|number| number as u32)
}

/// `LOOP_CONFIGURE`: puts the loop device on a file.
pub(crate) fn configure_loop(device: impl AsFd, config: LoopConfig) -> Result<()> {
    let call = Call { opcode: 0x4c0a, argument: Argument::Pointer(config) };
    // SAFETY: the kernel copies a `struct loop_config` from memory that lives in `call`; `LoopConfig` has its size (a
    // constant below insists) and its layout, and nothing is written to it.
    unsafe { ioctl(device, call) }.map(drop)
}

/// `struct loop_config`, with `struct loop_info64` in its place.
#[repr(C)]
pub(crate) struct LoopConfig {
    pub(crate) file: u32,
    pub(crate) block_size: u32,
    /// `lo_device`, `lo_inode`, `lo_rdevice`, `lo_offset`, `lo_sizelimit`.
    pub(crate) places: [u64; 5],
    /// `lo_number`, `lo_encrypt_type`, `lo_encrypt_key_size`.
    pub(crate) numbers: [u32; 3],
    pub(crate) flags: u32,
    pub(crate) file_name: [u8; 64],
    /// `lo_crypt_name`, `lo_encrypt_key`.
    pub(crate) unused: [u8; 96],
    /// `lo_init`, and the reserved words of `loop_config`.
    pub(crate) reserved: [u64; 10],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LO_FLAGS_AUTOCLEAR`: the device lets go of its file with its last user.
pub(crate) const LOOP_AUTOCLEAR: u32 = 4;

enum Argument<T> {
    None,
    Pointer(T),
}

struct Call<T> {
    opcode: Opcode,
    argument: Argument<T>,
}

// SAFETY: `as_ptr` points to what the callers above say their call reads, or is null where it takes nothing; the output is
// the return value alone. None of the calls writes to our memory.
unsafe impl<T> Ioctl for Call<T> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        match &mut self.argument {
            Argument::None => std::ptr::null_mut(),
            Argument::Pointer(value) => std::ptr::from_mut(value).cast(),
        }
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput> {
        Ok(out)
    }
}

/// `FUSE_IO_URING_CMD_REGISTER`: the kernel gets an entry, a header and room for a payload, to put a request into.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: it takes the answer out of one, and has it for the next request.
const COMMIT_AND_FETCH: u32 = 2;
/// Places for what is to be submitted with one system call. More takes another.
const SUBMISSIONS: u32 = 64;
/// Marks the completion of watching the descriptor that wakes the ring.
const WOKEN: u64 = u64::MAX;
/// Where in the page of an entry's headers the list of its two pieces of memory is, which the kernel reads at registration.
const PIECES_OFFSET: usize = 512;
/// Where a submission has `len`, which the library's command does not set.
const LENGTH_OFFSET: usize = 24;

const _: () = assert!(size_of::<Entry128>() == 128 && size_of::<UringReqHeader>() <= PIECES_OFFSET);
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// One queue of FUSE over io_uring, used by one thread.
///
/// The slots that the kernel may write to are in here, and nowhere else, from the moment they are submitted until it is done
/// with them.
pub(crate) struct Ring {
    ring: IoUring<Entry128>,
    /// Once it is enabled.
    device: Option<Arc<Device>>,
    queue: u16,
    /// By the number that its completion carries.
    in_kernel: Vec<Option<Slot>>,
    free: Vec<usize>,
}

/// What came out of a ring.
pub(crate) enum Completion {
    /// The kernel is done with this slot: a request is in it, or there was a mistake.
    Slot(Slot, Result<()>),
    /// The watched descriptor can be read.
    Woken,
}

impl Ring {
    /// For the queue of this number. The thread that calls [`Ring::enable`] is the one that uses it.
    pub(crate) fn new(queue: u16) -> std::io::Result<Ring> {
        let mut builder = IoUring::<Entry128>::builder();
        // Requests are brought into our memory by the ring's own thread, when it looks for them.
        builder.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().dontfork();
        let ring = builder.build(SUBMISSIONS)?;
        Ok(Ring { ring, device: None, queue, in_kernel: Vec::new(), free: Vec::new() })
    }

    pub(crate) fn enable(&mut self, device: Arc<Device>) -> std::io::Result<()> {
        self.device = Some(device);
        self.ring.submitter().register_enable_rings()
    }

    /// How many slots the kernel has.
    pub(crate) fn in_kernel(&self) -> usize {
        self.in_kernel.len() - self.free.len()
    }

    /// Gives the kernel a slot that it has not seen before.
    pub(crate) fn register(&mut self, mut slot: Slot) -> std::io::Result<()> {
        let memory = slot.bulk.request.bytes_mut();
        let (header, payload) = (memory.as_ptr().addr(), memory.as_ptr().addr() + PAGE_SIZE);
        let pieces = [header, size_of::<UringReqHeader>(), payload, memory.len() - PAGE_SIZE];
        memory[PIECES_OFFSET..][..size_of_val(&pieces)].copy_from_slice(pieces.as_bytes());
        let list = (header + PIECES_OFFSET) as u64;
        self.submit_slot(slot, REGISTER, 0, Some(list))
    }

    /// Gives the kernel a slot back, with the answer in it to the request of this number.
    pub(crate) fn commit(&mut self, slot: Slot, unique: u64) -> std::io::Result<()> {
        self.submit_slot(slot, COMMIT_AND_FETCH, unique, None)
    }

    fn submit_slot(
        &mut self,
        slot: Slot,
        command: u32,
        commit_id: u64,
        pieces: Option<u64>,
    ) -> std::io::Result<()> {
        let Some(device) = &self.device else { return Err(std::io::ErrorKind::NotConnected.into()) };
        let fd = Fd(device.fd().as_raw_fd());
        let number = self.free.pop().unwrap_or_else(|| {
            self.in_kernel.push(None);
            self.in_kernel.len() - 1
        });
        let request = UringCmdReq { commit_id, qid: self.queue, ..Default::default() };
        let mut area = [0; 80];
        area[..size_of::<UringCmdReq>()].copy_from_slice(request.as_bytes());
        let mut entry =
            operations::UringCmd80::new(fd, command).cmd(area).addr(pieces).build().user_data(number as u64);
        if pieces.is_some() {
            let at = std::ptr::from_mut(&mut entry).cast::<u8>().wrapping_add(LENGTH_OFFSET).cast::<u32>();
            // SAFETY: `Entry128` is `repr(C)` and 128 bytes long, a constant above insists: a `struct io_uring_sqe`, whose 32-bit
            // `len` is at this place and aligned. `entry` is ours alone.
            unsafe { at.write(2) };
        }
        self.in_kernel[number] = Some(slot);
        self.push(&entry)
    }

    /// Has `fd` watched once: [`Completion::Woken`] when it can be read.
    pub(crate) fn watch(&mut self, fd: &OwnedFd) -> std::io::Result<()> {
        const POLL_IN: u32 = 1;
        let entry = operations::PollAdd::new(Fd(fd.as_raw_fd()), POLL_IN).build().user_data(WOKEN);
        self.push(&Entry128::from(entry))
    }

    fn push(&mut self, entry: &Entry128) -> std::io::Result<()> {
        loop {
            // SAFETY: the memory an entry names, if any, is that of a slot in `in_kernel`. It stays there, at the address that it
            // was registered with (a `Vec`'s memory does not move with it), until the kernel has completed the entry; nothing
            // else looks at it meanwhile; and `drop` lets go of none that was not completed. Its descriptor is open for as long
            // as the device, or for watching, is: one that was closed early is answered with an error, and touches no memory.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit(0)?;
        }
    }

    /// Submits what is to be submitted, and waits until so many completions are there.
    pub(crate) fn submit(&mut self, wait: usize) -> std::io::Result<()> {
        match self.ring.submit_and_wait(wait) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether something waits to be submitted.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// The next completion that is there.
    pub(crate) fn completed(&mut self) -> Option<Completion> {
        let completion: cqueue::Entry = self.ring.completion().next()?;
        if completion.user_data() == WOKEN {
            return Some(Completion::Woken);
        }
        let number = completion.user_data() as usize;
        let slot = self.in_kernel.get_mut(number)?.take()?;
        self.free.push(number);
        let outcome = match completion.result() {
            0.. => Ok(()),
            error => Err(rustix::io::Errno::from_raw_os_error(-error)),
        };
        Some(Completion::Slot(slot, outcome))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What the kernel still has it may write to, even a moment after the ring was closed: that memory is given up.
        for slot in self.in_kernel.drain(..).flatten() {
            std::mem::forget(slot);
        }
    }
}
