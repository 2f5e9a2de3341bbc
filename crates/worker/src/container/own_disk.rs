//! A file system of an instance's own, in a file: what limits how much a container or a WebAssembly
//! program may write.
//!
//! The file is sparse and has an ext4 that was made here (`guise_microvm::ext4`), so that the
//! host's kernel reads nothing that a stranger wrote. It is attached to a loop device that lets go of
//! it when nobody uses it any more, and mounted in the worker's own namespace: whatever ends the
//! worker ends both. Nobody but root can have that.
//!
//! The worker does not see the file: one that was taken over is not to hand a file system of its own
//! making to the kernel.

mod loop_device;

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guise_container::namespaces::in_user_namespace;
use guise_microvm::ext4;
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_call, unmount};

use super::system;
use crate::body::{BodyError, failed, unsupported};
use crate::job::Job;
use crate::place::{OWN_DISK, UPPER};
use loop_device::Loop;

/// Where what an instance writes can go.
enum Own {
    /// A folder of a file system of its own.
    Limited(PathBuf),
    /// There can be no limit, and why.
    Unlimited(String),
}

/// Where what an instance writes goes, which has a limit where that is asked for and can be. To be
/// called in a mount namespace of the instance's own.
pub fn folder(job: &Job, form: &str, warnings: &mut Vec<String>) -> Result<PathBuf, BodyError> {
    let Some(size) = job.resources.disk_bytes else { return Ok(job.state.clone()) };
    match mount(job, size)? {
        Own::Limited(folder) => Ok(folder),
        Own::Unlimited(why) => {
            warnings.push(format!("this {form}'s disk space has no limit: {why}"));
            Ok(job.state.clone())
        }
    }
}

/// Where it is mounted. The worker, which is shut in, does not see this folder, so that nothing
/// of it stays when this namespace has let go of it.
fn place(job: &Job) -> PathBuf {
    job.run.join("own")
}

/// Why no instance of this user's can have one on this host, where that is so.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() || in_user_namespace() {
        return Some("only root can mount a file system of its own");
    }
    let has_loops = Path::new("/dev/loop-control").exists();
    (!has_loops).then_some("this host has no loop devices (/dev/loop-control)")
}

/// Makes a file system of so many bytes, unless it is there, and mounts it.
fn mount(job: &Job, size: u64) -> Result<Own, BodyError> {
    let unlimited = |why: &str| match job.disk_must_hold {
        true => Err(must_hold(why)),
        false => Ok(Own::Unlimited(why.to_owned())),
    };
    if job.state.join(UPPER).exists() {
        return unlimited("what it wrote before is in a folder, which has none");
    }
    if let Some(why) = obstacle() {
        return unlimited(why);
    }
    let place = job.state.join(OWN_DISK);
    let found = open(&place).map_err(system(format!("open {}", place.display())))?;
    let is_new = found.is_none();
    let file = match found {
        Some(file) => file,
        None => make(&place, size).map_err(system("make the instance's disk"))?,
    };
    match attach_and_mount(job, &file) {
        Ok(folder) => Ok(Own::Limited(folder)),
        // Without anything in it, it is not missed.
        Err(error) if is_new => {
            fs::remove_file(&place).map_err(system("remove a disk that cannot be used"))?;
            unlimited(&error.to_string())
        }
        Err(error) => Err(error),
    }
}

fn must_hold(why: &str) -> BodyError {
    unsupported(
        &format!("a limit of its disk space, which its project's quota takes ({why})"),
        "make it anew, a container perhaps as a machine: --as microvm",
    )
}

fn make(place: &Path, size: u64) -> io::Result<File> {
    // Under its name it is whole.
    let partial = place.with_extension("partial");
    let _ = fs::remove_file(&partial);
    ext4::create(&partial, size)?;
    fs::rename(&partial, place)?;
    open(place)?.ok_or_else(|| io::Error::other("it is not there any more"))
}

/// The file, if it is there, and not only by its name: a power failure may have left that alone,
/// as long as nobody inside had anything put on the disk.
fn open(place: &Path) -> io::Result<Option<File>> {
    const MAGIC: (u64, [u8; 2]) = (0x438, [0x53, 0xef]);
    let file = match File::options().read(true).write(true).open(place) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut magic = [0; 2];
    let has_magic = file.read_exact_at(&mut magic, MAGIC.0).is_ok() && magic == MAGIC.1;
    Ok(has_magic.then_some(file))
}

fn attach_and_mount(job: &Job, file: &File) -> Result<PathBuf, BodyError> {
    let folder = place(job);
    fs::create_dir_all(&folder).map_err(system(format!("make {}", folder.display())))?;
    let device = Loop::of(file).map_err(system("attach the instance's disk"))?;
    // What is deleted inside is given back to the host. After an error nothing more is written.
    let mut options = "discard,errors=remount-ro".to_owned();
    if job.ephemeral {
        // Nobody reads what is thrown away, so nobody waits until it is on the host's disk.
        options.push_str(",barrier=0,data=writeback");
    }
    let options = CString::new(options).map_err(failed)?;
    // Programs are run, and devices opened, by way of the overlay over it alone.
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount_call(device.path(), &folder, "ext4", flags, Some(options.as_c_str()))
        .map_err(|error| system("mount the instance's disk")(error.into()))?;
    // The mount has it now, and when that goes the loop device goes.
    drop(device);
    let upper = folder.join(UPPER);
    fs::create_dir_all(&upper)
        .and_then(|()| fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)))
        .map_err(system("make the instance's folder on its disk"))?;
    Ok(folder)
}

/// Lets go of the root file system and of the one below it, when no program of the container is
/// left: the next life can have it, although this worker may stay for those who read its log.
pub fn release(job: &Job, root: &Path) -> io::Result<()> {
    let folder = place(job);
    if !folder.exists() {
        return Ok(());
    }
    for mounted in [root, &folder] {
        match unmount(mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It was never mounted.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
