//! WRITEs on some queues, a SYNCFS on another, and nobody waits for anything: what is on the disk when the SYNCFS is
//! answered?
//!
//! The file is written in place, so its blocks stay where they are in the image of the host's file system. They are found
//! once, by their content, and then each round looks there and nowhere else. What stands in the image file has left the
//! page cache of the file system that was synced.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ashore_guest::pattern;
use ashore_vhost_user::driver::{
    Call, LINUX_FLAGS, LinkOptions, RawConnection, RawError, Sent, VhostUserLink,
};
use ashore_wire::link::Link;
use ashore_wire::{FileHandle, NodeId};
use parking_lot::Mutex;

/// WRITEs of a round, a block each.
pub const WRITES: usize = 64;
const WRITERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Rounds.
    pub rounds: usize,
    /// Of them, those in which the SYNCFS was answered with success though a block was not on the disk.
    pub short: usize,
    /// Blocks that were missing, in all rounds.
    pub missing: usize,
    /// WRITEs that were answered after the SYNCFS.
    pub answered_later: usize,
    /// Request queues that the server offered; with five the SYNCFS has one for itself.
    pub queues: usize,
    /// From the first WRITE of a round to the answer to its SYNCFS, on average.
    pub round_time: Duration,
}

/// Connects to the server at `socket`, which shares a file system whose image is `image`, and runs so many rounds.
///
/// # Errors
///
/// Those of the connection and of requests, and if the blocks do not stay in place.
pub fn run(socket: &Path, image: &Path, rounds: usize) -> io::Result<Outcome> {
    let options = LinkOptions { request_queues: WRITERS as u16 + 1, ..LinkOptions::default() };
    let link = Arc::new(VhostUserLink::connect(socket, options).map_err(io::Error::other)?);
    let raw = RawConnection::over(Arc::clone(&link) as Arc<dyn Link>).with_patience(PATIENCE);
    raw.init(LINUX_FLAGS).map_err(io::Error::other)?;
    let (entry, handle) = raw.create(NodeId::ROOT, b"overtaking").map_err(io::Error::other)?;
    let file = (NodeId(entry.nodeid), handle);
    let image = File::open(image)?;
    let places = find_places(&raw, file, &image)?;

    let rig = Rig {
        raw: &raw,
        link: &link,
        file,
        start: Barrier::new(WRITERS + 1),
        sent: Barrier::new(WRITERS + 1),
    };
    let mut outcome = Outcome { rounds, queues: link.request_queues(), ..Outcome::default() };
    thread::scope(|scope| {
        // Queues go with threads, so threads are started until each queue that is wanted has one.
        let wanted: Vec<usize> = (0..WRITERS).map(|writer| 1 + writer % outcome.queues).collect();
        let writers: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(writer, queue)| rig.on_queue(scope, *queue, move |rig| rig.write(writer, rounds)))
            .collect();
        let last = outcome.queues;
        let syncs = rig.on_queue(scope, last, |rig| rig.sync(rounds, &image, &places));
        let panicked = || io::Error::other("a thread panicked");
        let (short, missing, time) = syncs.join().ok().flatten().ok_or_else(panicked)??;
        (outcome.short, outcome.missing, outcome.round_time) = (short, missing, time / rounds as u32);
        for writer in writers {
            outcome.answered_later += writer.join().ok().flatten().ok_or_else(panicked)??;
        }
        Ok(outcome)
    })
}

struct Rig<'a> {
    raw: &'a RawConnection,
    link: &'a VhostUserLink,
    file: (NodeId, FileHandle),
    /// A round begins.
    start: Barrier,
    /// All WRITEs have been made available.
    sent: Barrier,
}

impl Rig<'_> {
    /// Runs `work` on a thread whose requests take this queue.
    fn on_queue<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        queue: usize,
        work: impl FnOnce(&Self) -> T + Send + 'scope,
    ) -> thread::ScopedJoinHandle<'scope, Option<T>> {
        let work = Arc::new(Mutex::new(Some(work)));
        loop {
            let (tell, fits) = mpsc::channel();
            let work = Arc::clone(&work);
            let candidate = scope.spawn(move || {
                let work = if self.link.queue_of_this_thread() == queue { work.lock().take() } else { None };
                let _ = tell.send(work.is_some());
                work.map(|work| work(self))
            });
            if fits.recv() == Ok(true) {
                return candidate;
            }
        }
    }

    /// Returns how many WRITEs were answered after the SYNCFS of their round.
    fn write(&self, writer: usize, rounds: usize) -> io::Result<usize> {
        let (mut later, mut failed) = (0, None);
        for round in 0..rounds {
            self.start.wait();
            let sent: Vec<Result<Sent, RawError>> = (0..WRITES / WRITERS)
                .map(|number| {
                    let index = (number * WRITERS + writer) as u64;
                    let block = pattern::block(seed(round), index);
                    let call =
                        Call::write_bytes(self.file.0, self.file.1, index * block.len() as u64, &block);
                    self.raw.send(call)
                })
                .collect();
            self.sent.wait();
            // The SYNCFS has been answered, and the image read.
            self.sent.wait();
            later += sent.iter().flatten().filter(|one| !self.raw.is_done(one)).count();
            for one in sent {
                // Nobody is left waiting at a barrier, whatever goes wrong.
                failed = one.and_then(|one| self.raw.wait(one)).err().or(failed);
            }
        }
        failed.map_or(Ok(later), |error| Err(io::Error::other(error)))
    }

    /// Returns short rounds, missing blocks, and the time of all rounds.
    fn sync(&self, rounds: usize, image: &File, places: &[u64]) -> io::Result<(usize, usize, Duration)> {
        let (mut short, mut missing, mut time) = (0, 0, Duration::ZERO);
        let mut failed = None;
        for round in 0..rounds {
            self.start.wait();
            let begun = Instant::now();
            self.sent.wait();
            let synced = self.raw.call(Call::syncfs(NodeId::ROOT));
            time += begun.elapsed();
            let absent = count_absent(image, places, round);
            self.sent.wait();
            match (synced, absent) {
                (Ok(_), Ok(absent)) => {
                    missing += absent;
                    short += usize::from(absent > 0);
                }
                (Err(error), _) => failed = Some(io::Error::other(error)),
                (_, Err(error)) => failed = Some(error),
            }
        }
        failed.map_or(Ok((short, missing, time)), Err)
    }
}

fn seed(round: usize) -> u64 {
    0x0E27_A4E0_0000_0000 | (round as u64 + 1)
}

fn count_absent(image: &File, places: &[u64], round: usize) -> io::Result<usize> {
    let mut found = [0; pattern::BLOCK_SIZE];
    let mut absent = 0;
    for (index, place) in places.iter().enumerate() {
        image.read_exact_at(&mut found, *place)?;
        absent += usize::from(found != pattern::block(seed(round), index as u64));
    }
    Ok(absent)
}

/// Where in the image each block of the file is.
fn find_places(raw: &RawConnection, file: (NodeId, FileHandle), image: &File) -> io::Result<Vec<u64>> {
    const FIRST: u64 = 0x0E27_A4E0_FFFF_FFFF;
    for index in 0..WRITES as u64 {
        let block = pattern::block(FIRST, index);
        raw.write_bytes(file.0, file.1, index * block.len() as u64, &block).map_err(io::Error::other)?;
    }
    raw.syncfs().map_err(io::Error::other)?;
    let found: HashMap<u64, u64> = pattern::places(image, FIRST)?.into_iter().collect();
    let place = |index| {
        found.get(&index).copied().ok_or_else(|| {
            io::Error::other(format!("block {index} is not in the image after a sync that waited for it"))
        })
    };
    (0..WRITES as u64).map(place).collect()
}
