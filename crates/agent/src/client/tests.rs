//! The host's end against the real program, on this host.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::protocol::{NotStarted, Task};

struct Guest {
    agent: Agent,
    child: Child,
}

impl Guest {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(program())
            .arg("serve")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let reader = ours.try_clone().unwrap();
        let agent = Agent::new(Box::new(reader), Box::new(ours)).unwrap();
        agent.hello(LONG).unwrap();
        Guest { agent, child }
    }

    fn run(&self, open: &Open) -> (String, String, Exit) {
        let (output, errors, exit) = self.agent.open(open).unwrap().collect(1 << 20).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output), text(errors), exit)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Unit tests get no path of the package's programs; they stand beside the tests.
fn program() -> std::path::PathBuf {
    let tests = std::env::current_exe().unwrap();
    let directory = tests.parent().and_then(std::path::Path::parent).unwrap();
    let program = directory.join("guise-agent");
    assert!(program.exists(), "{} is not built", program.display());
    program
}

fn shell(text: &str) -> Open {
    Open {
        arguments: vec!["/bin/sh".into(), "-c".into(), text.into()],
        environment: vec!["GREETING=hello".into()],
        directory: "/tmp".into(),
        input: true,
        ..Open::default()
    }
}
