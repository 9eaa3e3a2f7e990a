//! Curves and bars as one SVG document: no script, no fonts of its own, light and dark by the viewer's choice.

use std::fmt::Write;

use crate::report::grouped;

const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 24.0;
/// Left of the panels, for the numbers of their common axis.
const LEFT: f64 = 100.0;
/// Right of each panel, for the names of its curves.
const LABELS: f64 = 96.0;
const HEIGHT: f64 = 300.0;
/// Two labels of two lines each are at least so far apart.
const LABEL_DISTANCE: f64 = 38.0;
const LEGEND_LETTERS: usize = 110;

/// Both servers are told apart without colours too: full dots and hollow ones, a line and a broken one.
const STYLE: &str = "\
  :root { color-scheme: light dark }
  text { font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 13px; fill: #1f2328 }
  .page { fill: #ffffff } .faint { fill: #59636e } .title { font-size: 19px; font-weight: 600 } .panel { font-weight: 600 }
  .grid { stroke: #e4e9ee } .axis { stroke: #afb8c1 }
  .curve { fill: none; stroke-width: 2.5; stroke-linejoin: round } .range { opacity: .16 } .dot { stroke-width: 2.5 }
  .whisker { stroke: #59636e; stroke-width: 1.5 }
  .a { stroke: #0969da } .b { stroke: #bc4c00; stroke-dasharray: 7 4 } .fill-a { fill: #0969da } .fill-b { fill: #bc4c00 }
  .dot-a { stroke: #0969da; fill: #0969da } .dot-b { stroke: #bc4c00; fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .faint { fill: #9198a1 } .grid { stroke: #21262d } .axis { stroke: #59636e }
    .range { opacity: .24 } .whisker { stroke: #9198a1 }
    .a { stroke: #4493f8 } .b { stroke: #f0883e } .fill-a { fill: #4493f8 } .fill-b { fill: #f0883e }
    .dot-a { stroke: #4493f8; fill: #4493f8 } .dot-b { stroke: #f0883e; fill: #0d1117 }
  }";
const CLASSES: [&str; 2] = ["a", "b"];

/// One document.
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) remark: String,
    /// As they were named, for the legend.
    pub(crate) servers: Vec<String>,
    /// Side by side, of which the first has the numbers of the vertical axis for all.
    pub(crate) panels: Vec<Panel>,
}

/// One pair of axes, and a series for each server.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) marks: Marks,
    pub(crate) series: Vec<Series>,
}

pub(crate) enum Marks {
    Dots,
    Curve,
    /// One for each tick of the horizontal axis. With the words where a series has none.
    Bars(&'static str),
}

pub(crate) struct Series {
    /// Short enough to stand beside a curve.
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// What was measured at one place, in several rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) lowest: f64,
    pub(crate) middle: f64,
    pub(crate) highest: f64,
}

pub(crate) struct Axis {
    pub(crate) label: &'static str,
    scale: Scale,
    ticks: Vec<(f64, String)>,
    words: fn(f64) -> String,
}

#[derive(Clone, Copy)]
enum Scale {
    Linear { from: f64, to: f64 },
    Logarithmic { from: f64, to: f64 },
}

impl Axis {
    /// From 0 on, in round steps.
    pub(crate) fn from_zero(label: &'static str, highest: f64, words: fn(f64) -> String) -> Axis {
        const MOST: f64 = 6.0;
        let power = 10f64.powf((highest.max(1e-9) / MOST).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps.into_iter().find(|step| step * MOST >= highest).unwrap_or(power);
        let count = (highest / step).ceil().max(1.0);
        let ticks = (0..=count as usize).map(|index| (index as f64 * step, words(index as f64 * step)));
        Axis { label, scale: Scale::Linear { from: 0.0, to: count * step }, ticks: ticks.collect(), words }
    }

    /// Whole powers of ten.
    pub(crate) fn decades(label: &'static str, lowest: f64, highest: f64, words: fn(f64) -> String) -> Axis {
        let from = lowest.max(1e-3).log10().floor() as i32;
        let to = (highest.max(1e-3).log10().ceil() as i32).max(from + 1);
        let ticks = (from..=to).map(|power| (10f64.powi(power), words(10f64.powi(power)))).collect();
        Axis { label, scale: Scale::Logarithmic { from: 10f64.powi(from), to: 10f64.powi(to) }, ticks, words }
    }

    /// Each of these as far from the next as twice as many.
    pub(crate) fn doubling(label: &'static str, values: &[usize]) -> Axis {
        let ticks: Vec<_> = values.iter().map(|value| (*value as f64, value.to_string())).collect();
        let end = |tick: Option<&(f64, String)>, factor| tick.map_or(1.0, |(value, _)| *value) * factor;
        // With room on both sides.
        let scale = Scale::Logarithmic { from: end(ticks.first(), 0.75), to: end(ticks.last(), 1.33) };
        Axis { label, scale, ticks, words: grouped }
    }

    /// With these ticks, from the first to the last.
    pub(crate) fn with_ticks(label: &'static str, ticks: Vec<(f64, String)>) -> Axis {
        let end = |tick: Option<&(f64, String)>| tick.map_or(0.0, |(value, _)| *value);
        let scale = Scale::Linear { from: end(ticks.first()), to: end(ticks.last()) };
        Axis { label, scale, ticks, words: grouped }
    }

    /// Which part of the way a value is.
    fn part(&self, value: f64) -> f64 {
        let (from, to, value) = match self.scale {
            Scale::Linear { from, to } => (from, to, value),
            Scale::Logarithmic { from, to } => (from.ln(), to.ln(), value.max(1e-9).ln()),
        };
        if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.5 }
    }
}

/// Where a panel is.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn place(&self, panel: &Panel, x: f64, y: f64) -> (f64, f64) {
        (
            self.left + panel.x.part(x) * (self.right - self.left),
            self.bottom - panel.y.part(y) * (self.bottom - self.top),
        )
    }
}

/// As one SVG document.
pub(crate) fn draw(figure: &Figure) -> String {
    let has_titles = figure.panels.iter().any(|panel| !panel.title.is_empty());
    let top = if has_titles { 118.0 } else { 96.0 } + 22.0 * figure.servers.len() as f64;
    let (bottom, height) = (top + HEIGHT, top + HEIGHT + 62.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{}</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&figure.title, usize::MAX)
    );
    // Writing into a string cannot fail.
    _ = write_head(&mut out, figure);
    let width = (WIDTH - LEFT) / figure.panels.len().max(1) as f64;
    for (index, panel) in figure.panels.iter().enumerate() {
        let left = LEFT + index as f64 * width;
        let frame = Frame { left, right: left + width - LABELS, top, bottom };
        _ = write_grid(&mut out, panel, &frame, index == 0);
        _ = match panel.marks {
            Marks::Bars(missing) => write_bars(&mut out, panel, &frame, missing),
            Marks::Dots | Marks::Curve => write_curves(&mut out, panel, &frame),
        };
    }
    out.push_str("</svg>\n");
    out
}

type Written = std::fmt::Result;

fn write_head(out: &mut String, figure: &Figure) -> Written {
    write_text(out, "title", (MARGIN, 36.0), "start", &figure.title)?;
    write_text(out, "faint", (MARGIN, 58.0), "start", &figure.remark)?;
    for (index, (server, class)) in figure.servers.iter().zip(CLASSES).enumerate() {
        let y = 84.0 + 22.0 * index as f64;
        let (from, to, middle) = (MARGIN, MARGIN + 30.0, y - 4.5);
        writeln!(
            out,
            "<line x1=\"{from}\" y1=\"{middle}\" x2=\"{to}\" y2=\"{middle}\" class=\"curve {class}\"/>"
        )?;
        write_dot(out, (from + 15.0, middle), class, "")?;
        write_text(out, "", (to + 10.0, y), "start", server)?;
    }
    Ok(())
}

fn write_grid(out: &mut String, panel: &Panel, frame: &Frame, has_numbers: bool) -> Written {
    let Frame { left, right, top, bottom } = *frame;
    write_text(out, "panel", (left, top - 14.0), "start", panel.title)?;
    for (value, words) in &panel.y.ticks {
        let (_, y) = frame.place(panel, 0.0, *value);
        let class = if *value == 0.0 { "axis" } else { "grid" };
        writeln!(
            out,
            "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" class=\"{class}\"/>"
        )?;
        if has_numbers {
            write_text(out, "faint", (left - 10.0, y + 4.5), "end", words)?;
        }
    }
    for (value, words) in &panel.x.ticks {
        let (x, _) = frame.place(panel, *value, 0.0);
        if !matches!(panel.marks, Marks::Bars(_)) {
            writeln!(out, "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"grid\"/>")?;
        }
        write_text(out, "faint", (x, bottom + 20.0), "middle", words)?;
    }
    write_text(out, "", (left.midpoint(right), bottom + 42.0), "middle", panel.x.label)?;
    if has_numbers {
        let (x, y) = (MARGIN - 4.0, top.midpoint(bottom));
        let label = escaped(panel.y.label, usize::MAX);
        writeln!(
            out,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 {x} {y})\">{label}</text>"
        )?;
    }
    Ok(())
}

fn write_curves(out: &mut String, panel: &Panel, frame: &Frame) -> Written {
    let place = |x, y| frame.place(panel, x, y);
    let listed = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    };
    for (series, class) in panel.series.iter().zip(CLASSES) {
        let above = series.points.iter().map(|point| place(point.x, point.highest));
        let below = series.points.iter().rev().map(|point| place(point.x, point.lowest));
        let band = listed(&mut above.chain(below));
        writeln!(out, "<polygon points=\"{band}\" class=\"range fill-{class}\"/>")?;
    }
    for (series, class) in panel.series.iter().zip(CLASSES) {
        let curve = listed(&mut series.points.iter().map(|point| place(point.x, point.middle)));
        writeln!(out, "<polyline points=\"{curve}\" class=\"curve {class}\"/>")?;
        if matches!(panel.marks, Marks::Dots) {
            for point in &series.points {
                write_dot(out, place(point.x, point.middle), class, &told(panel, series, point))?;
            }
        }
    }
    let ends = panel
        .series
        .iter()
        .map(|series| series.points.last().map_or(frame.bottom, |point| place(point.x, point.middle).1));
    for (series, y) in panel.series.iter().zip(apart(ends.collect())) {
        let value =
            series.points.last().map_or_else(|| "-".to_owned(), |point| (panel.y.words)(point.middle));
        write_text(out, "panel", (frame.right + 8.0, y - 2.0), "start", &series.name)?;
        write_text(out, "faint", (frame.right + 8.0, y + 14.0), "start", &value)?;
    }
    Ok(())
}

/// Heights of the labels of both curves, moved from each other where they would overlap.
fn apart(mut heights: Vec<f64>) -> Vec<f64> {
    if let [a, b] = heights.as_mut_slice() {
        let missing = LABEL_DISTANCE - (*a - *b).abs();
        if missing > 0.0 {
            let sign = if *a > *b { 1.0 } else { -1.0 };
            *a += sign * missing / 2.0;
            *b -= sign * missing / 2.0;
        }
    }
    heights
}

fn write_bars(out: &mut String, panel: &Panel, frame: &Frame, missing: &str) -> Written {
    let slot = (frame.right - frame.left) / panel.x.ticks.len().max(1) as f64;
    let (width, gap) = ((slot / 4.0).min(110.0), 14.0);
    let count = panel.series.len() as f64;
    for (tick, _) in &panel.x.ticks {
        let (middle, _) = frame.place(panel, *tick, 0.0);
        let first = middle - (count * width + (count - 1.0) * gap) / 2.0;
        for (index, (series, class)) in panel.series.iter().zip(CLASSES).enumerate() {
            let left = first + index as f64 * (width + gap);
            let x = left + width / 2.0;
            let Some(point) = series.points.iter().find(|point| point.x == *tick) else {
                write_text(out, "panel", (x, frame.bottom - 26.0), "middle", &series.name)?;
                write_text(out, "faint", (x, frame.bottom - 9.0), "middle", missing)?;
                continue;
            };
            let y = |value| frame.place(panel, *tick, value).1;
            let (top, told) = (y(point.middle), escaped(&told(panel, series, point), usize::MAX));
            let height = frame.bottom - top;
            writeln!(
                out,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" \
                 class=\"fill-{class}\"><title>{told}</title></rect>"
            )?;
            let (low, high) = (y(point.lowest), y(point.highest));
            writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{low:.1}\" x2=\"{x:.1}\" y2=\"{high:.1}\" class=\"whisker\"/>"
            )?;
            write_text(out, "panel", (x, high - 25.0), "middle", &series.name)?;
            write_text(out, "faint", (x, high - 8.0), "middle", &(panel.y.words)(point.middle))?;
        }
    }
    Ok(())
}

fn told(panel: &Panel, series: &Series, point: &Point) -> String {
    let [lowest, middle, highest] = [point.lowest, point.middle, point.highest].map(panel.y.words);
    format!("{}: {middle} ({lowest} to {highest})", series.name)
}

fn write_dot(out: &mut String, (x, y): (f64, f64), class: &str, told: &str) -> Written {
    let told = escaped(told, usize::MAX);
    writeln!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" class=\"dot dot-{class}\"><title>{told}</title></circle>"
    )
}

fn write_text(out: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) -> Written {
    let text = escaped(text, LEGEND_LETTERS);
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>")
}

/// As XML wants it, and no longer than so many letters.
fn escaped(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (index, letter) in text.chars().enumerate() {
        match letter {
            _ if index == most => {
                out.push('…');
                break;
            }
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // XML has no way to write most of them.
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_from_zero_are_round_and_reach_the_highest() {
        for (highest, count, last) in
            [(809_893.0, 6, "1,000,000"), (3.0, 7, "3"), (1_000_000.0, 6, "1,000,000"), (0.0, 2, "0")]
        {
            let axis = Axis::from_zero("", highest, grouped);
            assert_eq!(axis.ticks.last().map(|(_, words)| words.as_str()), Some(last), "{:?}", axis.ticks);
            assert_eq!(axis.ticks.len(), count, "{:?}", axis.ticks);
        }
    }

    #[test]
    fn decades_hold_what_they_are_made_for() {
        let axis = Axis::decades("", 0.7, 1300.0, grouped);
        assert_eq!((axis.ticks.first().map(|tick| tick.0), axis.ticks.len()), (Some(0.1), 6));
        assert!((axis.part(31.6227766) - 0.5).abs() < 1e-6, "{}", axis.part(31.6));
        assert_eq!((axis.part(0.0), axis.part(1e9)), (0.0, 1.0));
    }

    #[test]
    fn labels_do_not_overlap_and_keep_their_order() {
        assert_eq!(apart(vec![10.0, 100.0]), [10.0, 100.0]);
        assert_eq!(apart(vec![100.0, 90.0]), [114.0, 76.0]);
        assert_eq!(apart(vec![50.0]), [50.0]);
    }

    #[test]
    fn what_xml_cannot_say_is_replaced() {
        assert_eq!(escaped("a<b>&\u{1b}", 9), "a&lt;b&gt;&amp;\u{fffd}");
        assert_eq!(escaped("äbcdef", 3), "äbc…");
    }
}
