//! A terminal, or three streams, tied to a session.

use std::io::{IsTerminal, Read, Write};

use guise_api::Ended;
use guise_api::client::{Receiver, Session};
use guise_api::session::{CHUNK, Frame, Warned};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::Failure;

/// What of this process's streams takes part.
pub struct Console {
    pub terminal: bool,
    pub stdin: bool,
    /// Bytes that, typed one after the other, leave the program running and go.
    pub detach: Vec<u8>,
}

/// How a session ended for this end.
pub enum Outcome {
    Ended(Ended),
    Detached,
}

/// This terminal's size, where there is one: rows, columns.
pub fn size() -> (u16, u16) {
    tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdin()))
        .map_or((0, 0), |size| (size.ws_row, size.ws_col))
}

/// `ctrl-p,ctrl-q` as the bytes that are typed.
pub fn parse_keys(text: &str) -> Result<Vec<u8>, Failure> {
    let key = |key: &str| {
        let plain = key.as_bytes();
        match (key.strip_prefix("ctrl-").map(str::as_bytes), plain) {
            (Some([letter]), _) if letter.is_ascii_alphabetic() => {
                Some(letter.to_ascii_lowercase() - b'a' + 1)
            }
            (Some([sign @ b'@'..=b'_']), _) => Some(sign - b'@'),
            (None, [one]) => Some(*one),
            _ => None,
        }
    };
    let bad = || Failure::usage(format!("--detach-keys {text}: keys are letters or ctrl-LETTER"));
    text.split(',').filter(|part| !part.is_empty()).map(|part| key(part).ok_or_else(bad)).collect()
}

/// A terminal is wanted, and there is one.
pub fn check_terminal(wanted: bool, stdin: bool) -> Result<(), Failure> {
    if wanted && stdin && !std::io::stdin().is_terminal() {
        return Err(Failure {
            code: 125,
            message: "standard input is no terminal; leave out -t, or give it one".to_owned(),
        });
    }
    Ok(())
}

/// This terminal in raw mode, given back at the end.
struct Raw(Option<Termios>);

impl Raw {
    fn enter(wanted: bool) -> Raw {
        let raw = Raw(if wanted { tcgetattr(rustix::stdio::stdin()).ok() } else { None });
        raw.take();
        raw
    }

    fn take(&self) {
        if let Some(saved) = &self.0 {
            let mut raw = saved.clone();
            raw.make_raw();
            // Else it stays as it is.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw);
        }
    }

    fn give_back(&self) {
        if let Some(saved) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
        }
    }

    /// Has this command say something of its own, on the terminal as it was before.
    fn aside(&self, say: impl FnOnce()) {
        self.give_back();
        say();
        self.take();
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Input as it comes; a thread reads it, because standard input may be anything.
fn input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// Looks for the detach keys in what is typed.
struct Keys {
    wanted: Vec<u8>,
    matched: usize,
}

impl Keys {
    /// What is to be sent, and whether the keys are complete.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.wanted.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.wanted.len() {
                    return (sent, true);
                }
                continue;
            }
            // What was held back as a beginning is typed after all.
            sent.extend_from_slice(&self.wanted[..self.matched]);
            self.matched = usize::from(self.wanted.first() == Some(byte));
            if self.matched == 0 {
                sent.push(*byte);
            }
        }
        (sent, false)
    }
}

/// Signals that are passed on to the program, where no terminal makes them.
struct Passed(Vec<(i32, Signal)>);

impl Passed {
    fn listen(wanted: bool) -> Passed {
        const ALL: [i32; 5] = [1, 2, 3, 10, 12];
        const TERMINATE: i32 = 15;
        let kinds =
            if wanted { ALL.iter().chain([&TERMINATE]) } else { [].iter().chain([&TERMINATE]) };
        Passed(
            kinds
                .filter_map(|kind| Some((*kind, signal(SignalKind::from_raw(*kind)).ok()?)))
                .collect(),
        )
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (kind, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*kind);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Moves everything both ways until the program or the user ends it.
pub async fn attend(session: Session, console: Console) -> Result<Outcome, Failure> {
    let raw = Raw::enter(console.terminal && console.stdin);
    let (mut sender, mut receiver) = session.split();
    let (queue, mut queued) = mpsc::channel::<Frame>(4);
    // A task of its own: while input waits for the program to read it, output goes on.
    let writer = tokio::spawn(async move {
        while let Some(frame) = queued.recv().await {
            if sender.send(&frame).await.is_err() {
                return;
            }
        }
    });
    let outcome = exchange(&mut receiver, &queue, console, &raw).await;
    drop(queue);
    if matches!(outcome, Ok(Outcome::Detached)) {
        // What was typed before the keys still arrives.
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
        let _ = tokio::time::timeout(PATIENCE, writer).await;
    }
    drop(raw);
    outcome
}

async fn exchange(
    receiver: &mut Receiver,
    queue: &mpsc::Sender<Frame>,
    console: Console,
    raw: &Raw,
) -> Result<Outcome, Failure> {
    let mut typed = console.stdin.then(input);
    let mut keys = Keys { wanted: console.detach, matched: 0 };
    let mut passed = Passed::listen(!console.terminal);
    let mut resized = signal(SignalKind::window_change()).map_err(Failure::failed)?;
    let resize = || {
        let (rows, columns) = size();
        // A queue that is full has one on its way.
        let _ = queue.try_send(Frame::Resize { rows, columns });
    };
    if console.terminal && size().0 > 0 {
        resize();
    }
    loop {
        // Input is taken when there is room for it, with its place in the queue.
        let more = async {
            match (&mut typed, queue.reserve().await) {
                (Some(typed), Ok(place)) => (place, typed.recv().await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = receiver.next() => match frame? {
                Some(Frame::Stdout(bytes)) => write(&mut std::io::stdout(), &bytes)?,
                Some(Frame::Stderr(bytes)) => write(&mut std::io::stderr(), &bytes)?,
                Some(Frame::Exit(ended)) => return Ok(Outcome::Ended(ended)),
                Some(Frame::Error(error)) => return Err(error.into()),
                Some(frame) => if let Ok(Warned { instance, warnings }) = frame.parse() {
                    raw.aside(|| warn(&instance, &warnings));
                },
                None => return Err(Failure::failed(
                    "the daemon ended the session; the instance may run on: guise ps -a",
                )),
            },
            (place, bytes) = more => match bytes {
                Some(bytes) => {
                    let (bytes, detach) = if console.terminal {
                        keys.filter(&bytes)
                    } else {
                        (bytes, false)
                    };
                    if !bytes.is_empty() {
                        place.send(Frame::Stdin(bytes));
                    }
                    if detach {
                        return Ok(Outcome::Detached);
                    }
                }
                None => {
                    place.send(Frame::StdinEnd);
                    typed = None;
                }
            },
            signal = passed.next() => {
                // The writer is gone with the session, which is told above.
                let _ = queue.try_send(Frame::Signal(signal));
            }
            _ = resized.recv(), if console.terminal => resize(),
        }
    }
}

/// Tells what of an instance could not be done as it was asked for: a line each. It runs all the
/// same, also when nobody reads this.
pub fn warn(instance: &str, warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "guise: {instance}: {warning}");
    }
}

fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        // Whoever read this has read enough, as with any pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: 141, message: "nobody reads the output any more".to_owned() })
        }
        other => other.map_err(Failure::failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_wherever_reads_end() {
        let wanted = parse_keys("ctrl-p,ctrl-q").ok().unwrap();
        assert_eq!(wanted, [16, 17]);
        let mut keys = Keys { wanted: wanted.clone(), matched: 0 };
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert!(parse_keys("ctrl-1").is_err());
        let mut none = Keys { wanted: Vec::new(), matched: 0 };
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
