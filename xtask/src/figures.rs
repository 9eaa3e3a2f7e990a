//! What the tests counted, held against what they are to reach.
//!
//! A test that counts something prints `FIGURE name number`, and one that caught a deliberate bug prints
//! `CAUGHT number what`. Here both are gathered, from whatever step prints them, and shown in the end. A step that passed
//! and has counted less than it is to has failed.

use std::collections::BTreeMap;

use crate::mutants::{self, Mutant};

/// What is to be reached.
pub(crate) struct Goal {
    /// The steps which count that; the goal holds if all of them have run.
    steps: &'static [&'static str],
    figure: &'static str,
    what: &'static str,
    bound: Bound,
    /// How many times as much is to be reached by a long run.
    long: u64,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(u64),
    AtMost(u64),
}

use Bound::{AtLeast, AtMost};

const fn goal(
    steps: &'static [&'static str],
    figure: &'static str,
    what: &'static str,
    bound: Bound,
    long: u64,
) -> Goal {
    Goal { steps, figure, what, bound, long }
}

const GOALS: [Goal; 11] = [
    goal(&["loom"], "loom-schedules", "schedules of the barrier, all there are", AtLeast(1_000_000), 1),
    goal(&["shuttle"], "shuttle-schedules", "schedules of the barrier, at random", AtLeast(1_000_000), 1),
    goal(&["simulation"], "seeds", "seeds of client and server, simulated", AtLeast(200_000), 50),
    goal(
        &["simulation"],
        "short-workloads",
        "workloads of up to three operations, all there are",
        AtLeast(16_956),
        1,
    ),
    goal(&["simulation"], "crash-points", "moments at which a host was looked at", AtLeast(2_000_000), 50),
    goal(&["simulation"], "faults", "faults of such a host", AtLeast(100_000), 50),
    goal(
        &["power-cuts"],
        "power-cut-states-native",
        "states after a power cut, natively",
        AtLeast(1_500),
        10,
    ),
    goal(&["power-cuts"], "power-cut-states-guest", "states after a power cut, guests", AtLeast(600), 10),
    goal(&["power-cuts"], "power-cut-states-broken", "of them with a broken promise", AtMost(0), 1),
    goal(&["power-cuts"], "host-errors", "writes and flushes that the disk failed", AtLeast(200), 1),
    goal(&mutants::STEPS, "mutants-escaped", "deliberate bugs that no test caught", AtMost(0), 1),
];

/// What was counted so far.
#[derive(Default)]
pub(crate) struct Figures {
    sums: BTreeMap<String, u64>,
    /// By the number in the list of deliberate bugs: in which step it was caught, and what caught it.
    caught: BTreeMap<usize, Vec<(String, String)>>,
    /// Commands that bring a failure back.
    pub(crate) again: Vec<String>,
}

impl Figures {
    /// Takes what a line of this step's output counts. What another thread printed before it may stand in the same line.
    pub(crate) fn read(&mut self, step: &str, line: &str) {
        if let Some((_, figure)) = line.split_once("FIGURE ")
            && let Some((name, number)) = figure.trim().rsplit_once(' ')
            && let Ok(number) = number.parse::<u64>()
        {
            *self.sums.entry(name.to_owned()).or_default() += number;
        }
        if line.contains("again: ") && line.contains("cargo ") {
            self.again.push(format!("{step}: {}", line.trim()));
        }
        if let Some((_, catch)) = line.split_once("CAUGHT ")
            && let Some((number, what)) = catch.trim().split_once(' ')
            && let Ok(number) = number.parse()
        {
            self.caught.entry(number).or_default().push((step.to_owned(), what.to_owned()));
        }
    }

    /// What was counted, in words, and what was not reached by steps that have all run.
    pub(crate) fn report(&self, long: bool, has_run: impl Fn(&str) -> bool) -> Report {
        let mut report = Report::default();
        let goals: Vec<_> = GOALS.iter().filter(|goal| goal.steps.iter().all(|step| has_run(step))).collect();
        if !goals.is_empty() {
            report.line(format!("\n{:>10}  {:>16}  counted", "", "to be"));
        }
        for goal in goals {
            let found = self.sums.get(goal.figure).copied();
            let (reached, bound) = match goal.bound {
                AtLeast(least) => {
                    let least = if long { least * goal.long } else { least };
                    (found.is_some_and(|found| found >= least), format!("{least} or more"))
                }
                AtMost(most) => (found.is_some_and(|found| found <= most), most.to_string()),
            };
            let shown = found.map_or("none".to_owned(), |found| found.to_string());
            report.line(format!("{shown:>10}  {bound:>16}  {}", goal.what));
            if !reached {
                report.missed.push(format!("{}: {shown}, to be {bound}", goal.what));
            }
        }
        if mutants::STEPS.iter().all(|step| has_run(step)) {
            self.report_mutants(&mut report);
        }
        report
    }

    /// The table of deliberate bugs. One counts as caught if all have caught it that must.
    fn report_mutants(&self, report: &mut Report) {
        report.line(format!("\n{:>2}  {:70}  caught by", "#", "deliberate bug"));
        let mut escaped = 0;
        for Mutant { number, bug, caught_by } in &mutants::LIST {
            let seen = self.caught.get(number).map_or(&[][..], Vec::as_slice);
            let is_caught = |(step, test): &(&str, &str)| {
                seen.iter().any(|(by, what)| by == step && what.ends_with(test))
            };
            for (place, must) in caught_by.iter().enumerate() {
                let (number, bug) = if place == 0 { (number.to_string(), *bug) } else { (String::new(), "") };
                let missed = if is_caught(must) { "" } else { "NOT " };
                report.line(format!("{number:>2}  {bug:70}  {missed}{}: {}", must.0, must.1));
            }
            if let Some((step, test)) = caught_by.iter().find(|must| !is_caught(must)) {
                escaped += 1;
                report.missed.push(format!("deliberate bug {number}, {bug}: not caught by {step}: {test}"));
            }
        }
        let all = mutants::LIST.len();
        report.line(format!("{} of {all} caught", all - escaped));
    }
}

/// What is to be said in the end.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) missed: Vec<String>,
}

impl Report {
    fn line(&mut self, line: String) {
        self.text += &line;
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_wherever_they_stand_in_a_line() {
        let mut figures = Figures::default();
        for line in [
            "test a ... FIGURE seeds 150000",
            "FIGURE seeds 60000",
            "FIGURE seeds",
            "FIGURE seeds many",
            "seeds 9",
        ] {
            figures.read("simulation", line);
        }
        assert_eq!(figures.sums, BTreeMap::from([("seeds".to_owned(), 210_000)]));
    }

    #[test]
    fn what_a_step_did_not_reach_or_not_count_is_missed() {
        let mut figures = Figures::default();
        let missed = |figures: &Figures| figures.report(false, |step| step == "simulation").missed.len();
        assert_eq!(missed(&figures), 4, "nothing was counted at all");
        for line in [
            "FIGURE seeds 200000",
            "FIGURE crash-points 2000000",
            "FIGURE short-workloads 16956",
            "FIGURE faults 99999",
        ] {
            figures.read("simulation", line);
        }
        assert_eq!(missed(&figures), 1);
        figures.read("simulation", "FIGURE faults 1");
        assert_eq!(missed(&figures), 0);
        assert_eq!(
            figures.report(false, |_| false).missed.len(),
            0,
            "a step that was not run misses nothing"
        );
    }

    #[test]
    fn a_deliberate_bug_that_one_test_did_not_catch_is_missed() {
        let mut figures = Figures::default();
        let all = mutants::LIST.iter();
        let mut all = all.flat_map(|mutant| mutant.caught_by.iter().map(move |by| (mutant.number, by)));
        let (first, (step, test)) = all.next().expect("there are deliberate bugs");
        for (number, (step, test)) in all {
            figures.read(step, &format!("CAUGHT {number} Bug module::{test}"));
        }
        figures.read(step, "CAUGHT - Bug of_no_number");
        let missed = |figures: &Figures| figures.report(false, |step| mutants::STEPS.contains(&step)).missed;
        let escaped =
            |figures: &Figures| missed(figures).iter().filter(|missed| missed.contains("not caught")).count();
        assert_eq!(escaped(&figures), 1);
        figures.read("another step", &format!("CAUGHT {first} Bug module::{test}"));
        assert_eq!(escaped(&figures), 1);
        figures.read(step, &format!("CAUGHT {first} Bug module::{test}"));
        assert_eq!(escaped(&figures), 0);
    }
}
