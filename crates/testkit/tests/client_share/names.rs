//! Names: making, moving, removing, listing and refusing them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::Path;

use ashore_client::FileType;
use ashore_testkit::share::{SharedDirectory, Whose};
use rustix::io::Errno;

use crate::with_cache;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().expect("an error number"))
}

pub(crate) fn names_are_made_moved_and_removed(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.create_dir("dir").unwrap();
    client.write("dir/old", b"content").unwrap();
    client.hard_link("dir/old", "second").unwrap();
    assert_eq!(client.metadata("second").unwrap().nlink(), 2);
    assert_eq!(client.metadata("dir/old").unwrap().ino(), client.metadata("second").unwrap().ino());
    client.set_mode("second", 0o640).unwrap();
    assert_eq!(client.metadata("dir/old").unwrap().mode() & 0o777, 0o640, "one file under two names");
    client.remove_file("second").unwrap();
    assert_eq!(client.metadata("dir/old").unwrap().nlink(), 1);
    client.rename("dir", "moved").unwrap();
    assert_eq!(client.read("moved/old").unwrap(), b"content");
    assert!(!share.path().join("dir").exists() && share.path().join("moved/old").exists());
    assert_eq!(errno(client.remove_dir("moved")), Errno::NOTEMPTY);
    client.remove_file("moved/old").unwrap();
    client.remove_dir("moved").unwrap();
    assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
    client.leave();
}

pub(crate) fn renames_replace_exchange_or_refuse(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.write("a", b"a").unwrap();
    client.write("b", b"b").unwrap();
    assert_eq!(errno(client.rename_with("a", "b", RENAME_NOREPLACE)), Errno::EXIST);
    client.rename_with("a", "b", RENAME_EXCHANGE).unwrap();
    assert_eq!((client.read("a").unwrap(), client.read("b").unwrap()), (b"b".to_vec(), b"a".to_vec()));
    client.rename("a", "b").unwrap();
    assert_eq!(client.read("b").unwrap(), b"b");
    assert_eq!(errno(client.metadata("a")), Errno::NOENT);
    assert_eq!(fs::read(share.path().join("b")).unwrap(), b"b");
    client.create_dir("d").unwrap();
    client.create_dir("d/e").unwrap();
    assert_eq!(errno(client.rename("d", "d/e/f")), Errno::INVAL, "into itself");
    assert_eq!(errno(client.rename("b", "d")), Errno::ISDIR);
    assert_eq!(errno(client.rename("d", "b")), Errno::NOTDIR);
    client.leave();
}

pub(crate) fn links_are_followed_and_loops_are_an_error(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.create_dir("dir").unwrap();
    client.write("dir/file", b"content").unwrap();
    client.symlink("dir/file", "relative").unwrap();
    client.symlink("/dir", "absolute").unwrap();
    client.symlink("../dir/../relative", "dir/up").unwrap();
    for path in ["relative", "absolute/file", "dir/up", "absolute/up"] {
        assert_eq!(client.read(path).unwrap(), b"content", "{path}");
    }
    assert_eq!(fs::read_link(share.path().join("relative")).unwrap(), Path::new("dir/file"));
    assert_eq!(client.symlink_metadata("relative").unwrap().file_type(), FileType::Symlink);
    symlink("nowhere", share.path().join("dangling")).unwrap();
    assert_eq!(client.read_link("dangling").unwrap(), Path::new("nowhere"));
    assert_eq!(errno(client.read("dangling")), Errno::NOENT);
    client.symlink("two", "one").unwrap();
    client.symlink("one", "two").unwrap();
    assert_eq!(errno(client.read("one")), Errno::LOOP);
    client.symlink("/", "root").unwrap();
    assert_eq!(
        client.read("root/../../root/dir/file").unwrap(),
        b"content",
        "nothing leads out of the share"
    );
    client.leave();
}

pub(crate) fn a_thousand_names_are_listed_once_each(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.create_dir("many").unwrap();
    let name = |index: usize| format!("a file with a name of some length, number {index:04}");
    for index in 0..1000 {
        client.write(format!("many/{}", name(index)), index.to_string().as_bytes()).unwrap();
    }
    let mut listed: Vec<_> =
        client.read_dir("many").unwrap().iter().map(ashore_client::DirectoryEntry::file_name).collect();
    listed.sort();
    assert_eq!(listed, (0..1000).map(|index| OsString::from(name(index))).collect::<Vec<_>>());
    for index in (0..1000).step_by(97) {
        let content = client.read(format!("many/{}", name(index))).unwrap();
        assert_eq!(content, index.to_string().as_bytes());
        assert_eq!(fs::read(share.path().join("many").join(name(index))).unwrap(), content);
    }
    (0..1000).for_each(|index| client.remove_file(format!("many/{}", name(index))).unwrap());
    assert_eq!(client.read_dir("many").unwrap(), []);
    assert_eq!(fs::read_dir(share.path().join("many")).unwrap().count(), 0);
    client.leave();
}

pub(crate) fn long_and_odd_names_go_both_ways(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    let longest = "n".repeat(255);
    let odd = [OsStr::from_bytes(b"\xff\xfe no text"), OsStr::new("\n"), OsStr::new(" "), OsStr::new("...")];
    for name in odd.iter().copied().chain([OsStr::new(&longest)]) {
        client.write(name, b"x").unwrap();
        assert_eq!(fs::read(share.path().join(name)).unwrap(), b"x", "{name:?}");
    }
    let mut listed: Vec<_> =
        client.read_dir("").unwrap().iter().map(|entry| entry.file_name().into_vec()).collect();
    listed.sort();
    let mut expected: Vec<_> = odd.iter().map(|name| name.as_bytes().to_vec()).collect();
    expected.push(longest.clone().into_bytes());
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(errno(client.create("n".repeat(256))), Errno::NAMETOOLONG);
    let mut deep = String::new();
    for _ in 0..64 {
        deep.push_str("deep/");
        client.create_dir(&deep).unwrap();
    }
    client.write(format!("{deep}file"), b"far down").unwrap();
    assert_eq!(fs::read(share.path().join(deep).join("file")).unwrap(), b"far down");
    client.leave();
}

pub(crate) fn what_is_not_there_or_of_the_wrong_kind_is_refused(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.create_dir("dir").unwrap();
    client.write("file", b"x").unwrap();
    let exclusive = ashore_client::OpenOptions::new().write(true).create_new(true);
    assert_eq!(errno(client.open("none")), Errno::NOENT);
    assert_eq!(errno(client.open("file/below")), Errno::NOTDIR);
    assert_eq!(errno(client.open_with("file", &exclusive)), Errno::EXIST);
    assert_eq!(errno(client.open("dir")), Errno::ISDIR);
    assert_eq!(errno(client.create_dir("dir")), Errno::EXIST);
    assert_eq!(errno(client.remove_dir("file")), Errno::NOTDIR);
    assert_eq!(errno(client.remove_file("dir")), Errno::ISDIR);
    assert_eq!(errno(client.read_dir("file")), Errno::NOTDIR);
    assert_eq!(errno(client.hard_link("dir", "linked")), Errno::PERM);
    assert_eq!(errno(client.read_link("file")), Errno::INVAL);
    client.leave();
}
