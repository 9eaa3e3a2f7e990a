//! Kernel modules that a guest needs before it can talk to us, for kernels that have not built them in.
//!
//! Debian's packages bring no `modules.dep` (it is made on installation), so the dependences are read from the modules
//! themselves: a `.modinfo` section holds `depends=a,b` as text between zero bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const NEEDED: [&str; 5] = ["virtio_pci", "virtio_console", "virtio_blk", "fuse", "virtiofs"];

/// A module as the guest shall load it.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The needed modules below `folder`, and those named beside, in the order in which they can be loaded; what is built in is left
/// out.
pub(crate) fn needed(folder: &Path, beside: &[&str]) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    collect(&folder.join("kernel"), &mut files)?;
    let mut loaded = Vec::new();
    for name in NEEDED.iter().chain(beside) {
        add(name, &files, &mut loaded)?;
    }
    Ok(loaded)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn add(name: &str, files: &[PathBuf], loaded: &mut Vec<Module>) -> Result<()> {
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.iter().find(|path| module_name(path).as_deref() == Some(name)) else {
        return Ok(());
    };
    let bytes = read(path)?;
    for dependence in dependences(&bytes) {
        add(&dependence, files, loaded)?;
    }
    loaded.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Files are named with either dash or underscore, modules always with the latter.
fn module_name(path: &Path) -> Option<String> {
    let (name, extension) = path.file_name()?.to_str()?.split_once('.')?;
    extension.starts_with("ko").then(|| name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(path)
        .output()
        .context("cannot run xz to unpack a kernel module: run `cargo xtask setup`")?;
    if !output.status.success() {
        bail!("xz could not unpack {}", path.display());
    }
    Ok(output.stdout)
}

fn dependences(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependences_come_before_the_module_that_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel/fs");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("virtiofs.ko"), b"..\0depends=fuse,virtio-ring\0..").unwrap();
        fs::write(kernel.join("fuse.ko"), b"..\0depends=\0..").unwrap();
        fs::write(kernel.join("virtio_ring.ko"), b"..").unwrap();
        let names: Vec<String> =
            needed(dir.path(), &[]).unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["fuse", "virtio_ring", "virtiofs"]);
    }

    #[test]
    fn a_kernel_without_modules_needs_none() {
        assert!(needed(Path::new("/nonexistent"), &["9p"]).unwrap().is_empty());
    }
}
