//! A small file server in memory and a link to it, for examples and tests. Not part of the interface.
//!
//! [`Toy`] is the server: bytes of a request in, bytes of an answer out, nothing waits. [`ToyLink`] answers from a
//! thread of its own, at once and in order; tests that want delays, errors and disorder put their own link around
//! the same server.

#![allow(missing_docs, reason = "for tests")]
#![allow(clippy::unwrap_used, reason = "for tests: what is missing here is a mistake of the test")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use ashore_wire::abi::*;
use ashore_wire::flags::{InitFlags, OpenReplyFlags, SetattrValid};
use ashore_wire::init::{Implemented, Outcome, negotiate};
use ashore_wire::reply::{Dirent, DirentBuffer, error_header};
use ashore_wire::{Dialect, Errno, NodeId, Operation, Request};
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use crate::link::{Closed, Completion, Link, Message, Receiver, Segment};
use crate::{Client, Options};

const PAGE_SIZE: usize = 4096;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
/// Bytes of the largest file.
const FILE_MAX: u64 = 1 << 30;

/// A client of an empty toy server.
pub fn client() -> Client {
    Client::new(ToyLink::new(Toy::default(), 4096), Options::default()).unwrap()
}

/// A file server.
pub struct Toy {
    pub nodes: HashMap<u64, Node>,
    next_node: u64,
    /// What it implements.
    pub implemented: Implemented,
    /// Answer to OPEN and CREATE.
    pub open_flags: OpenReplyFlags,
    /// How long names and attributes may be remembered.
    pub valid_seconds: u64,
    /// Lookups of each node that were not given back.
    pub lookups: HashMap<u64, u64>,
    clock: u64,
}

/// A file, directory or link.
#[derive(Clone)]
pub struct Node {
    pub attr: Attr,
    pub data: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Toy {
    fn default() -> Toy {
        let root = Node::new(1, DIRECTORY | 0o755, 0);
        Toy {
            nodes: HashMap::from([(1, root)]),
            next_node: 2,
            implemented: Implemented {
                flags: InitFlags::all(),
                max_readahead: 1 << 20,
                max_write: 1 << 20,
                max_pages: 256,
                max_background: 64,
                congestion_threshold: 64,
                time_gran: 1,
            },
            open_flags: OpenReplyFlags::KEEP_CACHE,
            valid_seconds: 3600,
            lookups: HashMap::new(),
            clock: 1_000_000_000,
        }
    }
}

impl Node {
    fn new(ino: u64, mode: u32, now: u64) -> Node {
        let nlink = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let times = Attr { atime: now, mtime: now, ctime: now, ..Default::default() };
        Node {
            attr: Attr { ino, mode, nlink, blksize: 4096, ..times },
            data: Vec::new(),
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        }
    }
}

/// The body of an answer.
type Body = Result<Vec<u8>, Errno>;

impl Toy {
    /// Answers a request; `None` if it has no answer.
    pub fn answer(&mut self, head: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
        let mut words = vec![0u64; head.len().div_ceil(8)];
        words.as_mut_bytes()[..head.len()].copy_from_slice(head);
        let head = &words.as_bytes()[..head.len()];
        let request = match Request::parse(head, payload.len(), Dialect::default()) {
            Ok(request) => request,
            Err(error) => {
                let id = Request::id_of(head)?;
                return Some(error_header(id, error.errno()).as_bytes().to_vec());
            }
        };
        if matches!(request.operation, Operation::Forget { .. } | Operation::BatchForget { .. }) {
            self.forget(&request);
            return None;
        }
        self.clock += 1;
        Some(match self.body(&request, payload) {
            Ok(body) => {
                let len = (OUT_HEADER_SIZE + body.len()) as u32;
                let header = OutHeader { len, error: 0, unique: request.id.0 };
                [header.as_bytes(), &body].concat()
            }
            Err(errno) => error_header(request.id, errno).as_bytes().to_vec(),
        })
    }

    /// The content of a file, by path from the root.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        Some(self.nodes[&self.node_of(path)?].data.clone())
    }

    /// The node a path leads to.
    pub fn node_of(&self, path: &str) -> Option<u64> {
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(1, |node, name| self.nodes.get(&node)?.names.get(name.as_bytes()).copied())
    }

    /// Marks a directory as the root of another host file system.
    pub fn mark_submount(&mut self, path: &str) {
        let node = self.node_of(path).unwrap();
        self.nodes.get_mut(&node).unwrap().attr.flags = 1;
    }

    fn forget(&mut self, request: &Request<'_>) {
        let mut give_back = |node: u64, count: u64| {
            if let Some(lookups) = self.lookups.get_mut(&node) {
                *lookups = lookups.saturating_sub(count);
            }
        };
        match request.operation {
            Operation::Forget { lookups } => give_back(request.node.0, lookups),
            Operation::BatchForget { nodes } => {
                nodes.iter().for_each(|one| give_back(one.nodeid, one.nlookup))
            }
            _ => {}
        }
    }

    fn node(&mut self, node: NodeId) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&node.0).ok_or(Errno::ESTALE)
    }

    fn body(&mut self, request: &Request<'_>, payload: &[u8]) -> Body {
        let node = request.node;
        match request.operation {
            Operation::Init { offer } => match negotiate(&offer, &self.implemented) {
                Outcome::Agreed(out, _) | Outcome::AskAgain(out) => Ok(out.as_bytes().to_vec()),
                Outcome::TooOld { .. } => Err(Errno::EPROTO),
            },
            Operation::Lookup { name } => self.entry(node, name.as_bytes()),
            Operation::Getattr { .. } => self.attr(node),
            Operation::Setattr { valid, attributes } => self.setattr(node, valid, attributes),
            Operation::Readlink => Ok(self.node(node)?.data.clone()),
            Operation::Symlink { name, target } => {
                let made = self.make(node, name.as_bytes(), SYMLINK | 0o777)?;
                let target = target.to_bytes().to_vec();
                let link = self.nodes.get_mut(&made).unwrap();
                link.attr.size = target.len() as u64;
                link.data = target;
                self.entry(node, name.as_bytes())
            }
            Operation::Mknod { name, mode, .. } => {
                self.make(node, name.as_bytes(), mode)?;
                self.entry(node, name.as_bytes())
            }
            Operation::Mkdir { name, mode, .. } => {
                self.make(node, name.as_bytes(), mode | DIRECTORY)?;
                self.entry(node, name.as_bytes())
            }
            Operation::Unlink { name } => self.unlink(node, name.as_bytes(), false),
            Operation::Rmdir { name } => self.unlink(node, name.as_bytes(), true),
            Operation::Rename { name, new_parent, new_name, .. } => {
                self.rename(node, name.as_bytes(), new_parent, new_name.as_bytes())
            }
            Operation::Link { existing, name } => {
                self.node(existing)?.attr.nlink += 1;
                self.node(node)?.names.insert(name.as_bytes().to_vec(), existing.0);
                self.entry(node, name.as_bytes())
            }
            Operation::Open { .. } => {
                self.node(node)?;
                Ok(self.open(node.0).as_bytes().to_vec())
            }
            Operation::Opendir { .. } => Ok(OpenOut { fh: node.0, ..Default::default() }.as_bytes().to_vec()),
            Operation::Create { name, mode, .. } => {
                let made = self.make(node, name.as_bytes(), mode | REGULAR)?;
                let open = self.open(made);
                Ok([&self.entry(node, name.as_bytes())?, open.as_bytes()].concat())
            }
            Operation::Read { offset, size, .. } => {
                let data = &self.node(node)?.data;
                let start = (offset as usize).min(data.len());
                let end = start.saturating_add(size as usize).min(data.len());
                Ok(data[start..end].to_vec())
            }
            Operation::Write { offset, size, .. } => self.write(node, offset, &payload[..size as usize]),
            Operation::Statfs => {
                let st = Kstatfs {
                    blocks: 1000,
                    bfree: 900,
                    bavail: 800,
                    frsize: 4096,
                    namelen: 255,
                    ..Default::default()
                };
                Ok(StatfsOut { st }.as_bytes().to_vec())
            }
            Operation::Readdir { offset, size, .. } => self.readdir(node, offset, size as usize),
            Operation::Fallocate { offset, length, mode, .. } => self.fallocate(node, offset, length, mode),
            Operation::CopyFileRange { arguments, .. } => self.copy(node, arguments),
            Operation::Lseek { offset, whence, .. } => {
                let size = self.node(node)?.attr.size;
                let found = if whence == 3 { offset } else { size };
                if offset >= size {
                    Err(Errno::ENXIO)
                } else {
                    Ok(LseekOut { offset: found }.as_bytes().to_vec())
                }
            }
            Operation::Setxattr { name, value, .. } => {
                self.node(node)?.xattrs.insert(name.to_bytes().to_vec(), value.to_vec());
                Ok(Vec::new())
            }
            Operation::Getxattr { name, .. } => self.xattr(node, name),
            Operation::Listxattr { .. } => {
                let names = self.node(node)?.xattrs.keys().flat_map(|name| [name, &b"\0"[..]].concat());
                Ok(names.collect())
            }
            Operation::Removexattr { name } => {
                let gone = self.node(node)?.xattrs.remove(name.to_bytes());
                gone.map(|_| Vec::new()).ok_or(Errno::ENODATA)
            }
            Operation::Release { .. }
            | Operation::Releasedir { .. }
            | Operation::Flush { .. }
            | Operation::Fsync { .. }
            | Operation::Fsyncdir { .. }
            | Operation::Syncfs { .. }
            | Operation::Destroy => Ok(Vec::new()),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn open(&self, node: u64) -> OpenOut {
        OpenOut { fh: node, open_flags: self.open_flags.bits(), backing_id: 0 }
    }

    fn entry(&mut self, parent: NodeId, name: &[u8]) -> Body {
        let node = *self.node(parent)?.names.get(name).ok_or(Errno::ENOENT)?;
        *self.lookups.entry(node).or_default() += 1;
        let entry = EntryOut {
            nodeid: node,
            entry_valid: self.valid_seconds,
            attr_valid: self.valid_seconds,
            attr: self.nodes[&node].attr,
            ..Default::default()
        };
        Ok(entry.as_bytes().to_vec())
    }

    fn attr(&mut self, node: NodeId) -> Body {
        let attr_valid = self.valid_seconds;
        Ok(AttrOut { attr_valid, attr: self.node(node)?.attr, ..Default::default() }.as_bytes().to_vec())
    }

    fn make(&mut self, parent: NodeId, name: &[u8], mode: u32) -> Result<u64, Errno> {
        let node = self.next_node;
        let now = self.clock;
        let directory = self.node(parent)?;
        if directory.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        directory.names.insert(name.to_vec(), node);
        self.next_node += 1;
        self.nodes.insert(node, Node::new(node, mode, now));
        Ok(node)
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8], directory: bool) -> Body {
        let node = *self.node(parent)?.names.get(name).ok_or(Errno::ENOENT)?;
        if directory && !self.nodes[&node].names.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.node(parent)?.names.remove(name);
        let gone = self.nodes.get_mut(&node).unwrap();
        gone.attr.nlink = gone.attr.nlink.saturating_sub(1);
        Ok(Vec::new())
    }

    fn rename(&mut self, from: NodeId, name: &[u8], to: NodeId, new: &[u8]) -> Body {
        let node = self.node(from)?.names.remove(name).ok_or(Errno::ENOENT)?;
        self.node(to)?.names.insert(new.to_vec(), node);
        Ok(Vec::new())
    }

    fn setattr(&mut self, node: NodeId, valid: SetattrValid, values: &SetattrIn) -> Body {
        let now = self.clock;
        let target = self.node(node)?;
        if valid.contains(SetattrValid::SIZE) {
            if values.size > FILE_MAX {
                return Err(Errno::EFBIG);
            }
            target.data.resize(values.size as usize, 0);
            target.attr.size = values.size;
            target.attr.mtime = now;
        }
        if valid.contains(SetattrValid::MODE) {
            target.attr.mode = target.attr.mode & 0o170_000 | values.mode & 0o7777;
        }
        if valid.contains(SetattrValid::UID) {
            target.attr.uid = values.uid;
        }
        if valid.contains(SetattrValid::GID) {
            target.attr.gid = values.gid;
        }
        if valid.contains(SetattrValid::ATIME) {
            (target.attr.atime, target.attr.atimensec) = (values.atime, values.atimensec);
        }
        if valid.contains(SetattrValid::MTIME) {
            (target.attr.mtime, target.attr.mtimensec) = (values.mtime, values.mtimensec);
        }
        self.attr(node)
    }

    fn write(&mut self, node: NodeId, offset: u64, data: &[u8]) -> Body {
        let now = self.clock;
        let end = offset + data.len() as u64;
        if end > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        let target = self.node(node)?;
        if target.data.len() < end as usize {
            target.data.resize(end as usize, 0);
        }
        target.data[offset as usize..end as usize].copy_from_slice(data);
        target.attr.size = target.data.len() as u64;
        (target.attr.mtime, target.attr.mtimensec) = (now, 0);
        Ok(WriteOut { size: data.len() as u32, padding: 0 }.as_bytes().to_vec())
    }

    fn fallocate(&mut self, node: NodeId, offset: u64, length: u64, mode: u32) -> Body {
        let target = self.node(node)?;
        let (start, end) = (offset as usize, (offset + length) as usize);
        if mode & 1 == 0 && target.data.len() < end {
            target.data.resize(end, 0);
            target.attr.size = end as u64;
        }
        if mode & 0x12 != 0 {
            let length = target.data.len();
            target.data[start.min(length)..end.min(length)].fill(0);
        }
        Ok(Vec::new())
    }

    fn copy(&mut self, from: NodeId, arguments: &CopyFileRangeIn) -> Body {
        let source = &self.node(from)?.data;
        let start = (arguments.off_in as usize).min(source.len());
        let end = start.saturating_add(arguments.len as usize).min(source.len());
        let data = source[start..end].to_vec();
        if data.is_empty() {
            return Ok(WriteOut::default().as_bytes().to_vec());
        }
        self.write(NodeId(arguments.nodeid_out), arguments.off_out, &data)
    }

    fn xattr(&mut self, node: NodeId, name: &CStr) -> Body {
        self.node(node)?.xattrs.get(name.to_bytes()).cloned().ok_or(Errno::ENODATA)
    }

    fn readdir(&mut self, node: NodeId, offset: u64, room: usize) -> Body {
        let mut buffer = DirentBuffer::default();
        buffer.reset(room);
        let names = self.node(node)?.names.clone();
        for (position, (name, ino)) in names.iter().enumerate().skip(offset as usize) {
            let kind = self.nodes[ino].attr.mode >> 12;
            if !buffer.push(Dirent { ino: *ino, next_offset: position as u64 + 1, kind, name }) {
                break;
            }
        }
        Ok(buffer.as_bytes().to_vec())
    }
}

/// Pages of memory that client and server share.
pub struct Pages(Vec<Mutex<Box<[u8; PAGE_SIZE]>>>);

impl Pages {
    pub fn new(count: u32) -> Pages {
        Pages((0..count).map(|_| Mutex::new(Box::new([0xdb; PAGE_SIZE]))).collect())
    }

    #[allow(clippy::len_without_is_empty, reason = "there are always some")]
    pub fn len(&self) -> u32 {
        self.0.len() as u32
    }

    #[inline]
    pub fn read(&self, page: u32, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0[page as usize].lock()[offset..offset + into.len()]);
    }

    #[inline]
    pub fn write(&self, page: u32, offset: usize, from: &[u8]) {
        self.0[page as usize].lock()[offset..offset + from.len()].copy_from_slice(from);
    }

    pub fn zero(&self, page: u32, range: Range<usize>) {
        self.0[page as usize].lock()[range].fill(0);
    }

    /// The data of a WRITE.
    pub fn gather(&self, segments: &[Segment]) -> Vec<u8> {
        let mut data = Vec::new();
        for segment in segments {
            data.extend_from_slice(&self.0[segment.page as usize].lock()[..segment.length as usize]);
        }
        data
    }

    /// Puts an answer where its request wants it.
    pub fn deliver(&self, message: &Message, mut reply: Vec<u8>) -> Completion {
        let length = reply.len();
        let fixed = (OUT_HEADER_SIZE + message.reply_room).min(length);
        let data = reply.split_off(fixed);
        let mut rest = &data[..];
        for segment in &message.target {
            let (here, left) = rest.split_at(rest.len().min(segment.length as usize));
            self.write(segment.page, 0, here);
            rest = left;
        }
        Completion { id: message.id, length, reply }
    }
}

/// A link to a toy server, which answers from one thread.
pub struct ToyLink {
    pages: Arc<Pages>,
    toy: Arc<Mutex<Toy>>,
    requests: Mutex<Option<Sender<Message>>>,
    receiver: OnceLock<Arc<dyn Receiver>>,
}

impl ToyLink {
    pub fn new(toy: Toy, pages: u32) -> ToyLink {
        ToyLink {
            pages: Arc::new(Pages::new(pages)),
            toy: Arc::new(Mutex::new(toy)),
            requests: Mutex::new(None),
            receiver: OnceLock::new(),
        }
    }

    /// The server.
    pub fn toy(&self) -> &Arc<Mutex<Toy>> {
        &self.toy
    }
}

impl Link for ToyLink {
    fn pages(&self) -> u32 {
        self.pages.len()
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        self.pages.read(page, offset, into);
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        self.pages.write(page, offset, from);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        self.pages.zero(page, range);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        let (sender, queue) = channel::<Message>();
        *self.requests.lock() = Some(sender);
        _ = self.receiver.set(Arc::clone(&receiver));
        let (pages, toy) = (Arc::clone(&self.pages), Arc::clone(&self.toy));
        std::thread::spawn(move || {
            for message in queue {
                let payload = pages.gather(&message.payload);
                let reply = toy.lock().answer(&message.head, &payload);
                if let Some(reply) = reply.filter(|_| message.id != 0) {
                    receiver.completed(pages.deliver(&message, reply));
                }
            }
        });
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        self.requests.lock().as_ref().ok_or(Closed)?.send(message).map_err(|_| Closed)
    }

    fn close(&self) {
        *self.requests.lock() = None;
    }
}
