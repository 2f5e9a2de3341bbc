//! Order between an intermediate process and the process that it makes: both speak to the
//! runtime on one channel, and the first word is the intermediate one's.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Result};

/// Made before a process is cloned, shut until the one that made it has ended.
pub struct Gate {
    read: OwnedFd,
    write: OwnedFd,
}

impl Gate {
    pub fn new() -> Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe")?;
        Ok(Gate { read, write })
    }

    /// In the new process: waits.
    pub fn wait(self) {
        drop(self.write);
        // Nobody writes: this ends when the other process has, and with it the last writer.
        while rustix::io::read(&self.read, &mut [0; 1]) == Err(Errno::INTR) {}
    }
}
