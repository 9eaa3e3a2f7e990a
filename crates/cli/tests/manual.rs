//! Man pages and completions as they are shipped.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;
use std::process::Command;

fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut ashore = Command::new(env!("CARGO_BIN_EXE_ashore"));
    assert!(ashore.arg("manual").arg(directory.path()).status().unwrap().success());
    directory
}

/// As a terminal shows it, without a complaint.
fn shown(page: &Path) -> String {
    let mut man = Command::new("man");
    man.args(["--warnings=w,mac", "--local-file"]).arg(page);
    let output = man.env("MANWIDTH", "100").env("LC_ALL", "C").output();
    let output = output.expect("man is not installed: run `cargo xtask setup` as root");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
    String::from_utf8(output.stdout).unwrap().replace('\u{8}', "")
}

#[test]
fn the_doctor_s_page_has_every_check_and_how_to_repair_it() {
    let directory = written();
    let page = shown(&directory.path().join("man1/ashore-doctor.1"));
    let words = |text: &str| text.split_whitespace().collect::<String>().replace('-', "");
    let page = words(&page);
    for check in ashore_doctor::CHECKS {
        for part in [check.id, check.title, check.did, check.means, check.repair] {
            assert!(page.contains(&words(part)), "{}: {part}", check.id);
        }
    }
}

#[test]
fn every_command_has_a_page_that_man_shows() {
    let directory = written();
    let help = Command::new(env!("CARGO_BIN_EXE_ashore")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.map_while(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let mut pages = vec!["man1/ashore.1".to_owned(), "man7/ashore-sync.7".to_owned()];
    pages.extend(commands.map(|command| format!("man1/ashore-{command}.1")));
    assert!(pages.len() > 10, "{pages:?}");
    for page in pages {
        assert!(shown(&directory.path().join(&page)).contains("NAME"), "{page}");
    }
}

#[test]
fn completions_are_written_for_three_shells_and_bash_understands_its_own() {
    let directory = written();
    let folder = directory.path().join("completions");
    for name in ["ashore.bash", "_ashore", "ashore.fish"] {
        assert!(fs::read_to_string(folder.join(name)).unwrap().contains("doctor"), "{name}");
    }
    let output = Command::new("bash").arg("-n").arg(folder.join("ashore.bash")).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // As a person who has typed `ashore doc` and presses the key.
    let script = format!(
        "source {}/ashore.bash; COMP_WORDS=(ashore doc); COMP_CWORD=1; _ashore ashore doc ashore; echo ${{COMPREPLY[@]}}",
        folder.display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "doctor");
}
