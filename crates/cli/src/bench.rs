//! `ashore bench`: how fast a server is.

use std::process::ExitCode;

use ashore_bench::BenchArguments;
use clap::Args;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    measure: BenchArguments,

    /// Print JSON rather than a table
    #[arg(long)]
    json: bool,
}

/// Measures, and prints the report to standard output.
pub(crate) fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let report = ashore_bench::run(&arguments.measure)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}
