//! Man pages and completions, made from what the program says of itself: no option and no check can be missing.
//!
//! ```text
//!   DIR/man1/ashore.1, ashore-serve.1 ...   every command, from its arguments
//!   DIR/man1/ashore-doctor.1                and every check, from the doctor's catalog
//!   DIR/man7/ashore-sync.7                  what sync means here: docs/man/ashore-sync.7
//!   DIR/completions/                        for bash, zsh and fish
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ashore_doctor::{CHECKS, Promise};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const SYNC: &str = include_str!("../../../docs/man/ashore-sync.7");

#[derive(Args)]
pub(crate) struct Arguments {
    /// Directory to write to; it is made if it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Writes all of it. Fails if the directory cannot be written.
pub(crate) fn manual(arguments: &Arguments) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let mut program = crate::Arguments::command().disable_help_subcommand(true);
    program.build();
    write(directory, "man1/ashore.1", &page(&program)?)?;
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let mut page = page(command)?;
        if command.get_name() == "doctor" {
            page.extend(checks()?);
        }
        page.extend(see_also()?);
        write(directory, &format!("man1/ashore-{}.1", command.get_name()), &page)?;
    }
    write(directory, "man7/ashore-sync.7", SYNC.as_bytes())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let folder = directory.join("completions");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        clap_complete::generate_to(shell, &mut program, "ashore", &folder)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let folder = path.parent().unwrap_or(directory);
    let written = fs::create_dir_all(folder).and_then(|()| fs::File::create(&path)?.write_all(content));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).manual("Ashore").render(&mut page)?;
    Ok(page)
}

/// Every check of the doctor: what it does, what it means, how to repair it.
fn checks() -> Result<Vec<u8>> {
    let mut roff = Roff::new();
    for promise in Promise::ALL {
        let words = format!("{} {}", promise.number(), promise.words());
        roff.control("SH", [words.to_uppercase().as_str()]);
        for check in CHECKS.iter().filter(|check| check.promise == promise) {
            roff.control("TP", []).text([bold(check.id), roman(format!(": {}", check.title))]);
            let paragraphs = [
                ("What is done: ", check.did),
                ("If it is broken: ", check.means),
                ("To do: ", check.repair),
            ];
            for (number, (head, words)) in paragraphs.into_iter().enumerate() {
                if number > 0 {
                    roff.control("sp", []);
                }
                roff.text([roman(format!("{head}{}", sentence(words)))]);
            }
        }
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, words) in [
        ("0", "All six promises are kept."),
        ("1", "At least one is broken, or nothing could be examined."),
        ("2", "None is broken, and of at least one it could not be told."),
    ] {
        roff.control("TP", []).text([bold(code)]).text([roman(words)]);
    }
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(text)
}

fn sentence(words: &str) -> String {
    if words.ends_with('.') { words.to_owned() } else { format!("{words}.") }
}

fn see_also() -> Result<Vec<u8>> {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("ashore"), roman("(1), "), bold("ashore-sync"), roman("(7)")]);
    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(text)
}
