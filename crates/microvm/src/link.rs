//! The way to the agent in a system that boots by itself.
//!
//! It comes along in the initial RAM disk and calls when the system has begun, which may take
//! minutes, or never happen. A thread waits for that from each start of the machine on, and
//! then until the system is up, to mount what the guest has not mounted, and to switch networks on
//! that an image knows nothing of.
//!
//! Other programs of the guest can call as well. The agent is known by the secret that it was
//! given at this start, which is nowhere else.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guise_agent::client::{Agent, AgentError};
use guise_agent::protocol::{Exit, Mount, Open, Task, Wiring};
use guise_virtio::vsock::Listener;

/// How long a guest may take from its start to the agent's call, before it is said to have none.
const CALL_LIMIT: Duration = Duration::from_secs(300);
/// How long it may then take to be up, before it is taken to be.
const UP_LIMIT: Duration = Duration::from_secs(300);
/// Programs of a user wait for that no longer: they may be to find out what it waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the agent may take to mount folders.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long who calls may take to say who it is.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether the machine has ended meanwhile; seldom where nobody expects
/// a call any more.
const LOOK: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(2);

/// What to do where there is no agent.
const INSTEAD: &str = "use its console (guise attach), ssh through a published port, or a volume";

#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    #[error("Guise's agent is not in this VM, because {0}; {INSTEAD}")]
    NoAgent(&'static str),
    #[error(
        "Guise's agent in this VM has not called within {0:?} of the start: the system did not \
         come up, or its kernel has no driver for virtio sockets; {INSTEAD}"
    )]
    NotCalled(Duration),
    #[error("{0}")]
    Ended(&'static str),
    #[error("the guest could not mount its folders: {0}")]
    Folders(AgentError),
}

/// What the agent is known by.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Secret {
        let mut bytes = [0; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            let flags = rustix::rand::GetRandomFlags::empty();
            // It waits for a host that has just started, and can only be interrupted.
            filled += rustix::rand::getrandom(&mut bytes[filled..], flags).unwrap_or(0);
        }
        Secret(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

pub struct Link {
    state: Mutex<State>,
    changed: Condvar,
    /// One thread at a time listens: that of a machine which has ended leaves.
    listener: Mutex<Listener>,
    mounts: Vec<Mount>,
    /// Where the host knows better than a system how its networks are.
    wiring: Option<Wiring>,
}

struct State {
    /// Counts the machine's starts.
    start: u64,
    at: Instant,
    phase: Phase,
}

enum Phase {
    Never(LinkError),
    Awaited,
    Called { agent: Agent, at: Instant },
    Up { agent: Agent, mounted: Result<(), LinkError> },
}

impl Phase {
    fn agent(&self) -> Option<&Agent> {
        match self {
            Phase::Called { agent, .. } | Phase::Up { agent, .. } => Some(agent),
            Phase::Never(_) | Phase::Awaited => None,
        }
    }
}

impl Link {
    pub fn new(listener: Listener, mounts: Vec<Mount>, wiring: Option<Wiring>) -> Link {
        let phase = Phase::Never(LinkError::Ended("the guest has not started"));
        let state = State { start: 0, at: Instant::now(), phase };
        let listener = Mutex::new(listener);
        Link { state: Mutex::new(state), changed: Condvar::new(), listener, mounts, wiring }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine starts.
    pub fn begin(
        self: &Arc<Self>,
        secret: Secret,
        no_agent: Option<&'static str>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.start += 1;
        state.at = Instant::now();
        state.phase = match no_agent {
            Some(why) => Phase::Never(LinkError::NoAgent(why)),
            None => Phase::Awaited,
        };
        let start = state.start;
        drop(state);
        self.changed.notify_all();
        if no_agent.is_none() {
            let link = self.clone();
            let thread = std::thread::Builder::new().name("agent's call".to_owned());
            thread.spawn(move || link.attend(start, &secret))?;
        }
        Ok(())
    }

    /// The machine has ended.
    pub fn end(&self, what: &'static str) {
        let mut state = self.lock();
        if let Some(agent) = state.phase.agent() {
            agent.disconnect(what);
        }
        state.phase = Phase::Never(LinkError::Ended(what));
        drop(state);
        self.changed.notify_all();
    }

    /// The agent, if it has called.
    pub fn present(&self) -> Option<Agent> {
        self.lock().phase.agent().cloned()
    }

    /// The agent. One that has not called yet is waited for as long as it can be expected to,
    /// and a system that is not up yet for a while.
    pub fn agent(&self) -> Result<Agent, LinkError> {
        self.wait(PATIENCE).map(|(agent, _)| agent)
    }

    /// The agent of a system that is up, with all its folders.
    pub fn up(&self) -> Result<Agent, LinkError> {
        let (agent, mounted) = self.wait(2 * (UP_LIMIT + ANSWER_LIMIT))?;
        mounted.map(|()| agent)
    }

    /// An agent that has called, and whether its folders are mounted when `patience` has waited
    /// for its system to be up.
    fn wait(&self, patience: Duration) -> Result<(Agent, Result<(), LinkError>), LinkError> {
        let mut state = self.lock();
        loop {
            let deadline = match &state.phase {
                Phase::Never(why) => return Err(why.clone()),
                Phase::Up { agent, mounted } => return Ok((agent.clone(), mounted.clone())),
                Phase::Awaited => state.at + CALL_LIMIT,
                Phase::Called { at, .. } => *at + patience,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let agent = state.phase.agent().cloned();
                let agent = agent.ok_or(LinkError::NotCalled(CALL_LIMIT))?;
                return Ok((agent, Ok(())));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Goes on as long as this start of the machine is the one that counts.
    fn advance(&self, start: u64, phase: Phase) -> bool {
        let mut state = self.lock();
        if state.start != start || matches!(state.phase, Phase::Never(_)) {
            return false;
        }
        state.phase = phase;
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Takes the agent's call, and sees that the system comes up.
    fn attend(&self, start: u64, secret: &Secret) {
        let Some(agent) = self.called(start, secret) else { return };
        let at = Instant::now();
        if !self.advance(start, Phase::Called { agent: agent.clone(), at }) {
            return;
        }
        if let Err(error) = await_system(&agent) {
            tracing::warn!(%error, "it is not known when a guest is up");
        }
        if let Some(wiring) = self.wiring.clone()
            && let Err(error) = agent.connect(wiring, ANSWER_LIMIT)
        {
            tracing::warn!(%error, "a guest has no network");
        }
        let mounted = match self.mounts.is_empty() {
            true => Ok(()),
            false => agent.mount(self.mounts.clone(), ANSWER_LIMIT).map_err(LinkError::Folders),
        };
        if let Err(error) = &mounted {
            tracing::warn!(%error, "a guest lacks folders");
        }
        self.advance(start, Phase::Up { agent, mounted });
    }

    fn called(&self, start: u64, secret: &Secret) -> Option<Agent> {
        loop {
            let state = self.lock();
            if state.start != start || !matches!(state.phase, Phase::Awaited) {
                return None;
            }
            let look = if state.at.elapsed() < CALL_LIMIT { LOOK } else { SELDOM };
            drop(state);
            let caller = self.listener.lock().unwrap_or_else(PoisonError::into_inner).accept(look);
            let Some(caller) = caller else { continue };
            match greet(caller, secret) {
                Ok(agent) => return Some(agent),
                Err(error) => tracing::debug!(%error, "a guest's call is not its agent's"),
            }
        }
    }
}

/// Finds out who calls.
fn greet(stream: UnixStream, secret: &Secret) -> io::Result<Agent> {
    let (reader, other) = (stream.try_clone()?, stream.try_clone()?);
    let agent = Agent::new(Box::new(reader), Box::new(stream))?;
    let hello = agent.hello(GREETING_LIMIT).map_err(io::Error::other);
    let why = match hello {
        Ok(hello) if hello.secret == secret.bytes() => return Ok(agent),
        Ok(_) => io::Error::other("it does not know the secret"),
        Err(error) => error,
    };
    // The thread that reads it ends.
    let _ = other.shutdown(Shutdown::Both);
    Err(why)
}

/// Waits until the system is up, as far as that can be told.
fn await_system(agent: &Agent) -> Result<(), AgentError> {
    let session = agent.open(&Open { task: Task::AwaitSystem, ..Open::default() })?;
    match session.wait_within(UP_LIMIT)? {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(AgentError::Refused(format!("{exit:?}"))),
        None => Err(AgentError::Timeout(UP_LIMIT)),
    }
}

#[cfg(test)]
mod tests;
