//! The way to a server in one call: a link over its socket, and a client on it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ashore_vhost_user::driver::{self, LinkOptions, VhostUserLink};

use crate::core::pages::PAGE_SIZE;
use crate::{CacheMode, Client, Options};

impl Client {
    /// Connects to the virtio-fs server that listens at `socket` (`ashore serve`, or any other that speaks
    /// vhost-user), as a virtual machine would. A server serves one machine or client at a time.
    ///
    /// ```no_run
    /// # fn main() -> std::io::Result<()> {
    /// use ashore_client::Client;
    ///
    /// let client = Client::connect("/run/share.sock")?;
    /// client.write("notes.txt", b"in the cache, and nowhere else yet\n")?;
    /// client.sync()?; // on the server, and stable there; or an error
    /// client.unmount()
    /// # }
    /// ```
    pub fn connect(socket: impl AsRef<Path>) -> Result<Client, ConnectError> {
        Client::options().connect(socket)
    }

    /// What can be chosen before [`ConnectOptions::connect`].
    pub fn options() -> ConnectOptions {
        ConnectOptions::default()
    }
}

/// How to connect to a server; see [`Client::options`].
///
/// ```no_run
/// use ashore_client::{CacheMode, Client};
/// # fn main() -> std::io::Result<()> {
/// let client = Client::options()
///     .cache(CacheMode::WriteThrough)
///     .cache_bytes(256 << 20)
///     .request_queues(4)
///     .connect("/run/share.sock")?;
/// # client.unmount()
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    client: Options,
    link: LinkOptions,
}

impl ConnectOptions {
    /// What the client may keep of files' data; [`CacheMode::WriteBack`] if not given.
    #[must_use]
    pub fn cache(mut self, mode: CacheMode) -> ConnectOptions {
        self.client.cache = mode;
        self
    }

    /// Nothing is changed, and a sync has nothing to do.
    #[must_use]
    pub fn read_only(mut self, on: bool) -> ConnectOptions {
        self.client.read_only = on;
        self
    }

    /// Bytes of the page cache, rounded up to pages of 4 KiB; 64 MiB if not given. Room that is not used takes no memory.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> ConnectOptions {
        self.link.pages = u32::try_from(bytes.div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX);
        self
    }

    /// Request queues to use, at most; 1 if not given. The server may offer fewer.
    #[must_use]
    pub fn request_queues(mut self, count: u16) -> ConnectOptions {
        self.link.request_queues = count;
        self
    }

    /// How long each of the server's first answers may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> ConnectOptions {
        self.client.connect_timeout = timeout;
        self.link.patience = timeout;
        self
    }

    /// A server that goes without a word, as one that is killed does, is looked for again for so long, and the client goes on
    /// with it; calls wait meanwhile. For servers that go on where they were (`ashore serve --state-file`). Not given: its
    /// end is the end of the connection.
    #[must_use]
    pub fn reconnect(mut self, patience: Duration) -> ConnectOptions {
        self.link.reconnect = Some(patience);
        self
    }

    /// Everything about the client; replaces what was chosen before.
    #[must_use]
    pub fn client(mut self, options: Options) -> ConnectOptions {
        self.client = options;
        self
    }

    /// Everything about the link; replaces what was chosen before.
    #[must_use]
    pub fn link(mut self, options: LinkOptions) -> ConnectOptions {
        self.link = options;
        self
    }

    /// Connects to the server that listens at `socket`.
    pub fn connect(self, socket: impl AsRef<Path>) -> Result<Client, ConnectError> {
        let socket = socket.as_ref();
        let link = VhostUserLink::connect(socket, self.link)?;
        let no_file_server = |error| ConnectError::NoFileServer { path: socket.to_owned(), error };
        Client::new(link, self.client).map_err(no_file_server)
    }
}

/// Why [`Client::connect`] failed. An [`io::Error`] is made of it by `?`, with this inside.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no server, or none of virtio-fs.
    #[error(transparent)]
    Link(#[from] driver::ConnectError),
    /// A vhost-user server, but it did not answer the first requests of a file system.
    #[error(
        "{path} is a vhost-user server, but it did not accept us as a client of its file system ({error}); is it a \
         device of another kind? If it is virtio-fs, its log says why"
    )]
    NoFileServer {
        /// The socket.
        path: PathBuf,
        /// What came instead of an answer.
        error: io::Error,
    },
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        let kind = match &error {
            ConnectError::Link(
                driver::ConnectError::Connect { error, .. } | driver::ConnectError::Io(error),
            ) => error.kind(),
            ConnectError::Link(driver::ConnectError::Silent { .. }) => io::ErrorKind::TimedOut,
            ConnectError::Link(driver::ConnectError::Lacks { .. }) => io::ErrorKind::Unsupported,
            ConnectError::Link(driver::ConnectError::StateRefused { .. }) => io::ErrorKind::Other,
            ConnectError::Link(driver::ConnectError::NotAServer { .. }) => io::ErrorKind::InvalidData,
            ConnectError::NoFileServer { error, .. } => error.kind(),
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_such_socket_is_said_with_its_path_and_is_not_found_for_the_io_of_std() {
        let error = Client::connect("/nowhere/share.sock").unwrap_err();
        assert!(matches!(error, ConnectError::Link(driver::ConnectError::Connect { .. })));
        let said = error.to_string();
        assert!(
            said.contains("/nowhere/share.sock") && said.contains("check that a server is running"),
            "{said}"
        );
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.get_ref().is_some_and(|inner| inner.is::<ConnectError>()));
    }
}
