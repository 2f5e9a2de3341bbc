//! The eight namespaces, each tried in a child that never becomes a program.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use guise_container::namespaces::ranges::{self, Ids, Lack};
use guise_container::spec::IdMap;
use rustix::thread::UnshareFlags;

use super::read;
use crate::{Finding, Group};

const NAMESPACES: [(&str, UnshareFlags, &str); 8] = [
    ("user", UnshareFlags::NEWUSER, "Containers run without root on the host"),
    ("mount", UnshareFlags::NEWNS, "A container has a file system of its own"),
    ("pid", UnshareFlags::NEWPID, "A container sees its own processes only"),
    ("network", UnshareFlags::NEWNET, "A container has interfaces and ports of its own"),
    ("ipc", UnshareFlags::NEWIPC, "Shared memory and message queues are kept apart"),
    ("uts", UnshareFlags::NEWUTS, "A container has a host name of its own"),
    ("cgroup", UnshareFlags::NEWCGROUP, "A container sees its own part of the cgroups"),
    ("time", UnshareFlags::NEWTIME, "A container that is restored keeps its uptime"),
];

pub fn examine() -> Group {
    let root = rustix::process::geteuid().is_root();
    let mut findings: Vec<_> = NAMESPACES
        .iter()
        .map(|&(name, flag, effect)| {
            // Who is not root becomes root of a user namespace first.
            let (flags, how) = match root {
                true => (flag, "Can be made"),
                false => (flag | UnshareFlags::NEWUSER, "Can be made without root"),
            };
            match unshare_in_child(flags) {
                Ok(()) => Finding::found(name, how, effect),
                Err(error) => Finding::missing(
                    name,
                    format!("The kernel refuses: {error}"),
                    "Containers that need it are refused with this reason",
                    remedy(&error),
                ),
            }
        })
        .collect();
    if !root {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        findings.push(users(ranges::of(user.as_raw(), group.as_raw())));
    }
    Group { name: "Namespaces", findings }
}

/// Who there can be in a plain user's containers.
pub(super) fn users(ids: Result<Ids, Lack>) -> Finding {
    const NAME: &str = "users";
    match ids {
        Ok(ids) => {
            let last = |maps: &[IdMap]| maps.last().map_or(0, |map| map.container + (map.size - 1));
            let last = last(&ids.uids).min(last(&ids.gids));
            let detail = format!("0 to {last}, by /etc/subuid and /etc/subgid");
            Finding::found(NAME, detail, "This user's containers have all users")
        }
        Err(lack) => Finding::limited(
            NAME,
            lack.to_string(),
            "This user's containers have root alone: -u with another is refused, and programs \
             that change to another fail, apt-get among them",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER, and the \
             package uidmap",
        ),
    }
}

/// Unshares in a child and says how that went.
fn unshare_in_child(flags: UnshareFlags) -> io::Result<()> {
    /// What the child reports instead of becoming a program: all went well.
    const DONE: i32 = rustix::io::Errno::CANCELED.raw_os_error();
    let mut command = Command::new("/");
    // SAFETY: the closure runs between fork and exec and does nothing but one system
    // call; it neither allocates nor takes a lock. The unsharing concerns the child
    // only, which shares no descriptor table and no threads with this process.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::unshare_unsafe(flags)?;
            Err(io::Error::from_raw_os_error(DONE))
        });
    }
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(DONE) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("the root directory became a program")),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    let restricted = |path: &str, value: &str| read(path).is_some_and(|text| text == value);
    if restricted("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces=10000"
    } else if restricted("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone=1"
    } else if restricted("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) {
        "a kernel that has it"
    } else {
        "run Guise outside of the container that forbids it, or as root"
    }
}
