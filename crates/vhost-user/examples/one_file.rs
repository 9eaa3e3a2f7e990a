//! The smallest server there can be: one host file, as `data` in a directory of its own.
//!
//! ```text
//! cargo run --example one_file -- /tmp/socket some-file
//! ```
//!
//! It shows how a device is embedded, and is enough to see a real guest read and write through it.

#![allow(clippy::unwrap_used, reason = "an example ends where something goes wrong")]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use ashore_vhost_user::device::{Device, DeviceOptions, DeviceQueue, Listener, QueueIndex, RingExchange};
use ashore_wire::abi::{Attr, AttrOut, EntryOut, InitOut, OpenOut, StatfsOut};
use ashore_wire::reply::{Dirent, error_header};
use ashore_wire::seam::{Exchange, ReplyBody, RequestQueue, TransferMode};
use ashore_wire::{DirentBuffer, Errno, NodeId, Operation, Reply, Request};

const ROOT: NodeId = NodeId(1);
const DATA: NodeId = NodeId(2);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(path)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: one_file SOCKET FILE");
        std::process::exit(2);
    };
    let queues = std::env::var("QUEUES").map_or(1, |queues| queues.parse().unwrap());
    let file = Arc::new(File::options().read(true).write(true).open(path).unwrap());
    let options = DeviceOptions { request_queues: queues, ..Default::default() };
    let device = Device::new(options, move |_: QueueIndex, mut queue: DeviceQueue| {
        while let Some(exchange) = queue.next() {
            serve(&file, exchange);
        }
    });
    let device = device.unwrap();
    let listener = Listener::bind(socket).unwrap_or_else(|error| {
        eprintln!("one_file: {error}");
        std::process::exit(1);
    });
    println!("{:?}", device.serve(&listener));
    device.counters().iter().enumerate().for_each(|(index, counters)| println!("queue {index}: {counters}"));
}

fn serve(file: &File, mut exchange: RingExchange) {
    let (head, bulk) = exchange.parts();
    let Ok(request) = Request::parse(head, ashore_wire::seam::Payload::len(bulk), Default::default()) else {
        return;
    };
    if matches!(request.operation, Operation::Forget { .. } | Operation::BatchForget { .. }) {
        return exchange.finish_without_reply();
    }
    let header = match reply(file, &request, bulk) {
        Ok(header) => header,
        Err(errno) => error_header(request.id, errno),
    };
    exchange.finish(header);
}

fn reply(
    file: &File,
    request: &Request<'_>,
    bulk: &mut ashore_vhost_user::device::Bulk,
) -> Result<ashore_wire::abi::OutHeader, Errno> {
    let plain = TransferMode::default();
    let mut names = DirentBuffer::default();
    let attr = attributes(file, request.node);
    let answer = AttrOut { attr, ..Default::default() };
    let init = InitOut {
        major: 7,
        minor: 31,
        max_write: 1 << 20,
        max_pages: 256,
        flags: 1 << 22,
        ..Default::default()
    };
    let entry = EntryOut { nodeid: DATA.0, attr: attributes(file, DATA), ..Default::default() };
    let reply = match request.operation {
        Operation::Init { offer } => Reply::Init(&InitOut { flags: init.flags & offer.flags, ..init }),
        Operation::Lookup { name } if name.as_bytes() == b"data" => Reply::Entry(&entry),
        Operation::Lookup { .. } => return Err(Errno::ENOENT),
        Operation::Getattr { .. } | Operation::Setattr { .. } => Reply::Attr(&answer),
        Operation::Open { .. } | Operation::Opendir { .. } => Reply::Open(&OpenOut::default()),
        Operation::Readdir { offset, size, .. } => {
            names.reset(size as usize);
            if offset == 0 {
                names.push(Dirent { ino: DATA.0, next_offset: 1, kind: 8, name: b"data" });
            }
            Reply::Bytes(names.as_bytes())
        }
        Operation::Read { offset, size, .. } => {
            Reply::InPlace(bulk.read_from(file.as_fd(), offset, size as usize, plain)?)
        }
        Operation::Write { offset, size, .. } => {
            use ashore_wire::seam::Payload;
            Reply::Written(bulk.write_to(file.as_fd(), offset, size as usize, plain)? as u32)
        }
        Operation::Fsync { .. } | Operation::Syncfs { .. } => {
            file.sync_all()?;
            Reply::Empty
        }
        Operation::Statfs => Reply::Statfs(&StatfsOut::default()),
        Operation::Release { .. }
        | Operation::Releasedir { .. }
        | Operation::Flush { .. }
        | Operation::Destroy => Reply::Empty,
        _ => return Err(Errno::ENOSYS),
    };
    reply.encode(request.id, bulk).map_err(|_| Errno::EIO)
}

fn attributes(file: &File, node: NodeId) -> Attr {
    match node {
        ROOT => Attr { ino: 1, mode: 0o40755, nlink: 2, ..Default::default() },
        _ => Attr {
            ino: 2,
            mode: 0o100644,
            nlink: 1,
            size: file.metadata().unwrap().len(),
            ..Default::default()
        },
    }
}
