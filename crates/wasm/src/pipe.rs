//! A program's streams: descriptors that nobody's thread waits for, so that a program which
//! waits for one can be held and ended like any other.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::cli::{
    AsyncStdinStream, AsyncStdoutStream, IsTerminal, StdinStream, StdoutStream,
};
use wasmtime_wasi::p2::{InputStream, OutputStream};

/// What may wait to be written before the program waits too.
const BUDGET: usize = 64 << 10;

/// A pipe's end, or a terminal.
struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// To be called where a runtime is.
    fn new(fd: OwnedFd) -> io::Result<Pipe> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: the pipe owns the descriptor, and neither gives it away nor closes it before
        // it is dropped itself.
        Ok(Pipe(unsafe { AsyncFd::register(fd) }?))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match rustix::io::read(self.0.get_ref(), buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // A terminal whose other side is gone.
                Err(Errno::IO) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What the program reads.
pub struct Input {
    stream: AsyncStdinStream,
    terminal: bool,
}

impl Input {
    pub fn new(fd: OwnedFd, terminal: bool) -> io::Result<Input> {
        Ok(Input { stream: AsyncStdinStream::new(Pipe::new(fd)?), terminal })
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        self.stream.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        self.stream.p2_stream()
    }
}

/// Where the program writes.
pub struct Output {
    stream: AsyncStdoutStream,
    terminal: bool,
}

impl Output {
    pub fn new(fd: OwnedFd, terminal: bool) -> io::Result<Output> {
        Ok(Output { stream: AsyncStdoutStream::new(BUDGET, Pipe::new(fd)?), terminal })
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        self.stream.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        self.stream.p2_stream()
    }
}

/// Waits until everything that was written to a stream has gone out, or cannot.
pub async fn drain(mut stream: Box<dyn OutputStream>) {
    if stream.flush().is_ok() {
        stream.ready().await;
    }
}
