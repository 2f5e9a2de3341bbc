//! Control groups: where the container's are, on v1, v2 and hybrid hosts.
//!
//! The mount table decides per controller: each mounted v1 hierarchy and the
//! unified one get a directory for the container. Limits go to the hierarchy
//! that has the controller (`v1`, `v2`).

mod device_bpf;
mod devices;
mod gauge;
mod hierarchy;
mod presence;
pub mod stats;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use gauge::{Gauge, Usage};
pub use hierarchy::{Hierarchy, Saved, detect};
pub use presence::{Moved, cpu_shares};
pub use v2::shares_of_weight;

use crate::error::{Context, Error, Result};
use crate::spec::Resources;
use crate::sys::files::read_text;

/// The cgroups of one container.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
}

/// Limits that may be missing, as [`Cgroup::missing`] calls them.
pub const SWAP_LIMIT: &str = "the swap limit";
pub const CPU_SHARES: &str = "the CPU shares";
pub const CPU_QUOTA: &str = "the CPU quota";
pub const CPU_SET: &str = "the CPU set";

impl Cgroup {
    /// Finds the hierarchies of this host and names the container's directory
    /// in each; makes nothing yet.
    pub fn plan(path: Option<&str>, id: &str, resources: &Resources) -> Result<Self> {
        let relative = relative_path(path, id)?;
        let needs_unified = !resources.unified.is_empty() || !resources.hugepage_limits.is_empty();
        let mut hierarchies = detect()?;
        let several = hierarchies.len() > 1;
        let rootless = !rustix::process::geteuid().is_root();
        for hierarchy in &mut hierarchies {
            if !several || !hierarchy.is_unified() || needs_unified {
                hierarchy.place(&relative, rootless);
            }
        }
        Ok(Cgroup { hierarchies })
    }

    /// The cgroups a container was given earlier.
    pub fn from_saved(saved: &[Saved]) -> Self {
        Cgroup { hierarchies: saved.iter().map(Hierarchy::from_saved).collect() }
    }

    /// What to keep in the state file.
    pub fn save(&self) -> Vec<Saved> {
        self.hierarchies.iter().filter_map(Hierarchy::save).collect()
    }

    /// All hierarchies, those without a directory of the container included.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Makes the directories. Where this user may not, the container stays in
    /// the runtime's cgroup of that hierarchy, and limits that would have needed
    /// it are reported.
    pub fn create(&mut self) -> Result<()> {
        let may_do_without =
            !rustix::process::geteuid().is_root() || crate::namespaces::in_user_namespace();
        for hierarchy in &mut self.hierarchies {
            match hierarchy.create() {
                Ok(()) => hierarchy.narrow(),
                Err(e) if may_do_without && cannot_write(&e) => {
                    hierarchy.forget();
                }
                Err(source) => {
                    return Err(Error::System {
                        what: format!("make the cgroup for {}", hierarchy.name()),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Sets the limits, each where its controller is.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        v1::apply(self, resources)?;
        if let Some(unified) = self.unified() {
            v2::apply(unified, resources)?;
        }
        self.report_missing(resources);
        Ok(())
    }

    /// Sets which devices processes may use.
    pub fn apply_devices(&self, resources: &Resources) -> Result<()> {
        let rules = devices::rules(&resources.devices);
        if let Some(directory) = self.controller("devices") {
            return devices::write_v1(directory, &rules);
        }
        if let Some(unified) = self.unified().and_then(Hierarchy::directory) {
            return device_bpf::attach(unified, &rules);
        }
        Ok(())
    }

    /// Changes the device rules of a running container, if any are given.
    pub fn update_devices(&self, resources: &Resources) -> Result<()> {
        if resources.devices.is_empty() { Ok(()) } else { self.apply_devices(resources) }
    }

    /// The v2 directory, opened so that a process can be made straight in it.
    pub fn open_for_clone(&self) -> Option<OwnedFd> {
        if self.hierarchies.len() != 1 {
            return None;
        }
        let directory = self.unified()?.directory()?;
        fs::File::open(directory).ok().map(OwnedFd::from)
    }

    /// Whether a process can go in when it has begun to set itself up: not where `clone3` puts
    /// it in, and not for a user whose rights show only when the directories are made.
    pub fn can_be_entered_later(&self) -> bool {
        self.hierarchies.iter().any(|h| !h.is_unified())
            && rustix::process::geteuid().is_root()
            && !crate::namespaces::in_user_namespace()
    }

    /// Those of which the container has a directory.
    pub fn own_hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|h| h.directory().is_some())
    }

    /// Opens the ways in, for a process that is going to be made: into the
    /// container's own directories or those `below`, except where `clone3` puts
    /// the process by itself.
    pub fn entrances(&self, cloned_into_unified: bool, below: &str) -> Result<Entrances> {
        let below: Vec<&str> = crate::rootfs::path::components(below).collect();
        let below = below.join("/");
        let mut files = Vec::new();
        for hierarchy in &self.hierarchies {
            let Some(directory) = hierarchy.directory() else { continue };
            if hierarchy.is_unified() && cloned_into_unified {
                continue;
            }
            let name = if hierarchy.is_unified() { "cgroup.procs" } else { "tasks" };
            let path = directory.join(&below).join(name);
            let file = fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .during(|| format!("open {}", path.display()))?;
            files.push((path, file));
        }
        Ok(Entrances(files))
    }

    /// All processes, those in cgroups below included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(directory) = self.tracking_directory() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect_processes(directory, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops or lets run all processes.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let deadline = Instant::now() + PATIENCE;
        if let Some(directory) = self.controller("freezer") {
            let wanted = if frozen { "FROZEN" } else { "THAWED" };
            write(directory, "freezer.state", wanted)?;
            while read(directory, "freezer.state")?.trim() != wanted {
                wait_a_little(deadline, "the freezer")?;
                // Writing again takes in processes that were made meanwhile.
                write(directory, "freezer.state", wanted)?;
            }
            return Ok(());
        }
        let Some(directory) = self.unified().and_then(Hierarchy::directory) else {
            return Err(Error::unsupported(
                "pausing this container",
                "it has no cgroup of its own with a freezer (rootless without delegation)",
            ));
        };
        let wanted = if frozen { "1" } else { "0" };
        write(directory, "cgroup.freeze", wanted)?;
        while stats::keyed(directory, "cgroup.events", "frozen") != u64::from(frozen) {
            wait_a_little(deadline, "the freezer")?;
        }
        Ok(())
    }

    /// Whether the processes are stopped.
    pub fn is_frozen(&self) -> bool {
        if let Some(directory) = self.controller("freezer") {
            return read(directory, "freezer.state").is_ok_and(|s| s.trim() != "THAWED");
        }
        self.unified()
            .and_then(Hierarchy::directory)
            .is_some_and(|d| stats::keyed(d, "cgroup.events", "frozen") == 1)
    }

    /// Sends a signal to every process.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL
            && let Some(directory) = self.unified().and_then(Hierarchy::directory)
            && write(directory, "cgroup.kill", "1").is_ok()
        {
            return Ok(());
        }
        // While frozen, nothing can fork away from the list.
        let frozen = self.freeze(true).is_ok();
        for pid in self.processes()? {
            if let Ok(pidfd) = crate::sys::clone::open_pidfd(pid) {
                let _ = crate::sys::clone::signal_pidfd(&pidfd, signal);
            }
        }
        if frozen { self.freeze(false) } else { Ok(()) }
    }

    /// How many processes were killed for lack of memory.
    pub fn memory_kills(&self) -> u64 {
        match (self.controller("memory"), self.unified().and_then(Hierarchy::directory)) {
            (Some(v1), _) => stats::keyed(v1, "memory.oom_control", "oom_kill"),
            (None, Some(v2)) => stats::keyed(v2, "memory.events", "oom_kill"),
            (None, None) => 0,
        }
    }

    /// Takes the directories away, those that the container made included. The
    /// processes have to be gone; the kernel may take a moment to notice.
    pub fn remove(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let deadline = Instant::now() + PATIENCE;
        for directory in self.hierarchies.iter().filter_map(Hierarchy::directory) {
            loop {
                match remove_tree(directory) {
                    Ok(()) => break,
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        if Instant::now() > deadline {
                            return Err(e)
                                .during(|| format!("remove the cgroup {}", directory.display()));
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(e) => {
                        return Err(e)
                            .during(|| format!("remove the cgroup {}", directory.display()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The container's directory in the v1 hierarchy of a controller.
    fn controller(&self, name: &str) -> Option<&Path> {
        self.hierarchies
            .iter()
            .find(|h| !h.is_unified() && h.has_controller(name))
            .and_then(Hierarchy::directory)
    }

    fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.is_unified())
    }

    /// The directory whose processes are the container's.
    fn tracking_directory(&self) -> Option<&Path> {
        self.unified()
            .and_then(Hierarchy::directory)
            .or_else(|| self.hierarchies.iter().find_map(Hierarchy::directory))
    }

    /// Says which limits no hierarchy took.
    fn report_missing(&self, resources: &Resources) {
        let missing = self.missing(resources);
        if !missing.is_empty() {
            tracing::warn!(
                "not enforced on this host: {} (no cgroup controller that this user may use)",
                missing.join(", ")
            );
        }
    }

    /// Limits that no hierarchy takes.
    pub fn missing(&self, resources: &Resources) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let mut check = |wanted: bool, controller: &str, what: &'static str| {
            let there = self.controller(controller).is_some()
                || self
                    .unified()
                    .is_some_and(|u| u.directory().is_some() && u.has_controller(controller));
            if wanted && !there {
                missing.push(what);
            }
        };
        let memory = &resources.memory;
        check(memory.limit.is_some_and(|l| l > 0), "memory", "the memory limit");
        check(memory.swap.is_some_and(|l| l > 0), "memory", SWAP_LIMIT);
        check(resources.pids.is_some_and(|p| p.limit > 0), "pids", "the limit of processes");
        let cpu = &resources.cpu;
        check(cpu.shares.is_some_and(|s| s > 0), "cpu", CPU_SHARES);
        check(cpu.quota.is_some_and(|q| q > 0), "cpu", CPU_QUOTA);
        check(cpu.cpus.as_ref().is_some_and(|c| !c.is_empty()), "cpuset", CPU_SET);
        check(cpu.mems.as_ref().is_some_and(|m| !m.is_empty()), "cpuset", "the memory nodes");
        check(!resources.hugepage_limits.is_empty(), "hugetlb", "the limit of huge pages");
        missing
    }
}

/// Open files through which a process moves itself into cgroups.
///
/// That it moves itself, and as a single thread, spares the kernel a lock over
/// all processes of the machine: moving another process waits for an RCU grace
/// period, which on a busy machine is ten milliseconds.
#[derive(Debug, Default)]
pub struct Entrances(Vec<(PathBuf, fs::File)>);

impl Entrances {
    /// Those that another process has opened, for cgroups planned as its own were.
    pub fn received(cgroup: &Cgroup, files: impl IntoIterator<Item = OwnedFd>) -> Self {
        let names = cgroup.own_hierarchies().filter_map(Hierarchy::directory);
        let files = files.into_iter().map(fs::File::from);
        Entrances(names.map(Path::to_path_buf).zip(files).collect())
    }

    /// The files, for a process that receives them.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, file)| file.as_fd())
    }

    /// Moves the calling process, which has to have one thread.
    pub fn enter(&self) -> Result<()> {
        use std::io::Write;
        for (path, file) in &self.0 {
            let mut file: &fs::File = file;
            file.write_all(b"0").during(|| format!("enter {}", path.display()))?;
        }
        Ok(())
    }
}

/// Where below each hierarchy's root the container's directory is.
fn relative_path(path: Option<&str>, id: &str) -> Result<PathBuf> {
    let path = match path.filter(|p| !p.is_empty()) {
        None => return Ok(PathBuf::from(format!("guise-{id}"))),
        Some(path) => path,
    };
    if path.contains('\0') || path.split('/').any(|c| c == "..") {
        return Err(Error::config("linux.cgroupsPath", format!("{path:?} is not a plain path")));
    }
    if let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] {
        // systemd's notation; without systemd the same place by hand.
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        return Ok(PathBuf::from(slice).join(format!("{prefix}-{name}.scope")));
    }
    let clean: Vec<&str> = crate::rootfs::path::components(path).collect();
    if clean.is_empty() {
        return Err(Error::config("linux.cgroupsPath", "is the root of the hierarchy"));
    }
    Ok(PathBuf::from(clean.join("/")))
}

fn cannot_write(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ENOENT | libc::EBUSY)
    )
}

/// Writes a control file.
fn write(directory: &Path, file: &str, value: &str) -> Result<()> {
    write_raw(directory, file, value)
        .during(|| format!("write {value:?} to {}", directory.join(file).display()))
}

fn write_raw(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).open(directory.join(file))?;
    file.write_all(value.as_bytes())
}

fn read(directory: &Path, file: &str) -> Result<String> {
    let path = directory.join(file);
    read_text(&path).during(|| format!("read {}", path.display()))
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) -> Result<()> {
    match read_text(&directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
        // Taken away meanwhile, or a threaded cgroup that lists none.
        Err(e)
            if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {
        }
        Err(e) => return Err(e).during(|| format!("read {}", directory.display())),
    }
    for child in children(directory) {
        collect_processes(&child, pids)?;
    }
    Ok(())
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            let below = children(directory);
            if below.is_empty() {
                return Err(e);
            }
            for child in below {
                remove_tree(&child)?;
            }
            fs::remove_dir(directory)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn wait_a_little(deadline: Instant, what: &str) -> Result<()> {
    if Instant::now() > deadline {
        return Err(io::Error::from(io::ErrorKind::TimedOut)).during(|| format!("wait for {what}"));
    }
    std::thread::sleep(Duration::from_millis(1));
    Ok(())
}

#[cfg(test)]
mod tests;
