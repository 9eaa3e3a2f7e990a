//! All schedules, and all values that a relaxed load may return.
//!
//! Tests named `complete` explore every schedule there is, the others every schedule with at most two preemptions.
//! `BARRIER_PREEMPTIONS` sets another bound: 1 takes seconds, 3 hours.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use loom::model::Builder;

use crate::runtime::number;
use crate::scenarios::*;
use crate::subject::*;

fn explore(name: &str, bound: Option<usize>, scenario: impl Fn() + Send + Sync + 'static) {
    let bound = bound.map(|bound| number("BARRIER_PREEMPTIONS", bound));
    let schedules = Arc::new(AtomicUsize::new(0));
    let count = schedules.clone();
    let mut builder = Builder::new();
    builder.preemption_bound = bound;
    builder.max_branches = 100_000;
    let start = Instant::now();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        scenario();
    });
    let all =
        bound.map_or("exhausted".to_owned(), |bound| format!("exhausted with preemption bound {bound}"));
    let schedules = schedules.load(Relaxed);
    println!("{name}: {schedules} schedules, {:.1} s, {all}", start.elapsed().as_secs_f64());
    println!("FIGURE loom-schedules {schedules}");
}

macro_rules! models {
    ($($(#[$attribute:meta])* $name:ident: $bound:expr, $scenario:expr;)*) => {
        $(#[test] $(#[$attribute])* fn $name() { explore(stringify!($name), $bound, || $scenario) })*
    };
}

models! {
    bucket_complete_1_writer_1_write_1_sync: None, writers_and_syncs::<Bucket>(1, 1, 1);
    bucket_complete_1_writer_2_writes_1_sync: None, writers_and_syncs::<Bucket>(1, 2, 1);
    bucket_2_writers_2_writes_2_syncs: Some(2), writers_and_syncs::<Bucket>(2, 2, 2);
    bucket_2_writers_1_write_2_syncs: Some(2), writers_and_syncs::<Bucket>(2, 1, 2);
    bucket_syncs_overlap_over_a_slow_write: Some(2), syncs_overlap_over_a_slow_write::<Bucket>();
    bucket_later_writes_are_not_waited_for: Some(2), later_writes_are_not_waited_for::<Bucket>(2, 1);
    bucket_at_most_one_late_write_a_thread: Some(2), at_most_one_late_write_a_thread::<Bucket>(2, 2);
    bucket_tickets_settle_on_other_threads: Some(2), tickets_settle_on_other_threads::<Bucket>();
    bucket_a_callback_may_cut_again: Some(2), a_callback_may_cut_again::<Bucket>();
    bucket_an_abort_ends_every_wait: Some(2), an_abort_ends_every_wait::<Bucket>();
    bucket_an_abort_races_with_the_last_settle: Some(2), an_abort_races_with_the_last_settle::<Bucket>();
    bucket_counting_may_be_switched_off: Some(2), counting_may_be_switched_off::<Bucket>();

    shipped_complete_1_writer_1_write_1_sync: None, writers_and_syncs::<TwoBuckets>(1, 1, 1);
    shipped_complete_1_writer_2_writes_1_sync: None, writers_and_syncs::<TwoBuckets>(1, 2, 1);
    shipped_2_writers_2_writes_2_syncs: Some(2), writers_and_syncs::<TwoBuckets>(2, 2, 2);
    shipped_2_writers_1_write_2_syncs: Some(2), writers_and_syncs::<FourBuckets>(2, 1, 2);
    shipped_1_writer_2_writes_3_syncs: Some(2), writers_and_syncs::<TwoBuckets>(1, 2, 3);
    shipped_4_buckets_1_writer_2_writes_3_syncs: Some(2), writers_and_syncs::<FourBuckets>(1, 2, 3);
    shipped_2_buckets_2_writers_1_write_2_syncs: Some(2), writers_and_syncs::<TwoBuckets>(2, 1, 2);
    shipped_syncs_overlap_over_a_slow_write: Some(2), syncs_overlap_over_a_slow_write::<TwoBuckets>();
    shipped_4_buckets_syncs_overlap_over_a_slow_write: Some(2), syncs_overlap_over_a_slow_write::<FourBuckets>();
    shipped_later_writes_are_not_waited_for: Some(2), later_writes_are_not_waited_for::<TwoBuckets>(2, 1);
    shipped_at_most_one_late_write_a_thread: Some(2), at_most_one_late_write_a_thread::<TwoBuckets>(2, 2);
    shipped_tickets_settle_on_other_threads: Some(2), tickets_settle_on_other_threads::<TwoBuckets>();
    shipped_a_callback_may_cut_again: Some(2), a_callback_may_cut_again::<TwoBuckets>();
    shipped_an_abort_ends_every_wait: Some(2), an_abort_ends_every_wait::<TwoBuckets>();
    shipped_an_abort_races_with_the_last_settle: Some(2), an_abort_races_with_the_last_settle::<TwoBuckets>();
    shipped_counting_may_be_switched_off: Some(2), counting_may_be_switched_off::<TwoBuckets>();

    a_fence_pair_per_thread_is_enough_complete: None, writers_and_syncs::<PairedFences>(1, 1, 1);
    a_fence_pair_per_thread_is_enough_complete_2_writes: None, writers_and_syncs::<PairedFences>(1, 2, 1);
    a_fence_pair_per_thread_is_enough: Some(2), writers_and_syncs::<PairedFences>(2, 1, 2);
    threads_without_a_slot: Some(2), writers_and_syncs::<OneSlot>(2, 1, 2);
    threads_without_a_slot_settle_what_others_entered: Some(2), tickets_settle_on_other_threads::<OneSlot>();
}
