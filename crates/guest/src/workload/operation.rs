//! The steps of a workload.

/// A directory of one thread, by the order of making; 0 is the one it starts with.
pub type DirectoryId = u32;
/// A file of one thread, by the step that made it.
pub type FileId = u32;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The directory.
    pub directory: DirectoryId,
    /// The name.
    pub name: String,
}

/// What fallocate(2) is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Allocate, and make the file longer if need be.
    Extend,
    /// Allocate, whatever the length.
    KeepSize,
    /// Make a hole.
    Punch,
    /// Make zeros, and the file longer if need be.
    Zero,
}

/// One step of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new empty file, kept open from here on.
    MakeFile {
        /// Its number.
        file: FileId,
        /// Its first name.
        at: Place,
    },
    /// pwrite(2) to the open file.
    Write {
        /// The file.
        file: FileId,
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Opened by its name to append, written and closed.
    Append {
        /// The file.
        file: FileId,
        /// One of its names.
        at: Place,
        /// How many bytes.
        length: u64,
    },
    /// ftruncate(2), shorter or longer.
    SetLength {
        /// The file.
        file: FileId,
        /// The new length.
        length: u64,
    },
    /// fallocate(2).
    Allocate {
        /// The file.
        file: FileId,
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// What is to be done there.
        how: Allocation,
    },
    /// fchmod(2).
    SetMode {
        /// The file.
        file: FileId,
        /// The new permissions.
        mode: u32,
    },
    /// Another name for a file.
    Link {
        /// A name that it has.
        existing: Place,
        /// The new one.
        new: Place,
    },
    /// Of a file, which may replace another, or of a directory.
    Rename {
        /// The old name.
        from: Place,
        /// The new one.
        to: Place,
    },
    /// One name of a file less.
    Unlink {
        /// The name.
        at: Place,
    },
    /// A new directory.
    MakeDirectory {
        /// Its number.
        directory: DirectoryId,
        /// Its name.
        at: Place,
    },
    /// An empty directory less.
    RemoveDirectory {
        /// Its name.
        at: Place,
    },
    /// fsync(2) of a file.
    Fsync {
        /// The file.
        file: FileId,
    },
    /// fsync(2) of a directory.
    FsyncDirectory {
        /// The directory.
        directory: DirectoryId,
    },
    /// Everything, of all threads.
    Sync,
}
