//! What is known of each container, on disk.
//!
//! One directory per container below the state root, made with `mkdir` so that
//! two runtimes cannot both own a name:
//!
//! ```text
//! planned.json   this file's `State` before any cgroup is made: what a runtime that is killed
//!                meanwhile leaves behind can be found and deleted. Taken away once a
//!                program that was started right away runs
//! state.json     the same with the process, from the moment that it waits to be started:
//!                renamed when it is complete
//! config.json    the configuration as it was at creation
//! start.sock     there while the container waits to be started
//! ```
//!
//! Status is not stored but found out: a process that is gone means stopped, a
//! start socket means created. No file takes the place of another one: some file systems write
//! a file to disk before it does, which takes longer than making the container. Process ids are
//! checked against the start time of the process, so that a reused id is not taken for the
//! container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Saved};
use crate::error::{Context, Error, Result};
use crate::spec::{OCI_VERSION, Spec};
use crate::sys::clone::open_pidfd;
use crate::sys::files::read_text;

/// The state file's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub id: String,
    /// 0 while the container is being made.
    pub pid: i32,
    /// The process's start time in clock ticks since boot.
    pub start_time: u64,
    pub bundle: String,
    pub rootfs: String,
    /// RFC 3339.
    pub created: String,
    pub owner: u32,
    pub own_pid_namespace: bool,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    pub cgroups: Vec<Saved>,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The state as the specification shows it to hooks and callers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicState<'a> {
    pub oci_version: &'static str,
    pub id: &'a str,
    pub status: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    pub bundle: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub rootfs: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl State {
    /// The public form.
    pub fn public(&self, status: Status) -> PublicState<'_> {
        PublicState {
            oci_version: OCI_VERSION,
            id: &self.id,
            status: status.name(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
        }
    }

    /// The container's cgroups.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::from_saved(&self.cgroups)
    }

    /// Its first process, unless that has ended.
    pub fn process(&self) -> Option<OwnedFd> {
        if self.pid == 0 {
            return None;
        }
        let pidfd = open_pidfd(self.pid).ok()?;
        // Looked at after the descriptor was opened: if both fit, the
        // descriptor is of the process that the state names.
        (process_start_time(self.pid) == Some(self.start_time)).then_some(pidfd)
    }
}

/// The start time of a process that has not ended.
pub fn process_start_time(pid: i32) -> Option<u64> {
    let stat = read_text(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // The second field is the name, which may hold spaces and parentheses.
    let rest = &stat[stat.rfind(')')? + 2..];
    let fields: Vec<&str> = rest.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// All containers of one state root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One container's directory.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: String,
    directory: PathBuf,
}

const PLANNED: &str = "planned.json";
const STATE: &str = "state.json";
/// The latter until it holds.
const PREPARED: &str = "state.json.new";

/// A state that is written but does not hold yet.
#[derive(Debug)]
pub struct Prepared(OwnedFd);

impl Prepared {
    /// From here on it holds. A process that sees no files of the host any more can say so too.
    pub fn hold(self) -> Result<()> {
        rustix::fs::renameat(&self.0, PREPARED, &self.0, STATE).during(|| format!("name {STATE}"))
    }
}

impl Store {
    /// The store below a directory, which is made when needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Store { root: root.into() }
    }

    /// The directory that holds the containers' own.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where containers are kept unless something else is asked for.
    pub fn default_root() -> PathBuf {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
        if rustix::process::geteuid().is_root() && !crate::namespaces::in_user_namespace() {
            return PathBuf::from("/run/guise/oci");
        }
        match runtime {
            Some(directory) => PathBuf::from(directory).join("guise/oci"),
            None => {
                let uid = rustix::process::getuid().as_raw();
                PathBuf::from(format!("/tmp/guise-oci-{uid}"))
            }
        }
    }

    /// Takes a name.
    pub fn create(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        make_private(&self.root)?;
        self.check_owner()?;
        let directory = self.root.join(id);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => Ok(Entry { id: id.to_owned(), directory }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists(id.to_owned())),
            Err(e) => Err(e).during(|| format!("make {}", directory.display())),
        }
    }

    /// Finds a container.
    pub fn find(&self, id: &str) -> Result<Entry> {
        check_id(id)?;
        let directory = self.root.join(id);
        if directory.is_dir() {
            self.check_owner()?;
            Ok(Entry { id: id.to_owned(), directory })
        } else {
            Err(Error::NotFound(id.to_owned()))
        }
    }

    /// What another user has prepared, in a place that all can write to, is not believed.
    fn check_owner(&self) -> Result<()> {
        let stat =
            fs::metadata(&self.root).during(|| format!("look at {}", self.root.display()))?;
        let own = stat.uid() == rustix::process::geteuid().as_raw();
        if !own || stat.mode() & 0o022 != 0 {
            return Err(Error::unsupported(
                format!("{} as the state's root", self.root.display()),
                "others can write to it: say a directory of your own with --root",
            ));
        }
        Ok(())
    }

    /// All containers, by name.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).during(|| format!("list {}", self.root.display())),
        };
        let mut found: Vec<Entry> = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|id| check_id(id).is_ok())
            .map(|id| Entry { directory: self.root.join(&id), id })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }
}

impl Entry {
    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The socket on which the container waits to be started.
    pub fn start_socket(&self) -> PathBuf {
        self.file("start.sock")
    }

    /// Where the directory is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps the configuration.
    pub fn save_config(&self, text: &[u8]) -> Result<()> {
        fs::write(self.file("config.json"), text).during(|| "keep the configuration")
    }

    /// The configuration as it was at creation.
    pub fn config(&self) -> Result<Spec> {
        crate::spec::load_spec(&self.file("config.json")).map(|(spec, _)| spec)
    }

    /// Keeps what is known before anything is made.
    pub fn plan(&self, state: &State) -> Result<()> {
        self.write(PLANNED, state)
    }

    /// Takes away what was known before, once the state holds: what is gone while the program
    /// runs need not go at its end.
    pub fn forget_plan(&self) {
        let _ = fs::remove_file(self.file(PLANNED));
    }

    /// Where the state is going to be written, which holds from the moment that the caller says.
    pub fn will_hold(&self) -> Result<Prepared> {
        let directory = fs::File::open(&self.directory);
        let directory = directory.during(|| format!("open {}", self.directory.display()))?;
        Ok(Prepared(directory.into()))
    }

    /// Writes the state down.
    pub fn prepare(&self, state: &State) -> Result<()> {
        self.write(PREPARED, state)
    }

    fn write(&self, name: &str, state: &State) -> Result<()> {
        let text = serde_json::to_vec(state)
            .map_err(|source| Error::Json { what: name.into(), source })?;
        let file = self.file(name);
        fs::write(&file, text).during(|| format!("write {}", file.display()))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).during(|| format!("read {}", path.display())),
        }
    }

    /// Reads the state, that of a container that is being made included.
    pub fn load(&self) -> Result<Option<State>> {
        if let Some(text) = self.read(STATE)? {
            let what = || self.file(STATE).display().to_string();
            return serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| Error::Json { what: what(), source });
        }
        // One that is not complete comes of a runtime that had made nothing yet.
        let planned = self.read(PLANNED)?;
        Ok(planned.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Reads the state of a container that has been made.
    pub fn state(&self) -> Result<State> {
        self.load()?.filter(|s| s.pid != 0).ok_or_else(|| Error::State {
            id: self.id.clone(),
            status: "creating",
            wanted: "wait until it is created, or delete it with --force",
        })
    }

    /// What the container is doing.
    pub fn status(&self, state: &State) -> Status {
        if state.pid == 0 {
            return Status::Creating;
        }
        if state.process().is_none() {
            return Status::Stopped;
        }
        if self.start_socket().exists() {
            return Status::Created;
        }
        if state.cgroup().is_frozen() { Status::Paused } else { Status::Running }
    }

    /// Forgets the container.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).during(|| format!("remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Names that are one plain component of a path.
pub fn check_id(id: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.bytes().all(good) {
        return Err(Error::Id(id.to_owned()));
    }
    Ok(())
}

fn make_private(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .during(|| format!("make {}", directory.display()))
}

/// Now, as RFC 3339 in UTC.
pub fn timestamp() -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format_time(now.as_secs(), now.subsec_nanos())
}

/// Seconds since 1970 as a date, by counting 400-year cycles from 1 March.
pub fn format_time(seconds: u64, nanoseconds: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

#[cfg(test)]
mod tests;
