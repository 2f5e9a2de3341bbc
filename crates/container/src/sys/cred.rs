//! Credentials: capability sets, user and group ids, keyrings, process flags.

use std::ffi::CStr;
use std::io;

use super::check;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the three sets of the calling thread; each bit is a capability number.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data structures, which these are.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The permitted set of the calling thread.
pub fn permitted_capabilities() -> io::Result<u64> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structures.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

fn prctl(option: i32, arg2: u64, arg3: u64) -> io::Result<i32> {
    // SAFETY: only options that take integers are passed by this file.
    check(unsafe { libc::prctl(option, arg2, arg3, 0u64, 0u64) }.into()).map(|v| v as i32)
}

/// Whether the bounding set has a capability; an error for unknown numbers.
pub fn in_bounding_set(capability: u32) -> io::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, capability.into(), 0).map(|v| v == 1)
}

/// Takes a capability out of the bounding set, for good.
pub fn drop_from_bounding_set(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient_set() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Adds to the ambient set.
pub fn raise_ambient(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into()).map(drop)
}

/// Whether a change of user keeps the permitted set.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}

/// Gives up gaining privileges by executing, for good.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Keeps others from tracing this process or reading its `/proc` files.
pub fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Lets this process read its own `/proc` files again, as before a change of user.
pub fn set_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// The signal this process gets when its parent ends.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0).map(drop)
}

/// Sets real, effective and saved group id.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: integers only; the raw call because the process has one thread.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Sets real, effective and saved user id.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: as for set_gid.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Sets the ids that the calling thread's work on files is done with; how that went is not told.
pub fn set_file_ids(id: u32) {
    // SAFETY: integers only; the raw calls concern the calling thread.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, id);
        libc::syscall(libc::SYS_setfsuid, id);
    }
}

/// Sets the supplementary groups.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe the slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    // SAFETY: takes an integer and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Starts a new session without a controlling terminal; a process that leads
/// one already stays in it.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    match check(unsafe { libc::setsid() }.into()) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other.map(drop),
    }
}

/// Joins a new session keyring of this name, so that the host's keys are out
/// of reach; returns its serial number.
pub fn new_session_keyring(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(|v| v as i32)
}

/// Lets the owner of a keyring search it (the kernel's default leaves it to
/// processes that possess it, which a change of user ends).
pub fn let_owner_search_keyring(serial: i32) -> io::Result<()> {
    const KEYCTL_DESCRIBE: i32 = 6;
    const KEYCTL_SETPERM: i32 = 5;
    const USER_SEARCH: u32 = 0x0008_0000;
    let mut text = [0u8; 512];
    // SAFETY: the buffer is writable for the length given.
    let length = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, serial, text.as_mut_ptr(), text.len())
    })? as usize;
    // "keyring;uid;gid;permissions;name"
    let text = String::from_utf8_lossy(&text[..length.min(text.len())]).into_owned();
    let permissions =
        text.split(';').nth(3).and_then(|p| u32::from_str_radix(p, 16).ok()).ok_or_else(|| {
            io::Error::other("the kernel's description of a key is not understood")
        })?;
    // SAFETY: integers only.
    check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, permissions | USER_SEARCH)
    })
    .map(drop)
}

/// Sets the execution domain.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: takes an integer.
    check(unsafe { libc::personality(domain) }.into()).map(drop)
}

/// Sets the host name of this uts namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe the string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Sets the domain name of this uts namespace.
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe the string.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// A limit of the calling process.
pub fn set_rlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit outlives the call; no old value is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null::<libc::rlimit64>(),
        )
    })
    .map(drop)
}
