//! Process 1 of a test guest, and the tools that its shell lacks.
//!
//! As `/init` it prepares the root file system, opens the virtio-serial port and runs what the host asks for. Called as
//! `agent TOOL ...` by a command in the guest it does one thing and ends; see `tools`.

#![forbid(unsafe_code)]

mod boot;
mod execute;
mod tools;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() == 1 {
        boot::run();
    }
    match tools::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent {}: {error:#}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}
