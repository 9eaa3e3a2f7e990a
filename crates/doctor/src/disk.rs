//! File systems of our own, each on an image file: what only root can look at.
//!
//! What has reached the image has left the page cache of the file system that stands on it. A copy of the image, mounted,
//! is what a power cut at that moment would have left.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Fails, saying so, unless root can do what these checks need.
pub(crate) fn need_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("it needs root: mounting file systems of its own");
    }
    Ok(())
}

/// Something that is mounted, until dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    fn new(arguments: &[&str], what: &Path, at: &Path) -> Result<Mounted> {
        fs::metadata(at).with_context(|| format!("{} is not there", at.display()))?;
        run(Command::new("mount").args(arguments).arg(what).arg(at))?;
        Ok(Mounted(at.to_owned()))
    }

    /// Shows a file or directory at another place, which must be there.
    pub(crate) fn bind(source: &Path, at: &Path) -> Result<Mounted> {
        Mounted::new(&["--bind"], source, at)
    }

    /// An image of an ext4 file system.
    fn image(image: &Path, at: &Path) -> Result<Mounted> {
        Mounted::new(&["-o", "loop", "-t", "ext4"], image, at)
    }

    /// A disk in memory that can be filled to the brim.
    pub(crate) fn memory(mebibytes: u32, at: &Path) -> Result<Mounted> {
        Mounted::new(&["-t", "tmpfs", "-o", &format!("size={mebibytes}m")], Path::new("ashore-doctor"), at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..50 {
            if run(Command::new("umount").arg(&self.0)).is_ok() {
                return;
            }
            // Whoever uses it may need a moment to let go of it.
            sleep(Duration::from_millis(100));
        }
        eprintln!("{} is still in use; it goes when its last user does", self.0.display());
        _ = run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// An ext4 file system on an image file.
#[derive(Debug)]
pub(crate) struct Disk {
    mounted: Mounted,
    image: PathBuf,
}

impl Disk {
    /// A new one, its image in `folder`, mounted at `at`.
    pub(crate) fn new(folder: &Path, name: &str, mebibytes: u64, at: &Path) -> Result<Disk> {
        Disk::with_options(folder, name, mebibytes, at, &[])
    }

    /// One without a journal, which goes on when its disk fails, and loses what is written to it.
    pub(crate) fn without_journal(folder: &Path, name: &str, mebibytes: u64, at: &Path) -> Result<Disk> {
        Disk::with_options(folder, name, mebibytes, at, &["-O", "^has_journal"])
    }

    fn with_options(folder: &Path, name: &str, mebibytes: u64, at: &Path, options: &[&str]) -> Result<Disk> {
        need_root()?;
        let image = folder.join(name);
        let made = File::create(&image).and_then(|file| file.set_len(mebibytes << 20));
        made.with_context(|| format!("cannot make {}", image.display()))?;
        run(Command::new("mkfs.ext4").args(options).args(["-q", "-b", "4096"]).arg(&image))?;
        fs::create_dir_all(at)?;
        Ok(Disk { mounted: Mounted::image(&image, at)?, image })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mounted.0
    }

    /// What a power cut at this moment would leave, mounted at `at`.
    pub(crate) fn after_power_cut(&self, at: &Path) -> Result<Mounted> {
        let copy = self.image.with_extension("copy");
        fs::copy(&self.image, &copy).with_context(|| format!("cannot copy {}", self.image.display()))?;
        fs::create_dir_all(at)?;
        Mounted::image(&copy, at)
    }
}

/// Leaves no room for anything more in a directory.
pub(crate) fn fill(directory: &Path) -> Result<()> {
    let mut filler = File::create(directory.join("filler"))?;
    let block = vec![0xAA; 1 << 20];
    while filler.write_all(&block).is_ok() {}
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} cannot be started; is it installed?"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
