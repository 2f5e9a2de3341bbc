//! Namespaces: which are made, which joined, and what is set up in new ones.

pub mod ranges;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use self::ranges::{Kind, find_program};
use crate::error::{Context, Error, Result};
use crate::rootfs::proc::PrivateProc;
use crate::spec::{IdMap, NamespaceKind, Spec, TimeOffset};
use crate::sys::clone::{setns, unshare};

impl NamespaceKind {
    /// The kernel's flag.
    pub fn flag(self) -> i32 {
        match self {
            NamespaceKind::User => libc::CLONE_NEWUSER,
            NamespaceKind::Pid => libc::CLONE_NEWPID,
            NamespaceKind::Network => libc::CLONE_NEWNET,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::Ipc => libc::CLONE_NEWIPC,
            NamespaceKind::Uts => libc::CLONE_NEWUTS,
            NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
            NamespaceKind::Time => libc::CLONE_NEWTIME,
        }
    }

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            NamespaceKind::User => "user",
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Mount => "mount",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Time => "time",
        }
    }
}

/// A namespace to join.
pub struct Join {
    pub kind: NamespaceKind,
    pub file: OwnedFd,
}

/// How the first process gets its namespaces.
pub struct Plan {
    /// Flags of the namespaces that are made together with the process.
    pub at_clone: u64,
    /// Made by the process itself as its first step: a network namespace alone takes as long as
    /// making all cgroups, which the runtime does meanwhile.
    pub at_start: i32,
    /// Made by the process itself, once it is in its cgroup.
    pub cgroup: bool,
    /// Made by the process itself, because clocks are set before it enters.
    pub time: bool,
    pub joins: Vec<Join>,
}

impl Plan {
    /// Reads the configuration and opens what is to be joined.
    pub fn of(spec: &Spec) -> Result<Self> {
        let mut plan =
            Plan { at_clone: 0, at_start: 0, cgroup: false, time: false, joins: Vec::new() };
        for namespace in &spec.linux.namespaces {
            let kind = namespace.kind;
            match namespace.path.as_deref().filter(|p| !p.is_empty()) {
                Some(path) => {
                    let file = File::open(path)
                        .during(|| format!("open the {} namespace {path}", kind.name()))?;
                    plan.joins.push(Join { kind, file: file.into() });
                }
                None => match kind {
                    NamespaceKind::Cgroup => plan.cgroup = true,
                    NamespaceKind::Time => plan.time = true,
                    _ => plan.at_clone |= kind.flag() as u64,
                },
            }
        }
        if !plan.makes_user() && plan.joins.is_empty() {
            let pid = libc::CLONE_NEWPID as u64;
            plan.at_start = (plan.at_clone & !pid) as i32;
            plan.at_clone &= pid;
        }
        Ok(plan)
    }

    /// Whether it is to own a user namespace, which owns all others that are made.
    fn makes_user(&self) -> bool {
        self.at_clone & libc::CLONE_NEWUSER as u64 != 0
    }

    /// Makes those that are the process's own affair.
    pub fn make_own(&self) -> Result<()> {
        if self.at_start == 0 { Ok(()) } else { unshare(self.at_start).map_err(explain) }
    }

    /// Whether a user namespace is made or joined beside joining others: these
    /// have to be entered in an order that one clone cannot give.
    pub fn needs_stages(&self) -> bool {
        let joins_user = self.joins.iter().any(|j| j.kind == NamespaceKind::User);
        joins_user || (self.makes_user() && !self.joins.is_empty())
    }

    /// Whether the first process still sees and may do what the runtime does, until it mounts.
    pub fn sees_the_host(&self) -> bool {
        let elsewhere = [NamespaceKind::User, NamespaceKind::Mount, NamespaceKind::Cgroup];
        !self.makes_user() && !self.joins.iter().any(|j| elsewhere.contains(&j.kind))
    }

    /// Joins the pid namespace for the children of this process.
    pub fn join_pid(&self) -> Result<()> {
        self.join_where(|kind| kind == NamespaceKind::Pid)
    }

    /// Joins all that concern the process itself.
    pub fn join_others(&self) -> Result<()> {
        self.join_where(|kind| kind != NamespaceKind::Pid)
    }

    fn join_where(&self, wanted: impl Fn(NamespaceKind) -> bool) -> Result<()> {
        for join in self.joins.iter().filter(|j| wanted(j.kind)) {
            join.enter()?;
        }
        Ok(())
    }

    /// Joins everything, what belongs to the runtime's user namespace before
    /// the user namespace changes and the rest after.
    pub fn join_in_stages(&self) -> Result<()> {
        let user = self.joins.iter().find(|j| j.kind == NamespaceKind::User);
        let mut later = Vec::new();
        for join in self.joins.iter().filter(|j| j.kind != NamespaceKind::User) {
            match join.enter() {
                Ok(()) => {}
                Err(_) if user.is_some() => later.push(join),
                Err(e) => return Err(e),
            }
        }
        if let Some(user) = user {
            user.enter()?;
        }
        for join in later {
            join.enter()?;
        }
        Ok(())
    }
}

impl Join {
    fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), self.kind.flag())
            .during(|| format!("join a {} namespace", self.kind.name()))
    }
}

/// Why namespaces could not be made, for whoever asked for them.
pub fn explain(source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => Error::unsupported(
            "one more namespace",
            "raise user.max_*_namespaces with sysctl, or end other containers",
        ),
        Some(libc::EPERM) => Error::unsupported(
            "making these namespaces as this user",
            "run as root, or give the container a user namespace (and see that the host allows \
             them: kernel.unprivileged_userns_clone, user.max_user_namespaces)",
        ),
        _ => Error::System { what: "make the first process".into(), source },
    }
}

/// Makes a time namespace with clocks set off, and enters it. A process that became another
/// user may not open its own file of offsets: the runtime is then asked to set them.
pub fn enter_new_time(
    offsets: &BTreeMap<String, TimeOffset>,
    ask: impl FnOnce() -> Result<()>,
) -> Result<()> {
    unshare(libc::CLONE_NEWTIME).during(|| "make a time namespace")?;
    match set_clocks("self", offsets) {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            ask()?;
        }
        other => other?,
    }
    let file = File::open("/proc/self/ns/time_for_children").during(|| "open a time namespace")?;
    setns(file.as_fd(), libc::CLONE_NEWTIME).during(|| "enter a time namespace")
}

/// Sets the clocks of the time namespace that a process has made and not entered.
pub fn set_clocks(process: &str, offsets: &BTreeMap<String, TimeOffset>) -> Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let text: String = offsets
        .iter()
        .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
        .collect();
    std::fs::write(format!("/proc/{process}/timens_offsets"), text)
        .during(|| "set the offsets of clocks (linux.timeOffsets)")
}

/// Gives the calling thread, and what it starts, mounts of its own: what is
/// mounted on the host comes in, nothing goes out, and all of it ends with them.
pub fn own_mounts() -> Result<()> {
    unshare(libc::CLONE_NEWNS).during(|| "make a mount namespace")?;
    let slash = crate::rootfs::path::open_host("/").during(|| "open /")?;
    let change = crate::sys::mount::Change {
        propagation: libc::MS_SLAVE,
        recursive: true,
        ..crate::sys::mount::Change::default()
    };
    crate::sys::mount::set_attributes(slash.as_fd(), change).during(|| "keep mounts to ourselves")
}

/// Whether this process is in a user namespace other than the host's.
pub fn in_user_namespace() -> bool {
    const ALL: IdMap = IdMap { container: 0, host: 0, size: u32::MAX };
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| Kind::User.here() != [ALL])
}

/// Whether this process's user namespace has a user and groups of these numbers.
pub fn has_ids(user: u32, groups: &[u32]) -> bool {
    let has = |kind: Kind, ids: &[u32]| {
        let maps = kind.here();
        ids.iter().all(|id| maps.iter().any(|map| covers(map, *id)))
    };
    has(Kind::User, &[user]) && has(Kind::Group, groups)
}

fn covers(map: &IdMap, id: u32) -> bool {
    id.checked_sub(map.container).is_some_and(|distance| distance < map.size)
}

/// Whether a new user namespace with these group mappings may set groups: not
/// when a plain user maps only its own group, for which the kernel wants that
/// right given up.
pub fn may_set_groups(gids: &[IdMap]) -> bool {
    rustix::process::geteuid().is_root() || !maps_only(gids, rustix::process::getegid().as_raw())
}

/// Whether this process's own user namespace lets anybody set groups.
pub fn may_set_groups_here() -> bool {
    let said = std::fs::read_to_string("/proc/self/setgroups");
    said.map_or(true, |said| said.trim() != "deny")
}

fn maps_only(maps: &[IdMap], id: u32) -> bool {
    matches!(maps, [m] if m.host == id && m.size == 1)
}

/// Writes the id mappings of a process's new user namespace.
///
/// A user who may not write them directly has newuidmap and newgidmap do it, by
/// the ranges of /etc/subuid and /etc/subgid; a mapping of only the user's own
/// id needs neither, and costs the right to set groups.
pub fn write_mappings(
    pid: i32,
    uids: &[IdMap],
    gids: &[IdMap],
    may_ask_helpers: bool,
) -> Result<()> {
    let privileged = rustix::process::geteuid().is_root() || !may_ask_helpers;
    let all = [
        (Kind::Group, gids, rustix::process::getegid().as_raw()),
        (Kind::User, uids, rustix::process::geteuid().as_raw()),
    ];
    let mut asked = Vec::new();
    let mut written = Ok(());
    for (kind, maps, own) in all {
        if written.is_err() {
            break;
        }
        written = if privileged {
            write_map_file(pid, kind, maps)
        } else if maps_only(maps, own) {
            write_mapping(pid, kind, maps)
        } else {
            // Both at a time: each is a program to start.
            Helper::ask(kind, pid, maps).map(|helper| asked.push(helper))
        };
    }
    // One that was asked is waited for, whatever has become of the other.
    asked.into_iter().map(Helper::answer).fold(written, Result::and)
}

/// Writes one that a plain user may write: of its own id alone.
fn write_mapping(pid: i32, kind: Kind, maps: &[IdMap]) -> Result<()> {
    if kind == Kind::Group {
        write_file(pid, "setgroups", "deny").during(|| "deny setgroups")?;
    }
    write_map_file(pid, kind, maps)
}

fn write_map_file(pid: i32, kind: Kind, maps: &[IdMap]) -> Result<()> {
    let text: String =
        maps.iter().map(|m| format!("{} {} {}\n", m.container, m.host, m.size)).collect();
    write_file(pid, kind.mapping(), &text).during(|| format!("write {}", kind.mapping()))
}

fn write_file(pid: i32, file: &str, text: &str) -> io::Result<()> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// A program with the right to map ranges, at work.
struct Helper {
    program: &'static str,
    process: Child,
}

impl Helper {
    fn ask(kind: Kind, pid: i32, maps: &[IdMap]) -> Result<Helper> {
        let program = kind.helper();
        let file = find_program(program).ok_or_else(|| {
            Error::unsupported(
                program,
                "install it (Debian: uidmap), or map only your own user and group id",
            )
        })?;
        let mut command = Command::new(file);
        command.arg(pid.to_string());
        for map in maps {
            command.args([map.container, map.host, map.size].map(|n| n.to_string()));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let process = command.spawn().during(|| format!("run {program}"))?;
        Ok(Helper { program, process })
    }

    fn answer(self) -> Result<()> {
        let output = self.process.wait_with_output().during(|| format!("run {}", self.program))?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Err(Error::unsupported(
            format!("this id mapping ({words})"),
            "give the user a range in /etc/subuid and /etc/subgid",
        ))
    }
}

/// Sysctls that belong to a namespace, which a container may set if it has one
/// of its own.
fn sysctl_namespace(key: &str) -> Option<NamespaceKind> {
    const IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    if IPC.contains(&key) || key.starts_with("fs/mqueue/") {
        Some(NamespaceKind::Ipc)
    } else if key.starts_with("net/") {
        Some(NamespaceKind::Network)
    } else if matches!(key, "kernel/domainname" | "kernel/hostname") {
        Some(NamespaceKind::Uts)
    } else if key.starts_with("user/") {
        Some(NamespaceKind::User)
    } else {
        None
    }
}

/// The file below `/proc/sys` for a sysctl: dots and slashes separate, and
/// whichever comes first says which of the two it is.
fn sysctl_file(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Refuses sysctls that would change the host, before anything is made.
pub fn check_sysctls(spec: &Spec) -> Result<()> {
    for key in spec.linux.sysctl.keys() {
        let file = sysctl_file(key);
        if file.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Error::config("linux.sysctl", format!("{key:?} is not a sysctl")));
        }
        match sysctl_namespace(&file) {
            Some(kind) if spec.has(kind) => {}
            Some(kind) => {
                return Err(Error::config(
                    "linux.sysctl",
                    format!("{key} needs a {} namespace of the container", kind.name()),
                ));
            }
            None => {
                return Err(Error::config(
                    "linux.sysctl",
                    format!("{key} is not separate for containers: set it on the host"),
                ));
            }
        }
    }
    Ok(())
}

/// Sets the sysctls.
pub fn apply_sysctls(spec: &Spec, proc: &PrivateProc) -> Result<()> {
    for (key, value) in &spec.linux.sysctl {
        proc.write(&format!("sys/{}", sysctl_file(key)), value.as_bytes())
            .during(|| format!("set the sysctl {key} to {value:?}"))?;
    }
    Ok(())
}

/// Brings up the loopback interface of this network namespace.
pub fn bring_up_loopback() -> Result<()> {
    // SAFETY: integers; a fresh descriptor or -1 is returned.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error()).during(|| "open a socket");
    }
    // SAFETY: as above, nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: ifreq is plain data, for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).during(|| "bring up the loopback interface");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
