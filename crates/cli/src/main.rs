//! The program `ashore`.

#![forbid(unsafe_code)]

mod bench;
mod doctor;
mod isolation;
mod logging;
mod manual;
mod metrics;
mod migration;
mod mount;
mod processors;
mod serve;
mod service;
mod signals;
mod state_file;
mod tools;
mod top;
mod virtiofsd;

use std::env;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A virtio-fs file server whose sync means it.
///
/// When a guest's sync returns, every earlier change is on stable storage of the host.
#[derive(Parser)]
#[command(name = "ashore", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Share a host directory with a virtual machine, over vhost-user
    Serve(Box<serve::ServeArguments>),
    /// Mount a host directory, or the share of a running server, on this machine
    Mount(mount::MountArguments),
    /// List a directory of a share
    Ls(tools::ListArguments),
    /// Print a file of a share
    Cat(tools::PathArguments),
    /// Tell what is known about a file of a share
    Stat(tools::PathArguments),
    /// Make all that was changed in a share stable
    Sync(tools::SyncArguments),
    /// Copy files into a share or out of it
    Cp(tools::CopyArguments),
    /// Check that sync means what it should: of this server, or of any other
    Doctor(doctor::Arguments),
    /// Measure how fast a server is, or two in turns
    Bench(bench::Arguments),
    /// Watch a server that was started with --metrics
    Top(top::Arguments),
    /// Write man pages and completions into a directory
    #[command(hide = true)]
    Manual(manual::Arguments),
}

/// Exit codes: 0 done, 1 failed (the message says what and what to do), 2 wrong usage.
fn main() -> ExitCode {
    let other_name = mount::helper(env::args_os()).or_else(|| virtiofsd::under_its_name(env::args_os()));
    let arguments = other_name.map_or_else(Arguments::parse, Arguments::parse_from);
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::serve(*arguments),
        Command::Mount(arguments) => mount::mount(arguments),
        Command::Ls(arguments) => tools::list(arguments),
        Command::Cat(arguments) => tools::cat(arguments),
        Command::Stat(arguments) => tools::stat(arguments),
        Command::Sync(arguments) => tools::sync(arguments),
        Command::Cp(arguments) => tools::copy(arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Manual(arguments) => manual::manual(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ashore: {error:#}");
        ExitCode::FAILURE
    })
}
