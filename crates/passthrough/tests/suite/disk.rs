//! File systems of their own, each in an image file that can be copied at any moment: what the copy lacks, a power cut
//! at that moment would have taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::Mounted;

/// Kinds that `--sync-scope share` is exact on.
pub(crate) const KINDS: [&str; 2] = ["ext4", "xfs"];

/// A new file system, mounted.
pub(crate) struct Disk {
    kind: &'static str,
    /// Unmounted before its folder goes.
    mounted: Option<Mounted>,
    folder: Arc<TempDir>,
    files: TempDir,
}

impl Disk {
    /// An empty file system of so many MiB; xfs wants 300.
    pub(crate) fn new(kind: &'static str, mib: u64) -> Disk {
        Disk::with(kind, mib, &[])
    }

    /// One made with more options of mkfs.
    pub(crate) fn with(kind: &'static str, mib: u64, options: &[&str]) -> Disk {
        let (folder, files) = (Arc::new(TempDir::new().unwrap()), TempDir::new().unwrap());
        let image = files.path().join("image");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}")).args(options).arg("-q").arg(&image));
        let mounted = Some(Mounted::image(&image, folder.path()));
        Disk { kind, mounted, folder, files }
    }

    /// Where it is mounted.
    pub(crate) fn folder(&self) -> Arc<TempDir> {
        Arc::clone(&self.folder)
    }

    /// How much the image file holds.
    pub(crate) fn mib_written(&self) -> usize {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.files.path().join("image")).unwrap().blocks() as usize / 2048
    }

    /// What a power cut at this moment would leave.
    pub(crate) fn cut_power(&self) -> PathBuf {
        let copy = self.files.path().join("copy");
        run(Command::new("cp").arg("--sparse=always").arg(self.files.path().join("image")).arg(&copy));
        copy
    }

    /// Mounts what a power cut left, and looks.
    pub(crate) fn after(mut self, copy: &Path, look: impl FnOnce(&Path)) {
        // btrfs knows a file system by its id, and does not take two of the same.
        drop(self.mounted.take());
        let options = if self.kind == "xfs" { "loop,nouuid" } else { "loop" };
        let status = Command::new("mount").args(["-o", options]).arg(copy).arg(self.folder.path()).status();
        assert!(status.unwrap().success(), "what was left of {} cannot be mounted", self.kind);
        let mounted = Mounted::already(self.folder.path());
        look(self.folder.path());
        drop(mounted);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.mounted.take());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; cargo xtask setup"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
