use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::{Ask, Refusal, Told, accept, connect, hand_over, hear, say, take_over};
use crate::body::BodyError;

#[test]
fn requests_and_answers_with_descriptors() {
    let (worker, keeper) = UnixStream::pair().unwrap();
    let keeping = std::thread::spawn(move || {
        let asked = accept(&keeper).unwrap();
        assert!(matches!(hear(&asked).unwrap(), Ask::CopyOut { path } if path == "/etc"));
        let (read, mut write) = std::io::pipe().unwrap();
        say(&asked, &Told::Stream).unwrap();
        hand_over(&asked, &[read.as_fd()]).unwrap();
        write.write_all(b"archive").unwrap();
        drop(write);
        say(&asked, &Told::Done).unwrap();
        assert!(accept(&keeper).is_none(), "the worker is gone");
    });
    let line = connect(&worker).unwrap();
    say(&line, &Ask::CopyOut { path: "/etc".into() }).unwrap();
    assert!(matches!(hear(&line).unwrap(), Told::Stream));
    let mut archive = String::new();
    let stream = take_over(&line, 1).unwrap().remove(0);
    File::from(stream).read_to_string(&mut archive).unwrap();
    assert_eq!(archive, "archive");
    assert!(matches!(hear(&line).unwrap(), Told::Done));
    drop((line, worker));
    keeping.join().unwrap();
}

#[test]
fn what_is_no_request_is_refused() {
    let heard = |bytes: &[u8]| {
        let (mut worker, keeper) = UnixStream::pair().unwrap();
        worker.write_all(bytes).unwrap();
        drop(worker);
        hear::<Ask>(&keeper)
    };
    let message = |text: &[u8]| {
        let mut bytes = (text.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(8);
        bytes.extend(text);
        bytes
    };
    assert!(matches!(heard(&message(br#""clean-up""#)).unwrap(), Ask::CleanUp));
    for wrong in [
        &b""[..],
        b"\x05",
        b"\xff\xff\xff\xff\x08",
        b"\x05\x00\x00\x00\x08nul",
        &message(b"\"mount\""),
        &message(br#"{"signal":{"program":-1,"signal":9}}"#),
        &message(b"\xff\xfe"),
    ] {
        assert!(heard(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_carries_no_connection_is_passed_over() {
    let (worker, keeper) = UnixStream::pair().unwrap();
    (&worker).write_all(b"xx").unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    hand_over(&worker, &[one.as_fd(), other.as_fd()]).unwrap();
    let line = connect(&worker).unwrap();
    drop(worker);
    let accepted = accept(&keeper).unwrap();
    say(&line, &Ask::Pause).unwrap();
    assert!(matches!(hear(&accepted).unwrap(), Ask::Pause));
    assert!(accept(&keeper).is_none());
}

#[test]
fn errors_keep_what_they_say_and_their_exit_codes() {
    for error in [
        BodyError::ProgramNotFound("x".into()),
        BodyError::ProgramNotExecutable { program: "x".into(), why: "y".into() },
        BodyError::Unsupported { what: "x".into(), instead: "y".into() },
        BodyError::NotRunning,
        BodyError::Failed("x".into()),
        BodyError::System { what: "x".into(), source: std::io::ErrorKind::NotFound.into() },
    ] {
        let (said, code) = (error.to_string(), error.exit_code());
        let back = BodyError::from(Refusal::from(error));
        assert_eq!((back.to_string(), back.exit_code()), (said, code));
    }
}
