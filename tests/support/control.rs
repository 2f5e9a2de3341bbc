//! The other end of a machine's control socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// A client of the socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn open(path: &Path) -> Self {
        Client(BufReader::new(UnixStream::connect(path).expect("the machine listens")))
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.0.get_mut(), "{command}").expect("it listens");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("it answers");
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{command}: {answer:?}"))
    }

    #[track_caller]
    pub fn done(&mut self, command: &Value) -> Value {
        let answer = self.ask(command);
        assert_eq!(answer["ok"], true, "{command}: {answer}");
        answer
    }
}
