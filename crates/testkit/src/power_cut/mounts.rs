//! Mounts that cannot be left behind.
//!
//! Everything is mounted in a name space of its own, which goes with the last thread or process in it, and the mounts
//! with it, and the loop devices with those, since `mount -o loop` makes them so. So nothing is left behind by a test
//! that is killed either. In the usual case each value here takes its mount away when it is dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::SeekFrom;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// A host file system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4, data in order (its default).
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs];

    /// Its name, as `mount -t` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bytes of the smallest that its tools like.
    pub fn length(self) -> u64 {
        match self {
            Kind::Ext4 => 64 << 20,
            Kind::Xfs => 300 << 20,
            Kind::Btrfs => 128 << 20,
        }
    }

    /// Makes an empty one at the beginning of an image; what is behind it is left for marks.
    pub fn make(self, image: &Path) -> Result<()> {
        let name = format!("mkfs.{}", self.name());
        let mut command = Command::new(&name);
        command.env("PATH", path_with_system_folders()?);
        let length = self.length().to_string();
        match self {
            Kind::Ext4 => {
                let blocks = (self.length() / 4096).to_string();
                let lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
                command.args(["-q", "-F", "-b", "4096", "-E", lazy]).arg(image).arg(blocks)
            }
            Kind::Xfs => command.args(["-q", "-f", "-K", "-d"]).arg(format!("size={length}")).arg(image),
            Kind::Btrfs => command.args(["-q", "-f", "-K", "-b", &length]).arg(image),
        };
        run(&mut command).with_context(|| format!("{name} is needed: run `cargo xtask setup` as root"))
    }

    /// Where its superblocks begin and end. Each is one write of one block, which file systems take for whole or absent.
    pub fn superblocks(self) -> &'static [(u64, u64)] {
        match self {
            Kind::Ext4 | Kind::Xfs => &[(0, 4096)],
            Kind::Btrfs => &[(65_536, 69_632), (67_108_864, 67_112_960)],
        }
    }
}

/// Gives the calling thread mounts of its own, which threads and processes that it starts share.
pub(super) fn enter_private_mounts() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("power cuts mount file systems: run this as root");
    }
    #[expect(deprecated, reason = "unsafe for tables of descriptors only, and those are not touched")]
    rustix::thread::unshare(UnshareFlags::NEWNS)
        .context("mounts of its own were refused: run this as root")?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// A file system on a loop device on a file.
#[derive(Debug)]
pub(super) struct LoopMount {
    place: TempDir,
}

impl LoopMount {
    /// Mounts the file system in `image`, with more options for `mount -o`, if any.
    pub(super) fn new(kind: Kind, image: &Path, options: &str) -> Result<LoopMount> {
        let place = tempfile::Builder::new().prefix("ashore-power-").tempdir()?;
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        let mut mount = Command::new("mount");
        run(mount.args(["-t", kind.name(), "-o", &options]).arg(image).arg(place.path()))?;
        Ok(LoopMount { place })
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        self.place.path()
    }

    /// Has the loop device keep several writes under way, past the cache of the file it stands on.
    pub(super) fn use_direct_io(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let place = self.path().display().to_string();
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(&place));
        let device = line.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1));
        let device = device.context("the loop device of a mount is not in mountinfo")?;
        run(Command::new("losetup").arg("--direct-io=on").arg(device))
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        unmount_patiently(self.place.path());
    }
}

/// Whoever uses it may need a moment to let go of it. What stays in use goes with the name space.
pub(super) fn unmount_patiently(place: &Path) {
    for _ in 0..100 {
        match unmount(place, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
    let _ = unmount(place, UnmountFlags::DETACH);
}

/// A sparse file that holds an image and goes when this is dropped; in memory, where there is room.
#[derive(Debug)]
pub struct Image {
    folder: TempDir,
}

impl Image {
    /// An empty one of so many bytes.
    pub fn new(length: u64) -> Result<Image> {
        let builder = &mut tempfile::Builder::new();
        let builder = builder.prefix("ashore-power-");
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { builder.tempdir_in(memory)? } else { builder.tempdir()? };
        let image = Image { folder };
        File::create_new(image.path())?.set_len(length)?;
        Ok(image)
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The file, to read and write.
    pub fn open(&self) -> Result<File> {
        Ok(File::options().read(true).write(true).open(self.path())?)
    }
}

/// Makes `to` the same as `from`. What is zeros becomes a hole: a fresh log of XFS is 64 MiB of them.
pub(super) fn copy_sparse(from: &File, to: &File) -> Result<()> {
    let length = from.metadata()?.len();
    to.set_len(0)?;
    to.set_len(length)?;
    let mut buffer = vec![0; 64 << 10];
    let mut position = 0;
    while let Some(start) = seek(from, SeekFrom::Data(position))? {
        let end = seek(from, SeekFrom::Hole(start))?.unwrap_or(length);
        position = start;
        while position < end {
            let part = buffer.len().min((end - position) as usize);
            from.read_exact_at(&mut buffer[..part], position)?;
            if buffer[..part].iter().any(|byte| *byte != 0) {
                to.write_all_at(&buffer[..part], position)?;
            }
            position += part as u64;
        }
    }
    Ok(())
}

fn seek(file: &File, to: SeekFrom) -> Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(position) => Ok(Some(position)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn path_with_system_folders() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    Ok(std::env::join_paths(std::env::split_paths(&path).chain(system))?)
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
