//! Packing and unpacking of single clusters.
//!
//! Clusters are packed on their own, whole buffers at a time, so the encoders
//! are made once for a thread and used for many clusters.

use libdeflater::{CompressionLvl, Compressor, Decompressor};

/// How an image format packs a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Deflate without a frame around it.
    Deflate,
    /// Deflate in a zlib frame.
    Zlib,
    /// A Zstandard frame.
    Zstd,
}

/// Same ratio as zlib's default level, at several times its speed.
const DEFLATE_LEVEL: i32 = 5;
/// A frame around the bytes as they are.
const STORE_LEVEL: i32 = 0;
const ZSTD_LEVEL: i32 = 3;
/// Finds repetitions at a small part of what deflate takes for them.
const PROBE_LEVEL: i32 = 1;

/// Packs clusters, for one thread.
pub struct Encoder {
    inner: EncoderInner,
    /// Where a cluster is packed before its size is known.
    space: Vec<u8>,
}

enum EncoderInner {
    Deflate(Box<Deflate>),
    Zstd(Option<Zstd>),
}

type Zstd = Box<zstd::bulk::Compressor<'static>>;

struct Deflate {
    packing: Compressor,
    storing: Compressor,
    probe: Option<Zstd>,
    zlib: bool,
}

impl Codec {
    /// An encoder for this thread.
    pub fn encoder(self) -> Encoder {
        // Without memory for it nothing is packed, which is correct too.
        let zstd = |level| zstd::bulk::Compressor::new(level).ok().map(Box::new);
        let deflate = |zlib| {
            let level = |level| Compressor::new(CompressionLvl::new(level).unwrap_or_default());
            EncoderInner::Deflate(Box::new(Deflate {
                packing: level(DEFLATE_LEVEL),
                storing: level(STORE_LEVEL),
                probe: zstd(PROBE_LEVEL),
                zlib,
            }))
        };
        let inner = match self {
            Self::Deflate => deflate(false),
            Self::Zlib => deflate(true),
            Self::Zstd => EncoderInner::Zstd(zstd(ZSTD_LEVEL)),
        };
        Encoder { inner, space: Vec::new() }
    }

    /// Unpacks into a buffer of exactly the unpacked size. Bytes after the
    /// packed stream are padding. `false`: not a sound stream.
    pub fn unpack(self, packed: &[u8], out: &mut [u8]) -> bool {
        match self {
            Self::Deflate => match Decompressor::new().deflate_decompress(packed, out) {
                Ok(len) => len == out.len(),
                Err(_) => false,
            },
            Self::Zlib => match Decompressor::new().zlib_decompress(packed, out) {
                Ok(len) => {
                    out[len..].fill(0);
                    true
                }
                Err(_) => false,
            },
            Self::Zstd => unpack_zstd(packed, out),
        }
    }
}

/// A frame need not declare its end: stop when the cluster is full.
fn unpack_zstd(packed: &[u8], out: &mut [u8]) -> bool {
    use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
    let Ok(mut decoder) = Decoder::new() else { return false };
    let wanted = out.len();
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(out);
    while output.pos() < wanted {
        let before = (input.pos(), output.pos());
        match decoder.run(&mut input, &mut output) {
            Ok(0) => break,
            Ok(_) if (input.pos(), output.pos()) == before => break,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    output.pos() == wanted
}

impl Encoder {
    /// Appends the packed form of `data` to `out` if that is smaller than
    /// `limit`; otherwise leaves `out` as it was.
    pub fn pack(&mut self, data: &[u8], limit: usize, out: &mut Vec<u8>) -> bool {
        if self.space.len() < limit {
            self.space.resize(limit, 0);
        }
        let space = &mut self.space[..limit];
        let packed = match &mut self.inner {
            EncoderInner::Deflate(deflate) => deflate.pack(data, space),
            EncoderInner::Zstd(compressor) => {
                compressor.as_mut().and_then(|c| c.compress_to_buffer(data, space).ok())
            }
        };
        out.extend_from_slice(&self.space[..packed.unwrap_or(0)]);
        packed.is_some()
    }
}

impl Deflate {
    fn pack(&mut self, data: &[u8], space: &mut [u8]) -> Option<usize> {
        let noise = self.is_noise(data, space);
        if noise && space.len() < data.len() {
            return None;
        }
        let compressor = if noise { &mut self.storing } else { &mut self.packing };
        if self.zlib {
            compressor.zlib_compress(data, space).ok()
        } else {
            compressor.deflate_compress(data, space).ok()
        }
    }

    /// Whether packing is in vain: all bytes are equally frequent, and nothing
    /// repeats. Deflate takes longer to find out than to pack what can be.
    fn is_noise(&mut self, data: &[u8], space: &mut [u8]) -> bool {
        if !is_flat(data) {
            return false;
        }
        let Some(probe) = &mut self.probe else { return false };
        let len = space.len().min(data.len() - 1);
        probe.compress_to_buffer(data, &mut space[..len]).is_err()
    }
}

/// Whether a sample has every byte about as often as any other.
fn is_flat(data: &[u8]) -> bool {
    const PIECES: usize = 16;
    const PIECE: usize = 256;
    const SAMPLE: usize = PIECES * PIECE;
    if data.len() < SAMPLE {
        return false;
    }
    let mut counts = [0_u32; 256];
    for piece in data.chunks(data.len() / PIECES).take(PIECES) {
        for &byte in &piece[..PIECE] {
            counts[usize::from(byte)] += 1;
        }
    }
    // Pearson's statistic: its mean is 255 for noise, its deviation 23.
    let squares: u32 = counts.iter().map(|&count| count * count).sum();
    let statistic = (squares - (SAMPLE * SAMPLE / 256) as u32) / (SAMPLE / 256) as u32;
    statistic < 400
}

#[cfg(test)]
mod tests;
