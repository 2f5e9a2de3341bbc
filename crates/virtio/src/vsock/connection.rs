//! One connection: a stream of the host, and the credit of both sides.
//!
//! Each side tells how much it keeps for a slow reader and how much it has passed on;
//! from the two follows how much the other may have under way. All counters wrap.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::packet::{HOST_CID, Header, STREAM};

/// What is kept for a stream whose reader is slow.
pub const BUFFER: u32 = 256 << 10;

/// Who is told how a connection to the guest went.
pub enum Origin {
    /// A process at the Unix socket: a line says it.
    Unix,
    /// Somebody in this process waits for it.
    Process(SyncSender<()>),
}

pub enum Stage {
    /// A process at the Unix socket has not said yet what it wants.
    Greeting,
    /// The guest has not answered yet.
    Requested(Origin),
    Open,
    /// The guest knows it no more; what it sent before is still on its way to the stream.
    Draining,
}

pub struct Connection {
    pub host_port: u32,
    pub guest_port: u32,
    pub stage: Stage,
    stream: UnixStream,
    /// The stream may have something to read, or room: it has not said otherwise since it
    /// was last said to.
    pub readable: bool,
    writable: bool,
    /// Both directions are closed at the stream's other end.
    pub hung_up: bool,
    /// Data on their way to the stream.
    waiting: VecDeque<u8>,
    /// Bytes passed on to the stream, and what the guest was last told of it.
    forwarded: u32,
    told: u32,
    /// A packet that tells it is on its way.
    pub telling: bool,
    /// Bytes sent to the guest, and what it says of them.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// What may still come: from the guest, into the guest, from the stream.
    guest_sends: bool,
    guest_receives: bool,
    pub host_sends: bool,
}

/// What reading a stream came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    Data(usize),
    Nothing,
    End,
    Broken,
}

impl Connection {
    pub fn new(stream: UnixStream, stage: Stage, host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            stage,
            stream,
            readable: true,
            writable: true,
            hung_up: false,
            waiting: VecDeque::new(),
            forwarded: 0,
            told: 0,
            telling: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
        }
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A packet to the guest, with what there is to tell.
    pub fn header(&mut self, cid: u64, operation: u16) -> Header {
        self.told = self.forwarded;
        self.telling = false;
        Header {
            source_cid: HOST_CID,
            destination_cid: cid,
            source_port: self.host_port,
            destination_port: self.guest_port,
            length: 0,
            kind: STREAM,
            operation,
            flags: 0,
            buffer: BUFFER,
            forwarded: self.forwarded,
        }
    }

    /// Takes over what the guest says of its own room.
    pub fn learn(&mut self, header: &Header) {
        (self.guest_buffer, self.guest_forwarded) = (header.buffer, header.forwarded);
    }

    /// How much may be sent to the guest now.
    fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// Whether there may be something for the guest that it has room for.
    pub fn may_deliver(&self) -> bool {
        let open = matches!(self.stage, Stage::Open);
        open && self.readable && self.host_sends && self.guest_receives && self.credit() > 0
    }

    /// Reads what the guest has room for.
    pub fn read(&mut self, buffer: &mut [u8]) -> Arrived {
        let most = buffer.len().min(self.credit() as usize);
        match recv(&self.stream, &mut buffer[..most], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.host_sends = false;
                Arrived::End
            }
            Ok((_, length)) => {
                self.sent = self.sent.wrapping_add(length as u32);
                Arrived::Data(length)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Arrived::Nothing
            }
            Err(Errno::INTR) => Arrived::Nothing,
            Err(_) => Arrived::Broken,
        }
    }

    /// How much the guest may send. More is against the rules.
    pub fn room(&self) -> u32 {
        if self.guest_sends { BUFFER - (self.waiting.len() as u32).min(BUFFER) } else { 0 }
    }

    /// Data of the guest: to the stream, or into the queue for it.
    pub fn accept(&mut self, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        if self.waiting.is_empty() {
            let written = self.write(rest)?;
            rest = &rest[written..];
        }
        self.waiting.extend(rest);
        Ok(())
    }

    /// The stream has room again.
    pub fn drain(&mut self) -> io::Result<()> {
        self.writable = true;
        while self.writable && !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let front = front.to_vec();
            let written = self.write(&front)?;
            self.waiting.drain(..written);
        }
        if self.waiting.is_empty() {
            // What a reader once left lying is not kept for the next one.
            self.waiting.shrink_to(4096);
            if !self.guest_sends {
                self.end_writing();
            }
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < data.len() {
            match send(&self.stream, &data[done..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(length) => done += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.forwarded = self.forwarded.wrapping_add(done as u32);
        Ok(done)
    }

    /// Says something to a process at the Unix socket. It has read nothing yet, so there
    /// is room.
    pub fn say(&self, text: &str) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.stream, text.as_bytes(), flags)? {
            length if length == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Whether so much has been passed on that the guest should hear of it.
    pub fn owes_credit(&self) -> bool {
        let open = matches!(self.stage, Stage::Open);
        open && !self.telling && self.forwarded.wrapping_sub(self.told) >= BUFFER / 4
    }

    /// The guest closes one direction or both. Says whether it has now closed both.
    pub fn close(&mut self, no_receive: bool, no_send: bool) -> bool {
        if no_receive && std::mem::take(&mut self.guest_receives) {
            // A stream that is gone cannot be closed further.
            let _ = shutdown(&self.stream, Shutdown::Read);
        }
        if no_send && std::mem::take(&mut self.guest_sends) && self.is_drained() {
            self.end_writing();
        }
        !self.guest_receives && !self.guest_sends
    }

    fn end_writing(&self) {
        let _ = shutdown(&self.stream, Shutdown::Write);
    }

    pub fn is_drained(&self) -> bool {
        self.waiting.is_empty()
    }
}
