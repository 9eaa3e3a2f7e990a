//! P3: a sync waits only for what is earlier.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use ashore_vhost_user::driver::RawError;

use crate::report::Seen;
use crate::ward::{Ward, on_each_queue};

/// How long a sync may take beside writers.
const PATIENCE: Duration = Duration::from_secs(6);
/// WRITEs in flight on each queue.
const DEPTH: usize = 4;
const WRITE_BYTES: usize = 16 << 10;
/// Writers go round in so many writes, so that little is dirty at any time.
const WRITES_IN_FILE: usize = 16;

pub(crate) fn endless_writers(ward: &mut Ward) -> Result<Seen> {
    let line = ward.syncing_line()?;
    let mut files = Vec::new();
    for queue in 0..line.queues {
        files.push(line.new_file(&format!("endless{queue}"))?);
    }
    let (stop, gave_up, writes) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (synced, waited, after_stop) = std::thread::scope(|scope| {
        let writers = scope.spawn(|| {
            on_each_queue(line, |queue, raw| -> Result<(), RawError> {
                let mut under_way = std::collections::VecDeque::new();
                for index in 0.. {
                    let offset = (index % WRITES_IN_FILE * WRITE_BYTES) as u64;
                    under_way.push_back(raw.send(line.write_call(&files[queue], offset, WRITE_BYTES))?);
                    if under_way.len() > DEPTH
                        && let Some(oldest) = under_way.pop_front()
                    {
                        raw.wait(oldest)?;
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                under_way.into_iter().try_for_each(|sent| raw.wait(sent).map(drop))
            })
        });
        std::thread::sleep(Duration::from_millis(100));
        writes.store(0, Ordering::Relaxed);
        let (answered, answer) = std::sync::mpsc::channel::<()>();
        let (stop, gave_up) = (&stop, &gave_up);
        let clock = scope.spawn(move || {
            let late = answer
                .recv_timeout(PATIENCE)
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout);
            gave_up.store(late, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
        });
        let begun = Instant::now();
        let synced = line.raw.syncfs();
        let waited = begun.elapsed();
        drop(answered);
        _ = clock.join();
        _ = writers.join();
        (synced, waited, waited.saturating_sub(PATIENCE))
    });
    let writes = writes.load(Ordering::Relaxed);
    Ok(match synced {
        Err(error) if !gave_up.load(Ordering::Relaxed) => return Err(error.into()),
        _ if gave_up.load(Ordering::Relaxed) => Seen::broken(format!(
            "SYNCFS was not answered within {} s beside {writes} writes; {:.1} s after these had been stopped it was",
            PATIENCE.as_secs(),
            after_stop.as_secs_f64()
        )),
        _ => Seen::kept(format!("SYNCFS took {} ms; {writes} writes went on meanwhile", waited.as_millis())),
    })
}
