//! The root file system: layers below, the instance's own above, in a mount namespace.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use guise_container::rootfs::path::{RootDir, open_host};
use rustix::mount::{MountFlags, MountPropagationFlags, mount as mount_call, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::system;
use crate::body::BodyError;
use crate::job::{Job, Network};

/// Enters a mount namespace, and as a plain user a user namespace around it.
pub fn enter_namespaces(map: impl FnOnce() -> io::Result<()>) -> Result<(), BodyError> {
    if !rustix::process::geteuid().is_root() {
        // SAFETY: no descriptor table or memory is unshared, only credentials.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(|error| {
            BodyError::Unsupported {
                what: format!("a user namespace for this user ({error})"),
                instead: "see that user.max_user_namespaces is not 0 and \
                          kernel.unprivileged_userns_clone is not 0, or run as root"
                    .into(),
            }
        })?;
        map().map_err(system("have the user namespace's ids mapped"))?;
    }
    // SAFETY: as above; the process's file system information is its own already.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|e| system("make a mount namespace")(e.into()))?;
    // What the host mounts and unmounts comes in, nothing goes out.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| system("separate the mount namespace from the host's")(e.into()))
}

/// Mounts the root, and says where.
pub fn mount(job: &Job, layers: &[PathBuf]) -> Result<PathBuf, BodyError> {
    let root = job.run.join("root");
    let (upper, work) = (job.state.join("upper"), job.state.join("work"));
    // Options of a mount are one page: short names for long paths.
    let short = job.run.join("layers");
    let _ = fs::remove_dir_all(&short);
    for directory in [&root, &upper, &work, &short] {
        fs::create_dir_all(directory).map_err(system(format!("make {}", directory.display())))?;
    }
    // Everybody inside has to get through the top of the tree.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&upper, open).map_err(system("open the root for everybody inside"))?;
    let mut lower = Vec::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        symlink(layer, short.join(number.to_string())).map_err(system("name a layer"))?;
        lower.push(number.to_string());
    }
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escaped(&upper)?,
        escaped(&work)?
    );
    if guise_container::namespaces::in_user_namespace() {
        options.push_str(",userxattr");
    }
    if job.ephemeral {
        // Else unmounting would wait for the whole disk.
        options.push_str(",volatile");
    }
    let options = CString::new(options).map_err(|e| BodyError::Failed(e.to_string()))?;
    let before = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    std::env::set_current_dir(&short).map_err(system("enter the layers"))?;
    let mounted =
        mount_call("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str()));
    std::env::set_current_dir(before).map_err(system("leave the layers"))?;
    mounted.map_err(|error| {
        system(format!(
            "mount the root file system (overlayfs over {} layers and {})",
            layers.len(),
            upper.display()
        ))(error.into())
    })?;
    Ok(root)
}

/// As an option's value: commas and colons would end it.
fn escaped(path: &Path) -> Result<String, BodyError> {
    let text = path
        .to_str()
        .ok_or_else(|| BodyError::Failed(format!("{} is not UTF-8", path.display())))?;
    Ok(text.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:"))
}

/// The files that say who and where the instance is; they are mounted over the image's.
pub const ETC: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

pub fn etc(job: &Job) -> PathBuf {
    job.run.join("etc")
}

pub fn write_etc(job: &Job, root: &Path) -> Result<(), BodyError> {
    let directory = etc(job);
    fs::create_dir_all(&directory).map_err(system("make files for /etc"))?;
    let name = &job.host_name;
    let resolvers = match (&job.plug, job.network) {
        // A switch knows the instances, and asks the host's resolvers for everybody else.
        (Some(plug), _) => format!("nameserver {}\n", plug.subnet.resolver()),
        (None, Network::Host) => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        (None, Network::User) => "nameserver 10.0.2.3\n".to_owned(),
        (None, Network::None) => String::new(),
    };
    let own = match job.network {
        Network::User => "10.0.2.15",
        Network::Host | Network::None => "127.0.1.1",
    };
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{name}\n");
    for (file, text) in ETC.into_iter().zip([format!("{name}\n"), hosts, resolvers]) {
        fs::write(directory.join(file), text).map_err(system(format!("write /etc/{file}")))?;
    }
    // An image without /etc gets one.
    let place = open_host(root).map_err(system("open the root file system"))?;
    RootDir::new(place).make_dir("/etc").map_err(|e| BodyError::Failed(e.to_string()))?;
    Ok(())
}
