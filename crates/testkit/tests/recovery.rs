//! A server that is killed in the worst of moments: when a request is done, and it is not written down yet; when it was
//! about to be done; when it is written down, and not answered. The next server is asked again, and it must be as if
//! nobody had been killed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ashore_passthrough::{HostFileSystems, Options, Passthrough};
use ashore_server::{Identity, Journal, Limits, Session};
use ashore_testkit::loopback::Loopback;
use ashore_wire::abi::*;
use ashore_wire::encode::{RequestHead, Sender};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, NodeId, Opcode, RequestId};
use rustix::fs::XattrFlags;
use tempfile::TempDir;

const O_RDWR: u32 = 2;
const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;
const BLOCK: usize = 512;
const ROOM: usize = 1 << 16;

/// A share, and the state file of its servers.
struct World {
    folder: TempDir,
    state: File,
}

/// One server.
struct Life {
    session: Arc<Session<Passthrough>>,
    queue: Loopback,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::set_permissions(&share, fs::Permissions::from_mode(0o777)).unwrap();
        fs::create_dir_all(share.join("full/empty")).unwrap();
        for name in ["one", "two"] {
            fs::write(share.join(name), name).unwrap();
        }
        rustix::fs::setxattr(share.join("one"), "user.there", b"1", XattrFlags::empty()).unwrap();
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let state = options.open(folder.path().join("state")).unwrap();
        World { folder, state }
    }

    fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    fn begin(&self) -> Life {
        let mut options = Options::new(self.share());
        (options.readdirplus, options.xattr) = (false, true);
        let filesystem = Passthrough::with_hosts(options, HostFileSystems::of_this_process()).unwrap();
        let session = Session::new(filesystem, Limits::default());
        let identity = Identity { boot: b"today".to_vec(), share: b"this".to_vec() };
        let journal = Arc::new(Journal::open(self.state.try_clone().unwrap(), identity).unwrap());
        journal.restore(&session).unwrap();
        let queue = Loopback::start_recorded(&session, &journal);
        Life { session, queue }
    }

    /// As if the last record had not been written any more.
    fn lose_last_record(&self) {
        let number = |at: u64| {
            let mut bytes = [0; 8];
            self.state.read_exact_at(&mut bytes, at).map_or(0, |()| u64::from_le_bytes(bytes))
        };
        let (epoch, area) = (number(24), if number(32) == 0 { BLOCK as u64 } else { 1 << 37 });
        let blocks = (0..).map(|block| area + block * BLOCK as u64);
        let last = blocks.take_while(|at| number(at + 8) == epoch).last().unwrap();
        self.state.write_all_at(&[0; BLOCK], last).unwrap();
    }

    /// All there is, but times.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut tree = BTreeMap::new();
        add(&self.share(), &mut tree);
        tree
    }
}

fn add(directory: &Path, tree: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = match stat.is_file() {
            true => String::from_utf8(fs::read(&path).unwrap()).unwrap(),
            false => fs::read_link(&path).map_or_else(|_| String::new(), |target| format!("{target:?}")),
        };
        let mut names = [0; 1000];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        let told = format!("{:o} {} {} {content} {names}", stat.mode(), stat.nlink(), stat.uid());
        tree.insert(path.clone(), told);
        if stat.is_dir() {
            add(&path, tree);
        }
    }
}

impl Life {
    fn ask(&self, unique: u64, head: RequestHead) -> Result<Vec<u8>, Errno> {
        let sender = Sender { uid: 1000, gid: 1000, pid: 1 };
        let sender =
            if head.opcode() == Opcode::Create { sender } else { Sender { pid: 1, ..Sender::default() } };
        let request = head.finish(RequestId(unique), sender, 0);
        self.queue.submit(&request, ROOM).wait().expect("it has an answer")
    }

    fn lookup(&self, unique: u64, parent: NodeId, name: &str) -> NodeId {
        let body = self.ask(unique, RequestHead::new(Opcode::Lookup, parent).name(name.as_bytes())).unwrap();
        NodeId(u64::from_ne_bytes(body[..8].try_into().unwrap()))
    }

    /// Ends like one that is killed: it has no last word in the state file.
    fn kill(self) {
        drop(self.queue);
        _ = self.session.end();
    }
}

/// What the client holds before the request in question.
struct Holds {
    one: NodeId,
    open: u64,
    full: NodeId,
}

type Ask = fn(&Holds) -> RequestHead;
type Undo = fn(&Path);

fn rename(from: &str, to: &str, flags: u32) -> RequestHead {
    let arguments = Rename2In { newdir: 1, flags, padding: 0 };
    let head = RequestHead::new(Opcode::Rename2, NodeId::ROOT).with(&arguments);
    head.name(from.as_bytes()).name(to.as_bytes())
}

fn create(flags: u32) -> RequestHead {
    // Its own mode would not let the caller open it again.
    let create = CreateIn { flags: O_RDWR | flags, mode: 0o100_444, ..Default::default() };
    RequestHead::new(Opcode::Create, NodeId::ROOT).with(&create).name(b"made")
}

fn write(holds: &Holds, flags: u32, offset: u64, bytes: &[u8]) -> RequestHead {
    let write = WriteIn { fh: holds.open, offset, size: bytes.len() as u32, flags, ..Default::default() };
    RequestHead::new(Opcode::Write, holds.one).with(&write).with(bytes)
}

fn setxattr(holds: &Holds, name: &str, flags: u32) -> RequestHead {
    let arguments = [1u32, flags];
    RequestHead::new(Opcode::Setxattr, holds.one).with(&arguments).name(name.as_bytes()).with(b"1")
}

/// Each request, and what to do on the host that it has not been done.
const CASES: &[(&str, Ask, Undo)] = &[
    (
        "MKDIR",
        |_| {
            RequestHead::new(Opcode::Mkdir, NodeId::ROOT)
                .with(&MkdirIn { mode: 0o755, umask: 0 })
                .name(b"made")
        },
        |share| fs::remove_dir(share.join("made")).unwrap(),
    ),
    (
        "MKNOD",
        |_| {
            let mknod = MknodIn { mode: 0o100_600, ..Default::default() };
            RequestHead::new(Opcode::Mknod, NodeId::ROOT).with(&mknod).name(b"made")
        },
        |share| fs::remove_file(share.join("made")).unwrap(),
    ),
    (
        "SYMLINK",
        |_| RequestHead::new(Opcode::Symlink, NodeId::ROOT).name(b"made").name(b"target"),
        |share| fs::remove_file(share.join("made")).unwrap(),
    ),
    (
        "LINK",
        |holds| {
            let link = LinkIn { oldnodeid: holds.one.0 };
            RequestHead::new(Opcode::Link, NodeId::ROOT).with(&link).name(b"made")
        },
        |share| fs::remove_file(share.join("made")).unwrap(),
    ),
    ("CREATE", |_| create(0), |share| fs::remove_file(share.join("made")).unwrap()),
    ("CREATE, O_EXCL", |_| create(O_EXCL), |share| fs::remove_file(share.join("made")).unwrap()),
    (
        "UNLINK",
        |_| RequestHead::new(Opcode::Unlink, NodeId::ROOT).name(b"two"),
        |share| fs::write(share.join("two"), "two").unwrap(),
    ),
    (
        "RMDIR",
        |holds| RequestHead::new(Opcode::Rmdir, holds.full).name(b"empty"),
        |share| fs::create_dir(share.join("full/empty")).unwrap(),
    ),
    (
        "RENAME",
        |_| rename("two", "other", 0),
        |share| fs::rename(share.join("other"), share.join("two")).unwrap(),
    ),
    (
        "RENAME, over another",
        |_| rename("two", "one", 0),
        |share| {
            fs::rename(share.join("one"), share.join("two")).unwrap();
            fs::write(share.join("one"), "one").unwrap();
        },
    ),
    (
        "RENAME, exchange",
        |_| rename("two", "one", 2),
        |share| {
            fs::rename(share.join("one"), share.join("three")).unwrap();
            fs::rename(share.join("two"), share.join("one")).unwrap();
            fs::rename(share.join("three"), share.join("two")).unwrap();
        },
    ),
    (
        "WRITE, O_APPEND",
        |holds| write(holds, O_APPEND, 0, b"appended"),
        |share| fs::write(share.join("one"), "one").unwrap(),
    ),
    ("WRITE", |holds| write(holds, 0, 2, b"written"), |share| fs::write(share.join("one"), "one").unwrap()),
    (
        "SETATTR",
        |holds| {
            let set = SetattrIn { valid: 1 << 3, size: 1, ..Default::default() };
            RequestHead::new(Opcode::Setattr, holds.one).with(&set)
        },
        |share| fs::write(share.join("one"), "one").unwrap(),
    ),
    (
        "SETXATTR, XATTR_CREATE",
        |holds| setxattr(holds, "user.made", 1),
        |share| rustix::fs::removexattr(share.join("one"), "user.made").unwrap(),
    ),
    (
        "REMOVEXATTR",
        |holds| RequestHead::new(Opcode::Removexattr, holds.one).name(b"user.there"),
        |share| rustix::fs::setxattr(share.join("one"), "user.there", b"1", XattrFlags::empty()).unwrap(),
    ),
    (
        "OPEN",
        |holds| RequestHead::new(Opcode::Open, holds.one).with(&OpenIn { flags: O_RDWR, open_flags: 0 }),
        |_| (),
    ),
    (
        "RELEASE",
        |holds| {
            let release = ReleaseIn { fh: holds.open, ..Default::default() };
            RequestHead::new(Opcode::Release, holds.one).with(&release)
        },
        |_| (),
    ),
    ("LOOKUP", |_| RequestHead::new(Opcode::Lookup, NodeId::ROOT).name(b"two"), |_| ()),
];

/// Requests that fail, and must fail again.
const FAILING: &[(&str, Ask, Errno)] = &[
    (
        "MKDIR of what is there",
        |_| {
            RequestHead::new(Opcode::Mkdir, NodeId::ROOT)
                .with(&MkdirIn { mode: 0o755, umask: 0 })
                .name(b"one")
        },
        Errno::EEXIST,
    ),
    (
        "UNLINK of what is not there",
        |_| RequestHead::new(Opcode::Unlink, NodeId::ROOT).name(b"x"),
        Errno::ENOENT,
    ),
    (
        "RMDIR of what is not empty",
        |_| RequestHead::new(Opcode::Rmdir, NodeId::ROOT).name(b"full"),
        Errno::ENOTEMPTY,
    ),
    ("RENAME of what is not there", |_| rename("x", "one", 0), Errno::ENOENT),
    ("SETXATTR, XATTR_CREATE of what is there", |holds| setxattr(holds, "user.there", 1), Errno::EEXIST),
    (
        "REMOVEXATTR of what is not there",
        |holds| RequestHead::new(Opcode::Removexattr, holds.one).name(b"user.x"),
        Errno::ENODATA,
    ),
];

/// When the server was killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Killed {
    /// About to do it, and that was written down.
    Before,
    /// It was done, and that was not written down.
    Between,
    /// It was written down, and not answered.
    After,
}

fn begun(world: &World) -> Option<(Life, Holds)> {
    let life = world.begin();
    if !life.session.filesystem().holds_by_handle() {
        println!("SKIPPED: file handles need root, and a host file system that has them");
        return None;
    }
    life.queue.init(InitFlags::from_bits_retain(0));
    let one = life.lookup(1, NodeId::ROOT, "one");
    let full = life.lookup(2, NodeId::ROOT, "full");
    let open = RequestHead::new(Opcode::Open, one).with(&OpenIn { flags: O_RDWR, open_flags: 0 });
    let open = u64::from_ne_bytes(life.ask(3, open).unwrap()[..8].try_into().unwrap());
    Some((life, Holds { one, open, full }))
}

#[test]
fn whenever_the_server_is_killed_each_request_is_done_once() {
    for (name, ask, undo) in CASES {
        for killed in [Killed::Before, Killed::Between, Killed::After] {
            // Another file of the same name would be there again, which is as if this one had been removed.
            if killed == Killed::Before && matches!(*name, "UNLINK" | "RMDIR") {
                continue;
            }
            let world = World::new();
            let Some((life, holds)) = begun(&world) else { return };
            let answer = life.ask(100, ask(&holds)).unwrap_or_else(|errno| panic!("{name}: {errno}"));
            life.kill();
            let done = world.tree();
            if killed != Killed::After {
                world.lose_last_record();
            }
            if killed == Killed::Before {
                undo(&world.share());
            }
            // Killed once more before anybody asks.
            world.begin().kill();
            let life = world.begin();
            let again = life.ask(100, ask(&holds));
            let again = again.unwrap_or_else(|errno| panic!("{name}, killed {killed:?}: {errno}"));
            assert_eq!(world.tree(), done, "{name}, killed {killed:?}");
            assert_eq!(again.len(), answer.len(), "{name}, killed {killed:?}");
            if killed == Killed::After {
                assert_eq!(again, answer, "{name}");
            }
            if again.len() >= size_of::<EntryOut>() && *name != "SETATTR" {
                let node = NodeId(u64::from_ne_bytes(again[..8].try_into().unwrap()));
                let getattr = RequestHead::new(Opcode::Getattr, node).with(&GetattrIn::default());
                assert!(life.ask(101, getattr).is_ok(), "{name}, killed {killed:?}: the node is good");
            }
            life.kill();
        }
    }
}

#[test]
fn what_failed_fails_again_and_what_would_have_failed_does() {
    for (name, ask, errno) in FAILING {
        for lost in [false, true] {
            let world = World::new();
            let Some((life, holds)) = begun(&world) else { return };
            let before = world.tree();
            assert_eq!(life.ask(100, ask(&holds)), Err(*errno), "{name}");
            life.kill();
            if lost {
                world.lose_last_record();
            }
            let life = world.begin();
            assert_eq!(life.ask(100, ask(&holds)), Err(*errno), "{name}, once more");
            assert_eq!(world.tree(), before, "{name}");
            life.kill();
        }
    }
}

/// Method: a node is looked up twice and given back once, which the next server is told again.
#[test]
fn lookups_are_given_back_once() {
    let world = World::new();
    let Some((life, holds)) = begun(&world) else { return };
    assert_eq!(life.lookup(4, NodeId::ROOT, "one"), holds.one);
    let forget = || {
        let head = RequestHead::new(Opcode::Forget, holds.one).with(&ForgetIn { nlookup: 1 });
        head.finish(RequestId(100), Sender::default(), 0)
    };
    assert!(life.queue.submit(&forget(), ROOM).wait().is_none());
    life.kill();
    let life = world.begin();
    assert!(life.queue.submit(&forget(), ROOM).wait().is_none());
    let getattr = || RequestHead::new(Opcode::Getattr, holds.one).with(&GetattrIn::default());
    assert!(life.ask(101, getattr()).is_ok(), "it was looked up twice and given back once");
    life.kill();
    let life = world.begin();
    let last = RequestHead::new(Opcode::Forget, holds.one).with(&ForgetIn { nlookup: 1 });
    assert!(life.queue.submit(&last.finish(RequestId(102), Sender::default(), 0), ROOM).wait().is_none());
    life.kill();
    let life = world.begin();
    assert_eq!(life.ask(103, getattr()), Err(Errno::ESTALE), "nor is it forgotten that all was given back");
    life.kill();
}

/// Aim: names that a client has read before the kill and after it are all names, once. Method: a directory is read in
/// parts, each by another server.
#[test]
fn a_directory_is_read_on_where_it_was() {
    let world = World::new();
    for number in 0..300 {
        symlink("nowhere", world.share().join(format!("full/name{number}"))).unwrap();
    }
    let Some((life, holds)) = begun(&world) else { return };
    let open = life.ask(4, RequestHead::new(Opcode::Opendir, holds.full).with(&OpenIn::default())).unwrap();
    let handle = u64::from_ne_bytes(open[..8].try_into().unwrap());
    life.kill();
    let (mut offset, mut names) = (0, Vec::new());
    for round in 0.. {
        let life = world.begin();
        let read = ReadIn { fh: handle, offset, size: 4096, ..Default::default() };
        let body = life.ask(100 + round, RequestHead::new(Opcode::Readdir, holds.full).with(&read)).unwrap();
        life.kill();
        if body.is_empty() {
            break;
        }
        let mut rest = &body[..];
        while rest.len() >= 24 {
            offset = u64::from_ne_bytes(rest[8..16].try_into().unwrap());
            let length = u32::from_ne_bytes(rest[16..20].try_into().unwrap()) as usize;
            names.push(String::from_utf8(rest[24..24 + length].to_vec()).unwrap());
            rest = rest.get((24 + length).next_multiple_of(8)..).unwrap_or_default();
        }
    }
    names.sort();
    assert_eq!(names.len(), 303, "300 names, the empty directory, . and ..");
    names.dedup();
    assert_eq!(names.len(), 303, "each once");
}
