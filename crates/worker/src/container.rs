//! The container form: the image's layers under a writable one, in namespaces of its
//! own, by way of the OCI runtime.
//!
//! It is two processes. The keeper lives in a mount namespace (and, for plain users, a user
//! namespace) where the root file system is mounted, so that mounts go with the last process
//! of the instance and are never seen on the host; it starts programs and has the rights for
//! that. The worker is shut in, asks it, and does everything that touches what a guest wrote:
//! streams, terminals, the log, networks, files that say who users are.
//!
//! ```text
//! root      the root file system
//! own_disk  where what it writes goes, if that is limited
//! keeper    the process that has the rights
//! line      what the two say to each other
//! program   a program inside, to the worker
//! oci       a program inside, to the keeper
//! spec      the container's configuration
//! user      who a program runs as
//! network   the container's networks
//! copies    files in and out
//! ```

mod copies;
mod keeper;
mod line;
mod network;
mod oci;
pub(crate) mod own_disk;
mod program;
pub(crate) mod root;
mod spec;
mod user;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use guise_container::jail::split;

use crate::body::{Body, BodyError, Process, Program, Session, Stats, failed, system};
use crate::jail;
use crate::job::Job;
pub use copies::copy;
use keeper::Keeper;
use line::{Ask, Told};
use program::Inside;
use user::{Accounts, User};

pub struct Container {
    keeping: Keeping,
    program: Program,
    workload: OnceLock<Arc<Inside>>,
    /// The namespace for the workload, until that starts.
    namespace: Mutex<Option<OwnedFd>>,
    network: Mutex<Option<network::Driven>>,
}

/// The way to the keeper.
#[derive(Clone)]
struct Keeping(Arc<UnixStream>);

impl Keeping {
    fn ask(&self, ask: &Ask) -> Result<UnixStream, BodyError> {
        line::connect(&self.0)
            .and_then(|asked| line::say(&asked, ask).map(|()| asked))
            .map_err(system("ask the container's keeper"))
    }

    fn told(&self, asked: &UnixStream) -> Result<Told, BodyError> {
        match line::hear(asked).map_err(system("listen to the container's keeper"))? {
            Told::Failed(refusal) => Err(refusal.into()),
            told => Ok(told),
        }
    }

    /// Has something done.
    fn done(&self, ask: &Ask) -> Result<(), BodyError> {
        self.told(&self.ask(ask)?).map(drop)
    }
}

impl Container {
    /// Makes everything but the processes of the container, and shuts this process in, which
    /// leaves another one behind as its keeper. To be called while this process has one thread;
    /// `map` has somebody outside map the ids of a plain user's namespace.
    pub fn prepare(
        job: &Job,
        layers: &[PathBuf],
        map: impl FnOnce() -> io::Result<()>,
    ) -> Result<(Container, Vec<String>), BodyError> {
        let mut warnings = Vec::new();
        let identity = jail::identity(job);
        root::enter_namespaces(map)?;
        let own = own_disk::folder(job, "container", &mut warnings)?;
        let mounted = root::mount(job, layers, &own, None)?;
        root::write_etc(job, &mounted)?;
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .map_err(|e| system("become a subreaper")(e.into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(system("make a pair of sockets"))?;
        let keeper = Keeper::new(job, mounted);
        if let Some(worker) = split(theirs.as_fd()).map_err(failed)? {
            keeper.keep(&theirs, &worker);
        }
        drop((keeper, theirs));
        let plug = network::plug(job)?;
        // Nobody outside can map ids of a process that he does not know: where it is no stranger
        // to the host, it makes the rest of its namespaces in the one that it is in.
        let entered = jail::of_container(job, identity).enter(|| Ok(())).map_err(failed)?;
        warnings.extend(jail::warnings(entered));
        let (namespace, network) = plug.map(network::Plug::drive).transpose()?.unzip();
        let container = Container {
            keeping: Keeping(Arc::new(ours)),
            program: job.program.clone(),
            workload: OnceLock::new(),
            namespace: Mutex::new(namespace),
            network: Mutex::new(network),
        };
        Ok((container, warnings))
    }

    fn workload(&self) -> Result<&Arc<Inside>, BodyError> {
        self.workload.get().ok_or(BodyError::NotRunning)
    }

    /// Who a program runs as.
    fn user(&self, said: &str) -> Result<User, BodyError> {
        let asked = self.keeping.ask(&Ask::Accounts)?;
        let mut accounts = Accounts { users: None, groups: None };
        if let Told::Accounts { users, groups } = self.keeping.told(&asked)?
            && (users || groups)
        {
            let count = usize::from(users) + usize::from(groups);
            let files = line::take_over(&asked, count).map_err(system("take the image's files"))?;
            let mut files = files.into_iter().map(File::from);
            accounts.users = if users { files.next() } else { None };
            accounts.groups = files.next();
        }
        accounts.find(said)
    }

    /// The stream of an archive, and the connection on which it is told how it went.
    fn copy(&self, ask: &Ask) -> Result<(File, UnixStream), BodyError> {
        let asked = self.keeping.ask(ask)?;
        self.keeping.told(&asked)?;
        let stream = line::take_over(&asked, 1).map_err(system("take an archive's stream"))?.pop();
        Ok((File::from(stream.ok_or(BodyError::NotRunning)?), asked))
    }
}

impl Body for Container {
    fn start(&self) -> Result<Session, BodyError> {
        let user = self.user(&self.program.user)?;
        let namespace = self.namespace.lock().unwrap_or_else(PoisonError::into_inner).take();
        let asked = self.keeping.ask(&Ask::Start { user, plugged: namespace.is_some() })?;
        if let Some(namespace) = namespace {
            line::hand_over(&asked, &[namespace.as_fd()])
                .map_err(system("ask the container's keeper"))?;
        }
        let (session, inside) = Inside::take(&self.keeping, asked, self.program.stdin)?;
        // Called once, so there is room.
        let _ = self.workload.set(inside);
        Ok(session)
    }

    fn remarks(&self) -> Vec<String> {
        self.workload().map(|workload| workload.remarks.clone()).unwrap_or_default()
    }

    fn open(&self, program: &Program) -> Result<Session, BodyError> {
        self.workload()?;
        let user = self.user(&program.user)?;
        let asked = self.keeping.ask(&Ask::Open { program: program.clone(), user })?;
        Inside::take(&self.keeping, asked, program.stdin).map(|(session, _)| session)
    }

    fn pause(&self) -> Result<(), BodyError> {
        self.keeping.done(&Ask::Pause)
    }

    fn resume(&self) -> Result<(), BodyError> {
        self.keeping.done(&Ask::Resume)
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        match self.keeping.told(&self.keeping.ask(&Ask::Stats)?)? {
            Told::Stats(stats) => Ok(stats),
            _ => Err(BodyError::Failed("the keeper told no numbers".to_owned())),
        }
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        self.keeping.done(&Ask::Stop { grace })?;
        self.workload()?.wait().map(drop)
    }

    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
        let (mut stream, asked) = self.copy(&Ask::CopyOut { path: path.to_owned() })?;
        io::copy(&mut stream, archive).map_err(system("write the archive"))?;
        self.keeping.told(&asked).map(drop)
    }

    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
        let (mut stream, asked) = self.copy(&Ask::CopyIn { path: path.to_owned() })?;
        let copied = io::copy(archive, &mut stream);
        drop(stream);
        // Who has stopped reading says why.
        self.keeping.told(&asked)?;
        copied.map(drop).map_err(system("read the archive"))
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        let deleted = self.keeping.done(&Ask::CleanUp);
        // Ports and names are free before anybody hears of the end.
        drop(self.network.lock().unwrap_or_else(PoisonError::into_inner).take());
        deleted
    }

    fn leave(&self, _: &Path) {
        // The name was made before this process was shut in, where it is not seen.
        let _ = self.keeping.done(&Ask::Leave);
    }
}
