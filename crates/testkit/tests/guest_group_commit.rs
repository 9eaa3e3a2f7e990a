//! Many syncs of a guest at once, behind a host process that never stops writing: at most two syncs of the host, and
//! nobody else waits.
//!
//! A test of its own program, so that no other guest takes its processors; the server runs in the test's process, where
//! its calls of syncfs(2) are counted.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread::{self, sleep};
    use std::time::{Duration, Instant};

    use ashore_passthrough::{HostFileSystems, Options, Passthrough};
    use ashore_server::{Limits, Session};
    use ashore_testkit::guest::{Guest, LoopImage, Share};
    use ashore_testkit::in_process::InProcess;

    const SYNCS: usize = 12;
    /// Each sync of the host takes at least this long, so that all of a group overlap, however slow the guest.
    const HOST_SYNC: Duration = Duration::from_secs(2);
    /// A probe on an idle guest takes this long once in a while, on a machine that has something else to do.
    const IDLE_FLOOR: Duration = Duration::from_millis(15);

    #[test]
    fn twelve_syncs_at_once_cost_two_syncs_of_the_host_and_hold_up_nobody_else() {
        let disk = LoopImage::ext4(1024).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let hosts = HostFileSystems::with_sync_call(move |_, file| {
            counted.fetch_add(1, Ordering::SeqCst);
            sleep(HOST_SYNC);
            rustix::fs::syncfs(file)
        });
        let passthrough = Passthrough::with_hosts(Options::new(disk.path()), hosts).unwrap();
        let server = InProcess::serve(Session::new(passthrough, Limits::default()), 1).unwrap();
        let guest = Guest::builder().share(Share::new(server.socket())).boot().unwrap();
        guest.run("echo > /mnt/share/probed").unwrap().success().unwrap();

        let idle = probe(&guest, 3.0);
        let ended = AtomicBool::new(false);
        let (took, beside) = thread::scope(|scope| {
            let writer = scope.spawn(|| write_on(&disk, &ended));
            let probing = scope.spawn(|| probe(&guest, 8.0));
            sleep(Duration::from_millis(500));
            let before = calls.load(Ordering::SeqCst);
            let start = Instant::now();
            let output = guest.run(&format!("agent syncfs-at-once /mnt/share/probed {SYNCS}")).unwrap();
            let took = start.elapsed();
            let syncs_of_the_host = calls.load(Ordering::SeqCst) - before;
            ended.store(true, Ordering::SeqCst);
            output.success().unwrap();
            assert!(
                (1..=2).contains(&syncs_of_the_host),
                "{SYNCS} syncs at once cost {syncs_of_the_host} syncs of the host"
            );
            assert!(writer.join().unwrap() > 0, "the host process wrote nothing");
            (took, probing.join().unwrap())
        });
        eprintln!("slowest probe idle {idle:?}, beside {SYNCS} syncs that took {took:?}: {beside:?}");
        assert!(
            took >= HOST_SYNC,
            "the syncs were over in {took:?}, before a sync of the host can have been"
        );
        let bound = 10 * idle.max(IDLE_FLOOR);
        assert!(beside <= bound, "a probe took {beside:?} beside the syncs; 10 times idle is {bound:?}");
    }

    /// A host process that dirties the same file system until the end; how many MiB it wrote.
    fn write_on(disk: &LoopImage, ended: &AtomicBool) -> u64 {
        let file = File::create(disk.path().join("of-the-host")).unwrap();
        let piece = vec![0xA5; 1 << 20];
        let mut written = 0;
        while !ended.load(Ordering::SeqCst) {
            file.write_all_at(&piece, (written % 256) << 20).unwrap();
            written += 1;
            sleep(Duration::from_millis(5));
        }
        written
    }

    /// The slowest open + fstat + close of so many seconds.
    fn probe(guest: &Guest, seconds: f64) -> Duration {
        let output = guest.run(&format!("agent probe /mnt/share/probed {seconds}")).unwrap();
        let text = output.success().unwrap();
        Duration::from_micros(text.trim().rsplit(' ').next().unwrap().parse().unwrap())
    }
}
