//! Very many schedules, sequentially consistent: random ones, and PCT, which finds bugs of small depth soon.
//!
//! `BARRIER_SCHEDULES` is the number of schedules of the whole suite, a million unless told otherwise.

use crate::runtime::number;
use crate::scenarios::*;
use crate::subject::*;

/// Tests below, times two schedulers.
const RUNS: usize = 2 * 31;

fn explore(name: &str, scenario: impl Fn() + Send + Sync + Copy + 'static) {
    let schedules = number("BARRIER_SCHEDULES", 1_000_000).div_ceil(RUNS);
    ::shuttle::check_pct(scenario, schedules, 3);
    ::shuttle::check_random(scenario, schedules);
    println!("{name}: {schedules} random schedules, {schedules} PCT of depth 3");
    println!("FIGURE shuttle-schedules {}", 2 * schedules);
}

macro_rules! models {
    ($($name:ident: $scenario:expr;)*) => {
        $(#[test] fn $name() { explore(stringify!($name), || $scenario) })*

        #[test]
        fn the_runs_add_up() {
            assert_eq!(RUNS, 2 * [$(stringify!($name)),*].len());
        }
    };
}

models! {
    bucket_3_writers_3_writes_3_syncs: writers_and_syncs::<Bucket>(3, 3, 3);
    bucket_2_writers_1_write_2_syncs: writers_and_syncs::<Bucket>(2, 1, 2);
    bucket_syncs_overlap_over_a_slow_write: syncs_overlap_over_a_slow_write::<Bucket>();
    bucket_later_writes_are_not_waited_for: later_writes_are_not_waited_for::<Bucket>(3, 2);
    bucket_at_most_one_late_write_a_thread: at_most_one_late_write_a_thread::<Bucket>(3, 3);
    bucket_tickets_settle_on_other_threads: tickets_settle_on_other_threads::<Bucket>();
    bucket_a_callback_may_cut_again: a_callback_may_cut_again::<Bucket>();
    bucket_an_abort_ends_every_wait: an_abort_ends_every_wait::<Bucket>();
    bucket_an_abort_races_with_the_last_settle: an_abort_races_with_the_last_settle::<Bucket>();
    bucket_counting_may_be_switched_off: counting_may_be_switched_off::<Bucket>();
    bucket_threads_come_and_go: threads_come_and_go::<Bucket>(10);

    shipped_3_writers_3_writes_3_syncs: writers_and_syncs::<TwoBuckets>(3, 3, 3);
    shipped_4_buckets_3_writers_3_writes_4_syncs: writers_and_syncs::<FourBuckets>(3, 3, 4);
    shipped_8_buckets_3_writers_3_writes_3_syncs: writers_and_syncs::<EightBuckets>(3, 3, 3);
    shipped_2_writers_1_write_2_syncs: writers_and_syncs::<FourBuckets>(2, 1, 2);
    shipped_3_writers_1_write_3_syncs: writers_and_syncs::<TwoBuckets>(3, 1, 3);
    shipped_syncs_overlap_over_a_slow_write: syncs_overlap_over_a_slow_write::<TwoBuckets>();
    shipped_4_buckets_syncs_overlap_over_a_slow_write: syncs_overlap_over_a_slow_write::<FourBuckets>();
    shipped_later_writes_are_not_waited_for: later_writes_are_not_waited_for::<TwoBuckets>(3, 2);
    shipped_at_most_one_late_write_a_thread: at_most_one_late_write_a_thread::<TwoBuckets>(3, 3);
    shipped_tickets_settle_on_other_threads: tickets_settle_on_other_threads::<TwoBuckets>();
    shipped_a_callback_may_cut_again: a_callback_may_cut_again::<TwoBuckets>();
    shipped_an_abort_ends_every_wait: an_abort_ends_every_wait::<TwoBuckets>();
    shipped_an_abort_races_with_the_last_settle: an_abort_races_with_the_last_settle::<TwoBuckets>();
    shipped_counting_may_be_switched_off: counting_may_be_switched_off::<TwoBuckets>();
    shipped_threads_come_and_go: threads_come_and_go::<TwoBuckets>(10);
    shipped_4_buckets_later_writes_are_not_waited_for: later_writes_are_not_waited_for::<FourBuckets>(3, 2);

    threads_without_a_slot: writers_and_syncs::<OneSlot>(3, 3, 3);
    threads_without_a_slot_settle_what_others_entered: tickets_settle_on_other_threads::<OneSlot>();
    a_fence_pair_per_thread_is_enough: writers_and_syncs::<PairedFences>(3, 3, 3);
    a_fence_pair_per_thread_is_enough_for_threads_that_come_and_go: threads_come_and_go::<PairedFences>(10);
}
