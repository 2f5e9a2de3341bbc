//! Progress bars on a terminal, plain lines elsewhere; both on stderr.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use guise_api::human_size;
use guise_image::Digest;
use guise_image::progress::{Meter, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often bars move.
const TICK: Duration = Duration::from_millis(100);

/// Shows what the library does.
pub enum Bars {
    Quiet,
    Lines,
    Terminal(Terminal),
}

pub struct Terminal {
    bars: MultiProgress,
    /// New bars for the thread that moves them; gone when that is to end.
    added: Mutex<Option<Sender<(Meter, ProgressBar)>>>,
    mover: Mutex<Option<JoinHandle<()>>>,
}

impl Bars {
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let (added, to_add) = mpsc::channel::<(Meter, ProgressBar)>();
        let mover = std::thread::spawn(move || {
            let mut active: Vec<(Meter, ProgressBar)> = Vec::new();
            loop {
                match to_add.recv_timeout(TICK) {
                    Ok(new) => active.push(new),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                active.retain(|(meter, bar)| {
                    bar.set_position(meter.bytes());
                    if meter.finished() {
                        bar.finish_and_clear();
                    }
                    !meter.finished()
                });
            }
            for (_, bar) in active {
                bar.finish_and_clear();
            }
        });
        Self::Terminal(Terminal {
            bars: MultiProgress::new(),
            added: Mutex::new(Some(added)),
            mover: Mutex::new(Some(mover)),
        })
    }

    /// Takes the bars off the terminal.
    pub fn finish(&self) {
        if let Self::Terminal(terminal) = self {
            if let Ok(mut added) = terminal.added.lock() {
                *added = None;
            }
            if let Some(mover) = terminal.mover.lock().ok().and_then(|mut mover| mover.take()) {
                // It only draws: nothing is lost with it.
                let _ = mover.join();
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Bars {
    fn start(&self, what: &'static str, digest: Digest, bytes: u64) -> Meter {
        let meter = Meter::default();
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{what} {} ({})", digest.short(), human_size(bytes)),
            Self::Terminal(terminal) => {
                let style = ProgressStyle::with_template(
                    "{prefix} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(bytes)
                    .with_style(style)
                    .with_prefix(format!("{what} {}", digest.short()));
                let bar = terminal.bars.add(bar);
                if let Ok(added) = terminal.added.lock()
                    && let Some(added) = &*added
                {
                    let _ = added.send((meter.clone(), bar));
                }
            }
        }
        meter
    }

    fn note(&self, line: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => eprintln!("{line}"),
            // Above the bars; a failure to draw is no reason to fail.
            Self::Terminal(terminal) => drop(terminal.bars.println(line)),
        }
    }
}
