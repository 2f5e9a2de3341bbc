//! The container's configuration for the OCI runtime.

use std::path::Path;

use guise_container::cgroup::{CPU_SET, SWAP_LIMIT, cpu_shares};
use guise_container::namespaces::{in_user_namespace, may_set_groups_here};
use guise_container::spec::{
    Capabilities, ConsoleSize, Cpu, DeviceRule, Linux, Memory, Mount, Namespace, NamespaceKind,
    OCI_VERSION, Pids, Process, Resources, Root, Spec, User, defaults,
};

use super::root;
use super::user::User as Account;
use crate::body::{BodyError, Program, failed};
use crate::group::PERIOD;
use crate::job::{self, Job, Network};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What all programs in the container have in common.
pub fn base(job: &Job) -> Process {
    let names = defaults::CAPABILITIES.map(str::to_owned).to_vec();
    Process {
        capabilities: Some(Capabilities {
            bounding: names.clone(),
            effective: names.clone(),
            permitted: names,
            ..Capabilities::default()
        }),
        env: vec![format!("HOSTNAME={}", job.host_name)],
        ..Process::default()
    }
}

/// The configuration; `network` is the path of the namespace that it is plugged into.
pub fn of(
    job: &Job,
    mounted: &Path,
    network: Option<String>,
    process: Process,
) -> Result<Spec, BodyError> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| BodyError::Failed(format!("{} is not UTF-8", path.display())))
    };
    let mut mounts = kernel_mounts(job.network);
    let etc = root::etc(job);
    for file in root::ETC {
        mounts.push(bind(text(&etc.join(file))?, format!("/etc/{file}"), false));
    }
    for mount in &job.mounts {
        mounts.push(bind(text(&mount.source)?, mount.target.clone(), mount.read_only));
    }
    Ok(Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(process),
        root: Some(Root { path: text(mounted)?, readonly: job.read_only }),
        hostname: Some(job.host_name.clone()),
        mounts,
        linux: Linux {
            resources: resources(&job.resources)?,
            namespaces: namespaces(job.network, network),
            seccomp: Some(defaults::seccomp()),
            masked_paths: defaults::MASKED.map(str::to_owned).to_vec(),
            readonly_paths: defaults::READ_ONLY.map(str::to_owned).to_vec(),
            ..Linux::default()
        },
        ..Spec::default()
    })
}

/// A program in the container.
pub fn process(program: &Program, user: Account, base: &Process) -> Process {
    let mut env = base.env.clone();
    env.extend(program.env.iter().cloned());
    let mut default = |name: &str, value: String| {
        if !env.iter().any(|entry| entry.split('=').next() == Some(name)) {
            env.push(value);
        }
    };
    default("PATH", PATH.to_owned());
    default("HOME", format!("HOME={}", user.home));
    if program.terminal.is_some() {
        default("TERM", "TERM=xterm".to_owned());
    }
    Process {
        terminal: program.terminal.is_some(),
        console_size: program
            .terminal
            .filter(|size| size.rows > 0 && size.columns > 0)
            .map(|size| ConsoleSize { height: size.rows, width: size.columns }),
        user: User {
            uid: user.uid,
            gid: user.gid,
            umask: None,
            additional_gids: match may_set_groups_here() {
                false => Vec::new(),
                true if user.groups.is_empty() => vec![user.gid],
                true => user.groups,
            },
        },
        args: program.argv.clone(),
        env,
        cwd: if program.cwd.is_empty() { "/".to_owned() } else { program.cwd.clone() },
        ..base.clone()
    }
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn bind(source: String, destination: String, read_only: bool) -> Mount {
    let mode = if read_only { "ro" } else { "rw" };
    Mount {
        destination,
        kind: Some("bind".to_owned()),
        source: Some(source),
        options: ["rbind", "rprivate", mode].map(str::to_owned).to_vec(),
        ..Mount::default()
    }
}

fn kernel_mounts(network: Network) -> Vec<Mount> {
    const HARMLESS: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let plain_user = in_user_namespace();
    let mut mounts = vec![
        mount("/proc", "proc", &HARMLESS),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &HARMLESS),
    ];
    if plain_user && network == Network::Host {
        // The host's network is not this user's to mount a sysfs of.
        mounts.push(bind("/sys".to_owned(), "/sys".to_owned(), true));
    } else {
        mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
    }
    if !plain_user {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]));
    }
    mounts
}

fn namespaces(network: Network, plugged: Option<String>) -> Vec<Namespace> {
    let own = |kind| Namespace { kind, path: None };
    let mut all = vec![
        own(NamespaceKind::Pid),
        own(NamespaceKind::Ipc),
        own(NamespaceKind::Uts),
        own(NamespaceKind::Mount),
        own(NamespaceKind::Cgroup),
    ];
    if network != Network::Host {
        all.push(Namespace { kind: NamespaceKind::Network, path: plugged });
    }
    all
}

/// Whether it is limited in anything that takes a cgroup.
pub fn limits(asked: &job::Resources) -> bool {
    let job::Resources { cpus, cpu_weight, cpuset, memory_bytes, processes, disk_bytes: _ } = asked;
    cpus.is_some()
        || cpu_weight.is_some()
        || cpuset.is_some()
        || memory_bytes.is_some()
        || processes.is_some()
}

/// What the user is told of limits that no cgroup holds.
pub fn remarks(missing: &[&str]) -> Vec<String> {
    let mut remarks = Vec::new();
    // The worker is bound to its processors itself, and what it starts begins so.
    let (sets, others): (Vec<_>, Vec<_>) = missing.iter().partition(|what| **what == CPU_SET);
    // That is a part of the memory limit, which nobody has asked for by itself.
    let others: Vec<&str> = others.into_iter().filter(|what| *what != SWAP_LIMIT).collect();
    if !others.is_empty() {
        let what = others.join(", ");
        remarks.push(format!("not enforced: {what} (this user has no cgroup controllers for it)"));
    }
    if !sets.is_empty() {
        let what = "its programs begin on these processors, and could go to others: this user has \
                    no cgroup controller for them";
        remarks.push(what.to_owned());
    }
    remarks
}

/// What the container may use.
fn resources(limits: &job::Resources) -> Result<Resources, BodyError> {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(Resources {
        devices: vec![DeviceRule {
            allow: false,
            access: Some("rwm".to_owned()),
            ..DeviceRule::default()
        }],
        memory: Memory {
            limit: limits.memory_bytes.map(bytes),
            // With nothing to swap beyond it the limit is one.
            swap: limits.memory_bytes.map(bytes),
            ..Memory::default()
        },
        cpu: Cpu {
            quota: limits.cpus.map(|cpus| (cpus * PERIOD as f64) as i64),
            period: limits.cpus.map(|_| PERIOD),
            shares: limits.cpu_weight.map(cpu_shares).transpose().map_err(failed)?,
            cpus: limits.cpuset.clone(),
            ..Cpu::default()
        },
        pids: limits
            .processes
            .map(|processes| Pids { limit: i64::try_from(processes).unwrap_or(i64::MAX) }),
        ..Resources::default()
    })
}
