//! `ashore doctor`: whether sync means what it should.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ashore_doctor::{Check, DoctorArguments, Finding, Observer};
use clap::Args;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code of a shell for a program that was interrupted.
const INTERRUPTED: i32 = 130;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    examine: DoctorArguments,

    /// Print JSON rather than a table
    #[arg(long)]
    json: bool,
}

/// Examines, and prints the report to standard output.
///
/// Exit code: 0, all promises are kept; 1, one is broken, or nothing could be examined; 2, of one nothing could be told.
pub(crate) fn doctor(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // The first Ctrl-C ends the check and cleans up; a second one ends the process there and then.
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&interrupted))?;
    flag::register(SIGINT, Arc::clone(&interrupted))?;
    let mut progress = Progress { terminal: io::stderr().is_terminal(), interrupted };
    let report = ashore_doctor::run(&arguments.examine, &mut progress)?;
    progress.clear();
    if arguments.json {
        print!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(report.exit_code()))
}

/// On a terminal one line that changes; elsewhere a line for each check.
struct Progress {
    terminal: bool,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

impl Observer for Progress {
    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn begins(&mut self, check: &Check) {
        self.clear();
        if self.terminal {
            eprint!("{} {} ...", check.promise.number(), check.title);
            _ = io::stderr().flush();
        }
    }

    fn ended(&mut self, finding: &Finding) {
        self.clear();
        let words = finding.seen.verdict.words();
        eprintln!("{} {}: {words}", finding.check.promise.number(), finding.check.title);
    }
}
