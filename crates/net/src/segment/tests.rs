use super::*;
use crate::packet::{ACK, Ethernet, Headers, TcpFields, tcp_frame};

const ALL: Receives = Receives { checksum: true, tcp4: true, tcp6: true };

fn large(source: &str, destination: &str, payload: usize) -> (Vec<u8>, Offload) {
    let headers = Headers {
        to_mac: [2, 0, 0, 0, 0, 1],
        from_mac: [2, 0, 0, 0, 0, 2],
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    let fields = TcpFields {
        source: 1,
        destination: 2,
        sequence: u32::MAX - 100,
        acknowledgement: 7,
        flags: ACK | PSH | FIN,
        window: 99,
        options: None,
    };
    let at = fields.payload_at(&headers);
    let mut frame = vec![0; at + payload];
    for (n, byte) in frame[at..].iter_mut().enumerate() {
        *byte = (n * 7) as u8;
    }
    let (_, offload) = tcp_frame(&mut frame, &headers, &fields, payload, 1000, ALL);
    (frame, offload)
}

#[test]
fn a_large_frame_becomes_good_segments() {
    for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
        for receives in [Receives::default(), Receives { checksum: true, ..Receives::default() }] {
            let (mut frame, offload) = large(source, destination, 2500);
            assert!(is_taken(&offload, ALL) && !is_taken(&offload, receives));
            let mut got: Vec<u8> = Vec::new();
            let mut flags = Vec::new();
            adapt(&mut frame, offload, receives, |segment, offload| {
                assert!(is_taken(&offload, receives));
                let ethernet = Ethernet::parse(segment).unwrap();
                let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
                let tcp = packet.tcp(&offload).expect("a good checksum");
                let expected = (u32::MAX - 100).wrapping_add(got.len() as u32);
                assert_eq!(tcp.sequence, expected);
                got.extend(tcp.payload);
                flags.push(tcp.flags);
            })
            .unwrap();
            assert_eq!(flags, [ACK, ACK, ACK | PSH | FIN]);
            assert!(got.iter().enumerate().all(|(n, byte)| *byte == (n * 7) as u8));
            assert_eq!(got.len(), 2500);
        }
    }
}

#[test]
fn what_a_driver_takes_is_left_alone() {
    let (mut frame, offload) = large("10.0.0.1", "10.0.0.2", 2500);
    let before = frame.clone();
    let mut count = 0;
    adapt(&mut frame, offload, ALL, |whole, same| {
        assert_eq!((whole, same), (&before[..], offload));
        count += 1;
    })
    .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn claims_that_make_no_sense_are_refused() {
    let (mut frame, mut offload) = large("10.0.0.1", "10.0.0.2", 2500);
    offload.segments.as_mut().unwrap().size = 1;
    let refused = adapt(&mut frame, offload, Receives::default(), |_, _| panic!("a frame"));
    assert_eq!(refused, Err(Reason::Malformed));
    offload.segments = Some(Segments { kind: SegmentKind::Tcp6, size: 1000, header: 0 });
    for length in 0..frame.len() {
        let mut part = frame[..length].to_vec();
        let refused = adapt(&mut part, offload, Receives::default(), |_, _| panic!("a frame"));
        assert_eq!(refused, Err(Reason::Malformed));
    }
}
