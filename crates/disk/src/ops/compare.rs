//! Whether two disks have the same contents.

use super::{Progress, step};
use crate::error::Result;
use crate::format::is_zero;
use crate::graph::Node;

const CHUNK: u64 = 512 << 10;

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    /// Equal, but one has more zeroes at its end.
    EqualButForSize,
    /// Different from this byte on.
    Differ(u64),
    /// The sizes differ, and that was asked to count.
    SizesDiffer,
    /// One has data in its layers where the other has nothing.
    StatusDiffers(u64),
}

/// Compares two disks; `strict` also compares sizes and what is allocated.
pub fn compare(
    first: &dyn Node,
    second: &dyn Node,
    strict: bool,
    progress: &dyn Progress,
) -> Result<Comparison> {
    let (short, long) = (first.size().min(second.size()), first.size().max(second.size()));
    if strict && short != long {
        return Ok(Comparison::SizesDiffer);
    }
    let (mut left, mut right) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut offset = 0;
    while offset < short {
        step(progress, offset, long, "comparison")?;
        let a = first.status(offset, short - offset)?;
        let b = second.status(offset, a.len)?;
        if strict && a.present != b.present {
            return Ok(Comparison::StatusDiffers(offset));
        }
        let len = b.len.min(a.len);
        if a.zero && b.zero {
            offset += len;
            continue;
        }
        let len = len.min(CHUNK);
        let (l, r) = (&mut left[..len as usize], &mut right[..len as usize]);
        first.read(offset, l)?;
        second.read(offset, r)?;
        if l != r {
            let at = l.iter().zip(&*r).position(|(l, r)| l != r).unwrap_or(0);
            return Ok(Comparison::Differ(offset + at as u64));
        }
        offset += len;
    }
    let longer = if first.size() > second.size() { first } else { second };
    while offset < long {
        step(progress, offset, long, "comparison")?;
        let status = longer.status(offset, long - offset)?;
        if status.zero {
            offset += status.len;
            continue;
        }
        let len = status.len.min(CHUNK);
        let rest = &mut left[..len as usize];
        longer.read(offset, rest)?;
        if !is_zero(rest) {
            let at = rest.iter().position(|&byte| byte != 0).unwrap_or(0);
            return Ok(Comparison::Differ(offset + at as u64));
        }
        offset += len;
    }
    Ok(if short == long { Comparison::Equal } else { Comparison::EqualButForSize })
}
