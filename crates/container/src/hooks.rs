//! Programs that the configuration wants run at points of a container's life.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{Error, Result};
use crate::spec::Hook;
use crate::state::PublicState;
use crate::sys::clone::open_pidfd;

/// Runs hooks in order; the first that fails ends it.
pub fn run(kind: &'static str, hooks: &[Hook], state: &PublicState<'_>) -> Result<()> {
    run_with(kind, hooks, state, &[])
}

/// The same with an environment for those that say none.
pub fn run_with(
    kind: &'static str,
    hooks: &[Hook],
    state: &PublicState<'_>,
    env: &[String],
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_vec(state)
        .map_err(|source| Error::Json { what: "the state for hooks".into(), source })?;
    for hook in hooks {
        one(hook, &text, env).map_err(|why| Error::Hook { kind, path: hook.path.clone(), why })?;
    }
    Ok(())
}

/// Runs all hooks and reports those that fail: where the specification wants
/// the life to go on.
pub fn run_all(kind: &'static str, hooks: &[Hook], state: &PublicState<'_>) {
    for hook in hooks {
        if let Err(e) = run(kind, std::slice::from_ref(hook), state) {
            tracing::warn!("{e}");
        }
    }
}

fn one(hook: &Hook, state: &[u8], env: &[String]) -> std::result::Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let [name, rest @ ..] = &hook.args[..] {
        command.arg0(name).args(rest);
    }
    command.env_clear().stdin(Stdio::piped());
    for variable in hook.env.as_deref().unwrap_or(env) {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read its input; a pipe that it closed is no failure.
        // The text is smaller than a pipe unless annotations are huge.
        let _ = input.write_all(state);
    }
    if let Some(seconds) = hook.timeout {
        wait_until(&mut child, Duration::from_secs(seconds.max(0) as u64))?;
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("ended with status {code}")),
        (None, signal) => Err(format!("was ended by signal {}", signal.unwrap_or(0))),
    }
}

/// Waits for the end of a hook, and ends it when its time is over.
fn wait_until(
    child: &mut std::process::Child,
    patience: Duration,
) -> std::result::Result<(), String> {
    let pidfd = open_pidfd(child.id() as i32).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not end within {} s", patience.as_secs()));
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        }
    }
}
