//! The host beside the client: what it did is seen, and what it says of itself is told. What a program may expect of the client
//! alone is the conformance list.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashore_testkit::share::{SharedDirectory, Whose};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::{CACHE_MODES, with_cache};

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

pub(crate) fn no_link_leads_out_of_the_share(whose: Whose) {
    let share = SharedDirectory::new(whose);
    let client = share.mount(with_cache(Default::default()));
    fs::create_dir(share.path().join("dir")).unwrap();
    fs::write(share.path().join("dir/file"), b"content").unwrap();
    for (name, target) in [("root", "/"), ("absolute", "/dir"), ("up", "../../..")] {
        std::os::unix::fs::symlink(target, share.path().join(name)).unwrap();
    }
    for path in ["absolute/file", "root/dir/file", "root/../../root/dir/file", "up/dir/file"] {
        assert_eq!(client.read(path).unwrap(), b"content", "{path}");
    }
    client.leave();
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
