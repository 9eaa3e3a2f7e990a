//! The list of deliberate bugs, and what must catch each: the one source of the table in docs/mutants.md and of the one at the
//! end of a run.

/// A deliberate bug.
pub(crate) struct Mutant {
    pub(crate) number: usize,
    pub(crate) bug: &'static str,
    /// Steps, and how the name of what must catch it there ends: a test, or a fault and a file system. It is to be caught by each.
    pub(crate) caught_by: &'static [(&'static str, &'static str)],
}

const LOOM: &str = "mutants-loom";
const SHUTTLE: &str = "mutants-shuttle";
const THREADS: &str = "mutants";
const SIMULATION: &str = "mutants-simulation";
const PASSTHROUGH: &str = "mutants-passthrough";
const SERVER: &str = "mutants-server";
const POWER_CUTS: &str = "mutants-power-cuts";

/// Steps that switch deliberate bugs on.
pub(crate) const STEPS: [&str; 7] = [LOOM, SHUTTLE, SIMULATION, THREADS, PASSTHROUGH, SERVER, POWER_CUTS];

/// The test of the simulation that tries whatever a seed says.
const SEEDS: &str = "every_sync_that_succeeds_is_true";

/// Where a bug is switched on stands beside the tests (`TRIALS`, and the faults of the power cuts).
#[rustfmt::skip]
pub(crate) const LIST: [Mutant; 33] = [
    Mutant {
        number: 1,
        bug: "a new bucket does not wait for its ancestor",
        caught_by: &[
            (LOOM, "bucket_syncs_overlap_over_a_slow_write"),
            (SHUTTLE, "bucket_3_writers_3_writes_3_syncs"),
        ],
    },
    Mutant {
        number: 2,
        bug: "a ticket settles when its request is sent, not when it is answered",
        caught_by: &[
            (LOOM, "shipped_complete_1_writer_1_write_1_sync"),
            (SHUTTLE, "shipped_3_writers_3_writes_3_syncs"),
            (SIMULATION, SEEDS),
        ],
    },
    Mutant {
        number: 3,
        bug: "a bucket that was found empty is entered again",
        caught_by: &[
            (LOOM, "bucket_2_writers_2_writes_2_syncs"),
        ],
    },
    Mutant {
        number: 4,
        bug: "the bucket is swapped only after the wait",
        caught_by: &[
            (LOOM, "shipped_later_writes_are_not_waited_for"),
            (SHUTTLE, "shipped_later_writes_are_not_waited_for"),
        ],
    },
    Mutant {
        number: 5,
        bug: "one change in flight counts as none",
        caught_by: &[
            (LOOM, "shipped_complete_1_writer_1_write_1_sync"),
            (SIMULATION, SEEDS),
        ],
    },
    Mutant {
        number: 6,
        bug: "SYNCFS is sent before the old bucket is empty",
        caught_by: &[
            (LOOM, "shipped_complete_1_writer_1_write_1_sync"),
            (SIMULATION, SEEDS),
        ],
    },
    Mutant {
        number: 7,
        bug: "the client waits for nothing before a sync, or does not sync",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "c02_sync_takes_as_long_as_the_slowest_write"),
            (POWER_CUTS, "no sync, ext4"),
            (POWER_CUTS, "no sync, xfs"),
        ],
    },
    Mutant {
        number: 8,
        bug: "a sync is answered before the host was synced",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "server_socket::s01_a_sync_is_answered_after_the_host_was_synced_and_not_before"),
            (POWER_CUTS, "every_promise_is_kept_through_our_client_on_ext4"),
            (POWER_CUTS, "every_promise_is_kept_through_our_client_on_xfs"),
        ],
    },
    Mutant {
        number: 9,
        bug: "a sync joins a round that had begun before it came",
        caught_by: &[
            (SIMULATION, "s12_of_many_syncs_at_once_each_covers_what_came_before_it"),
            (SERVER, "s12_a_sync_shares_no_round_that_began_before_it_came"),
            (PASSTHROUGH, "a_thousand_syncs_from_sixteen_threads_are_all_answered"),
        ],
    },
    Mutant {
        number: 10,
        bug: "only the root's host file system is synced",
        caught_by: &[
            (PASSTHROUGH, "a_sync_of_the_root_covers_every_host_file_system_that_was_changed"),
        ],
    },
    Mutant {
        number: 11,
        bug: "fdatasync where attributes are covered too",
        caught_by: &[
            (PASSTHROUGH, "exactly_what_was_changed_is_synced"),
        ],
    },
    Mutant {
        number: 12,
        bug: "what is not supported counts as done",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "a_file_system_that_cannot_sync_is_no_success"),
            (PASSTHROUGH, "a_host_that_cannot_sync_is_no_success"),
        ],
    },
    Mutant {
        number: 13,
        bug: "an error of the host is swallowed",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "s02_the_error_of_a_sync_is_its_answer"),
            (PASSTHROUGH, "the_error_of_a_host_sync_is_the_answer"),
        ],
    },
    Mutant {
        number: 14,
        bug: "a new descriptor for each sync: errors are lost",
        caught_by: &[
            (PASSTHROUGH, "an_error_that_another_process_was_told_first_reaches_the_client"),
        ],
    },
    Mutant {
        number: 15,
        bug: "one count of errors for all clients: only the first is told",
        caught_by: &[
            (PASSTHROUGH, "each_client_of_a_host_file_system_hears_of_an_error_once"),
        ],
    },
    Mutant {
        number: 16,
        bug: "of two syncs that overlap the first takes the error away",
        caught_by: &[
            (PASSTHROUGH, "of_two_syncs_that_overlap_both_hear_of_the_one_error"),
        ],
    },
    Mutant {
        number: 17,
        bug: "a sync waits for changes that came after it",
        caught_by: &[
            (LOOM, "shipped_later_writes_are_not_waited_for"),
            (SIMULATION, "a_sync_ends_although_a_write_that_came_later_does_not"),
            (SERVER, "a_sync_does_not_wait_for_a_write_that_comes_later"),
        ],
    },
    Mutant {
        number: 18,
        bug: "a sync promises what was done only after it had begun",
        caught_by: &[
            (POWER_CUTS, "floors read too late, ext4"),
            (POWER_CUTS, "floors read too late, xfs"),
        ],
    },
    Mutant {
        number: 19,
        bug: "data is written back and the disk not flushed",
        caught_by: &[
            (POWER_CUTS, "nobarrier, ext4"),
            (POWER_CUTS, "write-back (sync_file_range), xfs"),
            (PASSTHROUGH, "all_of_it_is_there_after_a_power_cut"),
            (POWER_CUTS, "every_promise_is_kept_when_only_the_shares_own_changes_are_synced"),
        ],
    },
    Mutant {
        number: 20,
        bug: "one file is synced in place of the file system",
        caught_by: &[
            (POWER_CUTS, "fsync of one file, ext4"),
            (POWER_CUTS, "fsync of one file, xfs"),
            (PASSTHROUGH, "the_host_is_synced_once_for_what_changed_and_not_again"),
            (POWER_CUTS, "every_promise_is_kept_through_our_client_on_xfs"),
        ],
    },
    Mutant {
        number: 21,
        bug: "dirty pages are not sent before the cut",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "c01_a_dirty_file_is_written_and_answered_before_syncfs_is_sent"),
            (POWER_CUTS, "every_promise_is_kept_through_our_client_on_ext4"),
            (POWER_CUTS, "every_promise_is_kept_through_our_client_on_xfs"),
        ],
    },
    Mutant {
        number: 22,
        bug: "a page that was written to while in flight is clean at the answer",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "c03_a_page_rewritten_in_flight_is_written_again_before_syncfs"),
        ],
    },
    Mutant {
        number: 23,
        bug: "the error of a write-back is told to nobody",
        caught_by: &[
            (SIMULATION, SEEDS),
            (SERVER, "c08_a_failed_write_is_told_once_to_each_handle"),
        ],
    },
    Mutant {
        number: 24,
        bug: "directories are left out after create and rename",
        caught_by: &[
            (PASSTHROUGH, "exactly_what_was_changed_is_synced"),
        ],
    },
    Mutant {
        number: 25,
        bug: "FALLOCATE and COPY_FILE_RANGE are not waited for",
        caught_by: &[
            (SIMULATION, "s03_and_s10_a_sync_covers_all_that_was_made_available_before_it"),
            (SERVER, "changes_that_other_threads_carry_on_are_waited_for_too"),
        ],
    },
    Mutant {
        number: 26,
        bug: "requests of other queues are not waited for",
        caught_by: &[
            (SIMULATION, "s03_and_s10_a_sync_covers_all_that_was_made_available_before_it"),
            (SERVER, "s10_a_sync_on_a_fifth_queue_covers_64_writes_on_four"),
        ],
    },
    Mutant {
        number: 27,
        bug: "a change is waited for only as long as its caller cares",
        caught_by: &[
            (SERVER, "c18_all_changes_in_flight_are_waited_for"),
        ],
    },
    Mutant {
        number: 28,
        bug: "a server that starts forgets what was not stable before",
        caught_by: &[
            (PASSTHROUGH, "the_first_sync_covers_what_an_earlier_server_left_behind"),
        ],
    },
    Mutant {
        number: 29,
        bug: "an fsync is of another open file",
        caught_by: &[
            (PASSTHROUGH, "an_fsync_is_of_the_file_that_was_opened_whatever_has_its_name_now"),
        ],
    },
    Mutant {
        number: 30,
        bug: "a fence is left out",
        caught_by: &[
            (LOOM, "a_fence_pair_per_thread_is_enough_complete"),
            (THREADS, "two_buckets::a_long_run"),
        ],
    },
    Mutant {
        number: 31,
        bug: "the wish of a write to be stable is dropped",
        caught_by: &[
            (PASSTHROUGH, "a_single_write_that_asks_to_be_stable_is_in_every_cache_mode"),
        ],
    },
    Mutant {
        number: 32,
        bug: "a file without a name makes a sync fail, or is left out",
        caught_by: &[
            (PASSTHROUGH, "exactly_what_was_changed_is_synced"),
        ],
    },
    Mutant {
        number: 33,
        bug: "a sync or fsync of a host that has stopped is believed",
        caught_by: &[
            (PASSTHROUGH, "after_a_commit_that_failed_no_sync_and_no_fsync_succeeds"),
            (PASSTHROUGH, "a_sync_of_what_has_become_read_only_is_no_success"),
        ],
    },
];

/// Where the table for readers stands.
const PAGE: &str = "docs/mutants.md";

/// The table for readers.
fn page() -> String {
    let mut page = String::from(INTRODUCTION);
    for Mutant { number, bug, caught_by } in &LIST {
        for (place, (step, test)) in caught_by.iter().enumerate() {
            let (number, bug) = if place == 0 { (number.to_string(), *bug) } else { (String::new(), "") };
            page += &format!("| {number} | {bug} | {step} | `{test}` |\n");
        }
    }
    page
}

const INTRODUCTION: &str = "\
# Deliberate bugs, and what catches them

Written by `cargo xtask mutants --write` from the list in `xtask/src/mutants.rs`; a test of xtask compares the two. `cargo xtask mutants`
switches each of them on, in builds that are made for it, and fails unless each is caught by every step and test that stands beside it.
How the tests work stands in [testing.md](testing.md). `mutants-loom` tries every schedule of the barrier, `mutants-shuttle` random ones,
`mutants` real threads; `mutants-simulation` runs client and server over a simulated host, `mutants-server` and `mutants-passthrough` hold
calls and flushes in the tests of client, server and host directory, and `mutants-power-cuts` looks at what is left of a real file system.

| # | deliberate bug | step | caught by |
|---|---|---|---|
";

/// Writes the table for readers.
pub(crate) fn write() -> anyhow::Result<()> {
    Ok(std::fs::write(PAGE, page())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_for_readers_is_that_of_the_list() {
        let found = std::fs::read_to_string(format!("../{PAGE}")).unwrap_or_default();
        assert!(found == page(), "{PAGE} is not what `cargo xtask mutants --write` makes");
    }

    #[test]
    fn each_has_its_number_and_is_caught_by_steps_that_there_are() {
        for (place, mutant) in LIST.iter().enumerate() {
            assert_eq!(mutant.number, place + 1);
            assert!(
                !mutant.caught_by.is_empty() && mutant.caught_by.iter().all(|(step, _)| STEPS.contains(step))
            );
        }
    }
}
