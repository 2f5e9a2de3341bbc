use super::*;

fn round_trip(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
    encoder.write_all(data).unwrap();
    let packed = encoder.finish().unwrap();
    assert_eq!(Compression::of(&packed), Ok(compression));
    let mut decoder = Decoder::new(&packed[..]).unwrap();
    let mut out = Vec::new();
    decoder.read_to_end(&mut out).unwrap();
    out
}

#[test]
fn every_compression_round_trips() {
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        assert_eq!(round_trip(compression, &data), data);
        assert_eq!(round_trip(compression, b"x"), b"x");
    }
}

#[test]
fn concatenated_gzip_members_are_one_stream() {
    let mut packed = Vec::new();
    for part in [&b"one "[..], b"two"] {
        let mut encoder = Encoder::new(Vec::new(), Compression::Gzip).unwrap();
        encoder.write_all(part).unwrap();
        packed.extend(encoder.finish().unwrap());
    }
    let mut out = String::new();
    Decoder::new(&packed[..]).unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "one two");
}

#[test]
fn unsupported_kinds_are_named() {
    let error = Decoder::new(&b"BZh91AY"[..]).err().unwrap();
    assert!(error.to_string().contains("bzip2"), "{error}");
}

#[test]
fn empty_streams_are_empty() {
    let mut out = Vec::new();
    Decoder::new(&b""[..]).unwrap().read_to_end(&mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn a_cut_stream_is_an_error() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
        encoder.write_all(&[7; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut decoder = Decoder::new(&packed[..packed.len() - 9]).unwrap();
        assert!(decoder.read_to_end(&mut Vec::new()).is_err());
    }
}
