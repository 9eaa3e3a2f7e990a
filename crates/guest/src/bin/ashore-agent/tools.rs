//! System calls that busybox has no command for, as tools of one line each.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ashore_guest::workload::{self, HostDirectory, MarkerDisk, Plan, Progress, SyncCall};
use ashore_guest::{manifest, pattern};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const USAGE: &str = "\
agent sync                                   sync(2)
agent syncfs PATH                            syncfs(2) on the file system of PATH
agent syncfs-at-once PATH COUNT              COUNT threads, each with a descriptor of its own, call syncfs(2) at once
agent fsync PATH                             fsync(2) of PATH
agent write PATH SEED COUNT [HOW]            COUNT pattern blocks from index 0; HOW: plain, fsync, dsync, mmap,
                                             or sync, mmap-sync: sync(2) while the file is open, or mapped;
                                             rewrite-sync, rewrite-syncfs, rewrite-mmap-sync: all of it is being
                                             written back when it is written again, with SEED + 1, and synced
agent write-many DIR SEED FILES COUNT        FILES files of COUNT pattern blocks, numbered through; all are open
                                             when sync(2) is called
agent probe PATH SECONDS                     slowest and median microseconds of open + fstat + close, in a loop
agent manifest DIR                           one line for each name below DIR
agent work DIR SEED THREADS STEPS DISK HOW   a workload of that seed; its marks go to DISK. HOW: syncfs, sync, or
                                             none, which syncs nothing and marks all the same
agent halve DIR                              in each folder of DIR remove every second file and rename the others";

/// Runs one tool.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["sync"] => rustix::fs::sync(),
        ["syncfs", path] => rustix::fs::syncfs(open(path)?)?,
        ["syncfs-at-once", path, count] => syncfs_at_once(path, count.parse()?)?,
        ["fsync", path] => open(path)?.sync_all()?,
        ["write", path, seed, count] => write(path, seed.parse()?, count.parse()?, "plain")?,
        ["write", path, seed, count, how] => write(path, seed.parse()?, count.parse()?, how)?,
        ["write-many", folder, seed, files, count] => {
            write_many(Path::new(folder), seed.parse()?, files.parse()?, count.parse()?)?;
        }
        ["probe", path, seconds] => probe(path, Duration::from_secs_f64(seconds.parse()?))?,
        ["halve", root] => halve(Path::new(root))?,
        ["work", root, seed, threads, steps, disk, how] => {
            let plan = Plan {
                seed: seed.parse()?,
                threads: threads.parse()?,
                operations: steps.parse()?,
                clients: 1,
                floors_read_late: false,
            };
            work(root, &plan, disk, SyncCall::from_name(how)?)?;
        }
        ["manifest", root] => print(&manifest::of_tree(root)?)?,
        _ => bail!("unknown or incomplete; the tools are:\n{USAGE}"),
    }
    Ok(())
}

fn open(path: &str) -> Result<File> {
    File::open(path).with_context(|| format!("opening {path}"))
}

fn print(text: &str) -> Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn write(path: &str, seed: u64, count: u64, how: &str) -> Result<()> {
    let bytes: Vec<u8> = (0..count).flat_map(|index| pattern::block(seed, index)).collect();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {path}"))?;
    match how {
        "plain" => file.write_all_at(&bytes, 0)?,
        "fsync" => {
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
        }
        "dsync" => write_dsync(&file, &bytes)?,
        "sync" => {
            file.write_all_at(&bytes, 0)?;
            rustix::fs::sync();
        }
        "mmap" => write_mapped(file, &bytes, || {})?,
        "mmap-sync" => write_mapped(file, &bytes, rustix::fs::sync)?,
        "rewrite-sync" => rewrite(&file, &bytes, seed, || {
            rustix::fs::sync();
            Ok(())
        })?,
        "rewrite-syncfs" => rewrite(&file, &bytes, seed, || Ok(rustix::fs::syncfs(&file)?))?,
        "rewrite-mmap-sync" => rewrite_mapped(file, &bytes, seed)?,
        _ => bail!("{how} is no way to write; called without arguments, the agent lists them"),
    }
    Ok(())
}

/// Writes, has the kernel send it, writes it again while it is under way, and syncs.
fn rewrite(file: &File, bytes: &[u8], seed: u64, sync: impl FnOnce() -> Result<()>) -> Result<()> {
    file.write_all_at(bytes, 0)?;
    start_writeback(file)?;
    file.write_all_at(&again(bytes, seed), 0)?;
    sync()
}

/// The same through a shared mapping.
fn rewrite_mapped(file: File, bytes: &[u8], seed: u64) -> Result<()> {
    let same_file = file.try_clone()?;
    file.set_len(bytes.len() as u64)?;
    let region: MmapRegion = MmapRegion::from_file(FileOffset::new(file, 0), bytes.len())?;
    region.as_volatile_slice().write_slice(bytes, 0)?;
    start_writeback(&same_file)?;
    region.as_volatile_slice().write_slice(&again(bytes, seed), 0)?;
    rustix::fs::sync();
    Ok(())
}

/// As many blocks of the next pattern.
fn again(bytes: &[u8], seed: u64) -> Vec<u8> {
    (0..(bytes.len() / pattern::BLOCK_SIZE) as u64)
        .flat_map(|index| pattern::block(seed + 1, index))
        .collect()
}

/// The pages are on their way when this returns, and not yet there if the server takes its time.
fn start_writeback(file: &File) -> Result<()> {
    // POSIX_FADV_DONTNEED starts write-back of dirty pages, and does not wait for it.
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn write_many(folder: &Path, seed: u64, files: u64, count: u64) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut open = Vec::new();
    for number in 0..files {
        let file = File::create_new(folder.join(number.to_string()))?;
        let first = number * count;
        let bytes: Vec<u8> = (first..first + count).flat_map(|index| pattern::block(seed, index)).collect();
        file.write_all_at(&bytes, 0)?;
        open.push(file);
    }
    rustix::fs::sync();
    Ok(())
}

fn syncfs_at_once(path: &str, count: usize) -> Result<()> {
    let files = (0..count).map(|_| open(path)).collect::<Result<Vec<_>>>()?;
    let start = Barrier::new(count);
    thread::scope(|scope| {
        let calls = files.iter().map(|file| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                rustix::fs::syncfs(file)
            })
        });
        let calls: Vec<_> = calls.collect();
        for call in calls {
            call.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

/// Each write asks for itself to be stable; the descriptor knows nothing of it.
fn write_dsync(file: &File, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = [IoSlice::new(&bytes[done..])];
        done += rustix::io::pwritev2(file, &rest, done as u64, ReadWriteFlags::DSYNC)?;
    }
    Ok(())
}

/// Stores into a shared mapping and leaves its pages dirty. Linux sends them when the mapping goes; `then` is called
/// before that.
fn write_mapped(file: File, bytes: &[u8], then: impl FnOnce()) -> Result<()> {
    file.set_len(bytes.len() as u64)?;
    let region: MmapRegion = MmapRegion::from_file(FileOffset::new(file, 0), bytes.len())?;
    region.as_volatile_slice().write_slice(bytes, 0)?;
    then();
    Ok(())
}

/// A shell would start two thousand processes for this, which takes minutes under emulation.
fn halve(root: &Path) -> Result<()> {
    for folder in sorted(root)?.iter().filter(|path| path.is_dir() && !path.ends_with(".git")) {
        for (number, file) in sorted(folder)?.iter().enumerate() {
            let name = file.file_name().and_then(|name| name.to_str()).context("a name that is not UTF-8")?;
            if number % 2 == 0 {
                fs::remove_file(file)?;
            } else {
                fs::rename(file, folder.join(format!("moved-{name}")))?;
            }
        }
    }
    Ok(())
}

/// Prints how many steps each thread has done.
fn work(root: &str, plan: &Plan, disk: &str, sync: SyncCall) -> Result<()> {
    let marks = MarkerDisk::open(disk).with_context(|| format!("opening {disk}"))?;
    let target = HostDirectory::new(root, sync);
    let outcome =
        workload::run(plan, 0..plan.threads, &target, &Progress::new(plan), &|mark| marks.write(&mark));
    if !outcome.errors.is_empty() {
        bail!("{}", outcome.errors.join("; "));
    }
    let done: Vec<String> = outcome.done.iter().map(u32::to_string).collect();
    print(&format!("done {}\n", done.join(" ")))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn probe(path: &str, duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    let mut times = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        File::open(path)?.metadata()?;
        times.push(start.elapsed().as_micros());
    }
    times.sort_unstable();
    let slowest = times.last().context("the probe had no time for a single round")?;
    print(&format!("count {} median_us {} slowest_us {slowest}\n", times.len(), times[times.len() / 2]))
}
