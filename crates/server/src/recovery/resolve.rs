//! Changes that cannot simply be made twice: what is looked at before, and what that says afterwards.
//!
//! The change was made if the host looks as it would look then. What cannot be told: whether somebody else on the host did
//! the same to the same name in the same moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ashore_wire::abi::{IN_HEADER_SIZE, WriteIn};
use ashore_wire::encode::{RequestHead, Sender};
use ashore_wire::flags::WriteFlags;
use ashore_wire::{Errno, Name, NodeId, Opcode, Operation, Request};

use super::record::{Reader, Writer};
use super::{Look, Recoverable};

const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;
const XATTR_CREATE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const FALLOC_COLLAPSE_RANGE: u32 = 0x08;
const FALLOC_INSERT_RANGE: u32 = 0x20;

/// A file's time of birth may lie so far before the moment in which it was made.
const CLOCK_STEP: Duration = Duration::from_millis(20);
/// Bytes in which an append is looked for.
const SEARCHED_MAX: u64 = 64 << 20;
/// A write that was cut short ends at a multiple of this.
const PAGE: u64 = 4096;

const NOTHING: Look = [0; 4];

/// What to do with a request that the process before this one had begun.
pub(super) enum Verdict {
    /// It was done.
    Done,
    /// It is to be done, in this form: itself if there is none.
    Again(Option<Vec<u8>>),
    /// It is to be done; and if it fails so, it was done.
    AgainUnless(Errno),
}

/// What is to be remembered of the host before a change. `None`: it can be made twice, or would fail.
pub(super) fn before<F: Recoverable>(fs: &F, request: &Request<'_>) -> Option<Vec<u8>> {
    let mut seen = Writer(Vec::new());
    let mut note = |look: Look| look.iter().for_each(|number| seen.number(*number));
    let absent = |name| matches!(fs.look(request.node, name), Ok(None));
    let has = |name| fs.getxattr(&request.caller, request.node, name, &mut []).is_ok();
    match request.operation {
        Operation::Create { name, flags, .. } if flags & O_EXCL != 0 && absent(name) => note(now()),
        Operation::Symlink { name, .. } | Operation::Mknod { name, .. } | Operation::Mkdir { name, .. }
            if absent(name) =>
        {
            note(now());
        }
        Operation::Link { existing, name } if absent(name) => note(fs.look_node(existing).ok()?),
        Operation::Unlink { name } | Operation::Rmdir { name } => note(fs.look(request.node, name).ok()??),
        Operation::Rename { name, new_parent, new_name, .. } => {
            note(fs.look(request.node, name).ok()??);
            note(fs.look(new_parent, new_name).ok()?.unwrap_or(NOTHING));
        }
        Operation::Write { handle, write_flags, flags, .. } if appends(write_flags, flags) => {
            note([fs.size(request.node, handle).ok()?, 0, 0, 0]);
        }
        Operation::Fallocate { handle, mode, .. }
            if mode & (FALLOC_COLLAPSE_RANGE | FALLOC_INSERT_RANGE) != 0 =>
        {
            note([fs.size(request.node, handle).ok()?, 0, 0, 0]);
        }
        Operation::Removexattr { name } if has(name) => {}
        // Another file may have got its handle meanwhile, and have it now.
        Operation::Release { .. } | Operation::Releasedir { .. } => {}
        Operation::Setxattr { name, flags, .. } if flags & XATTR_CREATE != 0 && !has(name) => {}
        _ => return None,
    }
    Some(seen.0)
}

/// What became of a change, by what was seen before it.
pub(super) fn after<F: Recoverable>(
    fs: &F,
    head: &[u8],
    request: &Request<'_>,
    seen: &[u8],
    payload: &mut dyn FnMut() -> Vec<u8>,
) -> Verdict {
    let mut seen = Reader(seen);
    let mut seen = || -> Look { std::array::from_fn(|_| seen.number().unwrap_or(0)) };
    let made_since = |name, seen: Look| match fs.look(request.node, name) {
        Ok(Some([_, _, birth, _])) => birth == 0 || birth >= seen[2],
        _ => false,
    };
    match request.operation {
        Operation::Create { name, flags, .. } if made_since(name, seen()) => {
            let mut again = head.to_vec();
            again[IN_HEADER_SIZE..IN_HEADER_SIZE + 4].copy_from_slice(&(flags & !O_EXCL).to_ne_bytes());
            Verdict::Again(Some(again))
        }
        Operation::Symlink { name, .. } | Operation::Mknod { name, .. } | Operation::Mkdir { name, .. }
            if made_since(name, seen()) =>
        {
            Verdict::Again(Some(lookup(request, name)))
        }
        Operation::Link { name, .. } if fs.look(request.node, name) == Ok(Some(seen())) => {
            Verdict::Again(Some(lookup(request, name)))
        }
        Operation::Unlink { name } | Operation::Rmdir { name } => match fs.look(request.node, name) {
            Ok(now) if now != Some(seen()) => Verdict::Done,
            _ => Verdict::Again(None),
        },
        Operation::Rename { name, new_parent, new_name, flags } => {
            let (from, to) = (seen(), seen());
            let now = (fs.look(request.node, name), fs.look(new_parent, new_name));
            let left =
                if flags & RENAME_EXCHANGE != 0 { now.0 == Ok(Some(to)) } else { now.0 != Ok(Some(from)) };
            if left && now.1 == Ok(Some(from)) { Verdict::Done } else { Verdict::Again(None) }
        }
        Operation::Write { handle, .. } => {
            let found = find_appended(fs, request.node, handle, seen()[0], &payload());
            match found {
                Found::Nothing => Verdict::Again(None),
                // Written again where it stands, whole: the same bytes, and those that were missing.
                Found::At(offset) => Verdict::Again(Some(positioned(head, offset))),
            }
        }
        Operation::Fallocate { handle, .. } => match fs.size(request.node, handle) {
            Ok(size) if size != seen()[0] => Verdict::Done,
            _ => Verdict::Again(None),
        },
        Operation::Removexattr { .. } => Verdict::AgainUnless(Errno::ENODATA),
        Operation::Release { .. } | Operation::Releasedir { .. } => Verdict::AgainUnless(Errno::EBADF),
        Operation::Setxattr { .. } => Verdict::AgainUnless(Errno::EEXIST),
        _ => Verdict::Again(None),
    }
}

/// In place of a look: what is made from now on is born at this time or later.
fn now() -> Look {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_STEP);
    [0, 0, now.as_nanos() as u64, 0]
}

fn appends(write_flags: WriteFlags, flags: u32) -> bool {
    flags & O_APPEND != 0 && !write_flags.contains(WriteFlags::CACHE)
}

/// What was made is answered for as if it had been looked up: the answers are alike.
fn lookup(request: &Request<'_>, name: Name<'_>) -> Vec<u8> {
    let sender = Sender { uid: request.caller.uid, gid: request.caller.gid, pid: request.caller.pid };
    RequestHead::new(Opcode::Lookup, request.node).name(name.as_bytes()).finish(request.id, sender, 0)
}

enum Found {
    Nothing,
    At(u64),
}

/// Looks for what may have been appended since the file had `size` bytes; also for a beginning of it at the end.
fn find_appended<F: Recoverable>(
    fs: &F,
    node: NodeId,
    handle: ashore_wire::FileHandle,
    size: u64,
    payload: &[u8],
) -> Found {
    let end = fs.size(node, handle).unwrap_or(size).min(size + SEARCHED_MAX);
    if end <= size || payload.is_empty() {
        return Found::Nothing;
    }
    let mut there = vec![0; (end - size) as usize];
    let length = fs.read_back(node, handle, size, &mut there).unwrap_or(0);
    there.truncate(length);
    if let Some(at) = there.windows(payload.len()).position(|part| part == payload) {
        return Found::At(size + at as u64);
    }
    let torn = |at: &usize| payload.starts_with(&there[*at..]);
    match (0..there.len()).find(torn) {
        Some(at) if (size + there.len() as u64).is_multiple_of(PAGE) => Found::At(size + at as u64),
        _ => Found::Nothing,
    }
}

/// The head of an appending WRITE as one that writes at this offset.
fn positioned(head: &[u8], offset: u64) -> Vec<u8> {
    let mut head = head.to_vec();
    let at = |field: usize| IN_HEADER_SIZE + field;
    let flags = at(std::mem::offset_of!(WriteIn, flags));
    let old = u32::from_ne_bytes(head[flags..flags + 4].try_into().expect("4 bytes"));
    head[flags..flags + 4].copy_from_slice(&(old & !O_APPEND).to_ne_bytes());
    let place = at(std::mem::offset_of!(WriteIn, offset));
    head[place..place + 8].copy_from_slice(&offset.to_ne_bytes());
    head
}
