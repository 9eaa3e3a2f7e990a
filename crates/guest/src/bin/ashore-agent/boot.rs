//! From the kernel's hand-over to a guest that takes commands.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ashore_guest::protocol::PORT_NAME;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::execute;

/// Never returns: if process 1 ends, the kernel panics, and then the reason would be lost in its noise.
pub(crate) fn run() -> ! {
    if let Err(error) = prepare().and_then(|port| execute::serve(&port)) {
        println!("agent: {error:#}");
    }
    power_off()
}

/// Off, at once: a test that wants a sync asks for one.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        sleep(Duration::from_secs(1));
    }
}

fn prepare() -> Result<File> {
    mount_kernel_file_systems()?;
    load_modules()?;
    install_shell()?;
    open_port()
}

fn mount_kernel_file_systems() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // Some kernels mount devtmpfs before they start process 1.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => bail!("mounting {kind} at {target}: {error}"),
        }
    }
    Ok(())
}

/// The list is in the order of dependence; the host made it so, since the guest has no `modprobe`.
fn load_modules() -> Result<()> {
    let list = fs::read_to_string("/modules.list").unwrap_or_default();
    for path in list.lines() {
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        match finit_module(file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => bail!("loading {path}: {error}"),
        }
    }
    Ok(())
}

fn install_shell() -> Result<()> {
    for folder in ["/sbin", "/usr/bin", "/usr/sbin", "/mnt", "/root", "/etc"] {
        fs::create_dir_all(folder)?;
    }
    let status = Command::new("/bin/busybox").args(["--install", "-s"]).status()?;
    if !status.success() {
        bail!("busybox could not install its links: {status}");
    }
    symlink("/init", "/bin/agent")?;
    fs::write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n")?;
    fs::write("/etc/group", "root:x:0:\nuser:x:1000:\n")?;
    Ok(())
}

fn open_port() -> Result<File> {
    // The driver may still be probing when process 1 starts.
    for _ in 0..2000 {
        if let Some(path) = find_port() {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()));
        }
        sleep(Duration::from_millis(5));
    }
    bail!("no virtio-serial port named {PORT_NAME} appeared within ten seconds")
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME)
    })?;
    let node = Path::new("/dev").join(port.file_name());
    node.exists().then_some(node)
}
