//! What travels between a terminal and a program: frames.
//!
//! The same frames go over both legs of the way. Over WebSocket (command line to daemon)
//! each binary message is a frame: a byte that says what it is, and its payload. Over
//! the worker's socket (daemon to worker) a length of four bytes, little endian, comes
//! before it.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::{ApiError, Ended};

/// The largest frame on any leg. Data is sent in smaller ones.
pub const MAX_FRAME: usize = 1 << 20;
/// How much data senders put into one frame.
pub const CHUNK: usize = 32 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Stdin(Vec<u8>),
    /// There will be no more input.
    StdinEnd,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Resize {
        rows: u16,
        columns: u16,
    },
    Signal(i32),
    /// The program has ended, and all of its output has been sent.
    Exit(Ended),
    /// It could not be started, or the session broke.
    Error(ApiError),
    /// A request to the worker or its answer, or what the daemon has to say: JSON.
    Message(Vec<u8>),
}

/// What is told as a message before anything that the program prints, to who hears it from the
/// beginning of a life: what could not be done as it was asked for, and was left out. Nothing is
/// told where nothing was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warned {
    /// The instance's name.
    pub instance: String,
    pub warnings: Vec<String>,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of a session is malformed")]
pub struct Malformed;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STDIN_END: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const EXIT: u8 = 6;
const ERROR: u8 = 7;
const MESSAGE: u8 = 8;

impl Frame {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let json = |kind: u8, value: Result<Vec<u8>, serde_json::Error>| {
            let mut bytes = vec![kind];
            // These types have no maps with keys that are not text: nothing can fail.
            bytes.extend(value.unwrap_or_default());
            bytes
        };
        let data = |kind: u8, data: &[u8]| {
            let mut bytes = Vec::with_capacity(data.len() + 1);
            bytes.push(kind);
            bytes.extend_from_slice(data);
            bytes
        };
        match self {
            Frame::Stdin(bytes) => data(STDIN, bytes),
            Frame::Stdout(bytes) => data(STDOUT, bytes),
            Frame::Stderr(bytes) => data(STDERR, bytes),
            Frame::Message(bytes) => data(MESSAGE, bytes),
            Frame::StdinEnd => vec![STDIN_END],
            Frame::Resize { rows, columns } => {
                let mut bytes = vec![RESIZE];
                bytes.extend_from_slice(&rows.to_le_bytes());
                bytes.extend_from_slice(&columns.to_le_bytes());
                bytes
            }
            Frame::Signal(signal) => data(SIGNAL, &signal.to_le_bytes()),
            Frame::Exit(ended) => json(EXIT, serde_json::to_vec(ended)),
            Frame::Error(error) => json(ERROR, serde_json::to_vec(error)),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Frame, Malformed> {
        if bytes.len() > MAX_FRAME {
            return Err(Malformed);
        }
        let (kind, payload) = bytes.split_first().ok_or(Malformed)?;
        Ok(match *kind {
            STDIN => Frame::Stdin(payload.to_vec()),
            STDOUT => Frame::Stdout(payload.to_vec()),
            STDERR => Frame::Stderr(payload.to_vec()),
            MESSAGE => Frame::Message(payload.to_vec()),
            STDIN_END if payload.is_empty() => Frame::StdinEnd,
            RESIZE => match *payload {
                [a, b, c, d] => Frame::Resize {
                    rows: u16::from_le_bytes([a, b]),
                    columns: u16::from_le_bytes([c, d]),
                },
                _ => return Err(Malformed),
            },
            SIGNAL => {
                let signal = payload.try_into().map_err(|_| Malformed)?;
                Frame::Signal(i32::from_le_bytes(signal))
            }
            EXIT => Frame::Exit(serde_json::from_slice(payload).map_err(|_| Malformed)?),
            ERROR => Frame::Error(serde_json::from_slice(payload).map_err(|_| Malformed)?),
            _ => return Err(Malformed),
        })
    }

    /// A message of the worker's protocol.
    pub fn message(value: &impl Serialize) -> Frame {
        Frame::Message(serde_json::to_vec(value).unwrap_or_default())
    }

    /// The message's value.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Malformed> {
        match self {
            Frame::Message(bytes) => serde_json::from_slice(bytes).map_err(|_| Malformed),
            _ => Err(Malformed),
        }
    }

    /// The frame with its length before it, as sockets of workers carry it.
    #[must_use]
    pub fn with_length(&self) -> Vec<u8> {
        let bytes = self.encode();
        let mut framed = Vec::with_capacity(bytes.len() + 4);
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&bytes);
        framed
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.with_length())
    }

    /// Reads a frame; none when the other end has closed between two frames.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut length = [0; 4];
        match from.read(&mut length[..1])? {
            0 => return Ok(None),
            _ => from.read_exact(&mut length[1..])?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Malformed));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Frame::decode(&bytes)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests;
