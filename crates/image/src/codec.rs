//! Compression of layers: told by the first bytes, not by the media type, for
//! archives in the wild mislabel them.

use std::io::{self, BufReader, Read, Write};

use flate2::bufread::MultiGzDecoder;

use crate::error::LayerError;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A buffer that amortises a system call without falling out of the cache.
const BUFFER: usize = 256 << 10;

/// The largest zstd window: 128 MiB, what the command line tool accepts too.
const ZSTD_WINDOW_LOG: u32 = 27;

impl Compression {
    /// What the first bytes of a stream say.
    pub fn of(start: &[u8]) -> Result<Self, &'static str> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            _ => Ok(Self::None),
        }
    }
}

/// Decompresses a stream of any supported kind, or of none.
pub enum Decoder<R: Read> {
    None(BufReader<Prefixed<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<Prefixed<R>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Prefixed<R>>>>),
}

impl<R: Read> Decoder<R> {
    pub fn new(mut inner: R) -> Result<Self, LayerError> {
        let io = |source| LayerError::Io { what: "reading", path: "the layer".into(), source };
        let mut start = [0; 6];
        let mut length = 0;
        while length < start.len() {
            match inner.read(&mut start[length..]) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io(e)),
            }
        }
        let compression = Compression::of(&start[..length])
            .map_err(|kind| LayerError::Compression(kind.to_owned()))?;
        let inner = BufReader::with_capacity(BUFFER, Prefixed { start, at: 0, length, inner });
        Ok(match compression {
            Compression::None => Self::None(inner),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(inner))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(inner).map_err(io)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(io)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(inner) => inner.read(buffer),
            Self::Gzip(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
        }
    }
}

/// The bytes that were looked at, then the rest of the stream.
pub struct Prefixed<R> {
    start: [u8; 6],
    at: usize,
    length: usize,
    inner: R,
}

impl<R: Read> Read for Prefixed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.length {
            return self.inner.read(buffer);
        }
        let n = buffer.len().min(self.length - self.at);
        buffer[..n].copy_from_slice(&self.start[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Compresses bytes in memory.
pub fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let compressed = Encoder::new(Vec::new(), compression).and_then(|mut encoder| {
        encoder.write_all(bytes)?;
        encoder.finish()
    });
    match compressed {
        Ok(compressed) => compressed,
        Err(e) => unreachable!("writing to memory failed: {e}"),
    }
}

/// Compresses what is written. `finish` must be called.
pub enum Encoder<W: Write> {
    None(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    pub fn new(inner: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(inner),
            // Level 4 is twice as fast as the default 6 for 3 % more bytes.
            Compression::Gzip => Self::Gzip(Box::new(flate2::write::GzEncoder::new(
                inner,
                flate2::Compression::new(4),
            ))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Encoder::new(inner, 3)?)),
        })
    }

    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(inner) => Ok(inner),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(inner) => inner.write(buffer),
            Self::Gzip(inner) => inner.write(buffer),
            Self::Zstd(inner) => inner.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(inner) => inner.flush(),
            Self::Gzip(inner) => inner.flush(),
            Self::Zstd(inner) => inner.flush(),
        }
    }
}

#[cfg(test)]
mod tests;
