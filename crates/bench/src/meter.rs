//! Operations, the time they took, and what they cost the server.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::Process;

/// Part of a row's time that is spent before anything counts.
const WARM_UP_PART: u32 = 8;
/// Times of single steps that are kept for the distribution, at most.
const LATENCIES_MAX: usize = 1 << 20;
/// Points of a distribution.
pub(crate) const LATENCY_PARTS: usize = 31;

/// Which part of all times is below a point of the distribution: 0, 0.9 at the tenth, 0.99 at the twentieth, 0.999 at the last.
pub(crate) fn part_below(index: usize) -> f64 {
    1.0 - 10f64.powf(-(index as f64) / 10.0)
}

/// What one row came to.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Operations done.
    pub operations: u64,
    /// In this time.
    pub seconds: f64,
    /// Processor time of the server meanwhile.
    pub server_cpu_us: f64,
    /// Memory of the server afterwards, in KiB.
    pub server_resident_kib: u64,
    /// Time of the middle one and of the slowest hundredth, where operations were made one by one.
    pub latency_us: Option<[f64; 2]>,
    /// Such times from the shortest on, each the longest of its [`part_below`].
    pub(crate) latencies_us: Vec<f64>,
}

impl Sample {
    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    /// Processor time of the server for one operation.
    pub fn cpu_us(&self) -> f64 {
        self.server_cpu_us / self.operations.max(1) as f64
    }
}

/// Measures for a time.
pub(crate) struct Meter<'a> {
    time: Duration,
    server: Option<&'a Process>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(time: Duration, server: Option<&'a Process>) -> Meter<'a> {
        Meter { time, server }
    }

    /// Repeats `step`, which says how many operations it was, until the time is over.
    pub(crate) fn run(&self, mut step: impl FnMut() -> Result<u64>) -> Result<Sample> {
        let begun = Instant::now();
        while begun.elapsed() < self.time / WARM_UP_PART {
            step()?;
        }
        let mut sample = Sample::default();
        let mut steps: Vec<u32> = Vec::with_capacity(1 << 16);
        let mut one_by_one = true;
        let cpu_before = self.server_cpu_us()?;
        let begun = Instant::now();
        let mut last = begun;
        while last - begun < self.time {
            let operations = step()?;
            let now = Instant::now();
            one_by_one &= operations == 1;
            if steps.len() < LATENCIES_MAX {
                steps.push(u32::try_from((now - last).as_nanos()).unwrap_or(u32::MAX));
            }
            sample.operations += operations;
            last = now;
        }
        sample.seconds = (last - begun).as_secs_f64();
        sample.server_cpu_us = self.server_cpu_us()? - cpu_before;
        sample.server_resident_kib = self.server_resident_kib()?;
        if one_by_one {
            steps.sort_unstable();
            sample.latency_us = Some([0.5, 0.99].map(|part| at_part(&steps, part)));
            sample.latencies_us =
                (0..LATENCY_PARTS).map(|index| at_part(&steps, part_below(index))).collect();
        }
        Ok(sample)
    }

    /// As [`Meter::run`] for long steps with something before each that does not count.
    pub(crate) fn run_after(
        &self,
        mut before: impl FnMut() -> Result<()>,
        mut step: impl FnMut() -> Result<u64>,
    ) -> Result<Sample> {
        let mut sample = Sample::default();
        while sample.seconds < self.time.as_secs_f64() {
            before()?;
            let (cpu_before, begun) = (self.server_cpu_us()?, Instant::now());
            sample.operations += step()?;
            sample.seconds += begun.elapsed().as_secs_f64();
            sample.server_cpu_us += self.server_cpu_us()? - cpu_before;
        }
        sample.server_resident_kib = self.server_resident_kib()?;
        Ok(sample)
    }

    fn server_cpu_us(&self) -> Result<f64> {
        self.server.map_or(Ok(0.0), Process::cpu_us)
    }

    fn server_resident_kib(&self) -> Result<u64> {
        self.server.map_or(Ok(0), Process::resident_kib)
    }
}

/// Of sorted times, the one that this part of them is below, in microseconds.
fn at_part(steps_ns: &[u32], part: f64) -> f64 {
    // A part that is a whole number of steps must not become less than it by rounding.
    let index = (steps_ns.len() as f64 * part + 1e-6) as usize;
    steps_ns.get(index.min(steps_ns.len().saturating_sub(1))).map_or(0.0, |ns| f64::from(*ns) / 1e3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn operations_and_time_are_counted_after_the_warm_up() {
        let meter = Meter::new(Duration::from_millis(40), None);
        let step = || {
            std::thread::sleep(Duration::from_millis(1));
            Ok(2)
        };
        let sample = meter.run(step).unwrap();
        assert!(sample.operations >= 2 && sample.operations <= 80, "{sample:?}");
        assert!(sample.seconds >= 0.04 && sample.rate() <= 2000.0, "{sample:?}");
        assert!(sample.latency_us.is_none(), "two at once have no latency each");
    }

    #[test]
    fn what_is_done_before_a_step_does_not_count() {
        let meter = Meter::new(Duration::from_millis(5), None);
        let before = || {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        let step = || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(1)
        };
        assert_eq!(meter.run_after(before, step).unwrap().operations, 1);
    }

    #[test]
    fn the_middle_and_the_slowest_hundredth() {
        let steps: Vec<u32> = (1..=1000).map(|us| us * 1000).collect();
        assert_eq!([0.0, 0.5, 0.99, 0.999].map(|part| at_part(&steps, part)), [1.0, 501.0, 991.0, 1000.0]);
        assert_eq!([10, 20, 30].map(|index| at_part(&steps, part_below(index))), [901.0, 991.0, 1000.0]);
        assert_eq!(at_part(&[], 0.5), 0.0);
    }
}
