//! How long something took, and how often: buckets of powers of two.

// Of std, under a model too: what is counted decides nothing, and need not be scheduled.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Times are sorted by powers of two of a microsecond: bucket `n` has those below 2^n µs. The last, above 4 s, has no end.
pub const TIME_BUCKETS: usize = 24;

/// Times, sorted as they come. Relaxed everywhere: each number is a sum of its own.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    nanoseconds: AtomicU64,
    times: [AtomicU64; TIME_BUCKETS],
}

/// What a histogram had at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Sum of all times.
    pub sum: Duration,
    /// How many took how long; see [`TIME_BUCKETS`].
    pub buckets: [u64; TIME_BUCKETS],
}

impl Histogram {
    /// One more.
    pub(crate) fn note(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.times[bucket(time)].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what is there now.
    pub(crate) fn add_to(&self, sum: &mut Times) {
        sum.sum += Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        let buckets = sum.buckets.iter_mut().zip(&self.times);
        buckets.for_each(|(sum, bucket)| *sum += bucket.load(Ordering::Relaxed));
    }

    pub(crate) fn read(&self) -> Times {
        let mut times = Times::default();
        self.add_to(&mut times);
        times
    }
}

impl Times {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

fn bucket(time: Duration) -> usize {
    let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    ((u64::BITS - microseconds.leading_zeros()) as usize).min(TIME_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_below_the_bound_of_its_bucket() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_micros(1)), 1);
        assert_eq!(bucket(Duration::from_micros(1023)), 10);
        assert_eq!(bucket(Duration::from_micros(1024)), 11);
        assert_eq!(bucket(Duration::from_secs(1000)), TIME_BUCKETS - 1);
    }
}
