//! `cargo xtask scoreboard`: the same questions to our server and to others, and a page with the answers.
//!
//! Nothing here judges: the doctor does, the power cuts do, and a search for blocks in the disk's image.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ashore_guest::DEFAULT_KERNEL;
use tempfile::TempDir;

use crate::setup;
use crate::test::origin;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// States after a power cut, for each way, file system and server
    #[arg(long, default_value_t = 200)]
    states: usize,
    /// The page to write
    #[arg(long, default_value = "docs/scoreboard.md")]
    output: PathBuf,
}

/// A server over vhost-user, by what the table calls it and by its command line.
struct Server {
    name: &'static str,
    command: &'static str,
}

const OURS: Server =
    Server { name: "ashore serve", command: "ashore serve --socket-path {socket} --shared-dir {dir}" };
const THEIRS: &str = "virtiofsd --sandbox none --socket-path {socket} --shared-dir {dir}";
const SERVERS: [Server; 4] = [
    OURS,
    Server { name: "virtiofsd", command: THEIRS },
    Server {
        name: "with `--thread-pool-size 8`",
        command: "virtiofsd --sandbox none --socket-path {socket} --shared-dir {dir} --thread-pool-size 8",
    },
    Server {
        name: "with `--cache always --writeback`",
        command: "virtiofsd --sandbox none --socket-path {socket} --shared-dir {dir} --cache always --writeback",
    },
];

/// Ways of the power cuts, and what a server needs for each.
const WAYS: [(&str, &str); 3] = [("client", " --writeback"), ("client-uncached", ""), ("guest", "")];
const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// File systems that are mounted: `{dir}` at `{mount}`. The program runs until it is unmounted, or in the background.
const MOUNTED: [Server; 4] = [
    Server { name: "ext4 itself", command: "mount --bind {dir} {mount}" },
    Server { name: "ashore mount", command: "ashore mount {dir} {mount}" },
    Server { name: "bindfs (libfuse)", command: "bindfs {dir} {mount}" },
    Server {
        name: "fuse-overlayfs (libfuse)",
        command: "fuse-overlayfs -o lowerdir={dir}.low,upperdir={dir},workdir={dir}.work {mount}",
    },
];
const MOUNT_PATIENCE: Duration = Duration::from_secs(10);
const TRIALS: usize = 10;

/// Set in the process that has mounts of its own.
const PRIVATE: &str = "ASHORE_SCOREBOARD_PRIVATE";

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if env::var_os(PRIVATE).is_some() {
        return write(options).map(|()| ExitCode::SUCCESS);
    }
    // Mounts in a name space that goes with the process, whatever becomes of it.
    let mut again = Command::new("unshare");
    again
        .args(["--mount", "--propagation", "private", "--"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1));
    let status = again.env(PRIVATE, "1").status().context("cannot start unshare: install util-linux")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(options: &Options) -> Result<()> {
    setup::ensure(DEFAULT_KERNEL)?;
    let peer = setup::ensure_peer()?;
    setup::ensure_programs(&[("bindfs", "bindfs"), ("fuse-overlayfs", "fuse-overlayfs")])?;
    let ours = built()?;
    // Commands are written in the page as a user would type them, so both programs have to be found.
    let folders = [&ours, &peer].map(|program| program.parent().unwrap_or(Path::new("/")).to_owned());
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(folders.into_iter().chain(env::split_paths(&path)))?;
    let board = Board { path, scratch: tempfile::tempdir()? };

    let mut page = format!(
        "# Scoreboard\n\nWho keeps which clause of the [six promises](semantics.md), found out with the same tools. Written by\n\
         `cargo xtask scoreboard`: {}.\n\n{}",
        origin(),
        board.served()?
    );
    page += &board.cut(options.states)?;
    page += &board.mounted()?;
    fs::write(&options.output, page).with_context(|| format!("cannot write {}", options.output.display()))?;
    println!("{}", options.output.display());
    Ok(())
}

/// The program as it is shipped.
fn built() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if !cargo.args(["build", "--release", "--package", "ashore"]).status()?.success() {
        bail!("the program could not be built");
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Ok(fs::canonicalize(target.join("release/ashore"))?)
}

struct Board {
    path: std::ffi::OsString,
    /// For what the tools leave behind.
    scratch: TempDir,
}

/// One check of the doctor.
struct Verdict {
    check: String,
    promise: String,
    title: String,
    verdict: String,
}

impl Board {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path).env("TMPDIR", self.scratch.path());
        command
    }

    /// The doctor's findings; its exit code says the same in short.
    fn doctor(&self, arguments: &[&str]) -> Result<Vec<Verdict>> {
        let output = self.command("ashore").arg("doctor").arg("--json").args(arguments).output()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the doctor said: {}", String::from_utf8_lossy(&output.stderr)))?;
        let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let promises = report["promises"].as_array().context("a report has promises")?;
        let checks = promises.iter().flat_map(|promise| {
            let name = text(promise, "promise");
            promise["checks"].as_array().into_iter().flatten().map(move |check| (name.clone(), check))
        });
        Ok(checks
            .map(|(promise, check)| Verdict {
                check: text(check, "check"),
                promise,
                title: text(check, "title"),
                verdict: text(check, "verdict").replace('_', " "),
            })
            .collect())
    }

    /// A table of what the doctor found, a column for each.
    fn findings(columns: &[(&str, Vec<Verdict>)]) -> String {
        let names = columns.iter().map(|(name, _)| format!(" {name} |")).collect::<String>();
        let mut table = format!("| promise | check |{names}\n|---|---|{}\n", "---|".repeat(columns.len()));
        let mut seen = Vec::new();
        for row in columns.iter().flat_map(|(_, findings)| findings) {
            if seen.contains(&&row.check) {
                continue;
            }
            seen.push(&row.check);
            let _ = write!(table, "| {} | [{}](doctor.md#{}) |", row.promise, row.title, row.check);
            for (_, findings) in columns {
                let found = findings.iter().find(|finding| finding.check == row.check);
                let _ = match found.map(|found| found.verdict.as_str()) {
                    Some("broken") => write!(table, " **broken** |"),
                    Some(verdict) => write!(table, " {verdict} |"),
                    None => write!(table, " - |"),
                };
            }
            table.push('\n');
        }
        table
    }

    fn served(&self) -> Result<String> {
        let mut columns = Vec::new();
        let mut commands = String::new();
        for server in SERVERS {
            println!("doctor: {}", server.name);
            columns.push((server.name, self.doctor(&["--command", server.command])?));
            let _ = writeln!(commands, "    ashore doctor --command '{}'", server.command);
        }
        let table = Board::findings(&columns);
        Ok(format!("## Servers over vhost-user\n\n{table}\nA column each of\n\n{commands}\n"))
    }

    /// Power cuts below each server.
    fn cut(&self, states: usize) -> Result<String> {
        let mut page = String::from(
            "## After a power cut\n\nStates that break a promise, of those that were built. [How](testing.md#power-cuts)\n\n\
             | way | file system | ashore serve | virtiofsd |\n|---|---|---|---|\n",
        );
        for (way, needs) in WAYS {
            for kind in FILE_SYSTEMS {
                let _ = write!(page, "| {way} | {kind} |");
                for server in [None, Some(format!("{THEIRS}{needs}"))] {
                    let (states, broken) = self.cut_one(way, kind, server.as_deref(), states)?;
                    println!("power cuts: {way} on {kind}, {server:?}: {broken} of {states} broken");
                    let _ = match broken {
                        0 => write!(page, " 0 of {states} |"),
                        _ => write!(page, " **{broken}** of {states} |"),
                    };
                }
                page.push('\n');
            }
        }
        let _ = write!(
            page,
            "\n    cargo run --release --package ashore-testkit --example power_cuts -- \\\n        \
             --states {states} --way WAY --file-system KIND\n    \
             ASHORE_TEST_SERVER='{THEIRS}' \\\n        \
             cargo run ...      # the same with virtiofsd; with --writeback for `client`\n\n"
        );
        Ok(page)
    }

    fn cut_one(&self, way: &str, kind: &str, server: Option<&str>, states: usize) -> Result<(usize, usize)> {
        let mut cargo = self.command("cargo");
        cargo.args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "ashore-testkit",
            "--example",
            "power_cuts",
            "--",
        ]);
        cargo.args(["--states", &states.to_string(), "--way", way, "--file-system", kind]);
        cargo.envs(server.map(|command| ("ASHORE_TEST_SERVER", command)));
        let output = cargo.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "2 recordings, 200 states, 0 broken, 14 s"
        let number = |unit: &str| -> Option<usize> {
            let line = text.lines().rev().find(|line| line.contains(" recordings, "))?;
            line.split(", ").find_map(|part| part.strip_suffix(unit))?.trim().parse().ok()
        };
        number(" states")
            .zip(number(" broken"))
            .with_context(|| format!("{way} on {kind}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// File systems mounted over ext4 on an image file.
    fn mounted(&self) -> Result<String> {
        let mut columns = Vec::new();
        let mut blocks = String::from("| - | 256 KiB are on the disk when syncfs(2) has succeeded, of ten |");
        let mut commands = String::new();
        for server in MOUNTED {
            println!("mounted: {}", server.name);
            let stage = Stage::new(self, &server)?;
            let mount = stage.path("mount");
            let found =
                (0..TRIALS).filter(|trial| stage.is_on_disk_after_syncfs(*trial).unwrap_or(false)).count();
            let _ =
                if found < TRIALS { write!(blocks, " **{found}** |") } else { write!(blocks, " {found} |") };
            columns.push((server.name, self.doctor(&["--path", &mount.to_string_lossy()])?));
            let _ = writeln!(commands, "    {}", server.command);
        }
        let table = Board::findings(&columns);
        Ok(format!(
            "## Mounted on this machine\n\nWhat an application sees, above ext4 on an image file. \
             Beyond its own kernel the doctor cannot look, so the last\nline counts blocks in the image.\n\n{table}{blocks}\n\n\
             A column each of\n\n{commands}\nand of each\n\n    ashore doctor --path {{mount}}\n"
        ))
    }
}

/// ext4 on an image file, and something mounted over it; all of it goes when this is dropped.
struct Stage {
    folder: TempDir,
    program: Option<Child>,
}

impl Stage {
    fn new(board: &Board, server: &Server) -> Result<Stage> {
        let mut stage = Stage { folder: tempfile::tempdir()?, program: None };
        let image = stage.path("image");
        fs::File::create(&image)?.set_len(900 << 20)?;
        for folder in ["base", "mount"] {
            fs::create_dir(stage.path(folder))?;
        }
        succeed(board.command("mkfs.ext4").arg("-q").arg(&image))?;
        succeed(board.command("mount").args(["-o", "loop"]).arg(&image).arg(stage.path("base")))?;
        for folder in ["dir", "dir.low", "dir.work"] {
            fs::create_dir(stage.path("base").join(folder))?;
        }
        let (dir, mount) = (stage.path("base").join("dir"), stage.path("mount"));
        let line = server.command.replace("{dir}", &dir.to_string_lossy());
        let line = line.replace("{mount}", &mount.to_string_lossy());
        let mut words = line.split(' ');
        let mut command = board.command(words.next().context("a command has a program")?);
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
        stage.program = Some(command.spawn().with_context(|| format!("cannot start {line}"))?);
        let begun = Instant::now();
        while !is_mount(&mount)? {
            if begun.elapsed() > MOUNT_PATIENCE {
                bail!("nothing was mounted by {line}");
            }
            sleep(Duration::from_millis(20));
        }
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes blocks that cannot be mistaken, calls syncfs(2), and looks for them in the image.
    fn is_on_disk_after_syncfs(&self, trial: usize) -> Result<bool> {
        let mark = format!("scoreboard {} {trial} ", std::process::id());
        let block = mark.repeat(4096 / mark.len() + 1)[..4096].to_owned();
        let path = self.path("mount").join(format!("file{trial}"));
        // Open until the end: ext4 writes back by itself what was cut off, written again and closed.
        let mut file = fs::File::create(&path)?;
        file.write_all(block.repeat(64).as_bytes())?;
        rustix::fs::syncfs(&file)?;
        let image = fs::read(self.path("image"))?;
        let found = image.chunks_exact(4096).filter(|chunk| *chunk == block.as_bytes()).count();
        Ok(found >= 64)
    }
}

fn is_mount(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Drop for Stage {
    fn drop(&mut self) {
        let unmount = |name: &str| {
            Command::new("umount")
                .arg(self.folder.path().join(name))
                .status()
                .is_ok_and(|status| status.success())
        };
        unmount("mount");
        if let Some(program) = &mut self.program {
            _ = program.wait();
        }
        let begun = Instant::now();
        while !unmount("base") && begun.elapsed() < MOUNT_PATIENCE {
            sleep(Duration::from_millis(200));
        }
    }
}
