//! Layers: tar archives that say what changes from the root file system below.
//!
//! A layer becomes either a directory for overlayfs (`unpack`) or a part of
//! an EROFS image (`crate::erofs`). Both read it through `source`, which
//! decompresses, counts against the limits, and computes the digest that the
//! configuration promised; both take paths through `path`, which refuses what
//! leads out of the root.

mod dirs;
mod lower;
mod pack;
pub(crate) mod path;
mod root;
pub(crate) mod source;
mod unpack;

use std::io::Read;
use std::path::Path;

use crate::error::LayerError;
use crate::{Digest, Limits};

/// Unpacks a layer that has none below it.
pub(crate) fn unpack_alone(
    blob: impl Read + 'static,
    diff_id: Digest,
    into: &Path,
    limits: Limits,
) -> Result<(), LayerError> {
    unpack::unpack(blob, diff_id, into, limits)?.settle(&[]).map(drop)
}

#[cfg(test)]
mod tests;
