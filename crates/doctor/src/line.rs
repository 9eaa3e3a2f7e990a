//! A connection to the server that is examined, and files of the examination in its share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ashore_vhost_user::driver::{
    Call, LINUX_FLAGS, LinkOptions, Pages, RawConnection, RawError, VhostUserLink,
};
use ashore_wire::abi::{FlushIn, InitOut, OpenIn, OpenOut, WriteIn};
use ashore_wire::encode::{RequestHead, Sender, take};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, WriteFlags};
use ashore_wire::link::Link;
use ashore_wire::{FileHandle, NodeId, Opcode};
use parking_lot::Mutex;

use crate::below::Below;
use crate::watch::Watch;

/// Pages of the link: some requests of the largest size.
const LINK_PAGES: u32 = 1024;
/// Queues to use, at most.
const MOST_QUEUES: u16 = 4;
/// How long a server may take to answer; more than a sync of a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// As Linux does, which makes a file system of its own of each submount that is announced.
const OFFERED: InitFlags = LINUX_FLAGS.union(InitFlags::SUBMOUNTS);
/// `O_RDWR`.
pub(crate) const READ_WRITE: u32 = 2;
/// `O_DSYNC`.
pub(crate) const DATA_SYNC: u32 = 0o10000;

/// A connection.
pub(crate) struct Line {
    /// Requests one by one.
    pub(crate) raw: RawConnection,
    /// What the server agreed to.
    pub(crate) agreed: InitOut,
    /// Request queues in use.
    pub(crate) queues: usize,
    /// The server's process, to be watched.
    pub(crate) server: Option<Watch>,
    /// The shared directory, as this host sees it.
    directory: Option<PathBuf>,
    /// The folder of the examination.
    folder: NodeId,
    folder_name: String,
    /// What was made, to be removed in the end, in turned order.
    made: Mutex<Vec<Made>>,
}

struct Made {
    parent: NodeId,
    name: String,
    is_folder: bool,
}

/// A file of the examination.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// The inode.
    pub(crate) node: NodeId,
    /// Open for reading and writing.
    pub(crate) handle: FileHandle,
    /// Its path, from the shared directory on.
    pub(crate) path: PathBuf,
}

impl Line {
    /// Connects, agrees, and makes a folder.
    pub(crate) fn connect(socket: &Path, directory: Option<&Path>) -> Result<Line> {
        let options =
            LinkOptions { pages: LINK_PAGES, request_queues: MOST_QUEUES, ..LinkOptions::default() };
        let link = VhostUserLink::connect(socket, options)?;
        let (queues, server) = (link.request_queues(), link.server_process().ok().map(Watch));
        fill_pages(&link);
        let sender = Sender {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            pid: std::process::id(),
        };
        let raw =
            RawConnection::over(Arc::new(link) as Arc<dyn Link>).with_patience(PATIENCE).with_sender(sender);
        let agreed = raw.init(OFFERED).context("the server does not agree to INIT")?;
        static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        let folder_name = format!(".ashore-doctor-{}-{number}", std::process::id());
        let folder = raw.mkdir(NodeId::ROOT, folder_name.as_bytes());
        let folder = folder.context("no directory can be made in the share; is it read-only?")?;
        let folder = NodeId(folder.nodeid);
        let root = Made { parent: NodeId::ROOT, name: folder_name.clone(), is_folder: true };
        let made = Mutex::new(vec![root]);
        Ok(Line {
            raw,
            agreed,
            queues,
            server,
            directory: directory.map(Path::to_owned),
            folder,
            folder_name,
            made,
        })
    }

    /// Whether this was agreed in INIT.
    pub(crate) fn has_agreed(&self, flag: InitFlags) -> bool {
        let flags = u64::from(self.agreed.flags) | u64::from(self.agreed.flags2) << 32;
        InitFlags::from_bits_retain(flags).contains(flag)
    }

    /// Bytes of one WRITE, at most: what was agreed, and what the link has pages for.
    pub(crate) fn write_size(&self) -> usize {
        (self.agreed.max_write as usize).clamp(Pages::BYTES, 1 << 20)
    }

    /// The folder of the examination.
    pub(crate) fn folder(&self) -> (NodeId, PathBuf) {
        (self.folder, PathBuf::from(&self.folder_name))
    }

    /// Makes a folder in the folder of the examination.
    pub(crate) fn new_folder(&self, name: &str) -> Result<(NodeId, PathBuf)> {
        let made = self.raw.mkdir(self.folder, name.as_bytes()).with_context(|| format!("MKDIR {name}"))?;
        self.made.lock().push(Made { parent: self.folder, name: name.to_owned(), is_folder: true });
        Ok((NodeId(made.nodeid), Path::new(&self.folder_name).join(name)))
    }

    /// Makes a file in the folder of the examination.
    pub(crate) fn new_file(&self, name: &str) -> Result<Document> {
        self.new_file_in(&self.folder(), name)
    }

    /// Makes a file in such a folder.
    pub(crate) fn new_file_in(&self, folder: &(NodeId, PathBuf), name: &str) -> Result<Document> {
        let made = self.raw.create(folder.0, name.as_bytes()).with_context(|| format!("CREATE {name}"))?;
        self.made.lock().push(Made { parent: folder.0, name: name.to_owned(), is_folder: false });
        Ok(Document { node: NodeId(made.0.nodeid), handle: made.1, path: folder.1.join(name) })
    }

    /// A WRITE of so many bytes, at most [`Line::write_size`].
    pub(crate) fn write_call(&self, document: &Document, offset: u64, bytes: usize) -> Call {
        Call::write(document.node, document.handle, offset, Pages { first: 0, bytes })
    }

    /// Writes so many bytes from the start on.
    pub(crate) fn fill(&self, document: &Document, bytes: usize) -> Result<(), RawError> {
        let step = self.write_size();
        for offset in (0..bytes).step_by(step) {
            self.raw.call(self.write_call(document, offset as u64, step.min(bytes - offset)))?;
        }
        Ok(())
    }

    /// Opens a file once more; how the client is to treat it comes along.
    pub(crate) fn open(
        &self,
        document: &Document,
        flags: u32,
    ) -> Result<(Document, OpenReplyFlags), RawError> {
        let head = RequestHead::new(Opcode::Open, document.node).with(&OpenIn { flags, open_flags: 0 });
        let answer = self.raw.call(Call::new(head, size_of::<OpenOut>()))?;
        let (opened, _) = take::<OpenOut>(&answer.body)?;
        let document = Document { handle: FileHandle(opened.fh), ..document.clone() };
        Ok((document, OpenReplyFlags::from_bits_retain(opened.open_flags)))
    }

    /// WRITE of this data, up to 64 KiB.
    pub(crate) fn data_write(&self, document: &Document, offset: u64, data: &[u8]) -> Call {
        let write = WriteIn { fh: document.handle.0, offset, size: data.len() as u32, ..Default::default() };
        let head = RequestHead::new(Opcode::Write, document.node).with(&write).with(data);
        Call::new(head, size_of::<ashore_wire::abi::WriteOut>())
    }

    /// WRITE of up to 64 KiB with flags of its own.
    pub(crate) fn flagged_write(
        &self,
        document: &Document,
        bytes: usize,
        flags: u32,
        from: WriteFlags,
    ) -> Call {
        let write = WriteIn {
            fh: document.handle.0,
            size: bytes as u32,
            write_flags: from.bits(),
            flags,
            ..Default::default()
        };
        let head =
            RequestHead::new(Opcode::Write, document.node).with(&write).with(vec![0x5A_u8; bytes].as_slice());
        Call::new(head, size_of::<ashore_wire::abi::WriteOut>())
    }

    /// FLUSH, as close(2) sends it.
    pub(crate) fn flush(&self, document: &Document) -> Result<(), RawError> {
        let flush = FlushIn { fh: document.handle.0, ..Default::default() };
        self.raw.call(Call::new(RequestHead::new(Opcode::Flush, document.node).with(&flush), 0)).map(drop)
    }

    /// FSYNCDIR.
    pub(crate) fn fsyncdir(&self, node: NodeId, handle: FileHandle) -> Result<(), RawError> {
        let fsync = ashore_wire::abi::FsyncIn { fh: handle.0, ..Default::default() };
        self.raw.call(Call::new(RequestHead::new(Opcode::Fsyncdir, node).with(&fsync), 0)).map(drop)
    }

    /// The file as the host sees it.
    pub(crate) fn below(&self, document: &Document) -> Result<Below> {
        let directory = self.directory.as_deref().context(NO_DIRECTORY)?;
        let path = directory.join(&document.path);
        let seen = Below::open(&path).with_context(|| {
            format!("{} is not on this host; is --dir the directory that the server shares?", path.display())
        })?;
        seen.look().map_err(no_look)?;
        Ok(seen)
    }

    /// Several files as the host sees them.
    pub(crate) fn all_below(&self, documents: &[Document]) -> Result<Vec<Below>> {
        documents.iter().map(|document| self.below(document)).collect()
    }

    /// A path in the share, as the host sees it.
    pub(crate) fn on_host(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.directory.as_deref().context(NO_DIRECTORY)?.join(path))
    }

    /// Whether the link is still there.
    pub(crate) fn is_alive(&self) -> bool {
        self.raw.getattr(NodeId::ROOT).is_ok()
    }

    /// Removes what was made, as far as the server is still there.
    pub(crate) fn clean_up(&self) {
        for Made { parent, name, is_folder } in self.made.lock().drain(..).rev() {
            let name = name.as_bytes();
            let removed =
                if is_folder { self.raw.rmdir(parent, name) } else { self.raw.unlink(parent, name) };
            if removed == Err(RawError::Closed) {
                return;
            }
        }
    }
}

const NO_DIRECTORY: &str = "where the shared directory is on this host is not known: name it with --dir";

fn no_look(error: std::io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            anyhow::anyhow!("looking at the page cache needs Linux 6.5 or later (cachestat)")
        }
        Some(libc::EPERM) => {
            anyhow::anyhow!("looking at the page cache needs the files' owner or root: run this as root")
        }
        _ => anyhow::anyhow!("cachestat(2) failed: {error}"),
    }
}

/// Bytes that compress badly and are not zero.
fn fill_pages(link: &VhostUserLink) {
    let mut word = u64::from(std::process::id()) | 1;
    let mut page = vec![0u8; Pages::BYTES];
    for number in 0..256 {
        for chunk in page.chunks_exact_mut(8) {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        link.write_page(number, 0, &page);
    }
}
