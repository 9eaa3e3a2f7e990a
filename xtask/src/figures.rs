//! What the tests counted, held against what they are to reach.
//!
//! A test that counts something prints `FIGURE name number`, and one that caught a deliberate bug prints
//! `CAUGHT number what`. Here both are gathered, from whatever step prints them, and shown in the end. A step that passed
//! and has counted less than it is to has failed.

use std::collections::BTreeMap;

use crate::mutants;

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

/// Steps that switch deliberate bugs on.
pub(crate) const MUTANT_STEPS: [&str; 7] = [
    "mutants-loom",
    "mutants-shuttle",
    "mutants-simulation",
    "mutants",
    "mutants-passthrough",
    "mutants-server",
    "power-cuts",
];

#[rustfmt::skip]
const GOALS: [Goal; 9] = [
    Goal { steps: &["loom"], figure: "loom-schedules", what: "schedules of the barrier, all there are", bound: AtLeast(1_000_000), long: 1 },
    Goal { steps: &["shuttle"], figure: "shuttle-schedules", what: "schedules of the barrier, at random", bound: AtLeast(1_000_000), long: 1 },
    Goal { steps: &["simulation"], figure: "seeds", what: "seeds of client and server, simulated", bound: AtLeast(200_000), long: 50 },
    Goal { steps: &["simulation"], figure: "crash-points", what: "moments at which a host was looked at", bound: AtLeast(2_000_000), long: 50 },
    Goal { steps: &["simulation"], figure: "faults", what: "faults of such a host", bound: AtLeast(100_000), long: 50 },
    Goal { steps: &["power-cuts"], figure: "power-cut-states-native", what: "states after a power cut, natively", bound: AtLeast(1_500), long: 10 },
    Goal { steps: &["power-cuts"], figure: "power-cut-states-guest", what: "states after a power cut, guests", bound: AtLeast(600), long: 10 },
    Goal { steps: &["power-cuts"], figure: "power-cut-states-broken", what: "of them with a broken promise", bound: AtMost(0), long: 1 },
    Goal { steps: &MUTANT_STEPS, figure: "mutants-escaped", what: "deliberate bugs that no test caught", bound: AtMost(0), long: 1 },
];

/// What was counted so far.
#[derive(Default)]
pub(crate) struct Figures {
    sums: BTreeMap<String, u64>,
    /// By the number in the list of deliberate bugs: what caught it, and in which step.
    caught: BTreeMap<usize, Vec<String>>,
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
        if line.contains("again: ") {
            self.again.push(format!("{step}: {}", line.trim()));
        }
        if let Some((_, catch)) = line.split_once("CAUGHT ")
            && let Some((number, what)) = catch.trim().split_once(' ')
            && let Ok(number) = number.parse()
        {
            self.caught.entry(number).or_default().push(format!("{step}: {what}"));
        }
    }

    /// Shows what was counted, and returns what was not reached by steps that have all run.
    pub(crate) fn close(&self, long: bool, has_run: impl Fn(&str) -> bool) -> Vec<String> {
        let mut missed = Vec::new();
        let goals: Vec<_> = GOALS.iter().filter(|goal| goal.steps.iter().all(|step| has_run(step))).collect();
        if !goals.is_empty() {
            println!("\n{:>12}  {:>14}  counted", "", "to be");
        }
        for goal in goals {
            let found = self.sums.get(goal.figure).copied();
            let (reached, bound) = match goal.bound {
                AtLeast(least) if long => {
                    let least = least * goal.long;
                    (found.is_some_and(|found| found >= least), format!("{least} or more"))
                }
                AtLeast(least) => (found.is_some_and(|found| found >= least), format!("{least} or more")),
                AtMost(most) => (found.is_some_and(|found| found <= most), most.to_string()),
            };
            let shown = found.map_or("none".to_owned(), |found| found.to_string());
            println!("{shown:>12}  {bound:>16}  {}", goal.what);
            if !reached {
                missed.push(format!("{}: {shown}, to be {bound}", goal.what));
            }
        }
        if MUTANT_STEPS.iter().all(|step| has_run(step)) {
            missed.extend(self.close_mutants());
        }
        missed
    }

    /// The table of deliberate bugs, and those that nothing caught.
    fn close_mutants(&self) -> Vec<String> {
        println!("\n{:>3}  {:75} caught by", "#", "deliberate bug");
        let mut missed = Vec::new();
        for (number, bug) in mutants::LIST {
            let caught = self.caught.get(&number).map(Vec::as_slice).unwrap_or_default();
            println!("{number:>3}  {bug:75} {}", caught.first().map_or("NOTHING", String::as_str));
            for more in caught.iter().skip(1) {
                println!("{:81}{more}", "");
            }
            if caught.is_empty() {
                missed.push(format!("deliberate bug {number}, {bug}: caught by nothing"));
            }
        }
        let all = mutants::LIST.len();
        println!("{} of {all} caught", all - missed.len());
        missed
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
        let missed = |figures: &Figures| figures.close(false, |step| step == "simulation").len();
        assert_eq!(missed(&figures), 3, "nothing was counted at all");
        for line in ["FIGURE seeds 200000", "FIGURE crash-points 2000000", "FIGURE faults 99999"] {
            figures.read("simulation", line);
        }
        assert_eq!(missed(&figures), 1);
        figures.read("simulation", "FIGURE faults 1");
        assert_eq!(missed(&figures), 0);
        assert_eq!(figures.close(false, |_| false).len(), 0, "a step that was not run misses nothing");
    }

    #[test]
    fn a_deliberate_bug_that_nothing_caught_is_missed() {
        let mut figures = Figures::default();
        (1..32).for_each(|number| figures.read("mutants", &format!("CAUGHT {number} Bug a_test")));
        figures.read("mutants", "CAUGHT - Bug of_no_number");
        assert_eq!(figures.close_mutants().len(), 1);
        figures.read("power-cuts", "CAUGHT 32 Bug a_test");
        assert!(figures.close_mutants().is_empty());
    }
}
