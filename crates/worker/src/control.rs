//! The worker's control socket: one request a connection, as a message frame, answered
//! by a message frame, which for sessions is followed by the session's frames.

mod session;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use guise_api::session::Frame;
use guise_api::{ApiError, Code};
use serde::{Deserialize, Serialize};

use crate::body::{Body, BodyError, Program, Stats};
use crate::output::Output;
pub use session::{Input, pump};

/// What a worker can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`News`] as messages, and the end, when it comes, as an exit frame.
    Watch,
    /// The workload's own streams.
    Attach {
        /// With what it has printed so far.
        with_past: bool,
        /// Input is taken too.
        stdin: bool,
    },
    Exec(Program),
    Signal(i32),
    Stop {
        grace_milliseconds: u64,
    },
    Pause,
    Resume,
    Stats,
    /// An archive, in output frames.
    CopyOut {
        path: String,
    },
    /// An archive, in input frames.
    CopyIn {
        path: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done, or the session has begun.
    Done,
    Stats(Stats),
    Failed(ApiError),
}

/// What a watcher hears of an instance that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum News {
    /// Whether it stands still because the host has no space for what it writes.
    Space { lacking: bool },
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> ApiError {
        let code = match &error {
            BodyError::ProgramNotFound(_) | BodyError::ProgramNotExecutable { .. } => {
                Code::NotStarted
            }
            BodyError::Unsupported { .. } => Code::Unsupported,
            BodyError::NotRunning => Code::State,
            BodyError::System { .. } | BodyError::Failed(_) => Code::Internal,
        };
        ApiError::new(code, error.to_string()).exit_code(error.exit_code())
    }
}

/// What is inside a machine answers nobody, until the host has room for what it writes.
fn without_space() -> ApiError {
    let what = "the instance stands still: the host has no space for what it writes";
    ApiError::new(Code::Exhausted, what)
        .hint("make some (guise info -o table shows where), and it goes on by itself")
        .exit_code(125)
}

/// What requests act upon.
pub struct Served {
    pub body: Arc<dyn Body>,
    pub workload: Arc<dyn crate::body::Process>,
    pub output: Arc<Output>,
    pub input: Input,
}

/// Connections that are still being served.
#[derive(Default)]
pub struct Open {
    count: AtomicUsize,
    changed: (Mutex<()>, Condvar),
}

impl Open {
    fn enter(self: &Arc<Open>) -> Entered {
        self.count.fetch_add(1, Ordering::SeqCst);
        Entered(self.clone())
    }

    /// Waits until the last one is served, or the time is over.
    pub fn wait(&self, patience: Duration) {
        let guard = self.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |_: &mut ()| self.count.load(Ordering::SeqCst) > 0;
        drop(self.changed.1.wait_timeout_while(guard, patience, open));
    }
}

struct Entered(Arc<Open>);

impl Drop for Entered {
    fn drop(&mut self) {
        let _guard = self.0.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.1.notify_all();
    }
}

/// Makes the socket. One that a killed worker left is in the way, and goes.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Serves connections, each on a thread, as long as the process lives.
pub fn serve(listener: UnixListener, served: Arc<Served>, open: Arc<Open>) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, say: others may close some.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            let (served, entered) = (served.clone(), open.enter());
            std::thread::spawn(move || {
                // Whoever asked is gone when this fails.
                let _ = answer(&stream, &served);
                drop(entered);
            });
        }
    });
}

fn answer(stream: &UnixStream, served: &Served) -> io::Result<()> {
    let Some(frame) = Frame::read(&mut &*stream)? else { return Ok(()) };
    let reply = |result: Result<(), BodyError>| match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed(error.into()),
    };
    let body = &served.body;
    let reply = match frame.parse::<Request>() {
        Err(malformed) => Reply::Failed(ApiError::invalid(malformed.to_string())),
        // Who is inside would be waited for as if he were slow.
        Ok(Request::Exec(_) | Request::CopyOut { .. } | Request::CopyIn { .. })
            if served.output.is_without_space() =>
        {
            Reply::Failed(without_space())
        }
        Ok(Request::Watch) => return session::watch(stream, served),
        Ok(Request::Attach { with_past, stdin }) => {
            return session::attach(stream, served, with_past, stdin);
        }
        Ok(Request::Exec(program)) => return session::exec(stream, served, &program),
        Ok(Request::CopyOut { path }) => return session::copy_out(stream, served, &path),
        Ok(Request::CopyIn { path }) => return session::copy_in(stream, served, &path),
        Ok(Request::Signal(signal)) => reply(served.workload.signal(signal)),
        Ok(Request::Stop { grace_milliseconds }) => {
            reply(body.stop(Duration::from_millis(grace_milliseconds)))
        }
        Ok(Request::Pause) => reply(body.pause()),
        Ok(Request::Resume) => reply(body.resume()),
        Ok(Request::Stats) => match body.stats() {
            Ok(stats) => Reply::Stats(stats),
            Err(error) => Reply::Failed(error.into()),
        },
    };
    Frame::message(&reply).write(&mut &*stream)
}
