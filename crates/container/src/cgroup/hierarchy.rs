//! One mounted hierarchy: which controllers it has, and the container's place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::sys::files::read_text;

/// A v1 hierarchy, or the unified one.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    mount_point: PathBuf,
    /// v1: the controllers mounted together. v2: those available.
    controllers: Vec<String>,
    /// v1 without controllers: `systemd`.
    label: Option<String>,
    unified: bool,
    /// The runtime's own cgroup in it, as `/proc/self/cgroup` says.
    own: PathBuf,
    directory: Option<PathBuf>,
}

/// A hierarchy in the state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    pub mount_point: PathBuf,
    pub controllers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub unified: bool,
    pub directory: PathBuf,
}

/// All hierarchies of this mount namespace.
pub fn detect() -> Result<Vec<Hierarchy>> {
    let mounts = read_text(Path::new("/proc/self/mountinfo")).during(|| "read the mount table")?;
    let own = read_text(Path::new("/proc/self/cgroup")).during(|| "read /proc/self/cgroup")?;
    Ok(parse(&mounts, &own))
}

fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let own: Vec<(Vec<&str>, &str)> = own
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            fields.next()?;
            let controllers = fields.next()?;
            Some((controllers.split(',').collect(), fields.next()?))
        })
        .collect();
    let own_of = |controller: &str| {
        own.iter()
            .find(|(controllers, _)| controllers.contains(&controller))
            .map_or_else(|| PathBuf::from("/"), |(_, path)| PathBuf::from(path))
    };
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount_point), Some(kind)) = (left.get(3), left.get(4), right.first())
        else {
            continue;
        };
        let unified = match *kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let mount_point = PathBuf::from(unescape(mount_point));
        let (controllers, label) = if unified {
            let list = read_text(&mount_point.join("cgroup.controllers"));
            (list.unwrap_or_default().split_whitespace().map(str::to_owned).collect(), None)
        } else {
            v1_controllers(right.get(2).copied().unwrap_or_default())
        };
        let key = match (unified, &label, controllers.first()) {
            (true, ..) => String::new(),
            (false, Some(label), _) => format!("name={label}"),
            (false, None, Some(first)) => first.clone(),
            (false, None, None) => continue,
        };
        let absolute = own_of(&key);
        // Inside a container without a cgroup namespace the mount shows only
        // what is below the mount's own root.
        let own = absolute.strip_prefix(unescape(root)).map_or(absolute.clone(), Path::to_path_buf);
        let hierarchy =
            Hierarchy { mount_point, controllers, label, unified, own, directory: None };
        // A later mount on the same place hides an earlier one; a second mount
        // of the same hierarchy elsewhere adds nothing.
        found.retain(|h| h.mount_point != hierarchy.mount_point);
        if !found.iter().any(|h| h.same_hierarchy(&hierarchy)) {
            found.push(hierarchy);
        }
    }
    found
}

fn v1_controllers(options: &str) -> (Vec<String>, Option<String>) {
    const NOT_CONTROLLERS: [&str; 10] = [
        "rw",
        "ro",
        "xattr",
        "none",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
        "nofavordynmods",
        "all",
    ];
    let mut controllers = Vec::new();
    let mut label = None;
    for option in options.split(',') {
        if let Some(name) = option.strip_prefix("name=") {
            label = Some(name.to_owned());
        } else if !NOT_CONTROLLERS.contains(&option) && !option.contains('=') {
            controllers.push(option.to_owned());
        }
    }
    (controllers, label)
}

/// A path of the mount table, where some characters are written in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

impl Hierarchy {
    fn same_hierarchy(&self, other: &Hierarchy) -> bool {
        self.unified == other.unified
            && (self.unified
                || (self.label == other.label && self.controllers == other.controllers))
    }

    /// A hierarchy as the state file has it.
    pub fn from_saved(saved: &Saved) -> Self {
        Hierarchy {
            mount_point: saved.mount_point.clone(),
            controllers: saved.controllers.clone(),
            label: saved.label.clone(),
            unified: saved.unified,
            own: PathBuf::from("/"),
            directory: Some(saved.directory.clone()),
        }
    }

    /// For the state file, if the container has a directory here.
    pub fn save(&self) -> Option<Saved> {
        Some(Saved {
            mount_point: self.mount_point.clone(),
            controllers: self.controllers.clone(),
            label: self.label.clone(),
            unified: self.unified,
            directory: self.directory.clone()?,
        })
    }

    /// Names the container's directory: below the hierarchy's root, or for a
    /// user without rights there below the runtime's own cgroup.
    pub(super) fn place(&mut self, relative: &Path, rootless: bool) {
        let base = if rootless {
            self.mount_point.join(self.own.strip_prefix("/").unwrap_or(&self.own))
        } else {
            self.mount_point.clone()
        };
        self.directory = Some(base.join(relative));
    }

    /// The container has no directory here.
    pub(super) fn forget(&mut self) {
        self.directory = None;
    }

    /// Makes the directory and those above it, each ready to hold processes.
    pub(super) fn create(&self) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let relative = directory.strip_prefix(&self.mount_point).unwrap_or(directory);
        let mut at = self.mount_point.clone();
        for component in relative.components() {
            if self.unified {
                self.enable_controllers(&at);
            }
            at.push(component);
            match fs::create_dir(&at) {
                Ok(()) => self.initialise_cpuset(&at)?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Lets the children of a v2 cgroup use its controllers. One that cannot be
    /// handed on is missing below, which is noticed when a limit needs it.
    fn enable_controllers(&self, at: &Path) {
        let available = read_text(&at.join("cgroup.controllers")).unwrap_or_default();
        let enabled = read_text(&at.join("cgroup.subtree_control")).unwrap_or_default();
        let enabled: Vec<&str> = enabled.split_whitespace().collect();
        for controller in available.split_whitespace().filter(|c| !enabled.contains(c)) {
            if let Err(e) =
                super::write_raw(at, "cgroup.subtree_control", &format!("+{controller}"))
            {
                tracing::debug!("{controller} cannot be handed on below {}: {e}", at.display());
            }
        }
    }

    /// Of a v2 hierarchy's controllers only those count that were handed on to the directory: a
    /// cgroup with processes of its own above it hands on none.
    pub(super) fn narrow(&mut self) {
        let Some(directory) = self.directory.as_ref().filter(|_| self.unified) else { return };
        if let Ok(list) = read_text(&directory.join("cgroup.controllers")) {
            self.controllers = list.split_whitespace().map(str::to_owned).collect();
        }
    }

    /// A new v1 cpuset is empty and takes no process; it gets what its parent
    /// has.
    fn initialise_cpuset(&self, at: &Path) -> io::Result<()> {
        if self.unified || !self.has_controller("cpuset") {
            return Ok(());
        }
        let Some(parent) = at.parent() else { return Ok(()) };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = read_text(&parent.join(file))?;
            super::write_raw(at, file, value.trim())?;
        }
        Ok(())
    }

    pub fn is_unified(&self) -> bool {
        self.unified
    }

    pub fn has_controller(&self, name: &str) -> bool {
        self.controllers.iter().any(|c| c == name)
    }

    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The name of its directory under `/sys/fs/cgroup`.
    pub fn name(&self) -> &str {
        self.mount_point.file_name().and_then(|n| n.to_str()).unwrap_or("unified")
    }

    /// Controllers by which it is also known there, when several share it.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        let several = !self.unified && self.controllers.len() > 1;
        self.controllers.iter().map(String::as_str).filter(move |c| several && *c != self.name())
    }

    /// Type and options with which it is mounted anew.
    pub fn filesystem(&self) -> (&'static str, Vec<String>) {
        if self.unified {
            return ("cgroup2", Vec::new());
        }
        let mut data = self.controllers.clone();
        if let Some(label) = &self.label {
            data.push(format!("name={label}"));
            if self.controllers.is_empty() {
                data.push("none".into());
            }
        }
        ("cgroup", data)
    }
}

#[cfg(test)]
mod tests;
