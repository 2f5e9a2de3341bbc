//! What is to be done next, decided from what is wanted and what is.

use std::time::Duration;

use guise_api::{Instance, Phase, Restart};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Wait,
    Start,
    Stop {
        /// At once.
        kill: bool,
    },
    /// Pause it, or let it go on.
    Pause(bool),
    /// It has ended and was to go then: mark it so.
    Forget,
    /// Take away everything of it.
    Remove,
}

/// The one next thing. `attached`: somebody still wants to see its end.
/// `restarting`: the clock will start it again.
pub fn plan(instance: &Instance, attached: bool, restarting: bool) -> Action {
    let (spec, status) = (&instance.spec, &instance.status);
    let newer = spec.running && status.starts < spec.starts;
    if status.phase.is_alive() {
        return match status.phase {
            // What it is in the middle of has to end first.
            Phase::Starting | Phase::Stopping => Action::Wait,
            _ if instance.removing => Action::Stop { kill: true },
            _ if !spec.running || newer => Action::Stop { kill: false },
            Phase::Running if spec.paused => Action::Pause(true),
            Phase::Paused if !spec.paused => Action::Pause(false),
            _ => Action::Wait,
        };
    }
    if instance.removing {
        return Action::Remove;
    }
    if newer {
        return Action::Start;
    }
    let over = matches!(status.phase, Phase::Exited | Phase::Failed);
    if over && spec.remove_on_exit && !attached && !restarting {
        return Action::Forget;
    }
    Action::Wait
}

/// How long after this end the instance is to start again, if at all.
pub fn restart_after(instance: &Instance, code: Option<u8>, restarts: u32) -> Option<Duration> {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);
    let spec = &instance.spec;
    let stopped = !spec.running || spec.starts > instance.status.starts || instance.removing;
    if stopped {
        return None;
    }
    let again = match spec.restart {
        Restart::No => false,
        Restart::OnFailure(most) => code != Some(0) && most.is_none_or(|most| restarts < most),
        Restart::Always => true,
    };
    again.then(|| FIRST.saturating_mul(1 << restarts.min(16)).min(LONGEST))
}

#[cfg(test)]
mod tests;
