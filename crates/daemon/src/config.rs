//! Where a daemon keeps things.

use std::path::PathBuf;

use guise_worker::place::Place;

use crate::DaemonError;

#[derive(Clone, Debug)]
pub struct Config {
    /// What outlives a reboot: the store, what instances wrote, volumes.
    pub state: PathBuf,
    /// What does not: sockets, locks, mount points.
    pub run: PathBuf,
    /// The image store.
    pub images: PathBuf,
    /// A kernel's unpacked package, which microVMs boot instead of the store's.
    pub kernel: Option<PathBuf>,
}

impl Config {
    /// The places of this user, or those that the environment names.
    pub fn of_this_user() -> Result<Config, DaemonError> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let root = rustix::process::geteuid().is_root();
        let state = match variable("GUISE_STATE") {
            Some(path) => path,
            None if root => PathBuf::from("/var/lib/guise"),
            None => absolute("XDG_DATA_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
                .ok_or(DaemonError::NoHome)?
                .join("guise"),
        };
        let run = match variable("GUISE_RUN") {
            Some(path) => path,
            None if root => PathBuf::from("/run/guise"),
            // Without a session there is no runtime directory.
            None => absolute("XDG_RUNTIME_DIR")
                .map_or_else(|| state.join("run"), |runtime| runtime.join("guise")),
        };
        let images = variable("GUISE_IMAGES").unwrap_or_else(|| state.join("images"));
        let kernel = variable("GUISE_KERNEL").filter(|path| !path.as_os_str().is_empty());
        Ok(Config { state, run, images, kernel })
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("guise.sock")
    }

    pub(crate) fn instance_run(&self, id: &str) -> PathBuf {
        self.run.join("i").join(id)
    }

    pub(crate) fn place(&self, id: &str) -> Place {
        Place { state: self.state.join("instances").join(id), run: self.instance_run(id) }
    }

    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.state.join("volumes").join(name)
    }
}
