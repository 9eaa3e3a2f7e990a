//! Names: making, moving, removing, listing and refusing them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use super::Stage;
use crate::conformance::files::{Access, DIRECTORY, SYMLINK, errno};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

pub(super) fn a_name_is_made_found_and_removed(stage: &Stage) {
    let files = stage.files();
    files.write("file", b"content").unwrap();
    stage.both_sides(|files| {
        assert_eq!(files.read("file").unwrap(), b"content");
        assert_eq!(files.names("").unwrap(), ["file"]);
    });
    let exclusive = Access { create_new: true, ..Access::BOTH };
    assert_eq!(errno(files.open("file".as_ref(), &exclusive)), Errno::EXIST);
    drop(files.open("exclusive".as_ref(), &exclusive).unwrap());
    files.remove_file("file").unwrap();
    stage.both_sides(|files| {
        assert_eq!(errno(files.attributes("file")), Errno::NOENT);
        assert_eq!(files.names("").unwrap(), ["exclusive"]);
    });
    files.make_directory("file").unwrap();
    stage.both_sides(|files| assert_eq!(files.attributes("file").unwrap().kind(), DIRECTORY));
}

pub(super) fn what_is_not_there_or_of_the_wrong_kind_is_refused(stage: &Stage) {
    let files = stage.files();
    files.make_directory("directory").unwrap();
    files.write("file", b"x").unwrap();
    assert_eq!(errno(files.open("none".as_ref(), &Access::READ)), Errno::NOENT);
    assert_eq!(errno(files.create("none/below")), Errno::NOENT);
    assert_eq!(errno(files.open("file/below".as_ref(), &Access::READ)), Errno::NOTDIR);
    assert_eq!(errno(files.open("directory".as_ref(), &Access::BOTH)), Errno::ISDIR);
    assert_eq!(errno(files.make_directory("directory")), Errno::EXIST);
    assert_eq!(errno(files.make_directory("file")), Errno::EXIST);
    assert_eq!(errno(files.remove_directory("file")), Errno::NOTDIR);
    assert_eq!(errno(files.remove_directory("none")), Errno::NOENT);
    assert_eq!(errno(files.remove_file("directory")), Errno::ISDIR);
    assert_eq!(errno(files.remove_file("none")), Errno::NOENT);
    assert_eq!(errno(files.names("file")), Errno::NOTDIR);
    assert_eq!(errno(files.rename("none", "new", 0)), Errno::NOENT);
    assert_eq!(errno(files.hard_link("none", "linked")), Errno::NOENT);
    assert_eq!(errno(files.hard_link("directory", "linked")), Errno::PERM);
    assert_eq!(errno(files.read_link("file")), Errno::INVAL);
    let mut names = files.names("").unwrap();
    names.sort();
    assert_eq!(names, ["directory", "file"]);
}

pub(super) fn directories_are_removed_when_they_are_empty(stage: &Stage) {
    let files = stage.files();
    files.make_directory("outer").unwrap();
    files.make_directory("outer/inner").unwrap();
    files.write("outer/inner/file", b"x").unwrap();
    assert_eq!(errno(files.remove_directory("outer/inner")), Errno::NOTEMPTY);
    assert_eq!(errno(files.remove_directory("outer")), Errno::NOTEMPTY);
    files.remove_file("outer/inner/file").unwrap();
    files.remove_directory("outer/inner").unwrap();
    stage.both_sides(|files| assert_eq!(files.names("outer").unwrap(), [""; 0]));
    files.remove_directory("outer").unwrap();
    stage.both_sides(|files| assert_eq!(files.names("").unwrap(), [""; 0]));
}

pub(super) fn a_file_has_as_many_names_as_it_has_links(stage: &Stage) {
    let files = stage.files();
    files.make_directory("directory").unwrap();
    files.write("directory/old", b"content").unwrap();
    files.hard_link("directory/old", "second").unwrap();
    stage.both_sides(|files| {
        let (old, second) = (files.attributes("directory/old").unwrap(), files.attributes("second").unwrap());
        assert_eq!((old.nlink, second.nlink, old.ino), (2, 2, second.ino));
    });
    files.set_mode("second", 0o640).unwrap();
    assert_eq!(files.attributes("directory/old").unwrap().permissions(), 0o640, "one file under two names");
    files.create("second").unwrap().write_all_at(b"changed", 0).unwrap();
    assert_eq!(files.read("directory/old").unwrap(), b"changed");
    assert_eq!(errno(files.hard_link("second", "directory/old")), Errno::EXIST);
    files.remove_file("second").unwrap();
    stage.both_sides(|files| assert_eq!(files.attributes("directory/old").unwrap().nlink, 1));
}

pub(super) fn symbolic_links_are_followed_and_loops_are_an_error(stage: &Stage) {
    let files = stage.files();
    files.make_directory("directory").unwrap();
    files.write("directory/file", b"content").unwrap();
    files.symlink("directory/file", "relative").unwrap();
    files.symlink("directory", "to-directory").unwrap();
    files.symlink("../directory/../relative", "directory/up").unwrap();
    files.symlink("nowhere", "dangling").unwrap();
    stage.both_sides(|files| {
        for path in ["relative", "to-directory/file", "directory/up", "to-directory/up"] {
            assert_eq!(files.read(path).unwrap(), b"content", "{path}");
        }
        assert_eq!(files.read_link("relative").unwrap(), Path::new("directory/file"));
        let link = files.symlink_attributes("relative").unwrap();
        assert_eq!((link.kind(), link.size), (SYMLINK, "directory/file".len() as u64));
        assert_eq!(errno(files.read("dangling")), Errno::NOENT);
        assert_eq!(files.read_link("dangling").unwrap(), Path::new("nowhere"));
    });
    files.symlink("two", "one").unwrap();
    files.symlink("one", "two").unwrap();
    assert_eq!(errno(files.read("one")), Errno::LOOP);
    assert_eq!(errno(files.symlink("anything", "one")), Errno::EXIST);
    files.remove_file("relative").unwrap();
    assert_eq!(files.read("directory/file").unwrap(), b"content", "the link went, not its target");
}

pub(super) fn a_rename_replaces_a_file_of_the_same_kind_and_no_other(stage: &Stage) {
    let files = stage.files();
    files.write("a", b"a").unwrap();
    files.write("b", b"b").unwrap();
    files.rename("a", "b", 0).unwrap();
    stage.both_sides(|files| {
        assert_eq!(files.read("b").unwrap(), b"a");
        assert!(!files.exists("a"));
    });
    for directory in ["empty", "full", "full/inside", "moved"] {
        files.make_directory(directory).unwrap();
    }
    assert_eq!(errno(files.rename("b", "empty", 0)), Errno::ISDIR);
    assert_eq!(errno(files.rename("empty", "b", 0)), Errno::NOTDIR);
    assert_eq!(errno(files.rename("moved", "full", 0)), Errno::NOTEMPTY);
    files.rename("moved", "empty", 0).unwrap();
    files.rename("b", "full/inside/b", 0).unwrap();
    stage.both_sides(|files| {
        assert!(!files.exists("moved") && !files.exists("b"));
        assert_eq!(files.read("full/inside/b").unwrap(), b"a");
    });
}

pub(super) fn a_rename_that_must_not_replace_does_not(stage: &Stage) {
    let files = stage.files();
    files.write("a", b"a").unwrap();
    files.write("b", b"b").unwrap();
    assert_eq!(errno(files.rename("a", "b", NOREPLACE)), Errno::EXIST);
    files.rename("a", "c", NOREPLACE).unwrap();
    stage.both_sides(|files| {
        assert_eq!((files.read("b").unwrap(), files.read("c").unwrap()), (b"b".to_vec(), b"a".to_vec()));
        assert!(!files.exists("a"));
    });
}

pub(super) fn an_exchange_swaps_files_and_directories(stage: &Stage) {
    let files = stage.files();
    files.write("file", b"a").unwrap();
    files.make_directory("directory").unwrap();
    files.write("directory/inside", b"b").unwrap();
    files.rename("file", "directory", EXCHANGE).unwrap();
    stage.both_sides(|files| {
        assert_eq!(files.read("directory").unwrap(), b"a");
        assert_eq!(files.read("file/inside").unwrap(), b"b");
    });
    assert_eq!(errno(files.rename("file", "none", EXCHANGE)), Errno::NOENT);
}

pub(super) fn a_directory_cannot_be_moved_into_itself(stage: &Stage) {
    let files = stage.files();
    files.make_directory("outer").unwrap();
    files.make_directory("outer/inner").unwrap();
    assert_eq!(errno(files.rename("outer", "outer/inner/new", 0)), Errno::INVAL);
    assert_eq!(errno(files.rename("outer/inner", "outer", 0)), Errno::NOTEMPTY);
    stage.both_sides(|files| assert_eq!(files.names("outer").unwrap(), ["inner"]));
}

pub(super) fn names_of_one_file_renamed_to_each_other_both_stay(stage: &Stage) {
    let files = stage.files();
    files.write("a", b"x").unwrap();
    files.hard_link("a", "b").unwrap();
    files.rename("a", "b", 0).unwrap();
    stage.both_sides(|files| assert_eq!(files.attributes("a").unwrap().nlink, 2));
}

pub(super) fn what_is_open_is_the_same_file_after_a_rename(stage: &Stage) {
    let files = stage.files();
    files.make_directory("from").unwrap();
    files.make_directory("to").unwrap();
    let file = files.create("from/file").unwrap();
    file.write_all_at(b"before", 0).unwrap();
    files.rename("from", "to/from", 0).unwrap();
    file.write_all_at(b" and after", 6).unwrap();
    files.write("to/file", b"is replaced").unwrap();
    files.rename("to/from/file", "to/file", 0).unwrap();
    assert_eq!(file.attributes().unwrap().ino, files.attributes("to/file").unwrap().ino);
    stage.both_sides(|files| assert_eq!(files.read("to/file").unwrap(), b"before and after"));
}

pub(super) fn a_thousand_names_are_listed_once_each(stage: &Stage) {
    let files = stage.files();
    files.make_directory("many").unwrap();
    let name = |index: usize| format!("a file with a name of some length, number {index:04}");
    for index in 0..1000 {
        files.write(format!("many/{}", name(index)), index.to_string().as_bytes()).unwrap();
    }
    let expected: Vec<_> = (0..1000).map(|index| OsString::from(name(index))).collect();
    stage.both_sides(|files| {
        let mut listed = files.names("many").unwrap();
        listed.sort();
        assert_eq!(listed, expected);
        for index in (0..1000).step_by(97) {
            assert_eq!(files.read(format!("many/{}", name(index))).unwrap(), index.to_string().as_bytes());
        }
    });
    (0..1000).for_each(|index| files.remove_file(&format!("many/{}", name(index))).unwrap());
    stage.both_sides(|files| assert_eq!(files.names("many").unwrap(), [""; 0]));
    files.remove_directory("many").unwrap();
}

pub(super) fn long_and_odd_names_are_kept_as_they_are(stage: &Stage) {
    let files = stage.files();
    let longest = "n".repeat(255);
    let odd = [OsStr::from_bytes(b"\xff\xfe no text"), OsStr::new("\n"), OsStr::new(" "), OsStr::new("...")];
    let mut names: Vec<OsString> = odd.iter().map(|name| (*name).to_owned()).collect();
    names.push(longest.into());
    names.iter().for_each(|name| files.write(name, name.as_bytes()).unwrap());
    names.sort();
    stage.both_sides(|files| {
        let mut listed = files.names("").unwrap();
        listed.sort();
        assert_eq!(listed, names);
        names.iter().for_each(|name| assert_eq!(files.read(name).unwrap(), name.as_bytes()));
    });
    assert_eq!(errno(files.create("n".repeat(256))), Errno::NAMETOOLONG);
}

pub(super) fn a_tree_is_sixty_four_directories_deep(stage: &Stage) {
    let files = stage.files();
    let mut path = String::from("deep");
    for _ in 0..64 {
        files.make_directory(&path).unwrap();
        path.push_str("/deep");
    }
    files.write(&path, b"far down").unwrap();
    stage.both_sides(|files| assert_eq!(files.read(&path).unwrap(), b"far down"));
}
