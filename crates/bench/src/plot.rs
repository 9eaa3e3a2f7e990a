//! What `--plot` draws: how a server does with more requests at once, with more queues, and how long single requests take.
//!
//! ```text
//!     depth.svg     READ of 4 KiB a second, by requests on their way
//!     queues.svg    the same by request queues, a client's thread each, with as many on their way in all
//!     latency.svg   how long GETATTR, READ, and WRITE with FSYNC take, from the quickest to the slowest thousandth
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::figure::{Axis, Figure, Marks, Panel, Point, Series, draw};
use crate::meter::{LATENCY_PARTS, Meter, Sample, part_below};
use crate::pin::Pinned;
use crate::process::Server;
use crate::report::{grouped, median};
use crate::rows::{KIB_4, Subject};
use crate::tree::{Needs, Tree};
use crate::{BenchArguments, Connected, connect};

const DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// On their way in all, in however many queues.
const DEPTH_OF_QUEUES: usize = 16;
const LATENCY_ROWS: [&str; 3] = ["GETATTR", "READ 4 KiB", "WRITE 4 KiB and FSYNC"];

/// One curve, measured once.
type Curve = Vec<(f64, f64)>;

/// What was measured of one server in one round.
#[derive(Clone, Default)]
struct Round {
    depths: Curve,
    queues: Curve,
    latencies: [Curve; LATENCY_ROWS.len()],
}

/// Measures, and writes the plots into a directory. Returns their names.
pub fn plot(arguments: &BenchArguments, directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let (names, rounds) = match (&arguments.socket, arguments.compare.as_slice()) {
        (Some(socket), _) => (vec![socket.display().to_string()], of_socket(arguments, socket)?),
        (None, [a, b]) => (vec![a.clone(), b.clone()], of_two(arguments, [a, b])?),
        _ => bail!("--plot needs a --socket, or two commands to --compare"),
    };
    let drawn = [
        ("depth", depths(&names, &rounds)),
        ("queues", queues(&names, &rounds)),
        ("latency", latencies(&names, &rounds)),
    ];
    let write = |(name, figure): (&str, Figure)| {
        let file = directory.join(name).with_extension("svg");
        fs::write(&file, draw(&figure)).with_context(|| file.display().to_string())?;
        Ok(file)
    };
    drawn.into_iter().map(write).collect()
}

/// One server after another, in turns. For each its rounds.
fn of_two(arguments: &BenchArguments, commands: [&str; 2]) -> Result<Vec<Vec<Round>>> {
    let (share, elsewhere) = (arguments.scratch()?, tempfile::tempdir()?);
    let (mut rounds, mut sockets) = (vec![Vec::new(); 2], 0..);
    for _ in 0..arguments.rounds.max(1) {
        for (command, rounds) in commands.iter().zip(&mut rounds) {
            rounds.push(measure(|most_queues| {
                let socket = elsewhere.path().join(format!("plot-{}", sockets.next().unwrap_or_default()));
                let _server = Server::start(command, share.path(), &socket)?;
                measure_connection(arguments, &socket, most_queues).with_context(|| (*command).to_owned())
            })?);
        }
    }
    Ok(rounds)
}

/// Once only: there are servers that take one connection and no other.
fn of_socket(arguments: &BenchArguments, socket: &Path) -> Result<Vec<Vec<Round>>> {
    Ok(vec![vec![measure(|most_queues| measure_connection(arguments, socket, most_queues))?]])
}

/// With as many queues as there are processors, half of them and so on; with one, all else too.
fn measure(mut connection: impl FnMut(usize) -> Result<(usize, Round)>) -> Result<Round> {
    let (mut most_queues, mut queues) = (processors(), Vec::new());
    loop {
        let (queue_count, round) = connection(most_queues)?;
        queues.extend(round.queues.iter().copied());
        if queue_count == 1 {
            queues.reverse();
            return Ok(Round { queues, ..round });
        }
        most_queues = queue_count / 2;
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Over one connection with so many queues, or as many as the server has.
fn measure_connection(
    arguments: &BenchArguments,
    socket: &Path,
    most_queues: usize,
) -> Result<(usize, Round)> {
    let pinned = if arguments.no_pin { None } else { Pinned::new() };
    let queues = u16::try_from(most_queues).unwrap_or(u16::MAX);
    let Connected { raw, process, agreed, queues } = connect(arguments, socket, queues)?;
    pinned.as_ref().inspect(|pinned| pinned.move_away(process.pids()));
    let tree = Tree::prepare(&raw, Needs { many: false, walk: false })?;
    let meter = Meter::new(arguments.row_time(), Some(&process));
    let mut round = Round::default();
    {
        let subject = Subject { raw: &raw, tree: &tree, max_write: agreed.max_write };
        round.queues.push((queues as f64, in_queues(&subject, &meter, queues)?));
        if queues == 1 {
            for depth in DEPTHS {
                round.depths.push((depth as f64, subject.read_deep(&meter, KIB_4, depth)?.rate()));
            }
            let samples = [subject.getattr(&meter)?, subject.read(&meter, KIB_4)?, subject.fsync(&meter)?];
            round.latencies = samples.map(|sample| latency_curve(&sample));
        }
    }
    tree.close(&raw, false).context("the files to measure with cannot be removed")?;
    raw.destroy().context("taking leave of the server")?;
    Ok((queues, round))
}

/// READs a second of as many threads as queues: threads take queues in turn.
fn in_queues(subject: &Subject<'_>, meter: &Meter<'_>, queues: usize) -> Result<f64> {
    let depth = (DEPTH_OF_QUEUES / queues).max(1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|_| scope.spawn(move || Ok(subject.read_deep(meter, KIB_4, depth)?.rate())))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a reading thread does not panic")).sum()
    })
}

fn latency_curve(sample: &Sample) -> Curve {
    sample.latencies_us.iter().enumerate().map(|(index, us)| (index as f64, *us)).collect()
}

fn depths(servers: &[String], rounds: &[Vec<Round>]) -> Figure {
    let series = series(servers, rounds, |round| &round.depths);
    let panel = Panel {
        title: "",
        x: Axis::doubling("requests on their way (one client thread, one request queue)", &DEPTHS),
        y: Axis::from_zero("READs a second", highest(&series), thousands),
        marks: Marks::Dots,
        series,
    };
    figure(
        "READ of 4 KiB a second, by requests on their way",
        "More is better.",
        servers,
        rounds,
        vec![panel],
    )
}

fn queues(servers: &[String], rounds: &[Vec<Round>]) -> Figure {
    let series = series(servers, rounds, |round| &round.queues);
    let mut counts: Vec<usize> =
        series.iter().flat_map(|series| &series.points).map(|point| point.x as usize).collect();
    counts.sort_unstable();
    counts.dedup();
    let panel = Panel {
        title: "",
        x: Axis::doubling("request queues (a client thread each, 16 requests on their way in all)", &counts),
        y: Axis::from_zero("READs a second", highest(&series) * 1.12, thousands),
        marks: Marks::Bars("not offered"),
        series,
    };
    let remark =
        format!("More is better. This machine has {} processors for client and server.", processors());
    figure("READ of 4 KiB a second, by request queues", &remark, servers, rounds, vec![panel])
}

fn latencies(servers: &[String], rounds: &[Vec<Round>]) -> Figure {
    let all: Vec<Vec<Series>> = (0..LATENCY_ROWS.len())
        .map(|index| series(servers, rounds, |round| &round.latencies[index]))
        .collect();
    let lowest = all.iter().flatten().flat_map(|series| &series.points).map(|point| point.lowest);
    let (lowest, highest) =
        (lowest.fold(f64::MAX, f64::min), all.iter().map(|series| highest(series)).fold(0.0, f64::max));
    let panel = |(title, series)| Panel {
        title,
        x: Axis::with_ticks("percent that were quicker", percent_ticks()),
        y: Axis::decades("time of one, logarithmic", lowest, highest, time),
        marks: Marks::Curve,
        series,
    };
    let panels = LATENCY_ROWS.into_iter().zip(all).map(panel).collect();
    let remark = "Less is better. Beside the curves: at 99.9 percent.";
    figure("How long a request takes", remark, servers, rounds, panels)
}

/// In the places of the points that they are at.
fn percent_ticks() -> Vec<(f64, String)> {
    let last = LATENCY_PARTS as f64 - 1.0;
    let place = |percent: f64| {
        -(1.0 - percent / 100.0).log10() / -(1.0 - part_below(LATENCY_PARTS - 1)).log10() * last
    };
    [0.0, 50.0, 90.0, 99.0, 99.9].map(|percent| (place(percent), format!("{percent}"))).to_vec()
}

fn figure(
    title: &str,
    remark: &str,
    servers: &[String],
    rounds: &[Vec<Round>],
    panels: Vec<Panel>,
) -> Figure {
    let count = rounds.first().map_or(0, Vec::len);
    let of_rounds = match count {
        0 | 1 => String::new(),
        count => format!(" Medians of {count} rounds, and the range."),
    };
    Figure {
        title: title.to_owned(),
        remark: format!("{remark}{of_rounds}"),
        servers: servers.to_vec(),
        panels,
    }
}

/// For each server its curve over all rounds.
fn series(servers: &[String], rounds: &[Vec<Round>], curve: impl Fn(&Round) -> &Curve) -> Vec<Series> {
    let of_server = |(name, rounds): (String, &Vec<Round>)| {
        let first = rounds.first().map_or(&[][..], |round| curve(round));
        let points = first.iter().enumerate().map(|(index, (x, _))| {
            let values: Vec<f64> =
                rounds.iter().filter_map(|round| Some(curve(round).get(index)?.1)).collect();
            Point {
                x: *x,
                lowest: values.iter().copied().fold(f64::MAX, f64::min),
                middle: median(values.iter().copied()),
                highest: values.iter().copied().fold(0.0, f64::max),
            }
        });
        Series { name, points: points.collect() }
    };
    short_names(servers).into_iter().zip(rounds).map(of_server).collect()
}

fn highest(series: &[Series]) -> f64 {
    series.iter().flat_map(|series| &series.points).map(|point| point.highest).fold(0.0, f64::max)
}

/// The programs' names; with a letter if that is the same.
fn short_names(servers: &[String]) -> Vec<String> {
    const LETTERS: usize = 11;
    let short = |server: &String| {
        let program = server.split_whitespace().next().unwrap_or_default();
        program.rsplit('/').next().unwrap_or_default().chars().take(LETTERS).collect::<String>()
    };
    match servers.iter().map(short).collect::<Vec<_>>() {
        same if same.len() == 2 && same[0] == same[1] => {
            vec![format!("A: {}", same[0]), format!("B: {}", same[1])]
        }
        names => names,
    }
}

/// A rate; more digits than those would not come out again.
fn thousands(rate: f64) -> String {
    grouped(if rate < 10_000.0 { rate } else { (rate / 1e3).round() * 1e3 })
}

/// A time in microseconds.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 0.9995 => (us * 1e3, "ns"),
        us if us < 999.5 => (us, "µs"),
        us if us < 999_500.0 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let decimals = usize::from(value < 9.95 && value.fract() != 0.0);
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    fn rounds(factor: f64, queues: usize) -> Vec<Round> {
        let round = |noise: f64| Round {
            depths: DEPTHS.iter().map(|depth| (*depth as f64, *depth as f64 * factor * noise)).collect(),
            queues: (1..=queues).map(|count| (count as f64, factor * noise)).collect(),
            latencies: [0.9, 5.0, 300.0].map(|us| {
                (0..LATENCY_PARTS)
                    .map(|index| (index as f64, us / factor * noise * (1.0 + index as f64)))
                    .collect()
            }),
        };
        vec![round(1.0), round(0.5), round(2.0)]
    }

    fn drawn() -> [String; 3] {
        let servers = ["/bin/left --a <1> & \u{7}".to_owned(), "right".to_owned()];
        let rounds = [rounds(30_000.0, 2), rounds(10_000.0, 1)];
        [depths, queues, latencies].map(|of| draw(&of(&servers, &rounds)))
    }

    /// Every element that begins ends, in the right order, and no text has letters that mean something to XML.
    fn is_well_formed(document: &str) -> bool {
        let (mut open, mut rest) = (Vec::new(), document.trim_end());
        while let Some((text, (tag, after))) =
            rest.split_once('<').and_then(|(text, rest)| Some((text, rest.split_once('>')?)))
        {
            let entities =
                ["&amp;", "&lt;", "&gt;"].iter().map(|entity| text.matches(entity).count()).sum::<usize>();
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            let good = match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => open.pop() == Some(name),
                (false, true) => true,
                (false, false) => {
                    open.push(name);
                    true
                }
            };
            if !good
                || text.matches('&').count() != entities
                || text.contains('>')
                || tag.matches('"').count() % 2 == 1
            {
                return false;
            }
            rest = after;
        }
        open.is_empty()
            && rest.is_empty()
            && !document.chars().any(|letter| letter.is_control() && letter != '\n')
    }

    #[test]
    fn the_documents_are_well_formed_whatever_servers_are_called() {
        for document in drawn() {
            assert!(is_well_formed(&document), "{document}");
            assert!(document.contains("/bin/left --a &lt;1&gt; &amp; \u{fffd}</text>"), "{document}");
            assert!(
                document.contains("prefers-color-scheme: dark") && !document.contains("NaN"),
                "{document}"
            );
        }
        assert!(
            !is_well_formed("<a><b></a></b>")
                && !is_well_formed("<a>x & y</a>")
                && is_well_formed("<a><b/></a>")
        );
    }

    #[test]
    fn each_plot_shows_both_servers_with_names_units_and_values() {
        let [depth, queue, latency] = drawn();
        for document in [&depth, &queue, &latency] {
            assert!(document.contains(">left</text>") && document.contains(">right</text>"), "{document}");
        }
        assert_eq!(depth.matches("<polyline").count(), 2);
        assert_eq!(depth.matches("<circle").count(), 2 * DEPTHS.len() + 2, "two of them in the legend");
        assert!(depth.contains(">READs a second</text>") && depth.contains(">960,000</text>"), "{depth}");
        assert!(depth.contains("left: 960,000 (480,000 to 1,920,000)"), "{depth}");
        assert!(depth.contains("requests on their way") && depth.contains(">32</text>"), "{depth}");
        assert_eq!(latency.matches("<polyline").count(), 6);
        assert!(LATENCY_ROWS.iter().all(|row| latency.contains(&format!(">{row}</text>"))), "{latency}");
        assert!(latency.contains(" µs</text>") && latency.contains(">99.9</text>"), "{latency}");
        assert_eq!(queue.matches("<rect x").count(), 3);
        assert!(queue.contains(">not offered</text>") && queue.contains("processors"), "{queue}");
    }

    #[test]
    fn queues_are_halved_down_to_one_and_all_else_is_measured_there() {
        let mut asked = Vec::new();
        let round = measure(|most| {
            let offered = most.min(6);
            asked.push(offered);
            Ok((
                offered,
                Round {
                    queues: vec![(offered as f64, 1.0)],
                    depths: vec![(1.0, offered as f64)],
                    ..Round::default()
                },
            ))
        })
        .unwrap();
        assert_eq!(round.depths, [(1.0, 1.0)]);
        assert!(asked.ends_with(&[1]) && round.queues.len() == asked.len(), "{asked:?}");
        assert!(round.queues.is_sorted(), "{:?}", round.queues);
    }

    #[test]
    fn names_are_those_of_the_programs_and_differ() {
        let names = |a: &str, b: &str| short_names(&[a.to_owned(), b.to_owned()]);
        assert_eq!(names("/usr/bin/ashore serve", "virtiofsd"), ["ashore", "virtiofsd"]);
        assert_eq!(names("a/ashore serve", "b/ashore serve"), ["A: ashore", "B: ashore"]);
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!(
            [0.5, 1.0, 6.25, 1000.0, 12_345.6, 2e6].map(time),
            ["500 ns", "1 µs", "6.2 µs", "1 ms", "12 ms", "2 s"]
        );
    }

    #[test]
    fn percents_stand_where_their_points_are() {
        let ticks = percent_ticks();
        assert_eq!((ticks[0].0, ticks[4].0.round()), (0.0, (LATENCY_PARTS - 1) as f64));
        assert!((part_below(10) - 0.9).abs() < 1e-9 && (ticks[2].0 - 10.0).abs() < 1e-9);
    }
}
