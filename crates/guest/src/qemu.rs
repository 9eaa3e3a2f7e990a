//! The command line of a guest, and the process that runs it.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{Disk, NineP, Share};
use crate::protocol::PORT_NAME;

const PROGRAM: &str = "qemu-system-x86_64";

/// Set to 1 where KVM works and speed matters.
const KVM_VARIABLE: &str = "ASHORE_KVM";

/// What makes one machine different from another.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) shares: &'a [Share],
    pub(crate) nine_ps: &'a [NineP],
    pub(crate) disks: &'a [Disk],
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) terminal: bool,
}

/// A running QEMU; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    console: PathBuf,
    complaints: PathBuf,
}

impl Qemu {
    /// Starts the machine and returns the stream of its virtio-serial port. Files of its own go to `folder`.
    pub(crate) fn start(machine: &Machine<'_>, folder: &Path) -> Result<(Self, UnixStream)> {
        let (console, complaints) = (folder.join("console"), folder.join("qemu-errors"));
        let port = folder.join("port");
        let listener = UnixListener::bind(&port).with_context(|| format!("binding {}", port.display()))?;
        let mut command = command(machine, &console, &port);
        command.stderr(File::create(&complaints)?);
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                anyhow::anyhow!("{PROGRAM} is not installed: run `cargo xtask setup` as root")
            }
            _ => anyhow::Error::from(error).context(format!("cannot start {PROGRAM}")),
        })?;
        let mut qemu = Self { child, console, complaints };
        let stream = qemu.accept(&listener)?;
        Ok((qemu, stream))
    }

    /// The port is connected before the machine starts; until then QEMU may end with a complaint about its options.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended at once ({status}): {}", self.complaints());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("QEMU did not start within a minute: {}", self.complaints())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn complaints(&self) -> String {
        read_lossy(&self.complaints)
    }

    pub(crate) fn console(&self) -> String {
        read_lossy(&self.console)
    }

    /// Waits for a machine that was told to power off.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("the guest did not power off within {patience:?}");
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(machine: &Machine<'_>, console: &Path, port: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-accel", accelerator(), "-cpu", "max"]);
    command.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
    // A vhost-user server maps the guest's memory, so it must be shared.
    let memory = format!("memory-backend-memfd,id=mem,size={}M,share=on", machine.memory_mib);
    command.args(["-M", "q35,memory-backend=mem", "-object", &memory]);
    command.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.initramfs);
    command.args(["-append", "console=ttyS0 panic=-1 quiet tsc=reliable rdinit=/init"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    add_ports(&mut command, port, machine.terminal);
    for (number, share) in machine.shares.iter().enumerate() {
        add_share(&mut command, number, share);
    }
    for (number, nine_p) in machine.nine_ps.iter().enumerate() {
        let NineP { directory, tag } = nine_p;
        let directory = directory.display();
        command.args(["-fsdev", &format!("local,id=fs{number},path={directory},security_model=none")]);
        command.args(["-device", &format!("virtio-9p-pci,fsdev=fs{number},mount_tag={tag}")]);
    }
    for (number, disk) in machine.disks.iter().enumerate() {
        add_disk(&mut command, number, disk);
    }
    if !machine.terminal {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // The keyboard's interrupt is for us, who then end the guest in good order. With a terminal, on the other hand,
        // QEMU must stay in the group that may read from it, and the interrupt goes to the guest's shell.
        command.process_group(0);
    }
    command
}

/// Emulation unless KVM is asked for. There are machines whose `/dev/kvm` can be opened but whose guests crash, and tests
/// should behave alike everywhere; emulation boots in seconds too.
fn accelerator() -> &'static str {
    if env::var_os(KVM_VARIABLE).is_some_and(|value| value == "1") { "kvm" } else { "tcg,thread=multi" }
}

fn add_ports(command: &mut Command, port: &Path, terminal: bool) {
    command.args(["-device", "virtio-serial-pci"]);
    if terminal {
        command.args(["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]);
    }
    command.arg("-chardev").arg(format!("socket,id=port,path={}", port.display()));
    command.args(["-device", &format!("virtserialport,chardev=port,name={PORT_NAME}")]);
}

fn add_share(command: &mut Command, number: usize, share: &Share) {
    command.arg("-chardev").arg(format!("socket,id=share{number},path={}", share.socket.display()));
    let mut device = format!("vhost-user-fs-pci,chardev=share{number},tag={}", share.tag);
    if share.queues != 1 {
        device += &format!(",num-request-queues={}", share.queues);
    }
    command.args(["-device", &device]);
}

/// Past the host's cache. Flushes of the guest end here: what it writes to such a disk tells of something, and must not
/// make anything stable.
fn add_disk(command: &mut Command, number: usize, disk: &Disk) {
    let Disk { file, offset, length } = disk;
    let file = file.display();
    let drive = format!("if=none,id=disk{number},format=raw,file={file},offset={offset},size={length}");
    command.args(["-drive", &format!("{drive},cache.direct=on,cache.no-flush=on,file.locking=off")]);
    command.args(["-device", &format!("virtio-blk-pci,drive=disk{number}")]);
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).trim().to_owned()
}
