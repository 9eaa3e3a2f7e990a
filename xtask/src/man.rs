//! `cargo xtask man`: man pages and completions, which the program writes itself.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

pub(crate) fn run() -> Result<ExitCode> {
    let directory = ashore_guest::target_dir()?.join("manual");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--package", "ashore", "--bin", "ashore", "--", "manual"]).arg(&directory);
    if !cargo.status().context("cannot start cargo: is it in PATH?")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    println!("{0}: try `man -l {0}/man1/ashore-doctor.1`", directory.display());
    Ok(ExitCode::SUCCESS)
}
