//! The names that profiles use: actions, operators, architectures, flags.

/// Names and return values of actions; those with data take it in the low bits.
pub const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_KILL", libc::SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_KILL_THREAD", libc::SECCOMP_RET_KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", libc::SECCOMP_RET_KILL_PROCESS),
    ("SCMP_ACT_TRAP", libc::SECCOMP_RET_TRAP),
    ("SCMP_ACT_ERRNO", libc::SECCOMP_RET_ERRNO),
    ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE),
    ("SCMP_ACT_ALLOW", libc::SECCOMP_RET_ALLOW),
    ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
    ("SCMP_ACT_NOTIFY", libc::SECCOMP_RET_USER_NOTIF),
];

/// A comparison with a 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

/// Names of comparisons.
pub const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_NE", Operator::NotEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
];

/// The architectures a process on this machine can make system calls of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    X32,
    X86,
}

/// Names of those architectures. Profiles list others too, which cannot occur.
pub const ARCHITECTURES: [(&str, Architecture); 3] = [
    ("SCMP_ARCH_X86_64", Architecture::X86_64),
    ("SCMP_ARCH_X32", Architecture::X32),
    ("SCMP_ARCH_X86", Architecture::X86),
];

/// Names of filter flags.
pub const FLAGS: [(&str, u64); 4] = [
    // The process has one thread when the filter is loaded.
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", libc::SECCOMP_FILTER_FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5),
];

/// Marks a system call number of the x32 interface.
pub const X32_BIT: u32 = 0x4000_0000;

/// System calls whose number in the x32 interface is not the 64-bit one.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

impl Architecture {
    /// The number of a system call; none where the interface lacks it.
    pub fn number(self, name: &str) -> Option<u32> {
        let wide = |name: &str| -> Option<u32> {
            let call: syscalls::x86_64::Sysno = name.parse().ok()?;
            Some(call.id() as u32)
        };
        match self {
            Architecture::X86_64 => wide(name),
            Architecture::X32 => X32_OWN
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, number)| *number)
                .or_else(|| wide(name))
                .map(|n| n | X32_BIT),
            Architecture::X86 => {
                let call: syscalls::x86::Sysno = name.parse().ok()?;
                Some(call.id() as u32)
            }
        }
    }
}
