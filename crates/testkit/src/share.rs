//! A directory of the host, shared by servers of one kind: ours in this process, or virtiofsd. A test of the client
//! that takes any of them holds both against the same directory.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ashore_client::{Client, ConnectOptions};
use ashore_passthrough::{Options, Passthrough};
use ashore_server::{Limits, Session};
use tempfile::TempDir;

use crate::guest::{cache, is_listened_at};
use crate::in_process::InProcess;

/// Far more than a server takes to come up or to end, and finite.
const FINITE: Duration = Duration::from_secs(30);

/// Whose server it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Ours, with two request queues.
    Ashore,
    /// virtiofsd, which has one.
    Virtiofsd,
}

/// A directory to share, with as many servers of it as there are clients: each serves one.
pub struct SharedDirectory {
    whose: Whose,
    folder: TempDir,
}

impl SharedDirectory {
    /// An empty one. Servers grant write-back and have extended attributes.
    pub fn new(whose: Whose) -> SharedDirectory {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("share")).unwrap();
        SharedDirectory { whose, folder }
    }

    /// The directory on the host.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// Starts a server, and a client on it.
    pub fn mount(&self, options: ConnectOptions) -> Mounted {
        let server = match self.whose {
            Whose::Ashore => Server::Ashore(ashore(&self.path())),
            Whose::Virtiofsd => {
                Server::Virtiofsd(Virtiofsd::start(&self.path(), &["--writeback", "--xattr"]))
            }
        };
        let client = options.request_queues(2).connect(server.socket()).unwrap();
        Mounted { client: Some(client), server: Some(server) }
    }
}

/// A client and its server.
pub struct Mounted {
    client: Option<Client>,
    server: Option<Server>,
}

impl Mounted {
    /// Unmounts; the server ends in peace.
    pub fn leave(mut self) {
        self.client.take().unwrap().unmount().unwrap();
        if let Some(Server::Virtiofsd(peer)) = self.server.take() {
            peer.ended_in_peace();
        }
    }
}

impl Deref for Mounted {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("it is there until it leaves")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A server must not go before its client.
        self.client.take();
    }
}

enum Server {
    Ashore(InProcess<Passthrough>),
    Virtiofsd(Virtiofsd),
}

impl Server {
    fn socket(&self) -> PathBuf {
        match self {
            Server::Ashore(server) => server.socket(),
            Server::Virtiofsd(peer) => peer.socket(),
        }
    }
}

fn ashore(share: &Path) -> InProcess<Passthrough> {
    // So few descriptors that inodes are found again by handle.
    let options = Options { writeback: true, xattr: true, descriptor_bound: 4, ..Options::new(share) };
    InProcess::serve(Session::new(Passthrough::new(options).unwrap(), Limits::default()), 2).unwrap()
}

/// A virtiofsd of its own process. It serves one client and ends when that leaves.
pub struct Virtiofsd {
    child: Child,
    folder: TempDir,
}

impl Virtiofsd {
    /// Serves `share`, and waits until it listens.
    pub fn start(share: &Path, more: &[&str]) -> Virtiofsd {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(virtiofsd());
        command.args(["--sandbox", "none", "--seccomp", "none", "--shared-dir"]).arg(share);
        command.arg("--socket-path").arg(folder.path().join("socket")).args(more);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let peer = Virtiofsd { child, folder };
        let begun = Instant::now();
        while !is_listened_at(&peer.socket()) {
            assert!(begun.elapsed() < FINITE, "virtiofsd listens in finite time");
            sleep(Duration::from_millis(2));
        }
        peer
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its client has left: it ends, and says that all went well.
    pub fn ended_in_peace(mut self) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < FINITE, "virtiofsd ends when its client has left");
            sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{status}");
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn virtiofsd() -> PathBuf {
    let program = cache::peers().unwrap().join("bin/virtiofsd");
    assert!(
        program.exists(),
        "{} is not there: run `cargo xtask setup --peers`, or `cargo xtask test peers`, which does",
        program.display()
    );
    program
}
