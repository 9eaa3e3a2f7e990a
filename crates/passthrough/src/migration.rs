//! A client goes on at another server: what it knows is told by paths or by handles, and found by them.
//!
//! ```text
//!     H  description as the state file has it (recovery.rs)            on the file system of the share
//!     P  kind u32 | handle kind i32 | length u8 | handle | path        length 0: the handle is not to be compared
//!     L  why it cannot be found
//!     G  it has no name left, and nobody has it open: gone for everyone, and missed by nobody
//! ```

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ashore_server::{FindBy, Migratable, OpenedBy, Recoverable, Term};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, NodeId};
use rustix::fs::OFlags;

use crate::Passthrough;
use crate::host::{FileIdentity, HostStatx, statx_of};
use crate::inodes::{Candidate, Key, Location};
use crate::paths::{open_beneath, path_of, search};
use crate::sync;
use crate::sys::{self, RawHandle};

/// Characters of an option's value that are compared; rules beyond that are the same if these are.
const VALUE_MAX: usize = 4000;

/// Features of INIT, and the options that they come from.
const FEATURES: [(InitFlags, &str); 10] = [
    (InitFlags::DO_READDIRPLUS, "--no-readdirplus and --cache"),
    (InitFlags::CACHE_SYMLINKS, "--cache"),
    (InitFlags::SUBMOUNTS, "--announce-submounts"),
    (InitFlags::WRITEBACK_CACHE, "--writeback"),
    (InitFlags::HANDLE_KILLPRIV_V2, "--killpriv-v2"),
    (InitFlags::POSIX_ACL, "--posix-acl"),
    (InitFlags::SECURITY_CTX, "--security-label"),
    (InitFlags::DIRECT_IO_ALLOW_MMAP, "--allow-mmap"),
    (InitFlags::POSIX_LOCKS, "--posix-lock"),
    (InitFlags::FLOCK_LOCKS, "--flock"),
];

/// How a node is told.
enum Told<'a> {
    Handle(&'a [u8]),
    Path { kind: u32, handle: Option<RawHandle>, path: &'a [u8] },
    Lost(&'a [u8]),
    Gone,
}

impl<'a> Told<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Told<'a>> {
        match bytes.split_first()? {
            (b'H', description) => Some(Told::Handle(description)),
            (b'L', why) => Some(Told::Lost(why)),
            (b'G', []) => Some(Told::Gone),
            (b'P', rest) => {
                let (kind, rest) = rest.split_first_chunk::<4>()?;
                let (handle_kind, rest) = rest.split_first_chunk::<4>()?;
                let (length, rest) = rest.split_first()?;
                let (handle, path) = rest.split_at_checked(usize::from(*length))?;
                let handle = match handle {
                    [] => None,
                    bytes => Some(RawHandle::checked(i32::from_le_bytes(*handle_kind), bytes)?),
                };
                Some(Told::Path { kind: u32::from_le_bytes(*kind), handle, path })
            }
            _ => None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Told::Handle(description) => [b"H", *description].concat(),
            Told::Lost(why) => [b"L", *why].concat(),
            Told::Gone => b"G".to_vec(),
            Told::Path { kind, handle, path } => {
                let (handle_kind, handle) =
                    handle.as_ref().map_or((0, &[][..]), |handle| (handle.kind(), handle.bytes()));
                let fixed = [kind.to_le_bytes(), handle_kind.to_le_bytes()].concat();
                [b"P", &fixed[..], &[handle.len() as u8], handle, path].concat()
            }
        }
    }
}

/// A node whose path the kernel did not know.
struct Unseen {
    number: usize,
    identity: FileIdentity,
    handle: Option<RawHandle>,
}

impl Passthrough {
    /// Tells a node, or says that it has to be looked for.
    fn tell(&self, number: usize, node: NodeId, by: FindBy, is_open: bool) -> Result<Vec<u8>, Box<Unseen>> {
        let lost = |why: String| Ok(Told::Lost(why.as_bytes()).encode());
        let gone = || Ok(Told::Gone.encode());
        let inode = match self.inode(node) {
            Ok(inode) => inode,
            Err(Errno::ESTALE) if !is_open => return gone(),
            Err(errno) => return lost(format!("node {:#x} is not there any more ({errno})", node.0)),
        };
        let stat = match statx_of(inode.fd()) {
            Ok(stat) => stat,
            Err(errno) => return lost(format!("node {:#x} cannot be looked at ({errno})", node.0)),
        };
        if stat.stx_nlink == 0 && !is_open {
            return gone();
        }
        // On other file systems than the root's a handle would need its mount; a path leads there, and the handle is compared.
        if by == FindBy::Handle
            && let Some(description) = self.describe(node)
        {
            return Ok(Told::Handle(&description).encode());
        }
        if stat.stx_nlink == 0 {
            let way = if by == FindBy::Handle { "by a handle of its mount" } else { "by path" };
            return lost(format!("inode {} has no name left, and cannot be found {way}", stat.stx_ino));
        }
        let compared = by != FindBy::Path { verify: false };
        let handle = compared.then(|| sys::name_to_handle(inode.fd(), c"").ok()).flatten();
        let identity = FileIdentity::of(&stat);
        match path_of(self, inode.fd(), &identity) {
            Some(path) => Ok(Told::Path { kind: identity.kind, handle, path: &path }.encode()),
            None => Err(Box::new(Unseen { number, identity, handle })),
        }
    }

    fn find(&self, told: &Told<'_>) -> Result<OwnedFd, String> {
        match told {
            Told::Lost(why) => Err(String::from_utf8_lossy(why).into_owned()),
            Told::Gone => Err("it is gone".into()),
            Told::Handle(description) => {
                let (expected, location) = self.parse(description).ok_or("a description is damaged")?;
                if !self.holds_by_handle() {
                    return Err("file handles cannot be opened here; see --inode-file-handles".into());
                }
                let handle = location.handle().ok_or("a description is damaged")?;
                let place = self.places.at(self.root.place);
                let Candidate { key: Key { ino, .. }, birth, kind } = expected;
                let opened = place.open_by_handle(&handle, OFlags::PATH);
                let opened =
                    opened.map_err(|errno| format!("inode {ino} cannot be opened by its handle: {errno}"))?;
                let identity = FileIdentity::of(&looked_at(&opened)?);
                if (identity.ino, identity.birth, identity.kind) != (ino, birth, kind) {
                    return Err(format!("the handle of inode {ino} leads to another file here"));
                }
                Ok(opened)
            }
            Told::Path { kind, handle, path } => {
                let name = || String::from_utf8_lossy(path).into_owned();
                let opened = open_beneath(self, path, OFlags::PATH);
                let opened = opened.map_err(|errno| format!("{} cannot be opened: {errno}", name()))?;
                if FileIdentity::of(&looked_at(&opened)?).kind != *kind {
                    return Err(format!("{} is another kind of file here", name()));
                }
                let same = |expected: &RawHandle| {
                    sys::name_to_handle(opened.as_fd(), c"")
                        .is_ok_and(|here| (here.kind(), here.bytes()) == (expected.kind(), expected.bytes()))
                };
                if !handle.as_ref().is_none_or(same) {
                    return Err(format!("{} is another file here", name()));
                }
                Ok(opened)
            }
        }
    }
}

fn looked_at(file: &OwnedFd) -> Result<HostStatx, String> {
    statx_of(file).map_err(|errno| format!("a file cannot be looked at: {errno}"))
}

impl Migratable for Passthrough {
    fn sync_ahead(&self) {
        sync::ahead(self);
    }

    fn hand_over(&self) -> Result<(), String> {
        let owners = self.locks.len();
        if owners > 0 {
            return Err(format!(
                "{owners} of its processes hold locks of the host (--posix-lock, --flock), which would be lost on the way"
            ));
        }
        sync::hand_over(self).map_err(|errno| {
            format!("what it changed cannot be made stable ({errno}); its next sync will be told, and then it may go")
        })
    }

    fn terms(&self) -> Vec<Term> {
        let options = self.options();
        let values = [
            ("--xattr", options.xattr.to_string()),
            ("--xattrmap", format!("{:?}", options.xattr_map)),
            ("--readonly", options.readonly.to_string()),
            ("--translate-uid", format!("{:?}", options.uids)),
            ("--translate-gid", format!("{:?}", options.gids)),
        ];
        values
            .map(|(option, value)| Term {
                option: option.into(),
                value: value.chars().take(VALUE_MAX).collect(),
            })
            .into()
    }

    fn options_for(&self, features: InitFlags) -> String {
        let options: Vec<_> =
            FEATURES.iter().filter(|(flag, _)| features.intersects(*flag)).map(|(_, name)| *name).collect();
        if options.is_empty() { "the version of the host's kernel".into() } else { options.join(", ") }
    }

    fn known_nodes(&self) -> Vec<(NodeId, u64)> {
        self.inodes.all()
    }

    fn open_files(&self) -> Vec<OpenedBy> {
        let open = self.handles.all();
        let opened = open.into_iter().map(|(handle, file)| OpenedBy {
            handle,
            node: file.node,
            flags: rustix::fs::fcntl_getfl(file.descriptor()).map_or(0, |flags| flags.bits()),
            directory: file.position.is_some(),
        });
        opened.collect()
    }

    fn describe_all(&self, nodes: &[NodeId], by: FindBy) -> Vec<Vec<u8>> {
        let mut unseen = Vec::new();
        let open: HashSet<_> = self.handles.all().into_iter().map(|(_, file)| file.node).collect();
        let tell = |(number, node): (usize, &NodeId)| {
            self.tell(number, *node, by, open.contains(node)).unwrap_or_else(|one| {
                unseen.push(one);
                Vec::new()
            })
        };
        let mut descriptions: Vec<_> = nodes.iter().enumerate().map(tell).collect();
        if !unseen.is_empty() {
            let wanted: Vec<_> = unseen.iter().map(|one| one.identity).collect();
            let mut found = search(self, &wanted);
            for (index, one) in unseen.into_iter().enumerate() {
                let Unseen { number, identity, handle } = *one;
                descriptions[number] = match found.remove(&index) {
                    Some(path) => Told::Path { kind: identity.kind, handle, path: &path }.encode(),
                    None => Told::Lost(format!("inode {} has no path in the share", identity.ino).as_bytes())
                        .encode(),
                };
            }
        }
        descriptions
    }

    fn take_over(&self, node: NodeId, lookups: u64, description: &[u8]) -> Result<(), String> {
        self.inodes.note_restored(node);
        let told = Told::parse(description).ok_or("a description is damaged")?;
        if let Told::Gone = told {
            return Ok(());
        }
        let opened = self.find(&told)?;
        let stat = looked_at(&opened)?;
        let identity = FileIdentity::of(&stat);
        let place = self.places.enter(&identity, opened.as_fd());
        let place = place.map_err(|refusal| format!("its file system is refused: {refusal:?}"))?;
        let candidate = Candidate {
            key: Key { place: place.index, ino: identity.ino },
            birth: identity.birth,
            kind: identity.kind,
        };
        // A handle alone would not keep a file that has no name.
        let named = place.has_handles && stat.stx_nlink > 0;
        let location = match named.then(|| sys::name_to_handle(opened.as_fd(), c"").ok()).flatten() {
            Some(handle) => Location::by_handle(&handle),
            None => Location::Descriptor(Arc::new(opened)),
        };
        let restored = self.inodes.restore(node, lookups, &candidate, location);
        restored.then_some(()).ok_or_else(|| format!("node {:#x} is told twice", node.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood_and_anything_else_is_refused_or_harmless() {
        let handle = RawHandle::new(1, &[7; 12]);
        let told = Told::Path { kind: libc::S_IFREG, handle: Some(handle), path: b"a/b" }.encode();
        let Some(Told::Path { kind, handle: Some(handle), path }) = Told::parse(&told) else {
            panic!("{told:?}")
        };
        assert_eq!((kind, handle.bytes(), path), (libc::S_IFREG, &[7; 12][..], &b"a/b"[..]));
        for length in 0..told.len() - b"a/b".len() {
            assert!(Told::parse(&told[..length]).is_none(), "{length} bytes");
        }
        let mut random: u32 = 1;
        for _ in 0..100_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut bytes = told.clone();
            bytes[(random >> 8) as usize % told.len()] = (random >> 16) as u8;
            bytes.truncate(1 + (random >> 4) as usize % told.len());
            let _ = Told::parse(&bytes);
        }
    }
}
