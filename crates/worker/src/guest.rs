//! What the agent in a guest does for a worker: programs as sessions, files both ways.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guise_microvm::protocol::{Exit as GuestExit, NotStarted, Open, Resize, Stream, Task};
use guise_microvm::{Agent, AgentError, Session as GuestSession};

use crate::body::{BodyError, Exit, Process, Program, Session, Size, failed, system};

/// How long a guest may take to start a program.
const START: Duration = Duration::from_secs(60);
/// Of what a console says, so much is kept on the host.
const LOG: usize = 1 << 20;
/// Of what the agent says about a failed copy.
const LONGEST_COMPLAINT: usize = 4096;
const SIGKILL: i32 = 9;
/// How often it is looked whether a guest can end at all.
const LOOK: Duration = Duration::from_secs(1);

/// A program that runs.
pub struct Running(Arc<GuestSession>);

impl Running {
    pub fn start(agent: &Agent, program: &Program) -> Result<(Session, Arc<Self>), BodyError> {
        let open = Open {
            arguments: program.argv.clone(),
            environment: program.env.clone(),
            directory: program.cwd.clone(),
            user: program.user.clone(),
            terminal: program.terminal.map(resize),
            input: program.stdin,
            ..Open::default()
        };
        let session = Arc::new(agent.open(&open).map_err(failed)?);
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

    /// Asks it to end, and ends it. Says whether it has: one whose guest stands still does not.
    pub fn stop(
        &self,
        signal: i32,
        grace: Duration,
        stands_still: impl Fn() -> bool,
    ) -> Result<bool, BodyError> {
        // Without any time to end there is nothing to ask for.
        if !grace.is_zero() {
            self.0.signal(signal).map_err(failed)?;
        }
        if self.0.wait_within(grace).map_err(failed)?.is_none() {
            self.0.signal(SIGKILL).map_err(failed)?;
            while self.0.wait_within(LOOK).map_err(failed)?.is_none() {
                if stands_still() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
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

/// Writes a file or folder of the guest as a tar archive.
pub fn copy_out(agent: &Agent, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
    copy(agent, Task::Export { path: path.to_owned() }, None, archive)
}

/// Unpacks a tar archive into a folder of the guest.
pub fn copy_in(agent: &Agent, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
    copy(agent, Task::Import { path: path.to_owned() }, Some(archive), &mut io::sink())
}

/// Runs one of the agent's own tasks to its end, with the streams as given.
fn copy(
    agent: &Agent,
    task: Task,
    input: Option<&mut dyn Read>,
    output: &mut dyn Write,
) -> Result<(), BodyError> {
    let open = Open { task, input: input.is_some(), ..Open::default() };
    let session = agent.open(&open).map_err(failed)?;
    let mut result = Ok(());
    if let Some(input) = input {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => session.write(&buffer[..length]).map_err(failed)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(system("read the archive")(error));
                    break;
                }
            }
        }
        session.close_input().map_err(failed)?;
    }
    while let Some(bytes) = session.read(Stream::Output).map_err(failed)? {
        // On a failure the session is dropped, which ends the task.
        result?;
        result = output.write_all(&bytes).map_err(system("write the archive"));
    }
    let (_, complaint, exit) = session.collect(LONGEST_COMPLAINT).map_err(failed)?;
    match exit {
        GuestExit::Code(0) => result,
        _ => {
            let complaint = String::from_utf8_lossy(&complaint);
            let complaint = complaint.trim().trim_start_matches("guise-agent: ");
            Err(BodyError::Failed(complaint.to_owned()))
        }
    }
}

/// What a console says, as far as it is kept; the rest goes nowhere.
pub struct Capped {
    file: fs::File,
    left: usize,
}

impl Capped {
    pub fn create(path: &Path) -> io::Result<Capped> {
        Ok(Capped { file: fs::File::create(path)?, left: LOG })
    }
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(self.left);
        self.file.write_all(&bytes[..length])?;
        self.left -= length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
