//! How a client is to behave.

use std::time::Duration;

/// What the client may keep of a file's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// Nothing: every read and write is a request.
    None,
    /// What was read and written is kept; a write returns when the server has it.
    WriteThrough,
    /// As [`CacheMode::WriteThrough`], and a write returns when the cache has it. The server gets it later, at the
    /// latest with the next [`Client::sync`](crate::Client::sync) or [`File::sync_all`](crate::File::sync_all).
    ///
    /// Sizes and times of files are the client's in this mode. A server that does not agree to it
    /// (`FUSE_WRITEBACK_CACHE`) gets [`CacheMode::WriteThrough`], and
    /// [`Client::cache_mode`](crate::Client::cache_mode) says so.
    #[default]
    WriteBack,
}

/// What a sync returns if the server cannot be asked to make its side stable (SYNCFS or FSYNC answered ENOSYS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncUnsupported {
    /// An error that says so. Everything was sent all the same.
    #[default]
    Error,
    /// Success, as the Linux client does: the server has everything, and whether it is stable nobody knows.
    Success,
}

/// How a client is to behave.
///
/// ```
/// use ashore_client::{CacheMode, Options};
/// let options = Options { cache: CacheMode::WriteThrough, ..Options::default() };
/// assert!(options.request_timeout.is_some());
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// What may be kept of a file's data.
    pub cache: CacheMode,
    /// What a sync returns if the server cannot sync.
    pub sync_unsupported: SyncUnsupported,
    /// A read-only mount: nothing is changed, and a sync has nothing to do.
    pub read_only: bool,
    /// A connection on which a request stays unanswered for so long is given up, and everything that waits on it
    /// fails. `None` waits for ever.
    pub request_timeout: Option<Duration>,
    /// The same for the first request, INIT.
    pub connect_timeout: Duration,
    /// Age at which a dirty page is written back without anybody asking.
    pub writeback_age: Duration,
    /// Share of the page cache, in percent, above which writing back begins at once.
    pub background_percent: u8,
    /// Share of the page cache, in percent, above which writers wait for pages to become clean.
    pub dirty_percent: u8,
    /// WRITEs of the cache that may be in flight, at most; the server's `max_background` may lower it.
    pub max_writebacks: u16,
    /// Bytes read ahead of a sequential reader, at most; the server's `max_readahead` may lower it.
    pub max_readahead: u32,
    /// User and group the server is told; `None` is this process's.
    pub caller: Option<(u32, u32)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache: CacheMode::default(),
            sync_unsupported: SyncUnsupported::default(),
            read_only: false,
            request_timeout: Some(Duration::from_secs(120)),
            connect_timeout: Duration::from_secs(10),
            writeback_age: Duration::from_secs(5),
            background_percent: 10,
            dirty_percent: 40,
            max_writebacks: 64,
            max_readahead: 4 << 20,
            caller: None,
        }
    }
}

/// How long a caller of [`Client::sync_with`](crate::Client::sync_with) is willing to wait.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// Gives up after this time, with [`TimedOut`](std::io::ErrorKind::TimedOut).
    pub timeout: Option<Duration>,
    /// Gives up when told to, with [`Interrupted`](std::io::ErrorKind::Interrupted).
    pub cancel: Option<crate::Cancel>,
}
