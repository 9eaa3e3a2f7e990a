//! On disk means on disk: what a guest's sync promised is in the image file of the host's file system at the moment the
//! call returns.
//!
//! The share stands on a loop image. The guest writes blocks that can be recognised, and they are counted in the image
//! file, which lies behind the page cache of the file system under test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs::File;
    use std::path::Path;

    use ashore_testkit::guest::{BindMount, Guest, LoopImage, Server, Share, SmallDisk};

    /// 4 MiB.
    const BLOCKS: usize = 1024;
    const SEED: u64 = 0x5EED_0001;
    const OTHER_SEED: u64 = 0x5EED_0002;

    struct Rig {
        guest: Guest,
        server: Server,
    }

    impl Rig {
        fn new(shared: &Path) -> Self {
            Self::with(Server::builder(shared).start().unwrap())
        }

        fn with(server: Server) -> Self {
            let guest = Guest::builder().cpus(1).share(Share::new(server.socket())).boot().unwrap();
            Self { guest, server }
        }

        fn run(&self, command: &str) {
            self.guest.run(command).unwrap().success().unwrap();
        }
    }

    fn write_pattern(how: &str) -> String {
        format!("agent write /mnt/share/data {SEED} {BLOCKS} {how}")
    }

    fn is_complete_after(disk: &LoopImage, commands: &[&str]) {
        let rig = Rig::new(disk.path());
        for command in commands {
            rig.run(command);
        }
        assert_eq!(disk.count_blocks(SEED).unwrap(), BLOCKS, "blocks in the image after {commands:?}");
    }

    /// Without this the other tests would prove nothing: the host might write everything at once anyway.
    #[test]
    fn without_a_sync_most_blocks_are_not_there() {
        let disk = LoopImage::ext4(256).unwrap();
        let rig = Rig::new(disk.path());
        rig.run(&write_pattern("plain"));
        let found = disk.count_blocks(SEED).unwrap();
        assert!(found < BLOCKS / 2, "{found} of {BLOCKS} blocks were on the disk without a sync");
    }

    #[test]
    fn after_sync_every_block_is_on_ext4() {
        is_complete_after(&LoopImage::ext4(256).unwrap(), &[&write_pattern("plain"), "agent sync"]);
    }

    #[test]
    fn after_sync_every_block_is_on_xfs() {
        is_complete_after(&LoopImage::xfs(320).unwrap(), &[&write_pattern("plain"), "agent sync"]);
    }

    #[test]
    fn after_sync_every_block_is_on_btrfs() {
        is_complete_after(&LoopImage::btrfs(256).unwrap(), &[&write_pattern("plain"), "agent sync"]);
    }

    #[test]
    fn after_sync_every_block_that_was_written_by_a_mapping_is_there() {
        is_complete_after(&LoopImage::ext4(256).unwrap(), &[&write_pattern("mmap"), "agent sync"]);
    }

    #[test]
    fn after_syncfs_every_block_is_there() {
        is_complete_after(
            &LoopImage::ext4(256).unwrap(),
            &[&write_pattern("plain"), "agent syncfs /mnt/share/data"],
        );
    }

    #[test]
    fn after_fsync_every_block_of_the_file_is_there() {
        is_complete_after(&LoopImage::ext4(256).unwrap(), &[&write_pattern("fsync")]);
    }

    #[test]
    fn a_write_that_asks_to_be_stable_is_stable_when_it_returns() {
        is_complete_after(&LoopImage::ext4(256).unwrap(), &[&write_pattern("dsync")]);
    }

    /// Without a cache the guest's kernel asks for stability in the WRITE itself and sends no FSYNC; with one it sends one.
    #[test]
    fn such_a_write_is_stable_in_every_cache_mode() {
        let disk = LoopImage::ext4(256).unwrap();
        let modes: [&[&str]; 4] = [&["never"], &["metadata"], &["always"], &["auto", "--writeback"]];
        for (mode, seed) in modes.into_iter().zip(SEED..) {
            let server =
                mode.iter().fold(Server::builder(disk.path()).arg("--cache"), |it, word| it.arg(word));
            let rig = Rig::with(server.start().unwrap());
            rig.run(&format!("agent write /mnt/share/data {seed} {BLOCKS} dsync"));
            assert_eq!(disk.count_blocks(seed).unwrap(), BLOCKS, "blocks in the image with --cache {mode:?}");
        }
    }

    #[test]
    fn after_a_plain_umount_every_block_is_there() {
        is_complete_after(&LoopImage::ext4(256).unwrap(), &[&write_pattern("plain"), "umount /mnt/share"]);
    }

    fn reaches_a_second_file_system_below(announcement: &str) {
        let disk = LoopImage::ext4(256).unwrap();
        let below = LoopImage::ext4_at(256, &disk.path().join("below")).unwrap();
        let rig = Rig::with(Server::builder(disk.path()).arg(announcement).start().unwrap());
        rig.run(&write_pattern("plain"));
        rig.run(&format!("agent write /mnt/share/below/data {OTHER_SEED} {}", BLOCKS / 2));
        rig.run("agent sync");
        let found = (disk.count_blocks(SEED).unwrap(), below.count_blocks(OTHER_SEED).unwrap());
        assert_eq!(found, (BLOCKS, BLOCKS / 2), "blocks of the share and of the file system below it");
        drop(rig);
    }

    #[test]
    fn sync_reaches_a_second_file_system_that_is_mounted_below_the_share() {
        reaches_a_second_file_system_below("--announce-submounts");
    }

    #[test]
    fn sync_reaches_it_also_if_the_guest_was_not_told_that_it_is_another() {
        reaches_a_second_file_system_below("--no-announce-submounts");
    }

    /// A file of another host file system that is bind-mounted into the share is no mount point that a guest could be told
    /// of, and has no SYNCFS of its own.
    #[test]
    fn sync_reaches_the_file_system_of_a_single_file_that_is_bind_mounted() {
        let disk = LoopImage::ext4(256).unwrap();
        let other = LoopImage::ext4(256).unwrap();
        let (source, target) = (other.path().join("file"), disk.path().join("file"));
        std::fs::write(&source, "").unwrap();
        std::fs::write(&target, "").unwrap();
        let _bound = BindMount::new(&source, &target).unwrap();
        let rig = Rig::new(disk.path());
        rig.run(&format!("agent write /mnt/share/file {OTHER_SEED} {}", BLOCKS / 4));
        rig.run("agent sync");
        assert_eq!(other.count_blocks(OTHER_SEED).unwrap(), BLOCKS / 4);
        rig.run(&format!("agent write /mnt/share/file {SEED} {}", BLOCKS / 4));
        rig.run("agent syncfs /mnt/share/file");
        assert_eq!(other.count_blocks(SEED).unwrap(), BLOCKS / 4);
        drop(rig);
    }

    /// The host's kernel tells each open descriptor once. Whoever asks first must not be the only one to hear.
    #[test]
    fn a_lost_write_is_reported_to_the_guest_although_another_process_was_told_first() {
        let below = SmallDisk::new(64).unwrap();
        let disk = LoopImage::ext4_without_journal_on(&below, 256).unwrap();
        let rig = Rig::new(disk.path());
        let neighbour = File::open(disk.path()).unwrap();
        rig.run("touch /mnt/share/data && agent sync");
        below.fill().unwrap();
        rig.run(&format!("agent write /mnt/share/data {SEED} {}", BLOCKS / 2));
        assert!(rustix::fs::syncfs(&neighbour).is_err(), "the disk below is full, so the write is lost");
        let told = rig.guest.run("agent syncfs /mnt/share").unwrap();
        assert_ne!(told.code, 0, "the guest's syncfs succeeded, and its data is lost");
        drop(rig);
    }

    /// sync(2) has no way to say that it failed, so the guest's kernel drops the error. Then at least the host must hear.
    #[test]
    fn a_lost_write_is_in_the_log_of_the_server_since_sync_has_no_way_to_say_it() {
        let below = SmallDisk::new(64).unwrap();
        let disk = LoopImage::ext4_without_journal_on(&below, 256).unwrap();
        let rig = Rig::new(disk.path());
        rig.run("touch /mnt/share/data && agent sync");
        below.fill().unwrap();
        rig.run(&format!("agent write /mnt/share/data {SEED} {}", BLOCKS / 2));
        assert!(!rig.server.log().contains("ERROR"), "{}", rig.server.log());
        rig.run("agent sync");
        let log = rig.server.log();
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("ENOSPC")), "{log}");
        drop(rig);
    }

    /// What keeps its files in memory cannot keep the promise. It is said aloud, once.
    #[test]
    fn a_share_that_cannot_be_stable_is_served_with_one_warning() {
        let memory = SmallDisk::new(64).unwrap();
        let rig = Rig::new(memory.path());
        rig.run("echo > /mnt/share/file && agent sync && echo > /mnt/share/other && agent sync");
        let log = rig.server.log();
        let warnings =
            log.lines().filter(|line| line.contains("WARN") && line.contains("keeps files in memory"));
        assert_eq!(warnings.count(), 1, "{log}");
        drop(rig);
    }

    /// Nobody unmounts when a machine loses its power, but its server still sees the connection end.
    #[test]
    fn after_the_guest_was_killed_and_the_server_has_ended_every_block_is_there() {
        let disk = LoopImage::ext4(256).unwrap();
        let Rig { guest, mut server } = Rig::new(disk.path());
        guest.run(&write_pattern("plain")).unwrap().success().unwrap();
        drop(guest);
        server.wait(std::time::Duration::from_secs(30)).unwrap();
        assert_eq!(disk.count_blocks(SEED).unwrap(), BLOCKS);
    }
}
