//! What a program may expect of a file system, held against shares in a Linux guest: the list of
//! [`ashore_testkit::conformance`], played by a program there.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::path::Path;
    use std::time::Duration;

    use ashore_testkit::conformance::CASES;
    use ashore_testkit::guest::{Guest, Server, ServerBuilder, Share, manifest};

    const FINITE: Duration = Duration::from_secs(600);

    /// Four shares in one guest, so that it boots once: three ways in which its kernel caches, and virtiofsd, which must do as
    /// well. What is left of each is then compared with the host, name by name and byte by byte.
    #[test]
    fn shares_are_what_a_program_expects_of_a_file_system() {
        let host = tempfile::tempdir_in("/var/tmp").unwrap();
        let share = |tag: &str| {
            let directory = host.path().join(tag);
            std::fs::create_dir(&directory).unwrap();
            Server::builder(directory)
        };
        let ours = |tag: &str, options: &[&str]| {
            options.iter().fold(share(tag).arg("--xattr"), |server, option| server.arg(option))
        };
        let virtiofsd =
            "virtiofsd --socket-path {socket} --shared-dir {dir} --sandbox none --seccomp none --xattr";
        let servers: [(&str, ServerBuilder); 4] = [
            ("ordinary", ours("ordinary", &[])),
            ("written-back", ours("written-back", &["--writeback", "--cache=always"])),
            ("not-cached", ours("not-cached", &["--cache=never", "--allow-direct-io"])),
            ("virtiofsd", share("virtiofsd").command(virtiofsd)),
        ];
        let servers = servers.map(|(tag, server)| (tag, server.start().unwrap()));
        let guest = Guest::builder().stripped_program(env!("CARGO_BIN_EXE_conformance")).memory_mib(1024);
        let shared = |guest: ashore_testkit::guest::Builder, (tag, server): &(&str, Server)| {
            guest.share(Share::new(server.socket()).tag(tag))
        };
        let guest = servers.iter().fold(guest, shared).boot().unwrap();
        for (tag, _) in &servers {
            let played = guest.spawn(&format!("conformance /mnt/{tag}")).unwrap().wait_for(FINITE).unwrap();
            println!("{tag}: {}", played.stdout.lines().last().unwrap_or_default());
            assert_eq!(played.code, 0, "{tag}: {}{}", played.stdout, played.stderr);
            assert!(played.stdout.contains(&format!("{} cases, 0 failed", CASES.len())), "{}", played.stdout);
            agree(&guest, tag, &host.path().join(tag));
        }
    }

    /// What the guest asks for anew, after it has sent all it had.
    fn agree(guest: &Guest, tag: &str, shared: &Path) {
        let anew = format!("umount /mnt/{tag} && mount -t virtiofs {tag} /mnt/{tag}");
        guest.run(&anew).unwrap().success().unwrap();
        let in_guest = guest.run(&format!("agent manifest /mnt/{tag}")).unwrap().success().unwrap();
        let on_host = manifest::of_tree(shared).unwrap();
        assert!(on_host.lines().count() > CASES.len());
        let difference = manifest::difference(&on_host, &in_guest);
        assert!(difference.is_empty(), "{tag}: host and guest differ:\n{difference}");
    }
}
