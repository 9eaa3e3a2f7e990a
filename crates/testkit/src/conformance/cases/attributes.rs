//! Attributes, times, extended attributes, space, and files that are none.

use std::thread::sleep;
use std::time::{Duration, UNIX_EPOCH};

use rustix::io::Errno;

use super::Stage;
use crate::conformance::files::errno;

const PIPE: u32 = 0o010_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const SOCKET: u32 = 0o140_000;

pub(super) fn modes_and_owners_are_what_they_were_set_to(stage: &Stage) {
    let files = stage.files();
    files.make_directory("directory").unwrap();
    let file = files.create("file").unwrap();
    file.write_all_at(b"dirty when they are set", 0).unwrap();
    assert_eq!(files.attributes("file").unwrap().permissions(), 0o644);
    files.set_owner("file", Some(12), Some(34)).unwrap();
    files.set_owner("file", None, Some(35)).unwrap();
    files.set_mode("file", 0o4751).unwrap();
    files.set_mode("directory", 0o1777).unwrap();
    files.set_owner("directory", Some(0xFFFF_FFFE), None).unwrap();
    stage.both_sides(|files| {
        let (file, directory) = (files.attributes("file").unwrap(), files.attributes("directory").unwrap());
        assert_eq!((file.permissions(), file.uid, file.gid), (0o4751, 12, 35));
        assert_eq!((directory.permissions(), directory.uid), (0o1777, 0xFFFF_FFFE));
    });
    assert_eq!(file.attributes().unwrap().permissions(), 0o4751);
}

pub(super) fn times_are_set_to_the_nanosecond_even_before_1970(stage: &Stage) {
    let files = stage.files();
    let modified = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let accessed = UNIX_EPOCH - Duration::from_millis(1500);
    let file = files.create("file").unwrap();
    file.write_all_at(b"dirty when its times are set", 0).unwrap();
    files.set_times("file", accessed, modified).unwrap();
    stage.both_sides(|files| {
        let seen = files.attributes("file").unwrap();
        assert_eq!((seen.accessed, seen.modified), (accessed, modified), "data written before moves nothing");
    });
    drop(file);
    stage.both_sides(|files| assert_eq!(files.attributes("file").unwrap().modified, modified));
}

pub(super) fn a_write_moves_the_times_of_the_file_and_a_name_those_of_the_directory(stage: &Stage) {
    let files = stage.files();
    let long_ago = UNIX_EPOCH + Duration::from_secs(1);
    files.make_directory("directory").unwrap();
    let file = files.create("directory/file").unwrap();
    for path in ["directory", "directory/file"] {
        files.set_times(path, long_ago, long_ago).unwrap();
        assert_eq!(files.attributes(path).unwrap().modified, long_ago);
    }
    let before = files.attributes("directory/file").unwrap().changed;
    // More than a tick of the clock that file systems take their times from.
    sleep(Duration::from_millis(20));
    file.write_all_at(b"now", 0).unwrap();
    stage.both_sides(|files| {
        let seen = files.attributes("directory/file").unwrap();
        assert!(seen.modified > before && seen.changed > before, "{seen:?}");
        assert_eq!(files.attributes("directory").unwrap().modified, long_ago, "a write is no new name");
    });
    // Not compared with the file's: a client that writes back has those from its own clock.
    files.write("directory/new", b"").unwrap();
    stage.both_sides(|files| assert!(files.attributes("directory").unwrap().modified > long_ago));
    files.set_times("directory", long_ago, long_ago).unwrap();
    files.remove_file("directory/new").unwrap();
    stage.both_sides(|files| assert!(files.attributes("directory").unwrap().modified > long_ago));
}

pub(super) fn extended_attributes_are_set_listed_and_removed(stage: &Stage) {
    let files = stage.files();
    files.write("file", b"x").unwrap();
    assert_eq!(files.extended_attributes("file").unwrap(), [""; 0]);
    files.set_extended_attribute("file", "user.colour", b"red").unwrap();
    files.set_extended_attribute("file", "user.colour", b"blue").unwrap();
    files.set_extended_attribute("file", "user.empty", b"").unwrap();
    files.set_extended_attribute("file", "user.long", &[7; 3000]).unwrap();
    stage.both_sides(|files| {
        let mut names = files.extended_attributes("file").unwrap();
        names.sort();
        assert_eq!(names, ["user.colour", "user.empty", "user.long"]);
        assert_eq!(files.extended_attribute("file", "user.colour").unwrap(), b"blue");
        assert_eq!(files.extended_attribute("file", "user.empty").unwrap(), b"");
        assert_eq!(files.extended_attribute("file", "user.long").unwrap(), [7; 3000]);
    });
    files.remove_extended_attribute("file", "user.colour").unwrap();
    stage.both_sides(|files| {
        assert_eq!(errno(files.extended_attribute("file", "user.colour")), Errno::NODATA);
    });
    assert_eq!(errno(files.remove_extended_attribute("file", "user.colour")), Errno::NODATA);
}

pub(super) fn pipes_sockets_and_devices_are_made(stage: &Stage) {
    let files = stage.files();
    files.make_node("pipe", PIPE | 0o600, 0).unwrap();
    files.make_node("socket", SOCKET | 0o640, 0).unwrap();
    files.make_node("null", CHARACTER_DEVICE | 0o666, 0x103).unwrap();
    assert_eq!(errno(files.make_node("pipe", PIPE | 0o600, 0)), Errno::EXIST);
    stage.both_sides(|files| {
        assert_eq!(files.attributes("pipe").unwrap().mode, PIPE | 0o600);
        assert_eq!(files.attributes("socket").unwrap().mode, SOCKET | 0o640);
        let device = files.attributes("null").unwrap();
        assert_eq!((device.mode, device.rdev), (CHARACTER_DEVICE | 0o666, 0x103));
    });
}

pub(super) fn space_is_told(stage: &Stage) {
    stage.both_sides(|files| {
        let space = files.space().unwrap();
        assert!(space.available <= space.free && space.free <= space.total && space.total > 0, "{space:?}");
        assert_eq!(space.longest_name, 255);
    });
}
