//! `ashore doctor --path` from inside a guest, and on a disk of the host: what it says of a share is true, and where it can
//! only guess it says that it cannot tell.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

/// The verdicts by check, from the doctor's JSON.
#[derive(Debug)]
struct Verdicts(String);

impl Verdicts {
    /// `verdict` is a key of the JSON: `kept`, `broken` or `could_not_tell`.
    #[track_caller]
    fn is(&self, check: &str, verdict: &str) {
        let start = format!(r#"{{"check":"{check}","#);
        let line = self.0.lines().find(|line| line.trim_start().starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{check} was not examined: {}", self.0));
        assert!(line.contains(&format!(r#""verdict":"{verdict}""#)), "{check} is to be {verdict}: {line}");
    }
}

mod on_this_host {
    use ashore_doctor::{Check, DoctorArguments, Finding, Observer, Verdict};
    use ashore_testkit::guest::LoopImage;

    struct Silent;

    impl Observer for Silent {
        fn begins(&mut self, _: &Check) {}
        fn ended(&mut self, _: &Finding) {}
    }

    #[test]
    fn ext4_on_a_loop_device_is_seen_to_sync() {
        let disk = LoopImage::ext4(256).unwrap();
        let only = ["syncfs-known", "sync-clean", "fsync", "dsync", "endless"].map(str::to_owned).to_vec();
        let path = Some(disk.path().to_owned());
        let report = ashore_doctor::run(&DoctorArguments { path, only, ..Default::default() }, &mut Silent);
        let report = report.unwrap();
        assert_eq!(report.findings.len(), 6, "{report}");
        for finding in &report.findings {
            assert_eq!(finding.seen.verdict, Verdict::Kept, "{}: {report}", finding.check.id);
        }
    }
}

mod in_a_real_guest {
    use ashore_testkit::guest::{FULL_KERNEL, Guest, LoopImage, Server, Share};

    use super::Verdicts;

    const NOT_TO_BE_SEEN: [&str; 5] =
        ["syncfs-known", "fsync-file", "fsync-directory", "dsync-write", "backing"];

    /// Four shares in one guest, so that it boots once. Of those that write through, the guest's kernel holds nothing back,
    /// and whether the host does cannot be seen from inside; a doctor that says more has guessed. The same must be said of
    /// virtiofsd, whose syncs are sound with these options, and of our server.
    #[test]
    fn the_doctor_says_of_a_share_what_can_be_seen_from_inside() {
        let disk = LoopImage::ext4(1500).unwrap();
        let share = |name: &str| {
            let directory = disk.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            Server::builder(directory)
        };
        let ours = share("ours").start().unwrap();
        let cached = share("cached").arg("--writeback").start().unwrap();
        let theirs = share("theirs").command(&virtiofsd("")).start().unwrap();
        let theirs_cached = share("theirs-cached").command(&virtiofsd("--writeback")).start().unwrap();
        let guest = Guest::builder()
            .ashore()
            .memory_mib(1024)
            .share(Share::new(ours.socket()).tag("ours"))
            .share(Share::new(cached.socket()).tag("cached"))
            .share(Share::new(theirs.socket()).tag("theirs"))
            .share(Share::new(theirs_cached.socket()).tag("theirs-cached"))
            .boot()
            .unwrap();
        let examine = |tag: &str, options: &str| {
            let output =
                guest.run(&format!("/bin/ashore doctor --json --path /mnt/{tag} {options}")).unwrap();
            assert!(matches!(output.code, 0..=2), "{}", output.stderr);
            eprintln!("{tag}: {}", output.stdout);
            Verdicts(output.stdout)
        };

        for tag in ["ours", "theirs"] {
            let verdicts = examine(tag, "");
            NOT_TO_BE_SEEN.iter().for_each(|check| verdicts.is(check, "could_not_tell"));
            verdicts.is("sync-clean", "could_not_tell");
            verdicts.is("endless-writers", "kept");
            verdicts.is("early-sync", if waits(guest.kernel_release()) { "kept" } else { "could_not_tell" });
        }
        for tag in ["cached", "theirs-cached"] {
            let verdicts = examine(tag, "--only sync --only backing");
            NOT_TO_BE_SEEN.iter().for_each(|check| verdicts.is(check, "could_not_tell"));
            // What is in the cache is seen at least once, or the look itself has had it written out.
            let seen = ["only in memory before", "in the cache", "had not been sent"];
            assert!(seen.iter().any(|words| verdicts.0.contains(words)), "{verdicts:?}");
            if waits(guest.kernel_release()) {
                verdicts.is("early-sync", "kept");
            }
        }
        let left = guest.run("ls -A /mnt/ours /mnt/theirs /mnt/cached /mnt/theirs-cached").unwrap();
        assert!(!left.success().unwrap().contains("doctor"), "files of the doctor are left");
    }

    /// 9p2000.L has no message for sync(2), which succeeds all the same; fsync(2) is passed on.
    #[test]
    fn of_9p_it_says_that_a_sync_makes_nothing_stable() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let guest = Guest::builder()
            .kernel(FULL_KERNEL)
            .ashore()
            .memory_mib(1024)
            .nine_p(directory.path(), "nine")
            .boot()
            .unwrap();
        let output = guest.run("/bin/ashore doctor --json --path /mnt/nine").unwrap();
        assert!(matches!(output.code, 0..=2), "{}", output.stderr);
        eprintln!("9p: {}", output.stdout);
        let verdicts = Verdicts(output.stdout);
        verdicts.is("syncfs-known", "broken");
        NOT_TO_BE_SEEN[1..].iter().for_each(|check| verdicts.is(check, "could_not_tell"));
    }

    /// Whether sync(2) of this guest waits for its data: not from 6.18.21, 6.19.11 and 7.0 on.
    fn waits(release: &str) -> bool {
        ["6.1.", "6.12.", "6.16.", "6.19.10"].iter().any(|version| release.starts_with(version))
    }

    fn virtiofsd(options: &str) -> String {
        format!(
            "virtiofsd --socket-path {{socket}} --shared-dir {{dir}} --sandbox none --seccomp none {options}"
        )
    }
}
