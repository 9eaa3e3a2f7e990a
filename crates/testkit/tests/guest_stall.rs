//! Nobody else waits because of a sync: while one guest process syncs behind what a host process dirtied on the same
//! file system, another one works on.
//!
//! A test of its own program, so that no other guest takes its processors. What is compared is the slowest
//! open + fstat + close of a probe: with nothing else going on, and while a sync is under way. On a machine with other
//! work one slow round proves nothing, so the middle one of three attempts counts, and an idle guest is taken to be no
//! faster than a few milliseconds.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use ashore_testkit::guest::{Guest, LoopImage, Server, Share};

    const DIRTY_MIB: usize = 700;
    const ATTEMPTS: usize = 3;
    /// A probe on an idle guest takes this long once in a while, on a machine that has something else to do.
    const IDLE_FLOOR: Duration = Duration::from_millis(15);

    struct Attempt {
        idle: Duration,
        beside_sync: Duration,
        sync: Duration,
    }

    #[test]
    fn a_sync_behind_700_mib_of_a_host_process_does_not_hold_up_another_guest_process() {
        let disk = LoopImage::ext4(3072).unwrap();
        let server = Server::builder(disk.path()).start().unwrap();
        let guest = Guest::builder().share(Share::new(server.socket())).boot().unwrap();
        guest.run("echo > /mnt/share/probed && sync").unwrap().success().unwrap();

        let attempts: Vec<Attempt> =
            (0..ATTEMPTS).map(|number| attempt(&guest, disk.path(), number)).collect();
        for Attempt { idle, beside_sync, sync } in &attempts {
            eprintln!("slowest probe idle {idle:?}, beside a sync of {sync:?}: {beside_sync:?}");
        }
        let middle = |value: fn(&Attempt) -> Duration| {
            let mut values: Vec<Duration> = attempts.iter().map(value).collect();
            values.sort_unstable();
            values[ATTEMPTS / 2]
        };
        let bound = 10 * middle(|it| it.idle).max(IDLE_FLOOR);
        assert!(middle(|it| it.sync) > bound, "the syncs were too short to hold up anybody for {bound:?}");
        let stalled = middle(|it| it.beside_sync);
        assert!(stalled <= bound, "a probe took {stalled:?} beside a sync; 10 times idle is {bound:?}");
    }

    /// Each time another file of the host: one that is there already would be written back faster.
    fn attempt(guest: &Guest, shared: &Path, number: usize) -> Attempt {
        let idle = probe(guest, 3.0).wait();
        guest.run("agent write /mnt/share/of-the-guest 1 1").unwrap().success().unwrap();
        dirty(&shared.join(format!("of-the-host-{number}")));
        let beside = probe(guest, 5.0);
        // The probe's process must have come up before the sync begins.
        sleep(Duration::from_millis(300));
        let start = Instant::now();
        guest.run("agent sync").unwrap().success().unwrap();
        Attempt { idle, sync: start.elapsed(), beside_sync: beside.wait() }
    }

    fn dirty(path: &Path) {
        let mut file = File::create(path).unwrap();
        let piece = vec![0xA5; 1 << 20];
        for _ in 0..DIRTY_MIB {
            file.write_all(&piece).unwrap();
        }
    }

    struct Probe(ashore_testkit::guest::Running);

    fn probe(guest: &Guest, seconds: f64) -> Probe {
        Probe(guest.spawn(&format!("agent probe /mnt/share/probed {seconds}")).unwrap())
    }

    impl Probe {
        /// The slowest round.
        fn wait(self) -> Duration {
            let text = self.0.wait().unwrap().success().unwrap();
            let slowest = text.trim().rsplit(' ').next().unwrap();
            Duration::from_micros(slowest.parse().unwrap())
        }
    }
}
