//! The daemon's side of a worker's control socket.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use guise_api::session::{Frame, MAX_FRAME};
use guise_api::{ApiError, Code};
use guise_worker::control::{Reply, Request};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The worker did not answer: it is about to end, or has.
pub fn gone(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::State, format!("the instance's worker does not answer ({error})"))
        .hint("look at its state: guise ps -a")
}

/// Connects to a worker. Its socket is in a folder of its own: one that was taken over may have left
/// the way to another's there, or to anything else that listens on this host.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::open(socket, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::Error::other(format!("{} is no socket", socket.display())));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

/// Asks, and hands the connection on when the answer is a session.
async fn ask(socket: &Path, request: &Request) -> Result<(Reply, UnixStream), ApiError> {
    let mut stream = connect(socket).await.map_err(gone)?;
    write(&mut stream, &Frame::message(request)).await.map_err(gone)?;
    let frame = read(&mut stream).await.map_err(gone)?;
    let frame = frame.ok_or_else(|| gone("it closed the connection"))?;
    Ok((frame.parse().map_err(gone)?, stream))
}

pub async fn request(socket: &Path, request: &Request) -> Result<Reply, ApiError> {
    match ask(socket, request).await?.0 {
        Reply::Failed(error) => Err(error),
        reply => Ok(reply),
    }
}

pub async fn session(socket: &Path, request: &Request) -> Result<UnixStream, ApiError> {
    match ask(socket, request).await? {
        (Reply::Failed(error), _) => Err(error),
        (_, stream) => Ok(stream),
    }
}

/// Reads a frame; none when the worker has closed between two.
pub async fn read(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<Frame>> {
    let mut length = [0; 4];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Frame::decode(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub async fn write(to: &mut (impl AsyncWriteExt + Unpin), frame: &Frame) -> io::Result<()> {
    to.write_all(&frame.with_length()).await
}

#[cfg(test)]
mod tests;
