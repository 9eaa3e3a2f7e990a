//! How long to look at a ring before sleeping: for an answer on one side, for a request on the other.
//!
//! Looking costs a processor's time and saves a wake-up, which costs more than most requests do. So a thread looks as
//! long as that has paid lately: the time is halved by each look in vain, down to nothing, and back to the whole by one
//! that finds something. Where it has come down to nothing, one chance in [`PROBE_EVERY`] is taken all the same, since
//! only looking shows that looking pays again.
//!
//! A look that has taken a few microseconds gives way, time and again, to whatever else is to run on its processor: that may be
//! the one that is waited for. If there was somebody, it ends: Linux puts who gives way behind them by a time slice (since
//! 6.6), and who sleeps in front of them when he is woken.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One in so many looks is made although lately it did not pay.
const PROBE_EVERY: u32 = 16;
/// Looks at the ring between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 32;
/// How long to look before giving way.
const ALONE: Duration = Duration::from_micros(5);
/// When giving way took longer, somebody else ran meanwhile.
const GAVE_WAY: Duration = Duration::from_micros(20);

/// How long to look on one queue. Threads that look at the same time may overwrite each other's opinion; it is only one.
#[derive(Debug)]
pub(crate) struct Look {
    most_us: u32,
    now_us: AtomicU32,
    skipped: AtomicU32,
    /// Since the queue's own thread last asked, others have looked.
    lent: AtomicBool,
}

impl Look {
    /// Looks for so long at most. 0: never.
    pub(crate) fn new(most_us: u32) -> Look {
        Look {
            most_us,
            now_us: AtomicU32::new(most_us),
            skipped: AtomicU32::new(0),
            lent: AtomicBool::new(false),
        }
    }

    /// Whether there is any looking at all.
    pub(crate) fn is_on(&self) -> bool {
        self.most_us > 0
    }

    /// Looks until `found`, until the time is over, or until `stop`; says whether found.
    pub(crate) fn finds(&self, found: impl Fn() -> bool, stop: impl Fn() -> bool) -> bool {
        self.finds_unless(give_way, found, stop)
    }

    fn finds_unless(
        &self,
        others_run: impl Fn() -> bool,
        found: impl Fn() -> bool,
        stop: impl Fn() -> bool,
    ) -> bool {
        if found() {
            return true;
        }
        let time_us = self.time_us();
        if time_us == 0 {
            return false;
        }
        let seen = look(Duration::from_micros(u64::from(time_us)), others_run, found, stop);
        let next_us = match seen {
            Seen::Found => self.most_us,
            Seen::Nothing => time_us / 2,
            Seen::OthersRun => 0,
        };
        self.now_us.store(next_us, Ordering::Relaxed);
        seen == Seen::Found
    }

    /// A thread that waits for its answer looks itself.
    pub(crate) fn lend(&self) {
        self.lent.store(true, Ordering::Relaxed);
    }

    /// Whether one has done so since this was last asked.
    pub(crate) fn was_lent(&self) -> bool {
        self.lent.load(Ordering::Relaxed) && self.lent.swap(false, Ordering::Relaxed)
    }

    /// The queue's own thread has slept and was woken: what follows is a burst, worth a short look.
    pub(crate) fn woken(&self) {
        self.now_us.fetch_max(self.most_us / 8, Ordering::Relaxed);
    }

    fn time_us(&self) -> u32 {
        let time_us = self.now_us.load(Ordering::Relaxed);
        if time_us > 0 || !self.is_on() {
            return time_us;
        }
        let skipped = self.skipped.fetch_add(1, Ordering::Relaxed);
        if skipped % PROBE_EVERY == PROBE_EVERY - 1 { self.most_us } else { 0 }
    }
}

/// What a look came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Found,
    Nothing,
    /// Others had work for this processor.
    OthersRun,
}

fn look(
    time: Duration,
    others_run: impl Fn() -> bool,
    found: impl Fn() -> bool,
    stop: impl Fn() -> bool,
) -> Seen {
    let begun = Instant::now();
    loop {
        let so_far = begun.elapsed();
        if so_far >= time || stop() {
            return Seen::Nothing;
        }
        let others_run = so_far > ALONE && others_run();
        for _ in 0..LOOKS_PER_CLOCK {
            if found() {
                return Seen::Found;
            }
            std::hint::spin_loop();
        }
        if others_run {
            return Seen::OthersRun;
        }
    }
}

/// Lets others run on this processor, if there are any; says whether there were.
fn give_way() -> bool {
    let begun = Instant::now();
    thread::yield_now();
    begun.elapsed() > GAVE_WAY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_comes_down_to_a_probe_now_and_then() {
        let look = Look::new(64);
        for _ in 0..7 {
            assert!(!look.finds(|| false, || true));
        }
        let times: Vec<_> = (0..3 * PROBE_EVERY).map(|_| look.time_us()).collect();
        assert_eq!(times.iter().filter(|time| **time == 64).count(), 3);
        assert_eq!(times.iter().filter(|time| **time == 0).count(), 3 * (PROBE_EVERY as usize - 1));
    }

    #[test]
    fn one_find_brings_the_whole_time_back() {
        let look = Look::new(64);
        for _ in 0..7 {
            assert!(!look.finds(|| false, || true));
        }
        look.woken();
        assert_eq!(look.time_us(), 8);
        let looks = AtomicU32::new(0);
        assert!(look.finds(|| looks.fetch_add(1, Ordering::Relaxed) > 0, || false));
        assert_eq!(look.time_us(), 64);
    }

    #[test]
    fn a_look_ends_where_others_have_work_and_they_are_left_alone_for_a_while() {
        let look = Look::new(1_000_000);
        let begun = Instant::now();
        assert!(!look.finds_unless(|| true, || false, || false));
        assert!(begun.elapsed() < Duration::from_micros(500_000));
        assert_eq!(look.time_us(), 0);
        // What came while they ran is found.
        let looks = AtomicU32::new(0);
        let found = || looks.fetch_add(1, Ordering::Relaxed) >= 2 * LOOKS_PER_CLOCK;
        let waited = Look::new(1_000_000);
        assert!(waited.finds_unless(|| looks.load(Ordering::Relaxed) > LOOKS_PER_CLOCK, found, || false));
    }

    #[test]
    fn off_means_that_nothing_is_looked_for_twice() {
        let look = Look::new(0);
        let looks = AtomicU32::new(0);
        for _ in 0..100 {
            look.woken();
            assert!(!look.finds(|| looks.fetch_add(1, Ordering::Relaxed) == u32::MAX, || false));
        }
        assert_eq!(looks.into_inner(), 100);
    }
}
