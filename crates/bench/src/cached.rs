//! Files through Ashore's client: what its cache makes of a server.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ashore_client::{CacheMode, Client, File, OpenOptions, Options};
use ashore_vhost_user::driver::{LinkOptions, VhostUserLink};
use ashore_wire::link::Link;

use crate::meter::{Meter, Sample};
use crate::process::Process;
use crate::rows::KIB_4;
use crate::tree::BIG_BYTES;
use crate::{BenchArguments, PATIENCE};

/// Pages of the cache: so many that the file is not much, and nothing of it is written back for want of room.
const CACHE_PAGES: u32 = 16 * (BIG_BYTES as usize / KIB_4) as u32;
/// The file, in the root of the share.
const NAME: &str = "ashore-bench-cached";

/// A client with a file that its cache holds.
pub(crate) struct Cached {
    client: Client,
    file: File,
}

impl Cached {
    pub(crate) fn connect(arguments: &BenchArguments, socket: &Path) -> Result<(Cached, Process)> {
        let options = LinkOptions {
            pages: CACHE_PAGES,
            request_queues: arguments.queues,
            poll_us: arguments.poll_us,
            ..LinkOptions::default()
        };
        let link = VhostUserLink::connect(socket, options).context(
            "no second connection for files that are cached; a server that takes one only needs --only, or --keep-listening",
        )?;
        let process = Process::new(link.server_process().context("which process is the server?")?);
        let options = Options { request_timeout: Some(PATIENCE), ..Options::default() };
        let client = Client::with_link(Arc::new(link) as Arc<dyn Link>, options)?;
        let create = OpenOptions::new().read(true).write(true).create(true);
        let file = client.open_with(NAME, &create).context("a file cannot be made in the share")?;
        file.write_all_at(&vec![1; BIG_BYTES as usize], 0)?;
        client.sync()?;
        Ok((Cached { client, file }, process))
    }

    /// Removes the file, and leaves.
    pub(crate) fn close(self) -> Result<()> {
        self.client.remove_file(NAME)?;
        drop(self.file);
        Ok(self.client.unmount()?)
    }

    /// One after the other, round and round.
    pub(crate) fn read(&self, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
        let (mut buffer, mut offset) = (vec![0; bytes], 0);
        meter.run(|| {
            self.file.read_exact_at(&mut buffer, offset)?;
            offset = (offset + bytes as u64) % BIG_BYTES;
            Ok(1)
        })
    }

    pub(crate) fn write(&self, meter: &Meter<'_>, bytes: usize) -> Result<Sample> {
        let granted = self.client.cache_mode() == CacheMode::WriteBack;
        ensure!(granted, "the server grants no write-back cache; try --writeback");
        let (buffer, mut offset) = (vec![1; bytes], 0);
        meter.run(|| {
            self.file.write_all_at(&buffer, offset)?;
            offset = (offset + bytes as u64) % BIG_BYTES;
            Ok(1)
        })
    }

    /// By its path.
    pub(crate) fn metadata(&self, meter: &Meter<'_>) -> Result<Sample> {
        meter.run(|| Ok(self.client.metadata(NAME).map(|_| 1)?))
    }

    /// A page that is dirty, and a sync of the whole share.
    pub(crate) fn sync(&self, meter: &Meter<'_>) -> Result<Sample> {
        let page = [1; KIB_4];
        meter.run(|| {
            self.file.write_all_at(&page, 0)?;
            self.client.sync()?;
            Ok(1)
        })
    }
}
