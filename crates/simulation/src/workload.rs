//! What a thread of an application does: operations on a file of its own, and syncs.

use std::sync::Arc;

use ashore_client::{Client, File, OpenOptions};

use crate::host::{Cell, HIDDEN, SUBMOUNT};
use crate::oracle::Oracle;
use crate::schedule::Dice;

const PAGE: u64 = 4096;

/// Something to do. Which of a kind is told by numbers, so that all can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Pages from here on are written.
    Write { first: u64, count: u64 },
    /// The file is so many pages long.
    Resize(u64),
    /// The space of this page is allocated.
    Allocate(u64),
    /// The first page is copied to the ninth.
    Copy,
    /// Permissions change.
    SetMode,
    /// The file has its other name.
    Rename,
    /// The file has no name any more.
    Remove,
    /// fsync(2).
    SyncFile,
    /// sync(2).
    Sync,
}

impl Operation {
    /// Those whose workloads are tried one and all.
    pub(crate) const BOUNDED: [Operation; 12] = [
        Operation::Write { first: 0, count: 1 },
        Operation::Write { first: 1, count: 2 },
        Operation::Write { first: 3, count: 1 },
        Operation::Resize(0),
        Operation::Resize(2),
        Operation::Resize(5),
        Operation::Allocate(5),
        Operation::Copy,
        Operation::SetMode,
        Operation::Rename,
        Operation::Remove,
        Operation::SyncFile,
    ];

    fn any(dice: &mut Dice) -> Operation {
        match dice.below(12) {
            0..4 => {
                let (first, count) = (dice.below(4), 1 + dice.below(3));
                Operation::Write { first, count }
            }
            4 => Operation::Resize(dice.below(5)),
            5 => Operation::Allocate(dice.below(6)),
            6 => Operation::Copy,
            7 => Operation::SetMode,
            8 => Operation::Rename,
            9 => Operation::SyncFile,
            _ => Operation::Sync,
        }
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Cached,
    Direct,
    /// Each write is a sync of its data.
    DataSync,
}

/// A thread, and the file it works on.
pub(crate) struct Worker {
    oracle: Arc<Oracle>,
    client: Client,
    number: u64,
    prefix: &'static str,
    directory: u64,
    way: Way,
    file: File,
    node: u64,
    /// Which of its two names the file has; `None`: neither.
    second: Option<bool>,
    /// When this thread was told of errors, by syncs and by its file.
    told: Vec<u64>,
    file_told: Vec<u64>,
}

impl Worker {
    /// Makes its file; `None` if the connection was lost before.
    pub(crate) fn new(
        oracle: Arc<Oracle>,
        client: Client,
        number: u64,
        place: usize,
        way: Way,
    ) -> Option<Worker> {
        let (prefix, directory) = [("", 1), ("mounted/", SUBMOUNT), ("hidden/", HIDDEN)][place];
        let options = OpenOptions::new().read(true).write(true).create(true);
        let options = options.direct(way == Way::Direct).data_sync(way == Way::DataSync);
        let made = client.open_with(format!("{prefix}f{number}"), &options).and_then(|file| {
            let node = file.metadata()?.ino();
            Ok((file, node))
        });
        let (file, node) = match made {
            Err(_) if oracle.is_losing() => return None,
            made => made.expect("nothing is wrong"),
        };
        let (told, file_told) = Default::default();
        let worker = Worker {
            oracle,
            client,
            number,
            prefix,
            directory,
            way,
            file,
            node,
            second: Some(false),
            told,
            file_told,
        };
        worker.oracle.done_at_host(worker.name_cell(false));
        Some(worker)
    }

    /// As the dice fall.
    pub(crate) fn work(mut self, dice: &mut Dice) {
        for _ in 0..2 + dice.below(6) {
            self.perform(Operation::any(dice));
        }
        self.perform(Operation::Sync);
        if dice.once_in(2) {
            self.perform(Operation::Remove);
        }
        self.close();
    }

    /// Closes the file, and syncs.
    pub(crate) fn close(self) {
        let Worker { oracle, client, file, mut told, .. } = self;
        drop(file);
        oracle.sync(&mut told, true, |_| true, || client.sync());
    }

    pub(crate) fn perform(&mut self, operation: Operation) {
        let node = self.node;
        match operation {
            Operation::Write { first, count } => {
                let failed = self.write(first, count).is_err();
                // A write that syncs is told of whatever befell the file, as an fsync is.
                if failed && self.way == Way::DataSync {
                    self.file_told.push(self.oracle.host.host(|host| host.tick()));
                }
            }
            Operation::Resize(pages) => {
                let version = self.oracle.host.host(|host| host.version());
                // Before the call: a sync beside it may find the file cut or not.
                self.oracle.cuts(node, pages, version);
                if self.file.set_len(pages * PAGE).is_ok() {
                    self.oracle.done_at_host(Cell::Size(node));
                }
            }
            Operation::Allocate(page) => {
                if self.file.allocate(page * PAGE, PAGE, 0).is_ok() {
                    self.oracle.done_at_host(Cell::Size(node));
                }
            }
            Operation::Copy => {
                if self.file.copy_to(0, &self.file, 8 * PAGE, PAGE).is_ok() {
                    self.oracle.done_at_host(Cell::Page(node, 8));
                }
            }
            Operation::SetMode => {
                if self.file.set_mode(0o600).is_ok() {
                    self.oracle.done_at_host(Cell::Mode(node));
                }
            }
            Operation::Rename => {
                let Some(second) = self.second else { return };
                if self.client.rename(self.name(second), self.name(!second)).is_ok() {
                    self.oracle.done_at_host(self.name_cell(second));
                    self.oracle.done_at_host(self.name_cell(!second));
                    self.second = Some(!second);
                }
            }
            Operation::Remove => {
                let Some(second) = self.second else { return };
                if self.client.remove_file(self.name(second)).is_ok() {
                    self.oracle.done_at_host(self.name_cell(second));
                    self.second = None;
                }
            }
            Operation::SyncFile => {
                let own = |cell: &Cell| matches!(cell, Cell::Page(of, _) | Cell::Size(of) | Cell::Mode(of) if *of == node);
                self.oracle.sync(&mut self.file_told, false, own, || self.file.sync_all());
            }
            Operation::Sync => {
                self.oracle.sync(&mut self.told, true, |_| true, || self.client.sync());
            }
        }
    }

    fn write(&self, first: u64, count: u64) -> std::io::Result<()> {
        let version = self.oracle.host.host(|host| host.version());
        let mut data = vec![0; (count * PAGE) as usize];
        data.chunks_mut(PAGE as usize).for_each(|page| page[..8].copy_from_slice(&version.to_ne_bytes()));
        self.file.write_all_at(&data, first * PAGE)?;
        (first..first + count).for_each(|page| self.oracle.done(Cell::Page(self.node, page), version));
        Ok(())
    }

    fn base(&self, second: bool) -> String {
        format!("{}{}", if second { "g" } else { "f" }, self.number)
    }

    fn name(&self, second: bool) -> String {
        format!("{}{}", self.prefix, self.base(second))
    }

    fn name_cell(&self, second: bool) -> Cell {
        Cell::Name(self.directory, self.base(second).into_bytes())
    }
}
