//! `cargo xtask test`: everything that a change is judged by, in the order in which it is likely to fail.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ashore_guest::{DEFAULT_KERNEL, FULL_KERNEL, KERNEL_VARIABLE};

use crate::figures::Figures;
use crate::interrupt::{self, Interrupt};
use crate::{io_uring, mutants, setup};

/// One rung: a cargo command. Those that run tests are counted by the lines in which cargo sums them up.
struct Step {
    name: &'static str,
    purpose: &'static str,
    arguments: &'static [&'static str],
    needs: Needs,
    /// Configurations that the code is built with for this step alone, in a target folder of its own.
    cfgs: &'static [&'static str],
}

/// What is brought to the machine before a step, if it is not there.
#[derive(Clone, Copy)]
enum Needs {
    Toolchain,
    /// QEMU and a guest's kernel.
    Guest,
    /// And virtiofsd, and a kernel that knows 9p, for the doctor in a guest.
    GuestAndPeer,
    /// A Debian with nothing of ours in it.
    CleanRoot,
    /// virtiofsd, to hold our client against another server than ours.
    Peer,
    /// A kernel that offers FUSE over io_uring, which it does while a parameter says so.
    IoUring,
}

/// The barrier's suite, which runs over modelled threads or over real ones.
const BARRIER: [&str; 8] =
    ["test", "--release", "--package", "ashore-barrier", "--test", "suite", "--", "--nocapture"];
/// The shipped client and server, threads and all, under a seeded scheduler.
const SIMULATION: [&str; 8] =
    ["test", "--release", "--package", "ashore-simulation", "--test", "simulation", "--", "--nocapture"];
/// Of it, the tests that switch deliberate bugs on, each of which must be caught.
const MUTANTS: [&str; 9] = [
    "test",
    "--release",
    "--package",
    "ashore-barrier",
    "--test",
    "suite",
    "every_mutant",
    "--",
    "--nocapture",
];

/// Tests with virtiofsd stand in a module of this name, and get a rung of their own: it has to be built first.
const PEERS: [&str; 19] = [
    "test",
    "--package",
    "ashore-testkit",
    "--package",
    "ashore-vhost-user",
    "--package",
    "ashore",
    "--test",
    "client_share",
    "--test",
    "conformance",
    "--test",
    "mount",
    "--test",
    "peer",
    "--test",
    "doctor",
    "--",
    "with_virtiofsd::",
];

/// The tests of mounts.
const IO_URING: [&str; 18] = [
    "test",
    "--package",
    "ashore-testkit",
    "--package",
    "ashore",
    "--test",
    "mount",
    "--test",
    "mount_sync",
    "--test",
    "mount_fsx",
    "--test",
    "conformance",
    "--",
    "--skip",
    "with_virtiofsd::",
    "--skip",
    "as_shipped::",
];

/// What a power cut leaves, at thousands of moments; two tests at a time, and what each found is printed.
const POWER_CUTS: [&str; 10] = [
    "test",
    "--package",
    "ashore-testkit",
    "--test",
    "power_cuts",
    "--",
    "--nocapture",
    "--test-threads=2",
    "--skip",
    "deliberate_faults::",
];

/// Tests that boot a guest stand in a module of this name. They get a rung of their own: they take minutes, and want
/// the processors for themselves.
const STEPS: [Step; 20] = [
    Step {
        name: "format",
        purpose: "the code is formatted",
        arguments: &["fmt", "--all", "--check"],
        needs: Needs::Toolchain,
        cfgs: &[],
    },
    Step {
        name: "lints",
        purpose: "clippy has nothing to say",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"],
        needs: Needs::Toolchain,
        cfgs: &[],
    },
    Step {
        name: "features",
        purpose: "the client builds without a transport too",
        arguments: &["check", "--package", "ashore-client", "--no-default-features"],
        needs: Needs::Toolchain,
        cfgs: &[],
    },
    Step {
        name: "tests",
        purpose: "unit, integration and documentation tests, without a guest or a peer",
        arguments: &[
            "test",
            "--workspace",
            "--",
            "--skip",
            "in_a_real_guest::",
            "--skip",
            "with_virtiofsd::",
            "--skip",
            "in_a_clean_root::",
            "--skip",
            "as_shipped::",
        ],
        needs: Needs::Toolchain,
        cfgs: &[],
    },
    Step {
        name: "io-uring",
        purpose: "mounts whose requests come through io_uring, by the same tests",
        arguments: &IO_URING,
        needs: Needs::IoUring,
        cfgs: &[],
    },
    Step {
        name: "package",
        purpose: "what users install: built, and installed in a clean Debian",
        arguments: &["test", "--package", "ashore-testkit", "--test", "package"],
        needs: Needs::CleanRoot,
        cfgs: &[],
    },
    Step {
        name: "peers",
        purpose: "client and doctor against virtiofsd, a server that is none of ours",
        arguments: &PEERS,
        needs: Needs::Peer,
        cfgs: &[],
    },
    Step {
        name: "shipped",
        purpose: "the program as it is shipped: nothing of the tests is in it, and what a request costs",
        arguments: &[
            "test",
            "--release",
            "--package",
            "ashore",
            "--test",
            "shipped",
            "--test",
            "cost",
            "--",
            "--nocapture",
        ],
        needs: Needs::Toolchain,
        cfgs: &[],
    },
    Step {
        name: "loom",
        purpose: "the barrier under every schedule of small cases",
        arguments: &BARRIER,
        needs: Needs::Toolchain,
        cfgs: &["loom"],
    },
    Step {
        name: "shuttle",
        purpose: "the barrier under a million random schedules",
        arguments: &BARRIER,
        needs: Needs::Toolchain,
        cfgs: &["shuttle"],
    },
    Step {
        name: "mutants-loom",
        purpose: "deliberate bugs of the barrier that loom must catch",
        arguments: &MUTANTS,
        needs: Needs::Toolchain,
        cfgs: &["loom", "mutants"],
    },
    Step {
        name: "mutants-shuttle",
        purpose: "deliberate bugs of the barrier that shuttle must catch",
        arguments: &MUTANTS,
        needs: Needs::Toolchain,
        cfgs: &["shuttle", "mutants"],
    },
    Step {
        name: "simulation",
        purpose: "client and server over a simulated host, 200,000 seeds, and the cases of a sync",
        arguments: &SIMULATION,
        needs: Needs::Toolchain,
        cfgs: &["shuttle"],
    },
    Step {
        name: "mutants-simulation",
        purpose: "deliberate bugs of client and server that the simulation must catch",
        arguments: &SIMULATION,
        needs: Needs::Toolchain,
        cfgs: &["shuttle", "mutants"],
    },
    Step {
        name: "mutants",
        purpose: "deliberate bugs of the barrier that real threads must catch",
        arguments: &MUTANTS,
        needs: Needs::Toolchain,
        cfgs: &["mutants"],
    },
    Step {
        name: "mutants-passthrough",
        purpose: "deliberate bugs of the host directory, each caught by the test that must",
        arguments: &[
            "test",
            "--package",
            "ashore-passthrough",
            "--test",
            "suite",
            "mutants::",
            "--",
            "--nocapture",
        ],
        needs: Needs::Toolchain,
        cfgs: &["mutants"],
    },
    Step {
        name: "mutants-server",
        purpose: "deliberate bugs of server and client, in memory and over a socket",
        arguments: &[
            "test",
            "--package",
            "ashore-testkit",
            "--test",
            "server_mutants",
            "--test",
            "client_mutants",
            "--",
            "--nocapture",
            "the_table_is_complete",
            "the_tests_pass",
            "every_mutant",
        ],
        needs: Needs::Toolchain,
        cfgs: &["mutants"],
    },
    Step {
        name: "power-cuts",
        purpose: "what a sync promised is there after a power cut, on ext4, XFS and btrfs",
        arguments: &POWER_CUTS,
        needs: Needs::Guest,
        cfgs: &[],
    },
    Step {
        name: "mutants-power-cuts",
        purpose: "deliberate bugs and faults that must show after a power cut",
        arguments: &[
            "test",
            "--package",
            "ashore-testkit",
            "--test",
            "power_cuts",
            "--test",
            "power_cut_mutants",
            "--",
            "--nocapture",
            "--test-threads=2",
            "deliberate_faults::",
            "every_mutant",
            "the_tests_pass",
        ],
        needs: Needs::Guest,
        cfgs: &["mutants"],
    },
    Step {
        name: "guests",
        purpose: "the same promises in real guests",
        arguments: &["test", "--package", "ashore-testkit", "--test", "guest_*", "--", "--test-threads", "2"],
        needs: Needs::GuestAndPeer,
        cfgs: &[],
    },
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these steps, all if none is named; `--list` names them
    #[arg(value_name = "STEP")]
    steps: Vec<String>,
    /// Kernel of the guests, for example 6.12, 6.19.10 or 7.2
    #[arg(long, value_name = "VERSION", default_value = DEFAULT_KERNEL)]
    kernel: String,
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Name the steps and run none
    #[arg(long)]
    list: bool,
    /// Try much more: 10,000,000 seeds, 20,000 states after a power cut; takes hours
    #[arg(long)]
    long: bool,
    /// Write what was counted into this file too
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// The steps that count what they have tried, and switch deliberate bugs on: the proof that syncs can be trusted.
const PROOF: [&str; 12] = [
    "loom",
    "shuttle",
    "mutants-loom",
    "mutants-shuttle",
    "simulation",
    "mutants-simulation",
    "mutants",
    "mutants-passthrough",
    "mutants-server",
    "shipped",
    "power-cuts",
    "mutants-power-cuts",
];

/// What `--long` tells the tests, by the environment.
const LONG: [(&str, &str); 2] = [("ASHORE_SEEDS", "10000000"), ("ASHORE_POWER_CUT_ROUNDS", "10")];

#[derive(clap::Args)]
pub(crate) struct ProofOptions {
    /// Try much more: 10,000,000 seeds, 20,000 states after a power cut; takes hours
    #[arg(long)]
    long: bool,
    /// Write what was counted into this file too
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// Runs the proof, and says on what.
pub(crate) fn prove(options: &ProofOptions) -> Result<ExitCode> {
    let steps = PROOF.iter().map(|step| (*step).to_owned()).collect();
    let (kernel, page) = (DEFAULT_KERNEL.to_owned(), options.page.clone());
    run(&Options { steps, kernel, keep_going: true, list: false, long: options.long, page })
}

#[derive(clap::Args)]
pub(crate) struct MutantsOptions {
    /// Write the list of deliberate bugs into docs/mutants.md, and run nothing
    #[arg(long)]
    write: bool,
}

/// Runs the steps that switch deliberate bugs on.
pub(crate) fn catch_mutants(options: &MutantsOptions) -> Result<ExitCode> {
    if options.write {
        return mutants::write().map(|()| ExitCode::SUCCESS);
    }
    let steps = mutants::STEPS.map(str::to_owned).into();
    let kernel = DEFAULT_KERNEL.to_owned();
    run(&Options { steps, kernel, keep_going: true, list: false, long: false, page: None })
}

/// How the page with the figures begins.
const PAGE: &str = "\
# The proof, and what it counted

Written by `cargo xtask proof --page docs/proof.md`. How each step works stands in [testing.md](testing.md). Each deliberate bug is
switched on in a build of its own; the step and the test that caught it stand beside it. Measured on ";

/// How a step went.
struct Outcome {
    name: &'static str,
    succeeded: bool,
    passed: usize,
    failed: usize,
    time: Duration,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for step in &STEPS {
            println!("{:15} {}", step.name, step.purpose);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = Interrupt::catch()?;
    let mut outcomes = Vec::new();
    let mut figures = Figures::default();
    let origin = origin();
    println!("{origin}");
    let chosen = chosen(&options.steps)?;
    for step in &chosen {
        let outcome = step.run(options, &mut figures)?;
        let succeeded = outcome.succeeded;
        outcomes.push(outcome);
        if interrupt.is_noted() {
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
        if !succeeded && !options.keep_going {
            break;
        }
    }
    let steps = summary(&outcomes, &chosen[outcomes.len()..]);
    let has_run = |name: &str| outcomes.iter().any(|outcome| outcome.name == name && outcome.succeeded);
    let report = figures.report(options.long, has_run);
    println!("\n{steps}{}", report.text);
    report.missed.iter().for_each(|missed| println!("MISSED {missed}"));
    figures.again.iter().for_each(|again| println!("AGAIN {again}"));
    println!("{origin}");
    if let Some(page) = &options.page {
        let text = format!("{PAGE}{origin}.\n\n```text\n{steps}{}```\n", report.text);
        std::fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))?;
    }
    let good = report.missed.is_empty() && outcomes.iter().all(|outcome| outcome.succeeded);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Step>> {
    if names.is_empty() {
        return Ok(STEPS.iter().collect());
    }
    let find = |name: &String| STEPS.iter().find(|step| step.name == name);
    names
        .iter()
        .map(|name| {
            find(name).ok_or_else(|| anyhow!("there is no step {name}; `cargo xtask test --list` names them"))
        })
        .collect()
}

impl Step {
    fn run(&self, options: &Options, figures: &mut Figures) -> Result<Outcome> {
        println!("\n== {}: {}", self.name, self.purpose);
        let start = Instant::now();
        match self.needs {
            Needs::Toolchain => {}
            Needs::Guest => setup::ensure(&options.kernel)?,
            Needs::GuestAndPeer => {
                setup::ensure(&options.kernel)?;
                setup::ensure(FULL_KERNEL)?;
                setup::ensure_peer()?;
            }
            Needs::CleanRoot => drop(setup::ensure_clean_root()?),
            Needs::Peer => drop(setup::ensure_peer()?),
            Needs::IoUring => {}
        }
        let offered =
            matches!(self.needs, Needs::IoUring).then(io_uring::Offered::by_the_kernel).transpose()?;
        let (succeeded, passed, failed) = self.cargo(options, figures)?;
        drop(offered);
        // A step that fails without a failed test did not get as far as its tests.
        let failed = if succeeded { failed } else { failed.max(1) };
        let time = start.elapsed();
        println!("== {}: {}, {:.1} s", self.name, verdict(succeeded), time.as_secs_f64());
        Ok(Outcome { name: self.name, succeeded, passed, failed, time })
    }

    /// Output is passed on line by line as it comes, and the lines that sum up tests are added.
    fn cargo(&self, options: &Options, figures: &mut Figures) -> Result<(bool, usize, usize)> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let (command, rest) = self.arguments.split_at(1);
        cargo.args(command).stdout(Stdio::piped());
        if options.keep_going && command == ["test"] {
            cargo.arg("--no-fail-fast");
        }
        cargo.args(rest).env(KERNEL_VARIABLE, &options.kernel);
        if matches!(self.needs, Needs::IoUring) {
            cargo.env(io_uring::VARIABLE, "1");
        }
        cargo.envs(LONG.iter().copied().filter(|_| options.long));
        if !self.cfgs.is_empty() {
            let flags: Vec<_> = self.cfgs.iter().map(|cfg| format!("--cfg {cfg}")).collect();
            let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
            // Other flags are another build of everything; in a folder of its own it does not drive out the usual one.
            cargo.env("RUSTFLAGS", flags.join(" ")).env("CARGO_TARGET_DIR", base.join(self.cfgs.join("-")));
        }
        let mut child = cargo.spawn().context("cannot start cargo: is it in PATH?")?;
        let output = child.stdout.take().context("the step's output was not captured")?;
        let (mut passed, mut failed) = (0, 0);
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            figures.read(self.name, &line);
            if let Some(counts) = counts(&line) {
                passed += counts.0;
                failed += counts.1;
            }
        }
        Ok((child.wait()?.success(), passed, failed))
    }
}

/// What the figures are of: the commit, and the machine.
pub(crate) fn origin() -> String {
    let output = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = output("git", &["describe", "--always", "--dirty", "--abbrev=12"]);
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "commit {}, {}, {processors} processors of {}, {}",
        commit.as_deref().unwrap_or("unknown"),
        output("uname", &["-sr"]).as_deref().unwrap_or("unknown system"),
        model.as_deref().unwrap_or("unknown kind"),
        output("date", &["-I"]).as_deref().unwrap_or("unknown day"),
    )
}

/// From `test result: ok. 12 passed; 1 failed; ...`.
fn counts(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |unit: &str| {
        let part = rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(unit))?;
        part.trim().parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

/// A line for each step.
fn summary(outcomes: &[Outcome], not_run: &[&Step]) -> String {
    let mut text = format!("{:19} {:6} {:>6} {:>6} {:>9}\n", "step", "", "passed", "failed", "time");
    for outcome in outcomes {
        let seconds = format!("{:.1} s", outcome.time.as_secs_f64());
        let Outcome { name, passed, failed, .. } = outcome;
        text += &format!("{name:19} {:6} {passed:>6} {failed:>6} {seconds:>9}\n", verdict(outcome.succeeded));
    }
    for step in not_run {
        text += &format!("{:19} not run\n", step.name);
    }
    let sum = |count: fn(&Outcome) -> usize| outcomes.iter().map(count).sum::<usize>();
    text +=
        &format!("\n{} passed, {} failed\n", sum(|outcome| outcome.passed), sum(|outcome| outcome.failed));
    text
}

fn verdict(succeeded: bool) -> &'static str {
    if succeeded { "ok" } else { "FAILED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_sums_up_is_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test reads ... ok"), None);
    }

    #[test]
    fn an_unknown_step_is_named() {
        let error = chosen(&["lint".into()]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("no step lint"));
    }
}
