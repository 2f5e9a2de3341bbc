//! A layer's blob as a stream of entries: decompressed, bounded, verified.

use std::io::{self, Read};

use crate::Digest;
use crate::codec::Decoder;
use crate::digest::{Hasher, Hashing};
use crate::error::{LayerError, Mismatch};
use crate::limits::Limits;
use crate::tar::{Entry, Reader, TarError};

/// The archive within a layer.
pub struct Source<R: Read> {
    tar: Reader<Hashing<Bounded<Decoder<R>>>>,
    limits: Limits,
    entries: u64,
}

impl<R: Read> Source<R> {
    pub fn new(blob: R, limits: Limits) -> Result<Self, LayerError> {
        let bounded = Bounded { inner: Decoder::new(blob)?, left: limits.unpacked_bytes };
        Ok(Self { tar: Reader::new(Hashing::new(bounded, Hasher::sha256())), limits, entries: 0 })
    }

    /// The next entry; `read` then gives its data.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let entry = self.tar.next_entry().map_err(|e| self.explain(e))?;
        if entry.is_some() {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(LayerError::TooMany { limit: self.limits.entries });
            }
        }
        Ok(entry)
    }

    /// Reads data of the current entry.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            match self.tar.read(buffer) {
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.explain(e.into())),
            }
        }
    }

    /// Reads to the end of the blob; its digest must be the one promised.
    pub fn finish(mut self, expected: Digest) -> Result<(), LayerError> {
        let found = self.digest()?;
        if found != expected {
            return Err(LayerError::WrongDiffId(Box::new(Mismatch { expected, found })));
        }
        Ok(())
    }

    /// Reads to the end of the blob and gives the digest of all of it.
    pub fn digest(&mut self) -> Result<Digest, LayerError> {
        self.tar.drain().map_err(|e| self.explain(e.into()))?;
        let hashing = std::mem::replace(self.tar.get_mut().hasher_mut(), Hasher::sha256());
        Ok(hashing.finish())
    }

    /// Bytes of the uncompressed archive so far.
    pub fn bytes(&mut self) -> u64 {
        Hashing::bytes(self.tar.get_mut())
    }

    fn explain(&self, error: TarError) -> LayerError {
        match error {
            TarError::Io(e) if e.get_ref().is_some_and(|inner| inner.is::<OutOfBounds>()) => {
                LayerError::TooBig { limit: self.limits.unpacked_bytes }
            }
            other => other.into(),
        }
    }
}

/// Stops a stream that is longer than allowed with an error.
struct Bounded<R> {
    inner: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("longer than the limit")]
struct OutOfBounds;

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => Err(io::Error::other(OutOfBounds)),
        }
    }
}
