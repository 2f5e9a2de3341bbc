//! Landlock: rights that a process gives up, for itself and what it starts.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

const CREATE_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const RULE_NET_PORT: u32 = 2;

/// Abstract sockets of others, and signals to them.
const SCOPES: u64 = 0b11;
const KNOWS_SCOPES: u32 = 6;

/// The kernel's `struct landlock_ruleset_attr` up to version 6. Older kernels take it too, as
/// long as what they do not know is zero.
#[repr(C)]
struct RulesetAttr {
    handled_files: u64,
    handled_network: u64,
    scoped: u64,
}

/// The kernel's `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The kernel's `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed: u64,
    port: u64,
}

/// The version of the interface that this kernel has; 0 if it has none.
pub fn version() -> u32 {
    // SAFETY: with this flag the call takes no attributes and returns a number.
    let value = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0usize,
            CREATE_VERSION,
        )
    });
    value.ok().and_then(|version| u32::try_from(version).ok()).unwrap_or(0)
}

/// Rights that are given up, but for those that were allowed.
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Gives up these rights on files and on the network.
    pub fn new(files: u64, network: u64) -> io::Result<Self> {
        Self::make(RulesetAttr { handled_files: files, handled_network: network, scoped: 0 })
    }

    /// Gives up these rights on files and, where the kernel can, all ways to processes that
    /// have more rights.
    pub fn shut_in(files: u64) -> io::Result<Self> {
        let scoped = if version() >= KNOWS_SCOPES { SCOPES } else { 0 };
        Self::make(RulesetAttr { handled_files: files, handled_network: 0, scoped })
    }

    fn make(attr: RulesetAttr) -> io::Result<Self> {
        // SAFETY: the structure has the size that is passed and outlives the call.
        let fd = check(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attr,
                size_of::<RulesetAttr>(),
                0u32,
            )
        })?;
        // SAFETY: the call returns a fresh descriptor.
        Ok(Ruleset(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Keeps rights on a file, or on all that is below a directory.
    pub fn allow_below(&self, parent: BorrowedFd<'_>, allowed: u64) -> io::Result<()> {
        let attr = PathBeneath { allowed, parent: parent.as_raw_fd() };
        // SAFETY: the structure is the one that this kind of rule has and outlives the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const attr,
                0u32,
            )
        })
        .map(drop)
    }

    /// Keeps rights on a TCP port.
    pub fn allow_port(&self, port: u16, allowed: u64) -> io::Result<()> {
        let attr = NetPort { allowed, port: port.into() };
        // SAFETY: the structure is the one that this kind of rule has and outlives the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                RULE_NET_PORT,
                &raw const attr,
                0u32,
            )
        })
        .map(drop)
    }

    /// From here on the calling thread has no more than what was allowed. Needs
    /// no_new_privs.
    pub fn restrict(self) -> io::Result<()> {
        // SAFETY: takes a descriptor and a number.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0u32) })
            .map(drop)
    }
}
