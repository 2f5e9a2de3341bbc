//! What the specification demands of a configuration beyond its shape.

use std::collections::BTreeSet;

use super::{IdMap, Linux, NamespaceKind, Process, Spec};
use crate::error::{Error, Result};

impl Spec {
    /// Refuses what no runtime may accept.
    pub fn check(&self) -> Result<()> {
        check_version(&self.oci_version)?;
        if let Some(process) = &self.process {
            process.check()?;
        }
        match &self.root {
            Some(root) if root.path.is_empty() => {
                return Err(Error::config("root.path", "is empty"));
            }
            Some(root) if root.path.contains('\0') => {
                return Err(Error::config("root.path", "contains a NUL byte"));
            }
            Some(_) => {}
            None => return Err(Error::config("root", "is missing")),
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            if mount.destination.is_empty() || mount.destination.contains('\0') {
                return Err(Error::config(format!("mounts[{i}].destination"), "is not a path"));
            }
            if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
                return Err(Error::config(
                    format!("mounts[{i}]"),
                    "uidMappings and gidMappings come together",
                ));
            }
        }
        for hook in self.hooks.all() {
            if !hook.path.starts_with('/') {
                return Err(Error::config("hooks", format!("{:?} is not absolute", hook.path)));
            }
            if hook.timeout.is_some_and(|t| t <= 0) {
                return Err(Error::config("hooks", "a timeout must be greater than zero"));
            }
        }
        for key in self.annotations.keys() {
            if key.is_empty() {
                return Err(Error::config("annotations", "a key is empty"));
            }
        }
        self.linux.check(self)
    }

    /// Whether the container gets a namespace of this kind of its own.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.linux.namespaces.iter().any(|n| n.kind == kind && n.path.is_none())
    }

    /// Whether the container is in a namespace of this kind other than the
    /// runtime's.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.linux.namespaces.iter().any(|n| n.kind == kind)
    }
}

impl super::Hooks {
    fn all(&self) -> impl Iterator<Item = &super::Hook> {
        self.prestart
            .iter()
            .chain(&self.create_runtime)
            .chain(&self.create_container)
            .chain(&self.start_container)
            .chain(&self.poststart)
            .chain(&self.poststop)
    }
}

impl Process {
    /// Refuses a process that could not be started as described.
    pub fn check(&self) -> Result<()> {
        if self.args.is_empty() {
            return Err(Error::config("process.args", "is empty: name the program to run"));
        }
        if !self.cwd.starts_with('/') {
            return Err(Error::config("process.cwd", format!("{:?} is not absolute", self.cwd)));
        }
        for text in self.args.iter().chain(&self.env).chain(Some(&self.cwd)) {
            if text.contains('\0') {
                return Err(Error::config("process", "a string contains a NUL byte"));
            }
        }
        let mut seen = BTreeSet::new();
        for limit in &self.rlimits {
            if !seen.insert(&limit.kind) {
                return Err(Error::config(
                    "process.rlimits",
                    format!("{} is set twice", limit.kind),
                ));
            }
        }
        if let Some(adjust) = self.oom_score_adj
            && !(-1000..=1000).contains(&adjust)
        {
            return Err(Error::config("process.oomScoreAdj", "is not between -1000 and 1000"));
        }
        Ok(())
    }
}

impl Linux {
    fn check(&self, spec: &Spec) -> Result<()> {
        let mut seen = BTreeSet::new();
        for namespace in &self.namespaces {
            if !seen.insert(namespace.kind) {
                return Err(Error::config(
                    "linux.namespaces",
                    format!("{:?} is listed twice", namespace.kind),
                ));
            }
            if let Some(path) = &namespace.path
                && !path.starts_with('/')
            {
                return Err(Error::config(
                    "linux.namespaces",
                    format!("path {path:?} is not absolute"),
                ));
            }
        }
        for (field, maps) in
            [("uidMappings", &self.uid_mappings), ("gidMappings", &self.gid_mappings)]
        {
            check_mappings(&format!("linux.{field}"), maps)?;
        }
        let mapped = !self.uid_mappings.is_empty() || !self.gid_mappings.is_empty();
        if spec.makes(NamespaceKind::User)
            && (self.uid_mappings.is_empty() || self.gid_mappings.is_empty())
        {
            return Err(Error::config(
                "linux.uidMappings",
                "a new user namespace needs user and group mappings",
            ));
        }
        if mapped && !spec.has(NamespaceKind::User) {
            return Err(Error::config("linux.uidMappings", "there is no user namespace to map"));
        }
        if spec.hostname.is_some() && !spec.has(NamespaceKind::Uts) {
            return Err(Error::config("hostname", "needs a uts namespace of the container"));
        }
        if spec.domainname.is_some() && !spec.has(NamespaceKind::Uts) {
            return Err(Error::config("domainname", "needs a uts namespace of the container"));
        }
        if !self.time_offsets.is_empty() && !spec.makes(NamespaceKind::Time) {
            return Err(Error::config("linux.timeOffsets", "needs a new time namespace"));
        }
        for clock in self.time_offsets.keys() {
            if clock != "monotonic" && clock != "boottime" {
                return Err(Error::config("linux.timeOffsets", format!("no clock {clock:?}")));
            }
        }
        for (field, paths) in
            [("maskedPaths", &self.masked_paths), ("readonlyPaths", &self.readonly_paths)]
        {
            if let Some(path) = paths.iter().find(|p| !p.starts_with('/')) {
                return Err(Error::config(
                    format!("linux.{field}"),
                    format!("{path:?} is not absolute"),
                ));
            }
        }
        for (i, device) in self.devices.iter().enumerate() {
            if !device.path.starts_with('/') {
                return Err(Error::config(
                    format!("linux.devices[{i}].path"),
                    format!("{:?} is not absolute", device.path),
                ));
            }
            if !matches!(device.kind.as_str(), "c" | "u" | "b" | "p") {
                return Err(Error::config(
                    format!("linux.devices[{i}].type"),
                    format!("{:?} is not one of c, b, u, p", device.kind),
                ));
            }
        }
        for rule in &self.resources.devices {
            let kind = rule.kind.as_deref().unwrap_or("a");
            let access = rule.access.as_deref().unwrap_or("rwm");
            if !matches!(kind, "a" | "b" | "c") || access.chars().any(|c| !"rwm".contains(c)) {
                return Err(Error::config(
                    "linux.resources.devices",
                    format!("{kind:?} {access:?} is not a rule"),
                ));
            }
        }
        Ok(())
    }
}

fn check_mappings(field: &str, maps: &[IdMap]) -> Result<()> {
    if maps.len() > 340 {
        return Err(Error::config(field, "the kernel takes at most 340 ranges"));
    }
    for map in maps {
        if map.size == 0
            || map.container.checked_add(map.size - 1).is_none()
            || map.host.checked_add(map.size - 1).is_none()
        {
            return Err(Error::config(field, "a range is empty or leaves the 32-bit ids"));
        }
    }
    Ok(())
}

fn check_version(version: &str) -> Result<()> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.').map(|p| p.parse::<u32>().ok());
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Some(1)), Some(Some(_)), Some(Some(_)), None) => Ok(()),
        _ => Err(Error::config("ociVersion", format!("{version:?} is not a 1.x.y version"))),
    }
}
