//! The operations of the protocol, by number.

use std::fmt;

macro_rules! opcodes {
    ($($name:ident $kernel:literal = $value:literal, $doc:literal;)*) => {
        /// What a request asks for (`enum fuse_opcode`, protocol 7.45).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Opcode { $(#[doc = $doc] $name = $value,)* }

        impl Opcode {
            /// Every operation of the protocol.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The operation with this number, if there is one.
            pub fn from_raw(number: u32) -> Option<Opcode> {
                match number { $($value => Some(Opcode::$name),)* _ => None }
            }

            /// The kernel's name, without the `FUSE_`.
            pub fn name(self) -> &'static str {
                match self { $(Opcode::$name => $kernel,)* }
            }
        }
    };
}

opcodes! {
    Lookup "LOOKUP" = 1, "Find a name in a directory.";
    Forget "FORGET" = 2, "Give lookups of one inode back; has no reply.";
    Getattr "GETATTR" = 3, "Attributes of an inode.";
    Setattr "SETATTR" = 4, "Change attributes, the size among them.";
    Readlink "READLINK" = 5, "Target of a symbolic link.";
    Symlink "SYMLINK" = 6, "Make a symbolic link.";
    Mknod "MKNOD" = 8, "Make a file of any kind.";
    Mkdir "MKDIR" = 9, "Make a directory.";
    Unlink "UNLINK" = 10, "Remove a name.";
    Rmdir "RMDIR" = 11, "Remove an empty directory.";
    Rename "RENAME" = 12, "Rename.";
    Link "LINK" = 13, "Make a hard link.";
    Open "OPEN" = 14, "Open a file.";
    Read "READ" = 15, "Read from an open file.";
    Write "WRITE" = 16, "Write to an open file.";
    Statfs "STATFS" = 17, "Space and limits of the file system.";
    Release "RELEASE" = 18, "Close the last reference to an open file.";
    Fsync "FSYNC" = 20, "Make one file stable.";
    Setxattr "SETXATTR" = 21, "Set an extended attribute.";
    Getxattr "GETXATTR" = 22, "Value of an extended attribute.";
    Listxattr "LISTXATTR" = 23, "Names of extended attributes.";
    Removexattr "REMOVEXATTR" = 24, "Remove an extended attribute.";
    Flush "FLUSH" = 25, "One descriptor of an open file was closed.";
    Init "INIT" = 26, "Agree on version and features.";
    Opendir "OPENDIR" = 27, "Open a directory.";
    Readdir "READDIR" = 28, "Names in a directory.";
    Releasedir "RELEASEDIR" = 29, "Close a directory.";
    Fsyncdir "FSYNCDIR" = 30, "Make a directory's names stable.";
    Getlk "GETLK" = 31, "Test a POSIX lock.";
    Setlk "SETLK" = 32, "Take or drop a lock.";
    Setlkw "SETLKW" = 33, "Take a lock, waiting for it.";
    Access "ACCESS" = 34, "Check permission.";
    Create "CREATE" = 35, "Make a file and open it.";
    Interrupt "INTERRUPT" = 36, "The caller of another request no longer waits.";
    Bmap "BMAP" = 37, "Block number of a file block.";
    Destroy "DESTROY" = 38, "The file system was unmounted.";
    Ioctl "IOCTL" = 39, "Device or file system specific call.";
    Poll "POLL" = 40, "Readiness of an open file.";
    NotifyReply "NOTIFY_REPLY" = 41, "Data for an earlier RETRIEVE notification.";
    BatchForget "BATCH_FORGET" = 42, "FORGET of many inodes; has no reply.";
    Fallocate "FALLOCATE" = 43, "Allocate or punch space.";
    Readdirplus "READDIRPLUS" = 44, "READDIR and LOOKUP of each name in one.";
    Rename2 "RENAME2" = 45, "Rename with flags.";
    Lseek "LSEEK" = 46, "Find data or a hole.";
    CopyFileRange "COPY_FILE_RANGE" = 47, "Copy between two open files.";
    Setupmapping "SETUPMAPPING" = 48, "Map a file range into the DAX window.";
    Removemapping "REMOVEMAPPING" = 49, "Unmap from the DAX window.";
    Syncfs "SYNCFS" = 50, "Make a whole file system stable.";
    Tmpfile "TMPFILE" = 51, "Make a file without a name.";
    Statx "STATX" = 52, "Extended attributes of an inode's status, birth time among them.";
    CopyFileRange64 "COPY_FILE_RANGE_64" = 53, "COPY_FILE_RANGE with a 64-bit result.";
}

impl Opcode {
    /// Whether there is an answer. FORGET, BATCH_FORGET and NOTIFY_REPLY have none, and INTERRUPT only if it fails.
    pub fn has_reply(self) -> bool {
        !matches!(self, Opcode::Forget | Opcode::BatchForget | Opcode::NotifyReply | Opcode::Interrupt)
    }

    /// Whether the operation, done well, alters the file system: a *change* in the words of the promise.
    pub fn is_change(self) -> bool {
        use Opcode::*;
        matches!(
            self,
            Setattr | Symlink | Mknod | Mkdir | Unlink | Rmdir | Rename | Link | Write | Setxattr | Removexattr
                // OPEN may truncate (ATOMIC_O_TRUNC), IOCTL may set flags or clone a range.
                | Open | Create | Ioctl | Fallocate | Rename2 | CopyFileRange | Tmpfile | CopyFileRange64
        )
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_gives_its_opcode_and_no_other_number_gives_one() {
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::from_raw(*opcode as u32), Some(*opcode));
        }
        let known = (0..10_000).filter(|number| Opcode::from_raw(*number).is_some()).count();
        assert_eq!(known, Opcode::ALL.len());
    }
}
