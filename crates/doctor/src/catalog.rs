//! Every check there is, in words: what is done, what it means if it goes wrong, and what to do then.
//!
//! `docs/doctor.md` has a section for each, under its id.

use crate::report::Promise;

/// One check, in words.
#[derive(Debug)]
pub struct Check {
    /// Its name in JSON and in the manual.
    pub id: &'static str,
    /// The promise it is about.
    pub promise: Promise,
    /// Whether the promise stands on it: if this check cannot tell, the promise cannot be told to be kept.
    pub essential: bool,
    /// Its line in the table.
    pub title: &'static str,
    /// What is done.
    pub did: &'static str,
    /// What it means for you if this is broken.
    pub means: &'static str,
    /// What to do then.
    pub repair: &'static str,
}

/// The check with this id.
///
/// # Panics
///
/// If there is none.
pub(crate) fn find(id: &str) -> &'static Check {
    CHECKS.iter().find(|check| check.id == id).expect("checks are named by ids of the catalog")
}

/// All checks, in the order of the promises.
pub static CHECKS: &[Check] = &[
    Check {
        id: "syncfs-known",
        promise: Promise::Durable,
        essential: true,
        title: "the server understands SYNCFS",
        did: "asked for a SYNCFS of the root",
        means: "A Linux guest takes ENOSYS for success and never asks again: each sync() and syncfs() in the guest \
                succeeds and makes nothing stable.",
        repair: "Use a server that implements FUSE_SYNCFS. Until then only fsync() of each file is worth something.",
    },
    Check {
        id: "sync-clean",
        promise: Promise::Durable,
        essential: true,
        title: "a sync leaves nothing in the host's memory",
        did: "wrote 16 files in 4 directories, asked for a SYNCFS, and looked at their pages in the host's page \
              cache when it had succeeded",
        means: "Data that was written before a successful sync is lost if the host loses power now.",
        repair: "The server must call syncfs(2) on the host file system, and answer when that has returned.",
    },
    Check {
        id: "on-disk",
        promise: Promise::Durable,
        essential: false,
        title: "what was synced is on the disk (--disk)",
        did: "wrote 2 MiB of blocks that cannot be mistaken, asked for a SYNCFS, and searched the disk that was named \
              for them",
        means: "Data that was written before a successful sync is not on the disk, and lost if the host loses power \
                now.",
        repair: "The server must call syncfs(2) on the host file system, and answer when that has returned.",
    },
    Check {
        id: "sync-queues",
        promise: Promise::Durable,
        essential: false,
        title: "a sync waits for earlier writes of all queues",
        did: "put WRITEs into every queue, then a SYNCFS into one, and looked at the files' pages when the SYNCFS had \
              succeeded",
        means: "SYNCFS overtakes writes that were sent before it; they are lost if the host loses power. Linux \
                guests wait before they ask; other clients, and asynchronous I/O, do not.",
        repair: "The server must wait for every request that was available when the SYNCFS was, before it syncs.",
    },
    Check {
        id: "fsync-file",
        promise: Promise::Durable,
        essential: true,
        title: "fsync of a file leaves nothing in memory",
        did: "wrote 1 MiB, asked for an FSYNC, and looked at the pages of the file when it had succeeded",
        means: "Databases lose what they committed if the host loses power.",
        repair: "The server must call fsync(2) on the host's file before it answers FSYNC.",
    },
    Check {
        id: "fsync-directory",
        promise: Promise::Durable,
        essential: false,
        title: "fsync of a directory is carried out",
        did: "made a file in a new directory, and asked for an FSYNCDIR of that",
        means: "New and renamed files may be gone after a power cut. ENOSYS a Linux guest takes for success; with \
                any other error, databases that sync their directories (PostgreSQL, SQLite) stop.",
        repair: "The server must open the directory on the host at OPENDIR and fsync(2) it at FSYNCDIR.",
    },
    Check {
        id: "dsync-write",
        promise: Promise::Durable,
        essential: false,
        title: "a write with O_DSYNC is stable when it returns",
        did: "wrote 64 KiB by a WRITE with O_DSYNC in its flags, through a plain handle and through one opened with \
              O_DSYNC, and looked at the pages",
        means: "The server tells the guest to bypass its cache. Then a Linux guest leaves O_DSYNC to the server, and \
                pwritev2(RWF_DSYNC) returns before anything is stable.",
        repair: "The server must pass O_DSYNC and O_SYNC of a WRITE on to the host (RWF_DSYNC, RWF_SYNC). Or choose \
                 a cache mode without direct I/O (virtiofsd: --cache=auto).",
    },
    Check {
        id: "client-cache",
        promise: Promise::Durable,
        essential: false,
        title: "a sync carries a client's cache with it",
        did: "wrote 4 MiB into the cache of Ashore's client, rewrote pages while they were written back, called \
              sync(), and looked at files and pages on the host",
        means: "What a program wrote through a caching client is not on the disk although sync() returned success.",
        repair: "Please report this with the output of --json: client and server do not agree about what was sent.",
    },
    Check {
        id: "other-disks",
        promise: Promise::Durable,
        essential: false,
        title: "other file systems below the share are synced too",
        did: "shared a directory with a second file system mounted in it and a file bind-mounted from a third, wrote \
              to all, sent the SYNCFS that a Linux guest's sync() sends, and looked at the pages",
        means: "A guest's sync() succeeds, and data on other disks, volumes and bind-mounted files below the share \
                (Kubernetes subPath, for example) is only in the host's memory.",
        repair: "Export each file system as a share of its own, announce submounts (virtiofsd: \
                 --announce-submounts), and do not bind-mount single files; or use a server that syncs every \
                 file system that was changed.",
    },
    Check {
        id: "power-cut",
        promise: Promise::Durable,
        essential: false,
        title: "after a power cut everything would be there",
        did: "shared a file system on an image file; made, wrote, renamed and removed files; asked for a SYNCFS; and \
              mounted a copy of the image taken at that moment, as after a power cut",
        means: "Data or names that were changed before a successful sync are gone after a power cut.",
        repair: "The server must call syncfs(2) on the host file system, and answer when that has returned.",
    },
    Check {
        id: "backing",
        promise: Promise::Durable,
        essential: true,
        title: "the share stands on something that can be stable",
        did: "looked at the type and the mount options of the host file system that is shared",
        means: "However well the server syncs, what is shared does not survive the host's loss of power.",
        repair: "Share a directory on a local disk (ext4, xfs, btrfs), mounted with barriers.",
    },
    Check {
        id: "unknown-node",
        promise: Promise::Truthful,
        essential: true,
        title: "a sync of what does not exist fails",
        did: "asked for a SYNCFS of a node and an FSYNC of a handle that the server never gave out",
        means: "The server says success where it has done nothing, so its success proves nothing.",
        repair: "The server must answer EBADF, ENOENT or ESTALE.",
    },
    Check {
        id: "lost-write",
        promise: Promise::Truthful,
        essential: false,
        title: "a lost write is told, whoever heard of it first",
        did: "made the host's writeback fail (a full disk below), let another process of the host hear of it, and \
              then asked for a SYNCFS, through this server and through a second one of the same directory",
        means: "Data that was written is gone, and the guest's syncfs() says that all is well.",
        repair: "The server must hold one descriptor for each host file system from the first write on, and sync \
                 by that: then the kernel keeps the error for it.",
    },
    Check {
        id: "server-dies",
        promise: Promise::Truthful,
        essential: false,
        title: "a sync fails if the server dies",
        did: "stopped the server, wrote into the cache of Ashore's client, called sync(), and killed the server",
        means: "A program believes that its data is stable, and nobody has it.",
        repair: "Please report this with the output of --json.",
    },
    Check {
        id: "endless-writers",
        promise: Promise::Bounded,
        essential: true,
        title: "a sync ends although writers never stop",
        did: "kept several writes in flight on every queue, asked for a SYNCFS, and stopped the writers only when it \
              had not been answered for long",
        means: "One busy program keeps every sync() of the guest waiting for as long as it writes.",
        repair: "The server must wait for the writes that came before the SYNCFS, and for no later ones.",
    },
    Check {
        id: "stall",
        promise: Promise::Unobstructed,
        essential: true,
        title: "other requests go on during a sync",
        did: "made much dirty, asked for one SYNCFS, and measured the other requests (GETATTR, READ) on every queue \
              until it was answered",
        means: "While one guest process syncs, every other file operation of the guest stands still.",
        repair: "The server must sync on a thread that serves no queue. virtiofsd: --thread-pool-size=64 helps \
                 against a few syncs at once.",
    },
    Check {
        id: "crowd",
        promise: Promise::Unobstructed,
        essential: false,
        title: "other requests go on during 16 syncs at once",
        did: "made much dirty, asked for 16 SYNCFS at once, and measured the other requests (GETATTR, READ) until \
              all were answered",
        means: "A dozen guest processes that call sync() stop every other file operation of the guest.",
        repair: "Syncs must not fill up the threads that serve requests: they need a thread of their own.",
    },
    Check {
        id: "shared-syncs",
        promise: Promise::Unobstructed,
        essential: false,
        title: "syncs at the same time share the host's sync",
        did: "dirtied a page on the host again and again and counted how often it was cleaned: during one SYNCFS, \
              and during 16 that overlap; and looked how many of the server's threads synced the host at once",
        means: "n guest processes that sync cost the host n full syncs, for everybody on the same file system.",
        repair: "The server must let all syncs that arrive while one runs share the next one.",
    },
    Check {
        id: "neighbour",
        promise: Promise::Unobstructed,
        essential: false,
        title: "a neighbour's data is not paid for, where asked",
        did: "made 64 MiB of another program's dirty on the same file system of the host, asked for a SYNCFS of 4 KiB, and \
              looked at the other's pages when it had succeeded",
        means: "The server was asked to sync its own share only (--sync-scope share), and makes its guest wait until \
                everybody else's data on the same file system of the host is written.",
        repair: "Share a directory on ext4 or XFS, for elsewhere the whole file system is synced; or give each guest a \
                 file system of its own.",
    },
    Check {
        id: "backing-said",
        promise: Promise::Aloud,
        essential: false,
        title: "a share that cannot be stable is said aloud",
        did: "looked for a warning in what the server printed at start, where the shared file system is weak",
        means: "The share is on a file system that cannot be stable; the server says success to every sync and \
                nothing else.",
        repair: "Share a directory on a local disk, or use a server that warns or refuses (ashore: --require-durable).",
    },
    Check {
        id: "early-sync",
        promise: Promise::Aloud,
        essential: true,
        title: "guests that sync before their data are allowed for",
        did: "offered write-back caching; if the server granted it, sent a SYNCFS and the data just after it, as \
              Linux 6.18.21, 6.19.11 and 7.0 do",
        means: "The server grants write-back caching and says nothing about guests with Linux 6.18.21, 6.19.11, 7.0 \
                and later, whose sync() sends SYNCFS before the data.",
        repair: "Switch write-back caching off (virtiofsd: no --writeback), or let programs call fsync().",
    },
    Check {
        id: "flush",
        promise: Promise::Aloud,
        essential: false,
        title: "clients that know no fsync (Windows)",
        did: "wrote 64 KiB, sent a FLUSH, and looked at the pages",
        means: "The server fails FLUSH, so close() fails for every program.",
        repair: "Please report this to the author of the server.",
    },
    Check {
        id: "destroy",
        promise: Promise::LastCall,
        essential: true,
        title: "an unmount is a sync (DESTROY)",
        did: "wrote 4 MiB, sent DESTROY as umount does, and looked at the pages",
        means: "What was written before an orderly umount or shutdown of the guest is lost if the host loses power.",
        repair: "Call sync before umount in the guest; or use a server that syncs when its client leaves.",
    },
    Check {
        id: "disconnect",
        promise: Promise::LastCall,
        essential: false,
        title: "a client that vanishes is a sync",
        did: "wrote 4 MiB, hung up without a word as a killed virtual machine does, and looked at the pages",
        means: "What a guest wrote before it was powered off or killed is lost if the host loses power.",
        repair: "Use a server that syncs when its client is gone, or sync the host yourself afterwards.",
    },
    Check {
        id: "sigterm",
        promise: Promise::LastCall,
        essential: false,
        title: "SIGTERM of the server is a sync",
        did: "wrote 4 MiB, sent the server SIGTERM, and looked at the pages when it had ended",
        means: "What was written before the server is stopped (host shutdown, upgrade) is lost if power goes.",
        repair: "Use a server that syncs at SIGTERM, or sync the host yourself after stopping it.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_there_once_and_in_the_order_of_the_promises() {
        for (index, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[..index].iter().all(|before| before.id != check.id), "{}", check.id);
            assert!(CHECKS[..index].iter().all(|before| before.promise <= check.promise), "{}", check.id);
        }
        for promise in Promise::ALL {
            assert!(CHECKS.iter().any(|check| check.promise == promise));
        }
    }

    #[test]
    fn titles_leave_room_for_the_verdict() {
        for check in CHECKS {
            assert!(check.title.len() <= 56, "{}", check.title);
        }
    }
}
