//! The measurements as a program of their own: `cargo run --release -p ashore-bench --example bench -- --help`.

use ashore_bench::BenchArguments;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    bench: BenchArguments,
    /// Print JSON rather than a table
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = ashore_bench::run(&arguments.bench)?;
    if arguments.json {
        print!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(())
}
