//! Locks as Linux guests take them: by flock(1), on a share that two servers have, and on the host.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs::File;
    use std::time::Duration;

    use ashore_testkit::guest::{Guest, Server, Share};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn locks_of_two_mounts_and_of_the_host_stand_in_each_others_way_and_end_with_the_guest() {
        let shared = tempfile::tempdir().unwrap();
        let on_host = File::create(shared.path().join("f")).unwrap();
        let server = || Server::builder(shared.path()).arg("--flock").arg("--posix-lock").start().unwrap();
        let (first, second) = (server(), server());
        let guest = Guest::builder()
            .share(Share::new(first.socket()).tag("one"))
            .share(Share::new(second.socket()).tag("two"))
            .program("flock")
            .boot()
            .unwrap();
        let run = |command: &str| guest.run(command).unwrap().code;

        let holder =
            guest.spawn("flock /mnt/one/f sh -c 'while ! test -e /tmp/end; do sleep 0.1; done'").unwrap();
        while run("flock --nonblock /mnt/two/f true") == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(on_host.try_lock().is_err(), "the host sees it");
        let waiting = guest.spawn("flock /mnt/two/f echo got it").unwrap();
        assert_eq!(run("sleep 1; cat /mnt/two/f"), 0, "others are served meanwhile");
        assert_eq!(run("flock --nonblock /mnt/two/f true"), 1);
        assert_eq!(run("touch /tmp/end"), 0);
        holder.wait_for(PATIENCE).unwrap().success().unwrap();
        assert_eq!(waiting.wait_for(PATIENCE).unwrap().success().unwrap(), "got it\n");

        on_host.try_lock().unwrap();
        assert_eq!(run("flock --nonblock /mnt/one/f true"), 1, "the guest sees the host's");
        on_host.unlock().unwrap();

        let _held = guest.spawn("flock /mnt/one/f sleep 1000").unwrap();
        while run("flock --nonblock /mnt/two/f true") == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        // The virtual machine is killed: no close, no unmount.
        drop(guest);
        let begun = std::time::Instant::now();
        while on_host.try_lock().is_err() {
            assert!(begun.elapsed() < PATIENCE, "the lock of a guest that is gone is still held");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
