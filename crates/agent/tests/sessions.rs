//! The host's end against the program, whose guest is this host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guise_agent::client::{Agent, AgentError, Event, Session};
use guise_agent::protocol::{Exit, NotStarted, Open, Resize, SetUp, Stream, Task, WINDOW};

const LONG: Duration = Duration::from_secs(60);

struct Guest {
    agent: Agent,
    child: Child,
}

impl Guest {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_guise-agent"))
            .arg("serve")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let reader = ours.try_clone().unwrap();
        let agent = Agent::new(Box::new(reader), Box::new(ours)).unwrap();
        agent.hello(LONG).unwrap();
        Guest { agent, child }
    }

    fn run(&self, open: &Open) -> (String, String, Exit) {
        let (output, errors, exit) = self.agent.open(open).unwrap().collect(64 << 20).unwrap();
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

fn shell(text: &str) -> Open {
    Open {
        arguments: vec!["/bin/sh".into(), "-c".into(), text.into()],
        environment: vec!["GREETING=hello".into()],
        directory: "/tmp".into(),
        input: true,
        ..Open::default()
    }
}

/// Reads until the output ends with a text.
fn wait_for(session: &Session, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.next_within(LONG).unwrap() {
            Event::Output(_, bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Event::Exited(exit) => panic!("{exit:?} after {seen:?}"),
        }
    }
    seen
}

#[test]
fn output_errors_environment_and_exit_code_come_back() {
    let guest = Guest::start();
    let (output, errors, exit) =
        guest.run(&shell("echo $GREETING from $(pwd); echo oh >&2; exit 7"));
    assert_eq!((output.as_str(), errors.as_str()), ("hello from /tmp\n", "oh\n"));
    assert_eq!(exit, Exit::Code(7));
}

#[test]
fn a_process_that_cannot_start_says_why() {
    let guest = Guest::start();
    let run = |program: &str| {
        let open = Open { arguments: vec![program.into()], ..shell("") };
        guest.run(&open).2
    };
    let why = |exit| match exit {
        Exit::NotStarted { why, .. } => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(run("/nowhere/program")), NotStarted::NotFound);
    assert_eq!(why(run("no-such-program-on-any-path")), NotStarted::NotFound);
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(why(run(file.path().to_str().unwrap())), NotStarted::NotExecutable);
    let open = Open { user: "no-such-user".into(), ..shell("") };
    let exit = guest.run(&open).2;
    assert_eq!(exit.code(), 125);
    assert!(format!("{exit:?}").contains("no-such-user"), "{exit:?}");
}

#[test]
fn signals_reach_the_process() {
    let guest = Guest::start();
    let session = guest.agent.open(&shell("echo up; exec sleep 1000")).unwrap();
    wait_for(&session, "up");
    session.signal(15).unwrap();
    assert_eq!(session.next_within(LONG).unwrap(), Event::Exited(Exit::Signal(15)));
    assert_eq!(Exit::Signal(15).code(), 143);
}

#[test]
fn input_goes_in_and_its_end_is_seen() {
    let guest = Guest::start();
    let session = guest.agent.open(&shell("cat; echo done")).unwrap();
    session.write(b"one\ntwo\n").unwrap();
    session.close_input().unwrap();
    let (output, _, exit) = session.collect(1 << 20).unwrap();
    assert_eq!(String::from_utf8(output).unwrap(), "one\ntwo\ndone\n");
    assert_eq!(exit, Exit::Code(0));
}

/// More than any buffer on the way holds, in both directions at once.
#[test]
fn much_data_passes_unharmed() {
    const LENGTH: usize = 8 << 20;
    let guest = Guest::start();
    let session = guest.agent.open(&shell("cat")).unwrap();
    let data: Vec<u8> = (0..LENGTH).map(|at| (at / 7 + at / 4096) as u8).collect();
    let (output, exit) = std::thread::scope(|scope| {
        scope.spawn(|| {
            session.write(&data).unwrap();
            session.close_input().unwrap();
        });
        let (output, _, exit) = session.collect(LENGTH * 2).unwrap();
        (output, exit)
    });
    assert_eq!(exit, Exit::Code(0));
    assert!(output == data);
}

#[test]
fn who_does_not_read_stops_nobody_else() {
    let guest = Guest::start();
    let stuck = guest.agent.open(&shell("yes")).unwrap();
    let deaf = guest.agent.open(&shell("sleep 1000")).unwrap();
    deaf.write(&vec![0; WINDOW as usize]).unwrap();
    for _ in 0..20 {
        assert_eq!(guest.run(&shell("echo works")).0, "works\n");
    }
    // Hanging up kills.
    stuck.started(LONG).unwrap().unwrap();
    drop(stuck);
    deaf.signal(9).unwrap();
    assert_eq!(deaf.next_within(LONG).unwrap(), Event::Exited(Exit::Signal(9)));
}

#[test]
fn a_terminal_has_a_size_and_signals() {
    let guest = Guest::start();
    let size = Resize { rows: 30, columns: 90 };
    let open = Open {
        terminal: Some(size),
        ..shell(
            "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done",
        )
    };
    let session = guest.agent.open(&open).unwrap();
    assert!(wait_for(&session, "ready").contains("30 90"));
    session.resize(Resize { rows: 40, columns: 100 }).unwrap();
    wait_for(&session, "40 100");
    let (_, _, exit) = session.collect(1000).unwrap();
    assert_eq!(exit, Exit::Code(3));

    let open = Open { terminal: Some(size), ..shell("echo ready; exec cat") };
    let session = guest.agent.open(&open).unwrap();
    wait_for(&session, "ready");
    // A shell that is about to become another program may lose a signal: only what was
    // typed and came back is from that program.
    session.write(b"typed\n").unwrap();
    wait_for(&session, "typed\r\ntyped");
    // Ctrl-C.
    session.write(&[3]).unwrap();
    assert_eq!(session.collect(1000).unwrap().2, Exit::Signal(2));
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    let guest = Guest::start();
    let (output, _, _) = guest.run(&shell("exec grep -E '^Sig(Blk|Ign)' /proc/self/status"));
    let masks: Vec<_> = output.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(masks, ["0000000000000000"; 2]);
}

/// What a process leaves behind may hold its streams open for ever.
#[test]
fn the_end_of_the_process_is_the_end_of_the_session() {
    let guest = Guest::start();
    let (output, _, exit) = guest.run(&shell("sleep 5 & echo $!"));
    assert_eq!(exit, Exit::Code(0));
    let left: i32 = output.trim().parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn files_go_both_ways() {
    let guest = Guest::start();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(from.path().join("tree")).unwrap();
    std::fs::write(from.path().join("tree/file"), vec![42; 300_000]).unwrap();
    let path = from.path().join("tree").to_str().unwrap().to_owned();
    let export = Open { task: Task::Export { path }, ..Open::default() };
    let (archive, errors, exit) = guest.agent.open(&export).unwrap().collect(1 << 20).unwrap();
    assert_eq!((exit, errors.as_slice()), (Exit::Code(0), &b""[..]));
    let path = to.path().to_str().unwrap().to_owned();
    let import = Open { task: Task::Import { path }, input: true, ..Open::default() };
    let session = guest.agent.open(&import).unwrap();
    session.write(&archive).unwrap();
    session.close_input().unwrap();
    assert_eq!(session.collect(1 << 20).unwrap().2, Exit::Code(0));
    assert_eq!(std::fs::read(to.path().join("tree/file")).unwrap(), vec![42; 300_000]);
    let missing = Task::Export { path: "/nowhere/at/all".into() };
    let session = guest.agent.open(&Open { task: missing, ..Open::default() }).unwrap();
    let (_, errors, exit) = session.collect(1 << 20).unwrap();
    assert_eq!(exit, Exit::Code(1));
    assert!(String::from_utf8_lossy(&errors).contains("/nowhere/at/all"));
}

#[test]
fn statistics_are_those_of_the_guest() {
    let guest = Guest::start();
    let statistics = guest.agent.statistics(LONG).unwrap();
    assert!(statistics.memory_total >= statistics.memory_available);
    assert!(statistics.uptime_ms > 0 && statistics.processes > 0);
}

/// On a host, these must not do anything.
#[test]
fn a_host_is_neither_set_up_nor_shut_down() {
    let guest = Guest::start();
    let error = guest.agent.set_up(SetUp::default(), LONG).unwrap_err();
    assert!(matches!(error, AgentError::Refused(_)), "{error}");
    let error = guest.agent.shut_down(LONG).unwrap_err();
    assert!(matches!(error, AgentError::Refused(_)), "{error}");
}

#[test]
fn a_guest_that_dies_is_noticed() {
    let mut guest = Guest::start();
    let session = guest.agent.open(&shell("sleep 2")).unwrap();
    session.started(LONG).unwrap().unwrap();
    guest.child.kill().unwrap();
    assert!(matches!(session.next_within(LONG), Err(AgentError::Gone(_))));
    assert!(matches!(session.write(b"x"), Err(AgentError::Gone(_))));
    assert!(matches!(guest.agent.statistics(LONG), Err(AgentError::Gone(_))));
    assert!(guest.agent.open(&shell("true")).is_err());
}

/// As two threads would that copy the streams to two places.
#[test]
fn streams_can_be_read_apart() {
    const LENGTH: usize = 2 << 20;
    let guest = Guest::start();
    let text = "head -c 2097152 /dev/zero & head -c 2097152 /dev/zero >&2; wait; exit 5";
    let session = guest.agent.open(&shell(text)).unwrap();
    let read = |stream| {
        let mut length = 0;
        while let Some(bytes) = session.read(stream).unwrap() {
            length += bytes.len();
        }
        length
    };
    std::thread::scope(|scope| {
        let output = scope.spawn(|| read(Stream::Output));
        let errors = scope.spawn(|| read(Stream::Errors));
        assert_eq!(session.wait().unwrap(), Exit::Code(5));
        assert_eq!((output.join().unwrap(), errors.join().unwrap()), (LENGTH, LENGTH));
    });
}

#[test]
fn standard_output_is_a_stream_of_its_own() {
    let guest = Guest::start();
    let session = guest.agent.open(&shell("echo out; echo err >&2")).unwrap();
    let mut seen = Vec::new();
    while let Event::Output(stream, _) = session.next_within(LONG).unwrap() {
        seen.push(stream);
    }
    assert!(seen.contains(&Stream::Output) && seen.contains(&Stream::Errors));
}
