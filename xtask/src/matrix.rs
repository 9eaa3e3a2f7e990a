//! `cargo xtask kernels`: what guests' kernels do on sync, measured, as columns of the table in docs/guest-kernels.md.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ashore_guest::kernel::numbers;

use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kernels to measure, for example 6.12, 6.19.11 or 7.2. Columns of others stay as they are
    #[arg(required = true, value_name = "VERSION")]
    kernels: Vec<String>,
    /// Runs of each case
    #[arg(long, default_value_t = 5)]
    runs: u64,
    /// The page with the table
    #[arg(long, default_value = "docs/guest-kernels.md")]
    page: PathBuf,
}

/// The line that begins the table, and that with the day and the runs of each column.
const HEAD: &str = "| write-back cache | case |";
const MEASURED: &str = "| - | measured, runs a cell |";

pub(crate) fn run(options: &Options) -> Result<()> {
    let page = fs::read_to_string(&options.page)
        .with_context(|| format!("cannot read {}", options.page.display()))?;
    let mut table = Table::parse(&page)?;
    for kernel in &options.kernels {
        setup::ensure(kernel)?;
        println!("{kernel} ...");
        table.measure(kernel, options.runs)?;
        // After each, so that an interruption costs one.
        fs::write(&options.page, table.written_into(&page))?;
    }
    Ok(())
}

/// Rows by name; columns by the kernel's release.
#[derive(Default, Debug, PartialEq, Eq)]
struct Table {
    rows: Vec<String>,
    columns: BTreeMap<Vec<u64>, Column>,
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Column {
    release: String,
    cells: BTreeMap<String, String>,
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

impl Table {
    fn parse(page: &str) -> Result<Table> {
        let mut lines =
            page.lines().skip_while(|line| !line.starts_with(HEAD)).take_while(|line| line.starts_with('|'));
        let head = lines.next().context("the page has no table")?;
        let mut table = Table::default();
        let releases: Vec<&str> = cells(head).into_iter().skip(2).collect();
        for line in lines.skip(1) {
            let found = cells(line);
            let [cache, case, values @ ..] = &found[..] else {
                bail!("a row has a cache and a case: {line}")
            };
            let name = format!("| {cache} | {case} |");
            for (release, value) in releases.iter().zip(values) {
                table.column(release).cells.insert(name.clone(), (*value).to_owned());
            }
            table.rows.push(name);
        }
        Ok(table)
    }

    fn column(&mut self, release: &str) -> &mut Column {
        let column = self.columns.entry(numbers(release)).or_default();
        release.clone_into(&mut column.release);
        column
    }

    /// Has each case run under this kernel.
    fn measure(&mut self, kernel: &str, runs: u64) -> Result<()> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["run", "--quiet", "--package", "ashore-testkit", "--example", "early_sync", "--"]);
        let output = cargo.args(["--runs", &runs.to_string(), kernel]).output()?;
        if !output.status.success() {
            bail!("{kernel}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let day = Command::new("date").arg("-I").output()?;
        let day = String::from_utf8_lossy(&day.stdout).trim().to_owned();
        for line in String::from_utf8_lossy(&output.stdout).lines().skip(2) {
            let found = cells(line);
            let [release, cache, case, without, with] = found[..] else { bail!("not a row: {line}") };
            let name = format!("| {cache} | {case} |");
            if !self.rows.contains(&name) {
                self.rows.push(name.clone());
            }
            let release = release.split_once('+').map_or(release, |(release, _)| release);
            let column = self.column(release.trim_end_matches("-amd64").trim_end_matches("-cloud"));
            column.cells.insert(name, format!("{} → {}", short(without), short(with)));
            column.cells.insert(MEASURED.to_owned(), format!("{day}, {runs}"));
        }
        Ok(())
    }

    /// The page with this table in place of its own.
    fn written_into(&self, page: &str) -> String {
        let column = |text: &dyn Fn(&Column) -> String| {
            self.columns.values().map(text).map(|cell| format!(" {cell} |")).collect::<String>()
        };
        let mut table = format!(
            "{HEAD}{}\n|---|---|{}\n",
            column(&|column| column.release.clone()),
            "---|".repeat(self.columns.len())
        );
        let measured = (!self.rows.iter().any(|row| row == MEASURED)).then(|| MEASURED.to_owned());
        for row in self.rows.iter().chain(&measured) {
            let cell = |column: &Column| column.cells.get(row).cloned().unwrap_or_else(|| "-".to_owned());
            table += &format!("{row}{}\n", column(&cell));
        }
        let mut written = String::new();
        let mut is_there = false;
        for line in page.lines() {
            if line.starts_with(HEAD) {
                written += &table;
                is_there = true;
            }
            if is_there && line.starts_with('|') {
                continue;
            }
            is_there = false;
            written += line;
            written.push('\n');
        }
        written
    }
}

/// From `**1 of 5**, 106 of 4096`: `**1**`.
fn short(cell: &str) -> String {
    let number = cell.trim_start_matches('*').split(' ').next().unwrap_or_default();
    if cell.starts_with('*') { format!("**{number}**") } else { number.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    const PAGE: &str = "before\n\n| write-back cache | case | 6.12.117 | 7.0.13 |\n|---|---|---|---|\n\
                        | on | 500 files | 0 → 0 | **2** → 0 |\n| off | 500 files | 0 → 0 | 0 → 0 |\n\nafter\n";

    #[test]
    fn a_column_is_put_where_its_version_belongs_and_the_rest_stays() {
        let mut table = Table::parse(PAGE).unwrap();
        let column = table.column("6.18.21");
        column.cells.insert("| on | 500 files |".into(), "**1** → 0".into());
        let written = table.written_into(PAGE);
        assert!(
            written.starts_with("before\n\n| write-back cache | case | 6.12.117 | 6.18.21 | 7.0.13 |\n"),
            "{written}"
        );
        assert!(written.contains(
            "| on | 500 files | 0 → 0 | **1** → 0 | **2** → 0 |\n| off | 500 files | 0 → 0 | - | 0 → 0 |\n"
        ));
        assert!(written.ends_with("\n\nafter\n"));
        assert_eq!(Table::parse(&written).unwrap().columns, table.columns_with_gaps());
    }

    impl Table {
        /// As the columns are when they have been written and read.
        fn columns_with_gaps(mut self) -> BTreeMap<Vec<u64>, Column> {
            let rows: Vec<String> = self.rows.iter().cloned().chain([MEASURED.to_owned()]).collect();
            for column in self.columns.values_mut() {
                for row in &rows {
                    column.cells.entry(row.clone()).or_insert_with(|| "-".to_owned());
                }
            }
            self.columns
        }
    }

    #[test]
    fn what_is_measured_is_told_in_short() {
        assert_eq!((short("0 of 5").as_str(), short("**3 of 5**, 106 of 4096").as_str()), ("0", "**3**"));
    }
}
