//! The drawing of a [`Recording`]: no script, no fonts of its own, light and dark by the viewer's choice.

use std::fmt::Write;
use std::time::Duration;

use crate::timeline::{Bar, Recording, Role};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 92.0;
const LANE: f64 = 34.0;
const BAR: f64 = 18.0;
/// A bar is at least so wide, to be seen.
const NARROWEST: f64 = 2.0;
/// Of the sync's time, how much is shown before and after it.
const MARGIN: f64 = 0.35;
const LEAST_MARGIN: Duration = Duration::from_millis(6);

const STYLE: &str = "\
  :root { color-scheme: light dark }
  svg { background: #ffffff; font-family: system-ui, sans-serif; font-size: 13px }
  text { fill: #1f2328 } .faint { fill: #59636e } .title { font-size: 17px; font-weight: 600 }
  .rail { stroke: #d1d9e0 } .tick { stroke: #eaeef2 } .span { fill: #8250df; opacity: .09 }
  .cut { stroke: #8250df; stroke-width: 2 } .answer { stroke: #8250df; stroke-width: 2; stroke-dasharray: 5 4 }
  .sync { fill: #8250df } .host { fill: #1b7c83 }
  .covered { fill: #afb8c1 } .awaited { fill: #0969da } .later { fill: #2da44e } .held { fill: #e16f24 } .missed { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 } text { fill: #e6edf3 } .faint { fill: #9198a1 }
    .rail { stroke: #3d444d } .tick { stroke: #21262d } .span { fill: #a371f7; opacity: .13 }
    .cut, .answer { stroke: #a371f7 } .sync { fill: #a371f7 } .host { fill: #39a9b3 }
    .covered { fill: #59636e } .awaited { fill: #4493f8 } .later { fill: #3fb950 } .held { fill: #f0883e }
    .missed { fill: #ff5c54 }
  }";

/// The time that is shown, and where its moments are.
struct Scale {
    from: Duration,
    until: Duration,
    /// Where it is 0.
    cut: Duration,
}

impl Scale {
    fn around(sync: Bar) -> Scale {
        let margin = (sync.until - sync.from).mul_f64(MARGIN).max(LEAST_MARGIN);
        Scale { from: sync.from.saturating_sub(margin), until: sync.until + margin, cut: sync.from }
    }

    fn x(&self, moment: Duration) -> f64 {
        let part = moment.saturating_sub(self.from).as_secs_f64() / (self.until - self.from).as_secs_f64();
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn shows(&self, bar: Bar) -> bool {
        bar.until >= self.from && bar.from <= self.until
    }
}

/// As one SVG document.
pub(crate) fn draw(recording: &Recording) -> String {
    let scale = Scale::around(recording.sync);
    let lanes = recording.lanes.len() + 2;
    let bottom = TOP + lanes as f64 * LANE;
    let height = bottom + 84.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>One sync among writers</title>\n<style>\n{STYLE}\n</style>\n"
    );
    // Writing into a string cannot fail.
    _ = write_head(&mut out, recording);
    _ = write_span(&mut out, &scale, recording.sync, bottom);
    _ = write_grid(&mut out, &scale, recording, bottom);
    _ = write_bars(&mut out, &scale, recording);
    _ = write_cut(&mut out, &scale, recording.sync, bottom);
    _ = write_legend(&mut out, recording, bottom + 56.0);
    out.push_str("</svg>\n");
    out
}

type Written = std::fmt::Result;

fn write_head(out: &mut String, recording: &Recording) -> Written {
    let took = (recording.sync.until - recording.sync.from).as_secs_f64() * 1000.0;
    let awaited = recording.count(Role::AwaitedFor);
    let missed = match recording.count(Role::Missed) {
        0 => "missed none".to_owned(),
        count => format!("MISSED {count}"),
    };
    let held = match recording.count(Role::HeldUp) {
        0 => "held up nobody".to_owned(),
        count => format!("HELD UP {count}"),
    };
    writeln!(
        out,
        "<text x=\"20\" y=\"30\" class=\"title\">One sync, {took:.1} ms: waited for {awaited} changes under way, \
         {missed}, {held}</text>"
    )?;
    writeln!(out, "<text x=\"20\" y=\"52\" class=\"faint\">{}</text>", escaped(&recording.subject, 140))
}

fn write_span(out: &mut String, scale: &Scale, sync: Bar, bottom: f64) -> Written {
    let (cut, top) = (scale.x(sync.from), TOP - 12.0);
    let (width, height) = (scale.x(sync.until) - cut, bottom - top);
    writeln!(
        out,
        "<rect x=\"{cut:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" class=\"span\"/>"
    )
}

fn write_grid(out: &mut String, scale: &Scale, recording: &Recording, bottom: f64) -> Written {
    for moment in ticks(scale) {
        let x = scale.x(moment);
        let milliseconds = (moment.as_secs_f64() - recording.sync.from.as_secs_f64()) * 1000.0;
        writeln!(out, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"tick\"/>")?;
        let y = bottom + 18.0;
        writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" class=\"faint\">{milliseconds:.0} ms</text>"
        )?;
    }
    let names = recording.lanes.iter().map(String::as_str).chain(["SYNCFS", "host's sync"]);
    for (index, name) in names.enumerate() {
        let y = lane(index) + BAR / 2.0;
        let (x, right) = (LEFT - 12.0, WIDTH - RIGHT);
        writeln!(out, "<text x=\"{x}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", y + 4.5)?;
        writeln!(out, "<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" class=\"rail\"/>")?;
    }
    Ok(())
}

/// Round numbers of milliseconds from the cut on, both ways.
fn ticks(scale: &Scale) -> Vec<Duration> {
    const MOST: u32 = 11;
    let shown = scale.until - scale.from;
    let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000].map(Duration::from_millis);
    let step = steps.into_iter().find(|step| *step * MOST >= shown).unwrap_or(shown);
    let back = (scale.cut - scale.from).as_millis() / step.as_millis().max(1);
    let first = scale.cut - step * u32::try_from(back).unwrap_or(0);
    (0..=MOST + 1).map(|index| first + step * index).take_while(|moment| *moment <= scale.until).collect()
}

fn write_bars(out: &mut String, scale: &Scale, recording: &Recording) -> Written {
    for change in recording.changes.iter().filter(|change| scale.shows(change.bar)) {
        let (class, words) = look(recording.role(change));
        write_bar(out, scale, change.lane, change.bar, class, words)?;
    }
    let below = recording.lanes.len();
    write_bar(out, scale, below, recording.sync, "sync", "SYNCFS")?;
    for sync in recording.host_syncs.iter().filter(|sync| scale.shows(**sync)) {
        write_bar(out, scale, below + 1, *sync, "host", "sync of the host")?;
    }
    Ok(())
}

fn look(role: Role) -> (&'static str, &'static str) {
    match role {
        Role::Covered => ("covered", "before the cut"),
        Role::AwaitedFor => ("awaited", "under way at the cut"),
        Role::Later => ("later", "after the cut"),
        Role::HeldUp => ("held", "after the cut, and held up by the sync"),
        Role::Missed => ("missed", "before the cut, and not on the disk"),
    }
}

fn write_bar(out: &mut String, scale: &Scale, index: usize, bar: Bar, class: &str, words: &str) -> Written {
    let (from, y) = (scale.x(bar.from), lane(index));
    let width = (scale.x(bar.until) - from).max(NARROWEST);
    let took = bar.until.saturating_sub(bar.from).as_secs_f64() * 1000.0;
    writeln!(
        out,
        "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" class=\"{class}\">\
         <title>{words}: {took:.2} ms</title></rect>"
    )
}

fn write_cut(out: &mut String, scale: &Scale, sync: Bar, bottom: f64) -> Written {
    let (cut, answer, top) = (scale.x(sync.from), scale.x(sync.until), TOP - 12.0);
    for (x, class, words, anchor) in
        [(cut, "cut", "the cut", "end"), (answer, "answer", "SYNCFS has succeeded", "start")]
    {
        writeln!(out, "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"{class}\"/>")?;
        let (x, y) = (if anchor == "end" { x - 6.0 } else { x + 6.0 }, top + 4.0);
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>")?;
    }
    Ok(())
}

fn write_legend(out: &mut String, recording: &Recording, y: f64) -> Written {
    let entries = [
        (Role::Covered, "settled before the cut"),
        (Role::AwaitedFor, "waited for"),
        (Role::Later, "later, not waited for"),
        (Role::HeldUp, "later, held up"),
        (Role::Missed, "earlier, missed"),
    ];
    let mut x = 20.0;
    for (role, words) in entries {
        let class = look(role).0;
        let text = format!("{words} ({})", recording.count(role));
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" rx=\"2\" class=\"{class}\"/>",
            y - 11.0
        )?;
        writeln!(out, "<text x=\"{}\" y=\"{y}\">{text}</text>", x + 18.0)?;
        x += 32.0 + 6.9 * text.chars().count() as f64;
    }
    Ok(())
}

fn lane(index: usize) -> f64 {
    TOP + index as f64 * LANE + (LANE - BAR) / 2.0
}

/// As XML wants it, and no longer than so many letters.
fn escaped(text: &str, most: usize) -> String {
    let short: String = text.chars().take(most).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    short.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") + dots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(from: u64, until: u64) -> Bar {
        Bar { from: Duration::from_millis(from), until: Duration::from_millis(until) }
    }

    #[test]
    fn the_cut_has_a_tick_of_its_own() {
        for length in [1, 7, 30, 200, 3000] {
            let sync = milliseconds(20_000, 20_000 + length);
            let scale = Scale::around(sync);
            let near = |tick: &Duration| tick.abs_diff(sync.from) < Duration::from_millis(1);
            assert!(ticks(&scale).iter().any(near), "{length} ms: {:?}", ticks(&scale));
            assert!(ticks(&scale).len() >= 3);
        }
    }

    #[test]
    fn names_do_not_break_the_document() {
        let sync = milliseconds(10, 20);
        let recording =
            Recording { subject: "a <b> & c".into(), lanes: vec!["w".into()], sync, ..Default::default() };
        let drawn = draw(&recording);
        assert!(drawn.contains("a &lt;b&gt; &amp; c") && drawn.trim_end().ends_with("</svg>"));
        assert_eq!(escaped("abcdef", 3), "abc…");
    }
}
