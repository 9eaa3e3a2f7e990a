//! Each operation against the host's own view of what it did.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::Duration;

use ashore_passthrough::{CachePolicy, InodeFileHandles};
use ashore_server::{Caller, Created, FileSystem, SetAttributes, Write};
use ashore_wire::abi::{CopyFileRangeIn, IoctlIn, SetattrIn};
use ashore_wire::flags::{InitFlags, OpenReplyFlags, OpenRequestFlags, SetattrValid, WriteFlags};
use ashore_wire::request::Extensions;
use ashore_wire::{Errno, FileHandle, LockOwner, NodeId};

use crate::harness::{
    Bytes, MODES, RDWR, ROOT, Share, before_linux_6_13, caller, init_without, need_root, with_name,
};

#[test]
fn what_a_client_makes_is_there_on_the_host() {
    for mode in MODES {
        let share = Share::holding(mode);
        let directory = NodeId(share.mkdir(ROOT, "d").unwrap().node);
        let file = share.put(directory, "f", b"hello");
        assert_eq!(fs::read(share.path("d/f")).unwrap(), b"hello");
        assert_eq!(fs::metadata(share.path("d/f")).unwrap().mode(), 0o100_644);
        assert_eq!(share.content(file).unwrap(), b"hello");

        with_name("l", |name| share.fs.symlink(&caller(), directory, name, c"../anywhere")).unwrap();
        assert_eq!(fs::read_link(share.path("d/l")).unwrap().to_str(), Some("../anywhere"));
        let link = share.node(directory, "l");
        assert_eq!(share.fs.readlink(&caller(), link).unwrap(), b"../anywhere");
        assert_eq!(share.fs.readlink(&caller(), file), Err(Errno::EINVAL));

        let linked = with_name("h", |name| share.fs.link(&caller(), file, ROOT, name)).unwrap();
        assert_eq!((linked.node, linked.attr.nlink), (file.0, 2));
        assert_eq!(
            fs::metadata(share.path("h")).unwrap().ino(),
            fs::metadata(share.path("d/f")).unwrap().ino()
        );
        let link_of_link = with_name("hl", |name| share.fs.link(&caller(), link, ROOT, name)).unwrap();
        assert_eq!(link_of_link.node, link.0);

        let fifo = with_name("p", |name| share.fs.mknod(&caller(), ROOT, name, libc::S_IFIFO | 0o600, 0, 0));
        assert!(fs::metadata(share.path("p")).unwrap().file_type().is_fifo());
        assert_eq!(share.open(NodeId(fifo.unwrap().node), 0).unwrap_err(), Errno::ENXIO, "would block");

        share.rename((directory, "f"), (ROOT, "g"), 0).unwrap();
        assert_eq!(share.node(ROOT, "g"), file, "a rename leaves the node");
        assert_eq!(share.lookup(directory, "f").unwrap_err(), Errno::ENOENT);
        share.unlink(ROOT, "g").unwrap();
        share.unlink(ROOT, "h").unwrap();
        assert_eq!(with_name("d", |name| share.fs.rmdir(&caller(), ROOT, name)), Err(Errno::ENOTEMPTY));
        share.unlink(directory, "l").unwrap();
        with_name("d", |name| share.fs.rmdir(&caller(), ROOT, name)).unwrap();
        assert!(!share.path("d").exists());
    }
}

#[test]
fn a_create_of_what_is_there_opens_it_unless_it_must_be_new() {
    for mode in MODES {
        let share = Share::holding(mode);
        let file = share.put(ROOT, "f", b"old");
        let created = share.create(ROOT, "f").unwrap();
        assert_eq!(created.entry.node, file.0);
        assert_eq!(share.read(file, created.opened.handle, 0, 9).unwrap(), b"old");
        let exclusive = RDWR | libc::O_EXCL as u32;
        let refused = with_name("f", |name| {
            share.fs.create(&caller(), ROOT, name, exclusive, 0o600, 0, OpenRequestFlags::empty())
        });
        assert_eq!(refused.unwrap_err(), Errno::EEXIST);
        // A link is not followed, whatever it points to.
        std::os::unix::fs::symlink("/etc/passwd", share.path("s")).unwrap();
        assert_eq!(share.create(ROOT, "s").unwrap_err(), Errno::ENXIO);
        assert_eq!(share.fs.open_handles(), 1);
    }
}

#[test]
fn attributes_are_set_by_node_and_by_handle() {
    for mode in MODES {
        let share = Share::holding(mode);
        let Created { entry, opened } = share.create(ROOT, "f").unwrap();
        let node = NodeId(entry.node);
        for by_handle in [false, true] {
            let valid = SetattrValid::MODE | SetattrValid::SIZE | SetattrValid::ATIME | SetattrValid::MTIME;
            let valid = if by_handle { valid | SetattrValid::FH } else { valid };
            let values = SetattrIn {
                fh: opened.handle.0,
                mode: 0o100_600 + u32::from(by_handle),
                size: 4321,
                atime: 1_000,
                mtime: 2_000,
                mtimensec: 5,
                ..Default::default()
            };
            let attr = share.setattr(node, valid, values).unwrap().attr;
            assert_eq!((attr.size, attr.mode & 0o777), (4321, 0o600 + u32::from(by_handle)));
            let host = fs::metadata(share.path("f")).unwrap();
            assert_eq!((host.atime(), host.mtime(), host.mtime_nsec(), host.len()), (1_000, 2_000, 5, 4321));
            let zero = SetattrIn { fh: opened.handle.0, ..Default::default() };
            share.setattr(node, SetattrValid::SIZE | valid & SetattrValid::FH, zero).unwrap();
        }
        let now = SetattrValid::MTIME | SetattrValid::MTIME_NOW;
        share.setattr(node, now, SetattrIn::default()).unwrap();
        let host = fs::metadata(share.path("f")).unwrap();
        assert!(host.mtime() > 1_000_000_000 && host.atime() == 1_000, "only the one that was asked for");
        assert_eq!(share.getattr(ROOT).unwrap().attr.ino, fs::metadata(share.path("")).unwrap().ino());
    }
}

#[test]
fn attributes_of_a_link_are_its_own() {
    need_root("to give links away");
    for mode in MODES {
        let share = Share::holding(mode);
        fs::write(share.path("target"), b"x").unwrap();
        let target_before = fs::metadata(share.path("target")).unwrap();
        with_name("l", |name| share.fs.symlink(&caller(), ROOT, name, c"target")).unwrap();
        let link = share.node(ROOT, "l");
        let values = SetattrIn { mtime: 77, uid: 12, gid: 13, ..Default::default() };
        let valid = SetattrValid::MTIME | SetattrValid::UID | SetattrValid::GID;
        share.setattr(link, valid, values).unwrap();
        let host = fs::symlink_metadata(share.path("l")).unwrap();
        assert_eq!((host.mtime(), host.uid(), host.gid()), (77, 12, 13));
        let target = fs::metadata(share.path("target")).unwrap();
        assert_eq!((target.mtime(), target.uid()), (target_before.mtime(), target_before.uid()));
        let chmod = share.setattr(link, SetattrValid::MODE, SetattrIn { mode: 0o600, ..Default::default() });
        assert_eq!(chmod.unwrap_err(), Errno::EOPNOTSUPP);
    }
}

#[test]
fn files_belong_to_their_caller_and_his_group() {
    need_root("to give files away");
    for mode in MODES {
        let share = Share::holding(mode);
        fs::set_permissions(share.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        let other = Caller { uid: 1234, gid: 5678, ..Caller::default() };
        let made = with_name("f", |name| {
            share.fs.create(&other, ROOT, name, RDWR, 0o640, 0, OpenRequestFlags::empty())
        });
        assert_eq!(
            (made.unwrap().entry.attr.uid, fs::metadata(share.path("f")).unwrap().gid()),
            (1234, 5678)
        );
        with_name("d", |name| share.fs.mkdir(&other, ROOT, name, 0o700, 0)).unwrap();
        with_name("l", |name| share.fs.symlink(&other, ROOT, name, c"x")).unwrap();
        let owners = ["d", "l"].map(|name| fs::symlink_metadata(share.path(name)).unwrap());
        assert!(owners.iter().all(|owner| (owner.uid(), owner.gid()) == (1234, 5678)));

        // A directory that only a supplementary group may write to.
        let shared = share.mkdir(ROOT, "shared").unwrap();
        std::os::unix::fs::chown(share.path("shared"), Some(0), Some(999)).unwrap();
        fs::set_permissions(share.path("shared"), fs::Permissions::from_mode(0o2770)).unwrap();
        let refused = with_name("x", |name| share.fs.mkdir(&other, NodeId(shared.node), name, 0o755, 0));
        assert_eq!(refused.unwrap_err(), Errno::EACCES);
        let group = 999u32.to_ne_bytes();
        let extensions = Extensions { groups: Some(&group), security_contexts: None };
        let member = Caller { extensions, ..other };
        with_name("x", |name| share.fs.mkdir(&member, NodeId(shared.node), name, 0o755, 0)).unwrap();
        let made = fs::metadata(share.path("shared/x")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 999));
        // A client that cannot tell groups has checked all the same.
        init_without(&share.fs, InitFlags::CREATE_SUPP_GROUP);
        let shared = share.node(ROOT, "shared");
        with_name("y", |name| share.fs.mkdir(&other, shared, name, 0o755, 0)).unwrap();
        assert_eq!(rustix::process::geteuid().as_raw(), 0, "the thread is itself again");
        let unmapped = Caller { uid: u32::MAX, ..other };
        let refused = with_name("z", |name| share.fs.mkdir(&unmapped, ROOT, name, 0o755, 0));
        assert_eq!(refused.unwrap_err(), Errno::EOVERFLOW);
    }
}

#[test]
fn an_unlinked_inode_goes_on_until_it_is_forgotten() {
    for mode in MODES {
        let share = Share::holding(mode);
        let Created { entry, opened } = share.create(ROOT, "f").unwrap();
        let node = NodeId(entry.node);
        share.write(node, opened.handle, 0, b"data").unwrap();
        share.unlink(ROOT, "f").unwrap();
        assert_eq!(share.getattr(node).unwrap().attr.nlink, 0);
        assert_eq!(share.write(node, opened.handle, 4, b" more").unwrap(), 5);
        share.fs.fsync(node, opened.handle, false).unwrap();
        share.release(node, opened.handle);
        // Nothing is open any more; the node keeps it.
        assert_eq!(share.getattr(node).unwrap().attr.size, 9);
        assert_eq!(share.content(node).unwrap(), b"data more");
        let times = SetattrValid::MTIME | SetattrValid::CTIME;
        let attr = share.setattr(node, times, SetattrIn { mtime: 55, ..Default::default() }).unwrap().attr;
        assert_eq!(attr.mtime, 55);
        assert_eq!(share.fs.syncfs(ROOT), Ok(()), "it does not make a sync fail");
        share.fs.forget(node, 1);
        assert_eq!(share.getattr(node).unwrap_err(), Errno::ESTALE);

        // The same for what a rename replaces, and for a directory.
        let old = share.put(ROOT, "old", b"old");
        share.put(ROOT, "new", b"new");
        share.rename((ROOT, "new"), (ROOT, "old"), 0).unwrap();
        assert_eq!(share.content(old).unwrap(), b"old");
        let directory = NodeId(share.mkdir(ROOT, "d").unwrap().node);
        with_name("d", |name| share.fs.rmdir(&caller(), ROOT, name)).unwrap();
        assert_eq!(share.getattr(directory).unwrap().attr.mode & libc::S_IFMT, libc::S_IFDIR);
    }
}

/// Aim: a client that writes times back after the last close must not have its sync fail for them.
#[test]
fn times_of_a_file_that_the_host_removed_are_taken_and_nothing_else_is() {
    need_root("to use file handles");
    let share = Share::new();
    let node = share.put(ROOT, "f", b"x");
    fs::remove_file(share.path("f")).unwrap();
    let times = SetattrValid::MTIME | SetattrValid::CTIME;
    let attr = share.setattr(node, times, SetattrIn { mtime: 5, ..Default::default() }).unwrap().attr;
    assert_eq!((attr.mode & libc::S_IFMT, attr.nlink), (libc::S_IFREG, 0));
    let size = share.setattr(node, SetattrValid::SIZE, SetattrIn::default());
    assert_eq!(size.unwrap_err(), Errno::ESTALE);
    assert_eq!(share.setattr(NodeId(99), times, SetattrIn::default()).unwrap_err(), Errno::ESTALE);
}

#[test]
fn a_file_without_a_name_can_be_given_one() {
    for mode in MODES {
        let share = Share::holding(mode);
        let Created { entry, opened } = share.fs.tmpfile(&caller(), ROOT, RDWR, 0o600, 0).unwrap();
        let node = NodeId(entry.node);
        share.write(node, opened.handle, 0, b"named late").unwrap();
        assert_eq!(fs::read_dir(share.path("")).unwrap().count(), 0);
        with_name("f", |name| share.fs.link(&caller(), node, ROOT, name)).unwrap();
        assert_eq!(fs::read(share.path("f")).unwrap(), b"named late");
        assert_eq!(share.node(ROOT, "f"), node);
    }
}

#[test]
fn that_a_name_is_not_there_may_be_remembered_where_asked() {
    let timeout = Duration::from_secs(7);
    let share = Share::with(|options| options.negative_timeout = timeout);
    let missing = share.lookup(ROOT, "f").unwrap();
    assert_eq!((missing.node, missing.entry_timeout), (0, timeout));
    let file = share.put(ROOT, "f", b"");
    assert_eq!(share.node(ROOT, "f"), file);
    assert_eq!(
        share.lookup(NodeId(file.0 + 1000), "f").unwrap_err(),
        Errno::ESTALE,
        "no other error changes"
    );
}

#[test]
fn renames_exchange_and_refuse_to_replace() {
    let share = Share::new();
    let (a, b) = (share.put(ROOT, "a", b"a"), share.put(ROOT, "b", b"b"));
    assert_eq!(share.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    share.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((share.node(ROOT, "a"), share.node(ROOT, "b")), (b, a));
    assert_eq!(share.rename((ROOT, "a"), (ROOT, "b"), 1 << 20), Err(Errno::EINVAL));
}

#[test]
fn extended_attributes_are_those_of_the_host_also_on_links() {
    need_root("for trusted attributes");
    use_extended_attributes();
    before_linux_6_13(use_extended_attributes);
}

fn use_extended_attributes() {
    for mode in MODES {
        let share = Share::holding(mode);
        let file = share.put(ROOT, "f", b"");
        with_name("l", |name| share.fs.symlink(&caller(), ROOT, name, c"f")).unwrap();
        for (node, name) in [(file, c"user.a"), (share.node(ROOT, "l"), c"trusted.b"), (ROOT, c"user.c")] {
            share.fs.setxattr(&caller(), node, name, b"value", 0, 0).unwrap();
            let exists = share.fs.setxattr(&caller(), node, name, b"x", libc::XATTR_CREATE as u32, 0);
            assert_eq!(exists.unwrap_err(), Errno::EEXIST);
            let mut buffer = [0; 64];
            assert_eq!(share.fs.getxattr(&caller(), node, name, &mut buffer), Ok(5));
            assert_eq!(&buffer[..5], b"value");
            assert_eq!(share.fs.getxattr(&caller(), node, name, &mut []), Ok(5));
            assert_eq!(share.fs.getxattr(&caller(), node, name, &mut buffer[..3]), Err(Errno::ERANGE));
            let length = share.fs.listxattr(&caller(), node, &mut buffer).unwrap();
            assert!(share.fs.listxattr(&caller(), node, &mut []).unwrap() >= length);
            assert!(buffer[..length].starts_with(name.to_bytes_with_nul()), "{:?}", &buffer[..length]);
            share.fs.removexattr(&caller(), node, name).unwrap();
            assert_eq!(share.fs.getxattr(&caller(), node, name, &mut buffer), Err(Errno::ENODATA));
        }
        let hidden = share.fs.getxattr(&caller(), file, c"system.posix_acl_access", &mut []);
        assert_eq!(hidden, Err(Errno::EOPNOTSUPP));
    }
    let without = Share::with(|options| options.xattr = false);
    assert_eq!(without.fs.getxattr(&caller(), ROOT, c"user.a", &mut []), Err(Errno::ENOSYS));
}

#[test]
fn space_is_allocated_punched_found_and_copied() {
    let share = Share::new();
    let Created { entry, opened } = share.create(ROOT, "f").unwrap();
    let (node, handle) = (NodeId(entry.node), opened.handle);
    share.write(node, handle, 0, &[7; 65536]).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    share.fs.fallocate(&caller(), node, handle, 8192, 8192, punch as u32).unwrap();
    assert_eq!(share.fs.lseek(node, handle, 0, libc::SEEK_HOLE as u32), Ok(8192));
    assert_eq!(share.fs.lseek(node, handle, 8192, libc::SEEK_DATA as u32), Ok(16384));
    assert_eq!(share.fs.lseek(node, handle, 1 << 20, libc::SEEK_DATA as u32), Err(Errno::ENXIO));
    assert_eq!(share.fs.lseek(node, handle, 0, 77), Err(Errno::EINVAL));
    share.fs.fallocate(&caller(), node, handle, 0, 1 << 20, 0).unwrap();
    assert_eq!(fs::metadata(share.path("f")).unwrap().len(), 1 << 20);

    let copy = share.create(ROOT, "copy").unwrap();
    let arguments = CopyFileRangeIn {
        fh_in: handle.0,
        off_in: 16384,
        nodeid_out: copy.entry.node,
        fh_out: copy.opened.handle.0,
        off_out: 0,
        len: 1000,
        flags: 0,
    };
    assert_eq!(share.fs.copy_file_range(&caller(), node, &arguments), Ok(1000));
    assert_eq!(fs::read(share.path("copy")).unwrap(), [7; 1000]);
    let wrong = CopyFileRangeIn { fh_out: 12345, ..arguments };
    assert_eq!(share.fs.copy_file_range(&caller(), node, &wrong), Err(Errno::EBADF));
}

fn append(share: &Share, node: NodeId, handle: FileHandle, write_flags: WriteFlags) {
    let write =
        Write { handle, offset: 0, size: 3, write_flags, flags: (libc::O_APPEND | libc::O_WRONLY) as u32 };
    assert_eq!(share.fs.write(&caller(), node, &write, &mut Bytes(b"new".to_vec())), Ok(3));
}

#[test]
fn each_write_says_whether_it_appends_and_write_back_never_does() {
    let share = Share::with(|options| options.writeback = true);
    init_without(&share.fs, InitFlags::WRITEBACK_CACHE);
    let flags = (libc::O_WRONLY | libc::O_APPEND) as u32;
    let node = share.put(ROOT, "f", b"old...");
    let opened = share.open(node, flags).unwrap();
    append(&share, node, opened.handle, WriteFlags::empty());
    assert_eq!(fs::read(share.path("f")).unwrap(), b"old...new");
    assert_eq!(share.read(node, opened.handle, 0, 9).unwrap_err(), Errno::EBADF, "open for writing only");

    init_without(&share.fs, InitFlags::empty());
    let node = share.node(ROOT, "f");
    let opened = share.open(node, flags).unwrap();
    append(&share, node, opened.handle, WriteFlags::CACHE);
    assert_eq!(fs::read(share.path("f")).unwrap(), b"new...new");
    assert_eq!(
        share.read(node, opened.handle, 0, 9).unwrap(),
        b"new...new",
        "a cache reads what it writes to"
    );
}

#[test]
fn truncation_comes_with_the_open_if_agreed() {
    let share = Share::new();
    let node = share.put(ROOT, "f", b"long");
    let opened = share.open(node, RDWR | libc::O_TRUNC as u32).unwrap();
    assert_eq!(fs::metadata(share.path("f")).unwrap().len(), 0);
    share.release(node, opened.handle);
    assert_eq!(share.open(ROOT, 0).unwrap_err(), Errno::EISDIR);
    assert_eq!(share.fs.opendir(&caller(), node, 0).unwrap_err(), Errno::ENOTDIR);
}

#[test]
fn set_user_id_bits_go_when_the_client_says_so() {
    need_root("to keep them otherwise");
    let share = Share::with(|options| options.killpriv_v2 = true);
    let node = share.put(ROOT, "f", b"x");
    let opened = share.open(node, RDWR).unwrap();
    let mode = || fs::metadata(share.path("f")).unwrap().mode() & 0o7777;
    for (write_flags, left) in [(WriteFlags::empty(), 0o6755), (WriteFlags::KILL_SUIDGID, 0o755)] {
        fs::set_permissions(share.path("f"), fs::Permissions::from_mode(0o6755)).unwrap();
        let write = Write { handle: opened.handle, offset: 0, size: 1, write_flags, flags: 0 };
        share.fs.write(&caller(), node, &write, &mut Bytes(b"y".to_vec())).unwrap();
        assert_eq!(mode(), left);
    }
    fs::set_permissions(share.path("f"), fs::Permissions::from_mode(0o6755)).unwrap();
    let user = Caller { uid: 1000, gid: 1000, ..Caller::default() };
    let values = SetattrIn::default();
    let set = SetAttributes { valid: SetattrValid::SIZE | SetattrValid::KILL_SUIDGID, values: &values };
    share.fs.setattr(&user, node, &set).unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn a_read_only_share_changes_nothing() {
    let share = Share::with(|options| options.readonly = true);
    fs::write(share.path("f"), b"x").unwrap();
    let node = share.node(ROOT, "f");
    assert_eq!(share.content(node).unwrap(), b"x");
    let refused = [
        share.create(ROOT, "g").map(drop),
        share.mkdir(ROOT, "d").map(drop),
        share.unlink(ROOT, "f"),
        share.rename((ROOT, "f"), (ROOT, "g"), 0),
        share.open(node, RDWR).map(drop),
        share.open(node, libc::O_TRUNC as u32).map(drop),
        share.setattr(node, SetattrValid::SIZE, SetattrIn::default()).map(drop),
        with_name("h", |name| share.fs.link(&caller(), node, ROOT, name)).map(drop),
        with_name("h", |name| share.fs.symlink(&caller(), ROOT, name, c"x")).map(drop),
        with_name("h", |name| share.fs.mknod(&caller(), ROOT, name, 0o600, 0, 0)).map(drop),
        share.fs.tmpfile(&caller(), ROOT, RDWR, 0o600, 0).map(drop),
        share.fs.setxattr(&caller(), node, c"user.a", b"", 0, 0),
        share.fs.removexattr(&caller(), node, c"user.a"),
        share.fs.access(&caller(), node, 2),
    ];
    for (number, outcome) in refused.iter().enumerate() {
        assert_eq!(*outcome, Err(Errno::EROFS), "number {number}");
    }
    assert_eq!(fs::read_dir(share.path("")).unwrap().count(), 1);
}

#[test]
fn access_follows_the_permission_bits() {
    need_root("to give files away");
    let share = Share::new();
    let node = share.put(ROOT, "f", b"");
    fs::set_permissions(share.path("f"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(share.path("f"), Some(5), Some(6)).unwrap();
    let access = |uid, gid, mask| share.fs.access(&Caller { uid, gid, ..Caller::default() }, node, mask);
    assert_eq!(access(5, 0, 6), Ok(()));
    assert_eq!(access(7, 6, 4), Ok(()));
    assert_eq!(access(7, 6, 2), Err(Errno::EACCES));
    assert_eq!(access(7, 7, 4), Err(Errno::EACCES));
    assert_eq!(access(0, 0, 6), Ok(()));
    assert_eq!(access(0, 0, 1), Err(Errno::EACCES));
}

#[test]
fn statx_knows_the_time_of_birth_and_statfs_the_space() {
    let share = Share::new();
    let node = share.put(ROOT, "f", b"1234");
    let (stat, _) = share.fs.statx(&caller(), node, None, 0, 0xfff).unwrap();
    assert_eq!((stat.size, stat.mode, stat.mask & 0x7ff), (4, 0o100_644, 0x7ff));
    if stat.mask & 0x800 != 0 {
        assert!(stat.btime.tv_sec > 1_000_000_000);
    }
    let space = share.fs.statfs(ROOT).unwrap();
    assert!(space.blocks > 0 && space.bsize > 0 && space.namelen >= 255);
}

#[test]
fn cache_policies_are_the_incumbents() {
    use OpenReplyFlags as Flags;
    let seconds = |share: &Share| share.lookup(ROOT, "f").unwrap().entry_timeout.as_secs();
    let cases = [
        (CachePolicy::Never, 0, Flags::DIRECT_IO, Flags::empty()),
        (CachePolicy::Metadata, 86_400, Flags::DIRECT_IO, Flags::CACHE_DIR | Flags::KEEP_CACHE),
        (CachePolicy::Auto, 1, Flags::empty(), Flags::empty()),
        (CachePolicy::Always, 86_400, Flags::KEEP_CACHE, Flags::CACHE_DIR | Flags::KEEP_CACHE),
    ];
    for (cache, timeout, file, directory) in cases {
        let share = Share::with(|options| options.cache = cache);
        let node = share.put(ROOT, "f", b"");
        assert_eq!(seconds(&share), timeout);
        assert_eq!(share.open(node, 0).unwrap().flags, file);
        assert_eq!(share.fs.opendir(&caller(), ROOT, 0).unwrap().flags, directory);
        let readdirplus = share.fs.features().contains(InitFlags::DO_READDIRPLUS);
        assert_eq!(readdirplus, cache != CachePolicy::Never);
    }
}

#[test]
fn what_was_never_given_out_is_refused_everywhere() {
    let share = Share::new();
    let file = share.put(ROOT, "f", b"x");
    let opened = share.open(file, RDWR).unwrap();
    let mut hostile =
        vec![NodeId(0), NodeId(2), NodeId(15), NodeId(16), NodeId(u64::MAX), NodeId(file.0 ^ 1 << 40)];
    hostile.extend((0..2000u64).map(|seed| NodeId(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 33)));
    // Small numbers are given out too; which of them, goes by the number that the host gave the inode.
    hostile.retain(|node| *node != file);
    for node in hostile {
        let stale = [
            share.lookup(node, "f").map(drop),
            share.getattr(node).map(drop),
            share.setattr(node, SetattrValid::SIZE, SetattrIn::default()).map(drop),
            share.create(node, "x").map(drop),
            share.mkdir(node, "x").map(drop),
            share.unlink(node, "f"),
            share.rename((node, "f"), (ROOT, "g"), 0),
            share.rename((ROOT, "f"), (node, "g"), 0),
            share.open(node, 0).map(drop),
            share.fs.opendir(&caller(), node, 0).map(drop),
            share.fs.readlink(&caller(), node).map(drop),
            share.fs.statfs(node).map(drop),
            share.fs.syncfs(node),
            share.fs.getxattr(&caller(), node, c"user.a", &mut []).map(drop),
            with_name("h", |name| share.fs.link(&caller(), node, ROOT, name)).map(drop),
        ];
        assert!(stale.iter().all(|outcome| *outcome == Err(Errno::ESTALE)), "{node}: {stale:?}");
        share.fs.forget(node, u64::MAX);
        assert_eq!(share.read(node, opened.handle, 0, 1).unwrap_err(), Errno::EBADF, "another node's handle");
    }
    let near = opened.handle.0;
    for handle in [near ^ 1, near + 16, near | 1 << 32, 12345, u64::MAX].map(FileHandle) {
        let bad = [
            share.read(file, handle, 0, 1).map(drop),
            share.write(file, handle, 0, b"x").map(drop),
            share.fs.fsync(file, handle, false),
            share.fs.fsyncdir(file, handle, false),
            share.fs.flush(file, handle, LockOwner(0)),
            share.fs.release(file, handle, None),
            share.fs.releasedir(file, handle),
            share.fs.fallocate(&caller(), file, handle, 0, 1, 0),
            share.fs.lseek(file, handle, 0, 0).map(drop),
            share.fs.getattr(&caller(), file, Some(handle)).map(drop),
        ];
        assert!(bad.iter().all(|outcome| *outcome == Err(Errno::EBADF)), "{handle}: {bad:?}");
    }
    assert_eq!(share.content(file).unwrap(), b"x");
}

#[test]
fn a_single_file_can_be_shared() {
    let directory = std::sync::Arc::new(tempfile::TempDir::new().unwrap());
    let file = directory.path().join("only");
    fs::write(&file, b"alone").unwrap();
    let hosts = ashore_passthrough::HostFileSystems::with_sync_call(|_, _| Ok(()));
    let share = Share::over(directory, &hosts, |options| options.shared_dir = file);
    assert_eq!(share.getattr(ROOT).unwrap().attr.mode & libc::S_IFMT, libc::S_IFREG);
    assert_eq!(share.content(ROOT).unwrap(), b"alone");
    assert_eq!(share.lookup(ROOT, "x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(share.fs.syncfs(ROOT), Ok(()));
}

#[test]
fn a_share_that_cannot_be_opened_says_what_to_do() {
    let missing = ashore_passthrough::Passthrough::new(ashore_passthrough::Options::new("/nowhere/at/all"));
    let message = missing.unwrap_err().to_string();
    assert!(message.contains("/nowhere/at/all") && message.contains("check that"), "{message}");
    let null = ashore_passthrough::Passthrough::new(ashore_passthrough::Options::new("/dev/null"));
    assert!(null.unwrap_err().to_string().contains("neither a directory nor a regular file"));
    let mut options = ashore_passthrough::Options::new("/proc");
    options.inode_file_handles = InodeFileHandles::Mandatory;
    let message = ashore_passthrough::Passthrough::new(options).unwrap_err().to_string();
    assert!(message.contains("--inode-file-handles=prefer"), "{message}");
}

/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`, and flags of theirs.
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_X: u32 = 0x801c_581f;
const SET_X: u32 = 0x401c_5820;
const NO_DUMP: u32 = 0x40;
const PROJECT_INHERIT: u32 = 0x2000_0000;
const X_NO_DUMP: u32 = 0x80;

fn ioctl(share: &Share, node: NodeId, handle: FileHandle, cmd: u32, input: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut output = Vec::new();
    let arguments = IoctlIn { fh: handle.0, cmd, in_size: input.len() as u32, ..Default::default() };
    let result = share.fs.ioctl(&caller(), node, &arguments, input, &mut output)?;
    assert_eq!(result, 0);
    Ok(output)
}

fn flags_of(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(*bytes.first_chunk().unwrap())
}

#[test]
fn flags_of_inodes_are_read_and_set_on_files_and_directories_and_survive_on_the_host() {
    let share = Share::new();
    let created = share.create(ROOT, "f").unwrap();
    let (file, file_handle) = (NodeId(created.entry.node), created.opened.handle);
    let directory = NodeId(share.mkdir(ROOT, "d").unwrap().node);
    let directory_handle = share.fs.opendir(&caller(), directory, 0).unwrap().handle;
    for (node, handle, name) in [(file, file_handle, "f"), (directory, directory_handle, "d")] {
        let before = flags_of(&ioctl(&share, node, handle, GET_FLAGS, &[]).expect(
            "this test needs a temporary directory on a file system with flags of inodes, such as ext4; set TMPDIR",
        ));
        assert_eq!(before & NO_DUMP, 0);
        ioctl(&share, node, handle, SET_FLAGS, &(before | NO_DUMP).to_ne_bytes()).unwrap();
        let on_host = fs::File::open(share.path(name)).unwrap();
        assert!(rustix::fs::ioctl_getflags(&on_host).unwrap().contains(rustix::fs::IFlags::NODUMP));

        let mut extended = ioctl(&share, node, handle, GET_X, &[]).unwrap();
        assert_eq!((extended.len(), flags_of(&extended) & X_NO_DUMP), (28, X_NO_DUMP));
        let without = flags_of(&extended) & !X_NO_DUMP;
        extended[..4].copy_from_slice(&without.to_ne_bytes());
        ioctl(&share, node, handle, SET_X, &extended).unwrap();
        assert_eq!(flags_of(&ioctl(&share, node, handle, GET_FLAGS, &[]).unwrap()), before);
    }
    assert!(share.synced() == 0 && share.fs.syncfs(ROOT).is_ok() && share.synced() == 1, "they are changes");
}

#[test]
fn a_client_cannot_leave_the_hosts_project_quota() {
    let share = Share::new();
    let created = share.create(ROOT, "f").unwrap();
    let (node, handle) = (NodeId(created.entry.node), created.opened.handle);
    let flags = flags_of(&ioctl(&share, node, handle, GET_FLAGS, &[]).unwrap());
    let inherit = (flags ^ PROJECT_INHERIT).to_ne_bytes();
    assert_eq!(ioctl(&share, node, handle, SET_FLAGS, &inherit), Err(Errno::EPERM));
    let mut extended = ioctl(&share, node, handle, GET_X, &[]).unwrap();
    extended[12] ^= 1;
    assert_eq!(ioctl(&share, node, handle, SET_X, &extended), Err(Errno::EPERM));
}

#[test]
fn other_ioctls_and_changes_of_a_share_that_is_read_only_are_refused() {
    let share = Share::new();
    let created = share.create(ROOT, "f").unwrap();
    let (node, handle) = (NodeId(created.entry.node), created.opened.handle);
    // FICLONE, TCGETS, FITRIM, FS_IOC_ENABLE_VERITY.
    for cmd in [0x4004_9409, 0x5401, 0xc018_5879, 0x4080_6685] {
        assert_eq!(ioctl(&share, node, handle, cmd, &[0; 128]), Err(Errno::ENOTTY));
    }
    assert_eq!(ioctl(&share, node, handle, SET_FLAGS, &[0; 3]), Err(Errno::EINVAL));
    assert_eq!(ioctl(&share, node, handle, SET_X, &[0; 27]), Err(Errno::EINVAL));
    assert_eq!(ioctl(&share, node, FileHandle(handle.0 + 1), GET_FLAGS, &[]), Err(Errno::EBADF));

    let readonly = Share::with(|options| options.readonly = true);
    fs::write(readonly.path("f"), b"").unwrap();
    let node = readonly.node(ROOT, "f");
    let handle = readonly.open(node, 0).unwrap().handle;
    let flags = ioctl(&readonly, node, handle, GET_FLAGS, &[]).unwrap();
    assert_eq!(ioctl(&readonly, node, handle, SET_FLAGS, &flags), Err(Errno::EROFS));
}

#[test]
fn space_is_zeroed_collapsed_and_inserted_as_the_host_can() {
    let share = Share::new();
    let created = share.create(ROOT, "f").unwrap();
    let (node, handle) = (NodeId(created.entry.node), created.opened.handle);
    let blocks: Vec<u8> = (1..=4).flat_map(|block| [block; 4096]).collect();
    share.write(node, handle, 0, &blocks).unwrap();
    let fallocate =
        |mode: i32, offset, length| share.fs.fallocate(&caller(), node, handle, offset, length, mode as u32);
    let firsts = || fs::read(share.path("f")).unwrap().chunks(4096).map(|block| block[0]).collect::<Vec<_>>();
    fallocate(libc::FALLOC_FL_ZERO_RANGE, 4096, 4096)
        .expect("this test needs a temporary directory on ext4 or XFS");
    assert_eq!(firsts(), [1, 0, 3, 4]);
    fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).unwrap();
    assert_eq!(firsts(), [0, 3, 4]);
    fallocate(libc::FALLOC_FL_INSERT_RANGE, 4096, 4096).unwrap();
    assert_eq!(firsts(), [0, 0, 3, 4]);
    fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(fs::metadata(share.path("f")).unwrap().len(), 4 * 4096);
    assert_eq!(fallocate(0x4000_0000, 0, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(fallocate(0, 0, 0), Err(Errno::EINVAL));
}

#[test]
fn a_rename_can_leave_a_whiteout_and_knows_no_other_flags() {
    need_root("to make a whiteout");
    let share = Share::new();
    share.put(ROOT, "a", b"1");
    share.rename((ROOT, "a"), (ROOT, "b"), libc::RENAME_WHITEOUT).unwrap();
    let whiteout = fs::symlink_metadata(share.path("a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(fs::read(share.path("b")).unwrap(), b"1");
    assert_eq!(share.rename((ROOT, "b"), (ROOT, "c"), 1 << 5), Err(Errno::EINVAL));
    let both = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
    assert_eq!(share.rename((ROOT, "a"), (ROOT, "b"), both), Err(Errno::EINVAL));
}
