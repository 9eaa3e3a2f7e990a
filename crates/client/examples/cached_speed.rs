//! Compares cached 4 KiB reads and writes of the client with pread(2) and pwrite(2) on the host's page cache: warm, one
//! thread, rounds of both in turn. The client's memory is the toy link's.
//!
//! `cargo run --release -p ashore-client --example cached_speed`

use std::fs;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ashore_client::toy::{Toy, ToyLink};
use ashore_client::{Client, Options};

const PAGE: usize = 4096;
const PAGES: u64 = 16 << 10;
const CALLS: u64 = 100_000;
const ROUNDS: usize = 15;

/// Nanoseconds of one call, over many at offsets that jump about.
fn time(mut call: impl FnMut(u64) -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    for n in 0..CALLS {
        call(n.wrapping_mul(7919) % PAGES * PAGE as u64)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / CALLS as f64)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> io::Result<()> {
    let link = ToyLink::new(Toy::default(), 2 * PAGES as u32);
    // Nothing is written back while it is measured: all pages may be dirty at once.
    let options = Options {
        dirty_percent: 90,
        background_percent: 90,
        writeback_age: Duration::from_secs(3600),
        ..Options::default()
    };
    let client = Client::new(link, options)?;
    let ours = client.create("speed")?;
    let path = std::env::temp_dir().join(format!("ashore-cached-speed-{}", std::process::id()));
    let theirs = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;

    let mut buffer = vec![7u8; PAGE];
    for page in 0..PAGES {
        ours.write_all_at(&buffer, page * PAGE as u64)?;
        theirs.write_all_at(&buffer, page * PAGE as u64)?;
    }
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        times[0].push(time(|offset| ours.read_exact_at(black_box(&mut buffer), offset))?);
        times[1].push(time(|offset| theirs.read_exact_at(black_box(&mut buffer), offset))?);
        times[2].push(time(|offset| ours.write_all_at(black_box(&buffer), offset))?);
        times[3].push(time(|offset| theirs.write_all_at(black_box(&buffer), offset))?);
    }
    let [read, pread, write, pwrite] = times.map(median);
    println!("read  {read:.0} ns, pread  {pread:.0} ns, ratio {:.2}", pread / read);
    println!("write {write:.0} ns, pwrite {pwrite:.0} ns, ratio {:.2}", pwrite / write);
    Ok(())
}
