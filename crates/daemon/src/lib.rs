//! The control plane of one host and one user.
//!
//! ```text
//! config     where things are, and who is listened to
//! objects    everything that is kept, in the store
//! named      names, which are unique in a project
//! quota      what projects may have together
//! access     who asks, and what they may do
//! audit      who asked for what, and how it went
//! changes    what has become of objects, for whoever watches
//! tasks      work that takes long
//! tls        the certificate for other hosts
//! table      every instance of this daemon, with what is known of it
//! reconcile  one task per instance: makes what is into what is wanted
//! groups     cgroups of workers that have ended
//! launch     from an instance to a worker that runs it
//! ids        who there is in the namespaces of workers
//! trees      removing what instances wrote
//! networks   the switches of named networks
//! link       the daemon's side of a worker's control socket
//! admission  whether the host has the memory for it
//! pool       whether it has the space, and for how long
//! choose     which guise an instance gets, and why
//! events     what happened
//! server     the API
//! ```
//!
//! Requests change specs, in the store and then in the table, and wake the instance's
//! task; they never act themselves. The daemon may be killed anywhere: specs are in
//! the store, workers live on, and the task of each instance begins by looking at what
//! is there.

mod access;
mod admission;
mod audit;
mod changes;
mod choose;
mod config;
mod events;
mod groups;
mod ids;
mod launch;
mod link;
mod named;
mod networks;
mod objects;
mod pool;
mod quota;
mod random;
mod reconcile;
mod server;
mod table;
mod tasks;
mod tls;
mod trees;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guise_state::embedded::EmbeddedStore;
use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

pub use config::{Config, Listen};
pub use pool::{check_store, in_words};
pub use server::openapi;
pub use tls::Files as TlsFiles;

/// Why a daemon could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(
        "another daemon runs already; it listens at {0} (stop it, or give this one another --run)"
    )]
    Running(PathBuf),
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}: a socket's path has at most 107 bytes; choose a shorter --run")]
    LongPath(PathBuf),
    #[error(transparent)]
    State(#[from] guise_state::StateError),
    #[error(transparent)]
    Image(#[from] guise_image::Error),
    #[error("the state of {0} is damaged: {1}; restore a snapshot of the state")]
    Object(String, serde_json::Error),
    #[error(
        "neither XDG_RUNTIME_DIR nor HOME says where this user's files are; give --state and --run"
    )]
    NoHome,
    #[error("{variable}={text} is no number of MiB")]
    NoMebibytes { variable: &'static str, text: String },
    #[error("certificate {0}: {1}")]
    Certificate(PathBuf, String),
    #[error(
        "{0} is reached from other hosts, and without TLS everybody on the way could read and use \
         tokens; leave out --plain, or listen at 127.0.0.1 or ::1"
    )]
    Plain(std::net::SocketAddr),
    #[error("listen at {0}: {1}")]
    Listen(std::net::SocketAddr, std::io::Error),
}

fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> DaemonError {
    let path = path.into();
    move |source| DaemonError::Io { what, path, source }
}

/// What every part of the daemon shares.
pub(crate) struct Daemon {
    config: Config,
    objects: objects::Objects,
    images: guise_image::Store,
    table: table::Table,
    events: events::Events,
    networks: networks::Networks,
    pools: pool::Pools,
    tasks: tasks::Tasks,
    audit: audit::Audit,
    /// Where other hosts reach it.
    door: Option<server::Door>,
}

/// Serves until a signal asks to end. Workers are left running.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let lock = take_place(&config)?;
    let store = EmbeddedStore::open(&config.state.join("state.redb"))?;
    let (remote, door) = match &config.listen {
        Some(listen) => {
            let (remote, door) = server::Remote::open(listen, &config.tls()).await?;
            (Some(remote), Some(door))
        }
        None => (None, None),
    };
    let daemon = Arc::new(Daemon {
        objects: objects::Objects::new(Arc::new(store), pool::Ballast::new(&config.state))?,
        images: guise_image::Store::open(&config.images)?,
        table: table::Table::default(),
        events: events::Events::default(),
        networks: networks::Networks::default(),
        pools: pool::Pools::new(config.disk),
        tasks: tasks::Tasks::default(),
        audit: audit::Audit::new(config.state.join("audit.log")),
        door,
        config,
    });
    reconcile::resume(&daemon)?;
    tasks::resume(&daemon)?;
    tokio::spawn(pool::watch(daemon.clone()));
    // Last: who can connect is served.
    let listener = listen(&daemon.config.socket())?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(io("listen for signals in", &daemon.config.run))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(io("listen for signals in", &daemon.config.run))?;
    let until = async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    tracing::info!("serving at {}", daemon.config.socket().display());
    if let Some(door) = &daemon.door {
        let by = door.fingerprint.as_deref().unwrap_or("this host only, without TLS");
        tracing::info!("serving at {} as well ({by})", door.address);
    }
    let socket = daemon.config.socket();
    server::serve(listener, remote, daemon.clone(), until).await;
    groups::settle(&daemon).await;
    // Before the lock: who finds the lock free finds no socket of somebody else.
    let _ = std::fs::remove_file(&socket);
    drop(lock);
    Ok(())
}

/// Makes the directories, and takes them if nobody else has.
fn take_place(config: &Config) -> Result<File, DaemonError> {
    const LONGEST: usize = 107;
    let socket = config.socket();
    let longest = config.instance_run("0123456789ab").join("program-00000.sock");
    if socket.as_os_str().len().max(longest.as_os_str().len()) > LONGEST {
        return Err(DaemonError::LongPath(longest));
    }
    for directory in [&config.state, &config.run] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io("make", directory))?;
    }
    let path = config.run.join("daemon.lock");
    let lock =
        OpenOptions::new().create(true).append(true).open(&path).map_err(io("open", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(DaemonError::Running(socket)),
        Err(error) => return Err(io("lock", path)(error.into())),
    }
    // Who it is, for people and scripts.
    lock.set_len(0)
        .and_then(|()| {
            std::io::Write::write_all(&mut &lock, format!("{}\n", std::process::id()).as_bytes())
        })
        .map_err(io("write", config.run.join("daemon.lock")))?;
    Ok(lock)
}

/// Makes the socket, in the place of one that a killed daemon left.
fn listen(socket: &Path) -> Result<UnixListener, DaemonError> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(io("listen at", socket))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(io("protect", socket))?;
    Ok(listener)
}
