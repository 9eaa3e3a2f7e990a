//! Files whose data the client's kernel reads and writes itself, on the host's file: no request is made for it, and there is one
//! cache, the host's (FUSE passthrough, Linux 6.9; a client on this machine only).
//!
//! What such a client writes is not seen here. So a host file system is taken for changed as long as a file of it is open for
//! writing in this way; a mapping holds it open too.
//!
//! Linux has a file either read by its kernel or by requests, however often it is open: opening it the other way meanwhile is EIO.
//! So what its first opening came to holds for those that follow, until it is closed by all.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Once, OnceLock};

use ashore_wire::NodeId;
use ashore_wire::seam::BackingFiles;
use parking_lot::Mutex;

/// The files that such a kernel has.
#[derive(Default)]
pub(crate) struct KernelIo {
    kernel: OnceLock<Arc<dyn BackingFiles>>,
    files: Mutex<HashMap<NodeId, Backed>>,
}

/// A file that is open.
struct Backed {
    /// By which number the kernel knows it; `None`: not at all.
    id: Option<u32>,
    opens: usize,
}

impl KernelIo {
    pub(crate) fn set(&self, kernel: Arc<dyn BackingFiles>) {
        _ = self.kernel.set(kernel);
    }

    /// A file was opened once more. Its number, if the kernel is to read and write it.
    pub(crate) fn opened(&self, node: NodeId, file: BorrowedFd<'_>) -> Option<u32> {
        let kernel = self.kernel.get()?;
        let mut files = self.files.lock();
        let backed = files.entry(node).or_insert_with(|| Backed { id: give(&**kernel, file), opens: 0 });
        backed.opens += 1;
        backed.id
    }

    /// It was closed as often as this is called.
    pub(crate) fn released(&self, node: NodeId) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut files = self.files.lock();
        let Some(backed) = files.get_mut(&node) else { return };
        backed.opens -= 1;
        if backed.opens > 0 {
            return;
        }
        if let Some(id) = files.remove(&node).and_then(|backed| backed.id) {
            take_back(&**kernel, id);
        }
    }

    /// The client has gone.
    pub(crate) fn clear(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        let files = std::mem::take(&mut *self.files.lock());
        files.into_values().filter_map(|backed| backed.id).for_each(|id| take_back(&**kernel, id));
    }
}

fn give(kernel: &dyn BackingFiles, file: BorrowedFd<'_>) -> Option<u32> {
    static REFUSED: Once = Once::new();
    let given = kernel.open(file);
    if let Err(error) = &given {
        REFUSED.call_once(|| tracing::info!("the kernel does not read and write files itself here: {error}"));
    }
    given.ok()
}

fn take_back(kernel: &dyn BackingFiles, id: u32) {
    if let Err(error) = kernel.close(id) {
        // The mount has gone, and all its files with it.
        tracing::debug!("the kernel did not let go of file {id}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsFd;

    use super::*;

    /// Takes one file at a time.
    #[derive(Default)]
    struct Kernel(Mutex<(u32, bool)>);

    impl BackingFiles for Kernel {
        fn open(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
            let (last, taken) = &mut *self.0.lock();
            if std::mem::replace(taken, true) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            *last += 1;
            Ok(*last)
        }

        fn close(&self, id: u32) -> io::Result<()> {
            let (last, taken) = &mut *self.0.lock();
            assert!(*last == id && std::mem::take(taken));
            Ok(())
        }
    }

    #[test]
    fn a_file_is_read_in_one_way_until_all_have_closed_it() {
        let (io, file) = (KernelIo::default(), tempfile::tempfile().unwrap());
        let open = |node| io.opened(NodeId(node), file.as_fd());
        assert_eq!(open(2), None, "there is no kernel yet");
        io.set(Arc::new(Kernel::default()));
        assert_eq!((open(2), open(2), open(3)), (Some(1), Some(1), None));
        io.released(NodeId(2));
        io.released(NodeId(2));
        assert_eq!((open(3), open(2)), (None, Some(2)), "as when it was opened first");
        io.released(NodeId(3));
        io.released(NodeId(3));
        io.clear();
        assert_eq!(open(3), Some(3));
    }
}
