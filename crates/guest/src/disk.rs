//! Host file systems of their own, each in an image file that a test can look into.
//!
//! What has reached the image file has left the page cache of the file system that stands on it. That is as near to
//! "on the disk" as a test without a power switch gets.

use std::fs::{self, File};
use std::io;
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
        Self::create("ext4", size_mib, None)
    }

    /// An XFS file system; `mkfs.xfs` wants 300 MiB or more.
    pub fn xfs(size_mib: u64) -> Result<Self> {
        Self::create("xfs", size_mib, None)
    }

    /// A btrfs file system; `mkfs.btrfs` wants 110 MiB or more.
    pub fn btrfs(size_mib: u64) -> Result<Self> {
        Self::create("btrfs", size_mib, None)
    }

    /// An ext4 file system mounted at this place, for instance below another one.
    pub fn ext4_at(size_mib: u64, mount_point: &Path) -> Result<Self> {
        Self::create("ext4", size_mib, Some(mount_point))
    }

    fn create(kind: &str, size_mib: u64, mount_point: Option<&Path>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("making and mounting a disk image needs root: run this as root");
        }
        let folder = tempfile::Builder::new().prefix("ashore-disk-").tempdir()?;
        let image = image_in(folder.path());
        File::create(&image)?.set_len(size_mib << 20)?;
        make_file_system(kind, &image)?;
        let mount_point = mount_point.map_or_else(|| folder.path().join("mount"), Path::to_path_buf);
        fs::create_dir_all(&mount_point)?;
        run(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(&mount_point))?;
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

    /// How many pattern blocks of this seed the image file holds at this moment.
    pub fn count_blocks(&self, seed: u64) -> io::Result<usize> {
        pattern::count_blocks(self.image(), seed)
    }
}

impl Drop for LoopImage {
    fn drop(&mut self) {
        // The server may need a moment to let go of it. `mount` made the loop device so that it goes with the mount.
        for _ in 0..50 {
            if run(Command::new("umount").arg(&self.mount_point)).is_ok() {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        eprintln!("{} is still in use; it goes when its last user does", self.mount_point.display());
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount_point));
    }
}

fn image_in(folder: &Path) -> PathBuf {
    folder.join("image")
}

fn make_file_system(kind: &str, image: &Path) -> Result<()> {
    let name = format!("mkfs.{kind}");
    let program = find_program(&name)
        .with_context(|| format!("{name} is not installed: run `cargo xtask setup` as root"))?;
    let mut command = Command::new(program);
    if kind == "ext4" {
        // It takes smaller blocks for a small file system, and then pattern blocks would not stay aligned.
        command.args(["-b", "4096"]);
    }
    run(command.arg("-q").arg(image))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
