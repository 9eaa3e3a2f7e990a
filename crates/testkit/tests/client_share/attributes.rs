//! Attributes, times, extended attributes, space, and files that are none.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashore_testkit::share::{SharedDirectory, Whose};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::{CACHE_MODES, with_cache};

pub(crate) fn modes_owners_and_times_reach_the_host(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let file = client.create("file").unwrap();
        file.write_all_at(b"dirty when its times are set", 0).unwrap();
        client.set_mode("file", 0o4751).unwrap();
        let modified = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
        let accessed = UNIX_EPOCH - Duration::from_millis(1500);
        client.set_times("file", Some(accessed), Some(modified)).unwrap();
        client.sync().unwrap();
        let there = fs::metadata(share.path().join("file")).unwrap();
        assert_eq!(there.permissions().mode() & 0o7777, 0o4751, "{cache:?}");
        assert_eq!(
            there.modified().unwrap(),
            modified,
            "{cache:?}: the data written before has not moved it"
        );
        assert_eq!((there.atime(), there.atime_nsec()), (-2, 500_000_000));
        assert_eq!(client.metadata("file").unwrap().modified(), modified);
        client.set_owner("file", Some(12), Some(34)).unwrap();
        let there = fs::metadata(share.path().join("file")).unwrap();
        assert_eq!((there.uid(), there.gid()), (12, 34), "{cache:?}");
        client.set_owner("file", None, Some(35)).unwrap();
        assert_eq!(client.metadata("file").unwrap().uid(), 12);
        drop(file);
        client.leave();
    }
}

pub(crate) fn the_times_of_a_write_are_the_hosts_after_a_sync(whose: Whose) {
    for cache in CACHE_MODES {
        let share = SharedDirectory::new(whose);
        let client = share.mount(with_cache(cache));
        let file = client.create("file").unwrap();
        let long_ago = UNIX_EPOCH + Duration::from_secs(1);
        client.set_times("file", None, Some(long_ago)).unwrap();
        let before = SystemTime::now() - Duration::from_secs(1);
        for round in 0..5u64 {
            file.write_all_at(b"now", round * 5000).unwrap();
            client.sync().unwrap();
            let there = fs::metadata(share.path().join("file")).unwrap().modified().unwrap();
            assert!(there > before, "{cache:?}: {there:?}");
            assert_eq!(file.metadata().unwrap().modified(), there, "{cache:?}");
        }
        drop(file);
        client.leave();
    }
}

pub(crate) fn extended_attributes_go_both_ways(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.write("file", b"x").unwrap();
    let path = share.path().join("file");
    client.set_xattr("file", "user.colour", b"red").unwrap();
    let mut value = [0; 64];
    let length = getxattr(&path, c"user.colour", &mut value).unwrap();
    assert_eq!(value[..length], *b"red");
    setxattr(&path, c"user.from-host", &[7; 3000], XattrFlags::empty()).unwrap();
    assert_eq!(client.xattr("file", "user.from-host").unwrap(), [7; 3000]);
    let mut names = client.xattrs("file").unwrap();
    names.sort();
    assert_eq!(names, ["user.colour", "user.from-host"]);
    client.set_xattr("file", "user.empty", b"").unwrap();
    assert_eq!(client.xattr("file", "user.empty").unwrap(), b"");
    client.remove_xattr("file", "user.colour").unwrap();
    let gone = client.xattr("file", "user.colour").unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::NODATA.raw_os_error()));
    client.leave();
}

pub(crate) fn space_is_that_of_the_host(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    let host = rustix::fs::statvfs(share.path()).unwrap();
    let told = client.statfs("").unwrap();
    assert_eq!(told.total(), host.f_blocks * host.f_frsize);
    assert_eq!((told.files(), u64::from(told.name_max())), (host.f_files, host.f_namemax));
    // Others write to this file system too.
    let slack = told.total() / 10;
    assert!(told.free().abs_diff(host.f_bfree * host.f_frsize) < slack);
    assert!(told.available().abs_diff(host.f_bavail * host.f_frsize) < slack);
    client.leave();
}

pub(crate) fn pipes_and_sockets_are_made(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    client.make_node("pipe", 0o010_600, 0).unwrap();
    client.make_node("socket", 0o140_600, 0).unwrap();
    assert!(fs::metadata(share.path().join("pipe")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(share.path().join("socket")).unwrap().file_type().is_socket());
    assert_eq!(client.metadata("pipe").unwrap().mode(), 0o010_600);
    client.leave();
}
