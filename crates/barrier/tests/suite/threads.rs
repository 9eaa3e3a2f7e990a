//! The same scenarios on real threads and real memory, and under Miri.
//!
//! `BARRIER_ROUNDS` is how often each is run, `BARRIER_MILLISECONDS` how long the long run takes.

use crate::runtime::number;
use crate::scenarios::*;
use crate::subject::*;

fn repeat(scenario: impl Fn()) {
    let rounds = number("BARRIER_ROUNDS", if cfg!(miri) { 4 } else { 500 });
    (0..rounds).for_each(|_| scenario());
}

macro_rules! suite {
    ($($module:ident: $subject:ty;)*) => { $(mod $module {
        use super::*;

        #[test]
        fn earlier_writes_are_waited_for() {
            repeat(|| writers_and_syncs::<$subject>(3, 10, 3));
        }
        #[test]
        fn syncs_overlap_over_a_slow_write() {
            repeat(|| super::syncs_overlap_over_a_slow_write::<$subject>());
        }
        #[test]
        fn later_writes_are_not_waited_for() {
            repeat(|| super::later_writes_are_not_waited_for::<$subject>(3, 10));
        }
        #[test]
        fn at_most_one_late_write_a_thread() {
            repeat(|| super::at_most_one_late_write_a_thread::<$subject>(3, 10));
        }
        #[test]
        fn tickets_settle_on_other_threads() {
            repeat(|| super::tickets_settle_on_other_threads::<$subject>());
        }
        #[test]
        fn a_callback_may_cut_again() {
            repeat(|| super::a_callback_may_cut_again::<$subject>());
        }
        #[test]
        fn an_abort_ends_every_wait() {
            repeat(|| super::an_abort_ends_every_wait::<$subject>());
        }
        #[test]
        fn an_abort_races_with_the_last_settle() {
            repeat(|| super::an_abort_races_with_the_last_settle::<$subject>());
        }
        #[test]
        fn counting_may_be_switched_off() {
            repeat(|| super::counting_may_be_switched_off::<$subject>());
        }
        #[test]
        fn a_long_run() {
            super::a_long_run::<$subject>(number("BARRIER_MILLISECONDS", if cfg!(miri) { 50 } else { 1000 }) as u64);
        }
        #[test]
        fn threads_come_and_go() {
            repeat(|| super::threads_come_and_go::<$subject>(4));
        }
    })* };
}

suite! {
    bucket: Bucket;
    two_buckets: TwoBuckets;
    four_buckets: FourBuckets;
    eight_buckets: EightBuckets;
    full_fences: FullFences;
}
