//! The client over a real vhost-user socket: connecting, many threads at once, and servers that are silent, die, or are
//! something else. What is in files and directories is looked at in `client_share`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ashore_client::{CacheMode, Client, Options as ClientOptions};
use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Ended, Listener, StopHandle};
use ashore_vhost_user::driver::{ConnectError, LinkOptions, VhostUserLink};
use tempfile::TempDir;

/// No single step takes as long as this, however busy the machine is; what does hangs.
const FINITE: Duration = Duration::from_secs(30);

/// Our server in this process, on a socket of its own.
struct Ours {
    place: TempDir,
    stop: StopHandle,
    thread: Option<JoinHandle<Ended>>,
}

impl Ours {
    fn start(queues: u16, writeback: bool) -> Ours {
        let place = tempfile::tempdir().unwrap();
        let share = place.path().join("share");
        fs::create_dir(&share).unwrap();
        let filesystem = Passthrough::new(Options { writeback, ..Options::new(&share) }).unwrap();
        let session = Session::new(filesystem, Limits::default());
        let listener = Listener::bind(place.path().join("socket")).unwrap();
        let workers = Arc::clone(&session);
        let options = DeviceOptions { request_queues: queues, ..DeviceOptions::default() };
        let device =
            Device::new(options, move |_, queue| Worker::new(Arc::clone(&workers)).run(queue)).unwrap();
        let stop = device.stop_handle();
        let thread = thread::spawn(move || {
            let ended = device.serve(&listener).unwrap();
            session.end().unwrap();
            ended
        });
        Ours { place, stop, thread: Some(thread) }
    }

    fn share(&self) -> PathBuf {
        self.place.path().join("share")
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("socket")
    }

    /// How the only connection ended.
    fn ended(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server that has made its socket may not listen yet.
fn link(socket: &Path, queues: u16) -> VhostUserLink {
    let options = LinkOptions { request_queues: queues, pages: 2048, ..LinkOptions::default() };
    let begun = Instant::now();
    loop {
        match VhostUserLink::connect(socket, options) {
            Err(ConnectError::Connect { .. }) if begun.elapsed() < FINITE => {
                thread::sleep(Duration::from_millis(10));
            }
            connected => return connected.unwrap(),
        }
    }
}

fn mount(socket: &Path, queues: u16, cache: CacheMode) -> Client {
    let options = ClientOptions { cache, ..ClientOptions::default() };
    Client::new(link(socket, queues), options).unwrap()
}

/// Fails if it takes for ever.
fn in_finite_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(FINITE).expect("it hangs, or has panicked")
}

/// Bytes that tell where they belong.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mix =
        |at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD6E8_FEB8_6659_FD93)) >> 32;
    (0..length as u64).map(|at| mix(at) as u8).collect()
}

#[test]
fn one_call_connects_and_what_was_written_is_in_the_share_after_a_sync() {
    let server = Ours::start(2, true);
    let client = Client::connect(server.socket()).unwrap();
    assert_eq!(client.cache_mode(), CacheMode::WriteBack);
    client.write("file", b"content").unwrap();
    client.sync().unwrap();
    assert_eq!(fs::read(server.share().join("file")).unwrap(), b"content");
    client.unmount().unwrap();
    assert_eq!(server.ended(), Ended::Disconnected);

    let server = Ours::start(1, true);
    let options = Client::options().cache(CacheMode::WriteThrough).cache_bytes(1 << 20).read_only(true);
    let client = options.connect(server.socket()).unwrap();
    assert_eq!(client.cache_mode(), CacheMode::WriteThrough);
    assert_eq!(client.write("file", b"").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_server_that_grants_no_write_back_gets_every_write_at_once() {
    let server = Ours::start(1, false);
    let client = mount(&server.socket(), 1, CacheMode::WriteBack);
    assert_eq!(client.cache_mode(), CacheMode::WriteThrough);
    let file = client.create("file").unwrap();
    file.write_all_at(b"at once", 0).unwrap();
    assert_eq!(fs::read(server.share().join("file")).unwrap(), b"at once");
    // It has extended attributes off, too, unless told otherwise.
    let refused = client.set_xattr("file", "user.colour", b"red").unwrap_err().raw_os_error();
    assert_eq!(refused, Some(rustix::io::Errno::NOSYS.raw_os_error()));
}

#[test]
fn a_vhost_user_device_that_is_no_file_system_is_said_to_be_none() {
    let (_place, path, stop) = device_that(|mut queue| {
        use ashore_wire::seam::{Exchange, RequestQueue};
        while let Some(exchange) = queue.next() {
            exchange.finish_without_reply();
        }
    });
    let error = in_finite_time(move || Client::connect(path).unwrap_err());
    assert!(matches!(error, ashore_client::ConnectError::NoFileServer { .. }), "{error}");
    assert!(error.to_string().contains("is it a device of another kind?"), "{error}");
    stop.stop();
}

#[test]
fn as_many_queues_as_both_sides_have() {
    for (offered, wanted, used) in [(1, 1, 1), (1, 8, 1), (3, 2, 2), (4, 64, 4)] {
        let server = Ours::start(offered, false);
        assert_eq!(link(&server.socket(), wanted).request_queues(), used);
    }
}

/// Four threads, each with files of its own that overlap nothing, and one that all share, on two queues.
#[test]
fn four_threads_on_two_queues_keep_their_contents_apart() {
    const ROUNDS: u64 = 300;
    const BLOCK: usize = 10_000;
    let server = Ours::start(2, true);
    let client = mount(&server.socket(), 2, CacheMode::WriteBack);
    let shared = Arc::new(client.create("shared").unwrap());
    let threads: Vec<_> = (0..4u64)
        .map(|number| {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    let seed = number * ROUNDS + round;
                    let data = pattern(seed, BLOCK);
                    shared.write_all_at(&data, seed * BLOCK as u64).unwrap();
                    let (name, later) = (format!("{number}-{round}"), format!("{number}-{round}-renamed"));
                    client.write(&name, &data).unwrap();
                    client.rename(&name, &later).unwrap();
                    assert!(client.read(&later).unwrap() == data, "{later}");
                    let mut back = vec![0; BLOCK];
                    shared.read_exact_at(&mut back, seed * BLOCK as u64).unwrap();
                    assert!(back == data, "block {seed} of the shared file");
                    if round % 16 == number {
                        client.sync().unwrap();
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    client.sync().unwrap();
    let on_host = fs::File::open(server.share().join("shared")).unwrap();
    for seed in 0..4 * ROUNDS {
        let data = pattern(seed, BLOCK);
        let mut found = vec![0; BLOCK];
        on_host.read_exact_at(&mut found, seed * BLOCK as u64).unwrap();
        assert!(found == data, "block {seed} on the host");
        let name = format!("{}-{}-renamed", seed / ROUNDS, seed % ROUNDS);
        assert!(fs::read(server.share().join(&name)).unwrap() == data, "{name} on the host");
    }
    drop(shared);
    client.unmount().unwrap();
}

/// The server goes while requests are in flight: everything ends with an error, and nothing says it is stable.
#[test]
fn a_server_that_goes_in_the_middle_is_an_error_in_finite_time() {
    for round in 0..10 {
        let server = Ours::start(2, true);
        let client = mount(&server.socket(), 2, CacheMode::WriteBack);
        let file = Arc::new(client.create("file").unwrap());
        let gone = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3u64)
            .map(|number| {
                let (file, client, gone) = (Arc::clone(&file), client.clone(), Arc::clone(&gone));
                thread::spawn(move || {
                    let data = pattern(number, 50_000);
                    for at in 0.. {
                        let after = gone.load(Ordering::SeqCst);
                        let written = file.write_all_at(&data, (at % 50) * 50_000);
                        let synced = written.and_then(|()| client.sync());
                        assert!(!(after && synced.is_ok()), "a sync that began after the end has succeeded");
                        if synced.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(5 + round * 7));
        server.stop.stop();
        assert_eq!(server.ended(), Ended::Stopped);
        gone.store(true, Ordering::SeqCst);
        in_finite_time(move || writers.into_iter().for_each(|writer| writer.join().unwrap()));
        in_finite_time(move || {
            assert!(client.sync().is_err(), "each later sync fails");
            assert!(client.read("other").is_err());
            assert!(client.write("new", b"x").is_err());
            drop(file);
            client.unmount().unwrap_err();
        });
    }
}

#[test]
fn nobody_at_the_socket() {
    let place = tempfile::tempdir().unwrap();
    let missing = VhostUserLink::connect(place.path().join("none"), LinkOptions::default());
    assert!(matches!(missing, Err(ConnectError::Connect { .. })));
    let abandoned = place.path().join("abandoned");
    drop(UnixListener::bind(&abandoned).unwrap());
    let refused = VhostUserLink::connect(&abandoned, LinkOptions::default());
    assert!(matches!(refused, Err(ConnectError::Connect { .. })));
    let too_long = VhostUserLink::connect("x".repeat(200), LinkOptions::default());
    assert!(matches!(too_long, Err(ConnectError::Connect { .. })));
}

fn impatient() -> LinkOptions {
    LinkOptions { patience: Duration::from_millis(300), pages: 64, ..LinkOptions::default() }
}

#[test]
fn a_socket_where_nobody_answers_is_given_up() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("silent");
    let _listener = UnixListener::bind(&path).unwrap();
    in_finite_time(move || {
        // Until the backlog is full, and then some: from then on even connecting waits.
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let silent = VhostUserLink::connect(&path, impatient()).unwrap_err();
            assert!(matches!(silent, ConnectError::Silent { .. }), "{silent}");
        }
        while let Ok(stream) = nonblocking_connect(&path) {
            waiting.push(stream);
        }
        let silent = VhostUserLink::connect(&path, impatient()).unwrap_err();
        assert!(matches!(silent, ConnectError::Silent { .. }), "{silent}");
    });
}

fn nonblocking_connect(path: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A server of something else: says what it likes to everybody who connects.
fn babbling(answer: impl Fn(UnixStream) + Send + 'static) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
    (place, path)
}

#[test]
fn another_kind_of_server_is_recognised() {
    let http = |mut stream: UnixStream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    };
    let hangs_up = drop;
    let noise = |mut stream: UnixStream| {
        let _ = stream.write_all(&pattern(3, 1 << 16));
    };
    for (_place, path) in [babbling(http), babbling(hangs_up), babbling(noise)] {
        let error = in_finite_time(move || VhostUserLink::connect(&path, impatient()).unwrap_err());
        assert!(matches!(error, ConnectError::NotAServer { .. }), "{error}");
    }
}

/// Takes the rings and never answers a request.
#[test]
fn a_server_that_takes_requests_and_never_answers_is_given_up() {
    let (_place, path, stop) = device_that(|mut queue| {
        use ashore_wire::seam::RequestQueue;
        let mut kept = Vec::new();
        while let Some(exchange) = queue.next() {
            kept.push(exchange);
        }
    });
    let error = in_finite_time(move || {
        let options =
            ClientOptions { connect_timeout: Duration::from_millis(300), ..ClientOptions::default() };
        let link = VhostUserLink::connect(&path, impatient()).unwrap();
        Client::new(link, options).unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    stop.stop();
}

fn device_that(
    handler: impl Fn(ashore_vhost_user::device::DeviceQueue) + Send + Sync + 'static,
) -> (TempDir, PathBuf, StopHandle) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let device = Device::new(DeviceOptions::default(), move |_, queue| handler(queue)).unwrap();
    let stop = device.stop_handle();
    thread::spawn(move || device.serve(&listener));
    (place, path, stop)
}
