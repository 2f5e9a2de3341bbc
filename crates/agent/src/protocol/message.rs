//! The messages in control frames.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// From the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Makes the guest a place to run in; answered with `Done`. Once, before any session.
    SetUp(SetUp),
    /// Starts a session; answered with `Started` and later `Exited`, or with that alone.
    Open(Open),
    /// The host has room for so many more bytes of a stream.
    Window { stream: Stream, bytes: u32 },
    /// The user's window has changed.
    Resize(Resize),
    /// A signal for the session's process.
    Signal(i32),
    /// Answered with `Statistics`.
    Statistics,
    /// Answered with `Done`.
    SetClock(Clock),
    /// Ends every process and brings the file systems to rest; answered with `Done`, after
    /// which the guest switches itself off. A system of its own is told to do so itself, and
    /// answers before it does.
    Shutdown,
    /// Mounts folders of the host in a system of its own, where it has not done so itself;
    /// answered with `Done`.
    Mount(Vec<Mount>),
    /// Gives addresses to interfaces that a system of its own has left off; answered with `Done`.
    Connect(Wiring),
}

/// From the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// The first message.
    Hello(Hello),
    /// What was asked for is done, or why it is not.
    Done(Result<(), String>),
    Started {
        pid: u32,
    },
    /// The session's process can take so many more bytes of input.
    Window {
        bytes: u32,
    },
    Exited(Exit),
    Statistics(Statistics),
}

impl ToGuest {
    pub fn bytes(&self) -> Vec<u8> {
        // Plain data to a vector: there is nothing that could fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }
}

impl ToHost {
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// The kernel's release.
    pub kernel: String,
    /// How long the kernel has been running.
    pub uptime_ms: u64,
    /// What the agent beside a system of its own was given: there, others can call too.
    pub secret: Vec<u8>,
}

/// An output stream of a session. A terminal has the first alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Output,
    Errors,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    pub rows: u16,
    pub columns: u16,
}

/// Time since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// A session: what runs, as whom and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub task: Task,
    /// The program and its arguments; for other tasks nothing.
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    /// Made if it is not there; the root where it is empty.
    pub directory: String,
    /// `name`, `uid`, either with `:group`; root where it is empty.
    pub user: String,
    /// Supplementary groups besides those that the user is a member of.
    pub groups: Vec<u32>,
    /// The process gets a terminal of this size.
    pub terminal: Option<Resize>,
    /// The process gets the session's input; without it, nothing can be read.
    pub input: bool,
}

/// What a session does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Runs the arguments.
    #[default]
    Run,
    /// Writes a file or a directory to the output, as tar; the archive's names begin with
    /// the path's last part.
    Export { path: String },
    /// Unpacks a tar archive from the input into a directory.
    Import { path: String },
    /// Ends when a system of its own is up.
    AwaitSystem,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The guest's kernel ended it for lack of memory.
    OutOfMemory,
    /// It did not begin.
    NotStarted {
        why: NotStarted,
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    NotFound,
    NotExecutable,
    Failed,
}

impl Exit {
    /// As a shell tells it.
    pub fn code(&self) -> i32 {
        match self {
            Exit::Code(code) => *code,
            Exit::Signal(signal) => 128 + signal,
            Exit::OutOfMemory => 128 + 9,
            Exit::NotStarted { why: NotStarted::NotFound, .. } => 127,
            Exit::NotStarted { why: NotStarted::NotExecutable, .. } => 126,
            Exit::NotStarted { why: NotStarted::Failed, .. } => 125,
        }
    }
}

/// What makes a booted kernel a place to run in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUp {
    pub host_name: String,
    pub root: Root,
    /// In this order.
    pub mounts: Vec<Mount>,
    pub interfaces: Vec<Interface>,
    pub resolvers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// Lines of /etc/hosts besides those of the guest itself.
    pub hosts: Vec<(IpAddr, String)>,
    /// How many processes there may be of what the host starts; none is no limit.
    pub processes: Option<u64>,
    pub clock: Clock,
    /// Random bytes of the host.
    pub entropy: Vec<u8>,
}

/// The root file system. Disks are named by their serial numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The EROFS image.
    pub image: String,
    pub writes: Writes,
    pub read_only: bool,
}

/// What an image becomes whose own system begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRoot {
    pub root: Root,
    /// What the machine is called where the system does not know better.
    pub host_name: String,
}

impl OwnRoot {
    pub fn bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    pub fn of(bytes: &[u8]) -> Option<OwnRoot> {
        postcard::from_bytes(bytes).ok()
    }
}

/// Where changes of the root file system go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    /// Into memory, up to so many bytes.
    Memory { bytes: u64 },
    /// To an ext4 file system on this disk.
    Disk(String),
}

impl Default for Writes {
    fn default() -> Self {
        Writes::Memory { bytes: 0 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: Source,
    pub target: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory of the host, by the tag of its virtio file system.
    Share(String),
    /// Memory, up to so many bytes.
    Memory { bytes: u64 },
    /// An ext4 file system on the disk of this serial number.
    Disk(String),
}

/// A network interface, found by its hardware address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub mac: [u8; 6],
    pub mtu: u32,
    /// With the length of their prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    pub gateways: Vec<IpAddr>,
}

/// The networks of a system of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    pub interfaces: Vec<Interface>,
    pub resolvers: Vec<IpAddr>,
}

/// What the guest says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    pub uptime_ms: u64,
    /// Of all processors together, without idling.
    pub cpu_ms: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    pub processes: u64,
    /// Of the root file system's changes.
    pub disk_used: u64,
    pub disk_total: u64,
    pub network_received: u64,
    pub network_sent: u64,
}
