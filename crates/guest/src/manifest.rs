//! A tree as text, one line a name: the same code runs in the guest and on the host, and the two texts must be equal.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Lines of `mode uid gid size mtime checksum name` for everything below `root`, sorted by name, `root` itself first.
///
/// The mode is octal and holds the file type. The checksum covers a file's content or a link's target; it is there to
/// notice damage, not to resist an enemy.
pub fn of_tree(root: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::new();
    add(root.as_ref(), root.as_ref(), &mut text)?;
    Ok(text)
}

/// The first few lines in which two manifests differ, for a message that a person can read; empty if they are equal.
pub fn difference(host: &str, guest: &str) -> String {
    let mut text = String::new();
    let only = |mine: &str, other: &str, name: &str, text: &mut String| {
        let other: std::collections::HashSet<&str> = other.lines().collect();
        let lines: Vec<&str> = mine.lines().filter(|line| !other.contains(line)).collect();
        for line in lines.iter().take(10) {
            let _ = writeln!(text, "{name}: {line}");
        }
        if lines.len() > 10 {
            let _ = writeln!(text, "{name}: and {} more", lines.len() - 10);
        }
    };
    only(host, guest, "only on the host ", &mut text);
    only(guest, host, "only in the guest", &mut text);
    text
}

fn add(root: &Path, path: &Path, text: &mut String) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let name = path.strip_prefix(root).unwrap_or(path);
    let _ = writeln!(
        text,
        "{:o} {} {} {} {}.{:09} {:016x} ./{}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        checksum(path, &metadata)?,
        name.as_os_str().as_bytes().escape_ascii(),
    );
    if metadata.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        names.sort();
        for child in names {
            add(root, &child, text)?;
        }
    }
    Ok(())
}

fn checksum(path: &Path, metadata: &Metadata) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    if metadata.is_symlink() {
        hasher.write(fs::read_link(path)?.as_os_str().as_bytes());
    } else if metadata.is_file() {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.write(&buffer[..count]);
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_and_a_new_name_show() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "one").unwrap();
        let before = of_tree(dir.path()).unwrap();
        assert_eq!(difference(&before, &of_tree(dir.path()).unwrap()), "");
        fs::write(dir.path().join("a"), "two").unwrap();
        fs::write(dir.path().join("b"), "").unwrap();
        let after = of_tree(dir.path()).unwrap();
        let difference = difference(&before, &after);
        assert!(difference.contains("./a\n") && difference.contains("./b\n"), "{difference}");
    }

    #[test]
    fn the_checksum_does_not_depend_on_how_a_read_was_cut() {
        let mut whole = DefaultHasher::new();
        whole.write(b"abcdef");
        let mut parts = DefaultHasher::new();
        parts.write(b"abc");
        parts.write(b"def");
        assert_eq!(whole.finish(), parts.finish());
    }
}
