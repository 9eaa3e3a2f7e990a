//! System calls that busybox has no command for, as tools of one line each.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ashore_guest::{manifest, pattern};
use rustix::io::ReadWriteFlags;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const USAGE: &str = "\
agent sync                                   sync(2)
agent syncfs PATH                            syncfs(2) on the file system of PATH
agent fsync PATH                             fsync(2) of PATH
agent write PATH SEED COUNT [HOW]            COUNT pattern blocks from index 0; HOW: plain, fsync, dsync, mmap,
                                             or sync, mmap-sync: sync(2) while the file is open, or mapped
agent probe PATH SECONDS                     slowest and median microseconds of open + fstat + close, in a loop
agent manifest DIR                           one line for each name below DIR
agent halve DIR                              in each folder of DIR remove every second file and rename the others";

/// Runs one tool.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["sync"] => rustix::fs::sync(),
        ["syncfs", path] => rustix::fs::syncfs(open(path)?)?,
        ["fsync", path] => open(path)?.sync_all()?,
        ["write", path, seed, count] => write(path, seed.parse()?, count.parse()?, "plain")?,
        ["write", path, seed, count, how] => write(path, seed.parse()?, count.parse()?, how)?,
        ["probe", path, seconds] => probe(path, Duration::from_secs_f64(seconds.parse()?))?,
        ["halve", root] => halve(Path::new(root))?,
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
        _ => bail!("{how} is no way to write; there are plain, fsync, dsync, mmap, sync and mmap-sync"),
    }
    Ok(())
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
