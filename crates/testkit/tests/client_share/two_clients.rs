//! Two clients on one directory, each through a server of its own: what "Two clients on one share" of docs/semantics.md
//! promises.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, OpenOptions};
use ashore_testkit::fsx::Random;
use ashore_testkit::share::{SharedDirectory, Whose};

use crate::{CACHE_MODES, pattern, with_cache};

/// A name may be remembered for a second. What is not seen after this time is not seen at all.
const SOON: Duration = Duration::from_secs(15);

fn read_write() -> OpenOptions {
    OpenOptions::new().read(true).write(true).create(true)
}

pub(crate) fn what_one_has_closed_the_other_reads_when_it_opens(whose: Whose) {
    for ours in CACHE_MODES {
        for theirs in CACHE_MODES {
            let share = SharedDirectory::new(whose);
            let (one, other) = (share.mount(with_cache(ours)), share.mount(with_cache(theirs)));
            one.write("file", b"").unwrap();
            for round in 1..20u64 {
                let (writer, reader) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
                // Longer and shorter ones, so that sizes and pages of before are both in the way.
                let content = pattern(round, (round * 7919 % 30_000) as usize);
                writer.write("file", &content).unwrap();
                assert!(reader.read("file").unwrap() == content, "{ours:?} {theirs:?}, round {round}");
                assert_eq!(reader.metadata("file").unwrap().len(), content.len() as u64);
            }
            one.leave();
            other.leave();
        }
    }
}

pub(crate) fn what_one_has_synced_the_other_reads_when_it_opens(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let (one, other) = (share.mount(with_cache(cache)), share.mount(with_cache(cache)));
        let file = one.create("file").unwrap();
        for round in 1..20u64 {
            let content = pattern(round, 9000);
            file.write_all_at(&content, 0).unwrap();
            if round % 2 == 0 {
                one.sync().unwrap()
            } else {
                file.sync_data().unwrap()
            }
            assert!(other.read("file").unwrap() == content, "{cache:?}, round {round}");
        }
        drop(file);
        one.leave();
        other.leave();
    }
}

pub(crate) fn names_that_the_other_made_or_removed_are_seen_soon(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let (one, other) =
        (share.mount(with_cache(CacheMode::WriteBack)), share.mount(with_cache(CacheMode::WriteBack)));
    assert!(other.metadata("file").is_err());
    one.write("file", b"x").unwrap();
    soon(|| other.metadata("file").is_ok());
    one.rename("file", "moved").unwrap();
    soon(|| other.metadata("file").is_err() && other.metadata("moved").is_ok());
    one.remove_file("moved").unwrap();
    soon(|| other.metadata("moved").is_err());
    // Listings are never remembered.
    one.create_dir("dir").unwrap();
    assert_eq!(other.read_dir("").unwrap()[0].file_name(), "dir");
    one.leave();
    other.leave();
}

fn soon(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "a name is remembered for a second, not for ever");
        sleep(Duration::from_millis(20));
    }
}

/// Replacing by rename is how programs change a file others may be reading.
pub(crate) fn a_file_that_is_replaced_is_read_old_or_new_and_is_never_an_error(whose: Whose) {
    const VERSIONS: u64 = 400;
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let (one, other) = (share.mount(with_cache(cache)), share.mount(with_cache(cache)));
        let version = |number: u64| pattern(number, 5000 + number as usize);
        one.write("file", &version(0)).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..VERSIONS {
                    one.write("new", &version(number)).unwrap();
                    one.rename("new", "file").unwrap();
                }
                over.store(true, Ordering::SeqCst);
            });
            while !over.load(Ordering::SeqCst) {
                let found = match other.read("file") {
                    // It opens by handle and passes on what Linux says of a file that is being removed at that moment.
                    Err(error) if whose == Whose::Virtiofsd && error.kind() == ErrorKind::OutOfMemory => {
                        continue;
                    }
                    found => found.unwrap(),
                };
                assert!(
                    found == version(found.len() as u64 - 5000),
                    "{cache:?}: half of one and half of another"
                );
            }
        });
        soon(|| other.read("file").unwrap() == version(VERSIONS - 1));
        one.leave();
        other.leave();
    }
}

pub(crate) fn without_a_cache_each_read_sees_each_write_that_has_returned(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let (one, other) = (share.mount(with_cache(CacheMode::None)), share.mount(with_cache(CacheMode::None)));
    one.write("file", b"").unwrap();
    let ours = one.open_with("file", &read_write()).unwrap();
    let theirs = other.open_with("file", &read_write()).unwrap();
    for round in 0..200u64 {
        let (writer, reader) = if round % 2 == 0 { (&ours, &theirs) } else { (&theirs, &ours) };
        let piece = pattern(round, 777);
        writer.write_all_at(&piece, round * 777).unwrap();
        let mut found = vec![0; 2000];
        assert_eq!(reader.read_at(&mut found, round * 777).unwrap(), 777, "round {round}");
        assert!(found[..777] == piece, "round {round}");
    }
    drop((ours, theirs));
    one.leave();
    other.leave();
}

/// Aim: close-to-open consistency, whatever happened before. Method: at each step one of two clients opens one of a few
/// files, reads all of it, changes it and closes it; both sync all the time.
pub(crate) fn turns_at_random_are_as_if_there_were_one_client(whose: Whose) {
    const STEPS: u64 = 2000;
    const FILES: u64 = 3;
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let mut mode = || CACHE_MODES[random.below(3) as usize];
        let modes = [mode(), mode()];
        let share = SharedDirectory::new(whose);
        let clients = modes.map(|cache| share.mount(with_cache(cache)));
        let over = AtomicBool::new(false);
        let mut model: HashMap<u64, Vec<u8>> = HashMap::new();
        std::thread::scope(|scope| {
            for client in &clients {
                let (client, over) = ((**client).clone(), &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        client.sync().unwrap();
                        sleep(Duration::from_micros(500));
                    }
                });
            }
            let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for step in 0..STEPS {
                    let (client, name) = (&clients[random.below(2) as usize], random.below(FILES));
                    let content = model.entry(name).or_default();
                    let file = client.open_with(name.to_string(), &read_write()).unwrap();
                    let mut found = vec![0; content.len() + 100];
                    let length = file.read_at(&mut found, 0).unwrap();
                    assert!(
                        found[..length] == **content,
                        "step {step}, {modes:?}: {length}, {}",
                        content.len()
                    );
                    let offset = random.below(content.len() as u64 + 5000) as usize;
                    match random.below(4) {
                        0 => {
                            content.resize(offset, 0);
                            file.set_len(offset as u64).unwrap();
                        }
                        1 | 2 => {
                            let piece = pattern(step, 1 + random.below(20_000) as usize);
                            content.resize(content.len().max(offset + piece.len()), 0);
                            content[offset..offset + piece.len()].copy_from_slice(&piece);
                            file.write_all_at(&piece, offset as u64).unwrap();
                        }
                        _ => {}
                    }
                    if content.len() > 200_000 {
                        content.clear();
                        file.set_len(0).unwrap();
                    }
                    file.close().unwrap();
                }
            }));
            over.store(true, Ordering::Relaxed);
            if let Err(panic) = played {
                eprintln!("failed: seed {seed}, modes {modes:?}");
                std::panic::resume_unwind(panic);
            }
        });
        for (name, content) in &model {
            assert!(fs::read(share.path().join(name.to_string())).unwrap() == *content, "on the host");
        }
        clients.into_iter().for_each(ashore_testkit::share::Mounted::leave);
    }
}
