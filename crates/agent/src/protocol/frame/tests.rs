use super::*;
use crate::protocol::{Exit, Open, Resize};

#[test]
fn frames_survive_any_cut_of_the_stream() {
    let mut stream = Vec::new();
    encode(&mut stream, Kind::Input, 7, b"hello");
    encode(&mut stream, Kind::Output, 0x01_0203, b"");
    encode(
        &mut stream,
        Kind::Control,
        1,
        &ToGuest::Resize(Resize { rows: 24, columns: 80 }).bytes(),
    );
    for step in 1..stream.len() {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in stream.chunks(step) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0], Frame { kind: Kind::Input, session: 7, payload: b"hello".to_vec() });
        assert_eq!(frames[1].session, 0x01_0203);
        let ToGuest::Resize(size) = frames[2].message_to_guest().unwrap() else { panic!() };
        assert_eq!((size.rows, size.columns), (24, 80));
    }
}

#[test]
fn what_breaks_the_rules_is_refused_before_memory_is_taken() {
    let mut decoder = Decoder::default();
    decoder.push(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0]);
    assert!(matches!(decoder.next_frame(), Err(FrameError::Length(0xffff_ffff))));
    let mut decoder = Decoder::default();
    decoder.push(&[0, 0, 0, 0, 9, 0, 0, 0, 0]);
    assert!(matches!(decoder.next_frame(), Err(FrameError::Kind(9))));
    let mut decoder = Decoder::default();
    let length = (PIECE as u32 + 1).to_le_bytes();
    decoder.push(&[length[0], length[1], length[2], length[3], 1, 0, 0, 0, 0]);
    assert!(matches!(decoder.next_frame(), Err(FrameError::Length(_))));
}

#[test]
fn messages_come_back_as_they_were() {
    let open = Open {
        arguments: vec!["sh".into(), "-c".into(), "echo ü".into()],
        environment: vec!["A=b".into()],
        directory: "/srv".into(),
        user: "nobody".into(),
        terminal: Some(Resize { rows: 1, columns: 2 }),
        input: true,
        ..Open::default()
    };
    let bytes = ToGuest::Open(open.clone()).bytes();
    let frame = Frame { kind: Kind::Control, session: 1, payload: bytes };
    assert_eq!(frame.message_to_guest().unwrap(), ToGuest::Open(open));
    let exited = ToHost::Exited(Exit::Signal(9));
    let frame = Frame { kind: Kind::Control, session: 1, payload: exited.bytes() };
    assert_eq!(frame.message_to_host().unwrap(), exited);
}

/// The fuzzer's corpus: first how long the pieces are, then the stream.
#[test]
fn the_corpus_does_no_harm() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/frames");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mut decoder = Decoder::default();
        for piece in bytes[1..].chunks(usize::from(bytes[0]).max(1)) {
            decoder.push(piece);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let _ = (frame.message_to_guest(), frame.message_to_host());
            }
        }
        inputs += 1;
    }
    assert!(inputs >= 4);
}

/// What a fuzzer would try first.
#[test]
fn bytes_of_any_kind_do_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..round % 64 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed as u8);
        }
        if bytes.len() > 5 {
            bytes[1..4].fill(0);
            bytes[4] &= 3;
        }
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let _ = (frame.message_to_guest(), frame.message_to_host());
        }
        let frame = Frame { kind: Kind::Control, session: 0, payload: bytes };
        let _ = (frame.message_to_guest(), frame.message_to_host());
    }
}
