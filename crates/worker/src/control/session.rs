//! Sessions over the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use guise_api::session::{CHUNK, Frame};
use guise_api::{ApiError, Ended};

use super::{Reply, Served};
use crate::body::{Exit, Program, Session, Size};
use crate::log::Stream;
use crate::output::Listener;

/// The workload's input, which ends once for all.
#[derive(Clone)]
pub struct Input(Arc<Mutex<Option<Box<dyn Write + Send>>>>);

impl Input {
    pub fn new(stream: Option<Box<dyn Write + Send>>) -> Input {
        Input(Arc::new(Mutex::new(stream)))
    }

    fn write(&self, bytes: &[u8]) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = stream.as_mut()
            && open.write_all(bytes).and_then(|()| open.flush()).is_err()
        {
            // The program has closed its end.
            *stream = None;
        }
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

pub fn ended(exit: Exit) -> Ended {
    Ended { exit_code: exit.code(), out_of_memory: exit == Exit::OutOfMemory, error: None }
}

fn begin(mut stream: &UnixStream) -> io::Result<()> {
    Frame::message(&Reply::Done).write(&mut stream)
}

fn refuse(mut stream: &UnixStream, error: impl Into<ApiError>) -> io::Result<()> {
    Frame::message(&Reply::Failed(error.into())).write(&mut stream)
}

pub fn watch(stream: &UnixStream, served: &Served) -> io::Result<()> {
    let news = served.output.watch();
    begin(stream)?;
    // The end is the last.
    news.into_iter().try_for_each(|frame| frame.write(&mut &*stream))
}

pub fn attach(
    stream: &UnixStream,
    served: &Served,
    with_past: bool,
    stdin: bool,
) -> io::Result<()> {
    let listener = served.output.listen(with_past)?;
    begin(stream)?;
    let reader = stream.try_clone()?;
    let (workload, input) = (served.workload.clone(), served.input.clone());
    std::thread::spawn(move || {
        while let Ok(Some(frame)) = Frame::read(&mut &reader) {
            match frame {
                Frame::Stdin(bytes) if stdin => input.write(&bytes),
                Frame::StdinEnd if stdin => input.end(),
                // What is over needs neither.
                Frame::Signal(signal) => drop(workload.signal(signal)),
                Frame::Resize { rows, columns } => {
                    drop(workload.resize(Size { rows, columns }));
                }
                _ => {}
            }
        }
        // Nobody listens any more: whoever waits for output notices.
        let _ = reader.shutdown(std::net::Shutdown::Both);
    });
    forward(stream, listener)
}

/// Sends what a listener gets until the end.
fn forward(mut stream: &UnixStream, listener: Listener) -> io::Result<()> {
    if let Some((mut reader, end)) = listener.before {
        while reader.position() < end
            && let Some(record) = reader.next_record()?
        {
            let frame = match record.stream {
                Stream::Stdout => Frame::Stdout(record.bytes),
                Stream::Stderr => Frame::Stderr(record.bytes),
            };
            frame.write(&mut stream)?;
        }
    }
    while let Ok(frame) = listener.live.recv() {
        frame.write(&mut stream)?;
        if matches!(*frame, Frame::Exit(_)) {
            break;
        }
    }
    Ok(())
}

pub fn exec(stream: &UnixStream, served: &Served, program: &Program) -> io::Result<()> {
    let session = match served.body.open(program) {
        Ok(session) => session,
        Err(error) => return refuse(stream, error),
    };
    begin(stream)?;
    let Session { stdin, stdout, stderr, process } = session;
    let to = Arc::new(Mutex::new(stream.try_clone()?));
    let pumps: Vec<_> = [(stdout, Stream::Stdout), (stderr, Stream::Stderr)]
        .into_iter()
        .filter_map(|(from, kind)| Some((from?, kind)))
        .map(|(from, kind)| {
            let to = to.clone();
            std::thread::spawn(move || {
                pump(from, |bytes| {
                    let frame = match kind {
                        Stream::Stdout => Frame::Stdout(bytes.to_vec()),
                        Stream::Stderr => Frame::Stderr(bytes.to_vec()),
                    };
                    let to = to.lock().unwrap_or_else(PoisonError::into_inner);
                    frame.write(&mut &*to).is_ok()
                });
            })
        })
        .collect();
    let (reader, input, program) = (stream.try_clone()?, Input::new(stdin), process.clone());
    std::thread::spawn(move || {
        while let Ok(Some(frame)) = Frame::read(&mut &reader) {
            match frame {
                Frame::Stdin(bytes) => input.write(&bytes),
                Frame::StdinEnd => input.end(),
                Frame::Signal(signal) => drop(program.signal(signal)),
                Frame::Resize { rows, columns } => drop(program.resize(Size { rows, columns })),
                _ => {}
            }
        }
        input.end();
    });
    let exit = process.wait();
    for pump in pumps {
        // It has sent what it could.
        let _ = pump.join();
    }
    let last = match exit {
        Ok(exit) => Frame::Exit(ended(exit)),
        Err(error) => Frame::Error(error.into()),
    };
    let to = to.lock().unwrap_or_else(PoisonError::into_inner);
    last.write(&mut &*to)?;
    to.shutdown(std::net::Shutdown::Both)
}

/// Reads to the end, in pieces, as long as somebody takes them.
pub fn pump(mut from: impl Read, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            // A terminal whose last user is gone fails to be read.
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if !take(&buffer[..length]) {
                    return;
                }
            }
        }
    }
}

pub fn copy_out(mut stream: &UnixStream, served: &Served, path: &str) -> io::Result<()> {
    begin(stream)?;
    let mut archive = io::BufWriter::with_capacity(CHUNK, Frames(stream));
    let copied = served.body.copy_out(path, &mut archive).map_err(ApiError::from);
    archive.flush()?;
    let last = match copied {
        Ok(()) => Frame::Exit(Ended::default()),
        Err(error) => Frame::Error(error),
    };
    last.write(&mut stream)
}

pub fn copy_in(mut stream: &UnixStream, served: &Served, path: &str) -> io::Result<()> {
    begin(stream)?;
    let mut archive = Archive { stream, rest: Vec::new(), at: 0, over: false };
    let copied = served.body.copy_in(path, &mut archive).map_err(ApiError::from);
    // Whoever sends is not left with a full socket.
    if copied.is_ok() {
        io::copy(&mut archive, &mut io::sink())?;
    }
    let last = match copied {
        Ok(()) => Frame::Exit(Ended::default()),
        Err(error) => Frame::Error(error),
    };
    last.write(&mut stream)
}

/// Output frames as a writer.
struct Frames<'a>(&'a UnixStream);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK);
        Frame::Stdout(bytes[..length].to_vec()).write(&mut self.0)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Input frames as a reader.
struct Archive<'a> {
    stream: &'a UnixStream,
    rest: Vec<u8>,
    at: usize,
    over: bool,
}

impl Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() && !self.over {
            match Frame::read(&mut self.stream)? {
                Some(Frame::Stdin(bytes)) => {
                    self.rest = bytes;
                    self.at = 0;
                }
                Some(Frame::StdinEnd) => self.over = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
            }
        }
        let rest = &self.rest[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}
