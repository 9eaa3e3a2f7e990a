//! Tasks of this workspace, as one program that needs nothing but Rust and a Debian with apt: `cargo xtask TASK`.

mod apt;
mod clean_root;
mod dist;
mod figures;
mod guest;
mod interrupt;
mod io_uring;
mod kernels;
mod man;
mod matrix;
mod mutants;
mod scoreboard;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tasks of this workspace", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need: QEMU, a guest kernel, tools to make file systems.
    Setup(setup::Options),
    /// Boot a Linux guest with a shared directory at /mnt/share, and run a command or a shell in it.
    Guest(guest::Options),
    /// Write man pages and completions to target/manual.
    Man,
    /// Build what users install: a static program in an archive and in a Debian package, in target/dist.
    Dist,
    /// Run everything that a change is judged by.
    Test(test::Options),
    /// Of that, what shows that a sync can be trusted: schedules, seeds, power cuts, deliberate bugs, each counted.
    Proof(test::ProofOptions),
    /// Switch each deliberate bug on, and see that all are caught by the tests that must.
    Mutants(test::MutantsOptions),
    /// Measure what guests' kernels do on sync, and write columns of the table in docs/guest-kernels.md.
    Kernels(matrix::Options),
    /// Ask our server and others the same questions, and write docs/scoreboard.md.
    Scoreboard(scoreboard::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(options) => setup::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Guest(options) => guest::run(&options),
        Task::Man => man::run(),
        Task::Dist => dist::run(),
        Task::Test(options) => test::run(&options),
        Task::Proof(options) => test::prove(&options),
        Task::Mutants(options) => test::catch_mutants(&options),
        Task::Kernels(options) => matrix::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Scoreboard(options) => scoreboard::run(&options),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
