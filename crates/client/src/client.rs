//! A mount: paths, syncs, and the way to open files.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ashore_wire::abi::SetattrIn;
use ashore_wire::flags::{OpenReplyFlags, SetattrValid};
use ashore_wire::{Errno, Opcode};

use crate::core::errors::Cursor;
use crate::file::{File, OpenOptions};
use crate::link::Link;
use crate::metadata::{DirectoryEntry, FileSystemStatus, Metadata};
use crate::options::{CacheMode, Options, SyncOptions};
use crate::primitives::Mutex;
use crate::shell::Session;
use crate::shell::inodes::Inode;
use crate::shell::names::{OpenedFile, open_flags};
use crate::shell::patience::Patience;

/// Permissions of a file that is made without any being named.
const DEFAULT_FILE_MODE: u32 = 0o644;
/// How often a path is walked anew, at most, because what it led to has been replaced meanwhile. Somebody who does nothing but
/// replace it leaves it for about as long as LOOKUP and OPEN take; 8 were too few beside virtiofsd in one of a few thousand reads.
const STALE_TRIES: usize = 64;

/// A handle on a mounted file system.
///
/// Each clone is a mount handle of its own: it hears of every error once, whoever else has heard of it. When the last
/// handle and the last [`File`] are gone, the connection ends, with a last sync.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let client = ashore_client::toy::client();
/// client.create_dir("letters")?;
/// client.write("letters/first", b"Dear Sir,")?;
/// client.sync()?; // all of it is stable on the server, or this is an error
/// assert_eq!(client.read("letters/first")?, b"Dear Sir,");
/// client.rename("letters/first", "letters/draft")?;
/// let names: Vec<_> = client.read_dir("letters")?.iter().map(|entry| entry.file_name()).collect();
/// assert_eq!(names, ["draft"]);
/// # Ok(())
/// # }
/// ```
pub struct Client {
    session: Arc<Session>,
    /// Errors of this connection that this handle has been told.
    heard: Mutex<Cursor>,
}

impl Client {
    /// Greets the server at the other end of a link.
    pub fn new(link: impl Link, options: Options) -> io::Result<Client> {
        Client::with_link(Arc::new(link), options)
    }

    /// As [`Client::new`], for a link that is shared already.
    pub fn with_link(link: Arc<dyn Link>, options: Options) -> io::Result<Client> {
        let session = Session::start(link, options)?;
        Ok(Client { session: Arc::new(session), heard: Mutex::new(Cursor::default()) })
    }

    pub(crate) fn mount(&self) -> &Arc<crate::shell::Mount> {
        &self.session.mount
    }

    /// What is kept of files' data: what the options asked for, or less, if the server did not agree.
    pub fn cache_mode(&self) -> CacheMode {
        self.mount().agreed().cache
    }

    /// Makes everything stable that was changed before this call, by anybody, through this connection: what is
    /// still in the cache and what is on its way included. Returns the first error that this handle has not been
    /// told yet. Writers that go on meanwhile do not hold it up.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_with(&SyncOptions::default())
    }

    /// As [`Client::sync`], but gives up after some time, or when told to. What was started goes on.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # let client = ashore_client::toy::client();
    /// use std::time::Duration;
    /// let options = ashore_client::SyncOptions { timeout: Some(Duration::from_secs(5)), ..Default::default() };
    /// client.sync_with(&options)
    /// # }
    /// ```
    pub fn sync_with(&self, options: &SyncOptions) -> io::Result<()> {
        let since = *self.heard.lock();
        let patience = Patience::new(options.timeout, options.cancel.clone());
        let synced = self.mount().sync(&patience);
        if let Err(errno) = synced
            && errno != Errno::ENOSYS
        {
            return Err(errno.into());
        }
        let mut heard = self.heard.lock();
        self.mount().errors.lock().tell(since, &mut heard)?;
        synced.map_err(|_| io::Error::new(io::ErrorKind::Unsupported, SyncfsMissing))
    }

    /// Starts writing back what is dirty, and waits for nothing. Stable is none of it.
    pub fn start_writeback(&self) {
        self.mount().start_writeback();
    }

    /// Syncs, and takes leave of the server. Files that are still open fail from then on.
    pub fn unmount(self) -> io::Result<()> {
        let since = *self.heard.lock();
        let ended = self.session.end();
        let mut heard = self.heard.lock();
        let told = self.mount().errors.lock().tell(since, &mut heard);
        Ok(told.and(ended)?)
    }

    /// Opens a file to read.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        self.open_with(path, &OpenOptions::new().read(true))
    }

    /// Opens a file to read and write, made if there is none, emptied if there is one.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<File> {
        self.open_with(path, &OpenOptions::new().read(true).write(true).create(true).truncate(true))
    }

    /// Opens a file.
    pub fn open_with(&self, path: impl AsRef<Path>, options: &OpenOptions) -> io::Result<File> {
        let (path, flags) = (path.as_ref(), options.flags()?);
        Ok(self.with_fresh_names(path, || self.open_path(path, flags, options))?)
    }

    fn open_path(&self, path: &Path, mut flags: u32, options: &OpenOptions) -> Result<File, Errno> {
        let resolved = self.mount().resolve(path, true);
        if !(options.create || options.create_new) {
            return self.open_inode(&resolved?, flags, options);
        }
        match resolved {
            Ok(_) if options.create_new => return Err(Errno::EEXIST),
            Ok(inode) => return self.open_inode(&inode, flags, options),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        flags |= open_flags::CREATE | if options.create_new { open_flags::EXCLUSIVE } else { 0 };
        let (parent, name) = match options.create_new {
            true => self.mount().resolve_parent(path)?,
            false => self.mount().resolve_new(path)?,
        };
        let opened = self.mount().create(&parent, &name, flags, options.mode.unwrap_or(DEFAULT_FILE_MODE))?;
        Ok(self.opened(opened, options.clone()))
    }

    /// Does something with what a path leads to.
    fn at<T>(
        &self,
        path: impl AsRef<Path>,
        follow: bool,
        work: impl Fn(&Arc<Inode>) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let path = path.as_ref();
        Ok(self.with_fresh_names(path, || work(&self.mount().resolve(path, follow)?))?)
    }

    /// A name may be remembered for a while, and lead to what somebody else has removed or replaced since. The server
    /// then says ESTALE, and the names are asked for again, as Linux does.
    fn with_fresh_names<T>(&self, path: &Path, work: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        for _ in 0..STALE_TRIES {
            match work() {
                Err(Errno::ESTALE) => self.mount().forget_path(path),
                result => return result,
            }
        }
        work()
    }

    pub(crate) fn open_inode(
        &self,
        inode: &Arc<Inode>,
        flags: u32,
        options: &OpenOptions,
    ) -> Result<File, Errno> {
        if inode.is_directory() {
            return Err(Errno::EISDIR);
        }
        let opened = self.mount().open(inode, flags)?;
        if !opened.flags.contains(OpenReplyFlags::KEEP_CACHE) {
            // What others have written since the last open is to be seen now.
            inode.lock().core.forget_attributes();
            self.mount().drop_clean(inode);
        }
        self.mount().fresh_attributes(inode, None)?;
        let file = self.opened(opened, options.clone());
        if options.truncate {
            self.mount().set_size(inode, Some(file.handle()), 0)?;
        }
        Ok(file)
    }

    /// A file that was opened by other means.
    pub(crate) fn opened(&self, opened: OpenedFile, options: OpenOptions) -> File {
        File::new(Arc::clone(&self.session), opened, options)
    }

    /// All of a file.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        io::Read::read_to_end(&mut self.open(path)?, &mut content)?;
        Ok(content)
    }

    /// Makes a file of these bytes. Errors of writing it back are returned.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
        let file = self.create(path)?;
        file.write_all_at(content, 0)?;
        file.close()
    }

    /// Attributes of what a path leads to.
    pub fn metadata(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        self.at(path, true, |inode| Ok(Metadata(self.mount().fresh_attributes(inode, None)?)))
    }

    /// Attributes of what a path leads to, of the link if it is one.
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        self.at(path, false, |inode| Ok(Metadata(self.mount().fresh_attributes(inode, None)?)))
    }

    /// The names in a directory, without `.` and `..`.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> io::Result<Vec<DirectoryEntry>> {
        let opened = self.open_directory(path)?;
        let names = self.mount().list(&opened.handle)?.into_iter();
        let entry = |listed: crate::shell::names::Listed| DirectoryEntry {
            name: listed.name,
            ino: listed.ino,
            kind: listed.kind,
        };
        Ok(names.map(entry).collect())
    }

    /// Makes the names in a directory stable.
    pub fn sync_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let opened = self.open_directory(path)?;
        Ok(self.mount().fsync(&opened.inode, &opened.handle, false)?)
    }

    fn open_directory(&self, path: impl AsRef<Path>) -> io::Result<OpenedFile> {
        self.at(path, true, |inode| match inode.is_directory() {
            true => self.mount().open(inode, open_flags::DIRECTORY),
            false => Err(Errno::ENOTDIR),
        })
    }

    /// Makes a directory.
    pub fn create_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let (parent, name) = self.mount().resolve_parent(path.as_ref())?;
        self.mount().make_directory(&parent, &name, 0o755)?;
        Ok(())
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.remove(path.as_ref(), Opcode::Rmdir)
    }

    /// Removes the name of anything but a directory.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.remove(path.as_ref(), Opcode::Unlink)
    }

    fn remove(&self, path: &Path, opcode: Opcode) -> io::Result<()> {
        let (parent, name) = self.mount().resolve_parent(path)?;
        Ok(self.mount().remove(&parent, &name, opcode)?)
    }

    /// Renames, replacing what has the new name.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        self.rename_with(from, to, 0)
    }

    /// Renames, with the flags of renameat2(2).
    pub fn rename_with(&self, from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> io::Result<()> {
        let (old_parent, old_name) = self.mount().resolve_parent(from.as_ref())?;
        let (new_parent, new_name) = self.mount().resolve_parent(to.as_ref())?;
        Ok(self.mount().rename((&old_parent, &old_name), (&new_parent, &new_name), flags)?)
    }

    /// Gives a file another name.
    pub fn hard_link(&self, existing: impl AsRef<Path>, new: impl AsRef<Path>) -> io::Result<()> {
        self.at(existing, false, |inode| {
            let (parent, name) = self.mount().resolve_parent(new.as_ref())?;
            self.mount().make_link(inode, &parent, &name).map(drop)
        })
    }

    /// Makes a symbolic link at `path` to `target`.
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> io::Result<()> {
        let (parent, name) = self.mount().resolve_parent(path.as_ref())?;
        self.mount().make_symlink(target.as_ref().as_os_str().as_bytes(), &parent, &name)?;
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        self.at(path, false, |inode| Ok(PathBuf::from(OsString::from_vec(self.mount().read_link(inode)?))))
    }

    /// Makes a pipe, a socket or a device; `mode` says which, as in mknod(2).
    pub fn make_node(&self, path: impl AsRef<Path>, mode: u32, device: u32) -> io::Result<()> {
        let (parent, name) = self.mount().resolve_parent(path.as_ref())?;
        self.mount().make_node(&parent, &name, mode, device)?;
        Ok(())
    }

    /// Changes permissions.
    pub fn set_mode(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        self.set(path.as_ref(), SetattrIn { valid: SetattrValid::MODE.bits(), mode, ..Default::default() })
    }

    /// Changes owner and group, those that are given.
    pub fn set_owner(&self, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let mut valid = SetattrValid::empty();
        valid.set(SetattrValid::UID, uid.is_some());
        valid.set(SetattrValid::GID, gid.is_some());
        let (uid, gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
        self.set(path.as_ref(), SetattrIn { valid: valid.bits(), uid, gid, ..Default::default() })
    }

    /// Changes the times of access and modification, those that are given.
    pub fn set_times(
        &self,
        path: impl AsRef<Path>,
        accessed: Option<SystemTime>,
        modified: Option<SystemTime>,
    ) -> io::Result<()> {
        let mut values = SetattrIn::default();
        let mut valid = SetattrValid::empty();
        if let Some(time) = accessed {
            valid |= SetattrValid::ATIME;
            (values.atime, values.atimensec) = wire_time(time);
        }
        if let Some(time) = modified {
            valid |= SetattrValid::MTIME;
            (values.mtime, values.mtimensec) = wire_time(time);
        }
        values.valid = valid.bits();
        self.set(path.as_ref(), values)
    }

    fn set(&self, path: &Path, values: SetattrIn) -> io::Result<()> {
        self.at(path, true, |inode| self.mount().set_attributes(inode, values))
    }

    /// Space and limits of the host file system a path is on.
    pub fn statfs(&self, path: impl AsRef<Path>) -> io::Result<FileSystemStatus> {
        self.at(path, true, |inode| Ok(FileSystemStatus(self.mount().statfs(inode)?)))
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, path: impl AsRef<Path>, name: &str) -> io::Result<Vec<u8>> {
        let name = xattr_name(name)?;
        self.at(path, true, |inode| self.mount().xattr(inode, name))
    }

    /// The names of all extended attributes.
    pub fn xattrs(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let list = self.at(path, true, |inode| self.mount().xattrs(inode))?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: &str, value: &[u8]) -> io::Result<()> {
        let name = xattr_name(name)?;
        self.at(path, true, |inode| self.mount().set_xattr(inode, name, value, 0))
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, path: impl AsRef<Path>, name: &str) -> io::Result<()> {
        let name = xattr_name(name)?;
        self.at(path, true, |inode| self.mount().remove_xattr(inode, name))
    }
}

impl Clone for Client {
    /// Another mount handle on the same connection. It hears of errors that nobody was told yet, and of all that
    /// come.
    fn clone(&self) -> Client {
        let heard = self.mount().errors.lock().cursor();
        Client { session: Arc::clone(&self.session), heard: Mutex::new(heard) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("agreed", self.mount().agreed()).finish_non_exhaustive()
    }
}

/// The server cannot be asked to make its side stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the server does not implement SYNCFS: it has been sent everything, but whether any of it is stable is unknown"
)]
pub struct SyncfsMissing;

fn xattr_name(name: &str) -> Result<&[u8], Errno> {
    let name = name.as_bytes();
    if name.is_empty() || name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(name)
}

fn wire_time(time: SystemTime) -> (u64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs(), since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let fraction = before.subsec_nanos();
            let seconds = before.as_secs() as i64 + i64::from(fraction > 0);
            ((-seconds) as u64, if fraction > 0 { 1_000_000_000 - fraction } else { 0 })
        }
    }
}
