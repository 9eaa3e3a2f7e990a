//! Builds the programs that tests start: the static agent for the guest, and our own server.
//!
//! They are built when they are first needed and not looked for, so a test never runs yesterday's binary. Cargo finds
//! in a moment that there is nothing to do.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The agent as a program that needs no library, for the guest's root file system.
pub(crate) fn agent() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || {
        // A folder of its own: the flags differ, and cargo would otherwise build everything anew each time.
        let folder = target_dir()?.join("static");
        let mut cargo = cargo(&folder);
        cargo.args(["--package", "ashore-guest", "--bin", "ashore-agent", "--target", TARGET]);
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
        build(cargo, "the agent that runs in the guest")?;
        Ok(folder.join(TARGET).join("debug/ashore-agent"))
    })
}

/// Our server: `$ASHORE_BIN` if it is set, else built from this checkout.
pub(crate) fn ashore() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = env::var_os("ASHORE_BIN") {
        return Ok(path.into());
    }
    once(&BUILT, || {
        let folder = target_dir()?;
        let mut cargo = cargo(&folder);
        cargo.args(["--package", "ashore", "--bin", "ashore"]);
        build(cargo, "the server")?;
        Ok(folder.join("debug/ashore"))
    })
}

/// A program in this folder, without what only debuggers read.
pub(crate) fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let stripped = folder.join(program.file_name().context("a program is a file")?);
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(program);
    let status = strip.status().context("cannot run strip, which comes with the linker (binutils)")?;
    if !status.success() {
        bail!("strip failed ({status})");
    }
    Ok(stripped)
}

/// The target folder that the running program was built into.
pub fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let folder = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    Ok(folder.map_or_else(|| workspace().join("target"), Path::to_path_buf))
}

/// The root of this checkout.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

fn once(
    cell: &OnceLock<Result<PathBuf, String>>,
    build: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    cell.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn cargo(target_dir: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.current_dir(workspace()).args(["build", "--quiet", "--target-dir"]).arg(target_dir);
    // Flags of the build that runs us are not meant for this one.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    cargo
}

fn build(mut cargo: Command, what: &str) -> Result<()> {
    let output = cargo.output().context("cannot start cargo: is it in PATH?")?;
    if !output.status.success() {
        bail!("{what} could not be built:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
