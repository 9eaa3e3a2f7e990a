//! `ashore top`: what a server is doing, now and now and now.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

#[derive(Args)]
pub(crate) struct Arguments {
    /// What `ashore serve --metrics` was given: a socket (with or without `unix:`) or a file
    #[arg(value_name = "METRICS")]
    source: PathBuf,

    /// Time between two looks, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,

    /// Print so many tables, one below the other, and end
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Shows until it is interrupted, or so many times as asked.
pub(crate) fn top(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if !(0.05..=3600.0).contains(&arguments.interval) {
        bail!("--interval must be 0.05 to 3600 seconds");
    }
    let source = arguments.source.to_str().and_then(|text| text.strip_prefix("unix:"));
    let source = source.map_or(arguments.source.as_path(), Path::new);
    let mut before = Sample::take(source)?;
    let live = arguments.count.is_none() && io::stdout().is_terminal();
    for _ in 0..arguments.count.unwrap_or(u64::MAX) {
        sleep(Duration::from_secs_f64(arguments.interval));
        let now = Sample::take(source).context("the server that was watched tells no more; has it ended?")?;
        let table = table(&before, &now);
        let mut out = io::stdout().lock();
        // Home, the text with each line cleared to its end, and nothing of the last table below it.
        let text = if live { format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\n")) } else { table };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")?;
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}

/// All numbers of one moment, by name and labels as they stand in the text.
struct Sample {
    taken: Instant,
    numbers: BTreeMap<String, f64>,
}

impl Sample {
    fn take(source: &Path) -> anyhow::Result<Sample> {
        let text = read(source).with_context(|| {
            format!(
                "{} cannot be read; is there a server that was started with --metrics for it?",
                source.display()
            )
        })?;
        let numbers: BTreeMap<_, _> = text.lines().filter_map(number).collect();
        if !numbers.keys().any(|name| name.starts_with("ashore_")) {
            bail!("{} has no numbers of an Ashore server in it", source.display());
        }
        Ok(Sample { taken: Instant::now(), numbers })
    }

    fn of(&self, name: &str) -> f64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }

    fn of_operation(&self, name: &str, operation: &str) -> f64 {
        self.of(&format!("{name}{{operation=\"{operation}\"}}"))
    }

    /// Sum over all that has this name, whatever its labels.
    fn sum(&self, name: &str) -> f64 {
        let members = self.numbers.range(format!("{name}{{")..).take_while(|(key, _)| key.starts_with(name));
        members.map(|(_, value)| value).sum()
    }

    fn operations(&self) -> impl Iterator<Item = &str> {
        let prefix = "ashore_requests_total{operation=\"";
        self.numbers.keys().filter_map(move |name| name.strip_prefix(prefix)?.strip_suffix("\"}"))
    }
}

fn read(source: &Path) -> io::Result<String> {
    if !fs::metadata(source)?.file_type().is_socket() {
        return fs::read_to_string(source);
    }
    let mut stream = UnixStream::connect(source)?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// `name{labels} value`; comments are none.
fn number(line: &str) -> Option<(String, f64)> {
    let (name, value) = line.rsplit_once(' ')?;
    (!line.starts_with('#')).then_some(())?;
    Some((name.to_owned(), value.parse().ok()?))
}

const COLUMNS: &str = "operation            per s      MiB/s   mean us    99% us  in flight   failed\n";

/// What happened between two samples: operations by how many there were, and what is not stable yet.
fn table(before: &Sample, now: &Sample) -> String {
    let seconds = (now.taken - before.taken).as_secs_f64();
    let mut rows: Vec<Row> =
        now.operations().map(|operation| Row::of(operation, before, now, seconds)).collect();
    rows.sort_by(|a, b| b.rate.total_cmp(&a.rate).then_with(|| a.operation.cmp(&b.operation)));
    let syncs = now.of_operation("ashore_requests_total", "SYNCFS");
    let mut text = format!(
        "unsynced {}   syncs of the guest {syncs}, of the host {}   failed {}\n\
         inodes {}   open {}   descriptors {}\n\
         {}\n\n{COLUMNS}",
        size(now.of("ashore_unsynced_bytes")),
        now.sum("ashore_host_syncs_total"),
        now.sum("ashore_host_sync_failures_total"),
        now.of("ashore_inodes"),
        now.of("ashore_open_handles"),
        now.of("ashore_open_descriptors"),
        syncs_line(before, now),
    );
    rows.retain(|row| row.rate > 0.0 || row.in_flight > 0.0);
    if rows.is_empty() {
        text += "nothing was asked for\n";
    }
    rows.iter().for_each(|row| text += &row.line());
    text
}

/// What syncs were like in this interval, by their rounds.
fn syncs_line(before: &Sample, now: &Sample) -> String {
    let change = |name: &str| now.of(name) - before.of(name);
    let rounds = change("ashore_sync_round_members_count");
    if rounds == 0.0 {
        return "syncs: none".to_owned();
    }
    let mean = |name: &str| change(name) / rounds;
    format!(
        "syncs: {rounds} rounds of {:.1}   waited {:.2} ms   host {:.2} ms",
        mean("ashore_sync_round_members_sum"),
        mean("ashore_sync_barrier_wait_seconds_sum") * 1e3,
        mean("ashore_sync_host_seconds_sum") * 1e3,
    )
}

struct Row {
    operation: String,
    rate: f64,
    mib: f64,
    mean_us: f64,
    /// Upper bound of the bucket that the slowest hundredth begins in.
    high_us: f64,
    in_flight: f64,
    failed: f64,
}

impl Row {
    fn of(operation: &str, before: &Sample, now: &Sample, seconds: f64) -> Row {
        let change = |name: &str| now.of_operation(name, operation) - before.of_operation(name, operation);
        let done = change("ashore_requests_total");
        let bytes = change("ashore_request_bytes_total") + change("ashore_reply_bytes_total");
        let time = change("ashore_request_duration_seconds_sum");
        Row {
            operation: operation.to_owned(),
            rate: done / seconds,
            mib: bytes / seconds / f64::from(1 << 20),
            mean_us: if done > 0.0 { time / done * 1e6 } else { 0.0 },
            high_us: slowest_hundredth(operation, before, now) * 1e6,
            in_flight: now.of_operation("ashore_requests_in_flight", operation),
            failed: change("ashore_requests_failed_total"),
        }
    }

    fn line(&self) -> String {
        let Row { operation, rate, mib, mean_us, high_us, in_flight, failed } = self;
        format!(
            "{operation:18} {rate:>9.0} {mib:>10.1} {mean_us:>9.1} {:>9} {in_flight:>10} {failed:>8}\n",
            if high_us.is_finite() { format!("<{high_us:.0}") } else { ">4 s".into() }
        )
    }
}

fn slowest_hundredth(operation: &str, before: &Sample, now: &Sample) -> f64 {
    let prefix = format!("ashore_request_duration_seconds_bucket{{operation=\"{operation}\",le=\"");
    let mut below: Vec<(f64, f64)> = now
        .numbers
        .iter()
        .filter_map(|(name, value)| {
            let bound = name.strip_prefix(&prefix)?.strip_suffix("\"}")?;
            Some((bound.replace("+Inf", "inf").parse().ok()?, value - before.of(name)))
        })
        .collect();
    below.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = below.last().map_or(0.0, |(_, count)| *count);
    if total == 0.0 {
        return 0.0;
    }
    below.iter().find(|(_, count)| *count >= total * 0.99).map_or(f64::INFINITY, |(bound, _)| *bound)
}

fn size(bytes: f64) -> String {
    match bytes {
        bytes if bytes >= f64::from(1 << 30) => format!("{:.1} GiB", bytes / f64::from(1 << 30)),
        bytes if bytes >= f64::from(1 << 20) => format!("{:.1} MiB", bytes / f64::from(1 << 20)),
        bytes if bytes >= 1024.0 => format!("{:.1} KiB", bytes / 1024.0),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> Sample {
        Sample { taken: Instant::now(), numbers: text.lines().filter_map(number).collect() }
    }

    #[test]
    fn a_line_fits_a_terminal_of_80_columns() {
        let row = Row {
            operation: "COPY_FILE_RANGE_64".into(),
            rate: 123_456.0,
            mib: 12_345.6,
            mean_us: 1_234_567.8,
            high_us: 8_388_608.0,
            in_flight: 65535.0,
            failed: 123_456.0,
        };
        assert!(row.line().trim_end().len() <= 80, "{}", row.line());
        assert!(COLUMNS.trim_end().len() <= 80);
    }

    #[test]
    fn syncs_are_those_of_the_interval_and_their_line_fits() {
        let at = |rounds: f64, syncs: f64, waited: f64, host: f64| {
            sample(&format!(
                "ashore_sync_round_members_count {rounds}\nashore_sync_round_members_sum {syncs}\n\
                 ashore_sync_barrier_wait_seconds_sum {waited}\nashore_sync_host_seconds_sum {host}"
            ))
        };
        let (before, now) = (at(10.0, 10.0, 1.0, 50.0), at(12.0, 42.0, 1.01, 50.5));
        assert_eq!(syncs_line(&before, &now), "syncs: 2 rounds of 16.0   waited 5.00 ms   host 250.00 ms");
        assert_eq!(syncs_line(&now, &now), "syncs: none");
        let long = syncs_line(&at(0.0, 0.0, 0.0, 0.0), &at(99_999.0, 1e7, 1e5, 9e6));
        assert!(long.len() <= 80, "{long}");
    }

    #[test]
    fn the_slowest_hundredth_is_of_this_interval_alone() {
        let bucket = |bound: &str, count: u32| {
            format!("ashore_request_duration_seconds_bucket{{operation=\"READ\",le=\"{bound}\"}} {count}\n")
        };
        // Ten slow ones before; since then, a hundred fast ones.
        let before = sample(&(bucket("0.001", 0) + &bucket("0.002", 10) + &bucket("+Inf", 10)));
        let now = sample(&(bucket("0.001", 100) + &bucket("0.002", 110) + &bucket("+Inf", 110)));
        assert_eq!(slowest_hundredth("READ", &before, &now), 0.001);
        assert_eq!(slowest_hundredth("READ", &now, &now), 0.0);
    }

    #[test]
    fn numbers_are_read_and_comments_are_not() {
        assert_eq!(number("ashore_inodes 7"), Some(("ashore_inodes".into(), 7.0)));
        assert_eq!(number("# TYPE ashore_inodes gauge"), None);
        assert_eq!(number("nonsense"), None);
    }
}
