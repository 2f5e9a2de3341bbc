//! Where a daemon keeps things.

use std::net::SocketAddr;
use std::path::PathBuf;

use guise_worker::place::Place;

use crate::admission::Rules;
use crate::named::Named;
use crate::{DaemonError, pool, tls};

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
    /// How much memory is given out.
    pub memory: Rules,
    /// How much space is kept where all that is.
    pub disk: pool::Rules,
    /// For whom the API is there beside this user.
    pub listen: Option<Listen>,
}

/// Where other hosts reach the API.
#[derive(Clone, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    /// Without TLS, which only this host's own addresses may be.
    pub plain: bool,
    /// The certificate, if it is not to be the daemon's own.
    pub certificate: Option<tls::Files>,
}

/// So many MiB as a variable of the environment says, in bytes.
fn mebibytes(variable: &'static str) -> Result<Option<u64>, DaemonError> {
    const MIB: u64 = 1 << 20;
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(mib) => Ok(Some(mib.saturating_mul(MIB))),
        Err(_) => Err(DaemonError::NoMebibytes { variable, text }),
    }
}

/// What the environment says about space: `GUISE_KEEP_DISK` in MiB.
pub(crate) fn disk_rules() -> Result<pool::Rules, DaemonError> {
    Ok(pool::Rules { kept: mebibytes("GUISE_KEEP_DISK")? })
}

/// What the environment says about memory: `GUISE_KEEP_MEMORY` in MiB, `GUISE_OVERCOMMIT`.
fn memory_rules() -> Result<Rules, DaemonError> {
    let kept = mebibytes("GUISE_KEEP_MEMORY")?;
    let overcommit = std::env::var_os("GUISE_OVERCOMMIT").is_some_and(|value| value == "1");
    Ok(Rules { kept, overcommit })
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
        let (memory, disk) = (memory_rules()?, disk_rules()?);
        Ok(Config { state, run, images, kernel, memory, disk, listen: None })
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

    /// What is made of kernels that lie where only others may write.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    /// The certificate that is made where none is given.
    pub(crate) fn tls(&self) -> PathBuf {
        self.state.join("tls")
    }

    /// Where the switch of a named network listens: a folder of its own, which is all that
    /// a worker sees of networks.
    pub(crate) fn switch(&self, network: &Named) -> PathBuf {
        let folder = network.to_string().replace('/', "+");
        self.run.join("n").join(folder).join(&network.name)
    }

    /// What lasts of a project.
    fn project(&self, name: &str) -> PathBuf {
        if name == guise_api::DEFAULT_PROJECT {
            return self.state.clone();
        }
        self.state.join("projects").join(name)
    }

    /// The books of a project's named networks: who has which address.
    pub(crate) fn networks(&self, project: &str) -> PathBuf {
        self.project(project).join("networks")
    }

    pub(crate) fn volume(&self, volume: &Named) -> PathBuf {
        self.project(&volume.project).join("volumes").join(&volume.name)
    }
}
