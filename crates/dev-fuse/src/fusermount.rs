//! Mounting with the help of fusermount3, which is set-user-id root, for users who may not mount.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use crate::options::MountOptions;

const PROGRAM: &str = "fusermount3";
/// Names the descriptor through which fusermount3 hands back `/dev/fuse`.
const DESCRIPTOR_VARIABLE: &str = "_FUSE_COMMFD";

/// Why there is no mount.
pub(crate) enum Failure {
    /// It could not be run.
    Unavailable(io::Error),
    /// It said no, on standard error.
    Refused,
}

/// Mounts on `path` and returns the descriptor of the session.
pub(crate) fn mount(options: &MountOptions, path: &Path) -> Result<OwnedFd, Failure> {
    let unavailable = |errno: rustix::io::Errno| Failure::Unavailable(errno.into());
    // The child inherits its end, so neither closes on exec: for a moment, also another child started meanwhile could.
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)
        .map_err(unavailable)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(unavailable)?;
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options_for_fusermount(options))
        .arg("--")
        .arg(path)
        .env(DESCRIPTOR_VARIABLE, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .spawn()
        .map_err(Failure::Unavailable)?;
    drop(theirs);
    let received = receive(&ours);
    let done = child.wait().map_err(Failure::Unavailable)?;
    received.filter(|_| done.success()).ok_or(Failure::Refused)
}

/// Unmounts `path`; `lazy` if it is in use.
pub(crate) fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    // That it is busy is found out by trying; nobody needs to read of it.
    let done = command.stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    if done.success() { Ok(()) } else { Err(rustix::io::Errno::BUSY.into()) }
}

fn options_for_fusermount(options: &MountOptions) -> String {
    let mut words = vec![
        format!("fsname={}", escaped(&options.source)),
        format!("subtype={}", escaped(&options.subtype)),
    ];
    words.push(if options.read_only { "ro" } else { "rw" }.into());
    // It grants neither set-user-id nor device nodes to those who are not root, whatever they say.
    words.extend(["nosuid".into(), "nodev".into()]);
    words.extend(options.noexec.then(|| "noexec".into()));
    words.extend(options.allow_other.then(|| "allow_other".into()));
    words.extend(options.default_permissions.then(|| "default_permissions".into()));
    words.extend(options.max_read.map(|bytes| format!("max_read={bytes}")));
    words.join(",")
}

/// Commas part options, unless a backslash stands before them.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let receive =
        || recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    rustix::io::retry_on_intr(receive).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_name_does_not_begin_another_option() {
        let options = MountOptions::new().source("/srv/a,suid").allow_other(true).max_read(4096);
        let words = options_for_fusermount(&options);
        assert_eq!(
            words,
            "fsname=/srv/a\\,suid,subtype=ashore,rw,nosuid,nodev,allow_other,default_permissions,max_read=4096"
        );
    }
}
