//! Open files.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use ashore_wire::abi::{FlushIn, LseekIn, LseekOut};
use ashore_wire::flags::{OpenReplyFlags, SetattrValid};
use ashore_wire::{Errno, Opcode};

use crate::core::errors::Cursor;
use crate::metadata::Metadata;
use crate::options::CacheMode;
use crate::primitives::Mutex;
use crate::shell::direct::CachedPages;
use crate::shell::message::Outgoing;
use crate::shell::names::{OpenedFile, open_flags};
use crate::shell::patience::Patience;
use crate::shell::write::Place;
use crate::shell::{Mount, Session};

/// How a file is to be opened; see [`Client::open_with`](crate::Client::open_with).
///
/// ```
/// let options = ashore_client::OpenOptions::new().read(true).write(true).create(true);
/// ```
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of open(2)")]
pub struct OpenOptions {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) truncate: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) direct: bool,
    pub(crate) sync: bool,
    pub(crate) data_sync: bool,
    pub(crate) mode: Option<u32>,
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident),*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, on: bool) -> OpenOptions { self.$name = on; self })*
    };
}

impl OpenOptions {
    /// Nothing is allowed yet.
    #[must_use]
    pub fn new() -> OpenOptions {
        OpenOptions::default()
    }

    switches! {
        /// To read.
        read,
        /// To write.
        write,
        /// Each write goes to the end of the file, wherever that is.
        append,
        /// Empties the file.
        truncate,
        /// Makes the file if there is none.
        create,
        /// Makes the file, and fails if there is one.
        create_new,
        /// Past the cache (O_DIRECT). Any offset, length and memory will do.
        direct,
        /// Each write returns when data and attributes are stable (O_SYNC).
        sync,
        /// Each write returns when its data is stable (O_DSYNC).
        data_sync
    }

    /// Permissions of a file that is made; 0o644 if not given. There is no umask.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> OpenOptions {
        self.mode = Some(mode);
        self
    }

    pub(crate) fn writes(&self) -> bool {
        self.write || self.append
    }

    pub(crate) fn flags(&self) -> Result<u32, Errno> {
        let access = match (self.read, self.writes()) {
            (true, false) => open_flags::READ_ONLY,
            (false, true) => 1,
            (true, true) => 2,
            (false, false) => return Err(Errno::EINVAL),
        };
        let switches = [
            (self.append, open_flags::APPEND),
            (self.direct, open_flags::DIRECT),
            (self.sync, open_flags::SYNC),
            (self.data_sync, open_flags::DATA_SYNC),
        ];
        let flags = switches.iter().filter(|(on, _)| *on).fold(access, |flags, (_, flag)| flags | flag);
        let may_change = self.create || self.create_new || self.truncate;
        if may_change && !self.writes() { Err(Errno::EINVAL) } else { Ok(flags) }
    }
}

/// An open file. Clones of an `Arc<File>` can read and write at the same time from many threads.
///
/// Dropping it writes its data back and closes it; errors are then lost to this caller, though not to the others
/// who have the file open, nor to [`Client::sync`](crate::Client::sync). [`File::close`] returns them.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let client = ashore_client::toy::client();
/// use std::io::Write;
/// let mut file = client.create("letter.txt")?;
/// file.write_all(b"Dear Madam,")?;
/// file.sync_all()?; // stable on the server, or an error
/// assert_eq!(file.metadata()?.len(), 11);
/// file.close()
/// # }
/// ```
pub struct File {
    session: Arc<Session>,
    opened: OpenedFile,
    options: OpenOptions,
    way: Way,
    position: Mutex<u64>,
    /// Errors of this file's writes that this handle has been told.
    heard: Mutex<Cursor>,
    closed: bool,
}

/// Which way the data of a file goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Cached,
    Through,
    Direct,
}

impl File {
    pub(crate) fn new(session: Arc<Session>, opened: OpenedFile, options: OpenOptions) -> File {
        let heard = Mutex::new(opened.inode.lock().core.errors.cursor());
        let direct = options.direct || opened.flags.contains(OpenReplyFlags::DIRECT_IO);
        let way = match session.mount.agreed().cache {
            CacheMode::None => Way::Direct,
            _ if direct => Way::Direct,
            CacheMode::WriteThrough => Way::Through,
            CacheMode::WriteBack => Way::Cached,
        };
        File { session, opened, options, way, position: Mutex::new(0), heard, closed: false }
    }

    pub(crate) fn handle(&self) -> &crate::shell::inodes::OpenHandle {
        &self.opened.handle
    }

    fn mount(&self) -> &Arc<Mount> {
        &self.session.mount
    }

    /// Reads from `offset`. Fewer bytes than there is room for mean the end of the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.options.read {
            return Err(Errno::EBADF.into());
        }
        let OpenedFile { inode, handle, .. } = &self.opened;
        let read = match self.way {
            Way::Direct => self.mount().read_direct(inode, handle, buffer, offset),
            Way::Cached | Way::Through => self.mount().read_cached(inode, handle, buffer, offset),
        };
        Ok(read?)
    }

    /// Reads exactly as many bytes as there is room for.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buffer, offset)?;
        if read == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Writes at `offset` (at the end, if the file was opened to append). Returns how many bytes were taken.
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let place = if self.options.append { Place::End } else { Place::At(offset) };
        Ok(self.write_to(data, place)?.1)
    }

    /// Writes all of `data` at `offset`.
    pub fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let taken = self.write_at(data, offset)?;
            data = &data[taken..];
            offset += taken as u64;
        }
        Ok(())
    }

    /// Writes; returns where it began and how many bytes were taken.
    fn write_to(&self, data: &[u8], place: Place) -> Result<(u64, usize), Errno> {
        if !self.options.writes() {
            return Err(Errno::EBADF);
        }
        if data.is_empty() {
            return Ok((0, 0));
        }
        let OpenedFile { inode, handle, .. } = &self.opened;
        let written = match self.way {
            Way::Cached => self.mount().write_cached(inode, handle, data, place),
            Way::Through => self.mount().write_direct(inode, handle, data, place, CachedPages::Update),
            Way::Direct => self.mount().write_direct(inode, handle, data, place, CachedPages::Drop),
        }?;
        if self.options.sync || self.options.data_sync {
            self.make_stable(!self.options.sync)?;
        }
        Ok(written)
    }

    /// Makes the file stable on the server: data, size, times, mode. Also returns errors of earlier writes, each
    /// once.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(self.make_stable(false)?)
    }

    /// As [`File::sync_all`], but of the attributes only the size.
    pub fn sync_data(&self) -> io::Result<()> {
        Ok(self.make_stable(true)?)
    }

    fn make_stable(&self, data_only: bool) -> Result<(), Errno> {
        let since = *self.heard.lock();
        let synced = self.mount().fsync(&self.opened.inode, &self.opened.handle, data_only);
        self.tell_errors(since).and(synced)
    }

    /// The first error after `since` that this handle has not been told.
    fn tell_errors(&self, since: Cursor) -> Result<(), Errno> {
        let mut heard = self.heard.lock();
        self.opened.inode.lock().core.errors.tell(since, &mut heard)
    }

    /// Sends what is dirty, waits until the server has it, and returns errors of this file's writes that this handle was not
    /// told yet. Stable is none of it.
    pub fn write_back(&self) -> io::Result<()> {
        if !self.options.writes() {
            return Ok(());
        }
        let since = *self.heard.lock();
        let written = self.send_all();
        Ok(self.tell_errors(since).and(written)?)
    }

    fn send_all(&self) -> Result<(), Errno> {
        let inode = &self.opened.inode;
        self.mount().flush_inode(inode, 0..u64::MAX, &Patience::ENDLESS)?;
        self.mount().want_times(inode);
        self.mount().wait_settled(inode, &Patience::ENDLESS)
    }

    /// Cuts the file off, or makes it longer.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        if !self.options.writes() {
            return Err(Errno::EINVAL.into());
        }
        Ok(self.mount().set_size(&self.opened.inode, Some(&self.opened.handle), size)?)
    }

    /// Attributes of the file.
    pub fn metadata(&self) -> io::Result<Metadata> {
        Ok(Metadata(self.mount().fresh_attributes(&self.opened.inode, Some(&self.opened.handle))?))
    }

    /// Changes the permissions.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let values = ashore_wire::abi::SetattrIn {
            valid: (SetattrValid::MODE | SetattrValid::FH).bits(),
            fh: self.opened.handle.handle.0,
            mode,
            ..Default::default()
        };
        Ok(self.mount().set_attributes(&self.opened.inode, values)?)
    }

    /// Allocates, punches or zeroes space; `mode` as in fallocate(2).
    pub fn allocate(&self, offset: u64, length: u64, mode: u32) -> io::Result<()> {
        if !self.options.writes() {
            return Err(Errno::EBADF.into());
        }
        Ok(self.mount().allocate(&self.opened.inode, &self.opened.handle, offset, length, mode)?)
    }

    /// Has the server copy from this file to another. Returns how many bytes were copied.
    pub fn copy_to(&self, offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
        if !self.options.read || !to.options.writes() {
            return Err(Errno::EBADF.into());
        }
        if !Arc::ptr_eq(&self.session, &to.session) {
            return Err(Errno::EXDEV.into());
        }
        let from = (&self.opened.inode, &*self.opened.handle, offset);
        let to = (&to.opened.inode, &*to.opened.handle, to_offset);
        Ok(self.mount().copy_range(from, to, length)?)
    }

    /// Finds data (`whence` 3, SEEK_DATA) or a hole (4, SEEK_HOLE) from `offset` on.
    pub fn seek_data_or_hole(&self, offset: u64, whence: u32) -> io::Result<u64> {
        self.mount().flush_inode(&self.opened.inode, 0..u64::MAX, &Patience::ENDLESS)?;
        self.mount().wait_settled(&self.opened.inode, &Patience::ENDLESS)?;
        let arguments = LseekIn { fh: self.opened.handle.handle.0, offset, whence, padding: 0 };
        let request =
            Outgoing::new(Opcode::Lseek, self.opened.inode.node).with(&arguments).expect::<LseekOut>();
        Ok(self.mount().call(request)?.read::<LseekOut>()?.offset)
    }

    /// Writes the data back, closes the file, and returns any error of its writes this handle was not told yet.
    pub fn close(mut self) -> io::Result<()> {
        let since = *self.heard.lock();
        let closed = self.close_once();
        Ok(self.tell_errors(since).and(closed)?)
    }

    fn close_once(&mut self) -> Result<(), Errno> {
        if std::mem::replace(&mut self.closed, true) || !self.options.writes() {
            return Ok(());
        }
        let inode = &self.opened.inode;
        let written = self.send_all();
        let flush = FlushIn { fh: self.opened.handle.handle.0, ..Default::default() };
        let flushed = match self.mount().call(Outgoing::new(Opcode::Flush, inode.node).with(&flush)) {
            Err(Errno::ENOSYS) => Ok(()),
            answer => answer.map(|_| ()),
        };
        // From here on the pages of others are written with their handles.
        inode.lock().write_handles.retain(|handle| !Arc::ptr_eq(handle, &self.opened.handle));
        written.and(flushed)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(errno) = self.close_once() {
            tracing::warn!("closing a file failed: {errno}");
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("node", &self.opened.inode.node)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Read for &File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut position = self.position.lock();
        let read = self.read_at(buffer, *position)?;
        *position += read as u64;
        Ok(read)
    }
}

impl Write for &File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut position = self.position.lock();
        let place = if self.options.append { Place::End } else { Place::At(*position) };
        let (start, taken) = self.write_to(data, place)?;
        if taken > 0 {
            *position = start + taken as u64;
        }
        Ok(taken)
    }

    /// Nothing is kept back in this handle; to have data on the server, use [`File::sync_all`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut position = self.position.lock();
        let new = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => position.checked_add_signed(by),
            SeekFrom::End(by) => self.metadata()?.len().checked_add_signed(by),
        };
        *position = new.ok_or(Errno::EINVAL)?;
        Ok(*position)
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&*self).seek(to)
    }
}
