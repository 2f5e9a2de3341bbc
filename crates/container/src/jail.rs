//! A process shuts itself in: what a program does before it reads what a guest wrote.
//!
//! Afterwards it is in namespaces of its own, sees the paths that it named at their old
//! names and nothing else, holds only the capabilities that it named, over its own user
//! namespace only, and makes only the system calls that it named. None of that can be taken
//! back. The way, in this order: a user namespace (somebody outside maps the ids), all other
//! namespaces, a process in them that goes on while the first one only waits for its end, an
//! empty root in which the paths are mounted, capabilities, Landlock, seccomp.
//!
//! The kernel judges files of `/proc/sys` by the user alone, and the user is the host's: so
//! there is nothing of them in the jail, and what there is of `/proc` cannot be written to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Context, Error, Result};
use crate::namespaces::own_mounts;
use crate::process::{caps, landlock};
use crate::seccomp::Filter;
use crate::spec::Seccomp;
use crate::sys::mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change, attach, clone_tree_at,
    set_attributes,
};
use crate::sys::{clone, cred, landlock as rules};

/// What is left to the process.
#[derive(Debug)]
pub struct Jail {
    /// Where its root is put together: a folder of its own.
    pub root: PathBuf,
    pub paths: Vec<Visible>,
    /// It is in a user namespace of its own already, whose ids are mapped.
    pub has_user_namespace: bool,
    /// The network of the host is not reached any more.
    pub own_network: bool,
    /// Capabilities that it keeps, as bits.
    pub capabilities: u64,
    pub calls: Seccomp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Absolute.
    pub path: PathBuf,
    pub access: Access,
}

/// What may be done with a path, and what is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Files and folders are made, changed and removed; links and devices are not made.
    Write,
    /// Anything. It is somebody else's folder.
    Share,
    /// A device is used.
    Device,
}

/// How far it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Why this host has no namespaces for it.
    pub missing: Option<String>,
}

impl Jail {
    /// Enters it. To be called while this process has one thread, and returns in another
    /// process, whose end becomes that of this one. `map` has somebody outside map the ids
    /// of the new user namespace.
    pub fn enter(&self, map: impl FnOnce() -> io::Result<()>) -> Result<Entered> {
        // Compiled where there is room for it.
        let filter = Filter::compile(&self.calls)?;
        let missing = match self.enter_namespaces(map) {
            Ok(()) => {
                self.fill_root()?;
                None
            }
            Err(Error::Unsupported { what, .. }) => Some(what),
            Err(error) => return Err(error),
        };
        self.give_up_capabilities()?;
        cred::set_no_new_privileges().during(|| "give up gaining privileges")?;
        self.restrict_paths()?;
        filter.load().during(|| "load the filter of system calls")?;
        Ok(Entered { missing })
    }

    fn enter_namespaces(&self, map: impl FnOnce() -> io::Result<()>) -> Result<()> {
        let lacking = |what: &str, error: io::Error| {
            Error::unsupported(format!("{what} for this user ({error})"), "see guise doctor")
        };
        if !self.has_user_namespace {
            match clone::unshare(libc::CLONE_NEWUSER) {
                Ok(()) => map().during(|| "have the user namespace's ids mapped")?,
                // Who may make the others without it does.
                Err(_) if rustix::process::geteuid().is_root() => {}
                Err(error) => return Err(lacking("user namespaces", error)),
            }
        }
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if self.own_network {
            flags |= libc::CLONE_NEWNET;
        }
        clone::unshare(flags).map_err(|error| lacking("namespaces", error))?;
        own_mounts()?;
        // SAFETY: the caller vouches for there being one thread.
        match unsafe { clone::fork(0, None) }.during(|| "make a process in the namespaces")? {
            // Locks and sockets are the other's alone from here on.
            clone::Side::Parent(child) => child.stand_for_it(),
            clone::Side::Child => {
                cred::set_parent_death_signal(libc::SIGKILL).during(|| "end with the first process")
            }
        }
    }

    /// Mounts the paths below an empty root, and makes that the root.
    fn fill_root(&self) -> Result<()> {
        let root = &self.root;
        let mut paths: Vec<&Visible> = self.paths.iter().collect();
        // A folder comes before what is in it.
        paths.sort_by_key(|visible| visible.path.as_os_str().len());
        let trees: Result<Vec<OwnedFd>> = paths.iter().map(|visible| visible.tree()).collect();
        let trees = trees?;
        fs::create_dir_all(root).during(|| format!("make {}", root.display()))?;
        let bare = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("jail", root, "tmpfs", bare, Some(c"mode=0755,size=1m"))
            .during(|| "mount an empty root")?;
        for (visible, tree) in paths.iter().zip(trees) {
            place(root, &visible.path)
                .and_then(|place| attach(tree.as_fd(), open_path(&place)?.as_fd()))
                .during(|| format!("show {}", visible.path.display()))?;
        }
        mount_proc(root)?;
        std::env::set_current_dir(root).during(|| "enter the new root")?;
        rustix::process::pivot_root(".", ".").during(|| "change the root")?;
        unmount(".", UnmountFlags::DETACH).during(|| "leave the old root")?;
        std::env::set_current_dir("/").during(|| "enter the new root")?;
        let change = Change { set: ATTR_RDONLY, ..Change::default() };
        open_path(Path::new("/"))
            .and_then(|slash| set_attributes(slash.as_fd(), change))
            .during(|| "close the new root")
    }

    fn give_up_capabilities(&self) -> Result<()> {
        let held = cred::permitted_capabilities().during(|| "ask for capabilities")?;
        let kept = self.capabilities & held;
        // It may not be able to without capabilities, and has none to lose then.
        if held != 0 {
            let sets = caps::Sets { bounding: kept, ..caps::Sets::default() };
            sets.apply_bounding()?;
        }
        let sets = caps::Sets { permitted: kept, effective: kept, ..caps::Sets::default() };
        sets.apply(held)
    }

    fn restrict_paths(&self) -> Result<()> {
        let version = rules::version();
        if version == 0 {
            return Ok(());
        }
        let known = landlock::known(version);
        let ruleset = rules::Ruleset::shut_in(known).during(|| "make Landlock rules")?;
        let proc = Visible { path: PathBuf::from("/proc"), access: Access::Read };
        for visible in self.paths.iter().chain([&proc]) {
            let allowed = match visible.access {
                Access::Read => landlock::READ & !landlock::EXECUTE,
                Access::Write => known & !(landlock::EXECUTE | landlock::MAKE_SPECIAL),
                Access::Share => known & !landlock::EXECUTE,
                Access::Device => known & landlock::ON_FILES & !landlock::EXECUTE,
            };
            landlock::allow_below(&ruleset, &visible.path, allowed & known)?;
        }
        ruleset.restrict().during(|| "apply the Landlock rules")
    }
}

impl Visible {
    /// The path with what is mounted below it, as it is to be seen.
    fn tree(&self) -> Result<OwnedFd> {
        let what = || format!("show {}", self.path.display());
        let path = self.path.to_str().ok_or_else(|| {
            Error::unsupported(format!("the path {}", self.path.display()), "use UTF-8 in names")
        })?;
        let tree = clone_tree_at(path, true, true).during(what)?;
        let set = match self.access {
            Access::Read => ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC,
            Access::Write | Access::Share => ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC,
            Access::Device => ATTR_NOSUID | ATTR_NOEXEC,
        };
        let change = Change { set, recursive: true, ..Change::default() };
        set_attributes(tree.as_fd(), change).during(what)?;
        Ok(tree)
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The mount point for a path of the host, made below the new root.
fn place(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let place = root.join(path.strip_prefix("/").map_err(io::Error::other)?);
    if path.is_dir() {
        fs::create_dir_all(&place)?;
    } else {
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        if fs::symlink_metadata(&place).is_err() {
            fs::File::create(&place)?;
        }
    }
    Ok(place)
}

/// What a process can see of itself in `/proc`, and nothing of others or of the system. Where
/// the host's own `/proc` has been covered in parts a new one is refused.
fn mount_proc(root: &Path) -> Result<()> {
    let what = || "mount /proc";
    let place = root.join("proc");
    fs::create_dir_all(&place).during(what)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("proc", &place, "proc", flags, Some(c"subset=pid")).is_ok() {
        return Ok(());
    }
    // As the host's knows this process.
    let own = fs::canonicalize("/proc/self").during(what)?;
    let tree = clone_tree_at(&own.to_string_lossy(), false, true).during(what)?;
    let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    set_attributes(tree.as_fd(), Change { set, ..Change::default() }).during(what)?;
    let place = place.join("self");
    fs::create_dir_all(&place)
        .and_then(|()| attach(tree.as_fd(), open_path(&place)?.as_fd()))
        .during(what)
}
