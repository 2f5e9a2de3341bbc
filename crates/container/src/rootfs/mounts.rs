//! The mounts of the configuration, in its order.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::options::{Bind, Options};
use super::path::{RootDir, clean};
use super::{cgroupfs, copyup, idmap};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::process::labels;
use crate::spec::{IdMap, Mount, NamespaceKind, Spec};
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change};

/// Longer values do not fit the call that sets one option of a file system.
const LONGEST_VALUE: usize = 255;

/// What the mounts need to know about the container.
pub struct Mounter<'a> {
    pub spec: &'a Spec,
    pub root: &'a RootDir,
    pub cgroup: &'a Cgroup,
    /// Called before they are mounted; gives what the runtime has taken for that.
    pub enter_cgroups: &'a dyn Fn() -> Result<Vec<OwnedFd>>,
    /// Sources that the runtime opened beforehand, by the mount's index: those
    /// the container's own ids could not reach or map.
    pub sources: Vec<Option<OwnedFd>>,
    pub bundle: &'a str,
}

/// Opens the sources of bind mounts with the runtime's own rights, where the
/// container's user namespace may have fewer.
pub fn open_sources(spec: &Spec, bundle: &str) -> Result<Vec<Option<OwnedFd>>> {
    spec.mounts
        .iter()
        .map(|m| {
            let options = Options::parse(&m.options, &m.destination)?;
            if is_bind(m, &options) {
                open_source(spec, m, &options, bundle).map(Some)
            } else {
                Ok(None)
            }
        })
        .collect()
}

fn is_bind(mount: &Mount, options: &Options) -> bool {
    options.bind.is_some() || mount.kind.as_deref() == Some("bind")
}

fn open_source(spec: &Spec, m: &Mount, options: &Options, bundle: &str) -> Result<OwnedFd> {
    let source = m.source.as_deref().unwrap_or_default();
    let path =
        if source.starts_with('/') { source.to_owned() } else { format!("{bundle}/{source}") };
    let recursive = options.bind == Some(Bind::Tree);
    let tree = mount::clone_tree_at(&path, recursive, !options.source_nofollow)
        .during(|| format!("take {path} to mount it on {}", m.destination))?;
    if let Some((uids, gids)) = mappings(spec, m, options)? {
        let recursive = options.idmap == Some(Bind::Tree);
        idmap::map(&tree, uids, gids, recursive)?;
    }
    Ok(tree)
}

/// The id mappings of a mount: its own, or the container's if it only says that
/// it wants some.
fn mappings<'s>(
    spec: &'s Spec,
    m: &'s Mount,
    options: &Options,
) -> Result<Option<(&'s [IdMap], &'s [IdMap])>> {
    if !m.uid_mappings.is_empty() {
        return Ok(Some((&m.uid_mappings, &m.gid_mappings)));
    }
    if options.idmap.is_none() {
        return Ok(None);
    }
    if spec.linux.uid_mappings.is_empty() {
        return Err(Error::config(
            format!("mounts: {}", m.destination),
            "idmap without mappings needs those of a user namespace",
        ));
    }
    Ok(Some((&spec.linux.uid_mappings, &spec.linux.gid_mappings)))
}

impl Mounter<'_> {
    /// Makes all mounts.
    pub fn run(&mut self) -> Result<()> {
        let spec = self.spec;
        for (i, m) in spec.mounts.iter().enumerate() {
            let options = Options::parse(&m.options, &m.destination)?;
            let destination = clean(&m.destination);
            if destination == "/" {
                return Err(Error::config("mounts", "a mount on / would hide the root"));
            }
            let prepared = self.sources.get_mut(i).and_then(Option::take);
            self.one(m, &destination, &options, prepared)?;
        }
        Ok(())
    }

    fn one(
        &self,
        m: &Mount,
        destination: &str,
        options: &Options,
        prepared: Option<OwnedFd>,
    ) -> Result<()> {
        if is_bind(m, options) {
            let tree = match prepared {
                Some(tree) => tree,
                None => open_source(self.spec, m, options, self.bundle)?,
            };
            return self.attach_bind(tree, destination, options);
        }
        let kind = m.kind.as_deref().unwrap_or_default();
        match kind {
            "" => Err(Error::config(
                format!("mounts: {destination}"),
                "has no type and is not a bind mount",
            )),
            kind if cgroupfs::is_cgroup(kind) => {
                let parts = (self.enter_cgroups)()?;
                cgroupfs::mount(self.root, destination, self.spec, self.cgroup, options, parts)
            }
            _ => self.filesystem(m, kind, destination, options),
        }
    }

    fn filesystem(
        &self,
        m: &Mount,
        kind: &str,
        destination: &str,
        options: &Options,
    ) -> Result<()> {
        if matches!(kind, "proc" | "sysfs") {
            self.refuse_link(destination, kind)?;
        }
        let source = m.source.as_deref().filter(|s| !s.is_empty()).unwrap_or(kind);
        let place = if options.destination_nofollow {
            self.root.place_nofollow(destination).during(|| format!("open {destination}"))?
        } else {
            self.root.make_dir(destination)?
        };
        let mut flags: Vec<&str> = options.super_flags.clone();
        if options.set & ATTR_RDONLY != 0 && source.starts_with('/') {
            // The file system of a device must not replay its journal either.
            flags.push("ro");
        }
        let mut data = options.data.clone();
        if let Some(label) = self.spec.linux.mount_label.as_deref().filter(|l| !l.is_empty())
            && !matches!(kind, "proc" | "sysfs")
            && !data.iter().any(|d| d.starts_with("context="))
            && labels::has_selinux()
        {
            data.push(format!("context={label}"));
        }
        // Copying needs to write first.
        let late = if options.copy_up { options.set & ATTR_RDONLY } else { 0 };
        let made = new_filesystem(kind, source, &data, &flags, options.set & !late);
        let tree = match made {
            Ok(tree) => tree,
            Err(e) if kind == "sysfs" && e.raw_os_error() == Some(libc::EPERM) => {
                // A user namespace without a network namespace of its own may
                // not mount sysfs; what the host shows is then shown read-only.
                let tree = mount::clone_tree_at("/sys", true, true).during(|| "take /sys")?;
                let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
                let change = Change { set, recursive: true, ..Change::default() };
                mount::set_attributes(tree.as_fd(), change).during(|| "restrict /sys")?;
                tree
            }
            Err(e) => return Err(e).during(|| format!("mount {kind} on {destination}")),
        };
        if kind == "tmpfs" && !options.data.iter().any(|d| d.starts_with("mode=")) {
            keep_mode(&place, &tree).during(|| format!("set the mode of {destination}"))?;
        }
        if options.copy_up {
            copyup::copy(place.as_fd(), tree.as_fd())?;
        }
        mount::attach(tree.as_fd(), place.as_fd())
            .during(|| format!("mount {kind} on {destination}"))?;
        if late != 0 {
            let change = Change { set: late, ..Change::default() };
            mount::set_attributes(tree.as_fd(), change)
                .during(|| format!("make {destination} read-only"))?;
        }
        set_propagation(&tree, destination, options)
    }

    /// procfs and sysfs on a link could end up under a volume that another
    /// container changes (CVE-2019-19921).
    fn refuse_link(&self, destination: &str, kind: &str) -> Result<()> {
        match self.root.stat(destination) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(Error::config(
                format!("mounts: {destination}"),
                format!("{kind} must be mounted on ordinary directory, this is a link or a file"),
            )),
            Err(e) => Err(e).during(|| format!("look at {destination}")),
        }
    }

    fn attach_bind(&self, tree: OwnedFd, destination: &str, options: &Options) -> Result<()> {
        let stat = rustix::fs::fstat(&tree).during(|| format!("look at {destination}'s source"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let place = if options.destination_nofollow {
            self.root.place_nofollow(destination).during(|| format!("open {destination}"))?
        } else if kind == FileType::Directory {
            self.root.make_dir(destination)?
        } else {
            self.root.make_file(destination)?
        };
        let set_options = |change: Change<'_>| {
            if change.set | change.clear == 0 {
                return Ok(());
            }
            mount::set_attributes(tree.as_fd(), change)
                .during(|| format!("set the options of the mount on {destination}"))
        };
        // A clone starts with the propagation of where it comes from; in a user
        // namespace it must not lead back there.
        if self.spec.has(NamespaceKind::User) {
            let change =
                Change { propagation: libc::MS_SLAVE, recursive: true, ..Change::default() };
            let _ = mount::set_attributes(tree.as_fd(), change);
        }
        set_options(Change {
            set: options.set_all,
            clear: options.clear_all & !options.set_all,
            recursive: true,
            ..Change::default()
        })?;
        set_options(Change {
            set: options.set,
            clear: options.clear & !options.set,
            ..Change::default()
        })?;
        mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("mount on {destination}"))?;
        set_propagation(&tree, destination, options)
    }
}

fn set_propagation(tree: &OwnedFd, destination: &str, options: &Options) -> Result<()> {
    for (propagation, recursive) in &options.propagation {
        let change =
            Change { propagation: *propagation, recursive: *recursive, ..Change::default() };
        mount::set_attributes(tree.as_fd(), change)
            .during(|| format!("set the propagation of {destination}"))?;
    }
    Ok(())
}

/// Gives a tmpfs without a mode of its own that of the directory it covers.
fn keep_mode(below: &OwnedFd, tree: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(below)?;
    let mode = rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7777);
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::openat(tree, c".", flags, rustix::fs::Mode::empty())?;
    Ok(rustix::fs::fchmod(&directory, mode)?)
}

/// A detached mount of a new file system.
pub fn new_filesystem(
    kind: &str,
    source: &str,
    data: &[String],
    super_flags: &[&str],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explain = |e: rustix::io::Errno| explain(&context, e);
    rustix::mount::fsconfig_set_string(&context, "source", source).map_err(explain)?;
    for option in data.iter().flat_map(|d| split(kind, d)) {
        set_option(&context, kind, &option).map_err(explain)?;
    }
    for flag in super_flags {
        rustix::mount::fsconfig_set_flag(&context, *flag).map_err(explain)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(explain)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// One entry of the list may hold several options, as in a mount table, except
/// where commas belong to the value.
fn split(kind: &str, data: &str) -> Vec<String> {
    let labels = ["context=", "fscontext=", "defcontext=", "rootcontext="];
    if kind == "overlay" || labels.iter().any(|l| data.starts_with(l)) {
        return vec![data.to_owned()];
    }
    data.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect()
}

fn set_option(context: &OwnedFd, kind: &str, option: &str) -> rustix::io::Result<()> {
    let Some((key, value)) = option.split_once('=') else {
        return rustix::mount::fsconfig_set_flag(context, option);
    };
    if kind == "overlay" && key == "lowerdir" && value.len() > LONGEST_VALUE {
        for layer in split_layers(value) {
            rustix::mount::fsconfig_set_string(context, "lowerdir+", layer)?;
        }
        return Ok(());
    }
    rustix::mount::fsconfig_set_string(context, key, value)
}

/// The layers of a `lowerdir` option; a backslash protects a colon.
fn split_layers(value: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match (c, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(characters.next()),
            (c, Some(layer)) => layer.push(c),
            (_, None) => {}
        }
    }
    layers
}

/// Adds the kernel's own words, which it leaves in the context, to its number.
fn explain(context: &OwnedFd, errno: rustix::io::Errno) -> io::Error {
    let mut text = [0u8; 1024];
    let plain = io::Error::from(errno);
    if errno == rustix::io::Errno::PERM {
        return plain;
    }
    match rustix::io::read(context, &mut text) {
        Ok(n) if n > 2 => {
            let words = String::from_utf8_lossy(&text[2..n]).trim().to_owned();
            io::Error::new(plain.kind(), format!("{plain} ({words})"))
        }
        _ => plain,
    }
}
