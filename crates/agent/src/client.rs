//! The host's end: an [`Agent`] over a stream, and the [`Session`]s in it.
//!
//! A thread reads the stream and hands out what comes; whoever reads a session's output
//! grants the guest room for more, so nothing is held here beyond a window for each
//! stream. When the stream ends, or the guest breaks the protocol, everything that waits
//! fails with [`AgentError::Gone`].

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::{
    Clock, Decoder, Exit, Frame, FrameError, GUEST, Hello, Kind, Mount, Open, PIECE, Resize, SetUp,
    Statistics, Stream, ToGuest, ToHost, VERSION, WINDOW, Wiring, encode,
};

/// Room is granted anew when so much has been read.
const GRANT: u32 = WINDOW / 4;

#[derive(Clone, Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the guest's agent is gone: {0}")]
    Gone(String),
    #[error("the guest's agent did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the guest could not be set up: {0}")]
    Refused(String),
    #[error("the guest's agent speaks version {0} of the protocol, this is version {VERSION}")]
    Version(u32),
}

/// What a session says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Output(Stream, Vec<u8>),
    Exited(Exit),
}

/// The guest, over a connection to its agent.
#[derive(Clone)]
pub struct Agent(Arc<Connection>);

struct Connection {
    writer: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    changed: Condvar,
    /// One request to the guest itself at a time: answers bear no numbers.
    asking: Mutex<()>,
}

#[derive(Default)]
struct State {
    hello: Option<Hello>,
    answers: VecDeque<ToHost>,
    sessions: BTreeMap<u32, SessionState>,
    last_session: u32,
    gone: Option<String>,
}

#[derive(Default)]
struct SessionState {
    events: VecDeque<(Stream, Vec<u8>)>,
    /// Bytes of each stream that wait in `events`, for the bound.
    waiting: [u32; 2],
    /// Bytes that have been read and not been granted anew.
    owed: [u32; 2],
    /// What the guest takes of input.
    credit: u32,
    pid: Option<u32>,
    exit: Option<Exit>,
}

/// A process in the guest. Dropping it hangs up: a process that still runs is killed.
pub struct Session {
    connection: Arc<Connection>,
    number: u32,
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Output => 0,
        Stream::Errors => 1,
    }
}

impl Agent {
    /// Takes a connection over. The agent's greeting has not been read yet.
    pub fn new(
        reader: Box<dyn Read + Send>,
        writer: Box<dyn Write + Send>,
    ) -> std::io::Result<Self> {
        let connection = Arc::new(Connection {
            writer: Mutex::new(writer),
            state: Mutex::default(),
            changed: Condvar::new(),
            asking: Mutex::default(),
        });
        let reading = connection.clone();
        std::thread::Builder::new().name("agent".to_owned()).spawn(move || {
            let reason = reading.read(reader);
            reading.lock().gone.get_or_insert(reason);
            reading.changed.notify_all();
        })?;
        Ok(Agent(connection))
    }

    /// Waits for the greeting.
    pub fn hello(&self, limit: Duration) -> Result<Hello, AgentError> {
        let hello = self.0.wait(limit, |state| state.hello.clone())?;
        if hello.version == VERSION { Ok(hello) } else { Err(AgentError::Version(hello.version)) }
    }

    /// Ends all that waits here with an error: the machine is gone.
    pub fn disconnect(&self, reason: &str) {
        self.0.lock().gone.get_or_insert_with(|| reason.to_owned());
        self.0.changed.notify_all();
    }

    pub fn set_up(&self, set_up: SetUp, limit: Duration) -> Result<(), AgentError> {
        self.done(&ToGuest::SetUp(set_up), limit)
    }

    pub fn set_clock(&self, clock: Clock, limit: Duration) -> Result<(), AgentError> {
        self.done(&ToGuest::SetClock(clock), limit)
    }

    /// Mounts folders of the host in a system of its own.
    pub fn mount(&self, mounts: Vec<Mount>, limit: Duration) -> Result<(), AgentError> {
        self.done(&ToGuest::Mount(mounts), limit)
    }

    /// Gives addresses to interfaces that a system of its own has left off.
    pub fn connect(&self, wiring: Wiring, limit: Duration) -> Result<(), AgentError> {
        self.done(&ToGuest::Connect(wiring), limit)
    }

    /// Ends every process of the guest and brings its disks to rest; a system of its own is
    /// asked to.
    pub fn shut_down(&self, limit: Duration) -> Result<(), AgentError> {
        self.done(&ToGuest::Shutdown, limit)
    }

    pub fn statistics(&self, limit: Duration) -> Result<Statistics, AgentError> {
        match self.ask(&ToGuest::Statistics, limit)? {
            ToHost::Statistics(statistics) => Ok(statistics),
            ToHost::Done(Err(reason)) => Err(AgentError::Refused(reason)),
            _ => Err(self.0.fail("it answered something else than what it was asked")),
        }
    }

    fn done(&self, request: &ToGuest, limit: Duration) -> Result<(), AgentError> {
        match self.ask(request, limit)? {
            ToHost::Done(result) => result.map_err(AgentError::Refused),
            _ => Err(self.0.fail("it answered something else than what it was asked")),
        }
    }

    fn ask(&self, request: &ToGuest, limit: Duration) -> Result<ToHost, AgentError> {
        let _asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.send(GUEST, request)?;
        let answer = self.0.wait(limit, |state| state.answers.pop_front());
        if let Err(AgentError::Timeout(_)) = answer {
            // Its answer would be taken for that of the next request.
            return Err(self.0.fail(&format!("it did not answer within {limit:?}")));
        }
        answer
    }

    /// Starts a process. Whether that worked is what the session says first.
    pub fn open(&self, open: &Open) -> Result<Session, AgentError> {
        let number = {
            let mut state = self.0.lock();
            // Numbers come again after four thousand million sessions.
            let mut number = state.last_session.wrapping_add(1).max(1);
            while state.sessions.contains_key(&number) {
                number = number.wrapping_add(1).max(1);
            }
            state.last_session = number;
            state.sessions.insert(number, SessionState { credit: WINDOW, ..Default::default() });
            number
        };
        let session = Session { connection: self.0.clone(), number };
        self.0.send(number, &ToGuest::Open(open.clone()))?;
        Ok(session)
    }
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Declares the connection broken.
    fn fail(&self, reason: &str) -> AgentError {
        let reason = self.lock().gone.get_or_insert_with(|| reason.to_owned()).clone();
        self.changed.notify_all();
        AgentError::Gone(reason)
    }

    fn send(&self, session: u32, message: &ToGuest) -> Result<(), AgentError> {
        self.send_bytes(Kind::Control, session, &message.bytes())
    }

    fn send_bytes(&self, kind: Kind, session: u32, payload: &[u8]) -> Result<(), AgentError> {
        if let Some(reason) = &self.lock().gone {
            return Err(AgentError::Gone(reason.clone()));
        }
        let mut bytes = Vec::with_capacity(payload.len() + 16);
        encode(&mut bytes, kind, session, payload);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = writer.write_all(&bytes).and_then(|()| writer.flush());
        sent.map_err(|error| self.fail(&error.to_string()))
    }

    /// Waits until something is found in the state.
    fn wait<T>(
        &self,
        limit: Duration,
        mut find: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, AgentError> {
        let deadline = Instant::now().checked_add(limit);
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&mut state) {
                return Ok(found);
            }
            if let Some(reason) = &state.gone {
                return Err(AgentError::Gone(reason.clone()));
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(AgentError::Timeout(limit));
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Reads until the end, and says why that came.
    fn read(&self, mut reader: Box<dyn Read + Send>) -> String {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) => return "the connection was closed".to_owned(),
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return error.to_string(),
            };
            decoder.push(&buffer[..length]);
            loop {
                match decoder.next_frame() {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if let Err(error) = self.take(frame) {
                            return error;
                        }
                    }
                    Err(error) => return error.to_string(),
                }
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), String> {
        let mut state = self.lock();
        if let Some(reason) = &state.gone {
            return Err(reason.clone());
        }
        match frame.kind {
            Kind::Control => {
                let message =
                    frame.message_to_host().map_err(|error: FrameError| error.to_string())?;
                state.take_message(frame.session, message)?;
            }
            Kind::Input => return Err("it sent input".to_owned()),
            Kind::Output | Kind::Errors => {
                let stream =
                    if frame.kind == Kind::Output { Stream::Output } else { Stream::Errors };
                // A session that was dropped may still have something to say.
                if let Some(session) = state.sessions.get_mut(&frame.session) {
                    let waiting = &mut session.waiting[index(stream)];
                    *waiting += frame.payload.len() as u32;
                    if *waiting > WINDOW {
                        return Err("it sent more than it was allowed to".to_owned());
                    }
                    session.events.push_back((stream, frame.payload));
                }
            }
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

impl State {
    fn take_message(&mut self, number: u32, message: ToHost) -> Result<(), String> {
        const MOST_ANSWERS: usize = 16;
        if number == GUEST {
            match message {
                ToHost::Hello(hello) if self.hello.is_none() => self.hello = Some(hello),
                ToHost::Done(_) | ToHost::Statistics(_) if self.answers.len() < MOST_ANSWERS => {
                    self.answers.push_back(message);
                }
                _ => return Err("it sent a message that makes no sense".to_owned()),
            }
            return Ok(());
        }
        let Some(session) = self.sessions.get_mut(&number) else { return Ok(()) };
        match message {
            ToHost::Started { pid } => session.pid = Some(pid),
            ToHost::Window { bytes } => session.credit = session.credit.saturating_add(bytes),
            ToHost::Exited(exit) => session.exit = Some(exit),
            _ => return Err("it sent a message that makes no sense".to_owned()),
        }
        Ok(())
    }
}

impl SessionState {
    /// Notes that output has been read. Says what to grant anew, where it is time to.
    fn taken(&mut self, stream: Stream, bytes: &[u8]) -> Option<(Stream, u32)> {
        let length = bytes.len() as u32;
        self.waiting[index(stream)] -= length;
        let owed = &mut self.owed[index(stream)];
        *owed += length;
        (*owed >= GRANT).then(|| (stream, std::mem::take(owed)))
    }
}

impl Session {
    /// Waits for what comes next: output, and at the end the exit. After that, nothing
    /// but the exit again.
    pub fn next(&self) -> Result<Event, AgentError> {
        self.next_within(Duration::MAX)
    }

    /// The same, for as long as is given.
    pub fn next_within(&self, limit: Duration) -> Result<Event, AgentError> {
        let (event, grant) = self.connection.wait(limit, |state| {
            let session = state.sessions.get_mut(&self.number)?;
            let Some((stream, bytes)) = session.events.pop_front() else {
                return session.exit.clone().map(|exit| (Event::Exited(exit), None));
            };
            let grant = session.taken(stream, &bytes);
            Some((Event::Output(stream, bytes), grant))
        })?;
        self.grant(grant);
        Ok(event)
    }

    /// Waits for more of one stream; nothing is its end, which is that of the process.
    pub fn read(&self, stream: Stream) -> Result<Option<Vec<u8>>, AgentError> {
        let (bytes, grant) = self.connection.wait(Duration::MAX, |state| {
            let session = state.sessions.get_mut(&self.number)?;
            let place = session.events.iter().position(|(of, _)| *of == stream);
            match place.and_then(|place| session.events.remove(place)) {
                Some((_, bytes)) => {
                    let grant = session.taken(stream, &bytes);
                    Some((Some(bytes), grant))
                }
                None => session.exit.as_ref().map(|_| (None, None)),
            }
        })?;
        self.grant(grant);
        Ok(bytes)
    }

    /// Waits for the end, whether the output has been read or not.
    pub fn wait(&self) -> Result<Exit, AgentError> {
        self.connection.wait(Duration::MAX, |state| state.sessions.get(&self.number)?.exit.clone())
    }

    /// The same, for as long as is given; nothing when it still runs then.
    pub fn wait_within(&self, limit: Duration) -> Result<Option<Exit>, AgentError> {
        let exit = |state: &mut State| state.sessions.get(&self.number)?.exit.clone();
        match self.connection.wait(limit, exit) {
            Ok(exit) => Ok(Some(exit)),
            Err(AgentError::Timeout(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// If the guest is gone meanwhile, the next call says so.
    fn grant(&self, grant: Option<(Stream, u32)>) {
        if let Some((stream, bytes)) = grant {
            let _ = self.connection.send(self.number, &ToGuest::Window { stream, bytes });
        }
    }

    /// Waits until the process runs. Gives its number in the guest, or how it ended where
    /// it did not start.
    pub fn started(&self, limit: Duration) -> Result<Result<u32, Exit>, AgentError> {
        self.connection.wait(limit, |state| {
            let session = state.sessions.get(&self.number)?;
            session.pid.map(Ok).or_else(|| session.exit.clone().map(Err))
        })
    }

    /// Writes to the process's input; waits as long as it does not read. A process that
    /// has ended takes everything.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            let length = self.connection.wait(Duration::MAX, |state| {
                let Some(session) = state.sessions.get_mut(&self.number) else { return Some(0) };
                if session.exit.is_some() {
                    return Some(0);
                }
                let length = bytes.len().min(PIECE).min(session.credit as usize);
                session.credit -= length as u32;
                (length > 0).then_some(length)
            })?;
            if length == 0 {
                return Ok(());
            }
            self.connection.send_bytes(Kind::Input, self.number, &bytes[..length])?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Ends the process's input.
    pub fn close_input(&self) -> Result<(), AgentError> {
        self.connection.send_bytes(Kind::Input, self.number, &[])
    }

    pub fn resize(&self, size: Resize) -> Result<(), AgentError> {
        self.connection.send(self.number, &ToGuest::Resize(size))
    }

    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.connection.send(self.number, &ToGuest::Signal(signal))
    }

    /// Reads everything up to the end. Output and errors are kept apart, and bounded: what
    /// is beyond `most` bytes of each is thrown away.
    pub fn collect(&self, most: usize) -> Result<(Vec<u8>, Vec<u8>, Exit), AgentError> {
        let mut collected = [Vec::new(), Vec::new()];
        loop {
            match self.next()? {
                Event::Output(stream, bytes) => {
                    let into = &mut collected[index(stream)];
                    let length = bytes.len().min(most.saturating_sub(into.len()));
                    into.extend_from_slice(&bytes[..length]);
                }
                Event::Exited(exit) => {
                    let [output, errors] = collected;
                    return Ok((output, errors, exit));
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        const SIGKILL: i32 = 9;
        let session = self.connection.lock().sessions.remove(&self.number);
        if session.is_some_and(|session| session.exit.is_none()) {
            // Where the guest is gone there is nothing to kill.
            let _ = self.signal(SIGKILL);
        }
    }
}
