//! A process shuts itself in: what a program does before it reads what a guest wrote.
//!
//! Afterwards it is in namespaces of its own, sees the paths that it named at their old
//! names and nothing else, holds only the capabilities that it named, over its own user
//! namespace only, and makes only the system calls that it named. None of that can be taken
//! back. The way, in this order: a user namespace (somebody outside maps the ids, or, for
//! root, it becomes one of [`Strangers`]), all other namespaces, a process in them that goes on
//! while the first one only waits for its end, an empty root in which the paths are mounted,
//! capabilities, Landlock, seccomp.
//!
//! The kernel judges files of `/proc/sys` by the user alone, and where the user is the
//! host's root, that is enough: so there is nothing of them in the jail, and what there is of
//! `/proc` cannot be written to.

mod cell;
mod ids;
mod root;
mod split;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::namespaces::own_mounts;
use crate::process::{caps, landlock};
use crate::seccomp::Filter;
use crate::spec::Seccomp;
use crate::sys::{clone, cred, landlock as rules};
pub use cell::Cell;
pub use ids::{STRANGERS, Strangers};
pub use root::attach;
pub use split::{Ward, keep_only, split};

/// What is left to the process.
#[derive(Debug)]
pub struct Jail {
    /// Where its root is put together: a folder of its own.
    pub root: PathBuf,
    pub paths: Vec<Visible>,
    /// It is in a user namespace of its own already, whose ids are mapped.
    pub has_user_namespace: bool,
    pub identity: Identity,
    /// The network of the host is not reached any more.
    pub own_network: bool,
    /// It ends with the process that made it.
    pub ends_with_parent: bool,
    /// Capabilities that it keeps, as bits.
    pub capabilities: u64,
    pub calls: Seccomp,
}

/// Who it is to the host.
#[derive(Debug)]
pub enum Identity {
    /// Who it was.
    Same,
    Stranger(Strangers),
    /// Who it was, because there are no strangers here, for this reason.
    NoStranger(String),
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
    /// The same, in a folder that holds nothing that lasts: it may change hands.
    Scratch,
    /// Anything. It is somebody else's folder.
    Share,
}

/// How far it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Why this host has no namespaces for it.
    pub missing: Option<String>,
    /// Why it is not the stranger that it should be.
    pub kept_its_id: Option<String>,
}

/// The namespaces, from outside and from inside.
struct Inside {
    /// The trees of the paths, and who they were mapped for; made inside where it stays who
    /// it is.
    trees: Option<Vec<OwnedFd>>,
    /// Where the new root is mounted.
    place: OwnedFd,
}

impl Jail {
    /// Enters it. To be called while this process has one thread, and returns in another
    /// process, whose end becomes that of this one. `map` has somebody outside map the ids
    /// of the new user namespace.
    pub fn enter(&self, map: impl FnOnce() -> io::Result<()>) -> Result<Entered> {
        // Compiled where there is room for it.
        let filter = Filter::compile(&self.calls)?;
        await_the_end_of_threads();
        let mut entered = Entered::default();
        let disguise = match &self.identity {
            Identity::Same => None,
            Identity::NoStranger(why) => {
                entered.kept_its_id = Some(why.clone());
                None
            }
            Identity::Stranger(strangers) => match self.trees_for(strangers) {
                Ok(trees) => Some((strangers, trees)),
                Err(Error::Unsupported { what, .. }) => {
                    entered.kept_its_id = Some(what);
                    None
                }
                Err(error) => return Err(error),
            },
        };
        match self.enter_namespaces(disguise, map) {
            Ok(inside) => self.fill_root(inside)?,
            Err(Error::Unsupported { what, .. }) => entered.missing = Some(what),
            Err(error) => return Err(error),
        }
        self.shed(&filter)?;
        Ok(entered)
    }

    /// What can be given up where one is.
    fn shed(&self, filter: &Filter) -> Result<()> {
        cred::set_rlimit(0, libc::RLIMIT_CORE, 0, 0).during(|| "leave no memory behind")?;
        self.give_up_capabilities()?;
        cred::set_no_new_privileges().during(|| "give up gaining privileges")?;
        self.restrict_paths()?;
        filter.load().map(drop).during(|| "load the filter of system calls")
    }

    fn enter_namespaces(
        &self,
        disguise: Option<(&Strangers, Vec<OwnedFd>)>,
        map: impl FnOnce() -> io::Result<()>,
    ) -> Result<Inside> {
        let lacking = |what: &str, error: io::Error| {
            Error::unsupported(format!("{what} for this user ({error})"), "see guise doctor")
        };
        root::make_place(&self.root)?;
        if let Some((strangers, _)) = &disguise {
            strangers.enter()?;
        } else if !self.has_user_namespace {
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
        // Folders above it may be closed to a stranger.
        let place = root::open_path(&self.root).during(|| "open the place of the new root")?;
        if disguise.is_some() {
            ids::become_root()?;
        }
        let trees = disguise.map(|(_, trees)| trees);
        // SAFETY: the caller vouches for there being one thread.
        match unsafe { clone::fork(0, None) }.during(|| "make a process in the namespaces")? {
            // Locks and sockets are the other's alone from here on.
            clone::Side::Parent(child) => {
                // A change of user has taken this back, where it was asked for.
                if self.ends_with_parent {
                    let _ = cred::set_parent_death_signal(libc::SIGKILL);
                }
                // It only waits: what it could do beyond that, nobody is to find there.
                let _ = self.give_up_capabilities();
                child.stand_for_it()
            }
            clone::Side::Child => {
                cred::set_parent_death_signal(libc::SIGKILL)
                    .during(|| "end with the first process")?;
                Ok(Inside { trees, place })
            }
        }
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
                Access::Write | Access::Scratch => {
                    known & !(landlock::EXECUTE | landlock::MAKE_SPECIAL)
                }
                Access::Share => known & !landlock::EXECUTE,
            };
            landlock::allow_below(&ruleset, &visible.path, allowed & known)?;
        }
        ruleset.restrict().during(|| "apply the Landlock rules")
    }
}

/// A thread that was waited for may still be there for a moment, and the kernel makes user
/// namespaces for processes with one thread only.
fn await_the_end_of_threads() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + PATIENCE;
    let alone = || std::fs::read_dir("/proc/self/task").map_or(true, |all| all.count() <= 1);
    while !alone() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(100));
    }
}
