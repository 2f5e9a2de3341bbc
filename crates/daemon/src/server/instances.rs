//! Instances: what is wanted of them.

use axum::extract::State;
use axum::{Extension, Json};
use guise_api::{
    ApiError, Code, Create, Ended, Explanation, Guise, Instance, InstanceSpec, InstanceStatus,
    Network, Page, Paging, Phase, Stats,
};
use guise_container::state::timestamp;
use guise_worker::body::Size;
use guise_worker::control::{Reply, Request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::answer::{Answer, Body, Found, MadeAnswer, Query, Refused, made};
use super::guard::Caller;
use super::volumes;
use crate::admission::processors;
use crate::choose::{self, Content};
use crate::named::Named;
use crate::table::{Entry, Gone, Keep};
use crate::{ids, launch, link, pool, random, reconcile};

const LONGEST_NAME: usize = 63;

/// Names of instances and volumes: what fits host names, file names and URLs.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= LONGEST_NAME && name.bytes().all(good) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{name:?} is no name"))
        .hint("names are up to 63 letters, digits, - _ and ., and begin with a letter or digit"))
}

fn check(spec: &InstanceSpec) -> Result<(), ApiError> {
    let invalid = |what: String| Err(ApiError::invalid(what));
    processors::check(&spec.resources)?;
    const LEAST_MEMORY: u64 = 4 << 20;
    if spec.resources.memory_bytes.is_some_and(|bytes| bytes < LEAST_MEMORY) {
        return invalid("no program runs in less than 4 MiB of memory".to_owned());
    }
    // What a file system of its own takes for itself. A disk that is there has its own least size.
    const LEAST_DISK: u64 = 32 << 20;
    if spec.disk().is_none() && spec.resources.disk_bytes.is_some_and(|bytes| bytes < LEAST_DISK) {
        return invalid("no file system fits in less than 32 MiB of disk space".to_owned());
    }
    for mount in &spec.mounts {
        if !mount.target.starts_with('/') || mount.target.contains('\0') {
            return invalid(format!("{:?} is no absolute path inside", mount.target));
        }
        if let Some(volume) = mount.volume() {
            check_name(volume)?;
        }
    }
    if let Some(network) = &spec.join {
        check_name(network)?;
    }
    if spec.join.is_some() && spec.network == Network::Host {
        return invalid("the host's own network has no named networks beside it".to_owned());
    }
    if let Some(name) = &spec.hostname {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(good) {
            return invalid(format!("{name:?} is no host name"));
        }
    }
    if let Some(signal) = &spec.stop_signal
        && guise_container::runtime::parse_signal(signal).is_none()
    {
        return invalid(format!("{signal:?} is no signal"));
    }
    if spec.env.iter().any(|entry| entry.starts_with('=') || entry.contains('\0')) {
        return invalid("a variable of the environment has no name".to_owned());
    }
    if spec.timeout_seconds == Some(0) {
        return invalid("in 0 seconds nothing runs".to_owned());
    }
    if spec.remove_on_exit && spec.restart != guise_api::Restart::No {
        return invalid("what goes when it ends cannot be restarted then".to_owned());
    }
    Ok(())
}

/// A name for an instance that was given none: the image's last part and some digits.
fn made_up(image: &str) -> Result<String, ApiError> {
    let last = image.trim_end_matches('/').rsplit('/').next().unwrap_or(image);
    let base: String = last
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(LONGEST_NAME - 5)
        .collect();
    let base =
        if base.starts_with(|c: char| c.is_ascii_alphanumeric()) { base } else { "i".into() };
    Ok(format!("{base}-{}", random::digits(4)?))
}

/// Instances of the project.
#[utoipa::path(
    get, path = "/v1/instances", params(Paging),
    responses((status = 200, body = Page<Instance>))
)]
pub async fn list(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Instance>> {
    // Before the list: what changes meanwhile is told again.
    let revision = daemon.objects.revision()?;
    let all = daemon.table.all().into_iter().map(|entry| Instance::clone(&entry.instance()));
    let seen = all.filter(|instance| caller.sees(&instance.project)).collect();
    Ok(Json(paging.of(seen, revision, |instance| instance.id.clone())))
}

/// Makes an instance. One with `running` in its spec starts at once.
#[utoipa::path(
    post, path = "/v1/instances", request_body = Create,
    responses(
        (status = 200, body = Instance), (status = 400, body = ApiError),
        (status = 404, body = ApiError), (status = 409, body = ApiError),
    )
)]
pub async fn create(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<Create>,
) -> MadeAnswer<Instance> {
    let Create { name, key, mut spec, attach, rows, columns } = asked;
    check(&spec)?;
    check_reach(&caller, &spec)?;
    let project = caller.project;
    let key = key.map(|key| check_name(&key).map(|()| Named::new(&project, key))).transpose()?;
    if let Some(key) = &key
        && let Some(id) = daemon.objects.request(key)?
    {
        return made_before(&daemon, &id, &spec);
    }
    let name = match name {
        Some(name) => name,
        None => made_up(&spec.image)?,
    };
    check_name(&name)?;
    let taken = |other: &Instance| other.name == name && other.project == project;
    if daemon.table.all().iter().any(|entry| taken(&entry.instance())) {
        return Err(Refused(
            ApiError::new(Code::Conflict, format!("the name {name} is taken"))
                .hint(format!("choose another --name, or remove it: guise rm {name}")),
        ));
    }
    pool::admit(&daemon, pool::Kept::Instances, &format!("{name} is not made"))?;
    // Only who asks for a machine gets one.
    if spec.guise == Guise::Microvm {
        launch::check_kernel(&daemon)?;
    }
    // It is not worth fetching what cannot be run.
    launch::check_coming(&daemon, &spec)?;
    if let Some(network) = &spec.join
        && daemon.objects.network(&Named::new(&project, network))?.is_none()
    {
        return Err(no_network(network).into());
    }
    for mount in &spec.mounts {
        if let Some(volume) = mount.volume() {
            volumes::ensure(&daemon, &Named::new(&project, volume)).await?;
        }
    }
    let id = random::digits(12)?;
    let pinned = launch::pin_image(&daemon, &id, &spec).await.and_then(|image| {
        let content = image.as_ref().map_or(Content::Disk, Content::of);
        let chosen = choose::choose(&spec, content);
        choose::check(chosen.guise, content).map(|()| (image, chosen))
    });
    let (image, chosen) = match pinned {
        Ok(pinned) => pinned,
        Err(error) => {
            reconcile::abandon(&daemon, &id).await;
            return Err(error.into());
        }
    };
    spec.starts = u64::from(spec.running);
    let mut instance = Instance {
        id,
        name,
        project,
        created: timestamp(),
        generation: 1,
        revision: 0,
        removing: false,
        spec,
        status: InstanceStatus {
            guise: chosen.guise,
            chosen_because: chosen.reasons.join("; "),
            digest: image.map(|image| image.descriptor.digest.to_string()).unwrap_or_default(),
            ..InstanceStatus::default()
        },
    };
    let kept = daemon.objects.create(&mut instance, key.as_ref()).await;
    if !matches!(kept, Ok(true)) {
        reconcile::abandon(&daemon, &instance.id).await;
        kept?;
        return Err(ApiError::new(Code::Conflict, "a request with this key is under way").into());
    }
    daemon.events.instance(&instance, "created", None);
    let entry = Entry::new(instance.clone());
    if attach {
        entry.expect_attach();
        *entry.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(Size { rows, columns });
    }
    daemon.table.insert(entry.clone());
    reconcile::begin(&daemon, entry);
    made(&instance.name.clone(), instance)
}

/// Refuses what reaches the host itself to those who may not.
fn check_reach(caller: &Caller, spec: &InstanceSpec) -> Result<(), ApiError> {
    if let Some(mount) = spec.mounts.iter().find(|mount| mount.volume().is_none()) {
        caller.check_host(&format!("a path of the host ({})", mount.source))?;
    }
    if let Some(path) = spec.path() {
        caller.check_host(&format!("a file of the host ({})", path.display()))?;
    }
    if spec.network == Network::Host {
        caller.check_host("the host's own network")?;
    }
    Ok(())
}

pub fn no_network(name: &str) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is no network {name}"))
        .hint(format!("make it: guise network create {name}"))
        .exit_code(125)
}

/// What an earlier request with the same key has made.
fn made_before(daemon: &App, id: &str, spec: &InstanceSpec) -> MadeAnswer<Instance> {
    let other = |why: String| {
        Err(Refused(ApiError::new(Code::Conflict, why).hint("for another one, choose another key")))
    };
    let Some(entry) = daemon.table.get(id) else {
        return other(format!(
            "this request has made instance {id} before, which has been removed since"
        ));
    };
    let instance = entry.instance();
    // What has been changed since it was made is no part of what was asked for then.
    let InstanceSpec { running, paused, starts, .. } = instance.spec;
    let asked = InstanceSpec { running, paused, starts, ..spec.clone() };
    if asked != instance.spec {
        return other(format!("a request with this key has made instance {id}, which is another"));
    }
    made(&instance.name, Instance::clone(&instance))
}

/// Which guise an instance would get here, and why.
#[utoipa::path(
    post, path = "/v1/explain", request_body = InstanceSpec,
    responses((status = 200, body = Explanation), (status = 400, body = ApiError))
)]
pub async fn explain(
    State(daemon): State<App>,
    Body(spec): Body<InstanceSpec>,
) -> Answer<Explanation> {
    check(&spec)?;
    launch::check_coming(&daemon, &spec)?;
    let content = launch::content(&daemon, &spec);
    let mut explained = choose::choose(&spec, content);
    choose::check(explained.guise, content)?;
    if explained.guise == Guise::Container {
        explained.reasons.extend(ids::told());
    }
    Ok(Json(explained))
}

/// An instance, by its name, its id, or the beginning of one.
#[utoipa::path(
    get, path = "/v1/instances/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Instance), (status = 404, body = ApiError))
)]
pub async fn inspect(Found(entry): Found) -> Answer<Instance> {
    Ok(Json(Instance::clone(&entry.instance())))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Removal {
    /// Although it runs.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
    /// Answer when it has gone; otherwise at once.
    #[serde(default = "yes")]
    #[param(required = false)]
    wait: bool,
}

fn yes() -> bool {
    true
}

/// Removes an instance and what it wrote.
#[utoipa::path(
    delete, path = "/v1/instances/{name}",
    params(("name" = String, Path), Removal),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError), (status = 422, body = ApiError),
    )
)]
pub async fn remove(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(removal): Query<Removal>,
) -> Answer<Instance> {
    let mark = |instance: &mut Instance| {
        if instance.status.phase.is_alive() && !removal.force {
            return Err(ApiError::new(Code::State, format!("{} runs", instance.name))
                .hint(format!("stop it first, or force it: guise rm -f {}", instance.name)));
        }
        instance.removing = true;
        instance.spec.running = false;
        Ok(())
    };
    let marked = entry.change(&daemon.objects, Keep::Durably, mark).await?;
    hurry(&daemon, &marked, 0);
    if !removal.wait {
        return Ok(Json(Instance::clone(&marked)));
    }
    // What kept it before may be over.
    entry.stays(None);
    entry.wake.notify_one();
    tokio::select! {
        gone = entry.until(|_| false) => Ok(Json(Instance::clone(&gone))),
        why = entry.until_it_stays() => Err(why.into()),
    }
}

/// Wants this life to have begun, or without a number: another one, unless it lives.
pub async fn want_running(daemon: &App, entry: &Entry, life: Option<u64>) -> Result<u64, ApiError> {
    let mut wanted = 0;
    let change = |instance: &mut Instance| {
        if instance.removing {
            return Err(ApiError::new(Code::State, format!("{} is being removed", instance.name)));
        }
        let coming = instance.coming_life();
        wanted = life.unwrap_or(coming);
        if wanted > coming {
            return Err(no_such_life(instance, wanted));
        }
        if wanted == coming {
            instance.spec.starts = wanted;
            instance.spec.running = true;
            instance.spec.paused = false;
        }
        Ok(())
    };
    entry.change(&daemon.objects, Keep::Durably, change).await?;
    Ok(wanted)
}

fn no_such_life(instance: &Instance, life: u64) -> ApiError {
    let next = instance.coming_life();
    ApiError::invalid(format!("{} cannot begin life {life}: the next is {next}", instance.name))
}

/// Waits until this life has begun, or could not.
async fn begun(entry: &Entry, life: u64, wait: bool) -> Answer<Instance> {
    if !wait {
        return Ok(Json(Instance::clone(&entry.instance())));
    }
    let instance = entry
        .until(|instance| {
            let status = &instance.status;
            status.starts > life
                || status.starts == life
                    && !matches!(status.phase, Phase::Starting | Phase::Stopping)
        })
        .await;
    match &instance.status.error {
        Some(error) if instance.status.phase == Phase::Failed => Err(Refused(error.clone())),
        _ => Ok(Json(Instance::clone(&instance))),
    }
}

/// Which life is wanted: a request that says so may be repeated.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Life {
    #[serde(default)]
    life: Option<u64>,
    /// Answer when it has begun, or could not; otherwise at once.
    #[serde(default = "yes")]
    #[param(required = false)]
    wait: bool,
}

/// Starts an instance.
#[utoipa::path(
    post, path = "/v1/instances/{name}/start",
    params(("name" = String, Path), Life),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 422, body = ApiError),
    )
)]
pub async fn start(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(asked): Query<Life>,
) -> Answer<Instance> {
    let life = want_running(&daemon, &entry, asked.life).await?;
    begun(&entry, life, asked.wait).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Patience {
    /// Seconds until it is killed, a day at the most.
    #[serde(default)]
    #[param(maximum = 86400)]
    seconds: Option<u32>,
    /// For a restart: which life is wanted. A request that says so may be repeated.
    #[serde(default)]
    life: Option<u64>,
    /// Answer when it is done; otherwise at once.
    #[serde(default = "yes")]
    #[param(required = false)]
    wait: bool,
}

impl Patience {
    fn check(&self) -> Result<(), ApiError> {
        const DAY: u32 = 24 * 60 * 60;
        match self.seconds {
            Some(seconds) if seconds > DAY => {
                Err(ApiError::invalid(format!("{seconds} seconds are more than a day")))
            }
            _ => Ok(()),
        }
    }

    /// How many seconds this leaves an instance.
    fn with(&self, instance: &Instance) -> u32 {
        self.seconds.unwrap_or_else(|| reconcile::usual_grace(instance))
    }
}

/// An instance that is asked to end already has only so many seconds left from now on.
fn hurry(daemon: &App, instance: &Instance, seconds: u32) {
    if instance.status.phase != Phase::Stopping {
        return;
    }
    let socket = daemon.config.place(&instance.id).socket();
    let request = Request::Stop { grace_milliseconds: u64::from(seconds) * 1000 };
    // Its task waits for the end already, and hears of it from the worker.
    tokio::spawn(async move { link::request(&socket, &request).await });
}

/// Asks an instance to end, and ends it when it does not.
#[utoipa::path(
    post, path = "/v1/instances/{name}/stop",
    params(("name" = String, Path), Patience),
    responses((status = 200, body = Instance), (status = 404, body = ApiError))
)]
pub async fn stop(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(patience): Query<Patience>,
) -> Answer<Instance> {
    patience.check()?;
    let change = |instance: &mut Instance| {
        instance.spec.running = false;
        instance.status.grace_seconds = patience.seconds;
        if instance.status.phase == Phase::Waiting {
            instance.status.phase = Phase::Exited;
        }
        Ok(())
    };
    let asked = entry.change(&daemon.objects, Keep::Durably, change).await?;
    hurry(&daemon, &asked, patience.with(&asked));
    let answer = if patience.wait {
        entry.until(|instance| !instance.status.phase.is_alive()).await
    } else {
        asked
    };
    Ok(Json(Instance::clone(&answer)))
}

/// Stops an instance and starts it again.
#[utoipa::path(
    post, path = "/v1/instances/{name}/restart",
    params(("name" = String, Path), Patience),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 422, body = ApiError),
    )
)]
pub async fn restart(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(patience): Query<Patience>,
) -> Answer<Instance> {
    patience.check()?;
    let mut life = 0;
    let change = |instance: &mut Instance| {
        let next = instance.status.starts.max(instance.spec.starts) + 1;
        life = patience.life.unwrap_or(next);
        if life > next {
            return Err(no_such_life(instance, life));
        }
        if life == next {
            instance.status.grace_seconds = patience.seconds;
            instance.spec.starts = life;
            instance.spec.running = true;
            instance.spec.paused = false;
        }
        Ok(())
    };
    let asked = entry.change(&daemon.objects, Keep::Durably, change).await?;
    hurry(&daemon, &asked, patience.with(&asked));
    begun(&entry, life, patience.wait).await
}

/// The control socket of an instance that runs.
pub fn socket_of(daemon: &App, entry: &Entry) -> Result<std::path::PathBuf, ApiError> {
    let instance = entry.instance();
    if !instance.status.phase.is_alive() {
        let phase = instance.status.phase.name();
        return Err(ApiError::new(
            Code::State,
            format!("{} does not run: it is {phase}", instance.name),
        )
        .hint(format!("start it: guise start {}", instance.name)));
    }
    Ok(daemon.config.place(&entry.id).socket())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Signal {
    signal: String,
}

/// Sends a signal to an instance's program.
#[utoipa::path(
    post, path = "/v1/instances/{name}/kill",
    params(("name" = String, Path), Signal),
    responses(
        (status = 200), (status = 400, body = ApiError), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn kill(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(asked): Query<Signal>,
) -> Answer<()> {
    let signal = guise_container::runtime::parse_signal(&asked.signal)
        .ok_or_else(|| ApiError::invalid(format!("{:?} is no signal", asked.signal)))?;
    let socket = socket_of(&daemon, &entry)?;
    link::request(&socket, &Request::Signal(signal)).await?;
    Ok(Json(()))
}

async fn want_paused(daemon: &App, entry: &Entry, paused: bool) -> Answer<Instance> {
    socket_of(daemon, entry)?;
    let change = |instance: &mut Instance| {
        if instance.status.phase == Phase::Stopping {
            return Err(ApiError::new(Code::State, format!("{} is being stopped", instance.name)));
        }
        instance.spec.paused = paused;
        instance.status.error = None;
        Ok(())
    };
    entry.change(&daemon.objects, Keep::Durably, change).await?;
    let instance = entry
        .until(|instance| {
            let done = (instance.status.phase == Phase::Paused) == paused;
            done || instance.status.error.is_some() || !instance.status.phase.is_alive()
        })
        .await;
    match &instance.status.error {
        Some(error) => Err(Refused(error.clone())),
        None => Ok(Json(Instance::clone(&instance))),
    }
}

/// Stops an instance where it is.
#[utoipa::path(
    post, path = "/v1/instances/{name}/pause", params(("name" = String, Path)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn pause(State(daemon): State<App>, Found(entry): Found) -> Answer<Instance> {
    want_paused(&daemon, &entry, true).await
}

/// Lets a paused instance go on.
#[utoipa::path(
    post, path = "/v1/instances/{name}/resume", params(("name" = String, Path)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn resume(State(daemon): State<App>, Found(entry): Found) -> Answer<Instance> {
    want_paused(&daemon, &entry, false).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Renaming {
    to: String,
}

/// Gives an instance another name.
#[utoipa::path(
    post, path = "/v1/instances/{name}/rename",
    params(("name" = String, Path), Renaming),
    responses(
        (status = 200, body = Instance), (status = 400, body = ApiError),
        (status = 404, body = ApiError), (status = 409, body = ApiError),
    )
)]
pub async fn rename(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(renaming): Query<Renaming>,
) -> Answer<Instance> {
    check_name(&renaming.to)?;
    let before = entry.instance().name.clone();
    let change = |instance: &mut Instance| {
        instance.name = renaming.to;
        Ok(())
    };
    let instance = entry.change(&daemon.objects, Keep::Durably, change).await?;
    daemon.events.instance(&instance, "renamed", Some(format!("it was {before}")));
    Ok(Json(Instance::clone(&instance)))
}

/// Waits until the instance has ended, and its policy does not start it again.
#[utoipa::path(
    post, path = "/v1/instances/{name}/wait", params(("name" = String, Path)),
    responses((status = 200, body = Ended), (status = 404, body = ApiError))
)]
pub async fn wait(Found(entry): Found) -> Answer<Ended> {
    let _attached = entry.attach();
    let instance = entry.until(is_over).await;
    Ok(Json(end_of(&instance)))
}

/// Nothing of it runs or will by itself.
pub fn is_over(instance: &Instance) -> bool {
    let owed = instance.spec.running && instance.status.starts < instance.spec.starts;
    let ended = matches!(instance.status.phase, Phase::Exited | Phase::Failed | Phase::Created);
    instance.is_gone() || (ended && !owed)
}

pub fn end_of(instance: &Instance) -> Ended {
    let status = &instance.status;
    let failed = u8::from(status.error.is_some()) * 125;
    Ended {
        exit_code: status.exit_code.unwrap_or(failed),
        out_of_memory: status.out_of_memory,
        error: status.error.clone(),
    }
}

/// What an instance uses now.
#[utoipa::path(
    get, path = "/v1/instances/{name}/stats", params(("name" = String, Path)),
    responses(
        (status = 200, body = Stats), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn stats(State(daemon): State<App>, Found(entry): Found) -> Answer<Stats> {
    let socket = socket_of(&daemon, &entry)?;
    match link::request(&socket, &Request::Stats).await? {
        Reply::Stats(stats) => Ok(Json(reconcile::stats_of(&entry.instance(), stats))),
        _ => Err(ApiError::internal("the worker answered something else").into()),
    }
}
