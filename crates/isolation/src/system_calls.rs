//! Which system calls are allowed.
//!
//! The lists are by theme. Beside what the server calls itself they have what the C library and Rust's standard library call
//! instead of it, or on their own account, on older and newer systems.

use std::collections::BTreeMap;

use libc::{c_long, *};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::{IsolationError, Seccomp};

/// The same number on every architecture; the C library has no names for them yet (Linux 6.13).
const XATTRS_AT: [c_long; 4] = [463, 464, 465, 466];

const MEMORY: &[c_long] = &[SYS_brk, SYS_memfd_create, SYS_munmap, SYS_mremap, SYS_madvise, SYS_membarrier];

const THREADS: &[c_long] = &[
    // Without arguments that a filter could see; the second filter answers it, and the C library then takes clone.
    SYS_clone3,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_tkill,
    SYS_uname,
];

const TIME: &[c_long] =
    &[SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_gettimeofday, SYS_nanosleep];

const EVENTS_AND_SOCKETS: &[c_long] = &[
    SYS_accept4,
    SYS_close,
    SYS_dup,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_fcntl,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_pipe2,
    SYS_ppoll,
    SYS_read,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_write,
    SYS_writev,
];

const FILES: &[c_long] = &[
    SYS_copy_file_range,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fadvise64,
    SYS_fallocate,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchmodat2,
    SYS_fchown,
    SYS_fchownat,
    SYS_fdatasync,
    SYS_fgetxattr,
    SYS_flistxattr,
    SYS_flock,
    SYS_fremovexattr,
    SYS_fsetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    // For the backtrace of a panic, which is to cost no more than its request.
    SYS_getcwd,
    SYS_getdents64,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_linkat,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_lremovexattr,
    SYS_lseek,
    SYS_lsetxattr,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_name_to_handle_at,
    SYS_newfstatat,
    SYS_open_by_handle_at,
    SYS_openat,
    SYS_openat2,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_readlinkat,
    SYS_removexattr,
    SYS_renameat2,
    SYS_setxattr,
    SYS_statfs,
    SYS_statx,
    SYS_symlinkat,
    SYS_sync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_umask,
    SYS_unlinkat,
    SYS_utimensat,
];

const CREDENTIALS: &[c_long] = &[
    SYS_capget,
    SYS_capset,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getgroups,
    SYS_getuid,
    SYS_setgroups,
    SYS_setresgid,
    SYS_setresuid,
];

/// Older spellings, which the C library still uses where they are.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    SYS_access,
    SYS_epoll_wait,
    SYS_lstat,
    SYS_open,
    SYS_poll,
    SYS_readlink,
    SYS_rename,
    SYS_stat,
    SYS_time,
    SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[c_long] = &[SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLDER: &[c_long] = &[];

/// Requests of ioctl(2): flags of inodes, whether to wait, and whether this is a terminal.
const IOCTLS: &[u64] = &[
    0x8008_6601, // FS_IOC_GETFLAGS
    0x4008_6602, // FS_IOC_SETFLAGS
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x401c_5820, // FS_IOC_FSSETXATTR
    0x5421,      // FIONBIO
    0x5401,      // TCGETS
];

/// Filters the calls of all threads of the process, and of those it makes.
pub(crate) fn filter(what: Seccomp) -> Result<(), IsolationError> {
    let otherwise = match what {
        Seccomp::None => return Ok(()),
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Trap => SeccompAction::Trap,
    };
    let install = || {
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        let allowed = SeccompFilter::new(allowed()?, otherwise, SeccompAction::Allow, architecture)?;
        let answered = BTreeMap::from([(SYS_clone3, Vec::new())]);
        let answer = SeccompAction::Errno(ENOSYS as u32);
        let unseen = SeccompFilter::new(answered, SeccompAction::Allow, answer, architecture)?;
        // The strictest answer of all filters holds.
        for filter in [unseen, allowed] {
            apply_filter_all_threads(&BpfProgram::try_from(filter)?)?;
        }
        Ok(())
    };
    install().map_err(|error: seccompiler::Error| IsolationError::NoFilter { why: error.to_string() })
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let lists = [MEMORY, THREADS, TIME, EVENTS_AND_SOCKETS, FILES, &XATTRS_AT, CREDENTIALS, OLDER];
    let mut rules: Rules =
        lists.iter().flat_map(|list| list.iter()).map(|call| (*call, Vec::new())).collect();
    // Threads, and no processes.
    let thread = CLONE_THREAD as u64;
    rules.insert(SYS_clone, vec![when(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Nothing that is data becomes a program.
    let no_program = || when(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(PROT_EXEC as u64), 0);
    rules.insert(SYS_mmap, vec![no_program()?]);
    rules.insert(SYS_mprotect, vec![no_program()?]);
    let equals = |argument, value| when(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    rules.insert(SYS_prctl, vec![equals(0, PR_SET_NAME as u64)?]);
    // Limits of its own.
    rules.insert(SYS_prlimit64, vec![equals(0, 0)?]);
    rules.insert(SYS_ioctl, IOCTLS.iter().map(|request| equals(1, *request)).collect::<Result<_, _>>()?);
    Ok(rules)
}

/// An argument compares so.
fn when(
    argument: u8,
    length: SeccompCmpArgLen,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, comparison, value)?])
}
