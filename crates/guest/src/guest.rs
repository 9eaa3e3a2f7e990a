//! A guest from its description to its end.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::agent;
use crate::channel::{Channel, Output, Running};
use crate::initramfs::Initramfs;
use crate::kernel::{DEFAULT_KERNEL, Kernel};
use crate::modules;
use crate::protocol::{Frame, Kind};
use crate::qemu::{Machine, Qemu};

/// Booting takes five seconds under emulation; the rest is for machines that do something else too.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);

/// Names another kernel for all guests that do not ask for one.
pub const KERNEL_VARIABLE: &str = "ASHORE_TEST_KERNEL";

/// A virtio-fs share of a guest.
#[derive(Clone, Debug)]
pub struct Share {
    pub(crate) socket: PathBuf,
    pub(crate) tag: String,
    pub(crate) queues: u32,
    mount_point: Option<String>,
    options: String,
}

impl Share {
    /// The share of the server at this socket, to be mounted at `/mnt/share` from one request queue.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            tag: "share".into(),
            queues: 1,
            mount_point: Some("/mnt/share".into()),
            options: String::new(),
        }
    }

    /// Another tag, and another place below which it is mounted: `/mnt/TAG`.
    pub fn tag(mut self, tag: &str) -> Self {
        self.tag = tag.to_owned();
        self.mount_point = Some(format!("/mnt/{tag}"));
        self
    }

    /// This many request queues.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Options for `mount -o`.
    pub fn mount_options(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// Leaves the mounting to the test.
    pub fn unmounted(mut self) -> Self {
        self.mount_point = None;
        self
    }

    fn mount_command(&self) -> Option<String> {
        let place = self.mount_point.as_ref()?;
        let options = if self.options.is_empty() { String::new() } else { format!("-o {}", self.options) };
        Some(format!("mkdir -p {place} && mount -t virtiofs {options} {} {place}", self.tag))
    }
}

/// A directory of the host that QEMU itself shares, over 9p.
#[derive(Clone, Debug)]
pub(crate) struct NineP {
    pub(crate) directory: PathBuf,
    pub(crate) tag: String,
}

impl NineP {
    fn mount_command(&self) -> String {
        let Self { tag, .. } = self;
        format!("mkdir -p /mnt/{tag} && mount -t 9p -o trans=virtio,version=9p2000.L {tag} /mnt/{tag}")
    }
}

/// Modules for 9p over virtio. Kernels for clouds have none of them.
const NINE_P_MODULES: [&str; 2] = ["9p", "9pnet_virtio"];

/// A disk of a guest, which is so many bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a guest shall be like.
#[derive(Clone, Debug)]
pub struct Builder {
    kernel: String,
    cpus: u32,
    memory_mib: u32,
    shares: Vec<Share>,
    nine_ps: Vec<NineP>,
    disks: Vec<Disk>,
    programs: Vec<String>,
    stripped_programs: Vec<PathBuf>,
    ashore: bool,
    files: Vec<(PathBuf, String)>,
    terminal: bool,
}

impl Builder {
    /// The version of the kernel, for example `6.12` or `6.19.10`.
    pub fn kernel(mut self, version: &str) -> Self {
        self.kernel = version.to_owned();
        self
    }

    /// Number of processors; two unless said otherwise.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Size of the memory; 512 MiB unless said otherwise.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Another share.
    pub fn share(mut self, share: Share) -> Self {
        self.shares.push(share);
        self
    }

    /// A directory that QEMU itself shares over 9p, mounted at `/mnt/TAG`. It takes a kernel such as [`FULL_KERNEL`](crate::FULL_KERNEL).
    pub fn nine_p(mut self, directory: impl Into<PathBuf>, tag: &str) -> Self {
        self.nine_ps.push(NineP { directory: directory.into(), tag: tag.to_owned() });
        self
    }

    /// Another disk, which is a part of a file: `/dev/vda` in the guest, then `/dev/vdb` and so on.
    pub fn disk(mut self, file: impl Into<PathBuf>, offset: u64, length: u64) -> Self {
        self.disks.push(Disk { file: file.into(), offset, length });
        self
    }

    /// Our own program as `/bin/ashore`: `$ASHORE_BIN` if it is set, else built from this checkout.
    pub fn ashore(mut self) -> Self {
        self.ashore = true;
        self
    }

    /// A program of the host that the guest shall have in its `/bin`, with its libraries.
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push(name.to_owned());
        self
    }

    /// A program that was built from this checkout, in the guest's `/bin` with its libraries, and without what only debuggers
    /// read, which is most of it: a guest has its root file system in memory.
    pub fn stripped_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.stripped_programs.push(program.into());
        self
    }

    /// A file of the host that the guest shall have at this absolute path of its own root file system.
    pub fn file(mut self, source: impl Into<PathBuf>, path: &str) -> Self {
        self.files.push((source.into(), path.to_owned()));
        self
    }

    /// Gives our terminal to the guest as `/dev/hvc0`.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Boots it and mounts its shares; it takes commands when this returns.
    pub fn boot(self) -> Result<Guest> {
        let kernel = Kernel::find(&self.kernel)?;
        let folder = tempfile::Builder::new().prefix("ashore-guest-").tempdir()?;
        let initramfs = folder.path().join("initramfs");
        std::fs::write(&initramfs, self.initramfs(&kernel, folder.path())?)?;
        let machine = Machine {
            kernel: &kernel.image(),
            initramfs: &initramfs,
            shares: &self.shares,
            nine_ps: &self.nine_ps,
            disks: &self.disks,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            terminal: self.terminal,
        };
        let (qemu, stream) = Qemu::start(&machine, folder.path())?;
        let (channel, release) = Channel::open(stream, BOOT_PATIENCE).with_context(|| {
            format!("the guest did not come up; its console:\n{}\n{}", qemu.console(), qemu.complaints())
        })?;
        let guest = Guest { channel, release, qemu, _folder: folder };
        guest.mount(&self.shares, &self.nine_ps)?;
        Ok(guest)
    }

    fn initramfs(&self, kernel: &Kernel, folder: &Path) -> Result<Vec<u8>> {
        let mut archive = Initramfs::new();
        archive.copy(&agent::agent()?, "/init")?;
        archive
            .add_program("busybox")
            .context("the guest's shell is made of busybox: run `cargo xtask setup` as root")?;
        archive.add_modules(&modules::needed(
            &kernel.modules(),
            if self.nine_ps.is_empty() { &[] } else { &NINE_P_MODULES },
        )?)?;
        for program in &self.programs {
            archive.add_program(program)?;
        }
        let ashore = self.ashore.then(agent::ashore).transpose()?;
        for program in self.stripped_programs.iter().chain(&ashore) {
            archive.add_program_at(&agent::stripped(program, folder)?)?;
        }
        for (source, path) in &self.files {
            archive.copy(source, Path::new(path))?;
        }
        archive.finish()
    }
}

/// A guest that is up. It is killed when this is dropped, as if its host had pulled the plug.
pub struct Guest {
    channel: Channel,
    release: String,
    qemu: Qemu,
    _folder: TempDir,
}

impl Guest {
    /// A guest with two processors, 512 MiB and no share. Its kernel is the default one, or that which
    /// `ASHORE_TEST_KERNEL` names.
    pub fn builder() -> Builder {
        Builder {
            kernel: env::var(KERNEL_VARIABLE).unwrap_or_else(|_| DEFAULT_KERNEL.to_owned()),
            cpus: 2,
            memory_mib: 512,
            shares: Vec::new(),
            nine_ps: Vec::new(),
            disks: Vec::new(),
            programs: Vec::new(),
            stripped_programs: Vec::new(),
            ashore: false,
            files: Vec::new(),
            terminal: false,
        }
    }

    /// Runs a shell command to its end. When this returns, so has the command, a moment ago.
    ///
    /// A process that the command leaves behind must not keep its output open, or this waits for it too.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.spawn(command)?.wait()
    }

    /// Starts a shell command and does not wait for it.
    pub fn spawn(&self, command: &str) -> Result<Running> {
        self.channel.spawn(command)
    }

    /// What `uname -r` says.
    pub fn kernel_release(&self) -> &str {
        &self.release
    }

    /// Everything the guest's kernel has printed so far.
    pub fn console(&self) -> String {
        self.qemu.console()
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Powers off without unmounting or syncing anything, and waits until QEMU has ended.
    pub fn shutdown(mut self) -> Result<()> {
        self.channel.send(&Frame::new(Kind::PowerOff, 0, []))?;
        self.qemu.wait(POWER_OFF_PATIENCE)
    }

    fn mount(&self, shares: &[Share], nine_ps: &[NineP]) -> Result<()> {
        let nine_ps = nine_ps.iter().map(NineP::mount_command);
        for command in shares.iter().filter_map(Share::mount_command).chain(nine_ps) {
            self.run(&command)?.success().with_context(|| {
                format!("mounting a share in the guest failed; its console:\n{}", self.console())
            })?;
        }
        Ok(())
    }
}
