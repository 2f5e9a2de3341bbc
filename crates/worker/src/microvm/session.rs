//! A program in the guest as a worker's session.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use guise_microvm::protocol::{Exit as GuestExit, NotStarted, Open, Resize, Stream};
use guise_microvm::{AgentError, MicroVm as Guest, Session as GuestSession};

use super::failed;
use crate::body::{BodyError, Exit, Process, Program, Session, Size};

/// How long a guest may take to start a program.
const START: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// A program that runs.
pub struct Running(Arc<GuestSession>);

impl Running {
    pub fn start(guest: &Guest, program: &Program) -> Result<(Session, Arc<Self>), BodyError> {
        let open = Open {
            arguments: program.argv.clone(),
            environment: program.env.clone(),
            directory: program.cwd.clone(),
            user: program.user.clone(),
            terminal: program.terminal.map(resize),
            input: program.stdin,
            ..Open::default()
        };
        let session = Arc::new(guest.agent().open(&open).map_err(failed)?);
        if let Err(exit) = session.started(START).map_err(failed)? {
            return Err(refusal(program, exit));
        }
        let reader = |stream| {
            let output = Output { session: session.clone(), stream, rest: Vec::new(), at: 0 };
            Box::new(output) as Box<dyn Read + Send>
        };
        let has_terminal = program.terminal.is_some();
        let running = Arc::new(Running(session.clone()));
        let parts = Session {
            stdin: program.stdin.then(|| Box::new(Input(session.clone())) as Box<_>),
            stdout: Some(reader(Stream::Output)),
            stderr: (!has_terminal).then(|| reader(Stream::Errors)),
            process: running.clone(),
        };
        Ok((parts, running))
    }

    /// Asks it to end, and ends it.
    pub fn stop(&self, signal: i32, grace: Duration) -> Result<(), BodyError> {
        // Without any time to end there is nothing to ask for.
        if !grace.is_zero() {
            self.0.signal(signal).map_err(failed)?;
        }
        if self.0.wait_within(grace).map_err(failed)?.is_none() {
            self.0.signal(SIGKILL).map_err(failed)?;
            self.0.wait().map_err(failed)?;
        }
        Ok(())
    }
}

fn resize(size: Size) -> Resize {
    Resize { rows: size.rows, columns: size.columns }
}

fn refusal(program: &Program, exit: GuestExit) -> BodyError {
    let name = program.argv.first().cloned().unwrap_or_default();
    match exit {
        GuestExit::NotStarted { why: NotStarted::NotFound, .. } => BodyError::ProgramNotFound(name),
        GuestExit::NotStarted { why: NotStarted::NotExecutable, message } => {
            let why = message.strip_prefix(&format!("{name}: ")).unwrap_or(&message).to_owned();
            BodyError::ProgramNotExecutable { program: name, why }
        }
        GuestExit::NotStarted { message, .. } => BodyError::Failed(message),
        GuestExit::Code(_) | GuestExit::Signal(_) | GuestExit::OutOfMemory => {
            failed("the guest started nothing")
        }
    }
}

impl Process for Running {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        self.0.signal(signal).map_err(failed)
    }

    fn resize(&self, size: Size) -> Result<(), BodyError> {
        self.0.resize(resize(size)).map_err(failed)
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        match self.0.wait().map_err(failed)? {
            GuestExit::Code(code) => Ok(Exit::Code(code as u8)),
            GuestExit::Signal(signal) => Ok(Exit::Signal(signal as u8)),
            GuestExit::OutOfMemory => Ok(Exit::OutOfMemory),
            GuestExit::NotStarted { message, .. } => Err(BodyError::Failed(message)),
        }
    }
}

/// The program's input; dropping it is its end.
struct Input(Arc<GuestSession>);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // Where the guest is gone its programs are too.
        let _ = self.0.close_input();
    }
}

/// One of the program's output streams.
struct Output {
    session: Arc<GuestSession>,
    stream: Stream,
    /// What has come and has not been read, from `at` on.
    rest: Vec<u8>,
    at: usize,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.rest.len() {
            let Some(bytes) = self.session.read(self.stream).map_err(gone)? else { return Ok(0) };
            (self.rest, self.at) = (bytes, 0);
        }
        let length = buffer.len().min(self.rest.len() - self.at);
        buffer[..length].copy_from_slice(&self.rest[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn gone(error: AgentError) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}
