//! What a host file system is made of, and whether that can be stable at all.
//!
//! A sync that returns success on tmpfs means nothing. So each host file system is looked at when it first appears:
//! its type, the options it is mounted with, and for the kinds that stand on others, what is below.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use crate::own_process;
use rustix::fs::{AtFlags, StatFs, StatxFlags, fstatfs, statfs, statx};

/// How far down to look: a loop device on a file on a loop device...
const DEEPEST: u32 = 4;

const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58f6;
const HUGETLBFS: u32 = 0x9584_58f6;
const OVERLAY: u32 = 0x794c_7630;
const FUSE: u32 = 0x6573_5546;
const NFS: u32 = 0x6969;
const NINE_P: u32 = 0x0102_1997;
const SMB: u32 = 0x517b;
const CIFS: u32 = 0xff53_4d42;
const SMB2: u32 = 0xfe53_4d42;

/// A host file system as a user knows it, and what it cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The name of its type, as mount(8) shows it.
    pub kind: String,
    /// Where it is mounted, as far as the host tells.
    pub mount_point: String,
    /// Why a sync of it makes nothing stable, if so.
    pub weakness: Option<String>,
}

impl Backing {
    /// Looks at the file system that `file` is on.
    pub(crate) fn of(file: impl AsFd, device: u64) -> Backing {
        let mounts = own_process::mounts();
        let mount = Mount::of(&mounts, device).or_else(|| Mount::by_id(&mounts, mount_id(&file)?));
        let numbers = fstatfs(file).ok();
        let weakness = numbers.as_ref().and_then(|numbers| weakness(numbers, mount.as_ref(), 0));
        Backing {
            kind: mount.as_ref().map_or_else(|| "unknown".into(), |mount| mount.kind.to_owned()),
            mount_point: mount.as_ref().map_or_else(|| "unknown".into(), |mount| unescape(mount.mount_point)),
            weakness,
        }
    }

    /// Whether fsync(2) of every inode that was changed makes everything stable, names included, as far as is known, and
    /// keeps it so whatever is done later. That of btrfs does not (6.18): its log, before the next commit, can lose again what
    /// it held, when a file is unlinked that stands in it and then another one is fsynced.
    pub(crate) fn is_exact_by_inode(&self, device: u64) -> bool {
        match self.kind.as_str() {
            "xfs" => true,
            "ext4" => has_journal(device),
            _ => false,
        }
    }

    /// Whether its `close` may bring an error that nothing else brings: file systems that send data elsewhere.
    pub(crate) fn flushes_on_close(numbers: &StatFs) -> bool {
        matches!(numbers.f_type as u32, NFS | FUSE | NINE_P | SMB | CIFS | SMB2)
    }
}

/// Whether an ext4 file system has a journal. Without one fsync(2) of a directory does not cover the inodes it names.
fn has_journal(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(disk) = fs::read_link(format!("/sys/dev/block/{major}:{minor}")) else { return false };
    let Some(name) = disk.file_name() else { return false };
    // The number of the journal's thread, or "<none>".
    let task = fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("journal_task"));
    task.is_ok_and(|task| task.trim().parse::<u32>().is_ok())
}

/// One line of mountinfo.
#[derive(Debug, PartialEq)]
struct Mount<'a> {
    device: u64,
    mount_point: &'a str,
    kind: &'a str,
    /// Options of the mount and of the file system, as a comma-separated list.
    options: (&'a str, &'a str),
}

impl<'a> Mount<'a> {
    /// The newest mount of a device.
    fn of(mounts: &'a str, device: u64) -> Option<Mount<'a>> {
        mounts.lines().rev().filter_map(Mount::parse).find(|mount| mount.device == device)
    }

    /// The mount with this number. Files of btrfs have another device number than their mount has.
    fn by_id(mounts: &'a str, id: u64) -> Option<Mount<'a>> {
        let has_id = |line: &&str| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id);
        mounts.lines().find(has_id).and_then(Mount::parse)
    }

    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let (major, minor) = before.nth(2)?.split_once(':')?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        let mount_point = before.nth(1)?;
        let options = before.next()?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        Some(Mount { device, mount_point, kind, options: (options, after.nth(1).unwrap_or_default()) })
    }

    fn option(&self, wanted: &str) -> Option<&'a str> {
        let all = self.options.0.split(',').chain(self.options.1.split(','));
        all.filter_map(|option| option.strip_prefix(wanted))
            .find(|rest| rest.is_empty() || rest.starts_with('='))
    }
}

/// The number that mountinfo has for the mount of a file.
fn mount_id(file: impl AsFd) -> Option<u64> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

/// Mount points have blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let octal = others.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &others[3..];
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn weakness(numbers: &StatFs, mount: Option<&Mount<'_>>, depth: u32) -> Option<String> {
    let kind = mount.map_or("", |mount| mount.kind);
    match numbers.f_type as u32 {
        TMPFS | RAMFS | HUGETLBFS => {
            return Some("it keeps files in memory, and loses them when the host does".into());
        }
        OVERLAY => return mount.and_then(|mount| overlay_weakness(mount, depth)),
        FUSE if !matches!(kind, "virtiofs" | "fuseblk") => {
            return Some("the host's kernel sends no sync to a file system in user space".into());
        }
        NFS => return Some("it is as stable as its NFS server, which may be exported async".into()),
        NINE_P | SMB | CIFS | SMB2 => {
            return Some("the host's kernel does not pass a sync on to its server".into());
        }
        _ => {}
    }
    let mount = mount?;
    if mount.option("nobarrier").is_some() || mount.option("barrier") == Some("=0") {
        return Some("it is mounted without barriers, so its disk is never told to flush".into());
    }
    loop_weakness(mount.device, depth)
}

fn overlay_weakness(mount: &Mount<'_>, depth: u32) -> Option<String> {
    if mount.option("volatile").is_some() {
        return Some("the overlay is mounted volatile, and ignores every sync".into());
    }
    let upper = unescape(mount.option("upperdir")?.strip_prefix('=')?);
    below(Path::new(&upper), depth).map(|why| format!("its upper layer {upper} is not stable: {why}"))
}

/// A disk that is a file of another file system.
fn loop_weakness(device: u64, depth: u32) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let backing = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file")).ok()?;
    let file = backing.trim_end();
    below(Path::new(file), depth)
        .map(|why| format!("its disk is the file {file}, which is not stable: {why}"))
}

fn below(path: &Path, depth: u32) -> Option<String> {
    if depth >= DEEPEST {
        return None;
    }
    let name = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let numbers = statfs(name.as_c_str()).ok()?;
    let stat = rustix::fs::stat(name.as_c_str()).ok()?;
    let mounts = own_process::mounts();
    let mount = Mount::of(&mounts, stat.st_dev);
    weakness(&numbers, mount.as_ref(), depth + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_taken_apart() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue,nobarrier";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.device, mount.kind), (rustix::fs::makedev(98, 0), "ext3"));
        assert_eq!(unescape(mount.mount_point), "/mnt 2");
        assert_eq!((mount.option("nobarrier"), mount.option("errors")), (Some(""), Some("=continue")));
        assert_eq!((mount.option("noatime"), mount.option("volatile")), (Some(""), None));
        assert_eq!(mount.option("no"), None, "not the beginning of an option");
        assert!(Mount::parse("not a line").is_none());
    }

    #[test]
    fn memory_is_weak_and_says_so() {
        let shm = fs::File::open("/dev/shm").unwrap();
        let device = rustix::fs::fstat(&shm).unwrap().st_dev;
        let backing = Backing::of(&shm, device);
        assert_eq!(backing.kind, "tmpfs");
        assert_eq!(
            backing.weakness.as_deref(),
            Some("it keeps files in memory, and loses them when the host does")
        );
    }

    #[test]
    fn volatile_overlays_and_missing_barriers_are_weak() {
        let overlay =
            "40 1 0:50 / /m rw - overlay overlay rw,lowerdir=/l,upperdir=/nowhere,workdir=/w,volatile";
        assert!(overlay_weakness(&Mount::parse(overlay).unwrap(), 0).unwrap().contains("volatile"));
        let sound = "40 1 0:50 / /m rw - overlay overlay rw,lowerdir=/l,upperdir=/nowhere,workdir=/w";
        assert_eq!(overlay_weakness(&Mount::parse(sound).unwrap(), 0), None);
        let numbers = statfs("/").unwrap();
        let ext4 = Mount::parse("40 1 0:50 / /m rw - ext4 /dev/x rw,barrier=0").unwrap();
        if !matches!(numbers.f_type as u32, OVERLAY | TMPFS) {
            assert!(weakness(&numbers, Some(&ext4), 0).unwrap().contains("barriers"));
        }
    }
}
