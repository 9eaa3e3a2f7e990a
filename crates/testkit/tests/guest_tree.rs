//! A working day in a guest: unpack a large tree, put it under version control, move and delete half of it, sync. Host and
//! guest must agree about every name.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, SystemTime};

    use ashore_testkit::guest::{Guest, Server, Share, manifest};

    const FOLDERS: usize = 50;
    const FILES_IN_FOLDER: usize = 100;

    const WORK: &str = "
        set -e
        step() { echo $(cut -d ' ' -f 1 /proc/uptime) $1; }
        step unpack
        mkdir /mnt/share/tree
        cd /mnt/share/tree
        tar xf /tree.tar
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git -c init.defaultBranch=main init --quiet --template= .
        git config gc.auto 0
        step add
        git add --all
        step commit
        git commit --quiet --message one
        step fsck
        git fsck --strict --no-progress
        step status
        test -z \"$(git status --porcelain)\"
        step halve
        agent halve .
        mv folder-07 renamed
        step status
        git status --porcelain | cut -c 1-2 | sort | uniq -c
        step sync
        sync
        step end";

    #[test]
    fn host_and_guest_agree_about_a_tree_that_was_unpacked_committed_and_halved() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::builder(dir.path()).start().unwrap();
        work_and_compare(dir.path(), &server, 1);
    }

    /// Both request queues must have had work, or the test would show nothing about them.
    #[test]
    fn they_agree_with_two_queues_and_two_processors_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut server =
            Server::builder(dir.path()).queues(2).arg("--log-level").arg("debug").start().unwrap();
        work_and_compare(dir.path(), &server, 2);
        if !server.is_ours() {
            eprintln!("not checked for another server: whether both queues had work");
            return;
        }
        server.wait(Duration::from_secs(20)).unwrap();
        for queue in [1, 2] {
            let served = server.requests_of_queue(queue);
            assert!(served.is_some_and(|count| count > 100), "queue {queue} served {served:?} requests");
        }
    }

    fn work_and_compare(shared: &Path, server: &Server, queues: u32) {
        let archive = tempfile::tempdir().unwrap();
        let guest = Guest::builder()
            .cpus(queues)
            .memory_mib(1024)
            .share(Share::new(server.socket()).queues(queues))
            .program("git")
            .file(tree_archive(archive.path()), "/tree.tar")
            .boot()
            .unwrap();
        let steps = guest.spawn(WORK).unwrap().wait_for(Duration::from_secs(900)).unwrap();
        println!("{}", steps.success().unwrap());
        agree(&guest, shared);
        // What the guest remembers must be right, and so must what it asks for anew.
        guest.run("umount /mnt/share && mount -t virtiofs share /mnt/share").unwrap().success().unwrap();
        agree(&guest, shared);
        guest.run("umount /mnt/share").unwrap().success().unwrap();
        guest.shutdown().unwrap();
    }

    fn agree(guest: &Guest, shared: &Path) {
        let in_guest = guest.run("agent manifest /mnt/share/tree").unwrap().success().unwrap();
        let on_host = manifest::of_tree(shared.join("tree")).unwrap();
        let difference = manifest::difference(&on_host, &in_guest);
        assert!(difference.is_empty(), "host and guest differ:\n{difference}");
        let moved = on_host.lines().filter(|line| line.contains("/moved-")).count();
        assert_eq!(moved, FOLDERS * FILES_IN_FOLDER / 2);
        assert_eq!(on_host.lines().filter(|line| line.contains("/renamed/")).count(), FILES_IN_FOLDER / 2);
    }

    /// Sizes from nothing to 20 KB, three modes, a time of its own for each file, and some links.
    fn tree_archive(folder: &Path) -> PathBuf {
        let tree = folder.join("tree");
        for outer in 0..FOLDERS {
            let inside = tree.join(format!("folder-{outer:02}"));
            fs::create_dir_all(&inside).unwrap();
            for inner in 0..FILES_IN_FOLDER {
                make_file(&inside.join(format!("file-{inner:02}")), outer * FILES_IN_FOLDER + inner);
            }
        }
        symlink("folder-00/file-00", tree.join("link")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        let archive = folder.join("tree.tar");
        let status =
            Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".").status().unwrap();
        assert!(status.success());
        archive
    }

    fn make_file(path: &Path, number: usize) {
        let content: Vec<u8> = (0..number * 7919 % 20_000).map(|place| (place * 31 + number) as u8).collect();
        fs::write(path, content).unwrap();
        let mode = [0o644, 0o755, 0o600][number % 3];
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + number as u64);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}
