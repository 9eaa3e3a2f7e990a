//! P1: when a sync succeeds, every earlier change is stable.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use ashore_vhost_user::driver::{RawError, Sent};
use ashore_wire::Errno;
use ashore_wire::flags::{OpenReplyFlags, WriteFlags};

use crate::below::{Below, Unsafe, look};
use crate::line::{DATA_SYNC, Document, Line, READ_WRITE};
use crate::place::Firmness;
use crate::report::{Seen, Verdict, size};
use crate::ward::{Ward, on_each_queue};

/// How often to try again if the host has written dirty pages by itself before the look.
const TRIES: usize = 3;
const HOST_WAS_FASTER: &str = "the host wrote the pages to the disk before anybody asked, in each of 3 tries";

pub(crate) fn syncfs_known(ward: &mut Ward) -> Result<Seen> {
    let line = ward.line()?;
    let synced = line.raw.syncfs();
    ward.syncfs_is_unknown = synced == Err(RawError::Errno(Errno::ENOSYS));
    Ok(match synced {
        Ok(()) => Seen::kept("the answer was success"),
        Err(RawError::Errno(Errno::ENOSYS)) => {
            Seen::broken("the answer was ENOSYS: function not implemented")
        }
        Err(error) => Seen::kept(format!("the answer was an error, though not ENOSYS: {error}")),
    })
}

pub(crate) fn backing(ward: &mut Ward) -> Result<Seen> {
    let place = ward.stands_on()?;
    Ok(match place.firmness() {
        Firmness::Firm => Seen::kept(format!("{} from {}", place.words(), place.source())),
        Firmness::Doubtful(why) => Seen::unknown(format!("{}: {why}", place.words())),
        Firmness::Weak(why) => Seen::broken(format!("{}: {why}", place.words())),
    })
}

pub(crate) fn sync_clean(ward: &mut Ward) -> Result<Seen> {
    let line = ward.syncing_line()?;
    let mut files: Vec<Document> = Vec::new();
    for folder in 0..4 {
        let folder = line.new_folder(&format!("clean{folder}"))?;
        for file in 0..4 {
            files.push(line.new_file_in(&folder, &format!("file{file}"))?);
        }
    }
    let below = line.all_below(&files)?;
    let seen = made_stable(
        || files.iter().try_for_each(|file| line.fill(file, 256 << 10)),
        || look(&below),
        "SYNCFS",
        || line.raw.syncfs(),
    )?;
    ward.sync_is_hollow = seen.verdict == Verdict::Broken;
    Ok(seen)
}

pub(crate) fn fsync_file(ward: &mut Ward) -> Result<Seen> {
    let line = ward.line()?;
    let file = line.new_file("fsync")?;
    let below = line.below(&file)?;
    made_stable(
        || line.fill(&file, 1 << 20),
        || below.look(),
        "FSYNC",
        || line.raw.fsync(file.node, file.handle),
    )
}

/// Writes, looks, syncs, looks.
fn made_stable(
    write: impl Fn() -> Result<(), RawError>,
    look: impl Fn() -> std::io::Result<Unsafe>,
    name: &str,
    sync: impl Fn() -> Result<(), RawError>,
) -> Result<Seen> {
    for _ in 0..TRIES {
        write().context("WRITE")?;
        let before = look()?;
        match sync() {
            Ok(()) => {}
            Err(RawError::Errno(Errno::ENOSYS)) => {
                return Ok(Seen::broken(format!(
                    "{name} was answered ENOSYS, which a Linux guest takes for success"
                )));
            }
            Err(RawError::Errno(errno)) => return Ok(Seen::broken(format!("{name} failed: {errno}"))),
            Err(error) => return Err(error.into()),
        }
        let after = look()?;
        if !after.is_none() {
            return Ok(Seen::broken(format!(
                "{name} succeeded, and {} were still only in the host's memory ({} before)",
                after.size(),
                before.size()
            )));
        }
        if !before.is_none() {
            return Ok(Seen::kept(format!("{} were only in memory before, nothing after", before.size())));
        }
    }
    Ok(Seen::unknown(HOST_WAS_FASTER))
}

pub(crate) fn sync_queues(ward: &mut Ward) -> Result<Seen> {
    const ROUNDS: usize = 4;
    let line = ward.syncing_line()?;
    let mut files = Vec::new();
    for queue in 0..line.queues {
        for round in 0..ROUNDS {
            files.push(line.new_file(&format!("queue{queue}-{round}"))?);
        }
    }
    let mut written = 0;
    for round in 0..ROUNDS {
        let mine: Vec<&Document> = files.iter().skip(round).step_by(ROUNDS).collect();
        let (bytes, late) = overtaken(line, &mine)?;
        written += bytes;
        if late > 0 {
            return Ok(Seen::broken(format!(
                "when SYNCFS succeeded, {} of {} that had been sent before it were not stable",
                size(late),
                size(bytes)
            )));
        }
    }
    let queues = line.queues;
    Ok(Seen::kept(format!(
        "{} sent into {queues} queues before {ROUNDS} SYNCFS, all stable after it",
        size(written)
    )))
}

/// Puts WRITEs into each queue and then a SYNCFS into the first one; returns the bytes written, and how many of them
/// were not stable when it had succeeded.
///
/// The first queue gets only one, if there are others, so that its SYNCFS has every chance to overtake.
fn overtaken(line: &Line, files: &[&Document]) -> Result<(u64, u64)> {
    /// In all of the other queues: so many that they are under way for longer than a thread takes to wake up.
    const OTHERS: usize = 48;
    let step = line.write_size();
    let writes =
        |queue| if queue == 0 && line.queues > 1 { 1 } else { OTHERS.div_ceil(line.queues.max(2) - 1) };
    let below = files.iter().map(|file| line.below(file)).collect::<Result<Vec<_>>>()?;
    let expected = (0..line.queues).map(|queue| (writes(queue) * step) as u64).sum::<u64>();
    let not_sent = AtomicUsize::new(line.queues);
    let looked = on_each_queue(line, |queue, raw| -> Result<Option<u64>> {
        let send = |index| raw.send(line.write_call(files[queue], (index * step) as u64, step));
        let sent: Vec<Result<Sent, RawError>> = (0..writes(queue)).map(send).collect();
        not_sent.fetch_sub(1, Ordering::SeqCst);
        // To sleep until all have sent would give the writes time.
        while queue == 0 && not_sent.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        let missing = (queue == 0).then(|| -> Result<u64> {
            raw.syncfs()?;
            let stable = |file: &Below| Ok(file.length()?.saturating_sub(file.look()?.pages * 4096));
            Ok(expected.saturating_sub(below.iter().map(stable).sum::<Result<u64>>()?))
        });
        for sent in sent {
            raw.wait(sent?)?;
        }
        missing.transpose()
    });
    let missing = looked.into_iter().collect::<Result<Vec<_>>>()?;
    Ok((expected, missing.into_iter().flatten().sum()))
}

pub(crate) fn fsync_directory(ward: &mut Ward) -> Result<Seen> {
    let line = ward.line()?;
    let folder = line.new_folder("directory")?;
    line.new_file_in(&folder, "name")?;
    let handle = match line.raw.opendir(folder.0) {
        Ok(handle) => handle,
        // The guest goes on without opening directories, and sends handle 0.
        Err(RawError::Errno(Errno::ENOSYS)) => ashore_wire::FileHandle(0),
        Err(error) => return Ok(Seen::broken(format!("OPENDIR failed: {error}"))),
    };
    let synced = line.fsyncdir(folder.0, handle);
    _ = line.raw.releasedir(folder.0, handle);
    Ok(match synced {
        Ok(()) => Seen::kept("the answer was success; names cannot be looked at from here").inferred(),
        Err(RawError::Errno(Errno::ENOSYS)) => {
            Seen::broken("the answer was ENOSYS, which a Linux guest takes for success")
        }
        Err(RawError::Errno(errno)) => Seen::broken(format!("the answer was {errno}")),
        Err(error) => return Err(error.into()),
    })
}

pub(crate) fn dsync_write(ward: &mut Ward) -> Result<Seen> {
    const BYTES: usize = 64 << 10;
    let line = ward.line()?;
    let mut left_to_guest = false;
    for (name, open_flags) in [("plain", READ_WRITE), ("opened", READ_WRITE | DATA_SYNC)] {
        let file = line.new_file(&format!("dsync-{name}"))?;
        let below = line.below(&file)?;
        let (opened, flags) = line.open(&file, open_flags)?;
        let stable = || -> Result<bool> {
            line.raw.call(line.flagged_write(&opened, BYTES, READ_WRITE | DATA_SYNC, WriteFlags::empty()))?;
            Ok(below.look()?.is_none())
        };
        let stable = stable()? || stable()?;
        line.raw.release(opened.node, opened.handle)?;
        match (stable, flags.contains(OpenReplyFlags::DIRECT_IO)) {
            (true, _) => {}
            (false, false) => left_to_guest = true,
            (false, true) => {
                let how =
                    if open_flags == READ_WRITE { "a plain handle" } else { "a handle opened with O_DSYNC" };
                return Ok(Seen::broken(format!(
                    "through {how}, 64 KiB were only in the host's memory when the WRITE had returned, and the \
                     server has the guest bypass its cache (FOPEN_DIRECT_IO)"
                )));
            }
        }
    }
    Ok(if left_to_guest {
        Seen::kept("the server does nothing; a Linux guest sends an FSYNC of its own in this cache mode")
            .inferred()
    } else {
        Seen::kept("nothing was only in memory when the WRITE had returned")
    })
}

pub(crate) fn client_cache(ward: &mut Ward) -> Result<Seen> {
    const FILES: u8 = 4;
    const BYTES: usize = 1 << 20;
    ward.need_syncs()?;
    let (client, _server, directory) = ward.client()?;
    let folder = format!(".ashore-doctor-client-{}", std::process::id());
    client.create_dir(&folder)?;
    let name = |file: u8| format!("{folder}/file{file}");
    let files = (0..FILES).map(|file| client.create(name(file))).collect::<std::io::Result<Vec<_>>>()?;
    let mut expected = Vec::new();
    for (number, file) in (0..FILES).zip(&files) {
        let mut content = vec![number + 1; BYTES];
        file.write_all_at(&content, 0)?;
        client.start_writeback();
        // Pages that are on their way at this moment.
        for start in (0..BYTES).step_by(64 << 10) {
            content[start..start + 100].fill(0xEE);
            file.write_all_at(&content[start..start + 100], start as u64)?;
        }
        expected.push(content);
    }
    let (synced, cache) = (client.sync(), client.cache_mode());
    let mut wrong = Vec::new();
    for (number, content) in (0..FILES).zip(&expected) {
        let path = directory.join(name(number));
        let below = Below::open(&path)?;
        let unsafe_now = below.look()?;
        if std::fs::read(below.path())? != *content {
            wrong.push(format!("{} differs from what was written", name(number)));
        } else if !unsafe_now.is_none() {
            wrong.push(format!("{} of {} were only in the host's memory", unsafe_now.size(), name(number)));
        }
    }
    for number in 0..FILES {
        client.remove_file(name(number))?;
    }
    client.remove_dir(&folder)?;
    Ok(match (synced, wrong.first()) {
        (Err(error), _) => Seen::broken(format!("sync() failed: {error}")),
        (Ok(()), Some(wrong)) => Seen::broken(format!("sync() succeeded, and {wrong}")),
        (Ok(()), None) => {
            Seen::kept(format!("4.0 MiB, all there and nothing of it only in memory ({cache:?})"))
        }
    })
}
