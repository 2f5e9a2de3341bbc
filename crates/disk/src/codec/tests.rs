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

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn noise_is_stored_where_it_has_to_be_packed() {
    let data = noise(65_536);
    for codec in ALL {
        let mut packed = Vec::new();
        assert!(codec.encoder().pack(&data, data.len() + 1024, &mut packed), "{codec:?}");
        let mut back = vec![0; data.len()];
        assert!(codec.unpack(&packed, &mut back) && back == data, "{codec:?}");
    }
}

#[test]
fn flat_bytes_that_repeat_are_packed() {
    let data = noise(8192).repeat(8);
    let counted: Vec<u8> = (0..65_536_u32).map(|at| ((at * 167) >> 3) as u8).collect();
    for codec in ALL {
        let mut encoder = codec.encoder();
        for data in [&data, &counted] {
            let mut packed = Vec::new();
            assert!(encoder.pack(data, data.len() - 1, &mut packed), "{codec:?}");
            assert!(packed.len() < data.len() / 2, "{codec:?}: {}", packed.len());
        }
    }
}
