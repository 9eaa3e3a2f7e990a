//! What our client shows of a server.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ashore_client::{Client, File, Metadata, OpenOptions};

use super::files::{Access, Attributes, Files, OpenFile, Space, below};

/// A directory that a client knows.
pub struct ThroughClient {
    client: Client,
    base: PathBuf,
}

impl ThroughClient {
    /// The root of what it is connected to.
    pub fn new(client: Client) -> ThroughClient {
        ThroughClient { client, base: PathBuf::new() }
    }

    fn at(&self, path: impl AsRef<OsStr>) -> PathBuf {
        below(&self.base, path.as_ref())
    }
}

impl Files for ThroughClient {
    fn make_within(self: Arc<Self>, name: &str) -> io::Result<Arc<dyn Files>> {
        self.make_directory(name)?;
        Ok(self.within(name))
    }

    fn within(self: Arc<Self>, name: &str) -> Arc<dyn Files> {
        Arc::new(ThroughClient { client: self.client.clone(), base: self.at(name) })
    }

    fn open(&self, path: &OsStr, access: &Access) -> io::Result<Box<dyn OpenFile>> {
        let options = OpenOptions::new().read(access.read).write(access.write).append(access.append);
        let options = options.truncate(access.truncate).create(access.create).create_new(access.create_new);
        let options = options.direct(access.direct).data_sync(access.data_sync).mode(0o644);
        Ok(Box::new(self.client.open_with(self.at(path), &options)?))
    }

    fn attributes(&self, path: &str) -> io::Result<Attributes> {
        self.client.metadata(self.at(path)).map(|found| attributes(&found))
    }

    fn symlink_attributes(&self, path: &str) -> io::Result<Attributes> {
        self.client.symlink_metadata(self.at(path)).map(|found| attributes(&found))
    }

    fn names(&self, path: &str) -> io::Result<Vec<OsString>> {
        Ok(self.client.read_dir(self.at(path))?.iter().map(|entry| entry.file_name()).collect())
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        self.client.create_dir(self.at(path))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.client.remove_dir(self.at(path))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.client.remove_file(self.at(path))
    }

    fn rename(&self, from: &str, to: &str, flags: u32) -> io::Result<()> {
        self.client.rename_with(self.at(from), self.at(to), flags)
    }

    fn hard_link(&self, existing: &str, new: &str) -> io::Result<()> {
        self.client.hard_link(self.at(existing), self.at(new))
    }

    fn symlink(&self, target: &str, path: &str) -> io::Result<()> {
        self.client.symlink(target, self.at(path))
    }

    fn read_link(&self, path: &str) -> io::Result<PathBuf> {
        self.client.read_link(self.at(path))
    }

    fn make_node(&self, path: &str, mode: u32, device: u32) -> io::Result<()> {
        self.client.make_node(self.at(path), mode, device)
    }

    fn set_mode(&self, path: &str, mode: u32) -> io::Result<()> {
        self.client.set_mode(self.at(path), mode)
    }

    fn set_owner(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.client.set_owner(self.at(path), uid, gid)
    }

    fn set_times(&self, path: &str, accessed: SystemTime, modified: SystemTime) -> io::Result<()> {
        self.client.set_times(self.at(path), Some(accessed), Some(modified))
    }

    fn extended_attribute(&self, path: &str, name: &str) -> io::Result<Vec<u8>> {
        self.client.xattr(self.at(path), name)
    }

    fn extended_attributes(&self, path: &str) -> io::Result<Vec<OsString>> {
        self.client.xattrs(self.at(path))
    }

    fn set_extended_attribute(&self, path: &str, name: &str, value: &[u8]) -> io::Result<()> {
        self.client.set_xattr(self.at(path), name, value)
    }

    fn remove_extended_attribute(&self, path: &str, name: &str) -> io::Result<()> {
        self.client.remove_xattr(self.at(path), name)
    }

    fn copy(&self, from: (&str, u64), to: (&str, u64), length: u64) -> io::Result<u64> {
        let source = self.client.open(self.at(from.0))?;
        let target = self.client.open_with(self.at(to.0), &OpenOptions::new().write(true))?;
        source.copy_to(from.1, &target, to.1, length)
    }

    fn space(&self) -> io::Result<Space> {
        let found = self.client.statfs(&self.base)?;
        Ok(Space {
            total: found.total(),
            free: found.free(),
            available: found.available(),
            longest_name: found.name_max().into(),
        })
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        self.client.sync_dir(self.at(path))
    }

    fn sync(&self) -> io::Result<()> {
        self.client.sync()
    }
}

impl OpenFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        File::read_at(self, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        File::write_at(self, data, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn attributes(&self) -> io::Result<Attributes> {
        self.metadata().map(|found| attributes(&found))
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        File::allocate(self, offset, length, mode)
    }

    fn seek(&self, offset: u64, whence: u32) -> io::Result<u64> {
        self.seek_data_or_hole(offset, whence)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

fn attributes(found: &Metadata) -> Attributes {
    Attributes {
        mode: found.mode(),
        ino: found.ino(),
        nlink: found.nlink().into(),
        uid: found.uid(),
        gid: found.gid(),
        rdev: found.rdev().into(),
        size: found.len(),
        accessed: found.accessed(),
        modified: found.modified(),
        changed: found.changed(),
    }
}
