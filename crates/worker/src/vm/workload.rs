//! The program that a VM is there for: it runs when the system is up, and when it has ended the
//! system is switched off.
//!
//! A system may take minutes to come up. Until then the program's streams are pipes that wait,
//! and whoever asks it to end has ended it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use guise_microvm::Vm as Guest;
use guise_microvm::link::LinkError;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::body::{BodyError, Exit, Process, Program, Session, Size, failed, system};
use crate::control::pump;
use crate::guest::Running;

/// Between looks whether a guest that went down comes back.
const MOMENT: Duration = Duration::from_millis(200);
/// Of what a guest said last, so much is told.
const LAST_WORDS: usize = 200;

pub struct Workload {
    program: Program,
    /// What the guest said on its console.
    console: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    phase: Phase,
    /// The terminal's, as it was told while there was none.
    size: Option<Size>,
    has_begun: bool,
}

enum Phase {
    Coming,
    Runs(Arc<Running>),
    Over(Result<Exit, BodyError>),
}

/// The program's ends of the streams.
struct Ends {
    input: Option<File>,
    output: File,
    errors: Option<File>,
}

fn pipe() -> Result<(File, File), BodyError> {
    let (from, to) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|error| system("make the program's streams")(error.into()))?;
    Ok((from.into(), to.into()))
}

impl Workload {
    /// Runs the program when the guest is up; what it will print comes from the session.
    pub fn begin(
        program: Program,
        console: PathBuf,
        guest: Arc<Guest>,
    ) -> Result<(Session, Arc<Workload>), BodyError> {
        let (input, keyboard) = match program.stdin {
            true => pipe().map(|(input, keyboard)| (Some(input), Some(keyboard)))?,
            false => (None, None),
        };
        let (stdout, output) = pipe()?;
        let (stderr, errors) = match program.terminal {
            Some(_) => (None, None),
            None => pipe().map(|(stderr, errors)| (Some(stderr), Some(errors)))?,
        };
        let state = State { phase: Phase::Coming, size: None, has_begun: false };
        let state = Mutex::new(state);
        let workload = Arc::new(Workload { program, console, state, changed: Condvar::new() });
        let inside = workload.clone();
        std::thread::Builder::new()
            .name("program".to_owned())
            .spawn(move || inside.attend(&guest, Ends { input, output, errors }))
            .map_err(system("make a thread for the program"))?;
        let boxed = |file: File| Box::new(file) as Box<dyn Read + Send>;
        let session = Session {
            stdin: keyboard.map(|file| Box::new(file) as Box<dyn Write + Send>),
            stdout: Some(boxed(stdout)),
            stderr: stderr.map(boxed),
            process: workload.clone(),
        };
        Ok((session, workload))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the system has come as far as to run it.
    pub fn has_begun(&self) -> bool {
        self.lock().has_begun
    }

    pub fn is_over(&self) -> bool {
        matches!(self.lock().phase, Phase::Over(_))
    }

    fn attend(&self, guest: &Guest, ends: Ends) {
        let exit = self.start(guest).and_then(|(session, running)| {
            if !self.runs(&running) {
                // Nobody wants it any more; dropping it ends it.
                return Err(BodyError::NotRunning);
            }
            let pumps = ends.connect(session)?;
            let exit = running.wait();
            for pump in pumps {
                // It has passed on what it could.
                let _ = pump.join();
            }
            exit
        });
        self.end(exit);
    }

    fn start(&self, guest: &Guest) -> Result<(Session, Arc<Running>), BodyError> {
        let agent = loop {
            match guest.up() {
                Ok(agent) => break agent,
                // One that restarts while it boots comes up later.
                Err(LinkError::Ended(_)) if guest.wait(Some(MOMENT)).is_none() => {}
                Err(error) => return Err(self.did_not_come_up(guest, &error)),
            }
        };
        Running::start(&agent, &self.program)
    }

    fn did_not_come_up(&self, guest: &Guest, error: &LinkError) -> BodyError {
        let why = match guest.wait(Some(Duration::ZERO)) {
            Some(Err(why)) => why,
            Some(Ok(())) => "the guest switched itself off before the program began".to_owned(),
            None => error.to_string(),
        };
        let console = std::fs::read(&self.console).unwrap_or_default();
        match last_words(&console) {
            Some(words) => BodyError::Failed(format!("{why}; its console's last words: {words}")),
            None => BodyError::Failed(why),
        }
    }

    /// It runs, unless it has been ended before.
    fn runs(&self, running: &Arc<Running>) -> bool {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Coming) {
            return false;
        }
        state.phase = Phase::Runs(running.clone());
        state.has_begun = true;
        let size = state.size;
        drop(state);
        self.changed.notify_all();
        if let Some(size) = size {
            // One that has ended already has no terminal.
            let _ = running.resize(size);
        }
        true
    }

    fn end(&self, exit: Result<Exit, BodyError>) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Over(_)) {
            state.phase = Phase::Over(exit);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn running(&self) -> Option<Arc<Running>> {
        match &self.lock().phase {
            Phase::Runs(running) => Some(running.clone()),
            Phase::Coming | Phase::Over(_) => None,
        }
    }

    /// Asks it to end, and ends it. Says whether it has: one whose guest stands still does not.
    pub fn stop(&self, signal: i32, grace: Duration, guest: &Guest) -> Result<bool, BodyError> {
        match self.running() {
            Some(running) => running.stop(signal, grace, || guest.is_without_space()),
            None => self.signal(signal).map(|()| true),
        }
    }
}

impl Process for Workload {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        match self.running() {
            Some(running) => running.signal(signal),
            None => {
                if signal != 0 {
                    self.end(Ok(Exit::Signal(signal as u8)));
                }
                Ok(())
            }
        }
    }

    fn resize(&self, size: Size) -> Result<(), BodyError> {
        let mut state = self.lock();
        state.size = Some(size);
        drop(state);
        self.running().map_or(Ok(()), |running| running.resize(size))
    }

    fn await_start(&self) {
        let coming = |state: &mut State| matches!(state.phase, Phase::Coming);
        let waited = self.changed.wait_while(self.lock(), coming);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        let mut state = self.lock();
        loop {
            if let Phase::Over(exit) = &state.phase {
                return exit.as_ref().copied().map_err(again);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Ends {
    /// Gives those who wait for output.
    fn connect(self, session: Session) -> Result<Vec<JoinHandle<()>>, BodyError> {
        let Session { stdin, stdout, stderr, .. } = session;
        let thread = || std::thread::Builder::new().name("stream".to_owned());
        let no_thread = |error| system("make a thread for a stream")(error);
        if let (Some(input), Some(mut stdin)) = (self.input, stdin) {
            let take = move || pump(input, |bytes| stdin.write_all(bytes).is_ok());
            // It ends with the worker, at the latest.
            thread().spawn(take).map(drop).map_err(no_thread)?;
        }
        let outputs = [(stdout, Some(self.output)), (stderr, self.errors)];
        outputs
            .into_iter()
            .filter_map(|(from, to)| from.zip(to))
            .map(|(from, mut to)| {
                let give = move || pump(from, |bytes| to.write_all(bytes).is_ok());
                thread().spawn(give).map_err(no_thread)
            })
            .collect()
    }
}

/// The same to everybody who asks.
fn again(error: &BodyError) -> BodyError {
    match error {
        BodyError::ProgramNotFound(program) => BodyError::ProgramNotFound(program.clone()),
        BodyError::ProgramNotExecutable { program, why } => {
            BodyError::ProgramNotExecutable { program: program.clone(), why: why.clone() }
        }
        other => failed(other),
    }
}

/// The last line that has something in it, in characters that do nothing to a terminal.
fn last_words(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(LAST_WORDS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_said_last_is_one_harmless_line() {
        assert_eq!(last_words(b"one\r\ntwo\x1b[31m \r\n\n  \n").unwrap(), "two[31m");
        assert_eq!(last_words(b" \n"), None);
        assert_eq!(last_words(&vec![b'x'; 9000]).unwrap().len(), LAST_WORDS);
    }
}
