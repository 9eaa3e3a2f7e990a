//! Which processor a queue's thread stays on: `--queue-affinity`.

use std::num::NonZeroU16;
use std::str::FromStr;

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processors in the order of the queues that they are for, never none: `0,2-3`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Processors(Vec<usize>);

impl FromStr for Processors {
    type Err = String;

    fn from_str(text: &str) -> Result<Processors, String> {
        let number = |text: &str| match text.parse::<usize>() {
            Ok(number) if number < CpuSet::MAX_CPU => Ok(number),
            Ok(number) => Err(format!("there is no processor {number}")),
            Err(_) => Err(format!("\"{text}\" is not a processor; use numbers and ranges such as 0,2-3")),
        };
        let mut processors = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("\"{part}\" is no range: {first} is behind {last}"));
            }
            processors.extend(first..=last);
        }
        Ok(Processors(processors))
    }
}

impl Processors {
    /// Refuses those that this process may not use, and those that are not there.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let allowed =
            sched_getaffinity(None).context("the processors of this process cannot be asked for")?;
        match self.0.iter().find(|processor| !allowed.is_set(**processor)) {
            None => Ok(()),
            Some(processor) => bail!(
                "--queue-affinity: this process may not use processor {processor}, or there is none; it may use {}",
                list(&allowed)
            ),
        }
    }

    /// Ties this thread to the processor of a request queue. The first queue is 1; where there are more queues than
    /// processors the list begins again.
    pub(crate) fn tie(&self, queue: NonZeroU16) {
        let processor = self.of(queue);
        let mut only = CpuSet::new();
        only.set(processor);
        if let Err(error) = sched_setaffinity(None, &only) {
            let why = match error {
                Errno::INVAL => "it is not there any more, or not for us".into(),
                other => other.to_string(),
            };
            tracing::warn!("queue {queue} could not be tied to processor {processor}, and goes on: {why}");
        }
    }

    fn of(&self, queue: NonZeroU16) -> usize {
        self.0[usize::from(queue.get() - 1) % self.0.len()]
    }
}

/// As one would write it: `0-3,6`.
fn list(set: &CpuSet) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for processor in (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == processor => *last = processor,
            _ => ranges.push((processor, processor)),
        }
    }
    let range = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn a_list_is_numbers_and_ranges_in_the_order_given() {
        assert_eq!("5,0-2".parse(), Ok(Processors(vec![5, 0, 1, 2])));
        assert_eq!("1,1".parse(), Ok(Processors(vec![1, 1])));
        for bad in ["", ",", "1,", "a", "-1", "2-1", "1-", "0-99999999", "1024", "18446744073709551616"] {
            assert!(bad.parse::<Processors>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn queues_beyond_the_list_begin_it_again() {
        let processors: Processors = "4,7".parse().unwrap();
        let of = |queue| processors.of(NonZeroU16::new(queue).unwrap());
        assert_eq!([1, 2, 3, 4].map(of), [4, 7, 4, 7]);
    }

    #[test]
    fn processors_are_listed_as_they_are_given() {
        let mut set = CpuSet::new();
        [0, 1, 2, 5, 7, 8].into_iter().for_each(|processor| set.set(processor));
        assert_eq!(list(&set), "0-2,5,7-8");
    }
}
