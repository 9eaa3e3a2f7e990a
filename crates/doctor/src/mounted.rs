//! A directory as an application sees it, whatever is mounted there: virtio-fs in a guest, 9p, NFS, FUSE, a local disk.
//!
//! From here only this kernel's page cache can be looked at. What the other side of a network or of a virtual machine does
//! is inferred from what is known of the file system and of the kernel, and said to be.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::syncfs;

use crate::Observer;
use crate::below::Below;
use crate::kernel::Kernel;
use crate::place::{Firmness, Place, scratch_in};
use crate::report::{Finding, Report, Seen, size};

/// What is examined.
struct Directory {
    place: Place,
    kernel: Kernel,
    scratch: tempfile::TempDir,
}

/// Which check, what is done, and how.
type Carry = (&'static str, &'static str, fn(&Directory) -> Result<Seen>);

const CHECKS: &[Carry] = &[
    (
        "syncfs-known",
        "called syncfs(2), and looked at the type of file system and the version of the kernel",
        syncfs_known,
    ),
    ("sync-clean", "wrote 4 MiB, called syncfs(2), and looked at this kernel's page cache", sync_clean),
    ("fsync-file", "wrote 4 MiB, called fsync(2), and looked at this kernel's page cache", fsync_file),
    ("fsync-directory", "made a file in a new directory, and called fsync(2) of that", fsync_directory),
    (
        "dsync-write",
        "wrote 64 KiB to a file opened with O_DSYNC, and looked at this kernel's page cache",
        dsync_write,
    ),
    ("backing", "looked at the type of file system and its mount options", backing),
    ("endless-writers", "called syncfs(2) beside two threads that wrote without end", endless_writers),
    ("stall", "made much dirty, called syncfs(2), and measured stat(2) of other names meanwhile", stall),
    (
        "early-sync",
        "wrote 32 MiB and called syncfs(2), three times, and looked at this kernel's page cache and version",
        early_sync,
    ),
];

/// Examines what is mounted at a directory.
pub(crate) fn run(path: &Path, chosen: impl Fn(&str) -> bool, observer: &mut dyn Observer) -> Result<Report> {
    let scratch = scratch_in(path).context("the directory must be writable")?;
    let directory = Directory { place: Place::of(path)?, kernel: Kernel::running()?, scratch };
    let mut findings = Vec::new();
    for (id, did, carry) in CHECKS.iter().filter(|(id, ..)| chosen(id)) {
        let check = crate::catalog::find(id);
        observer.begins(check);
        let seen = carry(&directory).unwrap_or_else(|error| Seen::unknown(format!("{error:#}")));
        let finding = Finding { check, seen: Seen { did: Some(did), ..seen } };
        observer.ended(&finding);
        findings.push(finding);
    }
    let Directory { place, kernel, .. } = &directory;
    let subject = format!("{}, {} from {}, Linux {kernel}", path.display(), place.words(), place.source());
    Ok(Report { subject, findings })
}

/// Where a kernel ends at a server, and how it asks that to sync.
const REMOTE: &str = "what lies beyond this kernel cannot be looked at from here";

impl Directory {
    fn new_file(&self, name: &str, flags: i32) -> Result<File> {
        let path = self.scratch.path().join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(&path);
        file.with_context(|| format!("cannot make {}", path.display()))
    }

    fn below(&self, name: &str, file: &File) -> Result<Below> {
        Ok(Below::through(&self.scratch.path().join(name), file)?)
    }

    fn is(&self, kind: &str) -> bool {
        self.place.kind == kind || self.place.kind.starts_with(&format!("{kind}."))
    }

    /// As [`Seen::kept`], if nothing but this kernel stands between a program and the disk. Otherwise what was seen here says
    /// nothing of what is on the other side.
    fn kept_as_far_as_seen(&self, saw: String) -> Seen {
        match self.place.firmness() {
            Firmness::Firm => Seen::kept(saw),
            Firmness::Doubtful(why) => Seen::unknown(format!("{saw}; beyond this kernel: {why}")),
            Firmness::Weak(why) => Seen::unknown(format!("{saw}; but {why}")),
        }
    }
}

fn backing(directory: &Directory) -> Result<Seen> {
    let words = directory.place.words();
    Ok(match directory.place.firmness() {
        Firmness::Firm => Seen::kept(words),
        Firmness::Doubtful(why) => Seen::unknown(format!("{words}: {why}")),
        Firmness::Weak(why) => Seen::broken(format!("{words}: {why}")),
    })
}

fn syncfs_known(directory: &Directory) -> Result<Seen> {
    let kernel = &directory.kernel;
    let file = directory.new_file("syncfs", 0)?;
    if let Err(error) = syncfs(&file) {
        return Ok(Seen::kept(format!("syncfs(2) failed, and said so: {error}")));
    }
    Ok(match () {
        () if directory.is("virtiofs") && !kernel.sends_syncfs() => {
            Seen::broken(format!("Linux {kernel} sends no SYNCFS over virtio-fs; 5.14 and later do"))
                .inferred()
        }
        () if directory.is("virtiofs") => Seen::unknown(
            "this kernel sends SYNCFS, and takes ENOSYS for success; examine the server from the host",
        ),
        () if directory.is("fuse") => {
            Seen::broken("the kernel sends no SYNCFS to a plain FUSE file system; syncfs(2) succeeded")
                .inferred()
        }
        () if directory.is("9p") => {
            Seen::broken("9p has no message for sync(2); syncfs(2) succeeded").inferred()
        }
        () => directory.kept_as_far_as_seen("syncfs(2) succeeded".to_owned()),
    })
}

fn sync_clean(directory: &Directory) -> Result<Seen> {
    made_stable(directory, "sync", "syncfs(2)", |file| Ok(syncfs(file)?))
}

fn fsync_file(directory: &Directory) -> Result<Seen> {
    made_stable(directory, "fsync", "fsync(2)", File::sync_all)
}

fn made_stable(
    directory: &Directory,
    name: &str,
    call: &str,
    sync: impl Fn(&File) -> std::io::Result<()>,
) -> Result<Seen> {
    const BYTES: usize = 4 << 20;
    let file = directory.new_file(name, 0)?;
    file.write_all_at(&vec![0x5A; BYTES], 0)?;
    let below = directory.below(name, &file)?;
    let before = below.look().context("looking at the page cache (cachestat, Linux 6.5)")?;
    if let Err(error) = sync(&file) {
        return Ok(Seen::broken(format!("{call} failed: {error}")));
    }
    let after = below.look()?;
    if !after.is_none() {
        return Ok(Seen::broken(format!("{call} succeeded, and {} were still only in memory", after.size())));
    }
    if before.is_none() {
        return Ok(Seen::unknown(format!(
            "this kernel held nothing back: {} went out at once; {REMOTE}",
            size(BYTES as u64)
        )));
    }
    Ok(directory.kept_as_far_as_seen(format!("{} were only in memory before, nothing after", before.size())))
}

fn fsync_directory(directory: &Directory) -> Result<Seen> {
    let folder = directory.scratch.path().join("directory");
    fs::create_dir(&folder)?;
    File::create(folder.join("name"))?;
    Ok(match File::open(&folder)?.sync_all() {
        Ok(()) => directory.kept_as_far_as_seen("fsync(2) of the directory succeeded".into()).inferred(),
        Err(error) => Seen::broken(format!("fsync(2) of the directory failed: {error}")),
    })
}

fn dsync_write(directory: &Directory) -> Result<Seen> {
    let file = directory.new_file("dsync", libc::O_DSYNC)?;
    file.write_all_at(&[0x5A; 64 << 10], 0)?;
    let left = directory.below("dsync", &file)?.look()?;
    Ok(if left.is_none() {
        directory.kept_as_far_as_seen("nothing was only in memory when write(2) had returned".into())
    } else {
        Seen::broken(format!("{} were only in memory when write(2) had returned", left.size()))
    })
}

fn endless_writers(directory: &Directory) -> Result<Seen> {
    const PATIENCE: Duration = Duration::from_secs(6);
    let file = directory.new_file("endless", 0)?;
    let stop = AtomicBool::new(false);
    let (took, synced) = thread::scope(|scope| {
        for writer in 0..2_u64 {
            let (file, stop) = (&file, &stop);
            scope.spawn(move || {
                let begun = Instant::now();
                for index in 0.. {
                    let offset = (writer * 16 + index % 16) * 16_384;
                    let written = file.write_all_at(&[1; 16_384], offset);
                    if written.is_err() || stop.load(Ordering::Relaxed) || begun.elapsed() > PATIENCE {
                        return;
                    }
                }
            });
        }
        sleep(Duration::from_millis(50));
        let begun = Instant::now();
        let synced = syncfs(&file);
        stop.store(true, Ordering::Relaxed);
        (begun.elapsed(), synced)
    });
    synced.context("syncfs(2)")?;
    Ok(if took >= PATIENCE {
        Seen::broken(format!(
            "syncfs(2) took {:.1} s, and returned only when the writers had stopped",
            took.as_secs_f64()
        ))
    } else {
        Seen::kept(format!("syncfs(2) took {} ms beside two writers", took.as_millis()))
    })
}

fn stall(directory: &Directory) -> Result<Seen> {
    const DIRTY: [usize; 3] = [64 << 20, 256 << 20, 512 << 20];
    const LONG_ENOUGH: Duration = Duration::from_millis(80);
    let file = directory.new_file("stall", 0)?;
    let piece = vec![0x5A; 1 << 20];
    for bytes in DIRTY {
        for offset in (0..bytes).step_by(piece.len()) {
            file.write_all_at(&piece, offset as u64)?;
        }
        let (took, slowest) = while_syncing(directory, &file)?;
        if took < LONG_ENOUGH {
            continue;
        }
        let words = format!(
            "{} dirty, syncfs(2) took {} ms; the slowest look at another file took {:.1} ms",
            size(bytes as u64),
            took.as_millis(),
            slowest.as_secs_f64() * 1000.0
        );
        return Ok(if slowest > took / 2 { Seen::broken(words) } else { Seen::kept(words) });
    }
    Ok(Seen::unknown("syncs were over too soon to tell who waited for them"))
}

/// How long a sync took, and the slowest stat(2) of names that this kernel cannot know.
fn while_syncing(directory: &Directory, file: &File) -> Result<(Duration, Duration)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probe = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            for index in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let name = directory.scratch.path().join(format!("not-there-{index}"));
                let begun = Instant::now();
                _ = fs::symlink_metadata(name);
                slowest = slowest.max(begun.elapsed());
                sleep(Duration::from_micros(300));
            }
            slowest
        });
        let begun = Instant::now();
        let synced = syncfs(file);
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        let slowest = probe.join().expect("checks do not panic");
        synced.context("syncfs(2)")?;
        Ok((took, slowest))
    })
}

/// Linux took the waiting out of sync(2) of FUSE file systems. Where the cache holds written data, that can be seen.
fn early_sync(directory: &Directory) -> Result<Seen> {
    const BYTES: usize = 32 << 20;
    const TIMES: u32 = 3;
    let kernel = &directory.kernel;
    let is_fuse = directory.is("virtiofs") || directory.is("fuse") || directory.is("fuseblk");
    if !is_fuse {
        return Ok(Seen::kept("this file system's sync(2) waits for its data").inferred());
    }
    let data = vec![0x5A; BYTES];
    for round in 1..=TIMES {
        let file = directory.new_file("early", 0)?;
        file.write_all_at(&data, 0)?;
        let below = directory.below("early", &file)?;
        let before = below.look().context("looking at the page cache (cachestat, Linux 6.5)")?;
        if before.is_none() {
            return Ok(without_write_back(kernel));
        }
        syncfs(&file).context("syncfs(2)")?;
        let after = below.look()?;
        if !after.is_none() {
            return Ok(Seen::broken(format!(
                "Linux {kernel} returned from syncfs(2) while {} of {} had not been sent (try {round})",
                after.size(),
                before.size()
            )));
        }
    }
    let saw = format!("{TIMES} times all that was in the cache had been sent when syncfs(2) returned");
    Ok(if kernel.syncs_too_early() {
        Seen::unknown(format!(
            "{saw}, but Linux {kernel} does not wait for it: next time it may be otherwise"
        ))
    } else {
        Seen::kept(saw)
    })
}

/// Written data goes to the server at once. What a program wrote through a shared mapping waits in the cache even so.
fn without_write_back(kernel: &Kernel) -> Seen {
    if kernel.syncs_too_early() {
        Seen::unknown(format!(
            "what write(2) writes was sent at once; but Linux {kernel} does not wait in sync(2) for what was written through \
             shared mappings, and whether the server allows for that cannot be seen from here. Use msync(2) or fsync(2)"
        ))
    } else {
        Seen::kept(format!("Linux {kernel} waits in sync(2) until its data was sent")).inferred()
    }
}
