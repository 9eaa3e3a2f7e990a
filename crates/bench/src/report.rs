//! What was measured, as a table to read and as JSON to keep.

use std::fmt;

use crate::meter::Sample;

/// One row, measured once.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The row.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// What came out, or why nothing did.
    pub sample: Result<Sample, String>,
}

/// One row with all that was measured of it.
#[derive(Clone, Debug)]
pub struct ReportRow {
    /// The row.
    pub name: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// The middle samples, by rate, of each server; or why there are none.
    pub servers: Vec<Result<Sample, String>>,
    /// First server by second: the medians, over pairs that ran next to each other, of rate and of processor time for an
    /// operation.
    pub ratios: Option<[f64; 2]>,
    /// The same work as system calls: operations a second.
    pub native_rate: Option<f64>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The servers, as they were named.
    pub servers: Vec<String>,
    /// The rows.
    pub rows: Vec<ReportRow>,
}

impl Report {
    pub(crate) fn of_one(server: &str, cells: Vec<Cell>) -> Report {
        let row = |cell: Cell| ReportRow {
            name: cell.name,
            unit: cell.unit,
            servers: vec![cell.sample],
            ratios: None,
            native_rate: None,
        };
        Report { servers: vec![server.to_owned()], rows: cells.into_iter().map(row).collect() }
    }

    /// Of pairs of runs, each with the same rows in the same order.
    pub(crate) fn of_two(servers: [&str; 2], rounds: Vec<[Vec<Cell>; 2]>) -> Report {
        let rows = rounds.first().map_or(0, |[a, _]| a.len());
        let row = |index: usize| {
            let pairs: Vec<[&Cell; 2]> = rounds.iter().map(|[a, b]| [&a[index], &b[index]]).collect();
            let good: Vec<[&Sample; 2]> = pairs
                .iter()
                .filter_map(|[a, b]| Some([a.sample.as_ref().ok()?, b.sample.as_ref().ok()?]))
                .collect();
            let ratio = |of: fn(&Sample) -> f64| median(good.iter().map(|[a, b]| of(a) / of(b)));
            ReportRow {
                name: pairs[0][0].name,
                unit: pairs[0][0].unit,
                servers: [0, 1].map(|server| middle(pairs.iter().map(|pair| &pair[server].sample))).to_vec(),
                ratios: (!good.is_empty()).then(|| [ratio(Sample::rate), ratio(Sample::cpu_us)]),
                native_rate: None,
            }
        };
        Report { servers: servers.map(str::to_owned).to_vec(), rows: (0..rows).map(row).collect() }
    }

    pub(crate) fn add_native(&mut self, cells: &[Cell]) {
        for row in &mut self.rows {
            let cell = cells.iter().find(|cell| cell.name == row.name);
            row.native_rate = cell.and_then(|cell| Some(cell.sample.as_ref().ok()?.rate()));
        }
    }

    /// One object, its numbers not rounded.
    pub fn to_json(&self) -> String {
        let servers = self.servers.iter().map(|server| text(server)).collect::<Vec<_>>().join(",");
        let rows = self.rows.iter().map(row_to_json).collect::<Vec<_>>().join(",\n    ");
        format!("{{\n  \"servers\": [{servers}],\n  \"rows\": [\n    {rows}\n  ]\n}}\n")
    }
}

fn row_to_json(row: &ReportRow) -> String {
    let servers = row.servers.iter().map(sample_to_json).collect::<Vec<_>>().join(",");
    let ratios = row.ratios.map_or_else(
        || "null".to_owned(),
        |[rate, cpu]| format!("{{\"per_second\":{},\"server_cpu\":{}}}", number(rate), number(cpu)),
    );
    let native = row.native_rate.map_or_else(|| "null".to_owned(), number);
    format!(
        "{{\"name\":{},\"unit\":{},\"servers\":[{servers}],\"ratios\":{ratios},\"native_per_second\":{native}}}",
        text(row.name),
        text(row.unit),
    )
}

fn sample_to_json(sample: &Result<Sample, String>) -> String {
    let sample = match sample {
        Ok(sample) => sample,
        Err(why) => return format!("{{\"failed\":{}}}", text(why)),
    };
    let latency = sample.latency_us.map_or_else(
        || "null".to_owned(),
        |[p50, p99]| format!("{{\"p50\":{},\"p99\":{}}}", number(p50), number(p99)),
    );
    format!(
        "{{\"per_second\":{},\"operations\":{},\"server_cpu_us\":{},\"server_resident_kib\":{},\"latency_us\":{latency}}}",
        number(sample.rate()),
        sample.operations,
        number(sample.cpu_us()),
        sample.server_resident_kib,
    )
}

/// JSON knows no infinity, which a ratio to nothing is.
fn number(value: f64) -> String {
    if value.is_finite() { format!("{value}") } else { "null".to_owned() }
}

fn text(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = ["A", "B"];
        for (letter, server) in letters.iter().zip(&self.servers) {
            writeln!(f, "{letter}: {server}")?;
        }
        write!(f, "{:28} {:>12}", "", "counted")?;
        for letter in letters.iter().take(self.servers.len()) {
            write!(f, " {:>11} {:>9} {:>8}", format!("{letter} per s"), "CPU µs", "RSS MiB")?;
        }
        if self.servers.len() == 2 {
            write!(f, " {:>8} {:>8}", "A/B", "A/B CPU")?;
        }
        writeln!(f, " {:>12}", "native per s")?;
        self.rows.iter().try_for_each(|row| write_row(f, row, self.servers.len()))?;
        for row in &self.rows {
            for (letter, sample) in letters.iter().zip(&row.servers) {
                if let Err(why) = sample {
                    writeln!(f, "{letter}: {}: {why}", row.name)?;
                }
            }
        }
        Ok(())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, row: &ReportRow, servers: usize) -> fmt::Result {
    write!(f, "{:28} {:>12}", row.name, row.unit)?;
    for sample in &row.servers {
        let Ok(sample) = sample else {
            write!(f, " {:>11} {:>9} {:>8}", "failed", "-", "-")?;
            continue;
        };
        write!(f, " {:>11}", grouped(sample.rate()))?;
        // Which process serves a directory nobody says.
        if sample.server_resident_kib == 0 {
            write!(f, " {:>9} {:>8}", "-", "-")?;
        } else {
            let resident_mib = sample.server_resident_kib as f64 / 1024.0;
            write!(f, " {:>9.2} {resident_mib:>8.1}", sample.cpu_us())?;
        }
    }
    if let Some([rate, cpu]) = row.ratios {
        write!(f, " {rate:>8.2}")?;
        if cpu.is_finite() { write!(f, " {cpu:>8.2}")? } else { write!(f, " {:>8}", "-")? }
    } else if servers == 2 {
        write!(f, " {:>8} {:>8}", "-", "-")?;
    }
    let native = row.native_rate.map_or_else(|| "-".to_owned(), grouped);
    writeln!(f, " {native:>12}")
}

/// A whole number, its digits in groups of three.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even.is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// The middle one of those that came out.
fn middle<'a>(samples: impl Iterator<Item = &'a Result<Sample, String>> + Clone) -> Result<Sample, String> {
    let mut sorted: Vec<&Sample> = samples.clone().flatten().collect();
    sorted.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    let failed = || samples.clone().find_map(|sample| sample.as_ref().err().cloned()).unwrap_or_default();
    sorted.get(sorted.len() / 2).map(|sample| (*sample).clone()).ok_or_else(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(operations: u64, server_cpu_us: f64) -> Cell {
        let sample = Sample { operations, seconds: 1.0, server_cpu_us, ..Sample::default() };
        Cell { name: "row", unit: "requests", sample: Ok(sample) }
    }

    fn report() -> Report {
        let round = |a, b| [vec![cell(a, 100.0)], vec![cell(b, 400.0)]];
        let mut report =
            Report::of_two(["a \"x\"", "b"], vec![round(100, 50), round(300, 100), round(90, 90)]);
        report.add_native(&[cell(1_234_567, 0.0)]);
        report
    }

    #[test]
    fn ratios_are_medians_of_pairs() {
        let row = &report().rows[0];
        assert_eq!(row.ratios.map(|[rate, _]| rate), Some(2.0), "of 2, 3 and 1");
        assert_eq!(
            row.servers.iter().flatten().map(|sample| sample.operations).collect::<Vec<_>>(),
            [100, 90]
        );
        assert_eq!(median([1.0, 4.0].into_iter()), 2.5);
    }

    #[test]
    fn a_row_that_failed_says_why() {
        let failed = || vec![Cell { name: "row", unit: "requests", sample: Err("ENFILE".to_owned()) }];
        let report = Report::of_two(["a", "b"], vec![[vec![cell(1, 1.0)], failed()]]);
        assert!(report.rows[0].ratios.is_none());
        assert!(report.to_string().ends_with("B: row: ENFILE\n"), "{report}");
        assert!(report.to_json().contains(r#"{"failed":"ENFILE"}"#));
        let good = [vec![cell(4, 1.0)], vec![cell(2, 1.0)]];
        let partly = Report::of_two(["a", "b"], vec![[failed(), failed()], good]);
        assert_eq!(partly.rows[0].ratios.map(|[rate, _]| rate), Some(2.0));
    }

    #[test]
    fn the_table_groups_digits_and_shows_what_it_has() {
        let table = report().to_string();
        assert!(table.contains("1,234,567"), "{table}");
        assert!(table.lines().count() == 4 && table.contains("2.00"), "{table}");
        let one = Report::of_one("s", vec![cell(999, 1.0)]).to_string();
        assert!(one.contains(" 999 ") && one.trim_end().ends_with('-'), "{one}");
    }

    #[test]
    fn the_json_quotes_what_it_must() {
        let json = report().to_json();
        assert!(json.contains(r#""servers": ["a \"x\"","b"]"#), "{json}");
        assert!(json.contains(r#""ratios":{"per_second":2,"server_cpu":0.125}"#), "{json}");
        assert!(Report::of_one("s", vec![cell(0, 0.0)]).to_json().contains(r#""per_second":0"#));
        assert_eq!(number(f64::INFINITY), "null");
    }
}
