//! What the workload prints: into the log, and to whoever is attached.
//!
//! Who attaches gets what the log has of this life first and then what comes, with
//! nothing twice and nothing left out. A listener who does not read holds the workload
//! up, as a pipe would.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_api::Ended;
use guise_api::session::Frame;

use crate::control::News;
use crate::job;
use crate::log::{Position, Reader, Stream, Writer};

/// How many pieces wait for a listener before the workload does.
const BACKLOG: usize = 64;

pub struct Output {
    inner: Mutex<Inner>,
    directory: PathBuf,
    begin: Position,
}

struct Inner {
    log: Writer,
    listeners: Vec<SyncSender<Arc<Frame>>>,
    /// Who wants to know how it fares, and nothing of what it prints.
    watchers: Vec<Sender<Frame>>,
    without_space: bool,
    ended: Option<Ended>,
    /// The disk is full, say: told once.
    log_failed: bool,
}

/// What one listener gets.
pub struct Listener {
    /// What was printed before it came.
    pub before: Option<(Reader, Position)>,
    pub live: Receiver<Arc<Frame>>,
}

impl Output {
    pub fn new(directory: &Path, limits: job::Log) -> io::Result<Output> {
        let log = Writer::open(directory, limits)?;
        let begin = log.position();
        let inner = Inner {
            log,
            listeners: Vec::new(),
            watchers: Vec::new(),
            without_space: false,
            ended: None,
            log_failed: false,
        };
        Ok(Output { inner: Mutex::new(inner), directory: directory.to_owned(), begin })
    }

    /// Where this life's records begin.
    pub fn begin(&self) -> Position {
        self.begin
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked here left nothing half-done but a torn record.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        let listeners = {
            let mut inner = self.lock();
            if let Err(error) = inner.log.append(stream, bytes)
                && !std::mem::replace(&mut inner.log_failed, true)
            {
                eprintln!("the log has gaps: {error}");
            }
            inner.listeners.clone()
        };
        if listeners.is_empty() {
            return;
        }
        let frame = Arc::new(match stream {
            Stream::Stdout => Frame::Stdout(bytes.to_vec()),
            Stream::Stderr => Frame::Stderr(bytes.to_vec()),
        });
        self.send(&listeners, &frame);
    }

    /// Outside of the lock, so that one who does not read keeps nobody from attaching.
    fn send(&self, listeners: &[SyncSender<Arc<Frame>>], frame: &Arc<Frame>) {
        let mut somebody_left = false;
        for listener in listeners {
            somebody_left |= listener.send(frame.clone()).is_err();
        }
        if somebody_left {
            // Those that are gone fail to take an empty piece as well.
            let nothing = Arc::new(Frame::Stdout(Vec::new()));
            self.lock().listeners.retain(|listener| {
                !matches!(
                    listener.try_send(nothing.clone()),
                    Err(std::sync::mpsc::TrySendError::Disconnected(_))
                )
            });
        }
    }

    /// Adds a listener, with or without what this life has printed already.
    pub fn listen(&self, with_past: bool) -> io::Result<Listener> {
        let (sender, live) = sync_channel(BACKLOG);
        let mut inner = self.lock();
        let before = if with_past {
            let end = inner.log.position();
            let reader = Reader::new(&self.directory, Some(self.begin));
            Some((reader, end))
        } else {
            None
        };
        match &inner.ended {
            // The backlog is empty: there is room.
            Some(ended) => drop(sender.try_send(Arc::new(Frame::Exit(ended.clone())))),
            None => inner.listeners.push(sender),
        }
        Ok(Listener { before, live })
    }

    /// Gives what there is to know of it, from now on, and its end.
    pub fn watch(&self) -> Receiver<Frame> {
        let (sender, news) = channel();
        let mut inner = self.lock();
        // The other end is here yet.
        if inner.without_space {
            let _ = sender.send(Frame::message(&News::Space { lacking: true }));
        }
        match &inner.ended {
            Some(ended) => drop(sender.send(Frame::Exit(ended.clone()))),
            None => inner.watchers.push(sender),
        }
        news
    }

    /// Tells watchers whether it stands still because there is no space for what it writes.
    pub fn set_without_space(&self, lacking: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.without_space, lacking) != lacking {
            let frame = Frame::message(&News::Space { lacking });
            inner.watchers.retain(|watcher| watcher.send(frame.clone()).is_ok());
        }
    }

    pub fn is_without_space(&self) -> bool {
        self.lock().without_space
    }

    /// Tells everybody that it is over, now and later.
    pub fn finish(&self, ended: Ended) {
        let frame = Arc::new(Frame::Exit(ended.clone()));
        let listeners = {
            let mut inner = self.lock();
            inner.ended = Some(ended);
            for watcher in std::mem::take(&mut inner.watchers) {
                let _ = watcher.send(Frame::clone(&frame));
            }
            std::mem::take(&mut inner.listeners)
        };
        for listener in listeners {
            // One that is gone needs not be told.
            let _ = listener.send(frame.clone());
        }
    }
}
