//! Instances: what is wanted of them.

use axum::Json;
use axum::extract::{Path, Query, State};
use guise_api::{
    ApiError, Code, Create, Ended, Explanation, Guise, Instance, InstanceSpec, InstanceStatus,
    Network, Phase, Stats,
};
use guise_container::state::timestamp;
use guise_worker::body::Size;
use guise_worker::control::{Reply, Request};
use serde::Deserialize;

use super::App;
use super::answer::{Answer, Body, Refused};
use super::volumes;
use crate::choose::{self, Content};
use crate::table::{Entry, Gone, Keep};
use crate::{launch, link, reconcile};

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
    if let Some(cpus) = spec.resources.cpus {
        let host = std::thread::available_parallelism().map_or(1, usize::from);
        if !cpus.is_finite() || cpus < 0.01 {
            return invalid(format!("{cpus} processors are none"));
        }
        if cpus > host as f64 {
            return Err(ApiError::new(
                Code::Exhausted,
                format!("{cpus} processors were asked for, and this host has {host}"),
            )
            .hint(format!("ask for {host} at the most")));
        }
    }
    const LEAST_MEMORY: u64 = 4 << 20;
    if spec.resources.memory_bytes.is_some_and(|bytes| bytes < LEAST_MEMORY) {
        return invalid("no program runs in less than 4 MiB of memory".to_owned());
    }
    for mount in &spec.mounts {
        if !mount.target.starts_with('/') || mount.target.contains('\0') {
            return invalid(format!("{:?} is no absolute path inside", mount.target));
        }
        if let Some(volume) = mount.volume() {
            check_name(volume)?;
        }
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

/// Random bits as hexadecimal digits.
fn random(digits: usize) -> Result<String, ApiError> {
    let mut bytes = [0; 8];
    let mut source = std::fs::File::open("/dev/urandom").map_err(ApiError::internal)?;
    std::io::Read::read_exact(&mut source, &mut bytes).map_err(ApiError::internal)?;
    let mut text = format!("{:016x}", u64::from_ne_bytes(bytes));
    text.truncate(digits);
    Ok(text)
}

/// A name for an instance that was given none: the image's last part and some digits.
fn made_up(image: &str) -> Result<String, ApiError> {
    let last = image.rsplit('/').next().unwrap_or(image);
    let base: String = last
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(LONGEST_NAME - 5)
        .collect();
    let base =
        if base.starts_with(|c: char| c.is_ascii_alphanumeric()) { base } else { "i".into() };
    Ok(format!("{base}-{}", random(4)?))
}

#[utoipa::path(get, path = "/v1/instances", responses((status = 200, body = Vec<Instance>)))]
pub async fn list(State(daemon): State<App>) -> Json<Vec<Instance>> {
    let mut all: Vec<Instance> =
        daemon.table.all().iter().map(|entry| Instance::clone(&entry.instance())).collect();
    all.sort_by(|a, b| a.created.cmp(&b.created));
    Json(all)
}

/// Makes an instance. One with `running` in its spec starts at once.
#[utoipa::path(
    post, path = "/v1/instances", request_body = Create,
    responses(
        (status = 200, body = Instance), (status = 400, body = ApiError),
        (status = 404, body = ApiError), (status = 409, body = ApiError),
    )
)]
pub async fn create(State(daemon): State<App>, Body(asked): Body<Create>) -> Answer<Instance> {
    let Create { name, key, mut spec, attach, rows, columns } = asked;
    check(&spec)?;
    if let Some(key) = &key {
        check_name(key)?;
        if let Some(id) = daemon.objects.request(key)? {
            return made_before(&daemon, &id);
        }
    }
    let name = match name {
        Some(name) => name,
        None => made_up(&spec.image)?,
    };
    check_name(&name)?;
    if daemon.table.all().iter().any(|entry| entry.instance().name == name) {
        return Err(Refused(
            ApiError::new(Code::Conflict, format!("the name {name} is taken"))
                .hint(format!("choose another --name, or remove it: guise rm {name}")),
        ));
    }
    // Only who asks for a machine gets one.
    if spec.guise == Guise::Microvm {
        launch::check_kernel(&daemon)?;
    }
    // It is not worth fetching what cannot be run.
    if spec.guise == Guise::Vm && spec.disk().is_none() {
        return Err(choose::no_disk().into());
    }
    if let Some(network) = &spec.join
        && daemon.objects.network(network)?.is_none()
    {
        return Err(no_network(network).into());
    }
    for mount in &spec.mounts {
        if let Some(volume) = mount.volume() {
            volumes::ensure(&daemon, volume).await?;
        }
    }
    let id = random(12)?;
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
    let made = daemon.objects.create(&mut instance, key.as_deref()).await;
    if !matches!(made, Ok(true)) {
        reconcile::abandon(&daemon, &instance.id).await;
        made?;
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
    Ok(Json(instance))
}

pub fn no_network(name: &str) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is no network {name}"))
        .hint(format!("make it: guise network create {name}"))
        .exit_code(125)
}

/// What an earlier request with the same key has made.
fn made_before(daemon: &App, id: &str) -> Answer<Instance> {
    match daemon.table.find(id) {
        Ok(entry) => Ok(Json(Instance::clone(&entry.instance()))),
        Err(_) => Err(Refused(
            ApiError::new(
                Code::Conflict,
                format!("this request has made instance {id} before, which has been removed since"),
            )
            .hint("for another instance, choose another key"),
        )),
    }
}

#[utoipa::path(
    post, path = "/v1/explain", request_body = InstanceSpec,
    responses((status = 200, body = Explanation), (status = 400, body = ApiError))
)]
pub async fn explain(
    State(daemon): State<App>,
    Body(spec): Body<InstanceSpec>,
) -> Answer<Explanation> {
    check(&spec)?;
    let content = launch::content(&daemon, &spec);
    let explained = choose::choose(&spec, content);
    choose::check(explained.guise, content)?;
    Ok(Json(explained))
}

#[utoipa::path(
    get, path = "/v1/instances/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Instance), (status = 404, body = ApiError))
)]
pub async fn inspect(State(daemon): State<App>, Path(name): Path<String>) -> Answer<Instance> {
    Ok(Json(Instance::clone(&daemon.table.find(&name)?.instance())))
}

#[derive(Deserialize)]
pub struct Removal {
    /// Although it runs.
    #[serde(default)]
    force: bool,
}

#[utoipa::path(
    delete, path = "/v1/instances/{name}",
    params(("name" = String, Path), ("force" = Option<bool>, Query)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn remove(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Answer<Instance> {
    let entry = daemon.table.find(&name)?;
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
    Ok(Json(Instance::clone(&*entry.until(|_| false).await)))
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
async fn begun(entry: &Entry, life: u64) -> Answer<Instance> {
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
#[derive(Deserialize)]
pub struct Life {
    #[serde(default)]
    life: Option<u64>,
}

#[utoipa::path(
    post, path = "/v1/instances/{name}/start",
    params(("name" = String, Path), ("life" = Option<u64>, Query)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 422, body = ApiError),
    )
)]
pub async fn start(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(asked): Query<Life>,
) -> Answer<Instance> {
    let entry = daemon.table.find(&name)?;
    let life = want_running(&daemon, &entry, asked.life).await?;
    begun(&entry, life).await
}

#[derive(Default, Deserialize)]
pub struct Patience {
    /// Seconds until it is killed, a day at the most.
    #[serde(default)]
    seconds: Option<u32>,
    #[serde(default)]
    life: Option<u64>,
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

#[utoipa::path(
    post, path = "/v1/instances/{name}/stop",
    params(("name" = String, Path), ("seconds" = Option<u32>, Query)),
    responses((status = 200, body = Instance), (status = 404, body = ApiError))
)]
pub async fn stop(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(patience): Query<Patience>,
) -> Answer<Instance> {
    patience.check()?;
    let entry = daemon.table.find(&name)?;
    let change = |instance: &mut Instance| {
        instance.spec.running = false;
        instance.spec.stop_seconds = patience.seconds.or(instance.spec.stop_seconds);
        if instance.status.phase == Phase::Waiting {
            instance.status.phase = Phase::Exited;
        }
        Ok(())
    };
    let asked = entry.change(&daemon.objects, Keep::Durably, change).await?;
    if let Some(seconds) = patience.seconds {
        hurry(&daemon, &asked, seconds);
    }
    let stopped = entry.until(|instance| !instance.status.phase.is_alive()).await;
    Ok(Json(Instance::clone(&stopped)))
}

#[utoipa::path(
    post, path = "/v1/instances/{name}/restart",
    params(
        ("name" = String, Path), ("seconds" = Option<u32>, Query),
        ("life" = Option<u64>, Query),
    ),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 422, body = ApiError),
    )
)]
pub async fn restart(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(patience): Query<Patience>,
) -> Answer<Instance> {
    patience.check()?;
    let entry = daemon.table.find(&name)?;
    let mut life = 0;
    let change = |instance: &mut Instance| {
        let next = instance.status.starts.max(instance.spec.starts) + 1;
        life = patience.life.unwrap_or(next);
        if life > next {
            return Err(no_such_life(instance, life));
        }
        if life == next {
            instance.spec.stop_seconds = patience.seconds.or(instance.spec.stop_seconds);
            instance.spec.starts = life;
            instance.spec.running = true;
            instance.spec.paused = false;
        }
        Ok(())
    };
    let asked = entry.change(&daemon.objects, Keep::Durably, change).await?;
    if let Some(seconds) = patience.seconds {
        hurry(&daemon, &asked, seconds);
    }
    begun(&entry, life).await
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

#[derive(Deserialize)]
pub struct Signal {
    signal: String,
}

#[utoipa::path(
    post, path = "/v1/instances/{name}/kill",
    params(("name" = String, Path), ("signal" = String, Query)),
    responses(
        (status = 200), (status = 400, body = ApiError), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn kill(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(asked): Query<Signal>,
) -> Answer<()> {
    let signal = guise_container::runtime::parse_signal(&asked.signal)
        .ok_or_else(|| ApiError::invalid(format!("{:?} is no signal", asked.signal)))?;
    let entry = daemon.table.find(&name)?;
    let socket = socket_of(&daemon, &entry)?;
    link::request(&socket, &Request::Signal(signal)).await?;
    Ok(Json(()))
}

async fn want_paused(daemon: &App, name: &str, paused: bool) -> Answer<Instance> {
    let entry = daemon.table.find(name)?;
    socket_of(daemon, &entry)?;
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

#[utoipa::path(
    post, path = "/v1/instances/{name}/pause", params(("name" = String, Path)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn pause(State(daemon): State<App>, Path(name): Path<String>) -> Answer<Instance> {
    want_paused(&daemon, &name, true).await
}

#[utoipa::path(
    post, path = "/v1/instances/{name}/resume", params(("name" = String, Path)),
    responses(
        (status = 200, body = Instance), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn resume(State(daemon): State<App>, Path(name): Path<String>) -> Answer<Instance> {
    want_paused(&daemon, &name, false).await
}

#[derive(Deserialize)]
pub struct Renaming {
    to: String,
}

#[utoipa::path(
    post, path = "/v1/instances/{name}/rename",
    params(("name" = String, Path), ("to" = String, Query)),
    responses(
        (status = 200, body = Instance), (status = 400, body = ApiError),
        (status = 404, body = ApiError), (status = 409, body = ApiError),
    )
)]
pub async fn rename(
    State(daemon): State<App>,
    Path(name): Path<String>,
    Query(renaming): Query<Renaming>,
) -> Answer<Instance> {
    check_name(&renaming.to)?;
    let entry = daemon.table.find(&name)?;
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
pub async fn wait(State(daemon): State<App>, Path(name): Path<String>) -> Answer<Ended> {
    let entry = daemon.table.find(&name)?;
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

#[utoipa::path(
    get, path = "/v1/instances/{name}/stats", params(("name" = String, Path)),
    responses(
        (status = 200, body = Stats), (status = 404, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn stats(State(daemon): State<App>, Path(name): Path<String>) -> Answer<Stats> {
    let entry = daemon.table.find(&name)?;
    let socket = socket_of(&daemon, &entry)?;
    match link::request(&socket, &Request::Stats).await? {
        Reply::Stats(stats) => Ok(Json(reconcile::stats_of(&entry.instance(), stats))),
        _ => Err(ApiError::internal("the worker answered something else").into()),
    }
}
