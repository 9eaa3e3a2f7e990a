//! The client on a directory of the host, which another party shares: our server over a socket, and virtiofsd. The same
//! tests for both; after each step the directory itself is looked at.
//!
//! `cargo xtask test peers` installs virtiofsd and runs the second half. `ASHORE_FSX_OPERATIONS` sets how many random
//! operations a seed has.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod beside_the_host;
mod fsx;
mod gone;
mod model;
mod two_clients;

use ashore_client::{CacheMode, Client, ConnectOptions};

const CACHE_MODES: [CacheMode; 3] = [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack];

fn with_cache(cache: CacheMode) -> ConnectOptions {
    Client::options().cache(cache).cache_bytes(8 << 20)
}

/// Bytes that tell where they belong.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mix =
        |at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD6E8_FEB8_6659_FD93)) >> 32;
    (0..length as u64).map(|at| mix(at) as u8).collect()
}

macro_rules! with_each_server {
    ($($theme:ident :: $test:ident),* $(,)?) => {
        mod with_ashore {
            use ashore_testkit::share::Whose;
            $(#[test] fn $test() { crate::$theme::$test(Whose::Ashore) })*
        }

        mod with_virtiofsd {
            use ashore_testkit::share::Whose;
            $(#[test] fn $test() { crate::$theme::$test(Whose::Virtiofsd) })*
        }
    };
}

with_each_server! {
    beside_the_host::what_the_host_wrote_is_read,
    beside_the_host::no_link_leads_out_of_the_share,
    beside_the_host::the_times_of_a_write_are_the_hosts_after_a_sync,
    beside_the_host::extended_attributes_go_both_ways,
    beside_the_host::space_is_that_of_the_host,
    model::a_random_tree_is_the_same_as_a_local_one_after_every_step,
    fsx::random_operations_on_a_file_while_others_sync,
    two_clients::what_one_has_closed_the_other_reads_when_it_opens,
    two_clients::what_one_has_synced_the_other_reads_when_it_opens,
    two_clients::names_that_the_other_made_or_removed_are_seen_soon,
    two_clients::a_file_that_is_replaced_is_read_old_or_new_and_is_never_an_error,
    two_clients::without_a_cache_each_read_sees_each_write_that_has_returned,
    two_clients::turns_at_random_are_as_if_there_were_one_client,
}
