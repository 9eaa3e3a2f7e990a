//! Mounting and unmounting.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{getegid, geteuid};

use crate::backing::KernelFiles;
use crate::backlog::Turns;
use crate::buffers::Pool;
use crate::connection::Connection;
use crate::device::Device;
use crate::exchange::Origin;
use crate::fusermount;
use crate::loop_device::LoopDevice;
use crate::notify::Notifier;
use crate::options::{MountError, MountOptions, Transport};
use crate::queue::FuseQueue;
use crate::ring::RingQueue;
use crate::rings::{self, Rings};
use crate::write_back::{WAITING_SYNCS_MAX, WriteBack};

/// The kind of file at the mount point, in a mode.
const FILE_TYPE_MASK: u32 = 0o170_000;

/// The rings of a mount, and the queues that use them.
type Made = (Arc<Rings>, Vec<RingQueue>);

/// A mount. Dropped, it is unmounted.
pub struct Mount {
    path: PathBuf,
    connection: Connection,
    /// Whether fusermount3 mounted it, and must unmount it.
    by_fusermount: bool,
    state: Mutex<State>,
    notifier: Notifier,
    backing: KernelFiles,
    write_back: Option<Arc<WriteBack>>,
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount")
            .field("path", &self.path)
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Mounted,
    /// Out of sight, and still in use.
    Detached,
    Unmounted,
}

/// How unmounting went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Completely: the queues end.
    Completely,
    /// The mount is in use. Nobody can find it any more; the queues go on until its last user has gone, or until
    /// [`Mount::abort`].
    InUse,
}

impl MountOptions {
    /// Mounts on `path`, a directory for a file system whose root is one and a file for a file system that is one file.
    ///
    /// Returns the mount and `queues` queues (at least one), and one more for syncs with
    /// [`MountOptions::write_back_barrier`]. With [`MountOptions::transport`] there may be one for each processor instead, and one
    /// more. Until their threads run, whoever looks into the mount waits.
    pub fn mount(
        &self,
        path: impl AsRef<Path>,
        queues: usize,
    ) -> Result<(Mount, Vec<FuseQueue>), MountError> {
        let point = MountPoint::find(path.as_ref(), self.recover)?;
        let rings = self.rings()?;
        let (fd, by_fusermount) = match self.mount_ourselves(&point) {
            Err(MountError::Refused { errno: errno @ (Errno::PERM | Errno::ACCESS), .. }) if !self.syncfs => {
                (self.mount_by_fusermount(&point, errno)?, true)
            }
            mounted => (mounted?, false),
        };
        // Those that are not needed beside rings are closed again with the queues.
        let devices = devices(fd, queues.max(1));
        let notifier = Notifier::new(Arc::downgrade(&devices[0]));
        let backing = KernelFiles(Arc::downgrade(&devices[0]));
        let (write_back, queues) = self.queues(devices, rings, &notifier);
        let mount = Mount {
            connection: Connection::at(&point.path).map_err(|errno| point.refused("statx", errno, ""))?,
            path: point.path,
            by_fusermount,
            state: Mutex::new(State::Mounted),
            notifier,
            backing,
            write_back,
        };
        Ok((mount, queues))
    }

    /// The rings of FUSE over io_uring, if they are wanted and can be had.
    fn rings(&self) -> Result<Option<Made>, MountError> {
        if self.transport == Transport::Device {
            return Ok(None);
        }
        let made = match rings::obstacle() {
            Some(obstacle) => Err(obstacle),
            None => Rings::new().map_err(|error| format!("io_uring is not for this process: {error}")),
        };
        match made {
            Ok(made) => Ok(Some(made)),
            Err(obstacle) if self.transport == Transport::IoUring => Err(MountError::NoIoUring(obstacle)),
            Err(obstacle) => {
                tracing::info!("requests are read from /dev/fuse; FUSE over io_uring: {obstacle}");
                Ok(None)
            }
        }
    }

    fn queues(
        &self,
        mut devices: Vec<Arc<Device>>,
        rings: Option<Made>,
        notifier: &Notifier,
    ) -> (Option<Arc<WriteBack>>, Vec<FuseQueue>) {
        let (rings, ring_queues) = rings.map_or((None, Vec::new()), |(rings, queues)| (Some(rings), queues));
        if rings.is_some() {
            // For INIT, FORGET and INTERRUPT.
            devices.truncate(1);
        }
        let (reading, count) = (devices.len(), devices.len() + ring_queues.len());
        let (sender, syncs) = sync_channel(WAITING_SYNCS_MAX);
        let write_back = self.write_back_barrier.then(|| Arc::new(WriteBack::new(sender, count)));
        let pool = Arc::new(Pool::new(self.max_write as usize, count));
        let turns = Arc::new(Turns::new(count + 1));
        let origin = |device: &Arc<Device>| Origin {
            device: Arc::clone(device),
            pool: Arc::clone(&pool),
            turns: Arc::clone(&turns),
            write_back: write_back.clone(),
            rings: rings.clone(),
        };
        let mut queues: Vec<_> =
            devices.iter().enumerate().map(|(index, device)| FuseQueue::new(origin(device), index)).collect();
        queues.extend(ring_queues.into_iter().enumerate().map(|(number, ring)| {
            FuseQueue::of_ring(origin(&devices[0]), reading + number, ring, notifier.clone())
        }));
        if write_back.is_some() {
            queues.push(FuseQueue::of_syncs(origin(&devices[0]), count, syncs, notifier.clone()));
        }
        (write_back, queues)
    }

    fn mount_ourselves(&self, point: &MountPoint) -> Result<OwnedFd, MountError> {
        let fd = match Device::open() {
            Ok(fd) => fd,
            Err(errno @ Errno::ACCESS) => return Err(point.refused("opening /dev/fuse", errno, "")),
            Err(errno) => return Err(MountError::Device(errno.into())),
        };
        let device = self.syncfs.then(LoopDevice::new).transpose();
        let device = device.map_err(|errno| MountError::LoopDevice(errno.into()))?;
        let source = device.as_ref().map_or(&*self.source, LoopDevice::path);
        let parameters = self.parameters(&fd, point);
        match self.mount_in_steps(point, source, &parameters) {
            // Linux before 5.2, or a sandbox that has not heard of it.
            Err(MountError::Refused { step: "fsopen", errno: Errno::NOSYS, .. }) => {
                self.mount_at_once(point, source, &parameters)?;
            }
            outcome => outcome?,
        }
        Ok(fd)
    }

    fn file_system(&self) -> &'static str {
        if self.syncfs { "fuseblk" } else { "fuse" }
    }

    /// What the kernel's FUSE client is told, but for flags that every file system has.
    fn parameters(&self, fd: &OwnedFd, point: &MountPoint) -> Vec<(&'static str, Option<String>)> {
        let mut parameters = vec![
            ("fd", Some(fd.as_raw_fd().to_string())),
            ("rootmode", Some(format!("{:o}", point.file_type))),
            ("user_id", Some(geteuid().as_raw().to_string())),
            ("group_id", Some(getegid().as_raw().to_string())),
            ("subtype", Some(self.subtype.clone())),
        ];
        parameters.extend(self.max_read.map(|bytes| ("max_read", Some(bytes.to_string()))));
        parameters.extend(self.allow_other.then_some(("allow_other", None)));
        parameters.extend(self.default_permissions.then_some(("default_permissions", None)));
        parameters
    }

    fn mount_in_steps(
        &self,
        point: &MountPoint,
        source: &str,
        parameters: &[(&'static str, Option<String>)],
    ) -> Result<(), MountError> {
        let context = fsopen(self.file_system(), FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| point.refused("fsopen", errno, ""))?;
        let refused = |step, errno| point.refused(step, errno, &explanation(&context));
        fsconfig_set_string(&context, "source", source).map_err(|errno| refused("source", errno))?;
        for (name, value) in parameters {
            let set = match value {
                Some(value) => fsconfig_set_string(&context, *name, value),
                None => fsconfig_set_flag(&context, *name),
            };
            set.map_err(|errno| refused(name, errno))?;
        }
        if self.read_only {
            fsconfig_set_flag(&context, "ro").map_err(|errno| refused("ro", errno))?;
        }
        fsconfig_create(&context).map_err(|errno| refused("fsconfig", errno))?;
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !self.suid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !self.dev);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.noexec);
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
            .map_err(|errno| refused("fsmount", errno))?;
        move_mount(&mount, "", CWD, &point.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| refused("move_mount", errno))
    }

    fn mount_at_once(
        &self,
        point: &MountPoint,
        source: &str,
        parameters: &[(&'static str, Option<String>)],
    ) -> Result<(), MountError> {
        let words = parameters.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => (*name).to_owned(),
        });
        let data = CString::new(words.collect::<Vec<_>>().join(","))
            .map_err(|_| point.refused("mount", Errno::INVAL, "an option has a zero byte in it"))?;
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, !self.suid);
        flags.set(MountFlags::NODEV, !self.dev);
        flags.set(MountFlags::NOEXEC, self.noexec);
        rustix::mount::mount(source, &point.path, self.file_system(), flags, &*data)
            .map_err(|errno| point.refused("mount", errno, ""))
    }

    fn mount_by_fusermount(&self, point: &MountPoint, denied: Errno) -> Result<OwnedFd, MountError> {
        fusermount::mount(self, &point.path).map_err(|failure| match failure {
            fusermount::Failure::Unavailable(error) => MountError::NoFusermount(denied, error),
            fusermount::Failure::Refused => MountError::Fusermount(point.path.clone()),
        })
    }
}

/// A descriptor for each queue. Where no more can be had, queues share: who may not open `/dev/fuse` has the one that
/// fusermount3 opened for him.
fn devices(fd: OwnedFd, queues: usize) -> Vec<Arc<Device>> {
    let first = Arc::new(Device::new(fd));
    let mut devices = vec![Arc::clone(&first)];
    for _ in 1..queues {
        devices.push(first.try_clone().map_or_else(
            |errno| {
                tracing::debug!("queues share a descriptor of /dev/fuse: {errno}");
                Arc::clone(&first)
            },
            Arc::new,
        ));
    }
    devices
}

/// What the kernel wrote about a mount that it refused.
fn explanation(context: &OwnedFd) -> String {
    let mut buffer = [0; 256];
    let mut lines = Vec::new();
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        lines.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
    }
    lines.join("; ")
}

/// Where to mount: a path without links in it, and the kind of file that is there.
struct MountPoint {
    path: PathBuf,
    file_type: u32,
}

impl MountPoint {
    fn find(path: &Path, recover: bool) -> Result<MountPoint, MountError> {
        let unusable = |source| MountError::MountPoint { path: path.to_owned(), source };
        let absolute = match path.canonicalize() {
            Ok(absolute) => absolute,
            Err(error) if is_dead(&error) => return Self::find_below_dead(path, recover),
            Err(error) => return Err(unusable(error)),
        };
        match statx(CWD, &absolute, AtFlags::empty(), StatxFlags::TYPE) {
            Ok(found) => {
                Ok(MountPoint { path: absolute, file_type: u32::from(found.stx_mode) & FILE_TYPE_MASK })
            }
            Err(errno) if is_dead(&errno.into()) => Self::find_below_dead(&absolute, recover),
            Err(errno) => Err(unusable(errno.into())),
        }
    }

    fn find_below_dead(path: &Path, recover: bool) -> Result<MountPoint, MountError> {
        let dead = || MountError::Dead(path.to_owned());
        if !recover {
            return Err(dead());
        }
        let taken_away = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if taken_away.is_err() {
            fusermount::unmount(path, true).map_err(|_| dead())?;
        }
        tracing::info!("took away a mount at {} whose server had died", path.display());
        // If there was another one below, it is reported.
        Self::find(path, false)
    }

    fn refused(&self, step: &'static str, errno: Errno, explanation: &str) -> MountError {
        MountError::Refused { path: self.path.clone(), step, errno, explanation: explanation.to_owned() }
    }
}

fn is_dead(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::NOTCONN) || errno == Some(Errno::CONNABORTED)
}

impl Mount {
    /// Where it is, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For telling the kernel something.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// For giving the kernel files to read and write itself.
    pub fn backing_files(&self) -> KernelFiles {
        self.backing.clone()
    }

    /// Unmounts. Needs the queues to be served, for the kernel has last things to say; if somebody else has unmounted
    /// already, that is as good.
    ///
    /// A mount that is in use is taken out of sight ([`Unmounted::InUse`]).
    pub fn unmount(&self) -> io::Result<Unmounted> {
        let mut state = self.state.lock();
        if *state == State::Mounted {
            *state = self.take_away()?;
        }
        Ok(if *state == State::Detached { Unmounted::InUse } else { Unmounted::Completely })
    }

    /// Has the kernel write back what it holds of files that are open for writing, and waits for it. Needs the queues to be
    /// served, and does nothing without [`MountOptions::write_back_barrier`].
    pub fn write_back(&self) -> io::Result<()> {
        match &self.write_back {
            Some(write_back) => Ok(write_back.flush(&self.notifier)?),
            None => Ok(()),
        }
    }

    /// Ends the connection of a mount that is in use: its users get errors, and the queues end. What they wrote and did not
    /// sync may be lost, if it is in the kernel's write-back cache.
    pub fn abort(&self) -> io::Result<()> {
        Ok(self.connection.abort()?)
    }

    fn take_away(&self) -> io::Result<State> {
        // Somebody else may have unmounted it, and even mounted another file system.
        if Connection::at(&self.path).ok() != Some(self.connection) {
            return Ok(State::Unmounted);
        }
        if self.by_fusermount {
            return match fusermount::unmount(&self.path, false) {
                Ok(()) => Ok(State::Unmounted),
                Err(_) => fusermount::unmount(&self.path, true).map(|()| State::Detached),
            };
        }
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(State::Unmounted),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
                Ok(State::Detached)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        match self.unmount() {
            Ok(Unmounted::Completely) => {}
            Ok(Unmounted::InUse) => {
                if let Err(error) = self.abort() {
                    let path = self.path.display();
                    tracing::warn!("{path} is out of sight and still in use, and cannot be ended: {error}");
                }
            }
            Err(error) => {
                let path = self.path.display();
                tracing::error!("{path} cannot be unmounted: {error}; try: umount -l {path}");
            }
        }
    }
}
