//! A port's other end: a Unix socket of the host, with one connection at a time.
//!
//! A connection lasts until one of the two sides closes it. What a process sends before
//! anybody in the guest reads stays in its socket, and who comes while another is
//! connected waits for its turn.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::listening::Listening;

/// The longest name of a port.
pub const LONGEST_NAME: usize = 64;

/// A port besides the terminal's. It outlives devices: a machine that is made anew gets a
/// new device over the same ports.
pub struct Port {
    name: String,
    listening: Listening,
    client: Mutex<Option<Client>>,
}

/// The process that is connected.
pub struct Client {
    pub stream: UnixStream,
    /// It sends nothing more.
    pub input_ended: bool,
    /// It is gone altogether.
    pub hung_up: bool,
}

/// What reading from a client came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    Data(usize),
    Nothing,
    End,
}

impl Client {
    pub fn read(&mut self, buffer: &mut [u8]) -> Arrived {
        match recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.input_ended = true;
                Arrived::End
            }
            Ok((_, length)) => Arrived::Data(length),
            Err(Errno::AGAIN | Errno::INTR) => Arrived::Nothing,
            Err(_) => {
                (self.input_ended, self.hung_up) = (true, true);
                Arrived::End
            }
        }
    }

    /// Sends as much as there is room for; says how much.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len() && !self.hung_up {
            match send(&self.stream, &data[done..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(length) => done += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => (self.input_ended, self.hung_up) = (true, true),
            }
        }
        done
    }
}

impl Port {
    /// Listens at a socket. `name` is what programs of the guest find the port by.
    pub fn at(name: &str, path: &Path) -> io::Result<Arc<Self>> {
        let listening = Listening::at(path)?;
        Ok(Arc::new(Self { name: name.to_owned(), listening, client: Mutex::default() }))
    }

    /// Whether that can be a name: guests make files of it.
    pub fn can_be_named(name: &str) -> bool {
        let fine = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(fine)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn listener(&self) -> &UnixListener {
        self.listening.listener()
    }

    pub fn client(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next process that has come.
    pub fn visitor(&self) -> Option<Client> {
        let stream = self.listening.visitor()?;
        Some(Client { stream, input_ended: false, hung_up: false })
    }
}
