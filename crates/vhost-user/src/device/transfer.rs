//! Between a file and guest memory in one system call, without a buffer of ours in between.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use ashore_wire::seam::TransferMode;

use crate::memory::Spans;

/// Pieces that one system call takes (the kernel's UIO_MAXIOV).
const PIECES_PER_CALL: usize = 1024;

/// Writes the first `len` bytes of `source` to `file` at `offset`.
pub(crate) fn write_to_file(
    source: &mut Spans,
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    mode: TransferMode,
) -> io::Result<usize> {
    source.with_prefix(len, |pieces| transfer(libc::SYS_pwritev2, file, pieces, offset, mode))
}

/// Reads up to `len` bytes of `file` from `offset` into the start of `target`.
pub(crate) fn read_from_file(
    target: &mut Spans,
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    mode: TransferMode,
) -> io::Result<usize> {
    target.with_prefix(len, |pieces| transfer(libc::SYS_preadv2, file, pieces, offset, mode))
}

fn transfer(
    call: libc::c_long,
    file: BorrowedFd<'_>,
    pieces: &[libc::iovec],
    offset: u64,
    mode: TransferMode,
) -> io::Result<usize> {
    let (offset, flags) = (mode.offset(offset)?, mode.flags() as libc::c_int);
    let mut done = 0;
    for chunk in pieces.chunks(PIECES_PER_CALL) {
        let wanted: usize = chunk.iter().map(|piece| piece.iov_len).sum();
        let came = match one_call(call, file, chunk, offset + done as u64, flags) {
            Ok(came) => came,
            // What was done is worth more to the caller than why it ended; the reason comes back if he goes on.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        };
        done += came;
        if came < wanted {
            break;
        }
    }
    Ok(done)
}

fn one_call(
    call: libc::c_long,
    file: BorrowedFd<'_>,
    pieces: &[libc::iovec],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    loop {
        // The two halves of the offset are for machines of 32 bits; on ours the second one is shifted away. The
        // call is made without the C library because not every one has a function for it.
        //
        // SAFETY: every piece lies in guest memory that stays mapped for the call (see `Spans`), so whatever the
        // kernel reads or writes there is shared memory, which no reference of ours points to. Should the VMM
        // have shortened the file behind it, the kernel answers EFAULT.
        let result = unsafe {
            libc::syscall(
                call,
                file.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len(),
                offset as libc::c_long,
                0 as libc::c_long,
                flags,
            )
        };
        if result >= 0 {
            return Ok(result as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
