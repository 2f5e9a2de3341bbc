//! How long operations tell what they are doing. The library knows nothing of
//! terminals: the binary draws bars, the daemon sends events.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Digest;

/// Receives news of an operation, from several threads at once.
pub trait Progress: Send + Sync {
    /// Something begins: what is done, to which blob, of how many bytes.
    fn start(&self, what: &'static str, digest: Digest, bytes: u64) -> Meter;

    /// A line for people, about what is neither a blob nor bytes.
    fn note(&self, line: &str);

    /// Whether nobody wants the operation any more.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Counts the bytes of one blob. Whoever shows it reads the counter.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    counter: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    finished: AtomicBool,
    cancelled: AtomicBool,
}

impl Meter {
    pub fn add(&self, bytes: u64) {
        self.counter.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn finish(&self) {
        self.counter.finished.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counter.bytes.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn finished(&self) -> bool {
        self.counter.finished.load(Ordering::Relaxed)
    }

    /// Whoever reads through this meter gets an error from now on.
    pub fn cancel(&self) {
        self.counter.cancelled.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.counter.cancelled.load(Ordering::Relaxed)
    }

    /// Counts what is read.
    pub fn reader<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, meter: self.clone() }
    }
}

/// A reader that counts.
pub struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let n = self.inner.read(buffer)?;
        self.meter.add(n as u64);
        Ok(n)
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &'static str, _: Digest, _: u64) -> Meter {
        Meter::default()
    }

    fn note(&self, _: &str) {}
}
