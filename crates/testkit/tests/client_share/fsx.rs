//! Random operations on one file, in every cache mode, while two threads sync all the time.

use std::fs;

use ashore_testkit::fsx::{PAGES, compare, number, options};
use ashore_testkit::share::{SharedDirectory, Whose};

use crate::{CACHE_MODES, with_cache};

const SEEDS: u64 = 2;

pub(crate) fn random_operations_on_a_file_while_others_sync(whose: Whose) {
    let operations = number("ASHORE_FSX_OPERATIONS").unwrap_or(100_000);
    let seeds = number("ASHORE_FSX_SEED").map_or(1..SEEDS + 1, |seed| seed..seed + 1);
    for seed in seeds {
        for cache in CACHE_MODES {
            let share = SharedDirectory::new(whose);
            let link = with_cache(cache).client(options(cache)).cache_bytes(PAGES as usize * 4096);
            let client = share.mount(link);
            assert_eq!(client.cache_mode(), cache);
            let path = share.path().join("f");
            compare(cache, seed, operations, &client, &|| fs::read(&path).unwrap());
            client.leave();
        }
    }
}
