use super::*;

fn key(identification: u32) -> Key {
    let address = "10.0.2.15".parse().unwrap();
    Key { source: address, destination: address, identification, protocol: Some(17) }
}

fn give(
    all: &mut Reassembly,
    identification: u32,
    (offset, length, more): (usize, usize, bool),
    now: Instant,
) -> Result<Option<(u8, Vec<u8>)>, Reason> {
    let payload: Vec<u8> = (offset..offset + length).map(|n| (n * 7) as u8).collect();
    let fragment = Fragment { identification, offset, more };
    all.take(key(identification), 17, fragment, &payload, now)
}

#[test]
fn pieces_in_any_order_make_the_datagram() {
    let pieces = [(0, 16, true), (16, 8, true), (24, 24, true), (48, 5, false)];
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]];
    for order in orders {
        let (mut all, now) = (Reassembly::default(), Instant::now());
        let mut whole = None;
        for number in order {
            assert!(whole.is_none());
            // A piece that comes twice is nothing bad.
            whole = give(&mut all, 1, pieces[number], now).unwrap();
            if whole.is_none() {
                assert_eq!(give(&mut all, 1, pieces[number], now), Ok(None));
            }
        }
        let expected: Vec<u8> = (0..53).map(|n| (n * 7) as u8).collect();
        assert_eq!(whole, Some((17, expected)));
        assert_eq!(all.len(), 0);
    }
}

#[test]
fn overlaps_end_the_datagram() {
    for bad in [(8, 16, true), (16, 16, true), (0, 8, true), (8, 8, false), (24, 8, false)] {
        let (mut all, now) = (Reassembly::default(), Instant::now());
        give(&mut all, 1, (0, 16, true), now).unwrap();
        give(&mut all, 1, (24, 16, true), now).unwrap();
        assert_eq!(give(&mut all, 1, bad, now), Err(Reason::Malformed), "{bad:?}");
        assert_eq!(all.len(), 0);
    }
    let (mut all, now) = (Reassembly::default(), Instant::now());
    give(&mut all, 1, (16, 8, false), now).unwrap();
    assert_eq!(give(&mut all, 1, (24, 8, true), now), Err(Reason::Malformed));
    for bad in [(0, 0, true), (0, 7, true), (65_528, 8, false)] {
        assert_eq!(give(&mut all, 2, bad, now), Err(Reason::Malformed), "{bad:?}");
    }
}

#[test]
fn memory_is_bounded_and_given_back() {
    let (mut all, now) = (Reassembly::default(), Instant::now());
    for number in 0..MOST as u32 {
        give(&mut all, number, (0, 8, true), now).unwrap();
    }
    assert_eq!(give(&mut all, 99, (0, 8, true), now), Err(Reason::Limit));
    let later = now + PATIENCE;
    assert_eq!(give(&mut all, 99, (0, 8, true), later), Ok(None));
    assert_eq!(all.len(), 1);
    for piece in 1..MOST_PIECES {
        assert_eq!(give(&mut all, 99, (piece * 16, 8, true), later), Ok(None));
    }
    assert_eq!(give(&mut all, 99, (60_000, 8, true), later), Err(Reason::Limit));
}
