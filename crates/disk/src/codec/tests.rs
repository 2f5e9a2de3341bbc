use super::*;

const ALL: [Codec; 3] = [Codec::Deflate, Codec::Zlib, Codec::Zstd];

#[test]
fn what_was_packed_is_unpacked() {
    let text: Vec<u8> = b"some text, ".iter().copied().cycle().take(65_536).collect();
    for codec in ALL {
        let mut packed = vec![1, 2, 3];
        assert!(codec.encoder().pack(&text, text.len() - 1, &mut packed));
        assert!(packed.len() < 10_000, "{codec:?}: {}", packed.len());
        let mut sector_end = packed[3..].to_vec();
        sector_end.resize(sector_end.len().next_multiple_of(512), 0x5a);
        let mut back = vec![0; text.len()];
        assert!(codec.unpack(&sector_end, &mut back), "{codec:?}");
        assert!(back == text);
    }
}

#[test]
fn what_does_not_shrink_is_left_alone() {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(65_536)
    .collect();
    for codec in ALL {
        let mut packed = vec![9];
        assert!(!codec.encoder().pack(&noise, noise.len() - 1, &mut packed));
        assert_eq!(packed, [9], "{codec:?}");
    }
}

#[test]
fn broken_streams_are_refused() {
    for codec in ALL {
        let mut out = vec![0; 4096];
        assert!(!codec.unpack(&[], &mut out), "{codec:?}");
        assert!(!codec.unpack(&[0xff; 100], &mut out), "{codec:?}");
        let mut packed = Vec::new();
        assert!(codec.encoder().pack(&[7; 4096], 4095, &mut packed));
        assert!(!codec.unpack(&packed[..packed.len() / 2], &mut out), "{codec:?}");
    }
}
