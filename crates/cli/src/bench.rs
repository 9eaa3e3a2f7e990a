//! `ashore bench`: how fast a server is.

use std::path::PathBuf;
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

    /// Draw plots into this directory rather than print a table: depth.svg (READ of 4 KiB a second, by requests on their way),
    /// queues.svg (by request queues, up to as many as there are processors) and latency.svg (how long single requests take).
    /// Of a --socket in one round
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "path", "only", "queues", "no_native"])]
    plot: Option<PathBuf>,
}

/// Measures, and prints the report to standard output.
pub(crate) fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(directory) = &arguments.plot {
        for file in ashore_bench::plot(&arguments.measure, directory)? {
            println!("{}", file.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = ashore_bench::run(&arguments.measure)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}
