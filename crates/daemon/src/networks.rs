//! Named networks: a switch for each that somebody uses.
//!
//! A switch is a process of its own (`guise switch`), so that instances reach each other
//! also while no daemon runs. It is started before the first worker that is plugged into
//! it, and ended when no instance that lives is. One that was killed is started again;
//! ports join it again by themselves. Which switches there are is asked of their sockets,
//! as nothing else survives a daemon that is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guise_api::{ApiError, Code, NamedNetwork};
use guise_container::jail::STRANGERS;
use guise_net::ipam::{Book, Subnet};
use guise_net::switch::client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;

use crate::Daemon;
use crate::named::Named;
use crate::server::no_network;

/// Frames as large as the user-mode network's.
const MTU: u16 = guise_net::user::MAX_MTU;
/// How long a switch may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Networks {
    /// The switches that run, by their networks.
    switches: tokio::sync::Mutex<BTreeMap<Named, Arc<OwnedFd>>>,
    /// It is known which instances live, and so which switches are needed.
    settled: AtomicBool,
}

/// What an instance calls itself on a switch, whose names are those of hosts.
pub fn host_name(name: &str) -> String {
    let text: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    text.trim_matches('-').to_owned()
}

fn refused(error: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(error.to_string())
}

/// Chooses a network's subnet, and begins its book of leases.
pub fn begin_book(folder: &Path, name: &str, subnet: Option<&str>) -> Result<Subnet, ApiError> {
    let wanted: Option<Subnet> = subnet.map(str::parse).transpose().map_err(refused)?;
    Ok(Book::open(folder, name, wanted).map_err(refused)?.subnet())
}

/// Removes a network's book.
pub fn end_book(folder: &Path, name: &str) -> Result<(), ApiError> {
    for extension in ["json", "lock"] {
        match std::fs::remove_file(folder.join(format!("{name}.{extension}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ApiError::internal(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the folder of a switch that has ended.
pub fn remove_folder(socket: &Path) {
    if let Some(folder) = socket.parent()
        && let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("remove {}: {error}", folder.display());
    }
}

/// The process that listens at a switch's socket.
fn listener_of(socket: &Path) -> Option<OwnedFd> {
    let address = SocketAddrUnix::new(socket).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).ok()?;
    rustix::net::connect(&probe, &address).ok()?;
    let peer = sockopt::socket_peercred(&probe).ok()?;
    pidfd_open(peer.pid, PidfdFlags::NONBLOCK).ok()
}

/// Waits until a process has ended, and says whether it has.
async fn has_ended(process: &Arc<OwnedFd>, patience: Option<Duration>) -> bool {
    let process = process.clone();
    let wait = move || {
        let limit = patience.and_then(|patience| Timespec::try_from(patience).ok());
        loop {
            // Readable means ended.
            match poll(&mut [PollFd::new(&*process, PollFlags::IN)], limit.as_ref()) {
                Err(Errno::INTR) => {}
                other => return other.is_ok_and(|ended| ended > 0),
            }
        }
    };
    tokio::task::spawn_blocking(wait).await.unwrap_or(false)
}

impl Networks {
    /// Has the network's switch run.
    pub async fn ensure(&self, daemon: &Arc<Daemon>, name: &Named) -> Result<(), ApiError> {
        let network = daemon.objects.network(name)?.ok_or_else(|| no_network(&name.name))?;
        let mut switches = self.switches.lock().await;
        let socket = daemon.config.switch(name);
        if let Some(process) = listener_of(&socket) {
            if !switches.contains_key(name) {
                adopt(daemon, &mut switches, name, process);
            }
            return Ok(());
        }
        let process = start(daemon, &network, &socket).await?;
        adopt(daemon, &mut switches, name, process);
        Ok(())
    }

    /// To be called when it has been found out what an earlier daemon left.
    pub async fn settle(&self, daemon: &Arc<Daemon>) {
        self.settled.store(true, Ordering::SeqCst);
        self.tend(daemon).await;
    }

    /// Starts switches that are needed and do not run, and ends those that nobody needs.
    pub async fn tend(&self, daemon: &Arc<Daemon>) {
        if !self.settled.load(Ordering::SeqCst) {
            return;
        }
        let networks = match daemon.objects.networks() {
            Ok(networks) => networks,
            Err(error) => return tracing::warn!("networks: {error}"),
        };
        let needed: BTreeSet<Named> = daemon
            .table
            .all()
            .iter()
            .map(|entry| entry.instance())
            .filter(|instance| instance.status.phase.is_alive())
            .filter_map(|instance| Named::network_of(&instance))
            .collect();
        for network in networks {
            let name = Named::new(network.project, network.name);
            if needed.contains(&name) {
                if let Err(error) = self.ensure(daemon, &name).await {
                    tracing::warn!("network {name}: {error}");
                }
            } else {
                self.end(daemon, &name).await;
            }
        }
    }

    /// Ends a network's switch, if it runs.
    pub async fn end(&self, daemon: &Arc<Daemon>, name: &Named) {
        let mut switches = self.switches.lock().await;
        switches.remove(name);
        let socket = daemon.config.switch(name);
        let Some(process) = listener_of(&socket).map(Arc::new) else { return };
        // It may have ended by itself meanwhile.
        let _ = pidfd_send_signal(&*process, Signal::TERM);
        if !has_ended(&process, Some(PATIENCE)).await {
            tracing::warn!("network {name}: its switch does not end");
        }
    }
}

/// Takes a switch into the books, and looks after it.
fn adopt(
    daemon: &Arc<Daemon>,
    switches: &mut BTreeMap<Named, Arc<OwnedFd>>,
    name: &Named,
    process: OwnedFd,
) {
    let process = Arc::new(process);
    switches.insert(name.clone(), process.clone());
    let (daemon, name) = (daemon.clone(), name.clone());
    tokio::spawn(look_after(daemon, name, process));
}

/// Waits for a switch's end, and has it started again if it is needed.
fn look_after(
    daemon: Arc<Daemon>,
    name: Named,
    process: Arc<OwnedFd>,
) -> futures_util::future::BoxFuture<'static, ()> {
    Box::pin(async move {
        if !has_ended(&process, None).await {
            return tracing::warn!("network {name}: its switch cannot be watched");
        }
        let mine = {
            let mut switches = daemon.networks.switches.lock().await;
            let mine = switches.get(&name).is_some_and(|other| Arc::ptr_eq(other, &process));
            if mine {
                switches.remove(&name);
            }
            mine
        };
        // Else it was ended on purpose.
        if mine {
            tracing::warn!("network {name}: its switch ended");
            daemon.networks.tend(&daemon).await;
        }
    })
}

async fn start(
    daemon: &Daemon,
    network: &NamedNetwork,
    socket: &Path,
) -> Result<OwnedFd, ApiError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let name = &network.name;
        ApiError::new(Code::Internal, format!("network {name}: {what}: {error}")).exit_code(125)
    };
    let folder = socket.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| failed("make its directory", &e))?;
    let said = socket.with_extension("err");
    let errors = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&said)
        .map_err(|e| failed("open its error file", &e))?;
    let mut command = Command::new("/proc/self/exe");
    if rustix::process::geteuid().is_root() {
        // To the host, workers are not root.
        command.args(["switch", "--admit"]);
        command.arg(format!("{}-{}", STRANGERS.start(), STRANGERS.end()));
    } else {
        command.arg("switch");
    }
    let mut child = command
        .arg(socket)
        .arg("--state")
        .arg(daemon.config.networks(&network.project))
        .args(["--subnet", &network.subnet, "--mtu", &MTU.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map_err(|e| failed("start its switch", &e))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = child.try_wait().ok().flatten().is_some();
        if !ended && let Some(process) = listener_of(socket) {
            // Reaped whenever it ends.
            tokio::spawn(async move { child.wait().await });
            return Ok(process);
        }
        if ended || Instant::now() > deadline {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            let last = text.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(failed("its switch does not run", &last));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The addresses that a switch has given an instance.
pub async fn addresses(socket: PathBuf, name: String) -> Vec<String> {
    let ask = move || client::status(&socket);
    let ports = match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(ports)) => ports,
        Ok(Err(error)) => {
            tracing::warn!("ask a switch for addresses: {error}");
            Vec::new()
        }
        Err(_) => Vec::new(),
    };
    let own = ports.into_iter().find(|port| port.name == name);
    own.map(|port| port.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default()
}
