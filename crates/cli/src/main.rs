//! The program `ashore`.

#![forbid(unsafe_code)]

mod logging;
mod serve;
mod signals;

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
    Serve(serve::ServeArguments),
}

/// Exit codes: 0 done, 1 failed (the message says what and what to do), 2 wrong usage.
fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Serve(arguments) => serve::serve(arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ashore: {error:#}");
        ExitCode::FAILURE
    })
}
