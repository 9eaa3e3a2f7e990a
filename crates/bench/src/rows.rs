//! What is measured, one row of the table each.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use ashore_vhost_user::driver::{Call, Pages, RawConnection, RawError};
use ashore_wire::NodeId;

use crate::cached::Cached;
use crate::meter::{Meter, Sample};
use crate::native::{self, Native};
use crate::tree::{BIG_BYTES, MANY_NAMES, Opened, Tree, WALK_DIRECTORIES, WALK_FILES, list};

/// One row of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What is counted.
    pub(crate) unit: &'static str,
    pub(crate) measure: Measure,
    pub(crate) native: Option<fn(&Native, &Meter<'_>) -> Result<Sample>>,
}

/// By which kind of client.
pub(crate) enum Measure {
    /// One that sends single requests.
    Raw(MeasureRaw),
    /// Ours, with its cache.
    Cached(MeasureCached),
}

pub(crate) type MeasureRaw = fn(&mut Subject<'_>, &Meter<'_>) -> Result<Sample>;
pub(crate) type MeasureCached = fn(&Cached, &Meter<'_>) -> Result<Sample>;

/// A server, and files to measure it with.
pub(crate) struct Subject<'a> {
    pub(crate) raw: &'a RawConnection,
    pub(crate) tree: &'a Tree,
    /// Bytes in one READ or WRITE, at most.
    pub(crate) max_write: u32,
}

pub(crate) const KIB_4: usize = 4 << 10;
pub(crate) const KIB_128: usize = 128 << 10;
pub(crate) const MIB_1: usize = 1 << 20;
/// Requests kept on their way where many are.
const DEPTH: usize = 16;

macro_rules! row {
    ($name:literal, $unit:literal, $raw:expr) => {
        Row { name: $name, unit: $unit, measure: Measure::Raw($raw), native: None }
    };
    ($name:literal, $unit:literal, $raw:expr, $native:expr) => {
        Row { name: $name, unit: $unit, measure: Measure::Raw($raw), native: Some($native) }
    };
    (cached $name:literal, $unit:literal, $cached:expr, $native:expr) => {
        Row { name: $name, unit: $unit, measure: Measure::Cached($cached), native: Some($native) }
    };
}

/// The rows, in their order.
pub(crate) const ROWS: [Row; 25] = [
    row!("empty request", "requests", |subject, meter| subject.empty(meter)),
    row!("GETATTR", "requests", |subject, meter| subject.getattr(meter), native::getattr),
    row!("LOOKUP hit", "requests", |subject, meter| subject.lookup(meter), native::lookup),
    row!("LOOKUP miss", "requests", |subject, meter| subject.lookup_missing(meter), native::lookup_missing),
    row!("OPEN+RELEASE", "pairs", |subject, meter| subject.open(meter), native::open),
    row!("READ 4 KiB", "requests", |subject, meter| subject.read(meter, KIB_4), |native, meter| {
        native::read(native, meter, KIB_4)
    }),
    row!(
        "READ 4 KiB depth 16",
        "requests",
        |subject, meter| subject.read_deep(meter, KIB_4, DEPTH),
        |native, meter| { native::read(native, meter, KIB_4) }
    ),
    row!("READ 128 KiB", "requests", |subject, meter| subject.read(meter, KIB_128), |native, meter| {
        native::read(native, meter, KIB_128)
    }),
    row!("WRITE 128 KiB", "requests", |subject, meter| subject.write(meter, KIB_128), |native, meter| {
        native::write(native, meter, KIB_128)
    }),
    row!("READ 1 MiB", "requests", |subject, meter| subject.read(meter, MIB_1), |native, meter| {
        native::read(native, meter, MIB_1)
    }),
    row!("WRITE 1 MiB", "requests", |subject, meter| subject.write(meter, MIB_1), |native, meter| {
        native::write(native, meter, MIB_1)
    }),
    row!("WRITE 4 KiB", "requests", |subject, meter| subject.write(meter, KIB_4), |native, meter| {
        native::write(native, meter, KIB_4)
    }),
    row!("CREATE+WRITE+RELEASE+UNLINK", "files", |subject, meter| subject.create(meter), native::create),
    row!("READDIRPLUS 10,000 names", "names", |subject, meter| subject.readdirplus(meter), native::readdir),
    row!("cold walk 20,000 files", "files walked", |subject, meter| subject.walk(meter), native::walk),
    row!("SYNCFS clean", "requests", |subject, meter| subject.syncfs(meter), native::syncfs),
    row!("8 SYNCFS at once, dirty", "syncs", |subject, meter| subject.many_syncs(meter), native::many_syncs),
    row!("WRITE 4 KiB+FSYNC", "pairs", |subject, meter| subject.fsync(meter), native::fsync),
    row!(
        "GETATTR during syncs",
        "requests",
        |subject, meter| subject.getattr_during_syncs(meter),
        |native, meter| { native::getattr_during_syncs(native, meter) }
    ),
    row!(cached "cached read_at 4 KiB", "calls", |cached, meter| cached.read(meter, KIB_4), |native, meter| {
        native::read(native, meter, KIB_4)
    }),
    row!(cached "cached write_at 4 KiB", "calls", |cached, meter| cached.write(meter, KIB_4), |native, meter| {
        native::write(native, meter, KIB_4)
    }),
    row!(cached "cached read_at 1 MiB", "calls", |cached, meter| cached.read(meter, MIB_1), |native, meter| {
        native::read(native, meter, MIB_1)
    }),
    row!(cached "cached write_at 1 MiB", "calls", |cached, meter| cached.write(meter, MIB_1), |native, meter| {
        native::write(native, meter, MIB_1)
    }),
    row!(cached "cached metadata", "calls", |cached, meter| cached.metadata(meter), native::stat),
    row!(cached "write_at 4 KiB and sync", "pairs", |cached, meter| cached.sync(meter), native::write_and_sync),
];

impl Subject<'_> {
    fn empty(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| match self.raw.call(Call::empty()) {
            // Whatever it says: it has said it at once.
            Ok(_) | Err(RawError::Errno(_)) => Ok(1),
            Err(error) => Err(error.into()),
        })
    }

    pub(crate) fn getattr(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| self.raw.getattr(self.tree.small_file).map(|_| 1).map_err(Into::into))
    }

    fn lookup(&self, meter: &Meter<'_>) -> Result<Sample> {
        let names = &self.tree.small_names;
        let mut looked_up: Vec<(NodeId, u64)> = vec![(NodeId(0), 0); names.len()];
        let mut next = 0;
        let sample = meter.run(|| {
            let entry = self.raw.lookup(self.tree.small, names[next].as_bytes())?;
            looked_up[next] = (NodeId(entry.nodeid), looked_up[next].1 + 1);
            next = (next + 1) % names.len();
            Ok(1)
        })?;
        looked_up.retain(|(_, lookups)| *lookups > 0);
        self.raw.forget(&looked_up)?;
        Ok(sample)
    }

    fn lookup_missing(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| match self.raw.lookup(self.tree.small, b"no-such-name") {
            Err(RawError::Errno(_)) => Ok(1),
            // A node of 0 is a way to say ENOENT that may be remembered.
            Ok(entry) if entry.nodeid == 0 => Ok(1),
            Ok(_) => bail!("a name was found that was never made"),
            Err(error) => Err(error.into()),
        })
    }

    fn open(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| {
            let handle = self.raw.open(self.tree.small_file, 0)?;
            self.raw.release(self.tree.small_file, handle)?;
            Ok(1)
        })
    }

    fn largest(&self, bytes: usize) -> Result<()> {
        ensure!(bytes <= self.max_write as usize, "the server takes {} bytes at most", self.max_write);
        Ok(())
    }

    pub(crate) fn read(&self, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
        self.largest(bytes)?;
        let (mut offset, Opened { node, handle }) = (0, self.tree.big);
        meter.run(|| {
            let read = self.raw.read(node, handle, offset, Pages { first: 0, bytes })?;
            ensure!(read == bytes, "a READ of {bytes} bytes brought {read}");
            offset = (offset + bytes as u64) % BIG_BYTES;
            Ok(1)
        })
    }

    pub(crate) fn read_deep(&self, meter: &Meter<'_>, bytes: usize, depth: usize) -> Result<Sample> {
        let (mut count, Opened { node, handle }) = (0u32, self.tree.big);
        let mut sent = Vec::with_capacity(depth);
        let sample = meter.run(|| {
            let answered = self.raw.stream(&mut sent, depth, 16 * depth, || {
                count = count.wrapping_add(1);
                let offset = u64::from(count) * bytes as u64 % BIG_BYTES;
                Call::read(node, handle, offset, Pages { first: count % 32, bytes })
            })?;
            Ok(answered as u64)
        })?;
        sent.into_iter().try_for_each(|sent| self.raw.wait(sent).map(drop))?;
        Ok(sample)
    }

    fn write(&self, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
        self.largest(bytes)?;
        let (mut offset, Opened { node, handle }) = (0, self.tree.big);
        meter.run(|| {
            let written = self.raw.write(node, handle, offset, Pages { first: 0, bytes })?;
            ensure!(written as usize == bytes, "a WRITE of {bytes} bytes wrote {written}");
            offset = (offset + bytes as u64) % BIG_BYTES;
            Ok(1)
        })
    }

    fn create(&self, meter: &Meter<'_>) -> Result<Sample> {
        let mut number = 0u64;
        meter.run(|| {
            number += 1;
            let name = format!("new-{number}");
            let (entry, handle) = self.raw.create(self.tree.scratch, name.as_bytes())?;
            let node = NodeId(entry.nodeid);
            self.raw.write(node, handle, 0, Pages { first: 0, bytes: KIB_4 })?;
            self.raw.release(node, handle)?;
            self.raw.unlink(self.tree.scratch, name.as_bytes())?;
            self.raw.forget(&[(node, 1)])?;
            Ok(1)
        })
    }

    /// The inodes are known after the first time, as they are to a client that lists again.
    fn readdirplus(&self, meter: &Meter<'_>) -> Result<Sample> {
        let mut looked_up: Vec<(NodeId, u64)> = Vec::new();
        let sample = meter.run(|| {
            let names = list(self.raw, self.tree.many)?;
            ensure!(names.len() == MANY_NAMES, "{} names of {MANY_NAMES} were listed", names.len());
            looked_up.extend(names.iter().map(|name| (name.node, 1)));
            Ok(names.len() as u64)
        })?;
        self.raw.forget(&looked_up)?;
        Ok(sample)
    }

    /// Nothing is known to the server when it begins.
    fn walk(&self, meter: &Meter<'_>) -> Result<Sample> {
        let looked_up = std::cell::RefCell::new(Vec::new());
        let forget = || {
            self.raw.forget(&looked_up.borrow())?;
            looked_up.borrow_mut().clear();
            // Nothing says when a FORGET is done.
            std::thread::sleep(std::time::Duration::from_millis(30));
            Ok(())
        };
        let walk = || {
            let mut files = 0;
            for directory in list(self.raw, self.tree.walk)? {
                let inside = list(self.raw, directory.node)?;
                files += inside.len();
                let mut looked_up = looked_up.borrow_mut();
                looked_up.push((directory.node, 1));
                looked_up.extend(inside.iter().map(|file| (file.node, 1)));
            }
            ensure!(files == WALK_DIRECTORIES * WALK_FILES, "{files} files were found");
            Ok(files as u64)
        };
        let sample = meter.run_after(forget, walk)?;
        forget()?;
        Ok(sample)
    }

    fn syncfs(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| self.raw.syncfs().map(|()| 1).map_err(Into::into))
    }

    fn many_syncs(&self, meter: &Meter<'_>) -> Result<Sample> {
        let from = Pages { first: 0, bytes: KIB_4 };
        let all = |calls: &mut dyn Iterator<Item = Call>| -> Result<u64> {
            let sent = calls.map(|call| self.raw.send(call)).collect::<Result<Vec<_>, _>>()?;
            let count = sent.len();
            for sent in sent {
                self.raw.wait(sent)?;
            }
            Ok(count as u64)
        };
        meter.run(|| {
            let files = self.tree.sync.iter();
            all(&mut files.clone().map(|file| Call::write(file.node, file.handle, 0, from)))?;
            all(&mut files.map(|_| Call::syncfs(NodeId::ROOT)))
        })
    }

    pub(crate) fn fsync(&self, meter: &Meter<'_>) -> Result<Sample> {
        let file = self.tree.sync[0];
        meter.run(|| {
            self.raw.write(file.node, file.handle, 0, Pages { first: 0, bytes: KIB_4 })?;
            self.raw.fsync(file.node, file.handle)?;
            Ok(1)
        })
    }

    fn getattr_during_syncs(&self, meter: &Meter<'_>) -> Result<Sample> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let syncing = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.raw.syncfs()?;
                }
                Ok::<_, RawError>(())
            });
            let sample = self.getattr(meter);
            over.store(true, Ordering::Relaxed);
            syncing.join().expect("the syncing thread does not panic")?;
            sample
        })
    }
}
