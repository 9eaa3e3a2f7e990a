//! Host file systems of their own, each in an image file that a test can look into.
//!
//! What has reached the image file has left the page cache of the file system that stands on it. That is as near to
//! "on the disk" as a test without a power switch gets.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::initramfs::find_program;
use crate::pattern;

/// A file system on a loop device, unmounted and gone when this is dropped.
///
/// Of nested ones make the inner one last; then it is dropped first.
#[derive(Debug)]
pub struct LoopImage {
    mount_point: PathBuf,
    folder: TempDir,
}

impl LoopImage {
    /// An ext4 file system of so many MiB.
    pub fn ext4(size_mib: u64) -> Result<Self> {
        Self::create(&Plan { kind: "ext4", size_mib, ..Plan::default() })
    }

    /// An XFS file system; `mkfs.xfs` wants 300 MiB or more.
    pub fn xfs(size_mib: u64) -> Result<Self> {
        Self::create(&Plan { kind: "xfs", size_mib, ..Plan::default() })
    }

    /// A btrfs file system; `mkfs.btrfs` wants 110 MiB or more.
    pub fn btrfs(size_mib: u64) -> Result<Self> {
        Self::create(&Plan { kind: "btrfs", size_mib, ..Plan::default() })
    }

    /// An ext4 file system mounted at this place, for instance below another one.
    pub fn ext4_at(size_mib: u64, mount_point: &Path) -> Result<Self> {
        Self::create(&Plan { kind: "ext4", size_mib, mount_point: Some(mount_point), ..Plan::default() })
    }

    /// An ext4 file system whose image lies on `disk`. It has no journal, so it goes on when the disk is full, and loses
    /// what is written to it.
    pub fn ext4_without_journal_on(disk: &SmallDisk, size_mib: u64) -> Result<Self> {
        let plan = Plan { kind: "ext4", size_mib, options: &["-O", "^has_journal"], ..Plan::default() };
        Self::create(&Plan { parent: Some(disk.0.path()), ..plan })
    }

    fn create(plan: &Plan<'_>) -> Result<Self> {
        need_root()?;
        let builder = &mut tempfile::Builder::new();
        let folder = match plan.parent {
            Some(parent) => builder.prefix("ashore-disk-").tempdir_in(parent)?,
            None => builder.prefix("ashore-disk-").tempdir()?,
        };
        let image = image_in(folder.path());
        File::create(&image)?.set_len(plan.size_mib << 20)?;
        make_file_system(plan, &image)?;
        let mount_point = plan.mount_point.map_or_else(|| folder.path().join("mount"), Path::to_path_buf);
        fs::create_dir_all(&mount_point)?;
        run(Command::new("mount").args(["-o", "loop", "-t", plan.kind]).arg(&image).arg(&mount_point))?;
        Ok(Self { mount_point, folder })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The image file.
    pub fn image(&self) -> PathBuf {
        image_in(self.folder.path())
    }

    /// The loop device.
    pub fn device(&self) -> Result<PathBuf> {
        let output = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.mount_point).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().into())
    }

    /// How many pattern blocks of this seed the image file holds at this moment.
    pub fn count_blocks(&self, seed: u64) -> io::Result<usize> {
        pattern::count_blocks(self.image(), seed)
    }
}

impl Drop for LoopImage {
    fn drop(&mut self) {
        // `mount` made the loop device so that it goes with the mount.
        unmount(&self.mount_point);
    }
}

/// What a file system on an image is to be like.
#[derive(Default)]
struct Plan<'a> {
    kind: &'a str,
    size_mib: u64,
    /// For mkfs.
    options: &'a [&'a str],
    mount_point: Option<&'a Path>,
    /// Where the image lies; with other temporary files, if nowhere else.
    parent: Option<&'a Path>,
}

/// A file or directory that is also somewhere else (`mount --bind`), until this is dropped.
#[derive(Debug)]
pub struct BindMount(PathBuf);

impl BindMount {
    /// Shows `source` at `target`, which must be there and of the same kind.
    pub fn new(source: &Path, target: &Path) -> Result<Self> {
        need_root()?;
        run(Command::new("mount").arg("--bind").arg(source).arg(target))?;
        Ok(Self(target.to_owned()))
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// A disk, in memory, that can be filled to the brim.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// A disk of so many MiB.
    pub fn new(size_mib: u64) -> Result<Self> {
        need_root()?;
        let folder = tempfile::Builder::new().prefix("ashore-small-").tempdir()?;
        let size = format!("size={size_mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "ashore-small"]).arg(folder.path()))?;
        Ok(Self(folder))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no room for anything more.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.0.path().join("filler"))?;
        let block = vec![0xAA; 1 << 20];
        while filler.write_all(&block).is_ok() {}
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.0.path());
    }
}

fn need_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("making and mounting file systems needs root: run this as root");
    }
    Ok(())
}

/// Whoever uses it may need a moment to let go of it.
fn unmount(mount_point: &Path) {
    for _ in 0..50 {
        if run(Command::new("umount").arg(mount_point)).is_ok() {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    eprintln!("{} is still in use; it goes when its last user does", mount_point.display());
    let _ = run(Command::new("umount").arg("--lazy").arg(mount_point));
}

fn image_in(folder: &Path) -> PathBuf {
    folder.join("image")
}

fn make_file_system(plan: &Plan<'_>, image: &Path) -> Result<()> {
    let name = format!("mkfs.{}", plan.kind);
    let program = find_program(&name)
        .with_context(|| format!("{name} is not installed: run `cargo xtask setup` as root"))?;
    let mut command = Command::new(program);
    if plan.kind == "ext4" {
        // It takes smaller blocks for a small file system, and then pattern blocks would not stay aligned.
        command.args(["-b", "4096"]);
    }
    run(command.args(plan.options).arg("-q").arg(image))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
