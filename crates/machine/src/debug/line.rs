//! The line to a debugger. While nothing comes over it, it watches whether the session
//! is to end for another reason; it then breaks, as if the debugger had gone.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use gdbstub::conn::{Connection, ConnectionExt};

use super::GLANCE;
use crate::control::Control;

pub struct Line {
    stream: UnixStream,
    control: Arc<Control>,
    deadline: Option<Instant>,
    /// A byte that was looked at and is still to be read.
    next: Option<u8>,
}

impl Line {
    pub fn new(
        stream: UnixStream,
        control: Arc<Control>,
        deadline: Option<Instant>,
    ) -> io::Result<Line> {
        stream.set_read_timeout(Some(GLANCE))?;
        Ok(Line { stream, control, deadline, next: None })
    }

    /// The next byte, if there is one at once or soon.
    fn take(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.next.take() {
            return Ok(Some(byte));
        }
        if self.control.is_left() || self.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let mut byte = [0];
        match Read::read(&mut self.stream, &mut byte) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(Some(byte[0])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Connection for Line {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        Write::write_all(&mut self.stream, &[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(&mut self.stream, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Write::flush(&mut self.stream)
    }
}

impl ConnectionExt for Line {
    fn read(&mut self) -> io::Result<u8> {
        loop {
            if let Some(byte) = self.take()? {
                return Ok(byte);
            }
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        self.next = self.take()?;
        Ok(self.next)
    }
}
