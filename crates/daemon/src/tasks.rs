//! Work that takes long: fetching, sending and building images.
//!
//! A task is in the store before it begins, and goes on with the next daemon when this one
//! is killed: what it does can be done twice, and what has been fetched already is kept. How
//! far it is lives in memory only. Few run at the same time; the others wait.

pub mod log;
mod progress;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guise_api::{self as api, ApiError, Code, Task, TaskState, Work};
use guise_build::{Build, Network, Output};
use guise_container::state::timestamp;
use guise_image::{Limits, Name, registry};
use tokio::sync::{Semaphore, watch};

use crate::changes::Changes;
use crate::{Daemon, DaemonError, pool, random};
use log::{Log, Told};
use progress::Meters;

/// How many run at the same time.
const AT_ONCE: usize = 4;
/// How many may wait or run, and how many that are over are remembered.
const MOST_OPEN: usize = 64;
const REMEMBERED: usize = 128;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// One task.
pub struct Entry {
    current: watch::Sender<Arc<Task>>,
    meters: Arc<Meters>,
}

impl Entry {
    pub fn task(&self) -> Arc<Task> {
        self.current.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Task>> {
        self.current.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Task)) -> Arc<Task> {
        self.current.send_modify(|task| change(Arc::make_mut(task)));
        self.task()
    }
}

/// By their ids.
type Entries = BTreeMap<String, Arc<Entry>>;

pub struct Tasks {
    entries: Mutex<Entries>,
    places: Semaphore,
}

impl Default for Tasks {
    fn default() -> Tasks {
        Tasks { entries: Mutex::default(), places: Semaphore::new(AT_ONCE) }
    }
}

/// Goes on with what an earlier daemon began.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), DaemonError> {
    for mut task in daemon.objects.tasks()? {
        let over = task.state.is_over();
        if !over {
            task.state = TaskState::Waiting;
        }
        let entry = add(&mut daemon.tasks.lock(), task);
        if !over {
            tokio::spawn(run(daemon.clone(), entry));
        }
    }
    Ok(())
}

/// Begins a task, unless the same one is under way: then it is that one.
pub async fn begin(
    daemon: &Arc<Daemon>,
    project: &str,
    by: &str,
    work: Work,
) -> Result<Arc<Entry>, ApiError> {
    for image in names(&work) {
        image.parse::<Name>().map_err(|error| ApiError::invalid(error.to_string()))?;
    }
    match &work {
        Work::Build { build } => {
            check_build(build)?;
            pool::admit(daemon, pool::Kept::Images, "the image is not built")?;
        }
        Work::Pull { image, .. } => {
            pool::admit(daemon, pool::Kept::Images, &format!("{image} is not fetched"))?;
        }
        Work::Push { .. } => {}
    }
    let task = Task {
        id: random::digits(12)?,
        project: project.to_owned(),
        by: by.to_owned(),
        work,
        state: TaskState::Waiting,
        created: timestamp(),
        finished: None,
        done_bytes: 0,
        total_bytes: 0,
        note: String::new(),
        result: None,
        error: None,
    };
    let (entry, forget) = match daemon.tasks.place_for(task)? {
        Place::New(entry, forget) => (entry, forget),
        Place::UnderWay(entry) => return Ok(entry),
    };
    forget.iter().for_each(|id| log::forget(&daemon.config.state, id));
    if let Err(error) = daemon.objects.keep_task(&entry.task(), &forget).await {
        daemon.tasks.lock().remove(&entry.task().id);
        return Err(error);
    }
    tokio::spawn(run(daemon.clone(), entry.clone()));
    Ok(entry)
}

fn names(work: &Work) -> Vec<&String> {
    match work {
        Work::Pull { image, .. } => vec![image],
        Work::Push { image, to } => std::iter::once(image).chain(to).collect(),
        Work::Build { build } => build.tags.iter().collect(),
    }
}

/// Refuses what can be no build before there is a task of it.
fn check_build(build: &api::Build) -> Result<(), ApiError> {
    for path in std::iter::once(&build.context).chain(&build.containerfile) {
        if !Path::new(path).is_absolute() {
            return Err(ApiError::invalid(format!("{path:?} is no absolute path"))
                .hint("name folders and files of the daemon's host by their whole paths"));
        }
    }
    let found = std::fs::metadata(&build.context);
    let wrong = match found {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "it is no folder".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(ApiError::invalid(format!("the context {}: {wrong}", build.context)))
}

enum Place {
    /// With the ids of those that are remembered no longer.
    New(Arc<Entry>, Vec<String>),
    UnderWay(Arc<Entry>),
}

fn add(entries: &mut Entries, task: Task) -> Arc<Entry> {
    let id = task.id.clone();
    let current = watch::Sender::new(Arc::new(task));
    let entry = Arc::new(Entry { current, meters: Arc::default() });
    entries.insert(id, entry.clone());
    entry
}

impl Tasks {
    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().cloned().collect()
    }

    pub fn find(&self, id: &str) -> Result<Arc<Entry>, ApiError> {
        self.lock().get(id).cloned().ok_or_else(|| {
            ApiError::new(Code::NotFound, format!("there is no task {id}"))
                .hint("guise task ls lists them")
        })
    }

    fn place_for(&self, task: Task) -> Result<Place, ApiError> {
        let mut entries = self.lock();
        let mut over = Vec::new();
        let mut open = 0;
        for entry in entries.values() {
            let other = entry.task();
            if other.state.is_over() {
                over.push((other.finished.clone(), other.id.clone()));
                continue;
            }
            let same = other.work == task.work && other.project == task.project;
            if same && other.state != TaskState::Cancelling {
                return Ok(Place::UnderWay(entry.clone()));
            }
            open += 1;
        }
        if open >= MOST_OPEN {
            return Err(ApiError::new(Code::Exhausted, format!("{open} tasks are under way"))
                .hint("wait for one of them, or cancel it: guise task ls"));
        }
        over.sort();
        let surplus = over.len().saturating_sub(REMEMBERED);
        let forget: Vec<String> = over.into_iter().take(surplus).map(|(_, id)| id).collect();
        for id in &forget {
            entries.remove(id);
        }
        Ok(Place::New(add(&mut entries, task), forget))
    }
}

/// Asks a task to end. What waits ends at once; what runs, where it next can.
pub async fn cancel(daemon: &Arc<Daemon>, entry: &Arc<Entry>) -> Result<Arc<Task>, ApiError> {
    let mut never_ran = false;
    entry.change(|task| match task.state {
        TaskState::Waiting => {
            task.state = TaskState::Cancelled;
            task.finished = Some(timestamp());
            never_ran = true;
        }
        TaskState::Running => task.state = TaskState::Cancelling,
        _ => {}
    });
    entry.meters.cancel();
    if never_ran {
        daemon.objects.keep_task(&entry.task(), &[]).await?;
    }
    Ok(entry.task())
}

async fn run(daemon: Arc<Daemon>, entry: Arc<Entry>) {
    let Ok(_place) = daemon.tasks.places.acquire().await else { return };
    let mut mine = false;
    let task = entry.change(|task| {
        mine = task.state == TaskState::Waiting;
        if mine {
            task.state = TaskState::Running;
        }
    });
    if !mine {
        return;
    }
    tell(&daemon.objects.changes, &task);
    let (working, doing, meters) = (daemon.clone(), task.clone(), entry.meters.clone());
    let mut done = tokio::task::spawn_blocking(move || perform(&working, &doing, &meters));
    let ended = loop {
        tokio::select! {
            ended = &mut done => break ended,
            () = tokio::time::sleep(TELL_EVERY) => {
                let (done_bytes, total_bytes, note) = entry.meters.read();
                entry.current.send_if_modified(|task| {
                    let news = (task.done_bytes, task.total_bytes) != (done_bytes, total_bytes)
                        || task.note != note;
                    if news {
                        let task = Arc::make_mut(task);
                        (task.done_bytes, task.total_bytes, task.note) =
                            (done_bytes, total_bytes, note);
                    }
                    news
                });
            }
        }
    };
    let (done_bytes, total_bytes, note) = entry.meters.read();
    let task = entry.change(|task| {
        (task.done_bytes, task.total_bytes, task.note) = (done_bytes, total_bytes, note);
        task.finished = Some(timestamp());
        match ended {
            Ok(Ok(digest)) => {
                task.state = TaskState::Done;
                task.result = Some(digest);
            }
            Ok(Err(_)) if task.state == TaskState::Cancelling => {
                task.state = TaskState::Cancelled;
            }
            Ok(Err(error)) => {
                task.state = TaskState::Failed;
                task.error = Some(error);
            }
            Err(error) => {
                task.state = TaskState::Failed;
                task.error = Some(ApiError::internal(error));
            }
        }
    });
    match (&task.work, &task.result) {
        (Work::Pull { image, .. }, Some(digest)) => {
            daemon.events.of_host("image", digest, image, "pulled");
        }
        (Work::Build { build }, Some(digest)) => {
            for tag in &build.tags {
                daemon.events.of_host("image", digest, tag, "built");
            }
        }
        _ => {}
    }
    // Not kept, it is done again by the next daemon.
    if let Err(error) = daemon.objects.keep_task(&task, &[]).await {
        tracing::warn!("task {}: {error}", task.id);
    }
}

fn tell(changes: &Changes, task: &Task) {
    changes.is("task", &task.project, &task.id, 0, task);
}

/// Does the work; the image's digest.
fn perform(daemon: &Daemon, task: &Task, meters: &Meters) -> Result<String, ApiError> {
    let failed = |error: guise_image::Error| ApiError::internal(error).exit_code(125);
    match &task.work {
        Work::Pull { image, missing } => {
            let name: Name = image.parse().map_err(failed)?;
            let pull = guise_image::Pull { missing: *missing, ..guise_image::Pull::default() };
            Ok(pull.run(&daemon.images, &name, meters).map_err(failed)?.digest.to_string())
        }
        Work::Push { image, to } => {
            let name: Name = image.parse().map_err(failed)?;
            let to: Name = to.as_ref().unwrap_or(image).parse().map_err(failed)?;
            let digest = registry::push(&daemon.images, &name, &to, meters).map_err(failed)?;
            Ok(digest.to_string())
        }
        Work::Build { build } => perform_build(daemon, &task.id, build, meters),
    }
}

fn perform_build(
    daemon: &Daemon,
    id: &str,
    wanted: &api::Build,
    meters: &Meters,
) -> Result<String, ApiError> {
    let log = Log::create(&daemon.config.state, id)
        .map_err(|error| ApiError::host("make the task's log", &error))?;
    let log = Arc::new(log);
    let context = PathBuf::from(&wanted.context);
    let tags: Result<Vec<Name>, _> = wanted.tags.iter().map(|tag| tag.parse()).collect();
    let build = Build {
        containerfile: match &wanted.containerfile {
            Some(file) => PathBuf::from(file),
            None => Build::containerfile_of(&context),
        },
        context,
        tags: tags.map_err(|error: guise_image::Error| ApiError::invalid(error.to_string()))?,
        arguments: wanted.arguments.clone(),
        target: wanted.target.clone(),
        no_cache: wanted.no_cache,
        pull: wanted.pull,
        network: match wanted.network {
            api::BuildNetwork::Host => Network::Host,
            api::BuildNetwork::None => Network::None,
        },
        limits: Limits::default(),
        output: Output::To(log.clone()),
        runtime: "/proc/self/exe".into(),
        interrupted: meters.cancelled_flag(),
    };
    let built = build.run(&daemon.images, &Told { meters, log: &log });
    let descriptor = built.map_err(|error| match error {
        guise_build::Error::NeedsRoot => {
            ApiError::new(Code::Unsupported, "building needs a daemon of root")
                .hint("it mounts overlayfs, and commands run in containers")
        }
        error => ApiError::invalid(error.to_string()),
    })?;
    Ok(descriptor.digest.to_string())
}
