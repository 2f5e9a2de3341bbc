//! The layers so far as one directory that can be written to: an overlay whose
//! upper directory takes what a step changes.
//!
//! It is mounted where only this thread and what it starts can see it (see
//! `builder`), so a build that is killed leaves no mount.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guise_container::rootfs::path::{RootDir, open_host};
use guise_image::{Scratch, Session};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Error, IoContext, Result};

/// What the kernel takes as the options of one mount.
const LONGEST_OPTIONS: usize = 4095;

pub struct Mounted {
    scratch: Scratch,
}

impl Mounted {
    /// Mounts layers, the lowest first.
    pub fn new(session: &Session<'_>, layers: &[PathBuf]) -> Result<Self> {
        let mounted = Mounted { scratch: session.scratch()? };
        for name in ["empty", "upper", "work", "root"] {
            let path = mounted.path(name);
            fs::DirBuilder::new().mode(0o755).create(&path).at("making", &path)?;
        }
        // By descriptor: hundreds of long paths would not fit.
        let mut open: Vec<OwnedFd> = Vec::new();
        for layer in layers.iter().rev() {
            open.push(open_host(layer).at("opening", layer)?);
        }
        if open.is_empty() {
            open.push(open_host(mounted.path("empty")).at("opening", mounted.path("empty"))?);
        }
        let upper = File::open(mounted.path("upper")).at("opening", mounted.path("upper"))?;
        let work = File::open(mounted.path("work")).at("opening", mounted.path("work"))?;
        let place = |fd: i32| format!("/proc/self/fd/{fd}");
        let lower: Vec<String> = open.iter().map(|fd| place(fd.as_raw_fd())).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=off",
            lower.join(":"),
            place(upper.as_raw_fd()),
            place(work.as_raw_fd()),
        );
        if options.len() > LONGEST_OPTIONS {
            return Err(Error::refused(format!("{} layers are too many to mount", layers.len())));
        }
        // The root's own owner and mode are those of the upper directory.
        let permissions = match layers.last() {
            Some(top) => fs::metadata(top).at("reading", top)?.permissions(),
            None => fs::Permissions::from_mode(0o755),
        };
        fs::set_permissions(mounted.path("upper"), permissions)
            .at("making", mounted.path("upper"))?;
        let options = std::ffi::CString::new(options)
            .map_err(|_| Error::refused("a path holds a zero byte"))?;
        let root = mounted.root();
        rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), &*options).at(
            "mounting overlayfs (is the image store itself on overlayfs? then --store) on",
            &root,
        )?;
        Ok(mounted)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Where everything is together.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The same, for paths that must not lead out.
    pub fn root_dir(&self) -> Result<RootDir> {
        Ok(RootDir::new(open_host(self.root()).at("opening", self.root())?))
    }

    /// A directory beside it, for what the step needs.
    pub fn beside(&self) -> &Path {
        self.scratch.path()
    }

    /// Takes the mount off; what was changed is then in the directory given.
    pub fn changes(&self) -> Result<PathBuf> {
        rustix::mount::unmount(self.root(), UnmountFlags::DETACH).at("unmounting", self.root())?;
        Ok(self.path("upper"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Mounted no more where `changes` was asked for.
        let _ = rustix::mount::unmount(self.root(), UnmountFlags::DETACH);
    }
}
