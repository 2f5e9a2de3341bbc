//! Copying a disk into an image: the heart of `convert`.
//!
//! What reads as zeroes is not copied, also where the source stores zeroes as
//! data. Compressed copies go through a pipeline: this thread reads and writes
//! in order, and one thread for each processor packs clusters in between.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;

use super::rate::RateLimit;
use super::{Progress, step};
use crate::codec::{Codec, Encoder};
use crate::error::{Error, Result};
use crate::format::{FormatKind, is_zero};
use crate::graph::{Image, Node};

/// Small enough to stay in the processor's cache between reading and writing.
const CHUNK: u64 = 512 << 10;
/// What the kernel copies between two looks at the progress and at interruptions.
const OFFLOAD_STEP: u64 = 64 << 20;
/// Clusters under way in the pipeline for each thread.
const DEPTH: usize = 8;

/// How to copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    pub compress: bool,
    /// Zeroes in stretches of at least this many bytes are not written; 0
    /// writes all data there is.
    pub sparse: u64,
    /// The target reads as zeroes already, everywhere.
    pub target_is_zero: bool,
    /// The target has the source's backing file: only what is in the source's
    /// own layer is copied.
    pub shared_backing: bool,
    /// Packing threads; 0 for one on each processor.
    pub threads: usize,
    /// Goes on over what cannot be read, with zeroes.
    pub salvage: bool,
    /// Bytes per second, 0 for no limit.
    pub rate_limit: u64,
    /// Lets the kernel copy what lies in both files as it is read. What a file
    /// system shares between files is shared, and zeroes are not looked for.
    pub offload: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            compress: false,
            sparse: 4096,
            target_is_zero: false,
            shared_backing: false,
            threads: 0,
            salvage: false,
            rate_limit: 0,
            offload: false,
        }
    }
}

/// What a piece of the source is, for the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Skip,
    Zero,
    Data,
}

/// Copies all of a disk.
pub fn copy(
    source: &dyn Node,
    target: &Image,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let size = source.size().min(target.size());
    let copy =
        Copy { source, target, options, progress, size, name: target.path().display().to_string() };
    if options.compress {
        let Some(codec) = target.format().codec() else {
            return Err(Error::NoSuchOperation {
                format: target.kind().name(),
                what: "compression in this variant",
            });
        };
        copy.packed(codec)?;
    } else {
        copy.plain()?;
    }
    progress.at(size, size);
    Ok(())
}

struct Copy<'a> {
    source: &'a dyn Node,
    target: &'a Image,
    options: &'a CopyOptions,
    progress: &'a dyn Progress,
    size: u64,
    name: String,
}

impl Copy<'_> {
    fn piece(&self, offset: u64, len: u64) -> Result<(Piece, u64)> {
        let status = match self.source.status(offset, len) {
            Ok(status) => status,
            Err(_) if self.options.salvage => return Ok((Piece::Zero, len.min(CHUNK))),
            Err(error) => return Err(error),
        };
        let kind = if self.options.shared_backing && (status.depth > 0 || !status.present) {
            Piece::Skip
        } else if !status.zero {
            Piece::Data
        } else if self.options.target_is_zero && !self.options.shared_backing {
            Piece::Skip
        } else {
            Piece::Zero
        };
        Ok((kind, status.len))
    }

    fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self.source.read(offset, buf) {
            Err(_) if self.options.salvage => {
                for (index, sector) in buf.chunks_mut(4096).enumerate() {
                    if self.source.read(offset + index as u64 * 4096, sector).is_err() {
                        sector.fill(0);
                    }
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Copies from `offset` on without reading the bytes; says how many, 0
    /// where it cannot be done.
    fn offloaded(&self, offset: u64, len: u64) -> Result<u64> {
        if !self.options.offload || self.target.kind() != FormatKind::Raw {
            return Ok(0);
        }
        let status = self.source.status(offset, len)?;
        let (Some(place), Some(from)) = (status.place, self.source.storage(offset, &status)) else {
            return Ok(0);
        };
        let [to] = self.target.format().storages() else { return Ok(0) };
        to.copy_from(&*from, place.offset, offset, len.min(status.len).min(OFFLOAD_STEP))
    }

    fn plain(&self) -> Result<()> {
        let mut buf = vec![0; CHUNK as usize];
        let limit = RateLimit::new(self.options.rate_limit);
        let mut offset = 0;
        while offset < self.size {
            step(self.progress, offset, self.size, &self.name)?;
            let (piece, len) = self.piece(offset, self.size - offset)?;
            let end = offset + len;
            match piece {
                Piece::Skip => {}
                Piece::Zero => self.target.write_zeroes(offset, len, true)?,
                Piece::Data => {
                    let mut at = offset;
                    while at < end {
                        let moved = self.offloaded(at, end - at)?;
                        if moved > 0 {
                            limit.spent(moved);
                            at += moved;
                            step(self.progress, at, self.size, &self.name)?;
                            continue;
                        }
                        // Chunks end at their multiples: whole clusters.
                        let stop = end.min((at / CHUNK + 1) * CHUNK);
                        let part = &mut buf[..(stop - at) as usize];
                        self.fetch(at, part)?;
                        self.put(at, part)?;
                        limit.spent(stop - at);
                        at = stop;
                        step(self.progress, at, self.size, &self.name)?;
                    }
                }
            }
            offset = end;
        }
        Ok(())
    }

    /// Writes data without the zeroes in it.
    fn put(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.options.sparse == 0 {
            return self.target.write(offset, data);
        }
        let unit = self.options.sparse.next_power_of_two().clamp(512, CHUNK) as usize;
        let mut start = 0;
        while start < data.len() {
            // Units are counted from the disk's start.
            let first = unit - (offset as usize + start) % unit;
            let zero = is_zero(&data[start..data.len().min(start + first)]);
            let mut end = (start + first).min(data.len());
            while end < data.len() && is_zero(&data[end..data.len().min(end + unit)]) == zero {
                end = (end + unit).min(data.len());
            }
            let at = offset + start as u64;
            if !zero {
                self.target.write(at, &data[start..end])?;
            } else if !self.options.target_is_zero {
                self.target.write_zeroes(at, (end - start) as u64, true)?;
            }
            start = end;
        }
        Ok(())
    }

    fn packed(&self, codec: Codec) -> Result<()> {
        let cluster = self.target.format().cluster_size();
        let threads = match self.options.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads.min(64),
        };
        // Where only packed clusters are taken, noise is packed as well.
        let always = self.target.format().always_packed();
        let grow = if always { cluster as usize / 8 + 1024 } else { 0 };
        let (jobs, work) = channel();
        let work = Mutex::new(work);
        let (results, done) = channel();
        thread::scope(|scope| {
            for _ in 0..threads {
                let results = results.clone();
                scope.spawn(|| pack(&work, results, codec.encoder(), grow));
            }
            drop(results);
            let mut line = Line {
                copy: self,
                jobs,
                done,
                threads,
                waiting: BTreeMap::new(),
                sent: 0,
                written: 0,
                spare: Vec::new(),
            };
            self.feed(&mut line, cluster)?;
            while line.written < line.sent {
                line.take()?;
            }
            Ok(())
        })
    }

    /// Reads clusters into the pipeline.
    fn feed(&self, line: &mut Line<'_, '_>, cluster: u64) -> Result<()> {
        let limit = RateLimit::new(self.options.rate_limit);
        let mut offset = 0;
        while offset < self.size {
            step(self.progress, offset, self.size, &self.name)?;
            let (piece, len) = self.piece(offset, self.size - offset)?;
            // Clusters that are data in part are packed as a whole.
            let end =
                if offset + len == self.size { self.size } else { (offset + len) & !(cluster - 1) };
            if piece != Piece::Data && end > offset {
                if piece == Piece::Zero {
                    self.target.write_zeroes(offset, end - offset, true)?;
                }
                offset = end;
                continue;
            }
            let stop = end.max((offset + cluster).min(self.size));
            while offset < stop {
                let len = cluster.min(self.size - offset);
                let mut data = line.buffer(cluster as usize);
                self.fetch(offset, &mut data[..len as usize])?;
                data[len as usize..].fill(0);
                limit.spent(len);
                line.send(offset, len, data)?;
                offset += len;
                step(self.progress, offset, self.size, &self.name)?;
            }
        }
        Ok(())
    }

    fn store(&self, offset: u64, len: u64, packed: &Packed) -> Result<()> {
        match packed {
            Packed::Zero(_) if self.options.target_is_zero => Ok(()),
            Packed::Zero(_) => self.target.write_zeroes(offset, len, true),
            Packed::Small(_, bytes) => self.target.write_packed(offset, bytes),
            Packed::Plain(data) => self.target.write(offset, &data[..len as usize]),
        }
    }
}

struct Job {
    sequence: u64,
    offset: u64,
    len: u64,
    data: Vec<u8>,
}

/// A cluster after packing; the buffer comes back to be used again.
enum Packed {
    Zero(Vec<u8>),
    Small(Vec<u8>, Vec<u8>),
    Plain(Vec<u8>),
}

fn pack(
    work: &Mutex<Receiver<Job>>,
    results: Sender<(u64, u64, u64, Packed)>,
    mut encoder: Encoder,
    grow: usize,
) {
    loop {
        // The lock is held while waiting: the next idle thread is next.
        let Ok(Job { sequence, offset, len, data }) = work.lock().recv() else { return };
        let packed = if is_zero(&data) {
            Packed::Zero(data)
        } else {
            let mut bytes = Vec::new();
            if encoder.pack(&data, data.len() - 1 + grow, &mut bytes) {
                Packed::Small(data, bytes)
            } else {
                Packed::Plain(data)
            }
        };
        if results.send((sequence, offset, len, packed)).is_err() {
            return;
        }
    }
}

/// The pipeline as the reading and writing thread sees it.
struct Line<'a, 'b> {
    copy: &'a Copy<'b>,
    jobs: Sender<Job>,
    done: Receiver<(u64, u64, u64, Packed)>,
    threads: usize,
    waiting: BTreeMap<u64, (u64, u64, Packed)>,
    sent: u64,
    written: u64,
    spare: Vec<Vec<u8>>,
}

impl Line<'_, '_> {
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| vec![0; len])
    }

    fn gone(&self) -> Error {
        Error::Interrupted { name: self.copy.name.clone() }
    }

    fn send(&mut self, offset: u64, len: u64, data: Vec<u8>) -> Result<()> {
        let job = Job { sequence: self.sent, offset, len, data };
        self.jobs.send(job).map_err(|_| self.gone())?;
        self.sent += 1;
        while (self.sent - self.written) as usize >= self.threads * DEPTH {
            self.take()?;
        }
        Ok(())
    }

    /// Waits for one packed cluster and writes what is next in order.
    fn take(&mut self) -> Result<()> {
        let (sequence, offset, len, packed) = self.done.recv().map_err(|_| self.gone())?;
        self.waiting.insert(sequence, (offset, len, packed));
        while let Some((offset, len, packed)) = self.waiting.remove(&self.written) {
            self.copy.store(offset, len, &packed)?;
            self.written += 1;
            self.spare.push(match packed {
                Packed::Zero(data) | Packed::Small(data, _) | Packed::Plain(data) => data,
            });
        }
        Ok(())
    }
}
