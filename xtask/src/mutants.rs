//! The list of deliberate bugs, each of which some test must catch.

/// Number and bug. Where a bug is switched on and which test must catch it stands beside the tests (`TRIALS`, and the faults of
/// the power cuts).
#[rustfmt::skip]
pub(crate) const LIST: [(usize, &str); 32] = [
    (1, "a new bucket does not wait for its ancestor"),
    (2, "a ticket settles when its request is sent, not when it is answered"),
    (3, "a bucket that was found empty is entered again"),
    (4, "the bucket is swapped only after the wait"),
    (5, "one change in flight counts as none"),
    (6, "SYNCFS is sent before the old bucket is empty"),
    (7, "the client waits for nothing before a sync, or does not sync"),
    (8, "a sync is answered before the host was synced"),
    (9, "a sync joins a round that had begun before it came"),
    (10, "only the root's host file system is synced"),
    (11, "fdatasync where attributes are covered too"),
    (12, "what is not supported counts as done"),
    (13, "an error of the host is swallowed"),
    (14, "a new descriptor for each sync: errors are lost"),
    (15, "one count of errors for all clients: only the first is told"),
    (16, "of two syncs that overlap the first takes the error away"),
    (17, "a sync waits for changes that came after it"),
    (18, "a sync promises what was done only after it had begun"),
    (19, "data is written back and the disk not flushed"),
    (20, "one file is synced in place of the file system"),
    (21, "dirty pages are not sent before the cut"),
    (22, "a page that was written to while in flight is clean at the answer"),
    (23, "the error of a write-back is told to nobody"),
    (24, "directories are left out after create and rename"),
    (25, "FALLOCATE and COPY_FILE_RANGE are not waited for"),
    (26, "requests of other queues are not waited for"),
    (27, "a change is waited for only as long as its caller cares"),
    (28, "a server that starts forgets what was not stable before"),
    (29, "an fsync is of another open file"),
    (30, "a fence is left out"),
    (31, "the wish of a write to be stable is dropped"),
    (32, "a file without a name makes a sync fail, or is left out"),
];
