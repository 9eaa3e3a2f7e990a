//! What `cargo xtask dist` builds, as a user meets it: installed in a Debian that has nothing of ours in it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_clean_root {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;

    use ashore_testkit::guest::{cache, target_dir};

    /// A name space that takes its mounts along when it ends; the Debian below, and what is written to it in memory.
    const INTO_THE_ROOT: &str = r#"
        mount -t tmpfs none "$1"
        mkdir "$1/upper" "$1/work" "$1/root"
        mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" none "$1/root"
        mount -t proc proc "$1/root/proc"
        mount --bind "$3" "$1/root/mnt"
        exec chroot "$1/root" /bin/bash -euo pipefail -c "$4"
    "#;

    /// The folder with archive and package, built from this checkout.
    fn dist() -> &'static Path {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        BUILT.get_or_init(|| {
            let folder = target_dir().unwrap();
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["run", "--quiet", "--package", "xtask", "--target-dir"]).arg(&folder);
            let built = cargo.args(["--", "dist"]).stdout(Stdio::null()).status().unwrap();
            assert!(built.success(), "`cargo xtask dist` fails");
            folder.join("dist")
        })
    }

    /// What a script says there, which must succeed and complain of nothing. `dist` is at `/mnt`.
    fn said(script: &str) -> String {
        assert!(
            rustix::process::geteuid().is_root(),
            "run this test as root: it mounts and changes its root"
        );
        let root = cache::clean_root().unwrap();
        assert!(root.exists(), "{} is missing: run `cargo xtask setup --clean-root` as root", root.display());
        let memory = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["sh", "-euc", INTO_THE_ROOT, "-"]).arg(memory.path()).arg(root).arg(dist()).arg(script);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8");
        command.env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, complaints) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && complaints.is_empty(), "{}\n{said}\n{complaints}", output.status);
        said
    }

    /// What a script says after `dpkg -i`.
    fn installed(script: &str) -> String {
        said(&format!("dpkg --install /mnt/ashore_*.deb >/tmp/dpkg 2>&1 || cat /tmp/dpkg >&2\n{script}"))
    }

    #[test]
    fn dpkg_installs_it_without_any_other_package_and_removes_all_of_it() {
        let said = installed(
            r#"
            dpkg-query --show --showformat '${db:Status-Status}, depends on [${Depends}]\n' ashore
            dpkg --verify ashore
            ashore --version
            test "$(readlink -f /sbin/mount.ashore)" = /usr/bin/ashore
            dpkg --purge ashore >/tmp/dpkg
            find / -xdev -path /proc -prune -o -path /mnt -prune -o -name '*ashore*' -print
            "#,
        );
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(said, format!("installed, depends on []\nashore {version}\n"));
    }

    #[test]
    fn man_shows_a_page_for_every_command_and_for_what_sync_means() {
        let said = installed(
            r#"
            export MANWIDTH=80
            commands=$(ashore --help | sed -n '/^Commands:/,/^$/p' | sed '1d' | awk 'NF && $1 != "help" {print $1}')
            for page in ashore ashore-sync.7 $(for command in $commands; do echo "ashore-$command.1"; done); do
                man --warnings=w,mac "$page" > /tmp/page
                grep -q '^NAME' /tmp/page && echo "$page"
            done
            man ashore-sync.7 | grep -c 'SIX PROMISES'
            whatis ashore-serve | cut -d' ' -f1
            "#,
        );
        let pages: Vec<_> = said.lines().collect();
        assert!(pages.len() > 12, "{pages:?}");
        for page in ["ashore", "ashore-sync.7", "ashore-serve.1", "ashore-doctor.1", "ashore-mount.1"] {
            assert!(pages.contains(&page), "{page}: {pages:?}");
        }
        assert_eq!(pages[pages.len() - 2..], ["1", "ashore-serve"], "{pages:?}");
    }

    /// As each shell loads them by itself, and offers what it finds.
    #[test]
    fn bash_zsh_and_fish_complete_its_commands() {
        let said = installed(
            r#"
            bash -n /usr/share/bash-completion/completions/ashore
            zsh -n /usr/share/zsh/vendor-completions/_ashore
            fish --no-execute /usr/share/fish/vendor_completions.d/ashore.fish
            bash --norc -c '
                . /usr/share/bash-completion/bash_completion
                _completion_loader ashore || true
                complete -p ashore >/dev/null
                COMP_WORDS=(ashore doc) COMP_CWORD=1
                _ashore ashore doc ashore
                echo "bash ${COMPREPLY[*]}"'
            zsh -fc 'autoload -U compinit; compinit -u -D; autoload +X $_comps[ashore]; echo "zsh $_comps[ashore]"
                functions $_comps[ashore] | grep -c doctor >/dev/null'
            echo "fish $(fish -c 'complete --do-complete "ashore doc"' | cut -f1)"
            "#,
        );
        assert_eq!(said, "bash doctor\nzsh _ashore\nfish doctor\n");
    }

    #[test]
    fn libvirt_finds_a_server_that_says_what_it_can_do() {
        let said = installed(
            r#"
            description=/usr/share/qemu/vhost-user/60-ashore.json
            jq -r .type $description
            server=$(jq -r .binary $description)
            $server --print-capabilities | jq -r '.type, (.features | index("separate-options") != null)'
            $server --version
            mkdir /srv/share
            if $server --fd=99 -o source=/srv/share,cache=always,xattr,flock,no_posix_lock 2>/tmp/why; then exit 1; fi
            grep -o 'not a listening Unix socket' /tmp/why
            "#,
        );
        let version = concat!("ashore ", env!("CARGO_PKG_VERSION"));
        assert_eq!(said, format!("fs\nfs\ntrue\n{version}\nnot a listening Unix socket\n"));
    }

    /// Aim: the units are right, and a socket that a service manager made is served. Method: systemd reads them as it does
    /// when it starts, and its own program for it listens and starts what the unit says when somebody connects.
    #[test]
    fn systemd_takes_the_units_and_starts_the_server_when_somebody_connects() {
        let said = installed(
            r#"
            mkdir /srv/share
            echo 'from the share' > /srv/share/file
            systemd-analyze verify ashore@srv-share.socket ashore@srv-share.service
            start=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/ashore@.service)
            start=${start//%f/\/srv\/share} ASHORE_OPTIONS='--num-request-queues 2'
            systemd-socket-activate --listen=/run/socket ${start//\$ASHORE_OPTIONS/$ASHORE_OPTIONS} >/tmp/ready 2>/tmp/log &
            while ! test -S /run/socket; do sleep 0.05; done
            ashore cat --socket /run/socket /file
            wait $! || cat /tmp/log >&2
            grep -o 'all that was changed is stable' /tmp/log
            grep -o 'num-request-queues=2' /tmp/ready
            "#,
        );
        assert_eq!(said, "from the share\nall that was changed is stable\nnum-request-queues=2\n");
    }

    #[test]
    fn the_archive_works_below_usr_local() {
        let said = said(
            r#"
            tar --extract --gzip --file /mnt/ashore-*.tar.gz --strip-components=1 --directory /usr/local
            ashore --version
            readlink -f "$(man --where ashore-sync.7)"
            systemd-analyze verify ashore@srv-share.socket ashore@srv-share.service
            jq -r .binary /usr/local/share/qemu/vhost-user/60-ashore.json
            $(jq -r .binary /usr/local/share/qemu/vhost-user/60-ashore.json) --print-capabilities | jq -r .type
            export XDG_DATA_DIRS=/usr/local/share:/usr/share
            echo "fish $(fish -c 'complete --do-complete "ashore doc"' | cut -f1)"
            find /usr/local ! -user root
            find /usr/local/bin /usr/local/lib/systemd /usr/local/share/doc -perm /022 ! -type l
            "#,
        );
        let lines = [
            concat!("ashore ", env!("CARGO_PKG_VERSION")),
            "/usr/local/share/man/man7/ashore-sync.7.gz",
            "/usr/local/lib/ashore/virtiofsd",
            "fs",
            "fish doctor",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), lines);
    }

    /// Another C library than in the tests: other system calls, which its filter must know.
    #[test]
    fn the_program_needs_no_library_and_its_doctor_finds_all_six_promises_kept() {
        let program = dist().join("deb/usr/bin/ashore");
        let headers =
            Command::new("readelf").args(["--segments", "--dynamic", "--wide"]).arg(&program).output();
        let headers = String::from_utf8(headers.unwrap().stdout).unwrap();
        assert!(headers.contains("LOAD"), "{headers}");
        assert!(!headers.contains("INTERP") && !headers.contains("NEEDED"), "{headers}");
        let output = Command::new(program).arg("doctor").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
