//! The kernel that microVMs boot: Debian's from the store, or the folder that the daemon
//! was given instead.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guise_api::{ApiError, Code, KERNEL};
use guise_image::{Name, Session};

use crate::Daemon;

/// What a worker needs of it.
pub struct Files {
    pub kernel: PathBuf,
    pub modules: PathBuf,
    /// For what is made of the kernel once.
    pub cache: PathBuf,
}

/// Says what is missing before an instance is made that would need it.
pub fn check(daemon: &Daemon) -> Result<(), ApiError> {
    if let Some(folder) = &daemon.config.kernel {
        return in_folder(folder).map(drop);
    }
    match daemon.images.kernel_config(&name()?) {
        Ok(_) => Ok(()),
        Err(guise_image::Error::NoSuchImage(_)) => {
            Err(ApiError::new(Code::KernelMissing, "the kernel of microVMs is not in the store")
                .hint(format!("guise image pull {KERNEL} fetches it"))
                .exit_code(125))
        }
        Err(error) => Err(ApiError::internal(error).exit_code(125)),
    }
}

pub fn files(daemon: &Daemon, session: &Session<'_>) -> Result<Files, ApiError> {
    if let Some(folder) = &daemon.config.kernel {
        let (kernel, modules) = in_folder(folder)?;
        let cache = cache_of(folder, &kernel, &daemon.config.kernels());
        return Ok(Files { kernel, modules, cache });
    }
    check(daemon)?;
    let kernel =
        session.kernel(&name()?).map_err(|error| ApiError::internal(error).exit_code(125))?;
    // It goes with the kernel.
    let folder = kernel.vmlinuz.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let cache = folder.join("guise");
    Ok(Files { kernel: kernel.vmlinuz, modules: kernel.modules, cache })
}

fn name() -> Result<Name, ApiError> {
    KERNEL.parse().map_err(ApiError::internal)
}

/// A kernel as its package lays it out: `boot/vmlinuz-VERSION`, `lib/modules/VERSION`. The
/// newest by name, where there are several. The kernel, and its modules.
fn in_folder(folder: &Path) -> Result<(PathBuf, PathBuf), ApiError> {
    let odd = |why: String| {
        ApiError::new(Code::Unsupported, format!("GUISE_KERNEL={}: {why}", folder.display()))
            .hint("it is a folder with boot/vmlinuz-VERSION and lib/modules/VERSION")
            .exit_code(125)
    };
    let boot = folder.join("boot");
    let entries = fs::read_dir(&boot).map_err(|error| odd(format!("boot: {error}")))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let version = names
        .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .max()
        .ok_or_else(|| odd("boot holds no kernel".to_owned()))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| folder.join(place).join(&version))
        .into_iter()
        .find(|place| place.is_dir())
        .ok_or_else(|| odd(format!("there are no modules of {version}")))?;
    let kernel = boot.join(format!("vmlinuz-{version}"));
    Ok((kernel, modules))
}

/// Where what is made of a kernel is kept: beside it, or with the daemon's own things where the
/// folder is somebody else's. Another kernel of the same name has another place.
fn cache_of(folder: &Path, kernel: &Path, own: &Path) -> PathBuf {
    let found = fs::metadata(kernel);
    let changed = found.as_ref().map_or(0, |found| found.mtime_nsec() ^ (found.mtime() << 30));
    let length = found.as_ref().map_or(0, MetadataExt::size);
    let text = format!("{} {length} {changed}", kernel.display());
    let digest = guise_image::Digest::of(text.as_bytes()).to_string();
    let name: String = digest.chars().rev().take(16).collect();
    let beside = folder.join("guise").join(&name);
    let is_ours = fs::create_dir_all(&beside).is_ok()
        && rustix::fs::access(&beside, rustix::fs::Access::WRITE_OK).is_ok();
    if is_ours { beside } else { own.join(name) }
}

#[cfg(test)]
mod tests;
