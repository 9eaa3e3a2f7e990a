//! The kernel's side of a mount, as fusectl shows it: for ending a connection that somebody still uses.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::{Errno, Result, write};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where fusectl usually is.
const FUSECTL: &str = "/sys/fs/fuse/connections";

/// Asks statx(2) for an id that no later mount gets, rather than for one that may be used again. Linux before 6.8 answers with
/// the other.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A mounted file system: its device number, as stat(2) shows it, and the id of the mount, for device numbers are used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Connection {
    major: u32,
    minor: u32,
    mount: u64,
}

impl Connection {
    /// The one mounted at `path`. Asks the kernel only, not the file system.
    pub(crate) fn at(path: &Path) -> Result<Connection> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let found = statx(CWD, path, flags, StatxFlags::MNT_ID | MOUNT_ID_UNIQUE)?;
        Ok(Connection { major: found.stx_dev_major, minor: found.stx_dev_minor, mount: found.stx_mnt_id })
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
