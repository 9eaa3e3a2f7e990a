//! The guest's root file system: a cpio archive, which the kernel unpacks into memory.
//!
//! It is not compressed, since an emulated processor unpacks more slowly than QEMU copies.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::modules::Module;

/// An archive that grows by one file at a time. Folders are made as they are needed.
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    present: BTreeSet<PathBuf>,
}

impl Initramfs {
    pub(crate) fn new() -> Self {
        Self { archive: Vec::new(), present: BTreeSet::new() }
    }

    /// Adds a file with this content and mode at an absolute path.
    pub(crate) fn add_file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.add_parents(path)?;
        if self.present.insert(path.to_path_buf()) {
            self.add_entry(path, 0o100000 | mode, content)?;
        }
        Ok(())
    }

    /// Copies a file of the host; its name may differ in the guest.
    pub(crate) fn copy(&mut self, source: &Path, path: impl AsRef<Path>) -> Result<()> {
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        let mode = fs::metadata(source)?.permissions().mode() & 0o777;
        self.add_file(path, mode, &content)
    }

    /// Adds a program of the host to the guest's `/bin`, with every shared library that it needs.
    pub(crate) fn add_program(&mut self, name: &str) -> Result<()> {
        let program = find_program(name).with_context(|| {
            format!("the guest shall have {name}, but it is not in PATH: install it first")
        })?;
        self.add_program_at(&program)
    }

    /// Adds this program, under its name in `/bin`, with its libraries.
    pub(crate) fn add_program_at(&mut self, program: &Path) -> Result<()> {
        for library in libraries(program)? {
            self.copy(&library, &library)?;
        }
        let file_name = program.file_name().unwrap_or_default().to_owned();
        self.copy(program, Path::new("/bin").join(file_name))
    }

    /// Adds modules and the list by which the agent loads them.
    pub(crate) fn add_modules(&mut self, modules: &[Module]) -> Result<()> {
        let mut list = String::new();
        for module in modules {
            let path = format!("/modules/{}.ko", module.name);
            self.add_file(&path, 0o644, &module.bytes)?;
            list += &format!("{path}\n");
        }
        self.add_file("/modules.list", 0o644, list.as_bytes())
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.add_entry(Path::new("/TRAILER!!!"), 0, &[])?;
        Ok(self.archive)
    }

    fn add_parents(&mut self, path: &Path) -> Result<()> {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| *p != Path::new("/")).collect();
        parents.reverse();
        for parent in parents {
            if self.present.insert(parent.to_path_buf()) {
                self.add_entry(parent, 0o040755, &[])?;
            }
        }
        Ok(())
    }

    /// The "newc" form: a header of hexadecimal numbers, the name, the content, each padded to four bytes.
    fn add_entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        let name = path.to_str().context("names in the guest's root file system are UTF-8")?;
        let name = name.trim_start_matches('/');
        let inode = self.present.len();
        let (links, size, name_size) = (1, content.len(), name.len() + 1);
        self.archive.extend_from_slice(
            format!(
                "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
                0, 0, 0, 0, 0, 0, 0, 0
            )
            .as_bytes(),
        );
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The program in `PATH` or the system's folders; `/usr/sbin` is not in everybody's `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What `ldd` lists, as paths: `libz.so.1 => /lib/libz.so.1 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("ldd").arg(program).output().context("cannot run ldd, which comes with glibc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{} lacks a library on this machine; `ldd {0}` says which", program.display());
    }
    // A static program makes ldd fail, and it needs nothing.
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_only_once() {
        let mut archive = Initramfs::new();
        archive.add_file("/a/b/one", 0o644, b"1").unwrap();
        archive.add_file("/a/b/two", 0o644, b"22").unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        let names: Vec<&str> =
            text.split("070701").skip(1).filter_map(|entry| entry[104..].split('\0').next()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "TRAILER!!!"]);
        assert!(text.len().is_multiple_of(4));
    }

    #[test]
    fn a_program_brings_its_libraries() {
        let mut archive = Initramfs::new();
        archive.add_program("sh").unwrap();
        assert!(archive.present.iter().any(|path| path.to_string_lossy().contains("libc.so")));
        assert!(archive.present.contains(Path::new("/bin/sh")));
    }
}
