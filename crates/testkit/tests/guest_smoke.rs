//! A guest comes up, sees the share, and says what its commands did.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs;
    use std::time::Duration;

    use ashore_testkit::guest::{Guest, Server, Share};

    #[test]
    fn files_go_both_ways_and_an_orderly_end_ends_the_server_well() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("from-host"), "to the guest\n").unwrap();
        let mut server = Server::builder(dir.path()).start().unwrap();
        let guest = Guest::builder().share(Share::new(server.socket())).boot().unwrap();

        assert_eq!(guest.run("cat /mnt/share/from-host").unwrap().success().unwrap(), "to the guest\n");
        guest.run("echo hello > /mnt/share/a && sync").unwrap().success().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "hello\n");

        guest.run("umount /mnt/share").unwrap().success().unwrap();
        guest.shutdown().unwrap();
        let status = server.wait(Duration::from_secs(20)).unwrap();
        assert!(status.success(), "{status}: {}", server.log());
    }

    #[test]
    fn several_shares_are_several_file_systems() {
        let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (
            Server::builder(first_dir.path()).start().unwrap(),
            Server::builder(second_dir.path()).start().unwrap(),
        );
        let guest = Guest::builder()
            .share(Share::new(first.socket()).tag("one"))
            .share(Share::new(second.socket()).tag("two"))
            .boot()
            .unwrap();
        guest.run("echo 1 > /mnt/one/a && echo 2 > /mnt/two/a").unwrap().success().unwrap();
        assert_eq!(fs::read_to_string(first_dir.path().join("a")).unwrap(), "1\n");
        assert_eq!(fs::read_to_string(second_dir.path().join("a")).unwrap(), "2\n");
    }

    /// The rest of the guest tests believe what this one checks.
    #[test]
    fn exit_codes_output_and_time_belong_to_their_command() {
        let guest = Guest::builder().boot().unwrap();
        let slow = guest.spawn("sleep 2; echo slow; exit 7").unwrap();
        let quick = guest.run("echo out; echo err >&2; exit 3").unwrap();
        assert_eq!((quick.code, quick.stdout.as_str(), quick.stderr.as_str()), (3, "out\n", "err\n"));
        let slow = slow.wait().unwrap();
        assert_eq!((slow.code, slow.stdout.as_str()), (7, "slow\n"));
        assert_eq!(guest.run("kill -9 $$").unwrap().code, 137);
        assert_eq!(guest.run("head -c 3000000 /dev/zero").unwrap().success().unwrap().len(), 3_000_000);
        assert!(guest.run("false").unwrap().success().is_err());
        let endless = guest.spawn("sleep 1000").unwrap();
        assert!(endless.wait_for(Duration::from_millis(200)).is_err());
    }
}
