//! Whose files are, who may do what with them, and extended attributes under other names.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use ashore_passthrough::{IdMap, Negotiation, Options, Passthrough, StartError};
use ashore_server::{Caller, FileSystem};
use ashore_wire::abi::{Secctx, SecctxHeader, SetattrIn};
use ashore_wire::flags::{InitFlags, OpenRequestFlags, SetattrValid};
use ashore_wire::request::Extensions;
use ashore_wire::{Errno, NodeId};

use crate::harness::{RDWR, ROOT, Share, before_linux_6_13, caller, init_without, need_root, with_name};

const ACCESS: &CStr = c"system.posix_acl_access";
const DEFAULT: &CStr = c"system.posix_acl_default";

fn set(share: &Share, node: NodeId, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    share.fs.setxattr(&caller(), node, name, value, 0, 0)
}

fn get(share: &Share, node: NodeId, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0; 256];
    share.fs.getxattr(&caller(), node, name, &mut buffer).map(|length| buffer[..length].to_vec())
}

fn list(share: &Share, node: NodeId) -> Vec<String> {
    let mut buffer = [0; 1024];
    let length = share.fs.listxattr(&caller(), node, &mut buffer).unwrap();
    let room = share.fs.listxattr(&caller(), node, &mut []).unwrap();
    assert!(room >= length, "whoever asks for the length has room");
    let names = String::from_utf8(buffer[..length].to_vec()).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

fn on_host(share: &Share, file: &str, name: &str) -> Option<Vec<u8>> {
    let mut buffer = [0; 256];
    rustix::fs::getxattr(share.path(file), name, &mut buffer).ok().map(|length| buffer[..length].to_vec())
}

#[test]
fn attributes_have_other_names_on_the_host_by_the_rules() {
    map_attributes();
    before_linux_6_13(map_attributes);
}

fn map_attributes() {
    let share = Share::with(|options| options.xattr_map = Some(":map::user.guest.:".parse().unwrap()));
    let file = share.put(ROOT, "f", b"");
    rustix::fs::setxattr(share.path("f"), "user.own", b"host", rustix::fs::XattrFlags::empty()).unwrap();
    set(&share, file, c"trusted.overlay.opaque", b"y").unwrap();
    set(&share, file, c"user.own", b"guest").unwrap();
    assert_eq!(on_host(&share, "f", "user.guest.trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(on_host(&share, "f", "user.own").unwrap(), b"host");
    assert_eq!(get(&share, file, c"user.own").unwrap(), b"guest");
    let mut names = list(&share, file);
    names.sort();
    assert_eq!(names, ["trusted.overlay.opaque", "user.own"]);
    let short = share.fs.listxattr(&caller(), file, &mut [0; 8]);
    assert_eq!(short, Err(Errno::ERANGE));
    share.fs.removexattr(&caller(), file, c"user.own").unwrap();
    assert_eq!(on_host(&share, "f", "user.own").unwrap(), b"host");
    assert_eq!(get(&share, file, c"user.own"), Err(Errno::ENODATA));

    let share = Share::with(|options| {
        options.xattr_map =
            Some(":unsupported:all:user.no:user.no::bad:client:user.x:: :ok:all:::".parse().unwrap());
    });
    let file = share.put(ROOT, "f", b"");
    assert_eq!(set(&share, file, c"user.nothing", b""), Err(Errno::EOPNOTSUPP));
    assert_eq!(get(&share, file, c"user.x"), Err(Errno::EPERM));
    set(&share, file, c"user.y", b"1").unwrap();
    assert_eq!(list(&share, file), ["user.y"]);
}

#[test]
fn a_capability_under_another_name_is_for_the_client_to_take_away() {
    let killpriv = |map: Option<&str>| {
        let share = Share::with(|options| {
            options.killpriv_v2 = true;
            options.xattr_map = map.map(|map| map.parse().unwrap());
        });
        share.fs.features().contains(InitFlags::HANDLE_KILLPRIV_V2)
    };
    assert_eq!([None, Some(":ok:all:::"), Some(":map::user.x.:")].map(killpriv), [true, true, false]);
}

/// An access control list: what owner, group, one more user and others may do.
fn acl(owner: u16, group: u16, user: (u32, u16), mask: u16, other: u16) -> Vec<u8> {
    let entries = [
        (1, owner, u32::MAX),
        (2, user.1, user.0),
        (4, group, u32::MAX),
        (16, mask, u32::MAX),
        (32, other, u32::MAX),
    ];
    let mut bytes = 2u32.to_ne_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&u16::to_ne_bytes(tag));
        bytes.extend_from_slice(&permissions.to_ne_bytes());
        bytes.extend_from_slice(&id.to_ne_bytes());
    }
    bytes
}

fn share_with_acls() -> Share {
    let share = Share::with(|options| options.posix_acl = Negotiation::Always);
    let needed = InitFlags::POSIX_ACL | InitFlags::DONT_MASK | InitFlags::SETXATTR_EXT;
    assert!(share.fs.features().contains(needed) && share.fs.required() == InitFlags::POSIX_ACL);
    share
}

fn make_each_kind(share: &Share, parent: NodeId) -> [u32; 4] {
    let (mode, umask) = (0o666, 0o027);
    let open_flags = OpenRequestFlags::empty();
    let file = with_name("f", |name| share.fs.create(&caller(), parent, name, RDWR, mode, umask, open_flags));
    let nameless = share.fs.tmpfile(&caller(), parent, RDWR, mode, umask).unwrap();
    let node = with_name("n", |name| share.fs.mknod(&caller(), parent, name, libc::S_IFREG | mode, umask, 0));
    let directory = with_name("d", |name| share.fs.mkdir(&caller(), parent, name, 0o777, umask)).unwrap();
    [file.unwrap().entry, nameless.entry, node.unwrap(), directory].map(|entry| entry.attr.mode & 0o777)
}

#[test]
fn a_umask_counts_unless_the_directory_has_a_default_access_control_list() {
    make_with_umasks();
    before_linux_6_13(make_with_umasks);
}

fn make_with_umasks() {
    let share = share_with_acls();
    let plain = NodeId(share.mkdir(ROOT, "plain").unwrap().node);
    assert_eq!(make_each_kind(&share, plain), [0o640, 0o640, 0o640, 0o750]);
    let listed = NodeId(share.mkdir(ROOT, "listed").unwrap().node);
    set(&share, listed, DEFAULT, &acl(7, 5, (1234, 7), 7, 4)).unwrap();
    assert_eq!(make_each_kind(&share, listed), [0o664, 0o664, 0o664, 0o774]);
    assert_eq!(on_host(&share, "listed/f", "system.posix_acl_access").unwrap(), acl(6, 5, (1234, 7), 6, 4));
    assert_eq!(get(&share, share.node(listed, "d"), DEFAULT).unwrap(), acl(7, 5, (1234, 7), 7, 4));
    assert!(list(&share, share.node(listed, "f")).contains(&"system.posix_acl_access".to_owned()));
}

#[test]
fn setting_an_access_control_list_takes_the_set_group_id_bit_if_the_client_says_so() {
    let share = share_with_acls();
    let file = share.put(ROOT, "f", b"");
    for (flags, left) in [(0, 0o2000), (1, 0)] {
        fs::set_permissions(share.path("f"), fs::Permissions::from_mode(0o2755)).unwrap();
        let value = acl(7, 5, (1234, 7), 7, 5);
        share.fs.setxattr(&caller(), file, ACCESS, &value, 0, flags).unwrap();
        assert_eq!(fs::metadata(share.path("f")).unwrap().mode() & 0o2000, left);
        assert_eq!(get(&share, file, ACCESS).unwrap(), value);
    }
}

#[test]
fn access_control_lists_are_not_shown_to_who_would_not_heed_them() {
    let share = share_with_acls();
    init_without(&share.fs, InitFlags::POSIX_ACL);
    let file = share.put(ROOT, "f", b"");
    assert_eq!(set(&share, file, ACCESS, &acl(7, 5, (1234, 7), 7, 5)), Err(Errno::EOPNOTSUPP));
    let start = |change: &dyn Fn(&mut Options)| {
        let mut options = Options::new(share.path(""));
        options.posix_acl = Negotiation::Auto;
        change(&mut options);
        Passthrough::new(options)
    };
    let mapped = start(&|options| options.xattr_map = Some(":map::user.x.:".parse().unwrap()));
    assert!(matches!(mapped, Err(StartError::AclsMapped)));
    let allowed = ":ok:all:system.posix_acl_:system.posix_acl_::map::user.x.:";
    start(&|options| options.xattr_map = Some(allowed.parse().unwrap())).unwrap();
    let others = start(&|options| options.gids = IdMap::all_to_one(5, 6).unwrap());
    assert!(matches!(others, Err(StartError::AclsOfOthers)));
    let without = |posix_acl| Passthrough::new(Options { posix_acl, ..Options::new("/proc") });
    assert!(matches!(without(Negotiation::Always), Err(StartError::NoAcls { .. })));
    assert!(!without(Negotiation::Auto).unwrap().features().contains(InitFlags::POSIX_ACL));
}

#[test]
fn users_and_groups_of_the_client_are_others_on_the_host() {
    need_root("to make files that belong to others");
    let map = |rules: &[&str]| IdMap::new(rules.iter().map(|rule| rule.parse().unwrap())).unwrap();
    let share = Share::with(|options| {
        options.uids = map(&["map:0:70000:1000", "forbid-guest:2000:10"]);
        options.gids = map(&["map:0:80000:1000", "squash-guest:1000:99:5"]);
    });
    fs::set_permissions(share.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let groups = 1001u32.to_ne_bytes();
    let extensions = Extensions { groups: Some(&groups), ..Default::default() };
    let user = Caller { uid: 7, gid: 8, extensions, ..Default::default() };
    let made = with_name("d", |name| share.fs.mkdir(&user, ROOT, name, 0o700, 0)).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid), (7, 8));
    let host = fs::metadata(share.path("d")).unwrap();
    assert_eq!((host.uid(), host.gid()), (70_007, 80_008));
    let node = NodeId(made.node);
    let owner = |uid, gid| SetattrIn { uid, gid, ..Default::default() };
    let both = SetattrValid::UID | SetattrValid::GID;
    let changed = share.setattr(node, both, owner(9, 1002)).unwrap().attr;
    let host = fs::metadata(share.path("d")).unwrap();
    assert_eq!((host.uid(), host.gid(), changed.uid, changed.gid), (70_009, 99, 9, 99));
    assert_eq!(share.setattr(node, both, owner(2003, 0)).unwrap_err(), Errno::EPERM);
    let forbidden = Caller { uid: 2009, ..user };
    assert_eq!(
        with_name("e", |name| share.fs.mkdir(&forbidden, ROOT, name, 0o700, 0)).unwrap_err(),
        Errno::EPERM
    );
    chown(share.path("d"), Some(70_001), Some(5)).unwrap();
    let (stat, _) = share.fs.statx(&caller(), node, None, 0, !0).unwrap();
    assert_eq!((stat.uid, stat.gid), (1, 5));
    let may = |uid| share.fs.access(&Caller { uid, ..caller() }, node, 7);
    assert_eq!((may(1), may(70_001)), (Ok(()), Err(Errno::EACCES)));
}

/// The extension that Linux sends behind CREATE and its like.
fn security_context(name: &CStr, value: &[u8]) -> Vec<u8> {
    use zerocopy::IntoBytes;
    let body = size_of::<Secctx>() + name.to_bytes_with_nul().len() + value.len();
    let size = (size_of::<SecctxHeader>() + body.next_multiple_of(8)) as u32;
    let mut bytes = SecctxHeader { size, nr_secctx: 1 }.as_bytes().to_vec();
    bytes.extend_from_slice(Secctx { size: value.len() as u32, padding: 0 }.as_bytes());
    bytes.extend_from_slice(name.to_bytes_with_nul());
    bytes.extend_from_slice(value);
    bytes.resize(size as usize, 0);
    bytes
}

#[test]
fn what_is_made_has_the_label_that_the_client_wants_or_is_not_made() {
    let share = Share::with(|options| {
        options.security_label = Negotiation::Always;
        options.xattr_map = Some(":map:security.selinux:trusted.virtiofs.:".parse().unwrap());
    });
    assert_eq!(share.fs.required(), InitFlags::SECURITY_CTX);
    let context = security_context(c"security.selinux", b"a_u:object_r:b_t\0");
    let extensions = Extensions { security_contexts: Some(&context), ..Default::default() };
    let labelling = Caller { extensions, ..caller() };
    let create = |by: &Caller<'_>, name: &str| {
        with_name(name, |name| share.fs.create(by, ROOT, name, RDWR, 0o644, 0, OpenRequestFlags::empty()))
    };
    create(&labelling, "f").unwrap();
    with_name("d", |name| share.fs.mkdir(&labelling, ROOT, name, 0o755, 0)).unwrap();
    with_name("p", |name| share.fs.mknod(&labelling, ROOT, name, libc::S_IFIFO | 0o600, 0, 0)).unwrap();
    with_name("l", |name| share.fs.symlink(&labelling, ROOT, name, c"nowhere")).unwrap();
    for name in ["f", "d", "p", "l"] {
        let label = get(&share, share.node(ROOT, name), c"security.selinux").unwrap();
        assert_eq!(label, b"a_u:object_r:b_t\0", "{name}");
    }
    assert!(on_host(&share, "f", "trusted.virtiofs.security.selinux").is_some());

    for bad in [security_context(c"nonsense", b"x"), context[..context.len() - 16].to_vec()] {
        let extensions = Extensions { security_contexts: Some(&bad), ..Default::default() };
        let by = Caller { extensions, ..caller() };
        create(&by, "f2").unwrap_err();
        with_name("d2", |name| share.fs.mkdir(&by, ROOT, name, 0o755, 0)).unwrap_err();
        assert!(!share.path("f2").exists() && !share.path("d2").exists());
    }
    assert_eq!(share.fs.open_handles(), 1);
}
