//! Moving contents between the layers of a backing chain.

use super::rate::RateLimit;
use super::{Progress, step};
use crate::error::{Error, Result};
use crate::format::{BackingReference, Below};
use crate::formats::qcow2::Amendment;
use crate::graph::{Image, ImageBelow, Node};

const CHUNK: u64 = 512 << 10;

/// What is below for now: that it reads as zeroes somewhere is no reason to
/// leave zeroes to it.
struct Leaving<'a>(ImageBelow<'a>);

impl Below for Leaving<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(offset, buf)
    }

    fn is_zero(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(false)
    }
}

/// Gives an image another backing file without changing its contents: where
/// old and new backing differ, the old contents move into the image.
pub fn rebase(
    image: &Image,
    new: Option<&Image>,
    reference: Option<BackingReference>,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(qcow2) = image.format().as_qcow2() else {
        return Err(Error::NoSuchOperation { format: image.kind().name(), what: "rebasing" });
    };
    let size = image.size();
    let name = image.path().display().to_string();
    if !image.writable() {
        return Err(Error::ReadOnly { name });
    }
    let (mut was, mut will) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut offset = 0;
    while offset < size {
        step(progress, offset, size, &name)?;
        let status = image.status(offset, (size - offset).min(CHUNK))?;
        let own = status.depth == 0 && status.present;
        if !own {
            let len = status.len as usize;
            let (was, will) = (&mut was[..len], &mut will[..len]);
            image.read(offset, was)?;
            read_padded(new, offset, will)?;
            move_differences(image, offset, was, will)?;
        }
        offset += status.len;
    }
    image.flush()?;
    qcow2.amend(&Amendment { backing: Some(reference), ..Amendment::default() }, &image.below())?;
    progress.at(size, size);
    Ok(())
}

fn read_padded(image: Option<&Image>, offset: u64, buf: &mut [u8]) -> Result<()> {
    let size = image.map_or(0, Node::size);
    let inside = size.saturating_sub(offset).min(buf.len() as u64) as usize;
    buf[inside..].fill(0);
    match image {
        Some(image) if inside > 0 => image.read(offset, &mut buf[..inside]),
        _ => Ok(()),
    }
}

fn move_differences(image: &Image, offset: u64, was: &[u8], will: &[u8]) -> Result<()> {
    let unit = 4096;
    let mut start = 0;
    while start < was.len() {
        let end = (start + unit).min(was.len());
        if was[start..end] == will[start..end] {
            start = end;
            continue;
        }
        let mut stop = end;
        while stop < was.len() {
            let next = (stop + unit).min(was.len());
            if was[stop..next] == will[stop..next] {
                break;
            }
            stop = next;
        }
        let part = &was[start..stop];
        if crate::format::is_zero(part) {
            let (at, len) = (offset + start as u64, part.len() as u64);
            image.format().write_zeroes(at, len, true, &Leaving(image.below()))?;
        } else {
            image.write(offset + start as u64, part)?;
        }
        start = stop;
    }
    Ok(())
}

/// What is to be committed, and how.
#[derive(Clone, Copy, Debug)]
pub struct CommitOptions {
    /// Which layer of the chain takes it; 0 is the top.
    pub depth: usize,
    /// The top layer is emptied afterwards; it has to be writable then.
    pub empty: bool,
    /// Bytes per second at most; 0 is no limit.
    pub rate_limit: u64,
}

/// Writes what the layers above `base` have into `base`, which is open for
/// writing by itself; `top` is the whole chain.
pub fn commit(
    top: &Image,
    base: &Image,
    options: &CommitOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let size = top.size();
    let name = base.path().display().to_string();
    if base.size() < size {
        base.resize(size, crate::format::Preallocation::Off)?;
    }
    let limit = RateLimit::new(options.rate_limit);
    let mut buf = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < size {
        step(progress, offset, size, &name)?;
        let status = top.status(offset, (size - offset).min(CHUNK))?;
        let above = status.depth < options.depth && status.present;
        if above && status.zero {
            base.write_zeroes(offset, status.len, true)?;
        } else if above {
            let part = &mut buf[..status.len as usize];
            top.read(offset, part)?;
            base.write(offset, part)?;
            limit.spent(status.len);
        }
        offset += status.len;
    }
    base.flush()?;
    if options.empty {
        // The base is stable now: letting go of the copy above loses nothing.
        top.format().resize(0, crate::format::Preallocation::Off)?;
        top.format().resize(size, crate::format::Preallocation::Off)?;
    }
    progress.at(size, size);
    Ok(())
}
