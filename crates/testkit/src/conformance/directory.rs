//! A directory by system calls: of this host, of a mount, or in a guest.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, lchown, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};

use super::files::{Access, Attributes, Files, OpenFile, SEEK_DATA, Space, below};

/// A directory that the kernel of this machine knows.
pub struct Directory(PathBuf);

impl Directory {
    /// An existing one. The umask of this process is 0 from now on: the cases say which mode they mean.
    pub fn new(path: impl Into<PathBuf>) -> Directory {
        rustix::process::umask(Mode::empty());
        Directory(path.into())
    }

    fn at(&self, path: impl AsRef<OsStr>) -> PathBuf {
        below(&self.0, path.as_ref())
    }
}

impl Files for Directory {
    fn make_within(self: Arc<Self>, name: &str) -> io::Result<Arc<dyn Files>> {
        self.make_directory(name)?;
        Ok(self.within(name))
    }

    fn within(self: Arc<Self>, name: &str) -> Arc<dyn Files> {
        Arc::new(Directory(self.at(name)))
    }

    fn open(&self, path: &OsStr, access: &Access) -> io::Result<Box<dyn OpenFile>> {
        let mut options = File::options();
        options.read(access.read).write(access.write).append(access.append).truncate(access.truncate);
        options.create(access.create).create_new(access.create_new).mode(0o644);
        let flags = [(access.direct, OFlags::DIRECT), (access.data_sync, OFlags::DSYNC)];
        let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).collect::<OFlags>();
        let file = options.custom_flags(flags.bits() as i32).open(self.at(path))?;
        Ok(Box::new(Open { file, append: access.append }))
    }

    fn attributes(&self, path: &str) -> io::Result<Attributes> {
        fs::metadata(self.at(path)).map(|found| attributes(&found))
    }

    fn symlink_attributes(&self, path: &str) -> io::Result<Attributes> {
        fs::symlink_metadata(self.at(path)).map(|found| attributes(&found))
    }

    fn names(&self, path: &str) -> io::Result<Vec<OsString>> {
        fs::read_dir(self.at(path))?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o755).create(self.at(path))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.at(path))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }

    fn rename(&self, from: &str, to: &str, flags: u32) -> io::Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        Ok(rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?)
    }

    fn hard_link(&self, existing: &str, new: &str) -> io::Result<()> {
        fs::hard_link(self.at(existing), self.at(new))
    }

    fn symlink(&self, target: &str, path: &str) -> io::Result<()> {
        symlink(target, self.at(path))
    }

    fn read_link(&self, path: &str) -> io::Result<PathBuf> {
        fs::read_link(self.at(path))
    }

    fn make_node(&self, path: &str, mode: u32, device: u32) -> io::Result<()> {
        let (kind, permissions) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode));
        Ok(rustix::fs::mknodat(CWD, self.at(path), kind, permissions, device.into())?)
    }

    fn set_mode(&self, path: &str, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmod(self.at(path), Mode::from_raw_mode(mode))?)
    }

    fn set_owner(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        lchown(self.at(path), uid, gid)
    }

    fn set_times(&self, path: &str, accessed: SystemTime, modified: SystemTime) -> io::Result<()> {
        let times = Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
        Ok(rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::empty())?)
    }

    fn extended_attribute(&self, path: &str, name: &str) -> io::Result<Vec<u8>> {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::getxattr(self.at(path), name, &mut value)?;
        value.truncate(length);
        Ok(value)
    }

    fn extended_attributes(&self, path: &str) -> io::Result<Vec<OsString>> {
        let mut list = vec![0; 1 << 16];
        let length = rustix::fs::listxattr(self.at(path), &mut list)?;
        let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsString::from(String::from_utf8_lossy(name).into_owned())).collect())
    }

    fn set_extended_attribute(&self, path: &str, name: &str, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::setxattr(self.at(path), name, value, XattrFlags::empty())?)
    }

    fn remove_extended_attribute(&self, path: &str, name: &str) -> io::Result<()> {
        Ok(rustix::fs::removexattr(self.at(path), name)?)
    }

    fn copy(&self, from: (&str, u64), to: (&str, u64), length: u64) -> io::Result<u64> {
        let source = File::open(self.at(from.0))?;
        let target = File::options().write(true).open(self.at(to.0))?;
        let (mut source_at, mut target_at) = (from.1, to.1);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut source_at), target, Some(&mut target_at), length)?;
        Ok(copied as u64)
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.0)?;
        let bytes = |blocks| blocks * found.f_frsize;
        Ok(Space {
            total: bytes(found.f_blocks),
            free: bytes(found.f_bfree),
            available: bytes(found.f_bavail),
            longest_name: found.f_namemax,
        })
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        File::open(self.at(path))?.sync_all()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.0)?)?)
    }
}

struct Open {
    file: File,
    append: bool,
}

impl OpenFile for Open {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        match self.append {
            // Linux appends to a file that was opened so, wherever pwrite(2) is told to write.
            true => Ok(rustix::io::write(&self.file, data)?),
            false => self.file.write_at(data, offset),
        }
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn attributes(&self) -> io::Result<Attributes> {
        self.file.metadata().map(|found| attributes(&found))
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::from_bits_retain(mode), offset, length)?)
    }

    fn seek(&self, offset: u64, whence: u32) -> io::Result<u64> {
        let whence = if whence == SEEK_DATA { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        Ok(rustix::fs::seek(self.file.as_fd(), whence)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn attributes(found: &Metadata) -> Attributes {
    Attributes {
        mode: found.mode(),
        ino: found.ino(),
        nlink: found.nlink(),
        uid: found.uid(),
        gid: found.gid(),
        rdev: found.rdev(),
        size: found.size(),
        accessed: time(found.atime(), found.atime_nsec()),
        modified: time(found.mtime(), found.mtime_nsec()),
        changed: time(found.ctime(), found.ctime_nsec()),
    }
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    whole + Duration::from_nanos(nanoseconds.unsigned_abs())
}

fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() },
        Err(before) => {
            let nanoseconds = before.duration().as_nanos() as i128;
            let (seconds, rest) =
                ((-nanoseconds).div_euclid(1_000_000_000), (-nanoseconds).rem_euclid(1_000_000_000));
            Timespec { tv_sec: seconds as i64, tv_nsec: rest as i64 }
        }
    }
}
