//! What a worker is told to do: everything about one life of an instance, resolved.
//! Names of images have become paths, defaults have become values; a worker looks
//! nothing up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use guise_net::ipam::Subnet;
use serde::{Deserialize, Serialize};

use crate::body::Program;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The instance's identity, which is also a valid file and cgroup name.
    pub id: String,
    /// Which of its lives this is.
    pub life: u64,
    pub name: String,
    pub host_name: String,
    /// The instance's directory that outlives its lives: what it wrote, its log.
    pub state: PathBuf,
    /// Its directory for this life: sockets, mount points. Nothing of it is needed
    /// after a reboot.
    pub run: PathBuf,
    pub form: Form,
    pub program: Program,
    /// The signal that asks the workload to end.
    pub stop_signal: i32,
    /// When this life is over at the latest.
    #[serde(default)]
    pub time_limit: Option<Duration>,
    pub resources: Resources,
    /// Where its disk space cannot be limited to what was asked for, it does not run: the rest is
    /// others'.
    #[serde(default)]
    pub disk_must_hold: bool,
    /// The root file system cannot be written to.
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    pub network: Network,
    /// The switch that it is plugged into as well.
    #[serde(default)]
    pub plug: Option<Plug>,
    pub ports: Vec<Port>,
    pub log: Log,
    /// Nothing of it outlives this life, so nothing is made to survive a power failure.
    pub ephemeral: bool,
}

/// What the instance is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Form {
    Container {
        /// The image's layers as directories, bottom first.
        layers: Vec<PathBuf>,
    },
    Microvm {
        /// The image as one read-only EROFS file.
        root: PathBuf,
        kernel: PathBuf,
        /// The folder with the kernel's modules (`lib/modules/VERSION`).
        modules: PathBuf,
        /// Where what is made of the kernel is kept: for this kernel alone.
        cache: PathBuf,
        engine: Engine,
    },
    Vm {
        /// What stays as it is: a disk image of any format, or an image as an EROFS file.
        image: PathBuf,
        #[serde(default)]
        boots: Boots,
        engine: Engine,
        /// What the guest's `cloud-init` is to do.
        user_data: Option<String>,
        /// Who may log in, as `ssh` writes it.
        ssh_keys: Vec<String>,
    },
    Wasm {
        program: Module,
        /// The image's layers as directories, bottom first; none for a bare program.
        layers: Vec<PathBuf>,
    },
}

/// What a VM boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boots {
    #[default]
    Disk,
    Image,
}

/// Where a WebAssembly program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Module {
    /// A file of the host.
    File(PathBuf),
    /// An absolute path in the image.
    Inside(String),
}

/// What executes a machine's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    #[default]
    Auto,
    Kvm,
    Soft,
}

/// What may be written over a machine's image where nothing is said.
pub const DEFAULT_DISK: u64 = 10 << 30;

/// Limits; none is no limit, or the form's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Processors; parts of them are a cap.
    pub cpus: Option<f64>,
    /// From 1 to 10000, where others have 100.
    pub cpu_weight: Option<u64>,
    /// The processors that it runs on, as the kernel lists them.
    pub cpuset: Option<String>,
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
    /// What the instance may write to its root file system.
    pub disk_bytes: Option<u64>,
}

/// A file or folder of the host that is seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    pub source: PathBuf,
    /// An absolute path inside.
    pub target: String,
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Nothing but a loopback interface.
    None,
    /// The host's own interfaces; containers only.
    Host,
    /// The user-mode network: outwards through the worker's own sockets.
    #[default]
    User,
}

/// A port of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plug {
    /// The switch's socket.
    pub socket: PathBuf,
    /// What the others call this instance.
    pub name: String,
    pub subnet: Subnet,
}

/// A port of the host that leads inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub address: IpAddr,
    pub host: u16,
    pub inside: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

/// How much of what the workload prints is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A file is put aside when it has this size.
    pub file_bytes: u64,
    /// The oldest go when all together have the size of so many; short lives have
    /// small files.
    pub files: u32,
}

impl Default for Log {
    fn default() -> Log {
        Log { file_bytes: 10 << 20, files: 3 }
    }
}
