//! A program in the container, as the worker has it: streams that the keeper gave, and a
//! connection on which its end is told.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::line::{self, Ask, Streams, Told};
use super::{Keeping, system};
use crate::body::{BodyError, Exit, Process, Session, Size};
use crate::terminal;

pub struct Inside {
    keeping: Keeping,
    number: u64,
    pub remarks: Vec<String>,
    terminal: Option<OwnedFd>,
    ended: Mutex<Option<Exit>>,
    changed: Condvar,
}

impl Inside {
    /// Takes a program that is being started: what comes of it is told on `asked`.
    pub fn take(
        keeping: &Keeping,
        asked: UnixStream,
        stdin: bool,
    ) -> Result<(Session, Arc<Inside>), BodyError> {
        let (number, streams, remarks) = match keeping.told(&asked)? {
            Told::Program { number, streams, remarks } => (number, streams, remarks),
            _ => return Err(BodyError::Failed("the keeper named no program".to_owned())),
        };
        let count = match streams {
            Streams::Terminal => 1,
            Streams::Pipes { input } => 2 + usize::from(input),
        };
        let mut fds =
            line::take_over(&asked, count).map_err(system("take a program's streams"))?.into_iter();
        let terminal = match streams {
            Streams::Terminal => fds.next(),
            Streams::Pipes { .. } => None,
        };
        let inside = Arc::new(Inside {
            keeping: keeping.clone(),
            number,
            remarks,
            terminal,
            ended: Mutex::new(None),
            changed: Condvar::new(),
        });
        let session = inside.session(fds.map(File::from), streams, stdin);
        let session = session.map_err(system("share a terminal"))?;
        let waiting = inside.clone();
        std::thread::spawn(move || {
            let exit = match line::hear(&asked) {
                Ok(Told::Ended(exit)) => exit,
                // Nothing is known where the keeper is gone.
                _ => Exit::Code(255),
            };
            *waiting.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
            waiting.changed.notify_all();
        });
        Ok((session, inside))
    }

    fn session(
        self: &Arc<Inside>,
        mut pipes: impl Iterator<Item = File>,
        streams: Streams,
        stdin: bool,
    ) -> io::Result<Session> {
        fn reader(file: Option<File>) -> Option<Box<dyn Read + Send>> {
            file.map(|file| Box::new(file) as _)
        }
        fn writer(stream: Option<impl Write + Send + 'static>) -> Option<Box<dyn Write + Send>> {
            stream.map(|stream| Box::new(stream) as _)
        }
        let process: Arc<dyn Process> = self.clone();
        let Some(terminal) = &self.terminal else {
            let input =
                if streams == (Streams::Pipes { input: true }) { pipes.next() } else { None };
            let (output, errors) = (pipes.next(), pipes.next());
            return Ok(Session {
                stdin: writer(input),
                stdout: reader(output),
                stderr: reader(errors),
                process,
            });
        };
        let input =
            if stdin { Some(terminal::Input(File::from(terminal.try_clone()?))) } else { None };
        let output = File::from(terminal.try_clone()?);
        Ok(Session { stdin: writer(input), stdout: reader(Some(output)), stderr: None, process })
    }
}

impl Process for Inside {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        self.keeping.done(&Ask::Signal { program: self.number, signal })
    }

    fn resize(&self, size: Size) -> Result<(), BodyError> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        terminal::set_size(terminal, size)
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self
            .changed
            .wait_while(ended, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.ok_or(BodyError::NotRunning)
    }
}
