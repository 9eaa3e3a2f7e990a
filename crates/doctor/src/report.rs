//! What was found: a table to read, JSON to keep, an exit code to act on.

use std::fmt::{self, Write as _};

use crate::catalog::Check;

/// Columns of the table, so that it fits any terminal.
const WIDTH: usize = 80;

/// The six promises of `docs/semantics.md`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Promise {
    /// When a sync succeeds, every earlier change is stable.
    Durable,
    /// What could not be made stable is said, to each client.
    Truthful,
    /// A sync waits only for what is earlier.
    Bounded,
    /// Nobody else waits because of a sync.
    Unobstructed,
    /// What weakens the others is said aloud.
    Aloud,
    /// Leaving is a sync too.
    LastCall,
}

impl Promise {
    /// All of them, in their order.
    pub const ALL: [Promise; 6] = [
        Promise::Durable,
        Promise::Truthful,
        Promise::Bounded,
        Promise::Unobstructed,
        Promise::Aloud,
        Promise::LastCall,
    ];

    /// `P1` to `P6`.
    pub fn number(self) -> &'static str {
        ["P1", "P2", "P3", "P4", "P5", "P6"][self as usize]
    }

    /// In a few words.
    pub fn words(self) -> &'static str {
        [
            "Durable: after a sync, every earlier change is stable",
            "Truthful: what could not be made stable is said",
            "Bounded: a sync waits only for what is earlier",
            "Unobstructed: nobody else waits for a sync",
            "No silent downgrade: weakness is said aloud",
            "Last call: leaving is a sync too",
        ][self as usize]
    }
}

/// How a check, or a promise, came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As promised.
    Kept,
    /// Not as promised.
    Broken,
    /// Could not be told, from here or this time.
    Unknown,
}

impl Verdict {
    /// As it stands in the table.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::Broken => "BROKEN",
            Verdict::Unknown => "could not tell",
        }
    }

    /// As it stands in JSON.
    fn key(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::Broken => "broken",
            Verdict::Unknown => "could_not_tell",
        }
    }
}

/// What one check saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// What that means for the promise.
    pub verdict: Verdict,
    /// Concluded from time or from what is known of a version, not seen itself.
    pub inferred: bool,
    /// In words.
    pub saw: String,
    /// What was done, where that is not what the catalog says.
    pub did: Option<&'static str>,
    /// Nothing is wrong, and somebody may want to know all the same.
    pub note: Option<String>,
}

impl Seen {
    pub(crate) fn kept(saw: impl Into<String>) -> Seen {
        Seen { verdict: Verdict::Kept, inferred: false, saw: saw.into(), did: None, note: None }
    }

    pub(crate) fn broken(saw: impl Into<String>) -> Seen {
        Seen { verdict: Verdict::Broken, ..Seen::kept(saw) }
    }

    pub(crate) fn unknown(saw: impl Into<String>) -> Seen {
        Seen { verdict: Verdict::Unknown, ..Seen::kept(saw) }
    }

    pub(crate) fn inferred(self) -> Seen {
        Seen { inferred: true, ..self }
    }

    pub(crate) fn with_note(self, note: impl Into<String>) -> Seen {
        Seen { note: Some(note.into()), ..self }
    }
}

/// One check and what it saw.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The check.
    pub check: &'static Check,
    /// What it saw.
    pub seen: Seen,
}

impl Finding {
    /// What was done.
    pub fn did(&self) -> &'static str {
        self.seen.did.unwrap_or(self.check.did)
    }
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who was examined.
    pub subject: String,
    /// What was found, in the order of the promises.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What is to be said of a promise: broken if one check says so, kept if those that it stands on say so.
    pub fn verdict(&self, promise: Promise) -> Verdict {
        let of_it = || self.findings.iter().filter(move |finding| finding.check.promise == promise);
        let any = |verdict| of_it().any(|finding| finding.seen.verdict == verdict);
        let essential = || of_it().filter(|finding| finding.check.essential);
        if any(Verdict::Broken) {
            Verdict::Broken
        } else if any(Verdict::Kept) && essential().all(|finding| finding.seen.verdict == Verdict::Kept) {
            Verdict::Kept
        } else {
            Verdict::Unknown
        }
    }

    /// 0: all promises are kept. 1: at least one is broken. 2: none is broken, and of at least one nothing can be told.
    pub fn exit_code(&self) -> u8 {
        let verdicts = Promise::ALL.map(|promise| self.verdict(promise));
        match verdicts {
            _ if verdicts.contains(&Verdict::Broken) => 1,
            _ if verdicts.contains(&Verdict::Unknown) => 2,
            _ => 0,
        }
    }

    fn of(&self, promise: Promise) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.check.promise == promise)
    }

    fn count(&self, verdict: Verdict) -> usize {
        Promise::ALL.iter().filter(|promise| self.verdict(**promise) == verdict).count()
    }

    /// One object.
    pub fn to_json(&self) -> String {
        let promise = |promise: &Promise| {
            let checks: Vec<_> = self.of(*promise).map(finding_to_json).collect();
            format!(
                "{{\"promise\":{},\"words\":{},\"verdict\":{},\"checks\":[\n      {}\n    ]}}",
                text(promise.number()),
                text(promise.words()),
                text(self.verdict(*promise).key()),
                checks.join(",\n      ")
            )
        };
        let promises: Vec<_> = Promise::ALL.iter().map(promise).collect();
        format!(
            "{{\n  \"subject\": {},\n  \"exit_code\": {},\n  \"promises\": [\n    {}\n  ]\n}}\n",
            text(&self.subject),
            self.exit_code(),
            promises.join(",\n    ")
        )
    }
}

fn finding_to_json(finding: &Finding) -> String {
    let Finding { check, seen } = finding;
    let broken = seen.verdict == Verdict::Broken;
    let when_broken = |words: &str| if broken { text(words) } else { "null".to_owned() };
    format!(
        "{{\"check\":{},\"title\":{},\"verdict\":{},\"inferred\":{},\"did\":{},\"saw\":{},\"means\":{},\
         \"repair\":{},\"note\":{}}}",
        text(check.id),
        text(check.title),
        text(seen.verdict.key()),
        seen.inferred,
        text(finding.did()),
        text(&seen.saw),
        when_broken(check.means),
        when_broken(check.repair),
        seen.note.as_deref().map_or_else(|| "null".to_owned(), text),
    )
}

fn text(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => _ = write!(quoted, "\\u{:04x}", u32::from(control)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in wrapped(&format!("Examined: {}", self.subject), WIDTH) {
            writeln!(f, "{line}")?;
        }
        for promise in Promise::ALL {
            writeln!(f)?;
            let words = format!("{} {}", promise.number(), promise.words());
            writeln!(f, "{}", row(&words, self.verdict(promise).words()))?;
            if self.of(promise).next().is_none() {
                writeln!(f, "   nothing of it was examined")?;
            }
            for finding in self.of(promise) {
                writeln!(f, "{}", row(&format!("   {}", finding.check.title), &verdict_of(&finding.seen)))?;
            }
        }
        for finding in self.findings.iter().filter(|finding| finding.seen.verdict == Verdict::Broken) {
            write_broken(f, finding)?;
        }
        self.write_unknown(f)?;
        self.write_notes(f)?;
        writeln!(f, "\n{}", self.sum())
    }
}

impl Report {
    fn write_unknown(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown: Vec<_> =
            self.findings.iter().filter(|finding| finding.seen.verdict == Verdict::Unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nCould not be told:")?;
        let mut told: Vec<&str> = Vec::new();
        for finding in &unknown {
            let why = finding.seen.saw.as_str();
            if told.contains(&why) {
                continue;
            }
            told.push(why);
            let same = unknown.iter().filter(|other| other.seen.saw == why);
            let titles: Vec<_> = same.map(|other| other.check.title).collect();
            write_paragraph(f, "-", &format!("{}: {why}", titles.join("; ")))?;
        }
        Ok(())
    }

    fn write_notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notes: Vec<_> = self.findings.iter().filter_map(|finding| finding.seen.note.as_deref()).collect();
        if !notes.is_empty() {
            writeln!(f, "\nWorth knowing:")?;
        }
        notes.iter().try_for_each(|note| write_paragraph(f, "-", note))
    }

    fn sum(&self) -> String {
        let (kept, broken, unknown) =
            (self.count(Verdict::Kept), self.count(Verdict::Broken), self.count(Verdict::Unknown));
        format!("6 promises: {kept} kept, {broken} broken, {unknown} could not be told.")
    }
}

fn verdict_of(seen: &Seen) -> String {
    let inferred = if seen.inferred && seen.verdict != Verdict::Unknown { " (inferred)" } else { "" };
    format!("{}{inferred}", seen.verdict.words())
}

/// Left and right end of a line.
fn row(left: &str, right: &str) -> String {
    let space = WIDTH.saturating_sub(left.chars().count() + right.chars().count()).max(1);
    format!("{left}{:space$}{right}", "")
}

fn write_broken(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    let Finding { check, seen } = finding;
    writeln!(f, "\n{} {} is BROKEN  [{}]", check.promise.number(), check.title, check.id)?;
    write_paragraph(f, "done: ", finding.did())?;
    write_paragraph(f, "seen: ", &seen.saw)?;
    write_paragraph(f, "means:", check.means)?;
    write_paragraph(f, "do:   ", check.repair)
}

fn write_paragraph(f: &mut fmt::Formatter<'_>, head: &str, words: &str) -> fmt::Result {
    let indent = head.chars().count() + 3;
    let lines = wrapped(words, WIDTH - indent);
    for (index, line) in lines.iter().enumerate() {
        match index {
            0 => writeln!(f, "  {head} {line}")?,
            _ => writeln!(f, "{:indent$}{line}", "")?,
        }
    }
    Ok(())
}

/// Broken into lines at blanks. A word that is longer than a line gets one of its own.
fn wrapped(words: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Bytes as people say them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..0x10_0000 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    fn report(verdict: impl Fn(&Check) -> Verdict) -> Report {
        let finding = |check: &'static Check| Finding {
            check,
            seen: Seen {
                verdict: verdict(check),
                ..Seen::kept("it was \"seen\" in a sentence of some length")
            },
        };
        Report { subject: "a server".into(), findings: catalog::CHECKS.iter().map(finding).collect() }
    }

    #[test]
    fn exit_codes_are_those_of_the_worst_promise() {
        assert_eq!(report(|_| Verdict::Kept).exit_code(), 0);
        assert_eq!(report(|_| Verdict::Unknown).exit_code(), 2);
        let one_broken =
            |check: &Check| if check.id == "destroy" { Verdict::Broken } else { Verdict::Unknown };
        assert_eq!(report(one_broken).exit_code(), 1);
        let side_unknown = |check: &Check| if check.essential { Verdict::Kept } else { Verdict::Unknown };
        assert_eq!(report(side_unknown).exit_code(), 0, "what only root can see does not spoil the rest");
        let main_unknown = |check: &Check| if check.essential { Verdict::Unknown } else { Verdict::Kept };
        assert_eq!(report(main_unknown).exit_code(), 2, "a promise does not stand on side issues");
    }

    #[test]
    fn the_table_fits_a_terminal() {
        for verdict in [Verdict::Kept, Verdict::Broken, Verdict::Unknown] {
            for line in report(|_| verdict).to_string().lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
        }
    }

    #[test]
    fn what_is_broken_says_what_to_do_and_what_is_kept_does_not() {
        let check = catalog::find("destroy");
        let repair = check.repair.split_whitespace().next().unwrap_or_default();
        let broken = report(|_| Verdict::Broken).to_string();
        assert!(broken.contains("  do:    ") && broken.contains(repair));
        assert!(!report(|_| Verdict::Kept).to_string().contains("  do:    "));
    }

    #[test]
    fn quotes_and_line_ends_do_not_break_the_json() {
        let json = report(|_| Verdict::Broken).to_json();
        assert!(json.contains(r#"it was \"seen\""#));
        assert_eq!(text("a\n\u{1}\\"), "\"a\\u000a\\u0001\\\\\"");
    }
}
