//! A connection from its beginning to its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;

use ashore_barrier::Barrier;
use ashore_wire::abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION};
use ashore_wire::flags::InitFlags;
use ashore_wire::{Errno, NodeId, Opcode};

use super::connection::Connection;
use super::flusher::{self, Chores};
use super::inodes::Inodes;
use super::message::Outgoing;
use super::patience::Patience;
use super::pool::{Pool, Slots};
use super::port::{Inbox, Memory, Port};
use super::{Agreed, Mount};
use crate::CacheMode;
use crate::Options;
use crate::core::errors::ErrorLog;
use crate::core::names::NameCache;
use crate::core::pages::PAGE_SIZE;
use crate::core::rounds::Rounds;
use crate::link::Link;
use crate::primitives::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::primitives::{Condvar, HashMap, Instant, Mutex, thread::JoinHandle};

/// Pages of one READ or WRITE if the server does not say (as without MAX_PAGES).
const PAGES_WITHOUT_MAX_PAGES: u64 = 32;
/// Smallest memory a link may have: a few requests' worth.
const FEWEST_PAGES: u32 = 64;

/// A mount and the thread behind it. Whoever uses the mount holds this; when nobody does any more, it takes leave of
/// the server: a last sync, DESTROY, and the end of the link.
pub(crate) struct Session {
    pub(crate) mount: Arc<Mount>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// Greets the server.
    pub(crate) fn start(link: Arc<dyn Link>, options: Options) -> Result<Session, Errno> {
        if link.pages() < FEWEST_PAGES {
            return Err(Errno::ENOMEM);
        }
        let connect_patience = Patience::at_most(options.connect_timeout);
        let mount = Arc::new(new_mount(Arc::clone(&link), options));
        link.start(Arc::new(Inbox(Arc::downgrade(&mount))));
        if let Err(errno) = mount.greet(&connect_patience).and_then(|()| mount.make_root(&connect_patience)) {
            mount.abort();
            return Err(errno);
        }
        let weak = Arc::downgrade(&mount);
        let flusher = crate::primitives::thread::Builder::new()
            .name("ashore-flusher".into())
            .spawn(move || flusher::run(&weak));
        let flusher = flusher.map_err(Errno::from)?;
        Ok(Session { mount, flusher: Mutex::new(Some(flusher)) })
    }

    /// Takes leave of the server. The last sync's result is returned; everything after it is done all the same.
    pub(crate) fn end(&self) -> Result<(), Errno> {
        let synced = self.mount.sync(&Patience::ENDLESS);
        if self.mount.unmounted.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.mount.take_leave();
        if let Some(flusher) = self.flusher.lock().take() {
            // It has no way to fail but to panic, which has been reported by then.
            _ = flusher.join();
        }
        synced
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(errno) = self.end() {
            tracing::error!("the last sync before the end of the connection failed: {errno}");
        }
    }
}

impl Mount {
    /// INIT.
    fn greet(&self, patience: &Patience) -> Result<(), Errno> {
        let mut flags = InitFlags::ASYNC_READ
            | InitFlags::BIG_WRITES
            | InitFlags::MAX_PAGES
            | InitFlags::PARALLEL_DIROPS
            | InitFlags::SUBMOUNTS
            | InitFlags::INIT_EXT;
        if self.options.cache == CacheMode::WriteBack {
            flags |= InitFlags::WRITEBACK_CACHE;
        }
        let offer = InitIn {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            max_readahead: self.options.max_readahead,
            flags: flags.bits() as u32,
            ..Default::default()
        };
        let request = Outgoing::new(Opcode::Init, NodeId(0)).with(&offer).expect::<InitOut>();
        let reply = self.ask(request, None, |answer| answer?.read::<InitOut>());
        let out = self.wait_reply(reply, patience)??;
        if out.major != KERNEL_VERSION || out.minor < OLDEST_MINOR_VERSION {
            return Err(Errno::EPROTO);
        }
        let agreed = agree(&self.options, &out, self.pool.total());
        if out.max_background > 0 {
            self.slots.lower_limit(usize::from(out.max_background));
        }
        self.agreed.set(agreed).map_err(|_| Errno::EPROTO)
    }

    /// The end, after the last sync: gives names and handles back, says DESTROY, closes the link.
    fn take_leave(self: &Arc<Self>) {
        drop(self.names.lock().forget_all());
        if self.connection.check().is_ok() {
            let patience = Patience::at_most(self.options.connect_timeout);
            let reply =
                self.ask(Outgoing::new(Opcode::Destroy, NodeId(0)), None, |answer| answer.map(|_| ()));
            _ = self.wait_reply(reply, &patience);
        }
        self.chores.stop();
        self.abort();
    }
}

/// What this client makes of the server's answer to INIT.
fn agree(options: &Options, out: &InitOut, pool_pages: usize) -> Agreed {
    let flags = InitFlags::from_bits_retain(u64::from(out.flags));
    let cache = match options.cache {
        CacheMode::WriteBack if !flags.contains(InitFlags::WRITEBACK_CACHE) => {
            tracing::warn!("the server does not agree to a write-back cache: every write waits for it");
            CacheMode::WriteThrough
        }
        mode => mode,
    };
    let max_pages = match out.max_pages {
        pages if pages > 0 && flags.contains(InitFlags::MAX_PAGES) => u64::from(pages),
        _ => PAGES_WITHOUT_MAX_PAGES,
    };
    let max_write = u64::from(out.max_write) / PAGE_SIZE as u64;
    // One request must not take more than a small part of the cache, or many at once would starve each other.
    let fair_share = (pool_pages / 8) as u64;
    let write_pages = max_pages.min(max_write).min(fair_share).max(1);
    let readahead = u64::from(options.max_readahead.min(out.max_readahead)) / PAGE_SIZE as u64;
    let setxattr_ext = flags.contains(InitFlags::SETXATTR_EXT);
    Agreed { cache, write_pages, readahead_pages: readahead.min(2 * fair_share), setxattr_ext }
}

fn new_mount(link: Arc<dyn Link>, options: Options) -> Mount {
    let total = link.pages() as usize;
    let share = |percent: u8| (total * usize::from(percent.min(90)) / 100).max(1);
    let caller = options
        .caller
        .unwrap_or_else(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    Mount {
        connection: Connection::new(Port(Arc::clone(&link)), caller),
        memory: Memory(link),
        pool: Pool::new(total),
        barrier: Barrier::new(),
        agreed: OnceLock::new(),
        inodes: Inodes::default(),
        names: Mutex::new(NameCache::new()),
        superblocks: Mutex::default(),
        errors: Mutex::new(ErrorLog::default()),
        dirty_list: Mutex::new(HashMap::default()),
        clock: Mutex::new(VecDeque::new()),
        dirty_pages: AtomicUsize::new(0),
        writeback_pages: AtomicUsize::new(0),
        dirty_limit: share(options.dirty_percent),
        background_limit: share(options.background_percent),
        pressure: Mutex::new(()),
        pressure_eased: Condvar::new(),
        slots: Slots::new(usize::from(options.max_writebacks)),
        chores: Arc::new(Chores::default()),
        rounds: Mutex::new(Rounds::default()),
        round_ended: Condvar::new(),
        syncfs_missing: AtomicBool::new(false),
        unmounted: AtomicBool::new(false),
        started: Instant::now(),
        options,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_write_back_gets_write_through() {
        let out = InitOut { max_write: 1 << 20, max_readahead: 1 << 17, ..Default::default() };
        let agreed = agree(&Options::default(), &out, 1 << 16);
        assert_eq!(agreed.cache, CacheMode::WriteThrough);
        assert_eq!((agreed.write_pages, agreed.readahead_pages), (32, 32));
    }

    #[test]
    fn one_request_takes_a_small_part_of_a_small_cache() {
        let flags = (InitFlags::MAX_PAGES | InitFlags::WRITEBACK_CACHE).bits() as u32;
        let out = InitOut { max_write: 1 << 20, max_pages: 256, flags, ..Default::default() };
        assert_eq!(agree(&Options::default(), &out, 64).write_pages, 8);
        assert_eq!(agree(&Options::default(), &out, 1 << 16).write_pages, 256);
    }
}
