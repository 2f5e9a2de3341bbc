//! The root file system: layers below, the instance's own above, in a mount namespace.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use guise_container::jail::{Strangers, attach};
use guise_container::rootfs::path::{RootDir, open_host};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_call, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::system;
use crate::body::{BodyError, failed};
use crate::job::{Job, Network};
use crate::place::UPPER;

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

/// Mounts the root, and says where. Who will be a stranger to the host gets it with his ids,
/// where the host's file systems can be mounted so. What the instance writes goes to `own`.
pub fn mount(
    job: &Job,
    layers: &[PathBuf],
    own: &Path,
    strangers: Option<&Strangers>,
) -> Result<PathBuf, BodyError> {
    let root = job.run.join("root");
    let (upper, work) = (own.join(UPPER), own.join("work"));
    for folder in [&root, &upper, &work] {
        fs::create_dir_all(folder).map_err(system(format!("make {}", folder.display())))?;
    }
    // Everybody inside has to get through the top of the tree.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&upper, open).map_err(system("open the root for everybody inside"))?;
    let overlay = Overlay { job, layers, own, root: &root };
    let lent = strangers.and_then(|strangers| overlay.mount_lent(strangers).ok());
    if lent.is_none() {
        overlay.mount_as_it_is()?;
    }
    Ok(root)
}

/// The folder with what the instance wrote, among its layers.
const OWN: &str = "own";

struct Overlay<'a> {
    job: &'a Job,
    layers: &'a [PathBuf],
    /// The folder with what the instance writes.
    own: &'a Path,
    root: &'a Path,
}

impl Overlay<'_> {
    /// An empty folder with room for short names: options of a mount are one page.
    fn names(&self) -> Result<PathBuf, BodyError> {
        let folder = self.job.run.join("layers");
        for left in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Only folders on which something was mounted are ones.
            let _ = unmount(left.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(system(format!("make {}", folder.display())))?;
        Ok(folder)
    }

    fn mount_as_it_is(&self) -> Result<(), BodyError> {
        let names = self.names()?;
        for (number, layer) in self.layers.iter().enumerate() {
            symlink(layer, names.join(number.to_string())).map_err(system("name a layer"))?;
        }
        self.mount(&names, self.own)
    }

    /// With the layers and the instance's folder as strangers see them.
    fn mount_lent(&self, strangers: &Strangers) -> Result<(), BodyError> {
        let names = self.names()?;
        let lend = |folder: &Path, name: &str| {
            let place = names.join(name);
            let tree = strangers.folder(folder)?;
            fs::create_dir(&place)?;
            attach(&tree, &place)
        };
        for (number, layer) in self.layers.iter().enumerate() {
            lend(layer, &number.to_string()).map_err(system("lend a layer"))?;
        }
        lend(self.own, OWN).map_err(system("lend the instance's folder"))?;
        // What an overlay does itself below, it does as who has mounted it.
        strangers.acting(|| self.mount(&names, Path::new(OWN))).map_err(failed)?
    }

    /// Mounts it, with what is written to it in `own`.
    fn mount(&self, names: &Path, own: &Path) -> Result<(), BodyError> {
        let lower: Vec<_> = (0..self.layers.len()).rev().map(|number| number.to_string()).collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            escaped(&own.join(UPPER))?,
            escaped(&own.join("work"))?
        );
        if guise_container::namespaces::in_user_namespace() {
            options.push_str(",userxattr");
        }
        if self.job.ephemeral {
            // Else unmounting would wait for the whole disk.
            options.push_str(",volatile");
        }
        let options = CString::new(options).map_err(failed)?;
        let before = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        std::env::set_current_dir(names).map_err(system("enter the layers"))?;
        let (root, options) = (self.root, Some(options.as_c_str()));
        let mounted = mount_call("overlay", root, "overlay", MountFlags::empty(), options);
        std::env::set_current_dir(before).map_err(system("leave the layers"))?;
        mounted.map_err(|error| {
            system(format!(
                "mount the root file system (overlayfs over {} layers and {})",
                self.layers.len(),
                self.own.join(UPPER).display()
            ))(error.into())
        })
    }
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
        let path = directory.join(file);
        // Whoever is inside reads them, whatever this process keeps from others.
        let for_all = || fs::set_permissions(&path, fs::Permissions::from_mode(0o644));
        fs::write(&path, text)
            .and_then(|()| for_all())
            .map_err(system(format!("write /etc/{file}")))?;
    }
    // An image without /etc gets one.
    let place = open_host(root).map_err(system("open the root file system"))?;
    RootDir::new(place).make_dir("/etc").map_err(|e| BodyError::Failed(e.to_string()))?;
    Ok(())
}
