//! One task per instance: makes what is into what is wanted.
//!
//! The task looks at the instance and at its worker, does the one thing that [`plan`]
//! says, and looks again. When there is nothing to do it waits until a request, the
//! worker's end or the clock wakes it.

mod plan;
mod remove;

use std::sync::Arc;
use std::time::{Duration, Instant};

use guise_api::session::Frame;
use guise_api::{ApiError, Code, Ended, Guise, Phase};
use guise_container::state::timestamp;
use guise_worker::body::Stats;
use guise_worker::control::{self, Reply, Request};
use guise_worker::job::{Form, Job};
use guise_worker::place::End;
use tokio::sync::mpsc;

use crate::launch::{self, Born};
use crate::named::Named;
use crate::table::{Entry, Keep};
use crate::{Daemon, DaemonError, groups, link, networks};
use plan::{Action, plan};
pub use remove::abandon;

/// How long a workload has to end by itself when it is asked to.
const GRACE_SECONDS: u32 = 10;
/// A whole system takes longer.
const VM_GRACE_SECONDS: u32 = 90;
/// A life that lasted so long was a good one: the next failure is the first again.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// Seconds that an instance has to end by itself when nobody says how many.
pub fn usual_grace(instance: &guise_api::Instance) -> u32 {
    let usual = if instance.spec.guise == Guise::Vm { VM_GRACE_SECONDS } else { GRACE_SECONDS };
    instance.spec.stop_seconds.unwrap_or(usual)
}

/// Starts a task for everything in the store.
pub fn resume(daemon: &Arc<Daemon>) -> Result<(), DaemonError> {
    let instances = daemon.objects.instances()?;
    let (looking, mut all_looked) = mpsc::channel::<()>(1);
    groups::clear_left(daemon);
    remove::orphans(daemon, &instances);
    for mut instance in instances {
        if let Err(error) = launch::hold_again(daemon, &instance.id) {
            tracing::warn!("hold the image of instance {}: {error}", instance.id);
        }
        // What was written last may be long over: the task finds out.
        instance.status.pid = None;
        instance.status.without_space = false;
        if instance.status.phase.is_alive() {
            instance.status.phase = Phase::Created;
        }
        let entry = Entry::new(instance);
        if entry.instance().spec.remove_on_exit {
            // Who waits for its end has lost an earlier daemon, and comes back.
            entry.expect_attach();
        }
        daemon.table.insert(entry.clone());
        spawn(daemon, entry, Some(looking.clone()));
    }
    drop(looking);
    let daemon = daemon.clone();
    tokio::spawn(async move {
        // Nothing is sent: it ends when the last task has looked at what there is.
        all_looked.recv().await;
        daemon.networks.settle(&daemon).await;
    });
    Ok(())
}

/// Starts the task of a new instance.
pub fn begin(daemon: &Arc<Daemon>, entry: Arc<Entry>) {
    spawn(daemon, entry, None);
}

fn spawn(daemon: &Arc<Daemon>, entry: Arc<Entry>, looking: Option<mpsc::Sender<()>>) {
    let task =
        Task { daemon: daemon.clone(), entry, ends: mpsc::channel(4), begun: None, due: None };
    tokio::spawn(task.run(looking));
}

/// What a task hears of its worker.
enum News {
    Ended(Ended),
    /// Whether the host has no space for what it writes.
    Space {
        lacking: bool,
    },
    /// It went without a word.
    Lost,
    /// A request to it is done, and how.
    Stopped(Result<Reply, ApiError>),
}

struct Task {
    daemon: Arc<Daemon>,
    entry: Arc<Entry>,
    ends: (mpsc::Sender<News>, mpsc::Receiver<News>),
    /// When the present life began, as far as this daemon saw it.
    begun: Option<Instant>,
    /// When to start again.
    due: Option<Instant>,
}

impl Task {
    async fn run(mut self, looking: Option<mpsc::Sender<()>>) {
        if let Err(error) = self.look().await {
            tracing::error!("{}: {error}", self.entry.id);
        }
        drop(looking);
        loop {
            let instance = self.entry.instance();
            let action = plan(&instance, self.entry.is_attached(), self.due.is_some());
            let done = match action {
                Action::Wait => {
                    self.wait().await;
                    Ok(())
                }
                Action::Start => self.start().await,
                Action::Stop { kill } => self.stop(kill).await,
                Action::Pause(pause) => self.pause(pause).await,
                Action::Forget => {
                    let marked = |instance: &mut guise_api::Instance| {
                        instance.removing = true;
                        Ok(())
                    };
                    self.entry.change(&self.daemon.objects, Keep::InMemory, marked).await.map(drop)
                }
                Action::Remove => match remove::remove(&self.daemon, &self.entry).await {
                    Ok(()) => return,
                    Err(error) if error.code == Code::Unsupported => {
                        self.stay(error).await;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                // A full disk, say: nothing was changed, and it is tried again.
                const AGAIN: Duration = Duration::from_secs(1);
                tracing::warn!("{}: {error}", self.entry.id);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// It cannot be removed before somebody changes something.
    async fn stay(&self, why: ApiError) {
        const AGAIN: Duration = Duration::from_secs(60);
        tracing::warn!("{}: {why}", self.entry.id);
        self.entry.stays(Some(why));
        let _ = tokio::time::timeout(AGAIN, self.entry.wake.notified()).await;
    }

    async fn change(
        &self,
        keep: Keep,
        change: impl FnOnce(&mut guise_api::Instance),
    ) -> Result<Arc<guise_api::Instance>, ApiError> {
        let change = |instance: &mut guise_api::Instance| {
            change(instance);
            Ok(())
        };
        self.entry.change(&self.daemon.objects, keep, change).await
    }

    /// Finds out what an earlier daemon left.
    async fn look(&mut self) -> Result<(), ApiError> {
        let place = self.daemon.config.place(&self.entry.id);
        let job = place.read_job().map_err(ApiError::internal)?;
        let Some(job) = job else { return Ok(()) };
        if place.is_held().map_err(ApiError::internal)? {
            return self.adopt(&job).await;
        }
        let status = &self.entry.instance().status;
        let end = place.read_end().map_err(ApiError::internal)?.filter(|end| end.life == job.life);
        let recorded = match &end {
            Some(end) => status.finished.as_deref() == Some(end.finished.as_str()),
            None => status.starts >= job.life && status.finished.is_some(),
        };
        if recorded {
            self.due = (status.phase == Phase::Waiting).then(Instant::now);
            return Ok(());
        }
        let begun = place.holder().is_some_and(|(_, life)| life >= job.life);
        // A reboot takes this directory away, and what ran with it.
        let rebooted = !place.run.exists();
        if !begun && !rebooted && end.is_none() {
            // Its worker never was: it is started as if nothing had happened.
            return Ok(());
        }
        self.ran(&job).await?;
        match end {
            Some(end) => self.ended(end.ended, end.finished).await,
            None => self.lost().await,
        }
    }

    /// Takes down which life there was, while it is found out how it went.
    async fn ran(&self, job: &Job) -> Result<(), ApiError> {
        self.change(Keep::InMemory, |instance| {
            let status = &mut instance.status;
            status.phase = Phase::Starting;
            status.starts = job.life;
            status.guise = match job.form {
                Form::Container { .. } => Guise::Container,
                Form::Microvm { .. } => Guise::Microvm,
                Form::Vm { .. } => Guise::Vm,
                Form::Wasm { .. } => Guise::Wasm,
            };
        })
        .await
        .map(drop)
    }

    /// Takes over a worker that runs already.
    async fn adopt(&mut self, job: &Job) -> Result<(), ApiError> {
        self.ran(job).await?;
        let holder = self.daemon.config.place(&self.entry.id).holder();
        self.change(Keep::InMemory, |instance| {
            instance.status.phase = Phase::Running;
            // One that is being made has not signed yet.
            let signed = holder.filter(|(_, life)| *life == job.life);
            instance.status.pid = signed.map(|(pid, _)| pid);
            instance.status.error = None;
        })
        .await?;
        self.begun = None;
        self.listen().await;
        Ok(())
    }

    /// Has somebody listen for the worker's end. A worker that is being made has no
    /// socket yet.
    async fn listen(&self) {
        const ATTEMPTS: u32 = 100;
        let place = self.daemon.config.place(&self.entry.id);
        let news = self.ends.0.clone();
        tokio::spawn(async move {
            let mut attempt = 0;
            let mut stream = loop {
                match link::session(&place.socket(), &Request::Watch).await {
                    Ok(stream) => break stream,
                    Err(_) if attempt < ATTEMPTS && place.is_held().unwrap_or(false) => {
                        attempt += 1;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(_) => {
                        let _ = news.send(News::Lost).await;
                        return;
                    }
                }
            };
            loop {
                let read = link::read(&mut stream).await;
                let told = match &read {
                    Ok(Some(Frame::Exit(ended))) => News::Ended(ended.clone()),
                    Ok(Some(frame @ Frame::Message(_))) => match frame.parse() {
                        Ok(control::News::Space { lacking }) => News::Space { lacking },
                        // A newer worker has more to tell.
                        Err(_) => continue,
                    },
                    _ => News::Lost,
                };
                let last = !matches!(told, News::Space { .. });
                // The task has ended with its instance.
                if news.send(told).await.is_err() || last {
                    return;
                }
            }
        });
    }

    async fn start(&mut self) -> Result<(), ApiError> {
        self.due = None;
        let life = self.entry.instance().spec.starts;
        self.change(Keep::InMemory, |instance| {
            let status = &mut instance.status;
            status.phase = Phase::Starting;
            status.starts = life;
            status.grace_seconds = None;
            status.error = None;
            status.exit_code = None;
            status.out_of_memory = false;
            status.without_space = false;
            status.finished = None;
            status.warnings.clear();
        })
        .await?;
        match launch::launch(&self.daemon, &self.entry).await {
            Ok(Born::Running { pid, warnings }) => {
                self.begun = Some(Instant::now());
                let addresses = self.addresses().await;
                let now = self
                    .change(Keep::InMemory, |instance| {
                        let status = &mut instance.status;
                        status.phase = Phase::Running;
                        status.pid = Some(pid);
                        status.started = Some(timestamp());
                        status.warnings = warnings;
                        status.addresses = addresses;
                        status.observed_generation = instance.generation;
                    })
                    .await?;
                self.daemon.events.instance(&now, "started", None);
                self.listen().await;
                Ok(())
            }
            // It runs already: how it fares is found out.
            Ok(Born::Taken) => {
                self.look().await?;
                self.not_begun(life).await
            }
            Err(error) => {
                let (out_of_memory, error) = self.bury(error).await;
                let before = self.entry.instance();
                let restarts = before.status.restarts;
                // What the host has no room for now, it may have later.
                let again = error.code == Code::Exhausted && !out_of_memory && restarts > 0;
                let wait = plan::restart_after(&before, error.exit_code, restarts);
                let wait = wait.filter(|_| again);
                self.due = wait.map(|wait| Instant::now() + wait);
                let now = self
                    .change(self.keep(), |instance| {
                        let status = &mut instance.status;
                        status.phase = if wait.is_some() { Phase::Waiting } else { Phase::Failed };
                        status.pid = None;
                        status.exit_code = error.exit_code;
                        status.out_of_memory = out_of_memory;
                        status.finished = Some(timestamp());
                        status.error = Some(error.clone());
                    })
                    .await?;
                self.daemon.events.instance(&now, "failed", Some(error.message));
                Ok(())
            }
        }
    }

    /// Its addresses on the named network.
    async fn addresses(&self) -> Vec<String> {
        let instance = self.entry.instance();
        match Named::network_of(&instance) {
            Some(network) => {
                let socket = self.daemon.config.switch(&network);
                networks::addresses(socket, networks::host_name(&instance.name)).await
            }
            None => Vec::new(),
        }
    }

    /// Who had the instance a moment ago has left without having begun this life: it is
    /// begun again.
    async fn not_begun(&self, life: u64) -> Result<(), ApiError> {
        self.change(Keep::InMemory, |instance| {
            let status = &mut instance.status;
            if status.phase == Phase::Starting && status.starts == life {
                status.phase = Phase::Created;
                status.starts = life - 1;
            }
        })
        .await
        .map(drop)
    }

    /// What goes with its end needs no record of it.
    fn keep(&self) -> Keep {
        let instance = self.entry.instance();
        if instance.spec.remove_on_exit || instance.removing {
            Keep::InMemory
        } else {
            Keep::Durably
        }
    }

    /// Asks the worker to stop, in the background: it may take its time.
    async fn stop(&mut self, kill: bool) -> Result<(), ApiError> {
        let instance =
            self.change(Keep::InMemory, |instance| instance.status.phase = Phase::Stopping).await?;
        let seconds = instance.status.grace_seconds.unwrap_or_else(|| usual_grace(&instance));
        let grace = if kill { 0 } else { u64::from(seconds) * 1000 };
        let socket = self.daemon.config.place(&self.entry.id).socket();
        let news = self.ends.0.clone();
        tokio::spawn(async move {
            let request = Request::Stop { grace_milliseconds: grace };
            let stopped = link::request(&socket, &request).await;
            if stopped.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = news.send(News::Stopped(stopped)).await;
        });
        Ok(())
    }

    async fn pause(&mut self, pause: bool) -> Result<(), ApiError> {
        let socket = self.daemon.config.place(&self.entry.id).socket();
        let request = if pause { Request::Pause } else { Request::Resume };
        let answer = link::request(&socket, &request).await;
        let now = self
            .change(Keep::InMemory, |instance| match answer {
                Ok(_) => {
                    instance.status.phase = if pause { Phase::Paused } else { Phase::Running };
                }
                Err(error) => {
                    instance.spec.paused = !pause;
                    instance.status.error = Some(error);
                }
            })
            .await?;
        let action = if pause { "paused" } else { "resumed" };
        self.daemon.events.instance(&now, action, None);
        Ok(())
    }

    async fn wait(&mut self) {
        let due = self.due;
        let clock = async move {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let done = tokio::select! {
            () = self.entry.wake.notified() => Ok(()),
            news = self.ends.1.recv() => match news {
                Some(news) => self.hear(news).await,
                None => Ok(()),
            },
            () = clock => self.start_again().await,
        };
        if let Err(error) = done {
            tracing::warn!("{}: {error}", self.entry.id);
        }
    }

    async fn hear(&mut self, news: News) -> Result<(), ApiError> {
        match news {
            News::Ended(ended) => self.ended(ended, timestamp()).await,
            News::Lost => {
                let place = self.daemon.config.place(&self.entry.id);
                match place.read_end().map_err(ApiError::internal)? {
                    Some(End { life, ended, finished, .. })
                        if life == self.entry.instance().status.starts =>
                    {
                        self.ended(ended, finished).await
                    }
                    _ => self.lost().await,
                }
            }
            News::Space { lacking } => self.space(lacking).await,
            News::Stopped(Ok(_)) => Ok(()),
            News::Stopped(Err(error)) => {
                tracing::warn!("{}: stop: {error}", self.entry.id);
                // It may have ended meanwhile; else it is asked again.
                self.change(Keep::InMemory, |instance| {
                    if instance.status.phase == Phase::Stopping {
                        instance.status.phase = Phase::Running;
                    }
                })
                .await
                .map(drop)
            }
        }
    }

    /// It stands still for want of space, or goes on.
    async fn space(&self, lacking: bool) -> Result<(), ApiError> {
        if self.entry.instance().status.without_space == lacking {
            return Ok(());
        }
        let change = |instance: &mut guise_api::Instance| instance.status.without_space = lacking;
        let now = self.change(Keep::InMemory, change).await?;
        let (action, detail) = match lacking {
            true => ("out-of-space", "it waits until the host has room for what it writes"),
            false => ("has-space", "it goes on"),
        };
        tracing::warn!("{}: {action}: {detail}", now.name);
        self.daemon.events.instance(&now, action, Some(detail.to_owned()));
        // Who keeps an eye on the pools hears why.
        let daemon = self.daemon.clone();
        tokio::task::spawn_blocking(move || daemon.pools.look(&daemon));
        Ok(())
    }

    /// The worker died without recording an end.
    async fn lost(&mut self) -> Result<(), ApiError> {
        let place = self.daemon.config.place(&self.entry.id);
        remove::leftovers(&place, &self.entry.id).await;
        let error = ApiError::new(Code::Internal, launch_error(&place));
        let (out_of_memory, error) = self.bury(error).await;
        self.over(Phase::Failed, None, out_of_memory, Some(error), timestamp()).await
    }

    /// Takes away what holds a worker that ended with this error, unless the kernel knows a
    /// better one.
    async fn bury(&self, error: ApiError) -> (bool, ApiError) {
        let instance = self.entry.instance();
        let out_of_memory = groups::ran_out_of_memory(&self.daemon, &instance).await;
        groups::clear(&self.daemon, &instance);
        if !out_of_memory {
            return (false, error);
        }
        let what = "its worker died: it took more memory than the instance and it may have";
        let error = ApiError::new(Code::Exhausted, what).hint("give it more: --memory");
        (true, error.exit_code(125))
    }

    async fn ended(&mut self, ended: Ended, finished: String) -> Result<(), ApiError> {
        let Ended { exit_code, out_of_memory, error } = ended;
        groups::clear(&self.daemon, &self.entry.instance());
        self.over(Phase::Exited, Some(exit_code), out_of_memory, error, finished).await
    }

    async fn over(
        &mut self,
        phase: Phase,
        exit_code: Option<u8>,
        out_of_memory: bool,
        error: Option<ApiError>,
        finished: String,
    ) -> Result<(), ApiError> {
        let good = self.begun.take().is_some_and(|begun| begun.elapsed() >= GOOD_LIFE);
        let before = self.entry.instance();
        let restarts = if good { 0 } else { before.status.restarts };
        let wait = plan::restart_after(&before, exit_code, restarts);
        self.due = wait.map(|wait| Instant::now() + wait);
        let why = error.as_ref().map(|error| error.message.clone());
        let now = self
            .change(self.keep(), |instance| {
                let status = &mut instance.status;
                status.phase = if wait.is_some() { Phase::Waiting } else { phase };
                status.pid = None;
                status.without_space = false;
                status.exit_code = exit_code;
                status.out_of_memory = out_of_memory;
                status.error = error;
                status.finished = Some(finished);
                status.restarts = restarts;
                instance.spec.paused = false;
            })
            .await?;
        let (action, detail) = match exit_code {
            Some(code) => ("exited", Some(format!("exit code {code}"))),
            None => ("failed", why),
        };
        self.daemon.events.instance(&now, action, detail);
        if now.spec.join.is_some() {
            let daemon = self.daemon.clone();
            tokio::spawn(async move { daemon.networks.tend(&daemon).await });
        }
        Ok(())
    }

    /// The time to start again by the restart policy has come.
    async fn start_again(&mut self) -> Result<(), ApiError> {
        self.due = None;
        self.change(Keep::Durably, |instance| {
            if instance.status.phase == Phase::Waiting && instance.spec.running {
                instance.spec.starts += 1;
                instance.status.restarts += 1;
            }
        })
        .await
        .map(drop)
    }
}

fn launch_error(place: &guise_worker::place::Place) -> String {
    launch::died(place).message
}

/// What an instance uses, in the API's form.
pub fn stats_of(instance: &guise_api::Instance, stats: Stats) -> guise_api::Stats {
    guise_api::Stats {
        id: instance.id.clone(),
        name: instance.name.clone(),
        cpu_nanoseconds: stats.cpu_nanoseconds,
        memory_bytes: stats.memory_bytes,
        memory_limit: stats.memory_limit,
        processes: stats.processes,
        disk_read_bytes: stats.disk_read_bytes,
        disk_written_bytes: stats.disk_written_bytes,
        network_received_bytes: stats.network_received_bytes,
        network_sent_bytes: stats.network_sent_bytes,
        cpu_pressure_microseconds: stats.cpu_pressure_microseconds,
        memory_pressure_microseconds: stats.memory_pressure_microseconds,
        io_pressure_microseconds: stats.io_pressure_microseconds,
    }
}
