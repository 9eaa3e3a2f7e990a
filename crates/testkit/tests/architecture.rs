//! The rules about structure that a review would otherwise repeat: which crate may use which, and where `unsafe`
//! may stand. When one of them is in the way, the code probably belongs somewhere else.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate by its folder, and the crates of ours that its production code may use. Dashes in names of packages
/// are those of the folders, after `ashore-`.
const ARROWS: &[(&str, &[&str])] = &[
    ("barrier", &[]),
    ("wire", &[]),
    ("server", &["wire", "barrier"]),
    // The one transport of the client is a feature of it: without `vhost-user` it takes any link.
    ("client", &["wire", "barrier", "vhost-user"]),
    ("passthrough", &["server", "wire"]),
    ("remote", &["client", "server", "wire"]),
    ("vhost-user", &["wire"]),
    ("dev-fuse", &["wire"]),
    ("guest", &[]),
    ("isolation", &[]),
    ("bench", &["client", "vhost-user", "wire"]),
    ("doctor", &["client", "vhost-user", "wire"]),
    // Its dependencies are those of builds with `--cfg shuttle` alone.
    ("simulation", &[]),
    // These may use everything; nothing uses them, but that the program can measure.
    (
        "cli",
        &[
            "barrier",
            "bench",
            "client",
            "dev-fuse",
            "doctor",
            "isolation",
            "passthrough",
            "remote",
            "server",
            "vhost-user",
            "wire",
        ],
    ),
    (
        "testkit",
        &[
            "barrier",
            "bench",
            "client",
            "dev-fuse",
            "doctor",
            "guest",
            "isolation",
            "passthrough",
            "remote",
            "server",
            "vhost-user",
            "wire",
        ],
    ),
];

/// Where `unsafe` may stand: shared memory with a guest, and the few system calls that no safe wrapper has.
const UNSAFE_ALLOWED: &[&str] = &[
    "crates/vhost-user/",
    "crates/doctor/src/sys.rs",
    "crates/isolation/src/sys.rs",
    "crates/passthrough/src/sys.rs",
    "crates/dev-fuse/src/sys.rs",
    "fuzz/",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The crates of ours in one section of a manifest.
fn ours(manifest: &str, section: &str) -> BTreeSet<String> {
    let lines = manifest.lines().skip_while(|line| *line != section).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.strip_prefix("ashore-"))
        .map(|line| line.split(['.', ' ', '=']).next().unwrap().to_owned())
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_arrow_between_crates_is_in_the_table() {
    let mut crates = BTreeSet::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some((_, allowed)) = ARROWS.iter().find(|(folder, _)| *folder == name) else {
            panic!("crate {name} has no place in the picture of ARCHITECTURE.md, nor in this table");
        };
        let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        for used in ours(&manifest, "[dependencies]") {
            assert!(allowed.contains(&used.as_str()), "{name} must not use {used}");
        }
        // A test that needs two of our crates lives in the test kit.
        if name != "testkit" && name != "cli" {
            let used = ours(&manifest, "[dev-dependencies]");
            assert!(used.is_empty(), "{name} uses {used:?} in its tests");
        }
        crates.insert(name);
    }
    for (name, _) in ARROWS {
        assert!(crates.contains(*name), "{name} stands in the table and is not there");
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 30, "the sources were found");
    for path in files {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if UNSAFE_ALLOWED.iter().any(|allowed| name.starts_with(allowed)) || name.ends_with("architecture.rs")
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let found = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word));
            // A counting allocator is the one thing a test cannot do without it, and says so.
            let excused = name.contains("/tests/") && text.contains("unsafe impl GlobalAlloc");
            assert!(!found || excused, "{name}:{}: unsafe may not stand here", number + 1);
        }
    }
}

#[test]
fn crates_without_unsafe_forbid_it() {
    for name in ["wire", "server", "client", "barrier"] {
        let library = fs::read_to_string(root().join("crates").join(name).join("src/lib.rs")).unwrap();
        assert!(library.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe code");
    }
}

#[test]
fn no_line_is_too_long_to_read_and_none_ends_in_blanks() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    for path in files {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            // A row of a table in documentation cannot be broken.
            if line.trim_start().starts_with("//! |") || line.trim_start().starts_with("/// |") {
                continue;
            }
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(line.chars().count() <= 140, "{place}: {} characters", line.chars().count());
            assert!(!line.ends_with([' ', '\t']), "{place}: ends in blanks");
        }
    }
}
