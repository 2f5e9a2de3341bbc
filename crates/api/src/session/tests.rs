use super::*;

fn all() -> Vec<Frame> {
    vec![
        Frame::Stdin(b"in\0put".to_vec()),
        Frame::StdinEnd,
        Frame::Stdout(vec![0xff; 3]),
        Frame::Stderr(Vec::new()),
        Frame::Resize { rows: 24, columns: 500 },
        Frame::Signal(-1),
        Frame::Exit(Ended { exit_code: 137, out_of_memory: true, error: None }),
        Frame::Error(ApiError::invalid("no").hint("yes")),
        Frame::message(&vec!["a", "b"]),
    ]
}

#[test]
fn frames_come_back_as_they_were() {
    let mut stream = Vec::new();
    for frame in all() {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame.clone()));
        frame.write(&mut stream).unwrap();
    }
    let mut stream = stream.as_slice();
    for frame in all() {
        assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
    }
    assert_eq!(Frame::read(&mut stream).unwrap(), None);
}

#[test]
fn what_is_no_frame_is_refused() {
    let bad: [&[u8]; 7] = [b"", b"\x03x", b"\x04\0\0\0", b"\x05\0", b"\x06{", b"\x07[]", b"\x09"];
    for bytes in bad {
        assert_eq!(Frame::decode(bytes), Err(Malformed), "{bytes:?}");
    }
    let mut cut = Frame::Stdout(vec![1; 9]).with_length();
    cut.pop();
    assert!(Frame::read(&mut cut.as_slice()).is_err());
    let huge = u32::MAX.to_le_bytes();
    assert!(Frame::read(&mut huge.as_slice()).is_err());
}
