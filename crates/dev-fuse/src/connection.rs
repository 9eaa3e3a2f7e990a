//! The kernel's side of a mount, as fusectl shows it: for ending a connection that somebody still uses.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::{Errno, Result, write};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where fusectl usually is.
const FUSECTL: &str = "/sys/fs/fuse/connections";

/// A file system, by the device number that stat(2) shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Connection {
    major: u32,
    minor: u32,
}

impl Connection {
    /// The one mounted at `path`. Asks the kernel only, not the file system.
    pub(crate) fn at(path: &Path) -> Result<Connection> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let found = statx(CWD, path, flags, StatxFlags::empty())?;
        Ok(Connection { major: found.stx_dev_major, minor: found.stx_dev_minor })
    }

    /// Ends the connection: whoever waits for an answer gets ECONNABORTED, whoever asks later ENOTCONN.
    pub(crate) fn abort(self) -> Result<()> {
        let name = format!("{}/abort", self.kernel_number());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::open(Path::new(FUSECTL).join(&name), flags, Mode::empty()) {
            // Not mounted: a mount of our own that nobody else sees.
            Err(Errno::NOENT) => {
                let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
                fsconfig_create(&context)?;
                let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
                openat(root, &name, flags, Mode::empty())?
            }
            opened => opened?,
        };
        write(file, b"1").map(drop)
    }

    /// A connection's name in fusectl is the device number as the kernel has it inside.
    fn kernel_number(self) -> u32 {
        self.major << 20 | self.minor
    }
}
