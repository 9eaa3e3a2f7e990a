//! What the program costs as it is shipped, in figures that are the same on a busy machine as on a quiet one: instructions and
//! system calls of a request, memory, and wake-ups.
//!
//! The thread that serves a queue is followed by ptrace(2), step by step for the instructions, from call to call for the system
//! calls. Each request finds it asleep, so what is counted is the whole way: it wakes up, serves, announces, and goes back to
//! sleep. Instructions inside the kernel count as nothing, nor do those of its clock, which is read again when it ticks meanwhile.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod as_shipped {
    use std::fs;
    use std::ops::Range;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread::{self, sleep};
    use std::time::{Duration, Instant};

    use ashore_vhost_user::driver::{LINUX_FLAGS, LinkOptions, Pages, RawConnection};
    use ashore_wire::{FileHandle, NodeId};
    use nix::libc;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    /// Requests of a kind before it is counted, and those counted.
    const WARM: u64 = 8;
    const COUNTED: u64 = 16;
    const PATIENCE: Duration = Duration::from_secs(60);
    /// Memory of a server whose client has looked nothing up.
    const RESIDENT_KIB: u64 = 6 * 1024;
    /// What waking up and announcing take, however many files there are.
    const OF_THE_RING: [i64; 4] =
        [libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_write];

    struct Client {
        raw: RawConnection,
        file: NodeId,
        handle: FileHandle,
    }

    type Request = fn(&Client);

    const KIB_4: Pages = Pages { first: 0, bytes: 4096 };

    /// What a request may take.
    struct Bound {
        name: &'static str,
        request: Request,
        file_calls: u64,
        instructions: u64,
    }

    const fn bound(name: &'static str, file_calls: u64, instructions: u64, request: Request) -> Bound {
        Bound { name, request, file_calls, instructions }
    }

    /// A tenth above what was counted when they were written down. Lower them with what makes a request cheaper.
    const BOUNDS: [Bound; 6] = [
        bound("GETATTR", 1, 2900, |client| _ = client.raw.getattr(client.file).unwrap()),
        bound("LOOKUP", 1, 3100, |client| _ = client.raw.lookup(NodeId::ROOT, b"file").unwrap()),
        bound("LOOKUP miss", 1, 2450, |client| _ = client.raw.lookup(NodeId::ROOT, b"none").unwrap_err()),
        bound("OPEN+RELEASE", 2, 5800, |client| {
            let handle = client.raw.open(client.file, 0).unwrap();
            client.raw.release(client.file, handle).unwrap();
        }),
        bound("READ 4 KiB", 1, 2850, |client| {
            _ = client.raw.read(client.file, client.handle, 0, KIB_4).unwrap();
        }),
        bound("WRITE 4 KiB", 1, 3100, |client| {
            _ = client.raw.write(client.file, client.handle, 0, KIB_4).unwrap();
        }),
    ];

    #[test]
    fn requests_take_no_more_than_their_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let (share, socket) = (folder.path().join("share"), folder.path().join("socket"));
        fs::create_dir(&share).unwrap();
        fs::write(share.join("file"), [7; 65536]).unwrap();
        let mut server = start(&share, &socket, "0");
        let raw = connect(&mut server, &socket);
        raw.init(LINUX_FLAGS).unwrap();
        let file = NodeId(raw.lookup(NodeId::ROOT, b"file").unwrap().nodeid);
        let handle = raw.open(file, 2).unwrap();
        let client = Client { raw, file, handle };
        let queue = thread_of(&server, "ashore-q1");
        let mut over = Vec::new();
        for Bound { name, request, file_calls, instructions } in &BOUNDS {
            let calls = per_request(&client, &queue, How::Calls, *request);
            let steps = per_request(&client, &queue, How::Steps, *request);
            println!(
                "{name}: {calls} file calls, at most {file_calls}; {steps} instructions, at most {instructions}"
            );
            if calls > *file_calls || steps > *instructions {
                over.push(name);
            }
        }
        client.raw.destroy().unwrap();
        drop(client);
        assert!(server.wait().unwrap().success());
        assert!(over.is_empty(), "{over:?} take more than they did");
    }

    /// A server that nobody uses sleeps, and so does one whose client has nothing to ask; and it takes little memory.
    #[test]
    fn an_idle_server_does_not_wake_up_and_is_small() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let mut server = start(folder.path(), &socket, "50");
        let raw = connect(&mut server, &socket);
        raw.init(LINUX_FLAGS).unwrap();
        // Of pages that others have mapped too, of the C library for one, its share.
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.id())).unwrap();
        let resident = number(&rollup, "Pss:");
        println!("{resident} KiB are resident with nothing looked up, at most {RESIDENT_KIB}");
        assert!(resident <= RESIDENT_KIB);
        (0..1000).for_each(|_| _ = raw.getattr(NodeId::ROOT).unwrap());
        sleep(Duration::from_millis(500));
        let before = switches(&server);
        sleep(Duration::from_secs(2));
        assert_eq!(switches(&server), before, "it woke up with nothing to do");
        raw.destroy().unwrap();
        drop(raw);
        assert!(server.wait().unwrap().success());
    }

    /// How often its threads gave up a processor or lost it.
    fn switches(server: &Child) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
        let of_one = |status: String| {
            number(&status, "voluntary_ctxt_switches:") + number(&status, "nonvoluntary_ctxt_switches:")
        };
        tasks.map(|task| of_one(fs::read_to_string(task.unwrap().path().join("status")).unwrap())).sum()
    }

    /// The number in the line that begins with this name.
    fn number(lines: &str, name: &str) -> u64 {
        let rest = lines.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn start(share: &Path, socket: &Path, poll_us: &str) -> Child {
        let mut server = Command::new(env!("CARGO_BIN_EXE_ashore"));
        server.args(["serve", "--sandbox", "none", "--poll-us", poll_us, "--log-level", "error"]);
        server.arg("--shared-dir").arg(share).arg("--socket-path").arg(socket).stdout(Stdio::null());
        server.spawn().unwrap()
    }

    fn connect(server: &mut Child, socket: &Path) -> RawConnection {
        let end = Instant::now() + PATIENCE;
        let options = LinkOptions { poll_us: 0, patience: PATIENCE, ..LinkOptions::default() };
        loop {
            match RawConnection::connect(socket, options) {
                Ok(raw) => return raw.with_patience(PATIENCE),
                Err(error) => {
                    assert!(Instant::now() < end, "{error}");
                    assert!(server.try_wait().unwrap().is_none(), "the server ended at once");
                    sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn thread_of(server: &Child, name: &str) -> Tracee {
        let tasks = Path::new("/proc").join(server.id().to_string()).join("task");
        let mut threads = fs::read_dir(tasks).unwrap().map(|thread| thread.unwrap().path());
        let is_it = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).unwrap().trim() == name;
        let proc = threads.find(is_it).unwrap();
        let id = proc.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let maps = fs::read_to_string(proc.join("maps")).unwrap();
        let clock = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (begin, end) = clock.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let process = Pid::from_raw(server.id().try_into().unwrap());
        Tracee { process, id: Pid::from_raw(id), stat: proc.join("stat"), clock: begin..end }
    }

    /// A thread of the server.
    struct Tracee {
        process: Pid,
        id: Pid,
        stat: PathBuf,
        /// Where the kernel's clock is mapped.
        clock: Range<u64>,
    }

    impl Tracee {
        /// It waits, rather than runs or is held by us.
        fn is_asleep(&self) -> bool {
            let stat = fs::read_to_string(&self.stat).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('S')
        }
    }

    #[derive(Clone, Copy, PartialEq)]
    enum How {
        /// Every instruction.
        Steps,
        /// Every system call, but those of the ring.
        Calls,
    }

    fn per_request(client: &Client, queue: &Tracee, how: How, request: Request) -> u64 {
        let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let (follow, followed) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| trace(queue, how, &count, &over, &follow));
            followed.recv_timeout(PATIENCE).unwrap();
            let _end = EndIfPanicking(queue);
            let one = || {
                request(client);
                await_sleep(queue, &count)
            };
            let before = (0..WARM).fold(0, |_, _| one());
            let after = (0..COUNTED).fold(0, |_, _| one());
            over.store(true, Ordering::SeqCst);
            // Wakes it, so that it can be let go of.
            client.raw.getattr(NodeId::ROOT).unwrap();
            (after - before) / COUNTED
        })
    }

    /// Without its server nobody follows its thread any more.
    struct EndIfPanicking<'a>(&'a Tracee);

    impl Drop for EndIfPanicking<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                _ = kill(self.0.process, Signal::SIGKILL);
            }
        }
    }

    /// What was counted when the thread had gone to sleep.
    fn await_sleep(queue: &Tracee, count: &AtomicU64) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            let before = count.load(Ordering::SeqCst);
            if queue.is_asleep() {
                sleep(Duration::from_micros(200));
                if queue.is_asleep() && count.load(Ordering::SeqCst) == before {
                    return before;
                }
            }
            assert!(Instant::now() < end, "the thread does not go to sleep");
        }
    }

    fn trace(queue: &Tracee, how: How, count: &AtomicU64, over: &AtomicBool, follow: &mpsc::Sender<()>) {
        let thread = queue.id;
        let await_stop = || waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD).unwrap();
        ptrace::interrupt(thread).unwrap();
        await_stop();
        follow.send(()).unwrap();
        let mut entered = false;
        while !over.load(Ordering::SeqCst) {
            match how {
                How::Steps => ptrace::step(thread, None).unwrap(),
                How::Calls => ptrace::syscall(thread, None).unwrap(),
            }
            let stop = await_stop();
            let registers = ptrace::getregs(thread).unwrap();
            let counts = match stop {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => !queue.clock.contains(&registers.rip),
                // One stop before a call, and one after it.
                WaitStatus::PtraceSyscall(_) => {
                    entered = !entered;
                    entered && !OF_THE_RING.contains(&(registers.orig_rax as i64))
                }
                _ => false,
            };
            count.fetch_add(counts.into(), Ordering::SeqCst);
        }
        ptrace::detach(thread, None).unwrap();
    }
}
