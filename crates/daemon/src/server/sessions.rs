//! Sessions: frames over WebSocket, most of them passed on to and from a worker.
//!
//! What goes wrong is told in the session itself, as an error frame: a client has one
//! place to look.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use guise_api::session::{Frame, MAX_FRAME, Warned};
use guise_api::{ApiError, Code, Ended, Exec, Guise, Phase};
use guise_worker::body::{Program, Size};
use guise_worker::control::Request;
use guise_worker::log::{self, Position, Reader, Record, Stream};
use serde::Deserialize;
use tokio::net::UnixStream;
use utoipa::IntoParams;

use super::App;
use super::answer::{Found, Query, Upgrade};
use super::instances::{end_of, is_over, socket_of, want_running};
use crate::link;
use crate::table::{Entry, Gone};

/// How often somebody who follows a log looks for more.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One end of a session.
struct Client(WebSocket);

impl Client {
    async fn send(&mut self, frame: &Frame) -> Result<(), ApiError> {
        self.0.send(Message::Binary(frame.encode().into())).await.map_err(ApiError::internal)
    }

    /// The next frame; none when the client is gone.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.0.recv().await? {
                Ok(Message::Binary(bytes)) => return Frame::decode(&bytes).ok(),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Says how it went, and closes.
    async fn finish(mut self, result: Result<Option<Frame>, ApiError>) {
        let last = match result {
            Ok(last) => last,
            Err(error) => Some(Frame::Error(error)),
        };
        if let Some(last) = last {
            // It may be gone.
            let _ = self.send(&last).await;
        }
        let _ = self.0.send(Message::Close(None)).await;
        // Closing while something is under way would throw away what was said. What the
        // client still sends is of no use to anybody.
        const PATIENCE: Duration = Duration::from_secs(5);
        let rest = async { while let Some(Ok(_)) = self.0.recv().await {} };
        let _ = tokio::time::timeout(PATIENCE, rest).await;
    }
}

/// Accepts a session and runs it.
fn accept<F, S>(upgrade: WebSocketUpgrade, serve: F) -> Response
where
    F: FnOnce(Client) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    upgrade
        .max_message_size(MAX_FRAME)
        .on_upgrade(move |socket| async move { serve(Client(socket)).await })
}

/// Passes frames both ways until the worker says how it ended. None when the client left.
async fn relay(client: &mut Client, worker: UnixStream) -> Result<Option<Frame>, ApiError> {
    let (mut from, mut to) = worker.into_split();
    // A task of its own, because a frame must be read to its end.
    let (sender, mut frames) = tokio::sync::mpsc::channel(16);
    let reader = tokio::spawn(async move {
        while let Ok(Some(frame)) = link::read(&mut from).await {
            if sender.send(frame).await.is_err() {
                return;
            }
        }
    });
    // Another, because the program may not read while it writes.
    let (queue, mut queued) = tokio::sync::mpsc::channel::<Frame>(4);
    let writer = tokio::spawn(async move {
        while let Some(frame) = queued.recv().await {
            if link::write(&mut to, &frame).await.is_err() {
                return;
            }
        }
    });
    let last = loop {
        let more = async {
            match queue.reserve().await {
                Ok(place) => (place, client.next().await),
                // It is about to end; what it still says is waited for.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(last @ (Frame::Exit(_) | Frame::Error(_))) => break Ok(Some(last)),
                Some(frame) => client.send(&frame).await?,
                None => break Err(link::gone("it ended the session")),
            },
            (place, frame) = more => match frame {
                Some(frame) => place.send(frame),
                None => break Ok(None),
            },
        }
    };
    reader.abort();
    // What the client sent before it left still arrives, if the program reads it.
    drop(queue);
    tokio::spawn(async move {
        const PATIENCE: Duration = Duration::from_secs(10);
        let stop = writer.abort_handle();
        if tokio::time::timeout(PATIENCE, writer).await.is_err() {
            stop.abort();
        }
    });
    last
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Attach {
    /// Start it first.
    #[serde(default)]
    #[param(required = false)]
    start: bool,
    /// Which of its lives is meant, also when it is over; otherwise the present one.
    #[serde(default)]
    life: Option<u64>,
    /// With what this life has printed already, and before that what was left out of it.
    #[serde(default)]
    #[param(required = false)]
    past: bool,
    #[serde(default)]
    #[param(required = false)]
    stdin: bool,
    #[serde(default)]
    #[param(required = false)]
    rows: u16,
    #[serde(default)]
    #[param(required = false)]
    columns: u16,
}

/// The streams of an instance's program.
#[utoipa::path(
    get, path = "/v1/instances/{name}/attach",
    params(("name" = String, Path), Attach),
    responses(
        (status = 101, description = "a session: frames over WebSocket"),
        (status = 400, body = ApiError), (status = 404, body = ApiError),
    )
)]
pub async fn attach(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(asked): Query<Attach>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    accept(upgrade, move |mut client| async move {
        let result = attach_to(&daemon, &entry, &asked, &mut client).await;
        client.finish(result).await;
    })
}

async fn attach_to(
    daemon: &App,
    entry: &Arc<Entry>,
    asked: &Attach,
    client: &mut Client,
) -> Result<Option<Frame>, ApiError> {
    let attached = entry.attach_as_expected();
    let life = if asked.start {
        let size = Size { rows: asked.rows, columns: asked.columns };
        *entry.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(size);
        want_running(daemon, entry, asked.life).await?
    } else {
        if asked.life.is_none() {
            socket_of(daemon, entry)?;
        }
        asked.life.unwrap_or(entry.instance().spec.starts)
    };
    let instance = entry
        .until(|instance| {
            let running = instance.status.phase.has_socket();
            running && instance.status.starts >= life || is_over(instance)
        })
        .await;
    let status = &instance.status;
    if asked.past && status.starts == life && !status.warnings.is_empty() {
        let (instance, warnings) = (instance.name.clone(), status.warnings.clone());
        client.send(&Frame::message(&Warned { instance, warnings })).await?;
    }
    let place = daemon.config.place(&entry.id);
    let mut last = None;
    if instance.status.phase.has_socket() {
        let request = Request::Attach { with_past: asked.past, stdin: asked.stdin };
        if let Ok(worker) = link::session(&place.socket(), &request).await {
            let Some(frame) = relay(client, worker).await? else { return Ok(None) };
            last = Some(frame);
        }
    }
    let last = match last {
        Some(last) => last,
        // It has ended before anybody could listen: the log has what it said.
        None => {
            let over = entry.until(is_over).await;
            if let Some(end) = place.read_end().map_err(ApiError::internal)?
                && end.life == over.status.starts
            {
                send_log(client, Reader::new(&place.kept(), Some(end.log)), false).await?;
            }
            match (&over.status.error, over.status.phase) {
                (Some(error), Phase::Failed) => Frame::Error(error.clone()),
                _ => Frame::Exit(end_of(&over)),
            }
        }
    };
    drop(attached);
    if instance.spec.remove_on_exit {
        // Who sees the end may count on the name being free.
        const PATIENCE: Duration = Duration::from_secs(10);
        let _ = tokio::time::timeout(PATIENCE, entry.until(Gone::is_gone)).await;
    }
    Ok(Some(last))
}

/// One more program in a running instance; the first frame is an `Exec`.
#[utoipa::path(
    get, path = "/v1/instances/{name}/exec",
    params(("name" = String, Path)),
    responses(
        (status = 101, description = "a session: frames over WebSocket"),
        (status = 400, body = ApiError), (status = 404, body = ApiError),
    )
)]
pub async fn exec(
    State(daemon): State<App>,
    Found(entry): Found,
    Upgrade(upgrade): Upgrade,
) -> Response {
    accept(upgrade, move |mut client| async move {
        let result = exec_in(&daemon, &entry, &mut client).await;
        client.finish(result).await;
    })
}

/// The first frame says what is to be run.
async fn exec_in(
    daemon: &App,
    entry: &Entry,
    client: &mut Client,
) -> Result<Option<Frame>, ApiError> {
    let Some(first) = client.next().await else { return Ok(None) };
    let asked: Exec = first.parse().map_err(|error| ApiError::invalid(error.to_string()))?;
    if asked.command.is_empty() {
        return Err(ApiError::invalid("there is no program to run"));
    }
    let socket = socket_of(daemon, entry)?;
    check_awake(entry, &[Guise::Container, Guise::Microvm, Guise::Vm])?;
    let place = daemon.config.place(&entry.id);
    let job = place.read_job().map_err(ApiError::internal)?;
    let base = job.map(|job| job.program).unwrap_or_default();
    let mut env = base.env;
    for new in &asked.env {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        env.retain(|old| name(old) != name(new));
        env.push(new.clone());
    }
    let program = Program {
        argv: asked.command,
        env,
        cwd: asked.workdir.unwrap_or(base.cwd),
        user: asked.user.unwrap_or(base.user),
        terminal: asked.tty.then_some(Size { rows: asked.rows, columns: asked.columns }),
        stdin: asked.stdin,
    };
    let worker = link::session(&socket, &Request::Exec(program)).await?;
    // It runs: who wants no more of it may go.
    client.send(&Frame::message(&())).await?;
    relay(client, worker).await
}

/// Refuses what an instance of these guises could not do while it is paused.
fn check_awake(entry: &Entry, guises: &[Guise]) -> Result<(), ApiError> {
    let instance = entry.instance();
    let (name, status) = (&instance.name, &instance.status);
    if status.phase != Phase::Paused || !guises.contains(&status.guise) {
        return Ok(());
    }
    Err(ApiError::new(Code::State, format!("{name} is paused, and does nothing until it goes on"))
        .hint(format!("let it: guise unpause {name}"))
        .exit_code(125))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Copy {
    path: String,
}

/// A file or folder of an instance, as a tar archive in output frames.
#[utoipa::path(
    get, path = "/v1/instances/{name}/copy-out",
    params(("name" = String, Path), Copy),
    responses(
        (status = 101, description = "a session: frames over WebSocket"),
        (status = 400, body = ApiError), (status = 404, body = ApiError),
    )
)]
pub async fn copy_out(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(copy): Query<Copy>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    copy_with(daemon, entry, Request::CopyOut { path: copy.path }, upgrade)
}

/// A tar archive, in input frames, into a folder of an instance.
#[utoipa::path(
    get, path = "/v1/instances/{name}/copy-in",
    params(("name" = String, Path), Copy),
    responses(
        (status = 101, description = "a session: frames over WebSocket"),
        (status = 400, body = ApiError), (status = 404, body = ApiError),
    )
)]
pub async fn copy_in(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(copy): Query<Copy>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    copy_with(daemon, entry, Request::CopyIn { path: copy.path }, upgrade)
}

fn copy_with(
    daemon: App,
    entry: Arc<Entry>,
    request: Request,
    upgrade: WebSocketUpgrade,
) -> Response {
    accept(upgrade, move |mut client| async move {
        let copy = async {
            let socket = socket_of(&daemon, &entry)?;
            // The files of others are there without their help.
            check_awake(&entry, &[Guise::Microvm, Guise::Vm])?;
            let worker = link::session(&socket, &request).await?;
            relay(&mut client, worker).await
        };
        let result = copy.await;
        client.finish(result).await;
    })
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Logs {
    #[serde(default)]
    #[param(required = false)]
    follow: bool,
    /// Only so many last lines.
    #[serde(default)]
    tail: Option<usize>,
    #[serde(default)]
    #[param(required = false)]
    timestamps: bool,
}

/// What an instance has printed.
#[utoipa::path(
    get, path = "/v1/instances/{name}/logs",
    params(("name" = String, Path), Logs),
    responses(
        (status = 101, description = "a session: frames over WebSocket"),
        (status = 400, body = ApiError), (status = 404, body = ApiError),
    )
)]
pub async fn logs(
    State(daemon): State<App>,
    Found(entry): Found,
    Query(asked): Query<Logs>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    accept(upgrade, move |mut client| async move {
        let result = logs_of(&daemon, &entry, &asked, &mut client).await;
        client.finish(result).await;
    })
}

async fn logs_of(
    daemon: &App,
    entry: &Entry,
    asked: &Logs,
    client: &mut Client,
) -> Result<Option<Frame>, ApiError> {
    let directory = daemon.config.place(&entry.id).kept();
    let mut from: Option<Position> = None;
    if let Some(count) = asked.tail {
        let in_directory = directory.clone();
        let tail = tokio::task::spawn_blocking(move || log::tail(&in_directory, count));
        let (records, end) = tail.await.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
        for record in records {
            client.send(&frame_of(record, asked.timestamps)).await?;
        }
        from = Some(end);
    }
    loop {
        // Before reading: what is printed last is read in any case.
        let over = !entry.instance().status.phase.is_alive() && is_over(&entry.instance());
        let reader = Reader::new(&directory, from);
        from = Some(send_log(client, reader, asked.timestamps).await?);
        if over || !asked.follow {
            return Ok(Some(Frame::Exit(Ended::default())));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            frame = client.next() => if frame.is_none() { return Ok(None) },
        }
    }
}

/// Sends what there is; where that ends.
async fn send_log(
    client: &mut Client,
    mut reader: Reader,
    timestamps: bool,
) -> Result<Position, ApiError> {
    while let Some(record) = reader.next_record().map_err(ApiError::internal)? {
        client.send(&frame_of(record, timestamps)).await?;
    }
    Ok(reader.position())
}

fn frame_of(record: Record, timestamps: bool) -> Frame {
    let mut bytes = record.bytes;
    if timestamps {
        let seconds = record.time / 1_000_000_000;
        let nanoseconds = (record.time % 1_000_000_000) as u32;
        let time = guise_container::state::format_time(seconds, nanoseconds);
        let stamp = format!("{time} ").into_bytes();
        bytes = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .flat_map(|line| [stamp.as_slice(), line].concat())
            .collect();
    }
    match record.stream {
        Stream::Stdout => Frame::Stdout(bytes),
        Stream::Stderr => Frame::Stderr(bytes),
    }
}
