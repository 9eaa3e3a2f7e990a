//! What is in files.

use std::fs;
use std::io::Write;

use ashore_client::OpenOptions;
use ashore_testkit::share::{SharedDirectory, Whose};

use crate::{CACHE_MODES, pattern, with_cache};

/// fallocate(2): punch a hole, and keep the size.
const PUNCH: u32 = 0x3;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

pub(crate) fn what_is_written_in_pieces_that_fit_nothing_is_there_after_a_sync(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        assert_eq!(client.cache_mode(), cache);
        let whole = pattern(1, 37_001);
        let file = client.create("whole").unwrap();
        for (index, piece) in whole.chunks(777).enumerate() {
            file.write_all_at(piece, index as u64 * 777).unwrap();
        }
        client.sync().unwrap();
        assert!(
            fs::read(share.path().join("whole")).unwrap() == whole,
            "{cache:?}: on the host after a sync"
        );
        assert!(client.read("whole").unwrap() == whole, "{cache:?}");
        file.write_all_at(b"again", 100).unwrap();
        file.sync_data().unwrap();
        assert_eq!(fs::read(share.path().join("whole")).unwrap()[100..105], *b"again");
        file.close().unwrap();
        client.leave();
    }
}

pub(crate) fn a_file_larger_than_a_request_is_there_when_it_is_closed(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        // Larger than the cache, too.
        let large = pattern(2, (9 << 20) + 4321);
        client.write("large", &large).unwrap();
        assert!(fs::read(share.path().join("large")).unwrap() == large, "{cache:?}: closed is sent");
        assert!(client.read("large").unwrap() == large, "{cache:?}");
        let mut part = vec![0; 100_000];
        client.open("large").unwrap().read_exact_at(&mut part, 4_000_001).unwrap();
        assert!(part == large[4_000_001..4_100_001], "{cache:?}");
        client.leave();
    }
}

pub(crate) fn what_the_host_wrote_is_read(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        fs::write(share.path().join("from-host"), b"made over there").unwrap();
        assert_eq!(client.read("from-host").unwrap(), b"made over there");
        fs::write(share.path().join("from-host"), b"made again, and longer").unwrap();
        assert_eq!(client.read("from-host").unwrap(), b"made again, and longer", "{cache:?}");
        client.leave();
    }
}

pub(crate) fn appenders_write_behind_each_other(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let append = OpenOptions::new().append(true).create(true);
        let mut expected = String::new();
        let mut logs = [(); 3].map(|()| client.open_with("log", &append).unwrap());
        for line in 0..300 {
            let text = format!("line {line} of a log that several write\n");
            logs[line % 3].write_all(text.as_bytes()).unwrap();
            expected += &text;
        }
        client.sync().unwrap();
        assert_eq!(fs::read_to_string(share.path().join("log")).unwrap(), expected, "{cache:?}");
        logs.into_iter().for_each(|log| log.close().unwrap());
        assert_eq!(client.read("log").unwrap(), expected.as_bytes());
        client.leave();
    }
}

pub(crate) fn truncating_and_growing_leaves_zeros(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let whole = pattern(3, 37_001);
        let file = client.create("file").unwrap();
        file.write_all_at(&whole, 0).unwrap();
        file.set_len(5000).unwrap();
        file.set_len(9000).unwrap();
        file.write_all_at(b"far behind", 50_000).unwrap();
        let mut expected = whole[..5000].to_vec();
        expected.resize(50_000, 0);
        expected.extend_from_slice(b"far behind");
        assert!(client.read("file").unwrap() == expected, "{cache:?}");
        file.sync_all().unwrap();
        assert!(fs::read(share.path().join("file")).unwrap() == expected, "{cache:?}: on the host");
        assert_eq!(client.create("file").unwrap().metadata().unwrap().len(), 0, "made anew, it is empty");
        assert_eq!(file.metadata().unwrap().len(), 0, "{cache:?}: for who has it open, too");
        client.sync().unwrap();
        assert_eq!(fs::metadata(share.path().join("file")).unwrap().len(), 0);
        drop(file);
        client.leave();
    }
}

pub(crate) fn holes_are_found_punched_and_copied(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let file = client.create("sparse").unwrap();
        let data = pattern(4, 1 << 16);
        file.write_all_at(&data, 1 << 20).unwrap();
        file.set_len(2 << 20).unwrap();
        assert_eq!(file.seek_data_or_hole(0, SEEK_DATA).unwrap(), 1 << 20, "{cache:?}");
        assert_eq!(file.seek_data_or_hole(1 << 20, SEEK_HOLE).unwrap(), (1 << 20) + (1 << 16));
        file.allocate((1 << 20) + 4096, 8192, PUNCH).unwrap();
        let copy = client.create("copy").unwrap();
        assert_eq!(file.copy_to(1 << 20, &copy, 100, 1 << 16).unwrap(), 1 << 16);
        let mut punched = data;
        punched[4096..4096 + 8192].fill(0);
        let mut copied = vec![0; 100];
        copied.extend_from_slice(&punched);
        assert!(client.read("copy").unwrap() == copied, "{cache:?}");
        client.sync().unwrap();
        assert!(fs::read(share.path().join("copy")).unwrap() == copied, "{cache:?}: on the host");
        drop((file, copy));
        client.leave();
    }
}

pub(crate) fn an_unlinked_file_lives_while_it_is_open(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let file = client.create("gone").unwrap();
        file.write_all_at(b"before", 0).unwrap();
        client.remove_file("gone").unwrap();
        assert!(!share.path().join("gone").exists());
        file.write_all_at(b" and after", 6).unwrap();
        client.sync().unwrap();
        let mut back = [0; 16];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"before and after", "{cache:?}");
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{cache:?}");
        file.set_len(3).unwrap();
        file.close().unwrap();
        client.write("gone", b"another of that name").unwrap();
        assert_eq!(client.read("gone").unwrap(), b"another of that name");
        client.leave();
    }
}
