//! Instances: an image, resources and a guise.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Twelve hexadecimal digits, never used again.
    pub id: String,
    /// Unique in its project at any time; may be changed.
    pub name: String,
    #[serde(default = "crate::default_project")]
    pub project: String,
    /// RFC 3339.
    pub created: String,
    /// Counts changes of `spec`.
    pub generation: u64,
    /// The commit that wrote the object last.
    #[serde(default)]
    pub revision: u64,
    /// It is on its way out.
    #[serde(default)]
    pub removing: bool,
    pub spec: InstanceSpec,
    #[serde(default)]
    pub status: InstanceStatus,
}

impl Instance {
    /// Which life goes on, or is owed, or would be the next one.
    #[must_use]
    pub fn coming_life(&self) -> u64 {
        let owed = self.spec.starts > self.status.starts;
        let lives = self.status.phase.is_alive() && self.spec.running;
        if owed || lives { self.spec.starts } else { self.spec.starts + 1 }
    }
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceSpec {
    /// A name, or the absolute path of a WebAssembly program or of a VM's disk image.
    pub image: String,
    pub guise: Guise,
    /// What executes a machine; containers have none.
    pub engine: Engine,
    /// Instead of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's arguments.
    pub command: Vec<String>,
    /// `NAME=value`, on top of the image's.
    pub env: Vec<String>,
    /// `name`, `uid`, `name:group`, `uid:gid`; the image's where there is none.
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub hostname: Option<String>,
    pub tty: bool,
    pub stdin: bool,
    pub resources: Resources,
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    pub network: Network,
    /// The named network that it is plugged into as well, and found by name on.
    pub join: Option<String>,
    pub ports: Vec<Port>,
    pub restart: Restart,
    /// It goes when it has ended.
    pub remove_on_exit: bool,
    pub stop_signal: Option<String>,
    pub stop_seconds: Option<u32>,
    /// What `cloud-init` is to do in a VM.
    pub user_data: Option<String>,
    /// Public keys, each a line as `ssh` has it, that may log in to a VM.
    pub ssh_keys: Vec<String>,
    /// How long a life may take.
    pub timeout_seconds: Option<u64>,
    pub labels: BTreeMap<String, String>,
    /// Whether it is to run. Setting it, and counting `starts` up, starts a new life.
    pub running: bool,
    pub paused: bool,
    pub starts: u64,
}

impl InstanceSpec {
    /// The file that it runs, unless that is an image with a name.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.path().filter(|_| !self.image.ends_with('/'))
    }

    /// The folder with its root file system, which ends with a slash, unless that is an image with
    /// a name.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.path().filter(|_| self.image.ends_with('/'))
    }

    /// What of the daemon's host it is made of.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.image.starts_with('/').then(|| Path::new(&self.image))
    }

    /// The disk image of a VM.
    #[must_use]
    pub fn disk(&self) -> Option<&Path> {
        self.file().filter(|_| self.guise == Guise::Vm)
    }
}

/// The form in which an instance runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Guise {
    /// The strongest isolation that this host gives at the cost of a container or less.
    #[default]
    Auto,
    Container,
    Microvm,
    Vm,
    Wasm,
}

impl Guise {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Guise::Auto => "auto",
            Guise::Container => "container",
            Guise::Microvm => "microvm",
            Guise::Vm => "vm",
            Guise::Wasm => "wasm",
        }
    }
}

/// What executes a machine's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// KVM where it runs what kernels consist of, the software engine elsewhere.
    #[default]
    Auto,
    Kvm,
    Soft,
}

/// Limits; none is no limit, or the guise's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Processors: a machine's vCPUs, rounded up; what it or a container may use of the host's.
    #[schema(example = 1.5)]
    pub cpus: Option<f64>,
    /// Its share of processors that others want too: who has twice as much gets twice as much.
    /// 100 where there is none.
    #[schema(minimum = 1, maximum = 10000, example = 300)]
    pub cpu_weight: Option<u64>,
    /// The host's processors that it runs on.
    #[schema(example = "0,2-3")]
    pub cpuset: Option<String>,
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub disk_bytes: Option<u64>,
}

/// Something of the host that is seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// An absolute path of the host, or else a volume's name.
    pub source: String,
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

impl Mount {
    /// The volume's name, unless a path of the host is mounted.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        (!self.source.starts_with('/')).then_some(self.source.as_str())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The user-mode network, or nothing where this host does not let this user have it.
    #[default]
    Auto,
    None,
    Host,
    User,
}

/// A port of the host that leads inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    #[schema(value_type = String)]
    pub address: IpAddr,
    pub host: u16,
    pub inside: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

/// What happens when an instance ends that nobody stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    /// When it failed, up to so many times in a row.
    OnFailure(Option<u32>),
    Always,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct InstanceStatus {
    pub phase: Phase,
    /// The guise that was chosen, and why.
    pub guise: Guise,
    pub chosen_because: String,
    /// The image's manifest.
    pub digest: String,
    /// The generation that all this is about.
    pub observed_generation: u64,
    /// The worker.
    pub pid: Option<u32>,
    pub started: Option<String>,
    pub finished: Option<String>,
    pub exit_code: Option<u8>,
    pub out_of_memory: bool,
    /// Why it failed.
    pub error: Option<crate::ApiError>,
    /// Lives that were begun: the last of `spec.starts` that has been acted upon.
    pub starts: u64,
    /// Seconds that it has to end by itself, where that was said when it was asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
    /// Restarts by policy in a row.
    pub restarts: u32,
    pub addresses: Vec<String>,
    /// What could not be done as asked, and was left out.
    pub warnings: Vec<String>,
    /// It stands still, because the host has no space for what it writes. It goes on by itself
    /// when there is some.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_space: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has never run.
    #[default]
    Created,
    Starting,
    Running,
    Paused,
    Stopping,
    Exited,
    /// It could not be started, or its worker died.
    Failed,
    /// It will be started again by its policy.
    Waiting,
    Removing,
}

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Created => "created",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopping => "stopping",
            Phase::Exited => "exited",
            Phase::Failed => "failed",
            Phase::Waiting => "waiting",
            Phase::Removing => "removing",
        }
    }

    /// There is a worker that listens.
    #[must_use]
    pub fn has_socket(self) -> bool {
        matches!(self, Phase::Running | Phase::Paused | Phase::Stopping)
    }

    /// There is a worker, or will be in a moment.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Phase::Starting | Phase::Running | Phase::Paused | Phase::Stopping)
    }
}

/// A request for a new instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Made up where there is none.
    #[serde(default)]
    pub name: Option<String>,
    /// Chosen by who asks, new for each instance that is wanted: the same request with the
    /// same key makes no second one, and is answered with the first.
    #[serde(default)]
    pub key: Option<String>,
    pub spec: InstanceSpec,
    /// Somebody will attach in a moment, and wants to see all of it: one that ends and
    /// goes is kept until then.
    #[serde(default)]
    pub attach: bool,
    /// The size of that terminal.
    #[serde(default)]
    pub rows: u16,
    #[serde(default)]
    pub columns: u16,
}

/// A program to be run beside an instance's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub tty: bool,
    pub stdin: bool,
    pub rows: u16,
    pub columns: u16,
}

/// How an instance ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ended {
    pub exit_code: u8,
    #[serde(default)]
    pub out_of_memory: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::ApiError>,
}

/// What an instance uses now; what its guise cannot tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Stats {
    pub id: String,
    pub name: String,
    pub cpu_nanoseconds: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_limit: Option<u64>,
    pub processes: Option<u64>,
    pub disk_read_bytes: Option<u64>,
    pub disk_written_bytes: Option<u64>,
    pub network_received_bytes: Option<u64>,
    pub network_sent_bytes: Option<u64>,
    /// In which at least one of its threads waited for a processor; with cgroup v2 only, as what
    /// follows.
    pub cpu_pressure_microseconds: Option<u64>,
    pub memory_pressure_microseconds: Option<u64>,
    pub io_pressure_microseconds: Option<u64>,
}

/// What guise a spec would get here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub guise: Guise,
    /// One line each.
    pub reasons: Vec<String>,
}
