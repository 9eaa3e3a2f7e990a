//! The plot: bars on a logarithmic scale, written by hand as SVG, readable on light and on dark pages.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) nanoseconds: f64,
}

pub(crate) struct Panel {
    title: &'static str,
    groups: Vec<(String, Vec<Bar>)>,
}

impl Panel {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, groups: Vec::new() }
    }

    pub(crate) fn group(&mut self, name: String, bars: Vec<Bar>) {
        self.groups.push((name, bars));
    }

    pub(crate) fn find(&self, group: usize, name: &str) -> f64 {
        let bar = self.groups[group].1.iter().find(|bar| bar.name == name);
        bar.expect("each group has all of the bars").nanoseconds
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.groups.iter().flat_map(|group| &group.1)
    }

    fn height(&self) -> f64 {
        let groups = self.groups.len() as f64;
        TITLE + AXIS + groups * GROUP + self.bars().count() as f64 * ROW
    }
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 240.0;
const RIGHT: f64 = 100.0;
const ROW: f64 = 21.0;
const GROUP: f64 = 30.0;
const TITLE: f64 = 38.0;
const AXIS: f64 = 30.0;
const MARGIN: f64 = 20.0;

/// Colours are spelled out twice, since not every viewer knows CSS variables.
const STYLE: &str = "
  text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .group { font-weight: 600; }
  .tick { font-size: 11px; fill: #59636e; }
  .page { fill: #ffffff; }
  .line { stroke: #d8dee4; stroke-width: 1; }
  .bar { fill: #9aa7b5; }
  .ours { fill: #1a7f64; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .tick { fill: #9198a1; }
    .page { fill: #0d1117; }
    .line { stroke: #30363d; }
    .bar { fill: #5d6b7a; }
    .ours { fill: #3fb98f; }
  }
";

pub(crate) fn write(panels: &[Panel]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benchmark.svg");
    fs::write(&path, draw(panels)).expect("the plot can be written");
    println!("\nwrote {}", path.display());
}

fn draw(panels: &[Panel]) -> String {
    let height = 2.0 * MARGIN + panels.iter().map(|panel| panel.height() + MARGIN).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Times of the barrier and of its alternatives\">\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    let mut top = MARGIN;
    for panel in panels {
        draw_panel(&mut svg, panel, top);
        top += panel.height() + MARGIN;
    }
    text(&mut svg, "tick", MARGIN, height - MARGIN, "start", "logarithmic scales; shorter is better");
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, top: f64) {
    let scale = Scale::of(panel);
    text(svg, "title", MARGIN, top + 18.0, "start", panel.title);
    let bottom = top + panel.height() - AXIS;
    scale.draw(svg, top + TITLE, bottom);
    let mut y = top + TITLE;
    for (name, bars) in &panel.groups {
        text(svg, "group", MARGIN, y + 19.0, "start", name);
        y += GROUP;
        for bar in bars {
            draw_bar(svg, bar, &scale, y);
            y += ROW;
        }
    }
}

fn draw_bar(svg: &mut String, bar: &Bar, scale: &Scale, y: f64) {
    let class = if bar.name.starts_with("Barrier") { "bar ours" } else { "bar" };
    let end = scale.x(bar.nanoseconds);
    text(svg, "", LEFT - 10.0, y + 13.0, "end", bar.name);
    let width = (end - LEFT).max(1.0);
    writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\"/>",
        ROW - 5.0
    )
    .expect("a string takes it");
    text(svg, "", end + 8.0, y + 13.0, "start", &duration(bar.nanoseconds));
}

/// From a power of ten below the shortest time to one above the longest.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(panel: &Panel) -> Self {
        let shortest = panel.bars().map(|bar| bar.nanoseconds).fold(f64::MAX, f64::min).max(0.1);
        let longest = panel.bars().map(|bar| bar.nanoseconds).fold(0.0, f64::max).max(1.0);
        let from = (shortest * 0.8).log10().floor() as i32;
        Self { from, to: (longest.log10().ceil() as i32).max(from + 1) }
    }

    fn x(&self, nanoseconds: f64) -> f64 {
        let part = (nanoseconds.max(0.01).log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn draw(&self, svg: &mut String, top: f64, bottom: f64) {
        for power in self.from..=self.to {
            let time = 10f64.powi(power);
            let x = self.x(time);
            writeln!(
                svg,
                "<line class=\"line\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
            )
            .expect("a string takes it");
            text(svg, "tick", x, bottom + 15.0, "middle", &duration(time));
        }
    }
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
        .expect("a string takes it");
}

fn duration(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        time if time < 999.5 => (time, "ns"),
        time if time < 999_500.0 => (time / 1e3, "µs"),
        time => (time / 1e6, "ms"),
    };
    let decimals = if value < 9.95 && value.fract() != 0.0 { 1 } else { 0 };
    format!("{value:.decimals$} {unit}")
}
