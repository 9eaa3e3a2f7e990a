//! Where things live that are fetched once and used by every checkout: guest kernels and other people's servers.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/ashore`, or `~/.cache/ashore`.
pub fn dir() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context(
            "neither XDG_CACHE_HOME nor HOME is set: set one of them, guest kernels are kept below it",
        )?;
    Ok(base.join("ashore"))
}

/// One folder for each guest kernel, named after its release.
pub fn kernels() -> Result<PathBuf> {
    Ok(dir()?.join("kernels"))
}

/// The release of Debian that packages are installed in to be tried.
pub const CLEAN_RELEASE: &str = "bookworm";

/// That Debian, with nothing of ours in it.
pub fn clean_root() -> Result<PathBuf> {
    Ok(dir()?.join("roots").join(CLEAN_RELEASE))
}

/// Servers of other projects, to compare with; programs are in its `bin`.
pub fn peers() -> Result<PathBuf> {
    Ok(dir()?.join("peers"))
}
