//! `kill`: signals to a container.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Context, Error, Result};
use crate::state::{Status, Store};
use crate::sys::clone::signal_pidfd;

/// Sends a signal to the first process, or with `all` to every one.
pub fn kill(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    let entry = store.find(id)?;
    let state = entry.state()?;
    let cgroup = state.cgroup();
    let process = state.process();
    if all {
        return cgroup.signal_all(signal);
    }
    let Some(process) = process else {
        return Err(Error::State {
            id: id.to_owned(),
            status: Status::Stopped.name(),
            wanted: "there is no process to signal",
        });
    };
    if signal == libc::SIGKILL && !state.own_pid_namespace {
        // Without a pid namespace the others would outlive the first.
        cgroup.signal_all(signal)?;
    }
    match signal_pidfd(&process, signal) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
        other => other.during(|| format!("send signal {signal} to {id}"))?,
    }
    if signal == libc::SIGKILL && cgroup.is_frozen() {
        cgroup.freeze(false)?;
    }
    Ok(())
}

/// Waits, with a bound, until a process that was killed is gone.
pub fn wait_for_end(process: &OwnedFd) {
    const PATIENCE: Duration = Duration::from_secs(10);
    wait_at_most(process, PATIENCE);
}

/// Waits until a process ends or the time is over.
pub fn wait_at_most(process: &OwnedFd, patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

const SIGNALS: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// A signal by number or by name, with or without `SIG`; realtime signals as
/// `RTMIN+n` and `RTMAX-n`.
pub fn parse_signal(text: &str) -> Option<i32> {
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (0..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(n, _)| *n == name) {
        return Some(*number);
    }
    let offset = |rest: &str| match rest {
        "" => Some(0),
        _ => rest.parse::<i32>().ok().filter(|n| (-30..=30).contains(n)),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest)?
    } else {
        RTMAX + offset(name.strip_prefix("RTMAX")?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("65", None),
            ("-1", None),
            ("NOPE", None),
        ] {
            assert_eq!(parse_signal(text), number, "{text}");
        }
    }
}
