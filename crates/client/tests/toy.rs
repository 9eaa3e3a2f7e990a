//! The client against the toy server: everything the interface has, once.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use ashore_client::toy::{Toy, ToyLink};
use ashore_client::{CacheMode, Client, FileType, OpenOptions, Options};

const MODES: [CacheMode; 3] = [CacheMode::None, CacheMode::WriteThrough, CacheMode::WriteBack];

fn each_mode(test: impl Fn(&Client, &dyn Fn(&str) -> Option<Vec<u8>>)) {
    for cache in MODES {
        let link = Arc::new(ToyLink::new(Toy::default(), 256));
        let toy = Arc::clone(link.toy());
        let client = Client::with_link(link, Options { cache, ..Options::default() }).unwrap();
        assert_eq!(client.cache_mode(), cache);
        test(&client, &|path| toy.lock().content(path));
    }
}

#[test]
fn what_was_written_is_read_back_and_is_on_the_server_after_sync() {
    each_mode(|client, server| {
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let mut file = client.create("f").unwrap();
        file.write_all(&data).unwrap();
        client.sync().unwrap();
        assert!(server("f").unwrap() == data);
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == data);
        file.set_len(5000).unwrap();
        file.write_all_at(b"x", 9000).unwrap();
        file.sync_all().unwrap();
        let mut expected = data[..5000].to_vec();
        expected.resize(9000, 0);
        expected.push(b'x');
        assert!(server("f").unwrap() == expected);
        assert_eq!(file.metadata().unwrap().len(), 9001);
        assert!(client.read("f").unwrap() == expected);
    });
}

#[test]
fn names_links_and_attributes() {
    each_mode(|client, _| {
        client.create_dir("d").unwrap();
        client.write("d/a", b"one").unwrap();
        client.hard_link("d/a", "d/b").unwrap();
        client.symlink("../d/b", "d/link").unwrap();
        assert_eq!(client.read("d/link").unwrap(), b"one");
        assert_eq!(client.metadata("d/a").unwrap().nlink(), 2);
        assert_eq!(client.symlink_metadata("d/link").unwrap().file_type(), FileType::Symlink);
        client.rename("d/a", "c").unwrap();
        assert_eq!(client.read("c").unwrap(), b"one");
        assert_eq!(client.read("d/a").unwrap_err().raw_os_error(), Some(2));
        client.set_mode("c", 0o600).unwrap();
        assert_eq!(client.metadata("c").unwrap().mode(), 0o100_600);
        client.set_xattr("c", "user.k", b"v").unwrap();
        assert_eq!(client.xattr("c", "user.k").unwrap(), b"v");
        assert_eq!(client.xattrs("c").unwrap(), ["user.k"]);
        client.remove_xattr("c", "user.k").unwrap();
        let names: Vec<_> =
            client.read_dir("d").unwrap().into_iter().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["b", "link"]);
        assert_eq!(client.remove_dir("d").unwrap_err().raw_os_error(), Some(39));
        client.remove_file("d/b").unwrap();
        client.remove_file("d/link").unwrap();
        client.remove_dir("d").unwrap();
        assert_eq!(client.statfs("/").unwrap().name_max(), 255);
        client.clone().sync().unwrap();
    });
}

#[test]
fn appends_of_many_threads_do_not_overwrite_each_other() {
    each_mode(|client, server| {
        client.create("log").unwrap();
        std::thread::scope(|scope| {
            for letter in b'a'..b'e' {
                let client = client.clone();
                scope.spawn(move || {
                    let file = client.open_with("log", &OpenOptions::new().append(true)).unwrap();
                    (0..50).for_each(|_| assert_eq!((&file).write(&[letter; 5000]).unwrap(), 5000));
                });
            }
        });
        client.sync().unwrap();
        let log = server("log").unwrap();
        assert_eq!(log.len(), 4 * 50 * 5000);
        assert!(log.chunks(5000).all(|record| record.iter().all(|byte| *byte == record[0])));
    });
}

#[test]
fn a_cache_smaller_than_the_file_still_holds_the_right_bytes() {
    each_mode(|client, server| {
        let data: Vec<u8> = (0..8_000_000u32).map(|n| (n / 4096 + n) as u8).collect();
        let file = client.create("big").unwrap();
        for (n, piece) in data.chunks(70_000).enumerate() {
            file.write_all_at(piece, n as u64 * 70_000).unwrap();
        }
        let mut back = vec![0; data.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        file.close().unwrap();
        assert!(server("big").unwrap() == data);
    });
}
