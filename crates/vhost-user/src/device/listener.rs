//! The socket VMMs connect to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, connect, listen, socket_with, sockopt};

/// Bytes of the longest path a Unix socket can have; its NUL makes it 108.
const PATH_BYTES_MAX: usize = 107;
/// VMMs that may wait to be served.
const WAITING_MAX: i32 = 16;

/// Why there is nothing to connect to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path is too long for a socket.
    #[error(
        "{path} cannot be a socket: it has {bytes} bytes and the system allows {PATH_BYTES_MAX}; choose a shorter path"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody listens there.
    #[error("{0} is in use by another server: stop it, or choose another socket path")]
    InUse(PathBuf),
    /// There is a file that is not a socket.
    #[error("{0} exists and is not a socket: remove it, or choose another socket path")]
    NotASocket(PathBuf),
    /// The directory for it does not exist.
    #[error(
        "{0} cannot be made because its directory does not exist: create the directory, or choose another socket path"
    )]
    NoDirectory(PathBuf),
    /// The directory, or the socket that is there, is not ours to use.
    #[error("{0} cannot be made: no permission; choose a directory that you may write to")]
    NoPermission(PathBuf),
    /// An inherited file descriptor is something else.
    #[error("the inherited file descriptor is not a listening Unix socket")]
    NotListening,
    /// Something else failed.
    #[error("{path} cannot be made: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A listening socket. One that was made here is removed in the end.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens at a path. A socket file that a server left behind is replaced; one that is in use is not.
    pub fn bind(path: impl AsRef<Path>) -> Result<Listener, ListenError> {
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > PATH_BYTES_MAX {
            return Err(ListenError::PathTooLong { path: path.to_owned(), bytes });
        }
        let socket = match bind_for_owner(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind_for_owner(path)
            }
            other => other,
        };
        let socket = socket.map_err(|error| explain(path, error))?;
        let file = SocketFile::at(path).map_err(|error| explain(path, error))?;
        Listener::new(socket, Some(file)).map_err(|error| explain(path, error))
    }

    /// Listens on a socket that somebody else has made, a service manager for example.
    pub fn from_fd(fd: OwnedFd) -> Result<Listener, ListenError> {
        let listens = sockopt::socket_acceptconn(&fd).unwrap_or(false);
        let unix = sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        if !listens || !unix {
            return Err(ListenError::NotListening);
        }
        Listener::new(fd.into(), None).map_err(|_| ListenError::NotListening)
    }

    /// Listens on a socket that was inherited by its number, as service managers and VMM launchers hand it over.
    ///
    /// To be called once for a number, before anything else in the process could use it.
    pub fn inherit(fd: RawFd) -> Result<Listener, ListenError> {
        // Checked before it is owned: a number without a file, or with another kind of file, is left alone.
        if fs::metadata(format!("/proc/self/fd/{fd}"))
            .map(|file| file.file_type().is_socket())
            .unwrap_or(false)
        {
            // SAFETY: the number is open, it is a socket, and whoever started us says that it is ours: it came with
            // the process, so no value in here owns it. A wrong number that passes for one would be refused by
            // `from_fd`, which closes it: no memory is unsafe for that.
            Listener::from_fd(unsafe { OwnedFd::from_raw_fd(fd) })
        } else {
            Err(ListenError::NotListening)
        }
    }

    /// The socket file stays when this is dropped: another process takes it away.
    pub fn leave_file(&mut self) {
        if let Some(file) = &mut self.file {
            file.stays = true;
        }
    }

    /// The path, if it was bound here.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    fn new(socket: UnixListener, file: Option<SocketFile>) -> io::Result<Listener> {
        // Whoever connects may be gone again before we accept, and waiting for the next one could not be stopped.
        socket.set_nonblocking(true)?;
        Ok(Listener { socket, file })
    }

    /// The VMM that has connected, if there still is one.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {
                    Ok(None)
                }
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket file, known by its inode, so that a successor's is not mistaken for ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    /// It is not ours to remove.
    stays: bool,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), inode: inode_of(path)?, stays: false })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays && inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Left behind, it would be replaced by the next server.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a path that only its owner may connect to: whoever can is given the shared files.
///
/// The mode is that of the socket when it is bound, less the umask. A server of files runs with an empty umask, so
/// the mode must not be left to it, and setting it afterwards would leave a moment in which anybody could connect.
fn bind_for_owner(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, WAITING_MAX)?;
    Ok(socket.into())
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket file that nobody listens at.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| explain(path, error))?;
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    if is_listened_at(path).map_err(|error| explain(path, error))? {
        return Err(ListenError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(|error| explain(path, error))
}

/// Whether a socket file has a socket behind it. Asked by a connection of the wrong type, which the kernel refuses
/// with another error if there is one: a real connection would be taken for a VMM.
fn is_listened_at(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match connect(&probe, &address) {
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn explain(path: &Path, error: io::Error) -> ListenError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ListenError::NoDirectory(path),
        io::ErrorKind::PermissionDenied => ListenError::NoPermission(path),
        io::ErrorKind::AddrInUse => ListenError::InUse(path),
        _ => ListenError::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not_disturbed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path).unwrap_err(), ListenError::InUse(_)));
        assert!(listener.accept().unwrap().is_none(), "asking was no connection");
        assert_eq!(listener.path(), Some(path.as_path()));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn only_the_owner_may_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("aside")).unwrap();
        let successor = Listener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_is_left_to_another_process_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listener = Listener::bind(&path).unwrap();
        listener.leave_file();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn every_wrong_path_is_explained_in_one_sentence() {
        let directory = tempfile::tempdir().unwrap();
        let explained = |path: PathBuf| Listener::bind(path).unwrap_err().to_string();
        let long = explained(directory.path().join("x".repeat(108)));
        assert!(long.contains("bytes and the system allows 107; choose a shorter path"), "{long}");
        let missing = explained(directory.path().join("none/socket"));
        assert!(missing.contains("its directory does not exist"), "{missing}");
        let file = directory.path().join("file");
        fs::write(&file, b"data").unwrap();
        let taken = explained(file.clone());
        assert!(taken.contains("exists and is not a socket"), "{taken}");
        assert_eq!(fs::read(file).unwrap(), b"data");
        let denied = explain(Path::new("/s"), io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains("no permission"), "{denied}");
    }

    #[test]
    fn an_inherited_descriptor_must_listen() {
        let directory = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert!(Listener::from_fd(listening.into()).unwrap().path().is_none());
        let (stream, _other) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        for fd in [OwnedFd::from(stream), datagram.into(), file.into()] {
            assert!(matches!(Listener::from_fd(fd), Err(ListenError::NotListening)));
        }
    }
}
