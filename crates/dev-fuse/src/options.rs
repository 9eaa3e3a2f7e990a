//! How a mount is to be made, and why it cannot be.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Options of a mount. [`MountOptions::mount`] makes it.
#[derive(Clone, Debug)]
pub struct MountOptions {
    pub(crate) source: String,
    pub(crate) subtype: String,
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) default_permissions: bool,
    pub(crate) suid: bool,
    pub(crate) dev: bool,
    pub(crate) noexec: bool,
    pub(crate) max_read: Option<u32>,
    pub(crate) max_write: u32,
    pub(crate) syncfs: bool,
    pub(crate) write_back_barrier: bool,
    pub(crate) recover: bool,
    pub(crate) transport: Transport,
}

/// How requests of the kernel come to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Each is read from `/dev/fuse`, and its answer written.
    #[default]
    Device,
    /// Through io_uring where the kernel offers that (Linux 6.14, with the fuse module's parameter `enable_uring`), or else as above.
    Any,
    /// Through io_uring, or not at all.
    IoUring,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions::new()
    }
}

impl MountOptions {
    /// A mount for its owner alone, with set-user-id bits and device nodes ineffective.
    pub fn new() -> MountOptions {
        MountOptions {
            source: "ashore".into(),
            subtype: "ashore".into(),
            read_only: false,
            allow_other: false,
            default_permissions: true,
            suid: false,
            dev: false,
            noexec: false,
            max_read: None,
            max_write: 1 << 20,
            syncfs: false,
            write_back_barrier: false,
            recover: false,
            transport: Transport::Device,
        }
    }

    /// What mount tables show as the source (`fsname`), "ashore" unless told otherwise.
    pub fn source(mut self, source: impl Into<String>) -> MountOptions {
        self.source = source.into();
        self
    }

    /// What mount tables show behind `fuse.`, "ashore" unless told otherwise.
    pub fn subtype(mut self, subtype: impl Into<String>) -> MountOptions {
        self.subtype = subtype.into();
        self
    }

    /// No change reaches the file system.
    pub fn read_only(mut self, on: bool) -> MountOptions {
        self.read_only = on;
        self
    }

    /// Other users than the one who mounts may come in; root too. Who is not root needs `user_allow_other` in
    /// `/etc/fuse.conf`.
    pub fn allow_other(mut self, on: bool) -> MountOptions {
        self.allow_other = on;
        self
    }

    /// The kernel checks permissions by owner and mode, as it does for a guest. On unless told otherwise; a file system that
    /// grants ALLOW_IDMAP must not go without, for the kernel refuses a connection that does.
    pub fn default_permissions(mut self, on: bool) -> MountOptions {
        self.default_permissions = on;
        self
    }

    /// Set-user-id bits have their effect.
    pub fn suid(mut self, on: bool) -> MountOptions {
        self.suid = on;
        self
    }

    /// Device nodes have their effect.
    pub fn dev(mut self, on: bool) -> MountOptions {
        self.dev = on;
        self
    }

    /// No program may be executed from the mount.
    pub fn noexec(mut self, on: bool) -> MountOptions {
        self.noexec = on;
        self
    }

    /// Bytes that the kernel reads with one request, at most; unless given, `max_write` bounds it.
    pub fn max_read(mut self, bytes: u32) -> MountOptions {
        self.max_read = Some(bytes);
        self
    }

    /// Bytes in one READ or WRITE, at most: no less than what the server agrees to in INIT (`Limits::max_write`), 1 MiB unless
    /// told otherwise. Buffers are this long.
    pub fn max_write(mut self, bytes: u32) -> MountOptions {
        self.max_write = bytes;
        self
    }

    /// The kernel is to pass on sync(2) and syncfs(2), which it does since Linux 6.18 for what root mounts from a block device:
    /// then the mount is of type `fuseblk`, on a loop device of its own. Fails where that cannot be;
    /// [`SyncDelivery::of_this_machine`] tells before.
    pub fn deliver_syncs(mut self, on: bool) -> MountOptions {
        self.syncfs = on;
        self
    }

    /// Before a SYNCFS reaches the server, the kernel is made to write back what it holds of every file that is open for writing,
    /// and to drop it from its cache. Needed with `deliver_syncs` wherever the kernel may hold dirty pages, in its write-back
    /// cache or in shared mappings: newer ones (Linux 6.18.21, 6.19.11, 7.0) send SYNCFS without having waited for them.
    pub fn write_back_barrier(mut self, on: bool) -> MountOptions {
        self.write_back_barrier = on;
        self
    }

    /// How requests come.
    pub fn transport(mut self, transport: Transport) -> MountOptions {
        self.transport = transport;
        self
    }

    /// A mount whose server has died is in the way at the mount point: take it away.
    pub fn recover(mut self, on: bool) -> MountOptions {
        self.recover = on;
        self
    }
}

/// Whether the kernel can be made to pass on sync(2) and syncfs(2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncDelivery {
    /// With [`MountOptions::deliver_syncs`].
    Possible,
    /// Only fsync(2) arrives, for this reason.
    Impossible(String),
}

/// The first Linux that passes syncs on to `fuseblk`.
const FUSEBLK_SYNCS_SINCE: (u32, u32) = (6, 18);

impl SyncDelivery {
    /// What this kernel does, for this process.
    pub fn of_this_machine() -> SyncDelivery {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        if version(&release).is_none_or(|version| version < FUSEBLK_SYNCS_SINCE) {
            let (major, minor) = FUSEBLK_SYNCS_SINCE;
            return Self::Impossible(format!(
                "Linux {release} does not pass it on to file systems like this; {major}.{minor} does"
            ));
        }
        if !rustix::process::geteuid().is_root() {
            return Self::Impossible("the kernel passes it on only to what root mounts".into());
        }
        if !knows_fuseblk() {
            return Self::Impossible(
                "this kernel has no fuseblk, and passes it on to no other kind of mount".into(),
            );
        }
        if let Err(error) = rustix::fs::access("/dev/loop-control", rustix::fs::Access::WRITE_OK) {
            return Self::Impossible(format!(
                "it takes a loop device, and /dev/loop-control is out of reach: {error}"
            ));
        }
        Self::Possible
    }
}

/// Modules that are not loaded yet are not in the list; fuse is by now, for fuseblk is part of it.
fn knows_fuseblk() -> bool {
    std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\tfuseblk\n"))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Why a mount cannot be made, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is the remainder of a mount whose server has died.
    #[error(
        "a mount whose server has died is still at {0} (Transport endpoint is not connected); take it away with: \
         umount -l {0}"
    )]
    Dead(PathBuf),
    /// There is no such mount point, or it cannot be looked at.
    #[error("cannot mount on {path}: {source}; make the directory first: mkdir -p {path}")]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {0}; load the module (modprobe fuse), or give this container the device")]
    Device(io::Error),
    /// No loop device can be had.
    #[error(
        "no loop device for the mount: {0}; the kernel passes sync(2) on only to a mount on a block device. Free one \
         (losetup -a shows them), or mount without it"
    )]
    LoopDevice(io::Error),
    /// Requests are to come through io_uring, and cannot.
    #[error("FUSE over io_uring cannot be used: {0}; or mount without asking for it")]
    NoIoUring(String),
    /// The kernel refused.
    #[error("cannot mount on {path}: {step} failed: {errno}{}", Explained(.explanation))]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// Which call.
        step: &'static str,
        /// What it said.
        errno: Errno,
        /// In the kernel's own words, where it has some.
        explanation: String,
    },
    /// This user may not mount, and fusermount3 is not there to do it for him.
    #[error(
        "this user may not mount ({0}), and fusermount3 cannot be run: {1}; install it (Debian: apt install fuse3), or \
         run as root"
    )]
    NoFusermount(Errno, io::Error),
    /// fusermount3 refused. It has told why on standard error.
    #[error(
        "fusermount3 could not mount on {0}; what it said stands above. /dev/fuse has to be open to everybody (chmod 666), and \
         the mount point must be this user's own"
    )]
    Fusermount(PathBuf),
}

struct Explained<'a>(&'a str);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_uname_says() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn a_dead_mount_is_reported_with_the_command_that_takes_it_away() {
        let message = MountError::Dead("/mnt/share".into()).to_string();
        assert!(message.ends_with("umount -l /mnt/share"), "{message}");
    }
}
