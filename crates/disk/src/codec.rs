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
const ZSTD_LEVEL: i32 = 3;

/// Packs clusters, for one thread.
pub struct Encoder {
    inner: EncoderInner,
}

enum EncoderInner {
    Deflate { compressor: Box<Compressor>, zlib: bool },
    Zstd(Option<Box<zstd::bulk::Compressor<'static>>>),
}

impl Codec {
    /// An encoder for this thread.
    pub fn encoder(self) -> Encoder {
        let deflate = |zlib| {
            let level = CompressionLvl::new(DEFLATE_LEVEL).unwrap_or_default();
            EncoderInner::Deflate { compressor: Box::new(Compressor::new(level)), zlib }
        };
        let inner = match self {
            Self::Deflate => deflate(false),
            Self::Zlib => deflate(true),
            // Without memory for it nothing is packed, which is correct too.
            Self::Zstd => {
                EncoderInner::Zstd(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok().map(Box::new))
            }
        };
        Encoder { inner }
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
        let start = out.len();
        out.resize(start + limit, 0);
        let space = &mut out[start..];
        let packed = match &mut self.inner {
            EncoderInner::Deflate { compressor, zlib: false } => {
                compressor.deflate_compress(data, space).ok()
            }
            EncoderInner::Deflate { compressor, zlib: true } => {
                compressor.zlib_compress(data, space).ok()
            }
            EncoderInner::Zstd(compressor) => {
                compressor.as_mut().and_then(|c| c.compress_to_buffer(data, space).ok())
            }
        };
        out.truncate(start + packed.unwrap_or(0));
        packed.is_some()
    }
}

#[cfg(test)]
mod tests;
