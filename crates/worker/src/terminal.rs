//! Terminals, from the side of whoever sits at them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::termios::{Winsize, tcsetwinsize};

use crate::body::{BodyError, Size, system};

pub fn set_size(terminal: &OwnedFd, size: Size) -> Result<(), BodyError> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).map_err(|e| system("set the terminal's size")(e.into()))
}

/// A terminal's input, whose end is typed.
pub struct Input(pub File);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        const END_OF_TRANSMISSION: &[u8] = &[4];
        // The program may be gone.
        let _ = self.0.write(END_OF_TRANSMISSION);
    }
}
