//! The system calls that a shut-in worker makes. Everything else is refused.

use guise_container::spec::{Seccomp, SyscallArg, SyscallRule};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const DESCRIPTORS: &[&str] = &[
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "fcntl",
    "ioctl",
    "lseek",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readv",
    "write",
    "writev",
];

const WAITING: &[&str] = &[
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "poll",
    "ppoll",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
];

/// The log, disks, shared folders.
const FILES: &[&str] = &[
    "access",
    "chmod",
    "copy_file_range",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "getcwd",
    "getdents64",
    "getxattr",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "lstat",
    "mkdir",
    "mkdirat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "readlink",
    "readlinkat",
    "removexattr",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "setxattr",
    "splice",
    "stat",
    "statfs",
    "statx",
    "sync_file_range",
    "syncfs",
    "truncate",
    "umask",
    "unlink",
    "unlinkat",
    "utimensat",
];

const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
];

const MEMORY: &[&str] = &[
    "brk",
    "madvise",
    "membarrier",
    "memfd_create",
    "mincore",
    "mlock",
    "mmap",
    "mprotect",
    "mremap",
    "msync",
    "munlock",
    "munmap",
];

/// And their signals.
const THREADS: &[&str] = &[
    "arch_prctl",
    "exit",
    "exit_group",
    "futex",
    "futex_waitv",
    "get_robust_list",
    "getcpu",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "gettid",
    "getuid",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "sched_getaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "tgkill",
];

/// And what there is.
const TIME: &[&str] = &[
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "getrandom",
    "getrusage",
    "gettimeofday",
    "nanosleep",
    "sysinfo",
    "time",
    "times",
    "uname",
];

/// What a machine's disks are driven by.
const OF_RINGS: &[&str] = &["io_uring_enter", "io_uring_register", "io_uring_setup"];

/// What a guest does with a folder that is shared with it, and a machine without one never
/// does: the daemon would follow a link in the instance's own folder.
const OF_SHARES: &[&str] = &["linkat", "mknodat", "symlinkat"];

const CLONE_THREAD: u64 = 0x1_0000;
/// All that `clone` can make a namespace of.
const NAMESPACES: u64 = 0x7e02_0000;

const UNIX: u64 = 1;
const INTERNET: [u64; 2] = [2, 10];
/// Streams and datagrams; not raw.
const KINDS: [u64; 2] = [1, 2];
const KIND: u64 = 0xf;

const NAME_A_THREAD: u64 = 15;
const NAME_MEMORY: u64 = 0x5356_4d41;

fn rule(names: &[&str], args: Vec<SyscallArg>) -> SyscallRule {
    SyscallRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: "SCMP_ACT_ALLOW".to_owned(),
        args,
        ..SyscallRule::default()
    }
}

fn is(index: u32, value: u64) -> SyscallArg {
    SyscallArg { index, value, value_two: 0, op: "SCMP_CMP_EQ".to_owned() }
}

/// Of the bits in the mask, those and no others are set.
fn masked(index: u32, mask: u64, value: u64) -> SyscallArg {
    SyscallArg { index, value: mask, value_two: value, op: "SCMP_CMP_MASKED_EQ".to_owned() }
}

/// What is done besides what every worker does.
pub struct Of {
    pub rings: bool,
    pub shares: bool,
}

pub fn allowed(of: Of) -> Seccomp {
    let groups = [DESCRIPTORS, WAITING, FILES, SOCKETS, MEMORY, THREADS, TIME];
    let mut syscalls: Vec<_> = groups.map(|names| rule(names, Vec::new())).into();
    syscalls.extend([
        rule(if of.rings { OF_RINGS } else { &[] }, Vec::new()),
        rule(if of.shares { OF_SHARES } else { &[] }, Vec::new()),
        rule(&["clone"], vec![masked(0, CLONE_THREAD | NAMESPACES, CLONE_THREAD)]),
        // Its flags are in memory, where a filter cannot look; the library then uses clone.
        SyscallRule {
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(ENOSYS),
            ..rule(&["clone3"], Vec::new())
        },
        rule(&["socket", "socketpair"], vec![is(0, UNIX)]),
        rule(&["prctl"], vec![is(0, NAME_A_THREAD)]),
        rule(&["prctl"], vec![is(0, NAME_MEMORY)]),
        // Of itself only.
        rule(&["prlimit64"], vec![is(0, 0)]),
    ]);
    for family in INTERNET {
        for kind in KINDS {
            syscalls.push(rule(&["socket"], vec![is(0, family), masked(1, KIND, kind)]));
        }
    }
    refusing_others(syscalls)
}

/// Files, and nothing else.
pub fn of_copies() -> Seccomp {
    let groups = [DESCRIPTORS, WAITING, FILES, MEMORY, THREADS, TIME, &["linkat", "symlinkat"]];
    refusing_others(groups.map(|names| rule(names, Vec::new())).into())
}

fn refusing_others(syscalls: Vec<SyscallRule>) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(EPERM),
        architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
        syscalls,
        ..Seccomp::default()
    }
}
