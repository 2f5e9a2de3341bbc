//! Which system calls a container of an image may not make.
//!
//! Capabilities already keep a container from most of what would change the host. This
//! takes away what is left: calls that few programs make and that have been ways out
//! through bugs of the kernel, and namespaces inside, which would give back capabilities
//! over code that expects an administrator.

use crate::spec::{Seccomp, SyscallArg, SyscallRule};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Refused with EPERM, as if a capability were missing.
const REFUSED: [&str; 46] = [
    "acct",
    "add_key",
    "bpf",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "sysfs",
    "_sysctl",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "uselib",
    "vm86",
];

pub fn profile() -> Seccomp {
    let refuse = |names: &[&str], errno: u32, args: Vec<SyscallArg>| SyscallRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(errno),
        args,
    };
    // Any of the CLONE_NEW* flags, one rule each: a rule's comparisons all have to hold.
    const NAMESPACES: [u64; 7] =
        [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
    let mut syscalls = vec![
        refuse(&REFUSED, EPERM, Vec::new()),
        // Its flags are in memory, where a filter cannot look; programs then use clone.
        refuse(&["clone3"], ENOSYS, Vec::new()),
    ];
    for flag in NAMESPACES {
        let masked = SyscallArg {
            index: 0,
            value: flag,
            value_two: flag,
            op: "SCMP_CMP_MASKED_EQ".to_owned(),
        };
        syscalls.push(refuse(&["clone"], EPERM, vec![masked]));
    }
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
            .map(str::to_owned)
            .to_vec(),
        syscalls,
        ..Seccomp::default()
    }
}
