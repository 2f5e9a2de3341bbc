//! Frames: length, kind, session, then as many bytes.

use super::{PIECE, ToGuest, ToHost};

const HEADER: usize = 9;
/// A message holds lists of names and paths, so it may be longer than a piece of data.
const LARGEST: usize = 1 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Control = 0,
    Input = 1,
    Output = 2,
    Errors = 3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub session: u32,
    pub payload: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame is of the unknown kind {0}")]
    Kind(u8),
    #[error("a frame has {0} bytes")]
    Length(usize),
    #[error("a message cannot be read: {0}")]
    Message(postcard::Error),
}

impl Frame {
    pub fn message_to_guest(&self) -> Result<ToGuest, FrameError> {
        postcard::from_bytes(&self.payload).map_err(FrameError::Message)
    }

    pub fn message_to_host(&self) -> Result<ToHost, FrameError> {
        postcard::from_bytes(&self.payload).map_err(FrameError::Message)
    }
}

/// Appends a frame to what is to be sent.
pub fn encode(out: &mut Vec<u8>, kind: Kind, session: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Cuts a stream of bytes into frames.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// What of them has been given out.
    taken: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is there as a whole.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, kind, session @ ..] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (kind, most) = match kind {
            0 => (Kind::Control, LARGEST),
            1 => (Kind::Input, PIECE),
            2 => (Kind::Output, PIECE),
            3 => (Kind::Errors, PIECE),
            other => return Err(FrameError::Kind(other)),
        };
        if length > most {
            return Err(FrameError::Length(length));
        }
        let Some(payload) = rest.get(HEADER..HEADER + length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.taken += HEADER + length;
        Ok(Some(Frame { kind, session: u32::from_le_bytes(session), payload }))
    }
}

#[cfg(test)]
mod tests;
