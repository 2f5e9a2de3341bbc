//! A procfs that only this process holds.
//!
//! Writes that decide over the container's confinement (sysctls, labels) go
//! through a mount that was never attached anywhere: whatever a container or an
//! image puts at `/proc` cannot redirect them (CVE-2025-52881).
//!
//! It is only made where something is going to be written: letting go of a mount that is attached
//! nowhere waits for an RCU grace period, and the program would start that much later.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Context, Error, Result};

/// The root of that procfs, or nothing where there is nothing to write.
pub struct PrivateProc(Option<OwnedFd>);

impl PrivateProc {
    /// Makes one for the current pid namespace. Where the kernel refuses (in a
    /// user namespace whose own /proc is masked), the host's is taken, after a
    /// look at its type.
    pub fn open_if(needed: bool) -> Result<Self> {
        if !needed {
            return Ok(PrivateProc(None));
        }
        match Self::detached() {
            Ok(fd) => Ok(PrivateProc(Some(fd))),
            Err(_) => {
                let fd = rustix::fs::openat(
                    CWD,
                    "/proc",
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .during(|| "open /proc")?;
                let kind = rustix::fs::fstatfs(&fd).during(|| "look at /proc")?;
                if kind.f_type != PROC_SUPER_MAGIC {
                    return Err(Error::unsupported("procfs", "mount it on /proc of the host"));
                }
                Ok(PrivateProc(Some(fd)))
            }
        }
    }

    fn detached() -> io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        Ok(rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?)
    }

    /// Writes a file of it. Links other than `self` itself are not followed and
    /// nothing mounted on it is entered.
    pub fn write(&self, path: &str, text: &[u8]) -> io::Result<()> {
        let root = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let path = match path.strip_prefix("self/") {
            Some(rest) => format!("{}/{rest}", std::process::id()),
            None => path.to_owned(),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
        let written = rustix::io::write(&file, text)?;
        if written == text.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }
}
