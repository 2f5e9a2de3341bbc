//! A container in the foreground: signals go in, the terminal goes both ways,
//! the exit status comes out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::sys::clone::{Child, signal_pidfd};
use crate::sys::{files, terminal};

/// Signals that are passed on to the container.
const PASSED_ON: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGALRM,
    libc::SIGTSTP,
    libc::SIGWINCH,
];

/// Waits for the end of a process.
pub fn wait(child: &Child, master: Option<&OwnedFd>, pass_signals: bool) -> io::Result<i32> {
    if !pass_signals {
        return child.wait();
    }
    let signals = files::signal_fd(&PASSED_ON)?;
    let raw = master.map(|_| RawTerminal::enter()).transpose()?.flatten();
    if let Some(master) = master {
        copy_size(master.as_fd());
    }
    let mut input_open = master.is_some();
    let mut output_open = master.is_some();
    let mut pending = Vec::new();
    let mut ended = None;
    let status = loop {
        if ended.is_none() {
            ended = child.try_wait()?;
        }
        if let Some(status) = ended
            && !output_open
        {
            break status;
        }
        let mut fds = Vec::with_capacity(4);
        fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        // A process that has ended stays readable; only its output still counts.
        if ended.is_none() {
            fds.push(PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN));
        }
        let terminal_at = fds.len();
        if let Some(master) = master.filter(|_| output_open) {
            let mut wanted = PollFlags::IN;
            if !pending.is_empty() {
                wanted |= PollFlags::OUT;
            }
            fds.push(PollFd::from_borrowed_fd(master.as_fd(), wanted));
        }
        let input_at = fds.len();
        if input_open && output_open && pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[0].is_empty() {
            pass_signals_on(&signals, child, master)?;
        }
        if let Some(master) = master.filter(|_| output_open) {
            let events = ready.get(terminal_at).copied().unwrap_or(PollFlags::empty());
            if events.contains(PollFlags::OUT) {
                write_some(master.as_fd(), &mut pending);
            }
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                output_open = copy_output(master.as_fd())?;
            }
            if ready.get(input_at).is_some_and(|e| !e.is_empty()) {
                input_open = read_input(&mut pending);
            }
        }
    };
    drop(raw);
    Ok(status)
}

fn pass_signals_on(signals: &OwnedFd, child: &Child, master: Option<&OwnedFd>) -> io::Result<()> {
    while let Some(signal) = files::next_signal(signals.as_fd())? {
        match (signal, master) {
            (libc::SIGWINCH, Some(master)) => copy_size(master.as_fd()),
            _ => {
                let _ = signal_pidfd(&child.pidfd, signal);
            }
        }
    }
    Ok(())
}

/// Copies what the container wrote; false at the end.
fn copy_output(master: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0u8; 16 << 10];
    match rustix::io::read(master, &mut buffer) {
        Ok(0) => Ok(false),
        Ok(n) => {
            use std::io::Write;
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..n])?;
            out.flush()?;
            Ok(true)
        }
        // The last user of the other end is gone.
        Err(rustix::io::Errno::IO) => Ok(false),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Reads what the user types; false at the end.
fn read_input(pending: &mut Vec<u8>) -> bool {
    const END_OF_TRANSMISSION: u8 = 4;
    let mut buffer = [0u8; 4 << 10];
    match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
        Ok(0) | Err(_) => {
            pending.push(END_OF_TRANSMISSION);
            false
        }
        Ok(n) => {
            pending.extend_from_slice(&buffer[..n]);
            true
        }
    }
}

fn write_some(master: BorrowedFd<'_>, pending: &mut Vec<u8>) {
    match rustix::io::write(master, pending) {
        Ok(n) => {
            pending.drain(..n);
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
        Err(_) => pending.clear(),
    }
}

fn copy_size(master: BorrowedFd<'_>) {
    if let Ok((rows, columns)) = terminal::size(rustix::stdio::stdin()) {
        let _ = terminal::set_size(master, rows, columns);
    }
}

/// The user's terminal in raw mode, put back at the end.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Option<Self>> {
        let input = rustix::stdio::stdin();
        let Ok(saved) = tcgetattr(input) else { return Ok(None) };
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(input, OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal(saved)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
