//! A disk whose contents are also brought to another image, and kept the same
//! there: writes go to both while a thread copies what was there before.
//!
//! Requests that change the same bytes, and the copying of these bytes, come
//! one after the other ([`Ranges`]), so both images see them in one order. The
//! copy's failure is not the disk's: the disk goes on without it, and says so
//! when asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::{Image, Node, Status};
use crate::error::{Error, Result};
use crate::format::is_zero;
use crate::storage::SharedStorage;

/// What is copied between two looks at whether to stop.
const STEP: u64 = 1 << 20;

/// How far a mirror is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorState {
    /// So many bytes have been looked at.
    Copying { done: u64, total: u64 },
    /// The copy has all that the disk has.
    Same,
    /// The copy is not kept any more.
    Failed(String),
}

/// A disk and its copy.
pub struct Mirror {
    shared: Arc<Shared>,
    copier: Option<JoinHandle<()>>,
}

struct Shared {
    source: Arc<Image>,
    target: Image,
    state: Mutex<MirrorState>,
    ranges: Ranges,
    stop: AtomicBool,
}

/// Stretches that somebody changes or copies right now.
#[derive(Default)]
struct Ranges {
    taken: Mutex<Vec<(u64, u64)>>,
    given_back: Condvar,
}

/// A stretch that is one's own until this is dropped.
struct Range<'a> {
    ranges: &'a Ranges,
    own: (u64, u64),
}

impl Ranges {
    /// Waits until nobody else has any of it.
    fn take(&self, offset: u64, len: u64) -> Range<'_> {
        let own = (offset, offset.saturating_add(len));
        let mut taken = self.taken.lock();
        while taken.iter().any(|other| own.0 < other.1 && other.0 < own.1) {
            self.given_back.wait(&mut taken);
        }
        taken.push(own);
        Range { ranges: self, own }
    }
}

impl Drop for Range<'_> {
    fn drop(&mut self) {
        let mut taken = self.ranges.taken.lock();
        if let Some(at) = taken.iter().position(|other| *other == self.own) {
            taken.swap_remove(at);
        }
        self.ranges.given_back.notify_all();
    }
}

impl Mirror {
    /// Starts to bring a disk's contents to an image, which is as large.
    pub fn start(source: Arc<Image>, target: Image) -> Result<Self> {
        if target.size() != source.size() {
            let what = format!(
                "'{}' has {} bytes, the disk {}",
                target.path().display(),
                target.size(),
                source.size()
            );
            return Err(Error::option("mirror", what));
        }
        if !target.writable() || target.format().always_packed() {
            return Err(Error::option("mirror", "cannot be written at any place"));
        }
        let state = Mutex::new(MirrorState::Copying { done: 0, total: source.size() });
        let shared = Arc::new(Shared {
            source,
            target,
            state,
            ranges: Ranges::default(),
            stop: AtomicBool::new(false),
        });
        let thread = Arc::clone(&shared);
        let copier = std::thread::Builder::new()
            .name("disk-mirror".to_owned())
            .spawn(move || thread.copy_all())
            .map_err(|e| Error::io("start a thread to mirror", "the disk", e))?;
        Ok(Self { shared, copier: Some(copier) })
    }

    /// How far it is.
    pub fn state(&self) -> MirrorState {
        self.shared.state.lock().clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(copier) = self.copier.take() {
            // A panic there was told on standard error already.
            let _told = copier.join();
        }
    }
}

impl Shared {
    fn copy_all(&self) {
        let total = self.source.size();
        let mut buf = vec![0; STEP as usize];
        let mut done = 0;
        while done < total {
            if self.stop.load(Ordering::Acquire) || self.has_failed() {
                return;
            }
            match self.copy_step(done, &mut buf) {
                Ok(len) => done += len,
                Err(error) => return self.fail(&error),
            }
            let mut state = self.state.lock();
            if let MirrorState::Copying { done: told, .. } = &mut *state {
                *told = done;
            }
        }
        let flushed = self.target.flush();
        match flushed {
            Err(error) => self.fail(&error),
            Ok(()) => {
                let mut state = self.state.lock();
                if !matches!(*state, MirrorState::Failed(_)) {
                    *state = MirrorState::Same;
                }
            }
        }
    }

    /// Copies from `offset` on; says how much.
    fn copy_step(&self, offset: u64, buf: &mut [u8]) -> Result<u64> {
        let len = (self.source.size() - offset).min(STEP);
        let _own = self.ranges.take(offset, len);
        let status = self.source.status(offset, len)?;
        let part = &mut buf[..status.len as usize];
        if !status.zero {
            self.source.read(offset, part)?;
        }
        if status.zero || is_zero(part) {
            self.target.write_zeroes(offset, status.len, true)?;
        } else {
            self.target.write(offset, part)?;
        }
        Ok(status.len)
    }

    fn has_failed(&self) -> bool {
        matches!(*self.state.lock(), MirrorState::Failed(_))
    }

    fn fail(&self, error: &Error) {
        let mut state = self.state.lock();
        if !matches!(*state, MirrorState::Failed(_)) {
            *state = MirrorState::Failed(error.to_string());
        }
    }

    /// Does something to the disk, then to its copy.
    fn both(&self, offset: u64, len: u64, change: impl Fn(&Image) -> Result<()>) -> Result<()> {
        let _own = self.ranges.take(offset, len);
        change(&self.source)?;
        if !self.has_failed()
            && let Err(error) = change(&self.target)
        {
            self.fail(&error);
        }
        Ok(())
    }
}

impl Node for Mirror {
    fn size(&self) -> u64 {
        self.shared.source.size()
    }

    fn writable(&self) -> bool {
        self.shared.source.writable()
    }

    fn status(&self, offset: u64, len: u64) -> Result<Status> {
        self.shared.source.status(offset, len)
    }

    fn storage(&self, offset: u64, status: &Status) -> Option<SharedStorage> {
        self.shared.source.storage(offset, status)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.shared.source.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.shared.both(offset, data.len() as u64, |image| image.write(offset, data))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.shared.both(offset, len, |image| image.write_zeroes(offset, len, unmap))
    }

    /// A discarded stretch may read as anything that it was, in each image
    /// something else: the copy gets what the disk has afterwards.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let shared = &self.shared;
        let _own = shared.ranges.take(offset, len);
        shared.source.discard(offset, len)?;
        if shared.has_failed() {
            return Ok(());
        }
        let mut buf = vec![0; len.min(STEP) as usize];
        let mut at = offset;
        while at < offset + len {
            let left = offset + len - at;
            let copied = shared.source.status(at, left).and_then(|status| {
                if status.zero {
                    shared.target.write_zeroes(at, status.len, true)?;
                    return Ok(status.len);
                }
                let part = &mut buf[..status.len.min(STEP) as usize];
                shared.source.read(at, part)?;
                shared.target.write(at, part)?;
                Ok(part.len() as u64)
            });
            match copied {
                Ok(len) => at += len,
                Err(error) => {
                    shared.fail(&error);
                    break;
                }
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.shared.source.flush()?;
        if !self.shared.has_failed()
            && let Err(error) = self.shared.target.flush()
        {
            self.shared.fail(&error);
        }
        Ok(())
    }

    fn pass(&self, write: bool, _len: u64) -> bool {
        !write
    }
}

#[cfg(test)]
mod tests;
