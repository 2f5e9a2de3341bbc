//! The terminal as the guest's console: raw while the guest has it, with
//! Ctrl-A X as the way out, and Ctrl-A Ctrl-A for a Ctrl-A.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use guise_devices::uart::Uart;
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios};

use crate::MachineError;

const ESCAPE: u8 = 0x01;

/// Where a terminal's input can go: the serial port, or a virtio console.
pub trait Input: Send + Sync {
    /// Takes as many bytes as there is room for.
    fn input(&self, bytes: &[u8]) -> usize;
    /// Waits until there is room, and says whether there is.
    fn wait_for_room(&self, timeout: Duration) -> bool;
}

impl Input for Uart {
    fn input(&self, bytes: &[u8]) -> usize {
        Uart::input(self, bytes)
    }

    fn wait_for_room(&self, timeout: Duration) -> bool {
        Uart::wait_for_room(self, timeout)
    }
}

impl Input for guise_virtio::console::Console {
    fn input(&self, bytes: &[u8]) -> usize {
        guise_virtio::console::Console::input(self, bytes)
    }

    fn wait_for_room(&self, timeout: Duration) -> bool {
        guise_virtio::console::Console::wait_for_room(self, timeout)
    }
}

/// Standard input, being read for a guest. Dropping it gives the terminal back.
pub struct Console {
    shared: Arc<Shared>,
    wake: File,
    thread: Option<JoinHandle<()>>,
    /// The terminal's modes before, where it is one.
    saved: Option<Termios>,
}

struct Shared {
    state: Mutex<State>,
    on_leave: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    port: Option<Arc<dyn Input>>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// Begins to read. `on_leave` is called when the user types Ctrl-A X.
    pub fn open(on_leave: impl Fn() + Send + Sync + 'static) -> Result<Self, MachineError> {
        let failed = |doing| move |source: std::io::Error| MachineError::Host { doing, source };
        let shared = Arc::new(Shared { state: Mutex::default(), on_leave: Box::new(on_leave) });
        let (stopped, wake) = rustix::pipe::pipe()
            .map_err(|error| failed("making a pipe for the console")(error.into()))?;
        let terminal = std::io::stdin().is_terminal();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || read_input(&theirs, stopped.as_fd(), terminal))
            .map_err(failed("starting the console's thread"))?;
        let saved = if terminal { make_raw() } else { None };
        Ok(Console { shared, wake: wake.into(), thread: Some(thread), saved })
    }

    /// Sends what is typed to this port from now on. Before the first call nothing
    /// is read.
    pub fn connect(&self, port: Arc<dyn Input>) {
        self.shared.lock().port = Some(port);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        if let Some(saved) = &self.saved {
            // There is nobody left to tell of a failure.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, saved);
        }
        // The reader waits for input or for this.
        let _ = rustix::io::write(&self.wake, &[0]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console's thread ended with a panic");
        }
    }
}

/// Every key goes to the guest as it is. Output keeps its processing, since the
/// host's own messages go there too.
fn make_raw() -> Option<Termios> {
    let stdin = std::io::stdin();
    let saved = rustix::termios::tcgetattr(&stdin).ok()?;
    let mut raw = saved.clone();
    raw.make_raw();
    raw.output_modes = saved.output_modes;
    rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
    Some(saved)
}

fn read_input(shared: &Shared, stopped: BorrowedFd, terminal: bool) {
    let mut escape = terminal.then(Escape::default);
    let mut buffer = [0; 512];
    let stdin = std::io::stdin();
    loop {
        let mut fds =
            [PollFd::new(&stdin, PollFlags::IN), PollFd::from_borrowed_fd(stopped, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::warn!(%error, "the console is not read any more"),
        }
        if shared.lock().stop {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        // Past the standard library's buffer: what waits in there would not be polled.
        let length = match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(error) => return tracing::warn!(%error, "the console is not read any more"),
        };
        let (typed, leave) = match &mut escape {
            Some(escape) => escape.filter(&buffer[..length]),
            None => (buffer[..length].to_vec(), false),
        };
        if !deliver(shared, &typed) {
            return;
        }
        if leave {
            (shared.on_leave)();
        }
    }
}

/// Waits for a port and for room in it. Says whether the console is still open.
fn deliver(shared: &Shared, mut bytes: &[u8]) -> bool {
    const PATIENCE: Duration = Duration::from_millis(100);
    while !bytes.is_empty() {
        let (port, stop) = {
            let state = shared.lock();
            (state.port.clone(), state.stop)
        };
        if stop {
            return false;
        }
        match port {
            Some(port) if port.wait_for_room(PATIENCE) => {
                let taken = port.input(bytes);
                bytes = &bytes[taken..];
            }
            Some(_) => {}
            None => std::thread::sleep(PATIENCE),
        }
    }
    true
}

/// Finds Ctrl-A X in what is typed.
#[derive(Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    /// What is for the guest, and whether the user wants to leave.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if !self.pending && *byte == ESCAPE {
                self.pending = true;
            } else if self.pending {
                self.pending = false;
                match byte {
                    b'x' | b'X' => return (passed, true),
                    &ESCAPE => passed.push(ESCAPE),
                    other => passed.extend([ESCAPE, *other]),
                }
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests;
