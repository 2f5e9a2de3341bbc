//! What goes through a port, in a file that Wireshark and tcpdump read.
//!
//! [`Watched`] stands between an interface and any network, and writes both directions
//! to a [`Capture`] while there is one. Checksums that a sender left to hardware are put
//! into the copy, so that readers do not call them wrong; frames that are many segments
//! in one stay whole, as in captures of any host with such hardware.
//!
//! The file is pcapng: a section header, an interface, then a block for each frame with
//! its time in nanoseconds and its direction as the guest sees it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::frame::{Counters, Interface, Network, Occupied, Offload, Receives};
use crate::packet::checksum;

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const ETHERNET: u16 = 1;
const OPTION_NAME: u16 = 2;
const OPTION_FLAGS: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
const BUFFER: usize = 256 << 10;

/// Which way a frame went, with its number in pcapng.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToGuest = 1,
    FromGuest = 2,
}

#[derive(Debug, thiserror::Error)]
#[error("the capture {path} cannot be written: {source}")]
pub struct CaptureError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A file that frames are written to.
pub struct Capture {
    file: BufWriter<File>,
    path: PathBuf,
    block: Vec<u8>,
    unwritten: bool,
}

/// A block's contents, padded as they all are.
fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    block.extend(code.to_le_bytes());
    block.extend((value.len() as u16).to_le_bytes());
    block.extend(value);
    pad(block);
}

fn pad(block: &mut Vec<u8>) {
    block.resize(block.len().next_multiple_of(4), 0);
}

impl Capture {
    /// Makes the file, or empties it; `name` is what readers call the port.
    pub fn create(path: &Path, name: &str) -> Result<Capture, CaptureError> {
        let failed = |source| CaptureError { path: path.to_owned(), source };
        let file = File::create(path).map_err(failed)?;
        let file = BufWriter::with_capacity(BUFFER, file);
        let mut capture =
            Capture { file, path: path.to_owned(), block: Vec::new(), unwritten: false };
        capture.head(name).map_err(failed)?;
        Ok(capture)
    }

    fn head(&mut self, name: &str) -> io::Result<()> {
        self.block.extend(BYTE_ORDER.to_le_bytes());
        self.block.extend(1u16.to_le_bytes());
        self.block.extend(0u16.to_le_bytes());
        // The section's length is not known.
        self.block.extend(u64::MAX.to_le_bytes());
        self.write_block(SECTION)?;
        self.block.extend(ETHERNET.to_le_bytes());
        // Reserved, and no limit to a frame's length.
        self.block.extend([0; 6]);
        option(&mut self.block, OPTION_NAME, &name.as_bytes()[..name.len().min(255)]);
        option(&mut self.block, OPTION_RESOLUTION, &[NANOSECONDS]);
        option(&mut self.block, 0, &[]);
        self.write_block(INTERFACE)?;
        self.file.flush()
    }

    fn write_block(&mut self, kind: u32) -> io::Result<()> {
        let length = (self.block.len() as u32 + 12).to_le_bytes();
        self.file.write_all(&kind.to_le_bytes())?;
        self.file.write_all(&length)?;
        self.file.write_all(&self.block)?;
        self.file.write_all(&length)?;
        self.block.clear();
        self.unwritten = true;
        Ok(())
    }

    fn frame(&mut self, frame: &[u8], offload: &Offload, way: Direction) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let time = now.as_nanos() as u64;
        let block = &mut self.block;
        block.extend(0u32.to_le_bytes());
        block.extend(((time >> 32) as u32).to_le_bytes());
        block.extend((time as u32).to_le_bytes());
        block.extend((frame.len() as u32).to_le_bytes());
        block.extend((frame.len() as u32).to_le_bytes());
        let start = block.len();
        block.extend(frame);
        if let Some(partial) = &offload.partial_checksum {
            checksum::complete(&mut block[start..], partial);
        }
        pad(block);
        option(block, OPTION_FLAGS, &(way as u32).to_le_bytes());
        option(block, 0, &[]);
        self.write_block(ENHANCED_PACKET)
    }

    /// Hands what was captured to the kernel.
    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unwritten) { self.file.flush() } else { Ok(()) }
    }
}

/// A network with a place for a capture before it.
pub struct Watched<N> {
    network: N,
    capture: Option<Capture>,
}

impl<N: Network> Watched<N> {
    pub fn new(network: N, capture: Option<Capture>) -> Watched<N> {
        Watched { network, capture }
    }

    pub fn network(&mut self) -> &mut N {
        &mut self.network
    }

    /// A full disk ends the capture, not the network.
    fn check(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && let Some(capture) = self.capture.take()
        {
            let path = capture.path.display();
            tracing::warn!("the capture {path} ends here, it cannot be written: {error}");
        }
    }
}

impl<N: Network> Network for Watched<N> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.network.descriptor()
    }

    fn timer(&self) -> Option<Duration> {
        self.network.timer()
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        if let Some(capture) = &mut self.capture {
            let result = capture.frame(frame, &offload, Direction::FromGuest);
            self.check(result);
        }
        self.network.input(frame, offload);
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        let Some(capture) = &mut self.capture else { return self.network.poll(interface) };
        let mut between = Between { interface, capture, result: Ok(()) };
        self.network.poll(&mut between);
        let result = between.result.and_then(|()| capture.flush());
        self.check(result);
    }

    fn counters(&self) -> Counters {
        self.network.counters()
    }

    fn close(&mut self) {
        self.network.close();
    }

    fn occupied(&self) -> Vec<Occupied> {
        self.network.occupied()
    }
}

/// An interface whose frames are captured on their way to it.
struct Between<'a> {
    interface: &'a mut dyn Interface,
    capture: &'a mut Capture,
    result: io::Result<()>,
}

impl Interface for Between<'_> {
    fn receives(&self) -> Receives {
        self.interface.receives()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.interface.room(size)
    }

    fn filled(&self, size: usize) -> &[u8] {
        self.interface.filled(size)
    }

    fn deliver(&mut self, size: usize, offload: Offload) {
        if self.result.is_ok() {
            let frame = self.interface.filled(size);
            self.result = self.capture.frame(frame, &offload, Direction::ToGuest);
        }
        self.interface.deliver(size, offload);
    }
}

#[cfg(test)]
mod tests;
