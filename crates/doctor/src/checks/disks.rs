//! Checks that need file systems of their own, and so root.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ashore_vhost_user::driver::{Call, RawError};
use ashore_wire::abi::{Rename2In, SetattrIn};
use ashore_wire::encode::RequestHead;
use ashore_wire::flags::{AttrFlags, InitFlags, SetattrValid};
use ashore_wire::{NodeId, Opcode};

use crate::disk::{Disk, Mounted, fill, need_root};
use crate::line::{Document, Line, READ_WRITE};
use crate::report::{Seen, size};
use crate::server::Server;
use crate::ward::Ward;

const BYTES: usize = 1 << 20;

/// A directory of its own for such a check, with a server.
struct Room {
    /// In this order: hung up first, unmounted last.
    line: Option<Line>,
    server: Option<Server>,
    mounts: Vec<Mounted>,
    /// The disk that is shared; those in it come first.
    disks: Vec<Disk>,
    folder: tempfile::TempDir,
}

impl Room {
    fn new(ward: &Ward) -> Result<Room> {
        need_root()?;
        ward.recipe()?;
        let folder = tempfile::Builder::new().prefix("disks-").tempdir_in(ward.place())?;
        Ok(Room { line: None, server: None, mounts: Vec::new(), disks: Vec::new(), folder })
    }

    fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.folder.path().join(name);
        fs::create_dir_all(&place)?;
        Ok(place)
    }

    /// Starts a server of `share` and connects to it.
    fn connect(&mut self, ward: &Ward, share: &Path) -> Result<()> {
        let (server, line) = connect(ward, share, &self.place("server")?)?;
        (self.server, self.line) = (Some(server), Some(line));
        Ok(())
    }

    fn line(&self) -> Result<&Line> {
        self.line.as_ref().context("it was connected")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.line = None;
        self.server = None;
        self.mounts.drain(..).rev().for_each(drop);
        self.disks.drain(..).rev().for_each(drop);
    }
}

fn connect(ward: &Ward, share: &Path, place: &Path) -> Result<(Server, Line)> {
    let server = ward.recipe()?.start(share, place)?;
    let line = Line::connect(server.socket(), Some(share))?;
    Ok((server, line))
}

/// A file that is there already, opened for reading and writing.
fn open(line: &Line, parent: NodeId, name: &str, path: &str) -> Result<Document> {
    let entry = line.raw.lookup(parent, name.as_bytes()).with_context(|| format!("LOOKUP {name}"))?;
    let node = NodeId(entry.nodeid);
    let handle = line.raw.open(node, READ_WRITE).with_context(|| format!("OPEN {name}"))?;
    Ok(Document { node, handle, path: path.into() })
}

pub(crate) fn other_disks(ward: &mut Ward) -> Result<Seen> {
    let mut room = Room::new(ward)?;
    ward.need_syncs()?;
    ward.close();
    let share = room.place("share")?;
    room.disks.push(Disk::new(room.folder.path(), "root.image", 64, &share)?);
    let (below_share, elsewhere) = (share.join("mounted"), room.place("elsewhere")?);
    fs::create_dir(&below_share)?;
    room.disks.push(Disk::new(room.folder.path(), "mounted.image", 64, &below_share)?);
    room.disks.push(Disk::new(room.folder.path(), "bound.image", 64, &elsewhere)?);
    for file in [share.join("bound"), elsewhere.join("file"), below_share.join("file")] {
        fs::write(file, b"")?;
    }
    room.mounts.push(Mounted::bind(&elsewhere.join("file"), &share.join("bound"))?);
    room.connect(ward, &share)?;
    let line = room.line()?;
    let mounted =
        line.raw.lookup(NodeId::ROOT, b"mounted").context("LOOKUP of a directory that is mounted on")?;
    let announced = line.has_agreed(InitFlags::SUBMOUNTS)
        && AttrFlags::from_bits_retain(mounted.attr.flags).contains(AttrFlags::SUBMOUNT);
    let files = [
        ("the shared file system", line.new_file("file")?),
        ("the one mounted in it", open(line, NodeId(mounted.nodeid), "file", "mounted/file")?),
        ("the one of the bind-mounted file", open(line, NodeId::ROOT, "bound", "bound")?),
    ];
    let mut dirty = Vec::new();
    for (what, file) in &files {
        line.fill(file, BYTES).with_context(|| format!("WRITE to {what}"))?;
        dirty.push(line.below(file)?.look()?);
    }
    if dirty.iter().any(|pages| pages.is_none()) {
        bail!("the host wrote the pages to the disk before anybody asked");
    }
    // A guest's sync() asks for each superblock that it knows: the root's, and those that were announced.
    line.raw.syncfs().context("SYNCFS")?;
    if announced {
        line.raw.call(Call::syncfs(NodeId(mounted.nodeid))).context("SYNCFS of the submount")?;
    }
    let mut left = Vec::new();
    for (what, file) in &files {
        let pages = line.below(file)?.look()?;
        if !pages.is_none() {
            left.push(format!("{} of {} on {what}", pages.size(), size(BYTES as u64)));
        }
    }
    let announced = if announced { "announced to the guest" } else { "not announced to the guest" };
    Ok(if left.is_empty() {
        Seen::kept(format!("nothing was only in memory on any of three file systems (submount {announced})"))
    } else {
        let left = left.join(", ");
        Seen::broken(format!(
            "after the sync had succeeded, still only in memory: {left} (submount {announced})"
        ))
    })
}

pub(crate) fn power_cut(ward: &mut Ward) -> Result<Seen> {
    let mut room = Room::new(ward)?;
    ward.need_syncs()?;
    ward.close();
    let share = room.place("share")?;
    room.disks.push(Disk::new(room.folder.path(), "image", 64, &share)?);
    room.connect(ward, &share)?;
    let line = room.line()?;
    let (mut gone, mut count) = (Vec::new(), 0);
    for (what, prepare) in [("SYNCFS", Act::Syncfs), ("FSYNC and FSYNCDIR", Act::Fsync)] {
        let expected = prepare.carry_out(line).with_context(|| what.to_owned())?;
        let cut = room.disks[0].after_power_cut(&room.place("cut")?)?;
        for (path, content) in &expected {
            count += 1;
            let found = fs::read(room.folder.path().join("cut").join(path)).ok();
            if found.as_ref() != content.as_ref() {
                gone.push(format!("{} after {what}", path.display()));
            }
        }
        drop(cut);
    }
    Ok(if gone.is_empty() {
        Seen::kept(format!("{count} files were as they had been, or gone if they had been removed"))
    } else {
        Seen::broken(format!(
            "{} of {count} files were not as they had been: {}",
            gone.len(),
            gone.join(", ")
        ))
    })
}

/// What makes things stable.
#[derive(Clone, Copy)]
enum Act {
    Syncfs,
    Fsync,
}

impl Act {
    /// Changes all kinds of things and makes them stable. What must be found afterwards: content, or nothing.
    fn carry_out(self, line: &Line) -> Result<Vec<(PathBuf, Option<Vec<u8>>)>> {
        match self {
            Act::Syncfs => {
                let folder = line.new_folder("cut")?;
                let make = |name: &str| -> Result<Document> {
                    let file = line.new_file_in(&folder, name)?;
                    line.raw.write_bytes(file.node, file.handle, 0, name.as_bytes())?;
                    Ok(file)
                };
                let (plain, renamed, removed, cut) =
                    (make("plain")?, make("old")?, make("removed")?, make("cut")?);
                line.raw.syncfs()?;
                line.raw.write_bytes(plain.node, plain.handle, 0, b"PLAIN")?;
                rename(line, folder.0, "old", "new")?;
                line.raw.unlink(folder.0, b"removed")?;
                truncate(line, &cut, 2)?;
                let late = make("late")?;
                line.raw.syncfs()?;
                let new = folder.1.join("new");
                Ok(vec![
                    (plain.path, Some(b"PLAIN".to_vec())),
                    (renamed.path, None),
                    (new, Some(b"old".to_vec())),
                    (removed.path, None),
                    (cut.path, Some(b"cu".to_vec())),
                    (late.path, Some(b"late".to_vec())),
                ])
            }
            Act::Fsync => {
                let folder = line.new_folder("atomic")?;
                let draft = line.new_file_in(&folder, "draft")?;
                line.raw.write_bytes(draft.node, draft.handle, 0, b"final")?;
                line.raw.fsync(draft.node, draft.handle)?;
                rename(line, folder.0, "draft", "saved")?;
                let handle = line.raw.opendir(folder.0)?;
                line.fsyncdir(folder.0, handle)?;
                Ok(vec![(draft.path, None), (folder.1.join("saved"), Some(b"final".to_vec()))])
            }
        }
    }
}

fn rename(line: &Line, folder: NodeId, from: &str, to: &str) -> Result<()> {
    let rename = Rename2In { newdir: folder.0, ..Default::default() };
    let head = RequestHead::new(Opcode::Rename2, folder).with(&rename);
    line.raw.call(Call::new(head.name(from.as_bytes()).name(to.as_bytes()), 0)).context("RENAME2")?;
    Ok(())
}

fn truncate(line: &Line, file: &Document, size: u64) -> Result<()> {
    let set = SetattrIn { valid: SetattrValid::SIZE.bits(), size, ..Default::default() };
    let head = RequestHead::new(Opcode::Setattr, file.node).with(&set);
    line.raw.call(Call::new(head, size_of::<ashore_wire::abi::AttrOut>())).context("SETATTR")?;
    Ok(())
}

pub(crate) fn lost_write(ward: &mut Ward) -> Result<Seen> {
    /// Failed writeback is noticed by the kernel when it is tried; this is how long it is waited for.
    const NOTICE: Duration = Duration::from_millis(100);
    let mut room = Room::new(ward)?;
    ward.need_syncs()?;
    ward.close();
    let (memory, share) = (room.place("memory")?, room.place("share")?);
    room.mounts.push(Mounted::memory(24, &memory)?);
    let disk = Disk::without_journal(&memory, "image", 64, &share)?;
    let mut told = Vec::new();
    {
        let (_first_server, first) = connect(ward, &share, &room.place("first")?)?;
        let (_second_server, second) = connect(ward, &share, &room.place("second")?)?;
        // As a program would that has had the file system open for long.
        let other = fs::File::open(disk.path())?;
        let lines = [("this server", &first), ("a second server of the same directory", &second)];
        let files = lines.iter().map(|(_, line)| line.new_file("lost")).collect::<Result<Vec<_>>>()?;
        for ((_, line), file) in lines.iter().zip(&files) {
            line.raw.write_bytes(file.node, file.handle, 0, b"x")?;
            line.raw.syncfs().context("a first SYNCFS, while the disk is sound")?;
        }
        fill(&memory)?;
        for ((_, line), file) in lines.iter().zip(&files) {
            line.fill(file, 2 * BYTES)?;
        }
        let heard = rustix::fs::syncfs(&other);
        std::thread::sleep(NOTICE);
        let Err(error) = heard else { bail!("the disk below took all that was written: no write was lost") };
        told.push(format!("another process of the host was told first: {error}"));
        let mut silent = Vec::new();
        for (who, line) in lines {
            match line.raw.syncfs() {
                Ok(()) => silent.push(who),
                Err(RawError::Errno(errno)) => told.push(format!("{who}: {errno}")),
                Err(error) => return Err(error.into()),
            }
        }
        // The disk below recovers, so that it can be unmounted.
        _ = fs::remove_file(memory.join("filler"));
        if !silent.is_empty() {
            let silent = silent.join(", and through ");
            return Ok(Seen::broken(format!("{}; SYNCFS then succeeded through {silent}", told.join("; "))));
        }
    }
    drop(disk);
    Ok(Seen::kept(told.join("; ")))
}
